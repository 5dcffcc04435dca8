"""Exact resumption: a run that is killed and resumed ends with the bits of one that nobody disturbs.

seam.py         the moments at which a fit is saved and resumed, and what they are called in Lightning
place.py        what a loader gives, as a function of seed, epoch, position and rank
rng.py          random numbers: derived, exchanged, found in objects, saved
state.py        the state that Lightning does not save
lightning.py    every private name of Lightning's that the others need, and the versions that have them
older.py        checkpoints made without a seam, and Lightning versions without one
"""
