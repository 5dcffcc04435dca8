"""A real Slurm cluster on one machine, for tests and experiments: several nodes, fake GPUs, preemption.

    python -m orchestrator.slurm.devcluster up        start it; prints `export SLURM_CONF=...`
    python -m orchestrator.slurm.devcluster down      stop it

It needs root and the distribution's Slurm. Do not run a real cluster with it: every local user is trusted.
"""

from .cluster import DevCluster, NodeState, available, default_state
from .options import Options

__all__ = ["DevCluster", "NodeState", "Options", "available", "default_state"]
