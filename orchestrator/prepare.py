"""From overrides to a checked experiment, task by task. Writes caches only."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orchestrator
from orchestrator import search
from orchestrator.clusters import cluster_for, observers, with_defaults
from orchestrator.config import schema
from orchestrator.config.debug import debugging
from orchestrator.config.experiment import ComposedExperiment, compose_experiment, data_version, placing
from orchestrator.config.quoting import as_override
from orchestrator.config.targets import Targets
from orchestrator.config.targets.answer import is_installed
from orchestrator.config.targets.check import check_experiment
from orchestrator.data import Manifest, resolve
from orchestrator.errors import ConfigError
from orchestrator.identity import canonical
from orchestrator.launch import dependencies, starts
from orchestrator.launch.exactness import installed_lightning, obstacles
from orchestrator.launch.facts import Facts, gather
from orchestrator.launch.runs import experiment_of
from orchestrator.layout import LaunchPaths, cache_dir
from orchestrator.project import Project
from orchestrator.records.launches import read_launch, read_run_config
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Record
from orchestrator.records.searches import read_trial
from orchestrator.snapshot import Pending
from orchestrator.spec import SnapshotOptions
from orchestrator.spec.experiment import Experiment, Run
from orchestrator.system.extras import require
from orchestrator.system.processes import ProgramError, ask
from orchestrator.tracking import stores

_CHECK = Path(search.__file__).with_name("check.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked experiment and the facts it was checked against: ready to plan or to launch."""

    experiment: Experiment
    facts: Facts
    notes: tuple[str, ...]


@contextmanager
def prepare(project: Project, overrides: Sequence[str], *, batches: int | None = None) -> Iterator[Prepared]:
    """Compose and check an experiment, and gather the facts that it will run with.

    With `batches` it is a debug run of that many batches, in a separate experiment `<name>-debug`. Raises ConfigError
    or RequestError for every error that can be found before a run starts.
    """
    with placing(project.folder, overrides):
        targets = targets_of(project)
        composed = compose_experiment(project.folder, overrides, targets.takes)
        composed = composed if batches is None else debugging(composed, batches)
        composed = replace(composed, tracking=stores.addressed(composed.tracking, project, composed.name))
        section, defaults = with_defaults(composed.cluster, os.environ)
        composed = replace(composed, cluster=section)
        waits = check_cluster(project, composed)
        composed = starts.freeze(composed, runs=project.runs, project=project.folder)
        _require_extras(composed)
        check_experiment(composed, targets)
        manifests = resolve_versions(project, composed)
        experiment = experiment_of(composed, manifests)
        check_search(project, composed, experiment)
    with ExitStack() as stack:
        facts = gather(project, experiment.snapshot, {m.digest: m for m in manifests.values()}, stack)
        check_frozen(targets, facts.code, experiment.snapshot)
        yield Prepared(experiment=experiment, facts=facts, notes=(*_notes(experiment, facts), *defaults, *waits))


@contextmanager
def prepare_again(project: Project, records: Sequence[Record], name: str) -> Iterator[Prepared]:
    """Prepare known runs of one experiment as they were launched, to be retried with the current code."""
    paths = project.runs.experiment(name)
    launches = {launch.number: launch for launch in map(read_launch, paths.launches())}
    runs = tuple(_run_again(launches[record.planned.launch].paths, record) for record in records)
    header = launches[max(record.planned.launch for record in records)].header
    experiment = Experiment(
        name=name,
        runs=runs,
        objective=header.objective,
        cluster=header.cluster,
        tracking=header.tracking,
        env=header.env,
        choices=header.choices,
        snapshot=header.snapshot,
        sweep=header.sweep,
        overrides=header.overrides,
        tags=header.tags,
        launch=header.launch,
        checkpoint=header.checkpoint,
        after=header.after,
    )
    manifests = {run.data_digest: Manifest.read(paths.manifest(run.data_digest)) for run in runs if run.data_digest}
    with ExitStack() as stack:
        facts = gather(project, experiment.snapshot, manifests, stack)
        yield Prepared(experiment=experiment, facts=facts, notes=())


def tagged(prepared: Prepared, tags: Sequence[str]) -> Prepared:
    """Return a copy of `prepared` with further tags. Raises ConfigError for a word that cannot be a tag."""
    experiment = prepared.experiment
    return replace(prepared, experiment=replace(experiment, tags=schema.tags([*experiment.tags, *tags])))


def check_cluster(project: Project, composed: ComposedExperiment) -> tuple[str, ...]:
    """Check the options of the cluster, and that the launches named by `after` can be waited for there.

    Returns notes for the user.
    """
    cluster_for(composed.cluster)
    return tuple(dependencies.check(project.runs, composed.name, composed.after, observers(), composed.cluster["kind"]))


def _require_extras(composed: ComposedExperiment) -> None:
    if composed.search:
        require("optuna", "`sweep.optuna`")
    if composed.tracking.get("register"):
        require("mlflow", "`tracking.register`")


def targets_of(project: Project) -> Targets:
    """Return a checker of the targets that a project's configs name, which searches where a run will."""
    found = search_path(project)
    left_out = {str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    return Targets(found, cache_dir() / "signatures", elsewhere=sorted(left_out - {*found}))


def search_path(project: Project) -> list[str]:
    """Return the search path of modules: the project, installed packages, this package; neither PYTHONPATH nor the cwd.

    A folder that is installed in place (`pip install --editable`) is named in a `.pth` file.
    """
    entries = [str(Path(entry).absolute()) for entry in sys.path if entry]
    installed = [entry for entry in entries if is_installed(entry)]
    ours = [str(Path(folder).parent) for folder in orchestrator.__path__]  # frozen like the project's
    in_place = {line.strip() for entry in installed for file in Path(entry).glob("*.pth") for line in _lines(file)}
    return [*project.import_path, *(entry for entry in entries if entry in {*installed, *ours, *in_place})]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def check_frozen(targets: Targets, code: Sequence[Pending], options: SnapshotOptions) -> None:
    """Check that the files of targets are frozen with the code: git may ignore them. Raises ConfigError."""
    for place, pending in enumerate(code):
        inside = (file.relative_to(pending.root) for file in targets.files if file.is_relative_to(pending.root))
        missing = sorted(path for path in map(Path.as_posix, inside) if path not in pending.paths)
        if missing:
            include = [*options.include, *sorted({_unfrozen_folder(path, pending.paths) for path in missing})]
            raise ConfigError(
                f"{pending.root / missing[0]} is the source of a target, and not frozen with the code",
                why="git ignores it, or it is among outputs; a run has frozen files only",
                fix=f"git add --force {missing[0]}, in {pending.root}"
                if place
                else as_override("snapshot.include", include, plain=True),
            )


def _unfrozen_folder(path: str, frozen: Collection[str]) -> str:
    """Return the highest folder above a file of which nothing is frozen, or the file."""
    folders = [folder.as_posix() for folder in reversed(Path(path).parents) if folder != Path()]
    return next((each for each in folders if not any(other.startswith(f"{each}/") for other in frozen)), path)


def check_search(project: Project, composed: ComposedExperiment, experiment: Experiment) -> None:
    """Ask a sampler that the user chose for a first trial, since it may not fit the space. Optuna's defaults always do.

    Runs in a separate process, which imports the named classes from the search path. Raises ConfigError.
    """
    trial = experiment.runs[0].trial
    if not (trial and composed.search and composed.search.definition.custom):
        return
    question = {"search": trial.search.to_json(), "search_path": search_path(project)}
    try:
        wrong = ask([str(_CHECK)], question, env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}, timeout_s=600.0)
    except ProgramError as error:
        wrong = {"what": "sweep.optuna: its sampler or pruner ends the process", "why": error.reason}
    if wrong:
        raise ConfigError(**wrong)


def resolve_data(project: Project, overrides: Sequence[str]) -> Manifest | None:
    """Return the manifest of the data version that overrides choose; None if they choose none."""
    with placing(project.folder, overrides):
        version = data_version(project.folder, overrides)
        return resolve(version, project=project.folder, cache=cache_dir() / "data") if version else None


def resolve_versions(project: Project, composed: ComposedExperiment) -> dict[str, Manifest]:
    """Return the manifest of each distinct data version of the points, by the version as canonical JSON."""
    manifests: dict[str, Manifest] = {}
    for point in composed.points:
        version = point.config["data"].get("version")
        if version is not None and not isinstance(version, Mapping):
            raise ConfigError(
                f"data.version is {version!r}",
                why="it is a mapping with `source`, or null",
                fix="data.version={source: dvc, path: data/digits, rev: HEAD}",
            )
        if version and (key := canonical(version)) not in manifests:
            manifests[key] = resolve(version, project=project.folder, cache=cache_dir() / "data")
    return manifests


def _notes(experiment: Experiment, facts: Facts) -> tuple[str, ...]:
    own = facts.code[0].snapshot.message  # of the project only; the user cannot fix packages installed elsewhere
    notes = [*experiment.notes, *([own] if own else [])]
    gpus = any(run.resources.gpus_per_node for run in experiment.runs)
    if gpus and experiment.cluster["kind"] != "slurm" and not _has_gpu():
        notes.append("resources ask for GPUs, and this machine has none: these runs train on the CPU")
    if not facts.manifests:
        notes.append("no data version: nothing pins the data that these runs read")
    edited = [manifest.origin for manifest in facts.manifests.values() if manifest.origin.get("dirty")]
    notes += [f"data {o['path']}: uncommitted changes of its .dvc file are not used; {o['rev']} is" for o in edited]
    return (*notes, *_exactness(experiment, facts))


def _exactness(experiment: Experiment, facts: Facts) -> list[str]:
    """Return what keeps the runs from resuming exactly. Raises ConfigError where that is to be refused."""
    if experiment.checkpoint.exact == "off":
        return []
    version = facts.environment.distributions.get("pytorch-lightning", installed_lightning())
    found = dict.fromkeys(why for run in experiment.runs for why in obstacles(run.config, run.resources, version))
    if found and experiment.checkpoint.exact == "refuse":
        raise ConfigError(
            "runs that are interrupted cannot resume with the bits of an undisturbed one",
            why="; ".join(found),
            fix="change that, or set checkpoint.exact=warn",
        )
    return [f"not exact if resumed: {why}" for why in found]


def _has_gpu() -> bool:
    return sys.platform == "darwin" or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _run_again(launch: LaunchPaths, record: Record) -> Run:
    planned = read_planned_run(launch, record.planned.index)
    return Run(
        id=record.id,
        point=record.planned.point,
        config=read_run_config(launch, planned),
        trial=read_trial(launch, planned),
        resources=planned.resources,
        data_digest=planned.data,
    )
