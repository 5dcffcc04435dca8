"""What a `cluster:` section of kind slurm may say: a site's defaults, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from orchestrator.data import Staging
from orchestrator.errors import ConfigError, nearest

TEXTS = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "gres", "comment")
"""Given to sbatch as they are, under the same name."""

_OURS = frozenset({
    "array", "output", "error", "open-mode", "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time",
    "ntasks", "tasks-per-node", "gpus", "gpus-per-task", "mem-per-cpu", "mem-per-gpu", "wait", "clusters",
    "gpus-per-node", "signal", "wckey", "requeue", "no-requeue", "comment", "chdir", "wrap", "parsable", "test-only",
})  # fmt: skip
"""Set by the engine, from resources or for its own ends; refused in `extra`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """How jobs are submitted. `extra` goes to sbatch as it is; `setup` are shell lines before the job's program.

    `throttle`: at most so many runs of an array at once. `signal_seconds`: how long before the time limit a run is
    told to save itself. `max_requeues`: how often in a row one run may start again by itself without getting further.
    `nodes_may_submit`: whether a job, at its end, may call sbatch for what waits for room. `staging`: how data versions
    come to a node.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    gres: str | None = None
    comment: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    scratch: str | None = None
    throttle: int | None = None
    signal_seconds: int = 90
    max_requeues: int = 20
    nodes_may_submit: bool = True
    grace_seconds: float = 30.0
    staging: Staging = field(default_factory=Staging)

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Self:
        """Return checked options. Raises ConfigError for an unknown key or a value of the wrong type."""
        known = {item.name for item in fields(cls)}
        for key in section:
            if key not in known | {"kind"}:
                raise ConfigError(
                    f"cluster.{key} is unknown{nearest(key, known)}", why=f"known are {', '.join(sorted(known))}",
                    fix=f"give what sbatch alone knows under cluster.extra: {{{key}: ...}}",
                )  # fmt: skip
        for key in (*TEXTS, "scratch"):
            _check(key, section.get(key), str, "text")
        for key in ("throttle", "signal_seconds", "max_requeues"):
            _check(key, section.get(key), int, "a whole number")
        _check("nodes_may_submit", section.get("nodes_may_submit"), bool, "true or false")
        setup, extra = section.get("setup") or [], section.get("extra") or {}
        _check_setup(setup)
        _check_extra(extra)
        given = {key: value for key, value in section.items() if value is not None and key != "kind"}
        staging = Staging.parse(section.get("staging"))
        if staging.request_tmp and "tmp" in extra:
            raise ConfigError(
                "cluster.extra.tmp and cluster.staging.request_tmp both say how much scratch to ask for",
                fix="remove one of them: cluster.staging.request_tmp=false",
            )
        return cls(**{**given, "setup": tuple(setup), "extra": dict(extra), "staging": staging})


def _check(key: str, value: Any, kind: type, told: str) -> None:
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if value is not None and (wrong or (isinstance(value, str) and _unprintable(value))):
        why = f"it is {told}, on one line and without a backslash" if kind is str else f"it is {told}"
        raise ConfigError(f"cluster.{key} is {value!r}", why=why, fix=f"correct cluster.{key}")
    if isinstance(value, int) and value < 0:
        raise ConfigError(f"cluster.{key} is {value}", why="it is at least 0", fix=f"correct cluster.{key}")


def _check_setup(setup: Any) -> None:
    if not isinstance(setup, list | tuple) or not all(isinstance(line, str) for line in setup):
        raise ConfigError(
            f"cluster.setup is {setup!r}", why="it is a list of shell lines", fix="cluster.setup=['module load cuda']"
        )


def _check_extra(extra: Any) -> None:
    if not isinstance(extra, Mapping):
        raise ConfigError(
            f"cluster.extra is {extra!r}", why="it maps sbatch options to values",
            fix="cluster.extra={licenses: 'foo:1'}",
        )  # fmt: skip
    for key, value in extra.items():
        name = str(key).replace("_", "-")
        if name in _OURS or name in TEXTS or not name.replace("-", "").isalnum():
            raise ConfigError(
                f"cluster.extra.{key} is not for you to set", why="it derives from resources, or has a key of its own",
                fix=f"remove it, or use cluster.{str(key).replace('-', '_')} or resources",
            )  # fmt: skip
        if not isinstance(value, str | int | float | None) or (isinstance(value, str) and _unprintable(value)):
            raise ConfigError(
                f"cluster.extra.{key} is {value!r}",
                why="it is one line without a backslash, or a number; true is the option alone, false or null none",
                fix=f"correct cluster.extra.{key}; several values are one text, such as 'a,b'",
            )  # fmt: skip


def _unprintable(text: str) -> bool:
    """Return whether a text cannot be said to sbatch: it reads a backslash as an escape even in single quotes."""
    return any(ord(character) < 32 or character in "\x7f\\" for character in text)
