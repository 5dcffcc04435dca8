"""Staging: how a site wants data versions brought to its nodes' scratch (`cluster.staging` in a configuration)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from orchestrator.errors import ConfigError, nearest

VERIFY = ("sizes", "always")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The limits of a store, and how it copies.

    `threads` copy at the same time; an array's tasks begin up to `jitter_seconds` apart. The store stays below
    `max_gb` and leaves `keep_free_gb` of the disk; None: as much as fits. `verify: always` reads every byte of a
    version again before each run; `sizes` looks at sizes and times beside the training. `request_tmp`: Slurm is asked
    for a node with room for the version (`--tmp`).
    """

    threads: int = 32
    jitter_seconds: float = 5.0
    max_gb: float | None = None
    keep_free_gb: float = 1.0
    verify: str = "sizes"
    request_tmp: bool = False

    @classmethod
    def parse(cls, section: Any) -> Self:
        """Return checked options. Raises ConfigError for an unknown key or a value of the wrong type."""
        if section is not None and not isinstance(section, Mapping):
            raise ConfigError(
                f"cluster.staging is {section!r}", why="it is a mapping", fix="cluster.staging.keep_free_gb=10"
            )
        known = [item.name for item in fields(cls)]
        given = {key: value for key, value in (section or {}).items() if value is not None}
        for key, value in given.items():
            if key not in known:
                raise ConfigError(
                    f"cluster.staging.{key} is unknown{nearest(str(key), known)}", why=f"known are {', '.join(known)}",
                    fix=f"remove or rename cluster.staging.{key}",
                )  # fmt: skip
            _check(key, value)
        return cls(**given)

    @property
    def max_bytes(self) -> int | None:
        return None if self.max_gb is None else int(self.max_gb * 1e9)

    @property
    def keep_free_bytes(self) -> int:
        return int(self.keep_free_gb * 1e9)


def _check(key: str, value: Any) -> None:
    match key:
        case "verify":
            rule, holds = f"it is {' or '.join(VERIFY)}", value in VERIFY
        case "request_tmp":
            rule, holds = "it is true or false", isinstance(value, bool)
        case "threads":
            rule, holds = "it is a whole number from 1 to 256", type(value) is int and 1 <= value <= 256
        case _:
            rule, holds = "it is a number, at least 0", type(value) in (int, float) and 0 <= value < 1e12
    if not holds:
        raise ConfigError(f"cluster.staging.{key} is {value!r}", why=rule, fix=f"correct cluster.staging.{key}")
