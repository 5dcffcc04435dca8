"""The model registry: the best run's model becomes a version.

registering.py  finds the best run, and creates its version once
registrar.py    a program of its own: a checkpoint -> a model in MLflow's format, with the run's own code
"""
