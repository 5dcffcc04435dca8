"""Experiments of scripted runs, launched without composing a configuration or freezing a project."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.cluster import Cluster
from orchestrator.data import Manifest
from orchestrator.identity import canonical
from orchestrator.launch.facts import Facts
from orchestrator.launch.launch import Launched, launch
from orchestrator.launch.plan import Rerun
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import Record
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.snapshot import Pending, Snapshot, environment
from orchestrator.spec import LaunchOptions, Resources, RunId
from orchestrator.spec.experiment import Experiment, Run
from orchestrator.system.files import make_private

WORKER = ("-m", "orchestrator.testing.worker")
_TREE = "the-package-itself"
_UNTRACKED: Mapping[str, object] = {"kind": "none"}
_AT_ONCE = LaunchOptions()


def scripted(script: Mapping[str, object] | None = None, *, seed: int = 0, **resources: Any) -> Run:
    """Return a run that does what a Script with these arguments does; runs differ by their seeds."""
    config = {
        "model": {"_target_": "orchestrator.testing.script.Script", **(script or {})},
        "data": {"_target_": None, "version": None},
        "trainer": {},
        "seed": seed,
        "task": "fit",
    }
    return _run(config, Resources(**resources))


def trained(
    net: Mapping[str, object] | None = None, *, kind: str = "Net", steps: int = 4, seed: int = 0, **resources: Any
) -> Run:
    """Return a run that really trains a Net with these arguments, for so many steps; its worker is the real one."""
    trainer = {
        "_target_": "pytorch_lightning.Trainer",
        "max_steps": steps,
        "max_epochs": -1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": {},
    }
    config = {
        "model": {"_target_": f"orchestrator.testing.net.{kind}", **(net or {})},
        "trainer": trainer,
        "seed": seed,
        "data": {"_target_": None, "version": None},
        "task": "fit",
    }
    return _run(config, Resources(**resources))


def _run(config: dict[str, Any], resources: Resources) -> Run:
    document = canonical({**config, "world_size": resources.world_size})
    return Run(
        id=RunId(hashlib.sha256(document.encode()).hexdigest()[:12]),
        point={"seed": config["seed"]},
        config=config,
        resources=resources,
        data_digest=None,
    )


def experiment(
    name: str,
    runs: Sequence[Run],
    *,
    kind: str,
    tracking: Mapping[str, Any] = _UNTRACKED,
    launch: LaunchOptions = _AT_ONCE,
    **options: object,
) -> Experiment:
    """Return an experiment of such runs, for a cluster of a kind with these options."""
    cluster = {"kind": kind, "scratch": None, **options}
    return Experiment(name=name, runs=tuple(runs), objective=None, cluster=cluster, tracking=tracking, launch=launch)


def facts(manifests: Mapping[str, Manifest] | None = None) -> Facts:
    """Return what a launch freezes: instead of code, a link to this package."""
    snapshot = Snapshot(tree=_TREE, commit=None, branch=None, dirty=False, files=0, bytes=0)
    pending = Pending(snapshot=snapshot, fill=_link_package, diff=lambda: b"")
    return Facts(code=(pending,), environment=environment.current(), manifests=manifests or {})


def _link_package(tree: Path) -> None:
    tree.mkdir()
    package = Path(orchestrator.__path__[0]).resolve()
    (tree / package.name).symlink_to(package)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One experiment of scripted runs on one cluster, and what became of it."""

    paths: ExperimentPaths
    kind: str
    cluster: Cluster
    options: Mapping[str, object] = field(default_factory=dict)
    tracking: Mapping[str, object] = field(default_factory=lambda: _UNTRACKED)

    def launch(
        self, runs: Sequence[Run], *, rerun: Rerun = "never", worker: Sequence[str] = WORKER, **options: Any
    ) -> Launched:
        """Launch what is missing of these runs, let loose as `options` (canary, brake, notify) say."""
        wanted = experiment(
            self.paths.name,
            runs,
            kind=self.kind,
            tracking=self.tracking,
            launch=LaunchOptions(**options),
            **self._said(),
        )
        named = {run.data_digest for run in runs if run.data_digest}
        return launch(
            wanted,
            facts({digest: Manifest.read(self.paths.manifest(digest)) for digest in named}),
            self.paths,
            cluster=self.cluster,
            cluster_of={self.kind: self.cluster},
            rerun=rerun,
            worker=worker,
        )

    def _said(self) -> dict[str, Any]:
        """Return what the `cluster:` section says: with Slurm, the cluster's own options."""
        own = asdict(self.cluster.options) if isinstance(self.cluster, SlurmCluster) else {}
        return {**own, **self.options}

    def records(self) -> Mapping[RunId, Record]:
        return read_experiment(self.paths, {self.kind: self.cluster}).records

    def cancel(self, run: Run) -> None:
        """Cancel a run, as the api does: the mark first, then the cluster is told."""
        number, index = self.records()[run.id].task
        launch = self.paths.launch(number)
        make_private(launch.cancelled)
        (launch.cancelled / run.id).touch()
        self.cluster.cancel(launch, [index])

    def played(self) -> list[Played]:
        """Return every time that a run was really run, in the order in which they began."""
        names = sorted(path.name for path in (self.paths.path / "played").glob("*"))
        return sorted((Played.parse(name) for name in names), key=lambda played: played.began)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One time that a run was run: by which attempt and process, from when to when (ns; None: it died)."""

    run: RunId
    attempt: int
    pid: int
    began: int
    ended: int | None

    @classmethod
    def parse(cls, name: str) -> Played:
        run, attempt, pid, began, *ended = name.split(".")
        return cls(
            run=RunId(run), attempt=int(attempt), pid=int(pid), began=int(began), ended=int(ended[0]) if ended else None
        )
