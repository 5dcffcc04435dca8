"""From YAML and overrides to checked grid points. The only importer of Hydra and OmegaConf.

Importing one of its modules imports none of the others that it does not need.

overrides.py  the command line in Hydra's grammar: fixed values, and axes of a sweep
compose.py    Hydra's composition
files.py      the files that it loads, and what is refused in them
counterparts.py  what replaces keys of Hydra and of project templates (pure)
explain.py    its errors -> errors that a user can act on
points.py     one resolved config per point, fast where that is provably the same
fields.py     the rules for the keys of a section, as data (pure)
schema.py     the built-in keys -> types (pure)
experiment.py a whole experiment, composed and checked
debug.py      an experiment -> a short trial of a few batches (pure)
location.py   where a value was written, for errors
sweep/        which points a sweep has (pure)
interpolation.py  which keys a value reads
targets/      whether a `_target_` exists and takes its arguments, without importing it
lightning_names.py  Lightning's two distributions, as one set of classes
build.py      objects from `_target_` nodes, in the job, without Hydra
quoting.py    a key and a value -> the override that sets it (pure)
credentials.py  values that look like secrets, and are not shown
secrets.py    the secrets that YAML names, filled in on the node
"""
