"""Which tasks of a launch share a job. A job is named by the first of them, as one that a task has for itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.layout import LaunchPaths
from orchestrator.system.files import NOT_JSON, read_bytes, unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """The packs of a launch: each one's tasks by the first of them, and the first by each of them."""

    tasks_by_first: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    first_by_task: Mapping[int, int] = field(default_factory=dict)

    def first(self, task: int) -> int:
        """Return the task that a task's job is named by."""
        return self.first_by_task.get(task, task)

    def firsts(self, tasks: Iterable[int]) -> list[int]:
        return list(dict.fromkeys(self.first(task) for task in tasks))

    def tasks(self, first: int) -> tuple[int, ...]:
        """Return the tasks of the job that is named by its first one."""
        return self.tasks_by_first.get(first, (first,))

    def all_tasks(self, firsts: Iterable[int]) -> list[int]:
        return [task for first in firsts for task in self.tasks(first)]

    def whole(self, tasks: Collection[int]) -> list[int]:
        """Return, each by its first task, the jobs of which all tasks are among these."""
        given = set(tasks)
        return [first for first in self.firsts(tasks) if given.issuperset(self.tasks(first))]

    def __contains__(self, task: object) -> bool:
        return task in self.first_by_task


def read_packs(launch: LaunchPaths) -> Packs:
    """Return the packs of a launch; most have none."""
    try:
        packs = [tuple(map(int, pack)) for pack in json.loads(read_bytes(launch.packs))]
    except FileNotFoundError:
        return Packs()
    except (OSError, TypeError, *NOT_JSON) as error:
        raise unreadable(launch.packs, error) from error
    return Packs(
        tasks_by_first={pack[0]: pack for pack in packs},
        first_by_task={task: pack[0] for pack in packs for task in pack},
    )
