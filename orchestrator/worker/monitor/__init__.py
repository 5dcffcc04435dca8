"""The resources that a run uses, and whether it makes progress.

usage.py      memory of the run's processes
node.py       metrics of its node: GPUs, memory, network
heartbeat.py  a number that grows with each batch, and where stacks are written
stall.py      when a run hangs, and in what (pure)
watcher.py    the program on each node that notices a hang
"""
