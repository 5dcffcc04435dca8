"""What a run uses while it runs, and whether it gets on.

usage.py  memory and CPU of the run's processes
node.py   what its node does meanwhile: GPUs, memory, network
heartbeat.py  a number that grows with each batch, and where a stack is written
stall.py  when a run hangs, and in what (pure)
watcher.py  the program on each node that looks
"""
