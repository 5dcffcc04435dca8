"""What happens on the node: claim the attempt, stage the data, build, train, and say how it ended.

__main__.py     the process: signals first, then the claim, then everything else
assignment.py   what the plan asks for, and the claim of an attempt
place.py        this process's rank, and the scheduler's job it belongs to
data.py         the data version, staged before the training and watched beside it
pack.py         the process of a job that several runs share
warm.py         what imports torch and Lightning once, and forks a process for each run of a pack
log.py          the log of an attempt
libraries.py    torch and Lightning, imported in less time
attempt.py      one attempt from its claim to its last event
requeue.py      what an interrupted process owes the scheduler
build.py        objects from `_target_` nodes
signals.py      the one owner of signals
training.py     the trainer, and the callbacks that watch it (imports torch and Lightning)
checkpoints.py  checkpoints that are whole or absent (imports torch and Lightning)
"""
