"""Steps -> what they ask for: sums by resource shape, and the data versions that they read. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from orchestrator.data import Manifest
from orchestrator.launch.plan import Step
from orchestrator.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeTotal:
    """The runs of one resource shape. `arrays`, and `jobs` in them: None where the cluster has none.

    `hours`: the time limit of one attempt; None: there is none, or nobody knows. `asked`: whether it is in
    resources, and not the cluster's own.
    """

    resources: Resources
    runs: int
    arrays: int | None
    jobs: int | None
    hours: float | None
    asked: bool

    @property
    def tasks(self) -> int:
        """Training processes."""
        return self.runs * self.resources.world_size

    @property
    def gpu_hours(self) -> float | None:
        """What one attempt of each run takes at most."""
        return self._hours(self._asked.gpus_per_node)

    @property
    def cpu_hours(self) -> float | None:
        return self._hours(self._asked.cpus_per_node)

    @property
    def _asked(self) -> Resources:
        """What one job asks for, which may be a pack of runs."""
        return self.resources if self.jobs is None else self.resources.job

    def _hours(self, per_node: int) -> float | None:
        hours, jobs = self._asked.hours or self.hours, self.runs if self.jobs is None else self.jobs
        return None if hours is None else jobs * self.resources.nodes * per_node * hours

    def to_json(self) -> dict[str, object]:
        return {
            "resources": self.resources.to_json(),
            "runs": self.runs,
            "arrays": self.arrays,
            "jobs": self.jobs,
            "tasks": self.tasks,
            "hours": self.hours,
            "hours_asked": self.asked,
            "gpu_hours": self.gpu_hours,
            "cpu_hours": self.cpu_hours,
        }


def shape_totals(
    steps: Iterable[Step],
    *,
    arrays: Mapping[Resources, int] | None,
    jobs: Mapping[Resources, int] | None = None,
    default_hours: float | None,
) -> tuple[ShapeTotal, ...]:
    """Sum up the steps to do by their resources, in their order."""
    runs = Counter(step.run.resources for step in steps)
    return tuple(
        ShapeTotal(
            resources=need,
            runs=count,
            arrays=arrays[need] if arrays is not None else None,
            jobs=jobs[need] if jobs is not None else None,
            hours=need.hours or default_hours,
            asked=bool(need.hours),
        )
        for need, count in runs.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTotal:
    """One data version, and how many runs read it."""

    digest: str
    name: str
    bytes: int
    files: int
    runs: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def data_totals(steps: Iterable[Step], manifests: Mapping[str, Manifest]) -> tuple[DataTotal, ...]:
    """Return the data versions that the steps to do read, in the order in which they come up."""
    readers = Counter(step.run.data_digest for step in steps if step.run.data_digest)
    return tuple(
        DataTotal(digest=digest, name=found.name, bytes=found.bytes, files=found.files, runs=runs)
        for digest, runs in readers.items()
        if (found := manifests[digest])
    )
