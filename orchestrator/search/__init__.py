"""Adaptive sweeps.

study.py  Optuna's study behind the trials of a search
check.py  the program that asks a user's sampler for a first trial, before a launch
"""
