"""Training itself. Everything here may import torch and Lightning.

trainer.py      one fit: everything is built, trained, tested, and what came of it returned
progress.py     reports of progress, the objective's best value, the end of a trial without hope
stop.py         the end of a fit when a signal has come: agreed on by all ranks, saved, left
finders.py      learning rates and batch sizes, found once
exact/          the seam at which a fit is saved and resumed, and what makes it go on with the same bits
checkpoints.py  the engine's own checkpoints: when, which is the best, whole or absent
weights.py      weights that a run starts from
autolog.py      MLflow's autologging, whose metrics would come twice
example.py      a few samples of the model's input, for the registry
libraries.py    torch and Lightning, imported in less time
"""
