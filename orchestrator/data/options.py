"""Staging: how a site wants data versions brought to its nodes' scratch (`cluster.staging` in a configuration)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from orchestrator.config.fields import check, check_mapping, choice, not_negative, truth, whole

VERIFY = ("sizes", "always")


_FIELDS = {
    "threads": whole(1, most=256, optional=True),
    "jitter_seconds": not_negative(),
    "max_gb": not_negative(),
    "keep_free_gb": not_negative(),
    "verify": choice(*VERIFY, optional=True),
    "request_tmp": truth(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The limits of a store, and how it copies.

    `threads` copy at the same time; an array's tasks begin up to `jitter_seconds` apart. The store stays below
    `max_gb` and leaves `keep_free_gb` of the disk; None: as much as fits. `verify: always` reads every byte of a
    version again before each run; `sizes` looks at sizes and times beside the training. `request_tmp`: Slurm is asked
    for a node with enough space for the version (`--tmp`).
    """

    threads: int = 32
    jitter_seconds: float = 5.0
    max_gb: float | None = None
    keep_free_gb: float = 1.0
    verify: str = "sizes"
    request_tmp: bool = False

    @classmethod
    def parse(cls, section: object) -> Self:
        """Return checked options. Raises ConfigError for an unknown key or a value of the wrong type."""
        given = check_mapping(
            "cluster.staging", {} if section is None else section, fix="cluster.staging.keep_free_gb=10"
        )
        return cls(**check("cluster.staging", given, _FIELDS))

    @property
    def max_bytes(self) -> int | None:
        return None if self.max_gb is None else int(self.max_gb * 1e9)

    @property
    def keep_free_bytes(self) -> int:
        return int(self.keep_free_gb * 1e9)
