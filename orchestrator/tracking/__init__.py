"""Tracking: what a run logs is on disk within microseconds, and in MLflow soon after.

spool.py         the run's own metric log: append-only JSON lines, one file per attempt
logger.py        the Lightning Logger that writes the spool (imports pytorch_lightning)
experiment.py    the logging calls of modules: MLflow's, TensorBoard's
pictures.py      arrays as pictures
fluent.py        `mlflow.log_metric` and similar calls in a run's process
mlflow_plugin.py the store behind these calls (imports MLflow)
node.py          a node's own metrics, for the spool
view.py          an experiment's records -> the runs that a store shows
notes.py         the text of the parent's note
upload.py        the data sent to a store: runs, artifacts, and a spool's lines as batches
fields.py        names and values as MLflow accepts them
run_ids.py       which of a server's runs belong to an experiment
stores.py        the store of an experiment, and the calls that update it
embedded.py      the embedded store: an SQLite database
mlflow_store.py  experiments and parents in MLflow
mlflow_run.py    one run in MLflow
mlflow_model.py  a model's version in MLflow
uploader.py      a program: sends the log of one run to a server, beside the run
sidecar.py       a program: keeps experiments in sync while their runs are running
ui_server.py     a program: MLflow's UI over the embedded store
door.py          the access control of that UI
registry/        the model registry

The spool is authoritative; a store is a view that can be rebuilt from it. Importing this package loads
only the standard library; modules that need `logger` or `mlflow_store` import them.
"""

from orchestrator.tracking.spool import ArtifactLine, Metrics, Params, SpoolWriter, Tags, read
from orchestrator.tracking.upload import Artifact, Dataset, Report, TrackedExperiment, TrackedRun

__all__ = [
    "Artifact",
    "ArtifactLine",
    "Dataset",
    "Metrics",
    "Params",
    "Report",
    "SpoolWriter",
    "Tags",
    "TrackedExperiment",
    "TrackedRun",
    "read",
]
