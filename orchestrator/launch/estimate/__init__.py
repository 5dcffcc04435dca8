"""What a plan would ask for: time on the cluster, space for data on scratch, space for checkpoints in runs/.

It knows what was measured, what is configured and what Slurm tells; where it knows nothing it says so.

totals.py       steps -> sums by resource shape, and data versions (pure)
checkpoints.py  what earlier runs saved, or what their model would -> a forecast
weigh.py        asks `weigh_probe` how large the checkpoint of a model is
weigh_probe.py  a program of its own: builds models without memory for their parameters, and counts
"""

from orchestrator.launch.estimate.checkpoints import DiskForecast, disk_forecast
from orchestrator.launch.estimate.totals import DataTotal, ShapeTotal, data_totals, shape_totals
from orchestrator.launch.estimate.weigh import Models, Weight

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
