"""What a plan would ask for: time on the cluster, space for data on scratch, space for checkpoints in runs/.

It knows what was measured, what is configured and what Slurm tells; where it knows nothing it says so.

totals.py                 steps -> sums by resource shape, and data versions (pure)
checkpoints.py            sizes that earlier runs saved, or that models would -> a forecast
checkpoint_size.py        asks `checkpoint_size_probe` for the checkpoint size of a model
checkpoint_size_probe.py  a separate program: builds models without memory for their parameters, and counts bytes
"""

from orchestrator.launch.estimate.checkpoint_size import CheckpointSize, Models
from orchestrator.launch.estimate.checkpoints import DiskForecast, disk_forecast
from orchestrator.launch.estimate.totals import DataTotal, ShapeTotal, data_totals, shape_totals

__all__ = [
    "CheckpointSize",
    "DataTotal",
    "DiskForecast",
    "Models",
    "ShapeTotal",
    "data_totals",
    "disk_forecast",
    "shape_totals",
]
