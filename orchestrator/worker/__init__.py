"""What happens on the node: claim the attempt, stage the data, build, train, and say how it ended.

    __main__.py     the process: signals first, then the claim, then everything else
    attempt.py      one attempt from its claim to its last event
    build.py        objects from `_target_` nodes
    signals.py      the one owner of signals
    training.py     the trainer, and the callbacks that watch it (imports torch and Lightning)
    checkpoints.py  checkpoints that are whole or absent (imports torch and Lightning)
"""
