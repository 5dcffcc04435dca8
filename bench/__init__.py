"""Benchmarks of the design's budgets, each measured next to a peer: `python -m bench [NAME...] [--json]`.

    measure.py        alternating timings: `orch`, the peer, `orch`, ...
    table.py          rows -> the table at the end
    sandbox.py        a temporary folder, and commands that run in it
    configuration.py  the project with which launches are measured
    records.py        an experiment with records of any number of runs
    slurm.py          a real Slurm cluster whose nodes are busy
    slow_mount.py     a folder with 1 ms per operation (slow_mount.c)
    multirun.py       Hydra's own launcher, the peer of a launch

Every other module is one benchmark, with a function `rows`. A budget is a ratio to a peer measured in the same run, so
that it holds on slow and fast machines alike. A missed budget is printed as `not ok`, and the exit status is then 1.
"""
