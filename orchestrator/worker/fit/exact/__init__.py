"""Exact resumption: a run that is killed and resumed ends bit-identical to one that was never interrupted.

seam.py         the moments at which a fit is saved and resumed
place.py        loaders whose batches are a function of seed, epoch, position and rank
rng.py          random numbers: derived seeds, swapped global generators, generators in objects, saved states
state.py        the state that Lightning does not save
digest.py       a short digest of a batch, to notice other data
lightning.py    every private name of Lightning that the others need, and the versions that have them
older.py        checkpoints made without a seam, and Lightning versions without one
"""
