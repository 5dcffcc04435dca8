"""The program that measures checkpoints: builds models without memory for their parameters, and counts.

It gets a JSON object on standard input, and writes one answer per section, as JSON, to standard output.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


def _answer(section: dict[str, object]) -> dict[str, object]:
    import torch

    from orchestrator.config.build import build

    try:
        with torch.device("meta"):
            model = build(section)
        weights = _bytes(model.state_dict().values())
    except BaseException as error:  # noqa: BLE001 - foreign code, sys.exit() included
        said = (str(error).splitlines() or [""])[0]
        return {"problem": f"{section.get('_target_')} cannot be built on its own: {type(error).__name__}: {said}"}
    return {"bytes": weights + _state_bytes(model)}


def _state_bytes(model: Any) -> int:
    """Return the size of what the optimizers keep after one step; Adam's two moments where they cannot be made."""
    import torch

    try:
        with torch.device("meta"):
            optimizers = list(_optimizers(model.configure_optimizers()))
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            for optimizer in optimizers:
                optimizer.step()
        return _bytes(value for one in optimizers for state in one.state.values() for value in state.values())
    except BaseException:  # noqa: BLE001 - they may ask the trainer, who is not there
        return 2 * _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


def _optimizers(configured: Any) -> Iterator[Any]:
    """Yield the optimizers in what Lightning lets `configure_optimizers` return."""
    if isinstance(configured, dict):
        yield configured["optimizer"]
    elif isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        yield from configured[0]
    elif isinstance(configured, list | tuple):
        for one in configured:
            yield from _optimizers(one)
    elif configured is not None:
        yield configured


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if hasattr(value, "element_size"))


def _main(answers: TextIO) -> None:
    question = json.load(sys.stdin)
    path = question["search_path"]
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    answers.write(json.dumps([_answer(section) for section in question["sections"]]))
    answers.flush()
    os._exit(0)  # whatever threads and exit handlers the imports left behind are none of our business


if __name__ == "__main__":
    gc.disable()  # imports make no garbage: without it they take four fifths of the time
    # What the imports print goes to standard error: standard output carries the answers alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _main(answers)
