"""What a plan would ask for: time on the cluster, room for data on scratch, room for checkpoints in runs/.

It knows what was measured, what is configured and what Slurm tells; where it knows nothing it says so.

    totals       steps -> sums by resource shape, and data versions. Pure
    checkpoints  what earlier runs saved, or what their model would -> a forecast
    weigh        asks weigh_probe, a program of its own, how large the checkpoint of a model is
"""

from orchestrator.estimate.checkpoints import DiskForecast, disk_forecast
from orchestrator.estimate.totals import DataTotal, ShapeTotal, data_totals, shape_totals
from orchestrator.estimate.weigh import Models, Weight

__all__ = [
    "DataTotal",
    "DiskForecast",
    "Models",
    "ShapeTotal",
    "Weight",
    "data_totals",
    "disk_forecast",
    "shape_totals",
]
