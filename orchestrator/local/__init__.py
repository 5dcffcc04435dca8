"""Clusters of one machine: in the foreground (`inline`) and in the background (`workstation`).

Both run the same supervisor; the one inside the command that launched, the other detached from it.
"""
