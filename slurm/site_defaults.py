"""Defaults for sbatch that a site or a user sets in environment variables; read once, when a launch is prepared.

For sbatch, its variables take precedence over the script. Here they apply only where the cluster's options and the
resources set nothing. They become part of the launch, so that tasks submitted later, from a node or another shell, get
the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.errors import RequestError
from orchestrator.slurm.options import TEXTS

_CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")  # the first takes precedence, as in sbatch
_OTHERWISE_NAMED = {
    "time": "SBATCH_TIMELIMIT",
    "mem": "SBATCH_MEM_PER_NODE",
    "switches": "SBATCH_REQ_SWITCH",
    "cpu-freq": "SBATCH_CPU_FREQ_REQ",
    "bb": "SBATCH_BURST_BUFFER",
}
_OPTIONS = (
    "partition", "account", "qos", "constraint", "reservation", "time", "mem", "mem-per-cpu", "mem-per-gpu",
    "acctg-freq", "bb", "cluster-constraint", "core-spec", "cpu-freq", "delay-boot", "distribution", "exclusive",
    "export", "get-user-env", "gpu-bind", "gpu-freq", "gres-flags", "hint", "mem-bind", "network", "power", "profile",
    "spread-job", "switches", "thread-spec", "threads-per-core", "use-min-nodes", "wckey",
)  # fmt: skip
"""Options of sbatch whose variables sites set as defaults. The engine itself sets the other options with a variable."""
_MEMORY = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})


def add(section: Mapping[str, object], environ: Mapping[str, str]) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return a `cluster:` section with these defaults added, and a note for each.

    Raises RequestError if the variables name several clusters: a launch's jobs must be found again.
    """
    given, extra = (_mapping(section.get(key)) for key in ("sbatch_defaults", "extra"))
    known = {**extra, **given, **{key: section.get(key) for key in TEXTS}}
    taken = {str(key).replace("_", "-") for key, value in known.items() if value is not None}
    found = {option: (name, value) for option, name, value in _set(environ) if option not in taken}
    if taken & _MEMORY:
        found = {option: each for option, each in found.items() if option not in _MEMORY}
    notes = [f"{name}={value}: the default for --{option}" for option, (name, value) in found.items()]
    added = {option: value or True for option, (_, value) in found.items()}
    more: dict[str, object] = {"sbatch_defaults": {**added, **given}} if added else {}
    if not section.get("clusters") and (chosen := next((name for name in _CLUSTERS if environ.get(name)), None)):
        more["clusters"] = _one(chosen, environ[chosen])
        notes.append(f"{chosen}={environ[chosen]}: the cluster that jobs go to")
    return {**section, **more}, tuple(notes)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}  # another type is reported by its own check


def _set(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield each option that has a default in the environment, with the variable and its value."""
    for option in _OPTIONS:
        name = _OTHERWISE_NAMED.get(option, f"SBATCH_{option.replace('-', '_').upper()}")
        if name in environ:
            yield option, name, environ[name]


def _one(name: str, value: str) -> str:
    if "," in value or value == "all":
        raise RequestError(
            f"{name} is {value!r}",
            why="the jobs of a launch are looked for in the cluster that they were submitted to",
            fix=f"name one: cluster.clusters={value.partition(',')[0] if ',' in value else 'NAME'}",
        )
    return value
