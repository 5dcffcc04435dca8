"""From YAML and overrides to checked grid points. The only importer of Hydra and OmegaConf.

overrides.py  the command line in Hydra's grammar: fixed values, and axes of a sweep
compose.py    Hydra's composition
explain.py    its errors -> what a user can act on
place.py      where a value was written, for errors
sweep.py      a sweep's definition -> points (pure)
space.py      what random points are drawn from (pure)
search.py     an adaptive sweep's definition (pure)
points.py     one resolved config per point, fast where that is provably the same
schema.py     the built-in keys -> types (pure)
draft.py      all of it together
debug.py      a few batches of it, to try it out (pure)
"""

from orchestrator.config.debug import debugging
from orchestrator.config.draft import Draft, DraftPoint, DraftSearch, data_version, draft, placing

__all__ = ["Draft", "DraftPoint", "DraftSearch", "data_version", "debugging", "draft", "placing"]
