"""The budgets of the design, each measured next to a peer: `python -m bench [NAME...] [--json]`.

    measure.py        timings, taken in turns: ours, the peer's, ours, ...
    table.py          rows -> the table at the end
    sandbox.py        a temporary folder, and commands that run in it
    configuration.py  the project that launches are measured on
    records.py        an experiment with records of any number of runs
    slurm.py          a real Slurm whose nodes are busy
    slow_mount.py     a folder at 1 ms per operation (slow_mount.c)
    multirun.py       Hydra's own launcher, the peer of a launch

Every other module is one benchmark and has a function `rows`. A budget is a ratio to something measured in the same
run, so that a slow machine keeps it as a fast one does. One that was missed is printed as `not ok`, and the exit status
is then 1.
"""
