"""A real Slurm on one machine, for tests and for trying things out: several nodes, fake GPUs, preemption.

    python -m orchestrator.slurm.devcluster up        start it; prints `export SLURM_CONF=...`
    python -m orchestrator.slurm.devcluster down      stop it

Needs root and the distribution's Slurm. It is no way to run a real cluster: every local user is trusted.
"""

from .cluster import DevCluster, NodeState, available, default_state
from .options import Options

__all__ = ["DevCluster", "NodeState", "Options", "available", "default_state"]
