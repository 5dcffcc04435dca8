"""The resources that a run uses.

usage.py  memory of the run's processes
node.py   metrics of its node: GPUs, memory, network
"""
