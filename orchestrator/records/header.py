"""The header of a launch, its `launch.json`: who launched what, and how. Parsed and checked once, here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from orchestrator.errors import StateError
from orchestrator.spec import CheckpointOptions, Config, LaunchOptions, Objective, SnapshotOptions
from orchestrator.system.files import damaged
from orchestrator.system.processes import ProcessId

_FORMAT_VERSION = 1
_REQUIRED = frozenset({"token", "time", "user", "process", "cluster"})
_Choice = TypeVar("_Choice", bound=str)


def _this_user() -> str:
    import getpass

    return getpass.getuser()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchHeader:
    """Who launched what, and how. The fields are the keys of `launch.json`; a new header is of here and now.

    `cluster`, `tracking`, `snapshot`, `launch` and `checkpoint` are the sections of the experiment's configuration,
    `code` the headers of its frozen trees, the project's first, `data` the summary of each data version by its digest.
    `python` and `worker` are what starts a task. `unknown` holds the keys of a newer version: kept, and ignored.
    """

    token: str = field(default_factory=lambda: os.urandom(16).hex())
    time: float = field(default_factory=time.time)
    user: str = field(default_factory=_this_user)
    process: ProcessId = field(default_factory=ProcessId.current)
    experiment: str = ""
    message: str = ""
    argv: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    sweep: Config = field(default_factory=dict)
    objective: Objective | None = None
    cluster: Config
    tracking: Config = field(default_factory=lambda: {"kind": "none"})
    env: Literal["refuse", "warn"] = "warn"
    snapshot: SnapshotOptions = field(default_factory=SnapshotOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    tags: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    environment: Config = field(default_factory=dict)
    python: str = ""
    worker: tuple[str, ...] = ()
    code: tuple[Config, ...] = ()
    data: Mapping[str, Config] = field(default_factory=dict)
    unknown: Config = field(default_factory=dict)

    @property
    def cluster_kind(self) -> str:
        return str(self.cluster["kind"])

    @property
    def tracking_kind(self) -> str:
        return str(self.tracking["kind"])

    def to_json(self) -> dict[str, object]:
        known = {key: _plain(getattr(self, key)) for key in _READ}
        return {"v": _FORMAT_VERSION, **known, **self.unknown}


def parse_header(path: Path, value: Mapping[str, object]) -> LaunchHeader:
    """Return the header that a file holds. Raises StateError where a key is missing or of a wrong type.

    What older versions did not write has its default; null counts as not written.
    """
    if value.get("v") != _FORMAT_VERSION:
        raise StateError(
            f"{path} has format {value.get('v')!r}",
            why=f"this version reads {_FORMAT_VERSION}",
            fix="use the version of orch that wrote it",
        )
    if missing := _REQUIRED - value.keys():
        raise damaged(path, f"it lacks {', '.join(sorted(missing))}")
    written = {key for key in _READ if value.get(key) is not None or key in _REQUIRED}
    known = {key: _read(path, key, value[key]) for key in written}
    unknown = {key: entry for key, entry in value.items() if key not in _READ and key != "v"}
    return LaunchHeader(**known, unknown=unknown)


def _read(path: Path, key: str, value: object) -> Any:
    try:
        return _READ[key](value)
    except KeyError as error:
        raise damaged(path, f"{key} is {value!r:.60}, without {error}") from error
    except (TypeError, ValueError) as error:
        raise damaged(path, f"{key} is {value!r:.60}, {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _object(value: object) -> Config:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _objects(value: object) -> tuple[Config, ...]:
    return tuple(map(_object, _list(value)))


def _texts_by_name(value: object) -> Mapping[str, str]:
    return {key: _text(entry) for key, entry in _object(value).items()}


def _objects_by_name(value: object) -> Mapping[str, Config]:
    return {key: _object(entry) for key, entry in _object(value).items()}


def _section(value: object) -> Config:
    """Return a section of a configuration that is of some kind."""
    section = _object(value)
    _text(section["kind"])
    return section


def _objective(value: object) -> Objective:
    entries = _object(value)
    return Objective(metric=_text(entries["metric"]), mode=_one_of(entries["mode"], "min", "max"))


def _env(value: object) -> Literal["refuse", "warn"]:
    return _one_of(value, "refuse", "warn")


def _one_of(value: object, *choices: _Choice) -> _Choice:
    for choice in choices:
        if value == choice:
            return choice
    raise ValueError(f"not one of {', '.join(choices)}")


def _snapshot(value: object) -> SnapshotOptions:
    default, entries = SnapshotOptions(), _object(value)
    return SnapshotOptions(
        include=_texts(entries.get("include", [])),
        max_file_mb=_number(entries.get("max_file_mb", default.max_file_mb)),
        max_total_mb=_number(entries.get("max_total_mb", default.max_total_mb)),
    )


def _checkpoint(value: object) -> CheckpointOptions:
    entries, default = _object(value), CheckpointOptions()
    minutes, steps = entries.get("minutes"), entries.get("steps")
    return CheckpointOptions(
        minutes=None if minutes is None else _number(minutes),
        steps=None if steps is None else int(_number(steps)),
        keep=int(_number(entries.get("keep", default.keep))),
        asynchronous=bool(entries.get("asynchronous", default.asynchronous)),
        exact=_one_of(entries.get("exact", default.exact), "warn", "refuse", "off"),
    )


def _launch(value: object) -> LaunchOptions:
    entries = _object(value)
    brake = entries.get("brake")
    return LaunchOptions(
        canary=int(_number(entries.get("canary", 0))),
        brake=None if brake is None else int(_number(brake)),
        notify=_texts(entries.get("notify", [])),
    )


_READ: Mapping[str, Callable[[object], object]] = {
    "token": _text,
    "time": _number,
    "user": _text,
    "process": lambda value: ProcessId.from_json(_object(value)),
    "experiment": _text,
    "message": _text,
    "argv": _texts,
    "overrides": _texts,
    "choices": _texts_by_name,
    "sweep": _object,
    "objective": _objective,
    "cluster": _section,
    "tracking": _section,
    "env": _env,
    "snapshot": _snapshot,
    "launch": _launch,
    "tags": _texts,
    "after": _texts,
    "environment": _object,
    "python": _text,
    "worker": _texts,
    "code": _objects,
    "data": _objects_by_name,
    "checkpoint": _checkpoint,
}
"""How each key is read, in the order in which the keys are written."""


def _plain(value: object) -> object:
    """Return a value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value
