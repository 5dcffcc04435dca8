"""`python -m orchestrator.registrar`: a checkpoint -> a model in MLflow's format, with the run's own code.

A separate process, because it imports the user's code, which otherwise only runs do. Reads a JSON object from
standard input: `model` (the config), `checkpoint`, `example` (or null), `code` (the folders that the run imports from),
`requirements`, the `folder` to write to, and `mlflow`: the ids to write into it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.build import build
from orchestrator.config.secrets import Secrets, redact_argument

_log = logging.getLogger(__name__)

_KEPT_ARGUMENTS = ("_hparams", "_hparams_initial")


def main(job: dict[str, Any]) -> None:
    """Build the model, load its weights, and save both, with its signature and input example."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import, which would report usage
    import mlflow.pytorch
    from mlflow.models import Model

    secrets = Secrets.of(job["model"])
    model = _loaded(job["model"], job["checkpoint"])
    _redact_arguments(model, secrets)
    inputs, signature = _example(model, job["example"])
    mlflow.pytorch.save_model(
        model,
        job["folder"],
        mlflow_model=Model(**job["mlflow"]),
        signature=signature,
        input_example=inputs,
        code_paths=_own_code(job["model"], job["code"]) or None,
        pip_requirements=[one for one in job["requirements"] if _is_needed(one)],
        serialization_format="pickle",  # works for any model, which is loaded with the code stored beside it
    )
    _refuse_secrets(Path(job["folder"]), secrets)


def _redact_arguments(model: object, secrets: Secrets) -> None:
    """Remove the secrets from the arguments that Lightning stores for a model and its parts."""
    if not secrets:
        return
    for part in model.modules():  # type: ignore[attr-defined]  # it is a torch module
        for name in _KEPT_ARGUMENTS:
            for key, value in (kept := vars(part).get(name) or {}).items():
                kept[key] = redact_argument(secrets.redact, key, value)


def _refuse_secrets(folder: Path, secrets: Secrets) -> None:
    """Raise if the saved model contains a secret, which every user of the registry could read."""
    held = [path for path in sorted(folder.rglob("*")) if path.is_file() and secrets.found_in(path.read_bytes())]
    if held:
        shutil.rmtree(folder, ignore_errors=True)
        named = ", ".join(str(path.relative_to(folder)) for path in held)
        raise SystemExit(
            f"the model contains the value of a secret ({named}): its code must not keep one in an attribute,"
            " but read it where it is used"
        )


def _loaded(config: Any, checkpoint: str) -> object:
    import torch

    model = build(Secrets.of(config).placed(config))
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)  # written by a run of this project
    if set(model.state_dict()) != set(saved["state_dict"]):
        _set_up(model)
    for hook, arguments in (("configure_model", ()), ("on_load_checkpoint", (saved,))):
        getattr(model, hook, lambda *_: None)(*arguments)
    model.load_state_dict(saved["state_dict"], strict=getattr(model, "strict_loading", True))
    return model.cpu().eval()


def _is_needed(requirement: str) -> bool:
    """Return whether loading the model needs a package: `lightning` only if the model's code imports it."""
    return requirement.partition("==")[0] != "lightning" or "lightning" in sys.modules


def _set_up(model: Any) -> None:
    """Call a model's `setup`, in which it may create layers; the checkpoint was saved after `setup('fit')`."""
    try:
        getattr(model, "setup", lambda _: None)("fit")
    except Exception as error:  # noqa: BLE001 - the user's code may need a trainer; missing layers fail later
        _log.warning("setup('fit') cannot be called without a trainer: %r", error)


def _example(model: object, path: str | None) -> tuple[object, object]:
    """Return the input example as arrays, and the model's signature inferred from it; None if the model rejects it."""
    import torch
    from mlflow.models import infer_signature

    if path is None:
        return None, None
    inputs = torch.load(path, map_location="cpu", weights_only=True)
    try:
        with torch.no_grad():
            outputs = _call(model, inputs)
        arrays, answers = _arrays(inputs), _arrays(outputs)
        return arrays, infer_signature(arrays, answers)
    except Exception as error:  # noqa: BLE001 - the user's model may raise anything; it is then registered without
        _log.warning("no signature: the model cannot be called with its validation batch: %r", error)
        return None, None


def _call(model: Any, inputs: object) -> object:
    if not isinstance(inputs, dict):
        return model(inputs)
    try:
        return model(inputs)
    except TypeError:  # it takes its inputs by name
        return model(**inputs)


def _arrays(value: Any) -> object:
    if isinstance(value, dict):
        return {name: _arrays(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return {f"output_{number}": _arrays(part) for number, part in enumerate(value)}
    return value.detach().cpu().numpy()


def _own_code(config: object, folders: Sequence[str]) -> list[str]:
    """Return the project's packages that contain the model's targets: they are stored with the model."""
    names = sorted({target.partition(".")[0] for target in _targets(config)} - {"orchestrator"})
    found = (Path(folder) / part for name in names for folder in folders for part in (name, f"{name}.py"))
    return [str(path) for path in found if path.exists()]


def _targets(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.nice(10)
    main(json.load(sys.stdin))
    sys.stderr.flush()
    os._exit(0)  # no library's exit handler may change the status, or hang
