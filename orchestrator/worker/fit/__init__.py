"""Training itself. Everything here may import torch and Lightning.

trainer.py      one fit: builds everything, trains, tests, and returns the results
progress.py     progress reports, the objective's best value, pruning of trials
beats.py        a beat at each batch, for the watcher of the node
stop.py         the end of a fit after a signal: all ranks agree, save and leave
finders.py      learning rates and batch sizes, searched for once per run
exact/          the seam at which a fit is saved and resumed, bit for bit
checkpoints.py  the engine's own checkpoints: when they are saved, and which is the best
cadence.py      when the next checkpoint is due
writer.py       how a checkpoint is written: atomically, beside the training, and which are kept
weights.py      weights that a run starts from
autolog.py      MLflow's autologging, whose metrics would come twice
example.py      a few samples of the model's input, for the registry
libraries.py    faster imports of torch and Lightning
"""
