"""What stands between a launch and its runs, so that one mistake costs one run and not a night of the cluster.

    gate           what may not start yet: runs behind the canary, and those that somebody holds
    brake          what shall never start: after failures of one kind, or of the canary
    notification   telling a person of the first failure, and of the end

No process of ours watches a launch: whoever ends a run, or looks, reads and writes the launch's own files.
"""

from orchestrator.guard.brake import brake_after
from orchestrator.guard.gate import Gate, gate, hold, release
from orchestrator.guard.notification import Event, tell, tell_if_ended

__all__ = ["Event", "Gate", "brake_after", "gate", "hold", "release", "tell", "tell_if_ended"]
