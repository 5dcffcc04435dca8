"""The layout on disk: the only module that knows paths. See docs/reference/on-disk.md.

<runs>/<experiment>/launches/0007/         one launch: its request, written whole, never changed
<runs>/<experiment>/code/<tree>/           frozen code, shared by launches
<runs>/<experiment>/data/<digest>.json     manifests, shared by launches
<runs>/<experiment>/runs/<run id>/a001/    one attempt, one writer
<runs>/<experiment>/tracking/<server>/     the agreed ids of the runs on a tracking server
<runs>/<experiment>/hidden/                empty files named by run: runs that are not shown
<runs>/<experiment>/index/                 empty files `<run>.<attempt>.<state>`; derived, rebuildable
<runs>/.mlflow/                            the embedded tracking store (without its database on a network filesystem)
<runs>/.waiting/                           empty files `<experiment>.<launch>`: hints that part of it is not submitted
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from orchestrator.system.files import listed, names_in

_LAUNCH = re.compile(r"\d{4,}")
_LOG = re.compile(r"log(\.rank\d+)?")
_SYSTEM = re.compile(r"system\..+\.jsonl")
ATTEMPT_NAME = re.compile(r"a(\d{3,})")
BEST = "best.ckpt"
LAST = "last.ckpt"
"""In an attempt's `checkpoints/`: the file that version 0.1 resumes from. See records/checkpoints.py."""

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _names(folder: Path) -> list[str]:
    return sorted(names_in(folder))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir() or listed(path)
    except PermissionError:  # another user's: the other folders are still listed
        return False


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder with a known layout. One dataclass for all: creating a dataclass takes a millisecond."""

    path: Path


class AttemptPaths(_Folder):
    """The folder of one attempt; only the attempt's own process writes here."""

    __slots__ = ()

    @property
    def number(self) -> int:
        return int(self.path.name[1:])

    @property
    def claim(self) -> Path:
        return self.path / "claim.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def rank_events(self, rank: int) -> Path:
        """The failure of a rank other than 0; each rank writes its own."""
        return self.path / f"events.rank{rank}.jsonl"

    def rank_staged(self, rank: int) -> Path:
        """The report of a rank other than 0 on the data that it copied to its node; each rank writes its own."""
        return self.path / f"staged.rank{rank}.jsonl"

    def failed_ranks(self) -> Iterator[Path]:
        return self.path.glob("events.rank*.jsonl")

    def stalled(self, node: str) -> Path:
        """Return the file in which a node's watcher says where its ranks hang; rank 0's node has none."""
        return self.path / f"stalled.{node}.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def system(self, node: str) -> Path:
        """The load of a node while the attempt runs there; one writer each, in the format of `metrics`."""
        return self.path / f"system.{node}.jsonl"

    def system_metrics(self) -> list[Path]:
        return [self.path / name for name in _names(self.path) if _SYSTEM.fullmatch(name)]

    @property
    def state(self) -> Path:
        """The engine's own checkpoints; the user's callbacks do not write to this folder."""
        return self.path / "state"

    @property
    def latest(self) -> Path:
        """The record of which engine checkpoint the run resumes from."""
        return self.state / "latest.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the user's own callbacks; in runs of version 0.1 the engine's, too."""
        return self.path / "checkpoints"

    def logger(self, name: str) -> Path:
        """The default folder of a logger of the user's own."""
        return self.path / "loggers" / name

    @property
    def example(self) -> Path:
        """A few samples of the first validation batch; exists only if the best run is to be registered."""
        return self.path / "example.pt"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def rank_log(self, rank: int) -> Path:
        return self.path / f"log.rank{rank}" if rank else self.log

    def logs(self) -> list[Path]:
        """Return the logs of all ranks."""
        return [self.path / name for name in _names(self.path) if _LOG.fullmatch(name)]


class RunPaths(_Folder):
    """The folder of one run."""

    __slots__ = ()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def trial(self) -> Path:
        """The values of a trial of an adaptive sweep: chosen once, for all of its attempts."""
        return self.path / "trial.json"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def observed(self) -> Path:
        """Observations of attempts that ended without a final event; one file per observer and attempt."""
        return self.path / "observed"

    def attempt(self, number: int) -> AttemptPaths:
        return AttemptPaths(self.path / f"a{number:03d}")

    def attempts(self) -> list[AttemptPaths]:
        found = [name for name in _names(self.path) if ATTEMPT_NAME.fullmatch(name)]
        return sorted((AttemptPaths(self.path / name) for name in found), key=lambda a: a.number)


class LeasePaths(_Folder):
    """The folder of one submit lease of a launch; taken by a rename, written by the process that took it alone."""

    __slots__ = ()

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def claim(self) -> Path:
        return self.path / "claim.json"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs.json"

    @property
    def end(self) -> Path:
        return self.path / "end.json"


class LaunchPaths(_Folder):
    """The folder of one launch; published whole by a rename, then only added to by the process that submits it."""

    __slots__ = ()

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def header(self) -> Path:
        return self.path / "launch.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.jsonl"

    @property
    def offsets(self) -> Path:
        return self.path / "plan.offsets"

    def base(self, number: int) -> Path:
        return self.path / f"base-{number}.json"

    def search(self, search: str) -> Path:
        """Return the file of an adaptive sweep that tasks are trials of."""
        return self.path / f"search-{search}.json"

    @property
    def packs(self) -> Path:
        """The tasks that share a job; absent if none do."""
        return self.path / "packs.json"

    @property
    def experiment(self) -> ExperimentPaths:
        return ExperimentPaths(self.path.parent.parent)

    @property
    def runs(self) -> RunsRoot:
        return RunsRoot(self.path.parent.parent.parent)

    def lease(self, number: int) -> LeasePaths:
        return LeasePaths(self.path / "turns" / f"{number:04d}")

    def leases(self) -> list[LeasePaths]:
        found = [name for name in _names(self.path / "turns") if _LAUNCH.fullmatch(name)]
        return sorted(map(self.lease, map(int, found)), key=lambda lease: lease.number)

    @property
    def pending_mark(self) -> Path:
        """The empty file that exists while some of the launch may still have to be submitted."""
        return self.runs.waiting / f"{self.experiment.name}.{self.path.name}"

    @property
    def submitit(self) -> Path:
        """The folder of files that start Slurm's jobs, their output outside of runs, and their exit statuses."""
        return self.path / "submitit"

    def outputs(self, job: str, *, processes: int) -> list[Path]:
        """Return the files for the output of a job's script and of its processes until these have a log."""
        return [self.submitit / f"{job}{end}.out" for end in ("", *(f"_{i}" for i in range(processes)))]

    def script(self, job: str) -> Path:
        """Return the script that a job was submitted with."""
        return self.submitit / f"{job}_submission.sh"

    def exit_status(self, job: str) -> Path:
        """Return the file with the exit status of a job that failed by itself."""
        return self.submitit / f"{job}.exit"

    @property
    def cancelled(self) -> Path:
        """Empty files named by run id: these runs must not start, and stop if they have started."""
        return self.path / "cancelled"

    @property
    def held(self) -> Path:
        """Empty files named by index: these tasks must not start until they are released."""
        return self.path / "held"

    @property
    def released(self) -> Path:
        """An empty file: the remaining runs no longer wait for the canary."""
        return self.path / "released"

    def failures(self, signature: str) -> Path:
        """Return the folder of empty files, named by run id, of the runs that failed with a signature."""
        return self.path / "failures" / short_digest(signature)

    @property
    def brake(self) -> Path:
        """The runs that the failure limit has cancelled, and why."""
        return self.path / "brake.json"

    def change(self, number: int) -> Path:
        """Return the file of a change to tasks that are not submitted yet; later changes take precedence."""
        return self.path / "changes" / f"{number:04d}.json"

    def changes(self) -> list[Path]:
        return [self.path / "changes" / name for name in _names(self.path / "changes") if name.endswith(".json")]

    def notified(self, event: str) -> Path:
        """Return the folder that a process creates before it reports an event, so that it is reported once."""
        return self.path / "notified" / event

    @property
    def complete(self) -> Path:
        return self.path / "COMPLETE"


class CodePaths(_Folder):
    """One frozen tree of code."""

    __slots__ = ()

    @property
    def tree(self) -> Path:
        return self.path / "tree"

    @property
    def header(self) -> Path:
        return self.path / "snapshot.json"

    @property
    def diff(self) -> Path:
        return self.path / "uncommitted.diff"


class ExperimentPaths(_Folder):
    """The folder of one experiment."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def unsynced(self) -> Path:
        """An empty file: runs were seen to end whose end is not in the tracking store yet."""
        return self.path / "unsynced"

    def launch(self, number: int) -> LaunchPaths:
        return LaunchPaths(self.path / "launches" / f"{number:04d}")

    def launches(self) -> list[LaunchPaths]:
        folder = self.path / "launches"
        found = (LaunchPaths(folder / name) for name in _names(folder) if _LAUNCH.fullmatch(name))
        return sorted(found, key=lambda launch: launch.number)

    def code(self, tree: str) -> CodePaths:
        return CodePaths(self.path / "code" / tree)

    def python_path(self, code: str, *, unwritten: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[str]:
        """Return the folders that a job imports from: the project's frozen tree, then those of editable installs.

        `code` is one tree, or several joined by `+`, the project's first. A `src/` folder is searched too.
        `unwritten` are the folders in trees that are not written yet.
        """
        found = []
        for tree in code.split("+"):
            root = self.code(tree).tree
            has_source = "src" in unwritten[tree] if tree in unwritten else (root / "src").is_dir()
            found += [str(root), *([str(root / "src")] if has_source else [])]
        return found

    def manifest(self, digest: str) -> Path:
        return self.path / "data" / f"{digest}.json"

    def tracking(self, uri: str) -> Path:
        """Return the folder with the agreed ids of the runs on a tracking server."""
        return self.path / "tracking" / short_digest(uri)

    @property
    def hidden(self) -> Path:
        """Empty files named by run id: these runs are not shown."""
        return self.path / "hidden"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def run(self, run_id: str) -> RunPaths:
        return RunPaths(self.runs / run_id)


class RunsRoot(_Folder):
    """The folder `runs/` of a project."""

    __slots__ = ()

    @property
    def mlflow(self) -> Path:
        return self.path / ".mlflow"

    @property
    def waiting(self) -> Path:
        return self.path / ".waiting"

    def launches_waiting(self) -> list[LaunchPaths]:
        """Return the launches that may not be submitted completely, from one listing."""
        found = (name.rpartition(".") for name in _names(self.waiting))
        return [self.experiment(name).launch(int(number)) for name, _, number in found if _LAUNCH.fullmatch(number)]

    def experiment(self, name: str) -> ExperimentPaths:
        return ExperimentPaths(self.path / name)

    def experiments(self) -> Iterator[ExperimentPaths]:
        for name in _names(self.path):
            if EXPERIMENT_NAME.fullmatch(name) and _is_folder(self.path / name / "launches"):
                yield self.experiment(name)


def short_digest(text: str) -> str:
    """Return a file name for an arbitrary text."""
    import hashlib

    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def cache_dir() -> Path:
    """Return the user's cache folder: everything in it can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orchestrator"


def state_dir() -> Path:
    """Return the user's state folder: the workstation's queue, its supervisor's log, which launches are the user's."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "orchestrator"
