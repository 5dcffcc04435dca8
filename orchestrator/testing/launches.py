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
    """Return a run that plays a Script with these arguments; runs differ by their seeds."""
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
    """Return a run that trains a Net with these arguments for `steps` steps, with the real worker."""
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
    """Return an experiment of these runs, for a cluster of a kind with these options."""
    cluster = {"kind": kind, "scratch": None, **options}
    return Experiment(name=name, runs=tuple(runs), objective=None, cluster=cluster, tracking=tracking, launch=launch)


def facts(manifests: Mapping[str, Manifest] | None = None) -> Facts:
    """Return the facts of a launch, with a link to this package as its frozen code."""
    snapshot = Snapshot(tree=_TREE, commit=None, branch=None, dirty=False, files=0, bytes=0)
    pending = Pending(snapshot=snapshot, fill=_link_package, diff=lambda: b"")
    return Facts(code=(pending,), environment=environment.current(), manifests=manifests or {})


def _link_package(tree: Path) -> None:
    tree.mkdir()
    package = Path(orchestrator.__path__[0]).resolve()
    (tree / package.name).symlink_to(package)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One experiment of scripted runs on one cluster, with its records."""

    paths: ExperimentPaths
    kind: str
    cluster: Cluster
    options: Mapping[str, object] = field(default_factory=dict)
    tracking: Mapping[str, object] = field(default_factory=lambda: _UNTRACKED)

    def launch(
        self, runs: Sequence[Run], *, rerun: Rerun = "never", worker: Sequence[str] = WORKER, **options: Any
    ) -> Launched:
        """Launch these runs, except finished ones; `options` are those of a launch: `canary`, `brake`, `notify`."""
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
        """Return the `cluster:` section: with Slurm, the cluster's own options."""
        own = asdict(self.cluster.options) if isinstance(self.cluster, SlurmCluster) else {}
        return {**own, **self.options}

    def records(self) -> Mapping[RunId, Record]:
        return read_experiment(self.paths, {self.kind: self.cluster}).records

    def cancel(self, run: Run) -> None:
        """Cancel a run as `api` does: first write the mark, then cancel the run's job."""
        number, index = self.records()[run.id].task
        launch = self.paths.launch(number)
        make_private(launch.cancelled)
        (launch.cancelled / run.id).touch()
        self.cluster.cancel(launch, [index])

    def played(self) -> list[Played]:
        """Return each execution of a run by a worker, in the order of their starts."""
        names = sorted(path.name for path in (self.paths.path / "played").glob("*"))
        return sorted((Played.parse(name) for name in names), key=lambda played: played.began)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One execution of a run: its attempt and process, its start and its end (ns; None if it died)."""

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
