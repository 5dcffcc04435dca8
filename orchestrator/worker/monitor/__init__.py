"""What a run uses while it runs.

usage.py  memory and CPU of the run's processes
node.py   what its node does meanwhile: GPUs, memory, network
"""
