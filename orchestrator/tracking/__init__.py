"""Tracking: what a run logs is on disk within microseconds, and in MLflow soon after.

    spool         the run's own metric log: append-only JSON lines, one file per attempt
    logger        the Lightning Logger that writes the spool (imports pytorch_lightning)
    upload        what a store is told: runs, artifacts, and a spool's lines as batches
    fields        names and values as MLflow accepts them
    mlflow_store  the mapping to MLflow (the only importer of mlflow)

The spool is the truth, a store is a view that can be rebuilt from it. Importing this package loads
only the standard library; `logger` and `mlflow_store` are imported by who needs them.
"""

from orchestrator.tracking.spool import ArtifactLine, Metrics, Params, SpoolWriter, Tags, read
from orchestrator.tracking.upload import Artifact, Dataset, Report, TrackedExperiment, TrackedRun

__all__ = [
    "Artifact", "ArtifactLine", "Dataset", "Metrics", "Params", "Report", "SpoolWriter", "Tags",
    "TrackedExperiment", "TrackedRun", "read",
]  # fmt: skip
