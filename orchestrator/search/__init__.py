"""Adaptive sweeps.

study.py  Optuna's study behind the trials of a search
"""
