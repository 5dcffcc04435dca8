"""What a program, or the command line, can ask of the orchestrator: plan, launch, look, cancel, retry, sync.

Everything heavy (Hydra, DVC's answers, MLflow) is imported by the call that needs it: looking at runs costs
milliseconds.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import after, guard, ledger
from orchestrator.cluster import Capacity, Change, Cluster, Scratch
from orchestrator.credentials import masked
from orchestrator.errors import ConfigError, OrchError, RequestError, TrackingError
from orchestrator.layout import EXPERIMENT_NAME, ExperimentPaths, LaunchPaths, cache_dir
from orchestrator.packing import packs, sized
from orchestrator.plan import Rerun, Step, make_plan, to_do
from orchestrator.process import start_detached
from orchestrator.project import Project
from orchestrator.record import Record, RunState
from orchestrator.spec import (
    STARTS,
    Experiment,
    LaunchOptions,
    Objective,
    Resources,
    Run,
    RunId,
    Search,
    SnapshotOptions,
    Trial,
)
from orchestrator.waiting import hand_over

if TYPE_CHECKING:
    from orchestrator.config import Draft, DraftPoint, DraftSearch
    from orchestrator.data import Manifest
    from orchestrator.estimate import DataTotal, DiskForecast, Models, ShapeTotal
    from orchestrator.launch import Facts, Launched
    from orchestrator.local.inline import Inline
    from orchestrator.slurm import script
    from orchestrator.tracking import Report
    from orchestrator.tracking.mlflow_store import MlflowStore

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0
DEBUG_BATCHES = 3
"""The first allocates, the second finds the optimizer's state there, the third is like all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked experiment and the facts it was checked against: ready to plan or to launch."""

    experiment: Experiment
    facts: Facts
    notes: tuple[str, ...]


# --- plan and launch --------------------------------------------------------------------------------------


@contextmanager
def prepare(project: Project, overrides: Sequence[str], *, batches: int | None = None) -> Iterator[Prepared]:
    """Compose and check an experiment, and gather what it will run with. Writes nothing but caches.

    With `batches` it is a debug run of so many: an experiment of its own, `<name>-debug`. Raises ConfigError or
    RequestError for everything that can be known to be wrong before a run starts.
    """
    from orchestrator.config import debugging, draft, placing

    with placing(project.folder, overrides):
        composed = draft(project.folder, overrides)
        composed = composed if batches is None else debugging(composed, batches)
        composed = replace(composed, tracking=_addressed(project, composed))
        cluster_for(composed.cluster)  # checks its options
        waits = after.check(project.runs, composed.name, composed.after, observers(), composed.cluster["kind"])
        composed = _started(project, composed)
        check_targets(project, composed)
        manifests = _resolve_data(project, composed)
        experiment = _experiment(composed, manifests)
        _check_search(project, composed, experiment)
    with ExitStack() as stack:
        facts = _facts(project, experiment.snapshot, {m.digest: m for m in manifests.values()}, stack)
        yield Prepared(experiment=experiment, facts=facts, notes=(*_notes(experiment, facts), *waits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a launch would do now: its steps, and what those to do would ask for.

    `acting` are the steps to do, `launch` is the folder that it would get, `arrays` what it would submit (None: the
    cluster knows no arrays).
    """

    steps: tuple[Step, ...]
    acting: tuple[Step, ...]
    launch: LaunchPaths
    arrays: tuple[script.Array, ...] | None
    shapes: tuple[ShapeTotal, ...]
    data: tuple[DataTotal, ...]
    capacity: Capacity
    checkpoints: DiskForecast
    notes: tuple[str, ...]


def plan(project: Project, prepared: Prepared, *, rerun: Rerun = "never", weigh: bool = False) -> Plan:
    """Return what a launch would do now. `weigh`: build the models that no earlier run tells the size of."""
    from orchestrator.estimate import data_totals, disk_forecast, shape_totals
    from orchestrator.launch import data_of

    experiment, facts = prepared.experiment, prepared.facts
    paths, cluster = project.runs.experiment(experiment.name), cluster_for(experiment.cluster)
    book = read(project, experiment.name)
    steps = make_plan(experiment.runs, book.records, code=facts.code_id, rerun=rerun)
    acting = sized(to_do(steps), book.records)
    needs = {step.run.resources for step in acting}
    notes = cluster.check(needs, paths.path, data_of(acting, facts.manifests)) if acting else ()
    capacity = cluster.capacity() if acting else Capacity(scratch=Scratch(where=""))  # then nobody is asked
    arrays = _arrays(cluster, acting, facts, paths, canary=experiment.launch.canary) if acting else None
    counted = None if arrays is None else Counter(array.shape.resources for array in arrays)
    jobs = None if arrays is None else _jobs(arrays)
    checkpoints = disk_forecast(acting, book.records, paths, _models(project, facts, ask=weigh))
    return Plan(
        steps=steps, acting=tuple(acting), launch=paths.launch(book.next_number), arrays=arrays, capacity=capacity,
        shapes=shape_totals(acting, arrays=counted, jobs=jobs, default_hours=capacity.hours),
        data=data_totals(acting, facts.manifests), checkpoints=checkpoints,
        notes=(*notes, *([checkpoints.note] if checkpoints.note else [])),
    )  # fmt: skip


def _arrays(
    cluster: Cluster, acting: Sequence[Step], facts: Facts, paths: ExperimentPaths, *, canary: int
) -> tuple[script.Array, ...] | None:
    """Return the arrays that a launch of these steps would submit."""
    from orchestrator.slurm.cluster import SlurmCluster

    if not isinstance(cluster, SlurmCluster):
        return None
    unwritten = {
        pending.snapshot.tree: pending.folders
        for pending in facts.code
        if not paths.code(pending.snapshot.tree).header.exists()
    }
    codes = {step.code: tuple(paths.python_path(step.code, unwritten=unwritten)) for step in acting}
    sizes = {digest: manifest.bytes for digest, manifest in facts.manifests.items()}
    later = {index for pack in packs(acting, canary=canary) for index in pack[1:]}  # a pack goes by its first
    shapes = {
        index: cluster.shape(step.run.resources, codes[step.code], data_bytes=sizes.get(step.run.data_digest or "", 0))
        for index, step in enumerate(acting)
        if index not in later
    }
    return tuple(cluster.arrays_of(shapes))


def _jobs(arrays: Iterable[script.Array]) -> Counter[Resources]:
    """Return how many jobs there are of each shape."""
    return sum((Counter({array.shape.resources: len(array.indices)}) for array in arrays), Counter())


TOKEN = "TOKEN"  # noqa: S105 - stands for what is no secret
"""Stands in a planned script for the launch's own token, which is made up when the launch is published."""


def scripts(prepared: Prepared, planned: Plan) -> list[tuple[tuple[Step, ...], str]]:
    """Return what a launch would hand to sbatch: for each array its steps and its script.

    It says the number that the launch gets unless somebody launches before, and TOKEN for what it is told apart by.
    """
    from orchestrator.slurm.cluster import SlurmCluster

    cluster, acting = cluster_for(prepared.experiment.cluster), planned.acting
    if not isinstance(cluster, SlurmCluster):
        raise RequestError(
            f"cluster={prepared.experiment.cluster['kind']} submits no scripts", why="only a Slurm cluster does",
            fix="orch plan --sbatch ... cluster=slurm, or a site's own profile",
        )  # fmt: skip
    name = prepared.experiment.name
    runs = {pack[0]: pack for pack in packs(acting, canary=prepared.experiment.launch.canary)}
    return [
        (
            tuple(acting[index] for first in array.indices for index in runs.get(first, [first])),
            cluster.script_of(array, planned.launch, experiment=name, token=TOKEN, after=prepared.experiment.after),
        )
        for array in planned.arrays or ()
    ]


def _models(project: Project, facts: Facts, *, ask: bool) -> Models:
    from orchestrator.estimate import Models

    return Models(
        project=project.folder, search_path=[*project.import_path, *sys.path], ask=ask,
        code=f"{facts.code_id} {facts.environment.digest}", cache=cache_dir() / "checkpoints",
    )  # fmt: skip


def launch(
    project: Project, prepared: Prepared, *, cluster: Cluster | None = None, message: str = "",
    rerun: Rerun = "never", only: Callable[[Step], bool] = lambda _: True, worker: Sequence[str] | None = None,
    confirm: Callable[[Sequence[Step]], None] = lambda _: None,
) -> Launched:  # fmt: skip
    """Launch what is missing. With a cluster that is not in the background, the caller then has it `run`.

    `confirm` is given the steps before anything is written, and may raise.
    """
    from orchestrator.estimate import disk_forecast
    from orchestrator.launch import WORKER
    from orchestrator.launch import launch as act

    paths = project.runs.experiment(prepared.experiment.name)
    launched = act(
        prepared.experiment, prepared.facts, paths, cluster=cluster or cluster_for(prepared.experiment.cluster),
        cluster_of=observers(), message=message, rerun=rerun, only=only, confirm=confirm,
        worker=worker or WORKER,
    )  # fmt: skip
    ignore_in_git(project)
    if launched.paths is None:
        return launched
    acting, models = to_do(launched.steps), _models(project, prepared.facts, ask=False)
    room = disk_forecast(acting, launched.records, paths, models)
    return replace(launched, notes=(*launched.notes, room.note)) if room.note else launched


def tagged(prepared: Prepared, tags: Sequence[str]) -> Prepared:
    """Return the same, with further words to find its launch by. Raises ConfigError for what is none."""
    from orchestrator.config import schema

    experiment = prepared.experiment
    return replace(prepared, experiment=replace(experiment, tags=schema.tags([*experiment.tags, *tags])))


@contextmanager
def prepare_again(project: Project, records: Sequence[Record], name: str) -> Iterator[Prepared]:
    """Prepare known runs of one experiment as they were launched, to be retried with today's code."""
    paths = project.runs.experiment(name)
    launches = {launch.number: launch for launch in map(ledger.read_launch, paths.launches())}
    runs = tuple(_run_again(launches[record.planned.launch].paths, record) for record in records)
    header = launches[max(record.planned.launch for record in records)].header
    experiment = Experiment(
        name=name, runs=runs, objective=Objective(**header["objective"]) if header["objective"] else None,
        cluster=header["cluster"], tracking=header["tracking"], env=header["env"], choices=header["choices"],
        snapshot=SnapshotOptions(**{**header["snapshot"], "include": tuple(header["snapshot"]["include"])}),
        sweep=header["sweep"], overrides=tuple(header["overrides"]), tags=tuple(header.get("tags", ())),
        launch=LaunchOptions.from_json(header.get("launch", {})), after=tuple(header.get("after", ())),
    )  # fmt: skip
    manifests = {run.data_digest: _manifest(paths, run.data_digest) for run in runs if run.data_digest}
    with ExitStack() as stack:
        facts = _facts(project, experiment.snapshot, manifests, stack)
        yield Prepared(experiment=experiment, facts=facts, notes=())


def _addressed(project: Project, composed: Draft) -> Mapping[str, Any]:
    """Return the tracking options, with the address of the server and the experiment's name on it."""
    from orchestrator.config.schema import tracking as checked

    tracking = composed.tracking
    if tracking["kind"] != "server":
        return tracking
    uri = tracking["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            "tracking.uri is not set", why="and neither is MLFLOW_TRACKING_URI: there is no server to send to",
            fix="tracking.uri=http://HOST:5000, or tracking=embedded",
        )  # fmt: skip
    own = f"{getpass.getuser()}/{project.folder.name}/{composed.name}"
    return checked({**tracking, "uri": uri, "experiment": tracking["experiment"] or own})


def _started(project: Project, composed: Draft) -> Draft:
    """Return a draft whose points say for good where they start from. Raises ConfigError."""
    from orchestrator import start

    known: dict[tuple[str, str], start.Start] = {}

    def frozen(point: DraftPoint) -> DraftPoint:
        found: dict[str, Any] = {key: point.config[key] for key in STARTS if key in point.config}
        for key, text in found.items():
            if (key, text) not in known:
                known[key, text] = start.resolve(
                    key, text, runs=project.runs, project=project.folder, after=composed.after
                )
            found[key] = known[key, text]
            if key == "resume_from":
                start.check_more_to_train(found[key], point.config["trainer"], project.runs)
        return replace(point, config={**point.config, **found}) if found else point

    return replace(composed, points=tuple(map(frozen, composed.points)))


def check_targets(project: Project, composed: Draft) -> None:
    """Check that every point's targets exist and take their arguments and values, without importing them."""
    from orchestrator.targets import Targets

    targets = Targets([*project.import_path, *sys.path], cache_dir() / "signatures")
    if composed.search:
        wanted = composed.search.definition
        for name, node in (("sampler", wanted.sampler), ("pruner", wanted.pruner)):
            if node:
                targets.check(node, where=f"sweep.optuna.{name}")
    for point in composed.points:
        for section, apart in (("model", ()), ("data", ("version",)), ("trainer", ("callbacks",))):
            node = {key: value for key, value in point.config[section].items() if key not in apart}
            if node.get("_target_"):
                targets.check(node, where=section)
        for name, callback in (point.config["trainer"].get("callbacks") or {}).items():
            if callback:
                targets.check(callback, where=f"trainer.callbacks.{name}")


def resolve_data(project: Project, overrides: Sequence[str]) -> Manifest | None:
    """Return the manifest of the data version that overrides choose; None where they choose none."""
    from orchestrator.config import data_version, placing
    from orchestrator.data import resolve

    with placing(project.folder, overrides):
        version = data_version(project.folder, overrides)
        return resolve(version, project=project.folder, cache=cache_dir() / "data") if version else None


def _resolve_data(project: Project, composed: Draft) -> dict[str, Manifest]:
    """Return the manifest of each distinct data version that a point names, by the version as canonical JSON."""
    from orchestrator.data import resolve
    from orchestrator.identity import canonical

    manifests: dict[str, Manifest] = {}
    for point in composed.points:
        version = point.config["data"].get("version")
        if version is not None and not isinstance(version, Mapping):
            raise ConfigError(
                f"data.version is {version!r}", why="it is a mapping with `source`, or null",
                fix="data.version={source: dvc, path: data/digits, rev: HEAD}",
            )  # fmt: skip
        if version and (key := canonical(version)) not in manifests:
            manifests[key] = resolve(version, project=project.folder, cache=cache_dir() / "data")
    return manifests


def _digest(point: DraftPoint, manifests: Mapping[str, Manifest]) -> str | None:
    """Return the digest of the data version that a point names."""
    from orchestrator.identity import canonical

    version = point.config["data"].get("version")
    return manifests[canonical(version)].digest if version else None


def _document(point: DraftPoint, digest: str | None) -> dict[str, Any]:
    from orchestrator.identity import document

    return document(point.config, data_digest=digest, world_size=point.resources.world_size)


def _grid(composed: Draft, manifests: Mapping[str, Manifest]) -> tuple[Run, ...]:
    """Return one run per point. Raises ConfigError for two that are the same."""
    from orchestrator.identity import run_id

    runs: dict[RunId, Run] = {}
    for point in composed.points:
        digest = _digest(point, manifests)
        run = Run(
            id=run_id(_document(point, digest)), point=point.point, config=point.config, resources=point.resources,
            data_digest=digest,
        )  # fmt: skip
        if run.id in runs:
            raise ConfigError(
                f"points {told(runs[run.id].point)} and {told(run.point)} are the same run",
                why="they resolve to the same model, data, trainer, seed and task",
                fix="remove one of the values, or sweep a key that changes what is computed",
            )  # fmt: skip
        runs[run.id] = run
    return tuple(runs.values())


def _trials(composed: Draft, wanted: DraftSearch, manifests: Mapping[str, Manifest]) -> tuple[Run, ...]:
    """Return one run per trial of an adaptive sweep. A larger `n` only adds trials: it is no part of their ids."""
    from orchestrator.identity import search_id, trial_id

    first, definition = composed.points[0], wanted.definition
    digest = _digest(first, manifests)
    templates = tuple(
        replace(each, config=point.config) for each, point in zip(wanted.templates, composed.points, strict=False)
    )
    search = Search(
        id="", space=definition.space, sampler=definition.sampler, pruner=definition.pruner, seed=definition.seed,
        objectives=definition.objectives, templates=templates,
    )  # fmt: skip
    written = search.to_json()
    documents = [
        {**kept, "config": _document(point, digest)}
        for kept, point in zip(written["templates"], composed.points, strict=False)
    ]
    said = {key: value for key, value in written.items() if key not in {"id", "templates"}}
    search = replace(search, id=search_id(documents, said))
    return tuple(
        Run(
            id=trial_id(search.id, number), point={"trial": number}, config=templates[0].config,
            resources=first.resources, data_digest=digest, trial=Trial(search=search, number=number),
        )
        for number in range(definition.n)
    )  # fmt: skip


def _check_search(project: Project, composed: Draft, experiment: Experiment) -> None:
    """Ask for a first trial, where a user chose by whom: it may not fit the space. Optuna's own defaults do."""
    trial = experiment.runs[0].trial
    if trial and composed.search and composed.search.definition.custom:
        from orchestrator.study import check

        check(trial.search, [str(path) for path in project.import_path])


def _experiment(composed: Draft, manifests: Mapping[str, Manifest]) -> Experiment:
    wanted = composed.search
    runs = _trials(composed, wanted, manifests) if wanted else _grid(composed, manifests)
    return Experiment(
        name=composed.name, runs=runs, objective=composed.objective, cluster=composed.cluster,
        tracking=composed.tracking, snapshot=composed.snapshot, launch=composed.launch, tags=composed.tags,
        env="refuse" if composed.env == "refuse" else "warn",
        choices=composed.choices, sweep=composed.sweep, overrides=composed.overrides, notes=composed.notes,
        ask_above=composed.ask_above, after=composed.after,
    )  # fmt: skip


def _facts(project: Project, options: SnapshotOptions, manifests: Mapping[str, Manifest], stack: ExitStack) -> Facts:
    from orchestrator import environment, snapshot
    from orchestrator.launch import Facts

    roots = [project.folder, *environment.editable_roots(), *_own_checkout()]
    roots = [root for i, root in enumerate(roots) if not any(_within(root, other) for other in roots[:i])]
    elsewhere = replace(options, include=())  # globs of the project's own
    data = [Path(str(m.origin["folder"])) for m in manifests.values() if m.origin.get("folder")]  # pinned already
    code = tuple(
        stack.enter_context(snapshot.take(root, options if i == 0 else elsewhere, exclude=[project.runs.path, *data]))
        for i, root in enumerate(roots)
    )
    return Facts(code=code, environment=environment.current(), manifests=manifests)


def _own_checkout() -> list[Path]:
    """Return the checkout that this package runs from, if it is not an installed one."""
    import orchestrator

    return [Path(folder) for folder in orchestrator.__path__[1:]]


def _within(inner: Path, outer: Path) -> bool:
    return bool(inner == outer or outer in inner.parents)


def _notes(experiment: Experiment, facts: Facts) -> tuple[str, ...]:
    own = facts.code[0].snapshot.message  # of the project; what is installed elsewhere is not its user's to mend
    notes = [*experiment.notes, *([own] if own else [])]
    gpus = any(run.resources.gpus_per_node for run in experiment.runs)
    if gpus and experiment.cluster["kind"] != "slurm" and not _has_gpu():
        notes.append("resources ask for GPUs, and this machine has none: these runs train on the CPU")
    if not facts.manifests:
        notes.append("no data version: nothing pins the data that these runs read")
    edited = [manifest.origin for manifest in facts.manifests.values() if manifest.origin.get("dirty")]
    notes += [f"data {o['path']}: uncommitted changes of its .dvc file are not used; {o['rev']} is" for o in edited]
    return tuple(notes)


def _has_gpu() -> bool:
    return sys.platform == "darwin" or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _run_again(launch: LaunchPaths, record: Record) -> Run:
    line = ledger.read_line(launch, record.planned.index)
    return Run(
        id=record.id, point=record.planned.point, config=ledger.read_config(launch, line),
        trial=ledger.read_trial(launch, line),
        resources=Resources.from_json(line["resources"]), data_digest=line["data"],
    )  # fmt: skip


def _manifest(paths: ExperimentPaths, digest: str) -> Manifest:
    from orchestrator.data import Manifest

    return Manifest.read(paths.manifest(digest))


def ignore_in_git(project: Project) -> None:
    """Make the runs/ folder, and keep it out of the user's git."""
    ledger.make_private(project.runs.path)
    ignore = project.runs.path / ".gitignore"
    if not ignore.exists():
        ledger.replace_text(ignore, "*\n")


# --- clusters ---------------------------------------------------------------------------------------------


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


def in_foreground(options: Mapping[str, Any]) -> Inline:
    """Return the cluster that runs in this process, with what a `cluster:` section of any kind says of this machine."""
    from orchestrator.local.inline import Inline
    from orchestrator.local.machine import given

    return Inline(scratch=options.get("scratch"), others=observers(), **given(options))


class _Observers(Mapping[str, Cluster]):
    """A cluster of each kind; made, and its code loaded, when it is asked for."""

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
    """Return a cluster of each kind, to ask about launches."""
    return _Observers()


# --- look -------------------------------------------------------------------------------------------------


def read(project: Project, name: str) -> ledger.Ledger:
    """Return all that is known of an experiment; an experiment never launched has no records."""
    return reader(project, name)()


def reader(project: Project, name: str) -> Callable[[], ledger.Ledger]:
    """Return what reads an experiment each time that it is called: the second time costs much less than the first."""
    if not EXPERIMENT_NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no experiment's name", fix="orch status lists the experiments")
    known, clusters = ledger.Reader(project.runs.experiment(name)), observers()
    return lambda: known.read(clusters)


def look(project: Project, name: str) -> ledger.Ledger:
    """Return what `read` returns, once what was left undone has been seen to.

    What waited for room in a queue is handed over as far as there is some. How runs ended that died without a word is
    written down, and a process that we do not wait for brings the tracking store in line.
    """
    return looker(project, name)()


def looker(project: Project, name: str) -> Callable[[], ledger.Ledger]:
    """Return what looks at an experiment each time that it is called, as `reader` does."""
    read = reader(project, name)

    def look() -> ledger.Ledger:
        book = read()
        if hand_over(book, observers()):
            book = read()
        _put_right(project, book)
        return book

    return look


def overview(project: Project, experiment: ExperimentPaths) -> dict[str, int]:
    """Return the number of an experiment's runs that have started, by state. Only running ones are looked at."""
    marked = {run_id: state for run_id, (_, state) in ledger.marks(experiment).items()}
    running = {run_id for run_id, state in marked.items() if state == RunState.RUNNING}
    if running:
        book = ledger.read(experiment, observers(), only=running)
        _put_right(project, book)
        marked |= {record.id: record.state.value for record in book.records.values() if record.last}
    found = Counter(marked.values())
    return {state: found[state] for state in sorted(found)}


def _put_right(project: Project, book: ledger.Ledger) -> None:
    news = ledger.settle(book)
    if book.launches and book.experiment.path.stat().st_uid == os.getuid():  # nobody runs a command of another's
        _guard(book, news)
    tracked = bool(book.launches) and book.launches[-1].header["tracking"]["kind"] != "none"
    if tracked and _due(book.experiment.unsynced, news=bool(news)):
        _sync_in_background(project, book.experiment)


def _guard(book: ledger.Ledger, news: Iterable[Record]) -> None:
    """See to what runs that died without a word mean for their launches."""
    for record in news:
        if failure := record.failure:
            launch = book.launch(record.task[0])
            if stopped := guard.brake_after(launch.paths, record.id, failure.signature):
                observers()[launch.header["cluster"]["kind"]].cancel(launch.paths, stopped)
            guard.tell(launch.paths, guard.Event.FAILED, run_id=record.id, reason=failure.signature)
    for launch in book.launches:
        if launch.header.get("launch", {}).get("notify"):
            mine = (record for record in book.records.values() if record.planned.launch == launch.number)
            if not any(record.state.active for record in mine):
                guard.tell(launch.paths, guard.Event.ENDED)


def _due(unsynced: Path, *, news: bool) -> bool:
    """Return whether the tracking store is to be told: of news, or again where that has not worked for a while."""
    try:
        return time.time() - unsynced.stat().st_mtime > _RETRY_SECONDS
    except OSError:
        return news


def _sync_in_background(project: Project, experiment: ExperimentPaths) -> None:
    """Start a process that syncs an experiment, and removes the mark first: it sees what ended until then."""
    argv = [sys.executable, "-m", "orchestrator.sidecar", str(project.runs.path), experiment.name]
    try:
        experiment.unsynced.touch(mode=0o600)
        ledger.make_private(cache_dir())
        start_detached(argv, cwd=project.runs.path, log=cache_dir() / "sync.log")
    except (OSError, OrchError) as error:
        _log.info("not synced: %s", error)


def told(point: Mapping[str, Any]) -> str:
    """Return a point as it is written on the command line."""
    return " ".join(f"{key}={value}" for key, value in masked(point).items()) or "(no sweep)"


# --- act on runs ------------------------------------------------------------------------------------------


def cancel(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Cancel runs that wait or run, and return those. Marks first: a supervisor that starts later sees them."""
    paths = project.runs.experiment(name)
    chosen = [r for r in records if r.state.active and not (paths.launch(r.task[0]).cancelled / r.id).exists()]
    for number, found in _by_launch(chosen).items():
        folder = paths.launch(number)
        ledger.make_private(folder.cancelled)
        for record in found:
            (folder.cancelled / record.id).touch(mode=0o600)
        header = ledger.read_launch(folder).header
        observers()[header["cluster"]["kind"]].cancel(folder, [record.task[1] for record in found])
        if header["tracking"]["kind"] != "none" and any(record.last and record.last.final for record in found):
            _sync_in_background(project, paths)  # MLflow has it as SCHEDULED, and nobody will report it again
    return chosen


def hold(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Keep runs that wait from starting, and return those."""
    return _said_to_queued(project, name, records, guard.hold, lambda cluster: cluster.hold)


def release(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Let go what holds runs back, a hold or the canary before them, and return the runs."""
    return _said_to_queued(project, name, records, guard.release, lambda cluster: cluster.release)


def change(project: Project, name: str, records: Iterable[Record], wanted: Change) -> list[Record]:
    """Give runs that wait other limits, and return those."""
    return _said_to_queued(
        project, name, records, lambda *_: None,
        lambda cluster: lambda launch, tasks: cluster.change(launch, tasks, wanted),
    )  # fmt: skip


def _said_to_queued(
    project: Project, name: str, records: Iterable[Record],
    mark: Callable[[LaunchPaths, Collection[int]], None],
    say: Callable[[Cluster], Callable[[LaunchPaths, Collection[int]], None]],
) -> list[Record]:  # fmt: skip
    """Mark runs that wait, then tell their cluster, a launch at a time."""
    paths = project.runs.experiment(name)
    chosen = [record for record in records if record.state in {RunState.QUEUED, RunState.WAITING}]
    for number, found in _by_launch(chosen).items():
        launch = paths.launch(number)
        tasks = [record.task[1] for record in found]
        mark(launch, tasks)
        say(observers()[ledger.read_launch(launch).header["cluster"]["kind"]])(launch, tasks)
    return chosen


def _by_launch(records: Iterable[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(record.task[0], []).append(record)
    return found


def hide(project: Project, name: str, records: Iterable[Record], *, undo: bool = False) -> None:
    """Leave runs out of what is shown, or show them again. Nothing of them is deleted, and a launch knows them."""
    paths = project.runs.experiment(name)
    folder = paths.hidden
    ledger.make_private(folder)
    for record in records:
        if undo:
            (folder / record.id).unlink(missing_ok=True)
        else:
            (folder / record.id).touch(mode=0o600)
    if _tracking(paths).get("kind", "none") != "none":
        _sync_in_background(project, paths)  # its best run may be another one now


# --- tracking ---------------------------------------------------------------------------------------------


def sync(project: Project, name: str) -> Report:
    """Bring an experiment's tracking store up to date with its runs' own records and spools."""
    from orchestrator.tracking_view import tracked

    return store_of(project, name).sync(tracked(read(project, name)))


def store_of(project: Project, name: str) -> MlflowStore:
    """Return the tracking store of an experiment. Raises TrackingError if it cannot be used."""
    from orchestrator.tracking.mlflow_store import MlflowStore

    if not (project.runs.experiment(name).path / "launches").is_dir():
        raise TrackingError(f"there is no experiment {name}", fix="orch status lists the experiments")
    uri = server_of(project, name)
    if uri:
        return MlflowStore.server(uri, project.runs.experiment(name).tracking(uri))
    folder = _private_store(project)
    # Where the database had to leave the runs, artifacts stay with them, by the machine: checkpoints are links there.
    beside = None if folder == project.runs.mlflow else project.runs.mlflow / socket.gethostname() / "artifacts"
    return MlflowStore.embedded(folder, beside)


def _private_store(project: Project) -> Path:
    """Return the folder of the embedded store; one that does not lie with the runs is for this user alone."""
    store = project.tracking_store
    if store != project.runs.mlflow:
        ledger.make_private(store)
        ledger.check_private(store.parent)
    return store


def server_of(project: Project, name: str) -> str | None:
    """Return the address of the tracking server that an experiment's latest launch sends to, if it does."""
    tracking = _tracking(project.runs.experiment(name))
    return str(tracking["uri"]) if tracking.get("kind") == "server" else None


def _tracking(paths: ExperimentPaths) -> Mapping[str, Any]:
    launches = paths.launches()
    found: Mapping[str, Any] = ledger.read_launch(launches[-1]).header["tracking"] if launches else {}
    return found


def open_in_store(project: Project, name: str) -> bool:
    """Return whether runs were cancelled that still seem to wait: what the store says of them is not the last word."""
    book = read(project, name)
    cancelled = {launch.number: launch.paths.cancelled for launch in book.launches}
    waiting = [r for r in book.records.values() if r.last is not None and r.state is RunState.QUEUED]
    return any((cancelled[record.task[0]] / record.id).exists() for record in waiting)


def register(project: Project, name: str, *, model: str | None = None) -> str | None:
    """Register the best run's model if the experiment wants it, all runs have ended, and it is not registered yet.

    `model` asks for it where no launch of it did. Returns what was done, in words. The model is built and loaded in a
    process of its own, with the run's own code. Raises TrackingError where that fails.
    """
    from orchestrator.registering import register as act
    from orchestrator.registering import wanted

    asked = model or _tracking(project.runs.experiment(name)).get("register")
    wish = wanted(read(project, name), model=model) if asked else None
    return act(wish, store_of(project, name)) if wish else None
