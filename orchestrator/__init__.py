"""A declarative, YAML-driven experiment orchestrator for Slurm clusters, workstations and laptops."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout (an editable install, or a snapshot on PYTHONPATH) the folders models/, datasets/,
# slurm/ and conf/ are beside this one; in a wheel they are inside it. Appending the checkout's root
# makes `orchestrator.models` the same import in all three.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "conf").is_dir():
    __path__.append(str(_root))
