"""The cluster that a `cluster:` section describes. Each kind is imported only when needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import Cluster

if TYPE_CHECKING:
    from orchestrator.local.inline import Inline


def cluster_for(options: Mapping[str, Any]) -> Cluster:
    """Return the cluster that a `cluster:` section describes."""
    if options["kind"] == "slurm":
        from orchestrator.slurm.cluster import SlurmCluster
        from orchestrator.slurm.options import SlurmOptions

        return SlurmCluster(SlurmOptions.parse(options))
    if options.get("staging") is not None:
        from orchestrator.data import Staging

        Staging.parse(options["staging"])
    if options["kind"] == "workstation":
        from orchestrator.local.machine import given
        from orchestrator.local.workstation import Workstation

        return Workstation(scratch=options.get("scratch"), **given(options))
    return in_foreground(options)


def with_defaults(
    options: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """Return a `cluster:` section with defaults from the user's environment, and a note on each."""
    if options["kind"] != "slurm":
        return options, ()
    from orchestrator.slurm import site_defaults

    return site_defaults.add(options, environ)


def in_foreground(options: Mapping[str, Any]) -> Inline:
    """Return the cluster that runs in this process, with the machine settings of any `cluster:` section."""
    from orchestrator.local.inline import Inline
    from orchestrator.local.machine import given

    return Inline(scratch=options.get("scratch"), others=observers(), **given(options))


class _Observers(Mapping[str, Cluster]):
    """A cluster of each kind; created, and its code loaded, when first needed."""

    _KINDS = ("inline", "workstation", "slurm")

    def __getitem__(self, kind: str) -> Cluster:
        if kind not in self._KINDS:
            raise KeyError(kind)
        return cluster_for({"kind": kind})

    def __contains__(self, kind: object) -> bool:
        return kind in self._KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(self._KINDS)

    def __len__(self) -> int:
        return len(self._KINDS)


def observers() -> Mapping[str, Cluster]:
    """Return a cluster of each kind, for queries about launches."""
    return _Observers()
