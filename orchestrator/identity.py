"""The identity of a run: its identity document and the id hashed from it (docs/explanation/how-it-works.md).

The document contains the resolved model, datamodule and trainer with their arguments, the data digest, the seed,
the task, the world size, and the origin of any weights that the run starts from. It does not contain partition,
time, memory, cluster, tracking, devices, loggers or paths.
The golden ids in tests/test_identity.py never change: ids are stored in users' folders and MLflow stores.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import ConfigError
from orchestrator.spec import STARTS, Config, RunId

ID_VERSION = 1

# A built-in key that equals its default is left out, so that a key that is added later changes no id.
_DEFAULTS: Mapping[str, object] = {"seed": 0, "task": "fit", "world_size": 1, "data": {}, "data_digest": None}

TRAINER_DEFAULTS: Mapping[str, object] = {
    "_target_": "pytorch_lightning.Trainer",
    "max_epochs": 10,
    "max_steps": -1,
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "check_val_every_n_epoch": 1,
    "val_check_interval": None,
    "log_every_n_steps": 50,
    "deterministic": None,
    "callbacks": {},
}

# How a run is shown or where it runs, not what it computes.
TRAINER_FLAGS = frozenset({"enable_progress_bar", "enable_model_summary"})
TRAINER_NOT_IDENTITY = TRAINER_FLAGS | {"logger"}


def _where(value: object, wrong: Callable[[object], bool], at: str = "") -> str:
    """Return the key of the first leaf that is wrong; empty text if none is."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        named = ((f"{at}.{key}" if at else str(key), entry) for key, entry in items)
        return next(filter(None, (_where(entry, wrong, key) for key, entry in named)), "")
    return at if wrong(value) else ""


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_no_text(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value)


def canonical(document: Mapping[str, object]) -> str:
    """Return canonical JSON: sorted keys, `repr` of floats, no NaN or infinity.

    Raises ConfigError for a value that JSON cannot represent.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        if "\\ud" in text:  # half of a surrogate pair, unless the other half follows
            json.dumps(document, ensure_ascii=False).encode()
        return text
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{_where(document, _is_no_text)} contains half of a character",
            why=f"{error.reason} (\\u{ord(error.object[error.start]):04x})",
            fix="write the whole character",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{_where(document, _is_no_number)} is NaN or an infinity",
            why="a run's identity must be comparable, and NaN differs from itself",
            fix="use a large finite number, or null where that is allowed",
        ) from error
    except TypeError as error:
        raise ConfigError(
            "the configuration contains a value that is not plain",
            why=str(error),
            fix="use null, true, false, numbers, strings, lists, and mappings with strings as keys",
        ) from error


def document(config: Config, *, data_digest: str | None, world_size: int) -> dict[str, object]:
    """Return the identity document of a resolved config with the keys model, data, trainer, seed, task."""
    data = {key: value for key, value in config["data"].items() if key != "version"}
    trainer = {
        key: value
        for key, value in config["trainer"].items()
        if key not in TRAINER_NOT_IDENTITY and not _is_default(TRAINER_DEFAULTS, key, value)
    }
    entries = {
        "model": config["model"],
        "data": data if data.get("_target_") else {},
        "trainer": trainer,
        "seed": config["seed"],
        "task": config["task"],
        "data_digest": data_digest,
        "world_size": world_size,
    }
    entries |= {key: _weights(config[key]) for key in STARTS if config.get(key)}
    kept = {key: value for key, value in entries.items() if not _is_default(_DEFAULTS, key, value)}
    return {"id_version": ID_VERSION, **kept}


def _weights(start: Mapping[str, object]) -> dict[str, object]:
    """Return what identifies the weights that a run starts from, without their path or how they are loaded."""
    return {key: value for key, value in start.items() if key not in {"experiment", "path", "weights_only"}}


def run_id(identity: Mapping[str, object]) -> RunId:
    """Return the run id: the first 12 hexadecimal digits of the canonical document's SHA-256."""
    return RunId(hashlib.sha256(canonical(identity).encode()).hexdigest()[:12])


def search_id(template_documents: Sequence[Mapping[str, object]], definition: Mapping[str, object]) -> str:
    """Return the id of an adaptive sweep, hashed from everything that its trials depend on except their number.

    `template_documents` are the identity documents of its templates, each with its choices and fills.
    """
    return run_id({"id_version": ID_VERSION, "templates": template_documents, "search": definition})


def trial_id(search: str, number: int) -> RunId:
    """Return the run id of a search's trial, which is known before its values are chosen."""
    return run_id({"id_version": ID_VERSION, "search": search, "trial": number})


def _is_default(defaults: Mapping[str, object], key: str, value: object) -> bool:
    return key in defaults and type(value) is type(defaults[key]) and value == defaults[key]
