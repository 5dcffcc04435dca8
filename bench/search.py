"""The quality of an adaptive sweep's trials next to plain Optuna, with the same sampler and the same order of events.

`orch` derives a new study for each trial, from the records of the others, and seeds its sampler by the trial; plain
Optuna keeps one study in memory. Each seed is one search on both sides, with the same number of trials, 1 or 8 at a
time, and with durations that the seed decides. The result is the best value that a search finds; lower is better. A row
shows how much higher that of `orch` is, over all seeds: the median, its 95 % interval (bootstrapped), and as the budget
the difference that chance alone explains; `not ok` means that `orch` is worse. ORCH_BENCH_SEEDS sets the number of
seeds.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from statistics import median
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from bench.measure import Row, say, timed
from bench.sandbox import Sandbox
from orchestrator.models.mlp import MLP
from orchestrator.search.study import Known, ask
from orchestrator.spec import Objective
from orchestrator.spec.search import Distribution, Search, Template

_SEEDS = int(os.environ.get("ORCH_BENCH_SEEDS", "30"))
_AT_ONCE = (1, 8)
_KNOWN = (10, 100, 1_000)
_DRAWS = 2_000

Objectives = Callable[[Mapping[str, Any]], float]


def rows(box: Sandbox) -> list[Row]:  # noqa: ARG001 - this benchmark needs no files
    warnings.filterwarnings("ignore", category=FutureWarning)
    found = [_row(name, at_once) for name in _PROBLEMS for at_once in _AT_ONCE]
    return [*found, *map(_asking, _KNOWN)]


def _row(name: str, at_once: int) -> Row:
    say(f"search: {name}, {at_once} at a time, {_SEEDS} seeds")
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pairs = pool.map(partial(_searched, name, at_once), range(_SEEDS))
    ours, plain = [one for one, _ in pairs], [other for _, other in pairs]
    differences = [one - other for one, other in pairs]
    less, more = _interval(differences)
    told = f"ours {median(ours):.4g}, plain {median(plain):.4g}; difference, 95 %: {less:+.2g} .. {more:+.2g}"
    return Row(
        what=f"best of {_PROBLEMS[name][2]} trials, {name}, {at_once} at a time: {told}",
        measured=differences,
        unit="",
        limit=median(differences) - less,
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, bootstrapped."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(_DRAWS))
    return medians[int(0.025 * _DRAWS)], medians[int(0.975 * _DRAWS)]


def _asking(count: int) -> Row:
    """Return the time to suggest a trial when this many are known."""
    space, objective, _ = _PROBLEMS["Branin"]
    known: list[Known] = []
    draw = random.Random(0)
    for number in range(count):
        point = {key: draw.uniform(*each.arguments) for key, each in space.items()}
        known.append(Known(number=number, point=point, state=TrialState.COMPLETE, values=(objective(point),)))
    search = _search("Branin", 0)
    return Row(what=f"asking for a trial, {count:,} known", measured=[_ask_once(search, known) for _ in range(5)])


def _ask_once(search: Search, known: Sequence[Known]) -> float:
    return timed(lambda: ask(search, known, len(known)))


# --- one search, on both sides -------------------------------------------------------------------------------


def _searched(name: str, at_once: int, seed: int) -> tuple[float, float]:
    """Return the best value found by `orch` and by plain Optuna."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return min(_ours(name, at_once, seed)), min(_plain(name, at_once, seed))


def _ours(name: str, at_once: int, seed: int) -> Iterator[float]:
    _, objective, count = _PROBLEMS[name]
    search, known = _search(name, seed), dict[int, Known]()
    for begins, number in _course(count, at_once, seed):
        if begins:
            asked = ask(search, known.values(), number)
            known[number] = Known(number=number, point=asked.point, state=TrialState.RUNNING, attrs=asked.attrs)
        else:
            trial = known[number]
            value = objective(trial.point)
            known[number] = Known(
                number=number, point=trial.point, state=TrialState.COMPLETE, values=(value,), attrs=trial.attrs
            )
            yield value


def _plain(name: str, at_once: int, seed: int) -> Iterator[float]:
    space, objective, count = _PROBLEMS[name]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    trials: dict[int, optuna.Trial] = {}
    for begins, number in _course(count, at_once, seed):
        if begins:
            trial = trials[number] = study.ask()
            for key, each in space.items():
                low, high = each.arguments
                if each.kind == "int":
                    trial.suggest_int(key, low, high)
                else:
                    trial.suggest_float(key, low, high, log=each.kind == "loguniform")
        else:
            value = objective(trials[number].params)
            study.tell(trials[number], value)
            yield value


def _course(count: int, at_once: int, seed: int) -> Iterator[tuple[bool, int]]:
    """Yield the events of a search in order: whether a trial begins (True) or ends, and its number."""
    draw = random.Random(seed)
    running: list[tuple[float, int]] = []
    now, begun = 0.0, 0
    while begun < count or running:
        if begun < count and len(running) < at_once:
            heapq.heappush(running, (now + draw.uniform(0.5, 1.5), begun))
            yield True, begun
            begun += 1
        else:
            now, number = heapq.heappop(running)
            yield False, number


def _search(name: str, seed: int) -> Search:
    space = _PROBLEMS[name][0]
    template = Template(choices={}, keys=tuple(space), fills=(), config={})
    return Search(
        id=f"{name}{seed}",
        space=space,
        sampler={"_target_": "optuna.samplers.TPESampler"},
        pruner=None,
        seed=seed,
        objectives=(Objective(metric="value", mode="min"),),
        templates=(template,),
    )


# --- problems --------------------------------------------------------------------------------------------------


def _branin(point: Mapping[str, Any]) -> float:
    """Its least value is 0.397887 (Dixon and Szego, 1978)."""
    x, y = point["x"], point["y"]
    bend = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


_ALPHA = (1.0, 1.2, 3.0, 3.2)
_A = ((10, 3, 17, 3.5, 1.7, 8), (0.05, 10, 17, 0.1, 8, 14), (3, 3.5, 1.7, 10, 17, 8), (17, 8, 0.05, 10, 0.1, 14))
_P = (
    (1312, 1696, 5569, 124, 8283, 5886),
    (2329, 4135, 8307, 3736, 1004, 9991),
    (2348, 1451, 3522, 2883, 3047, 6650),
    (4047, 8828, 8732, 5743, 1091, 381),
)


def _hartmann6(point: Mapping[str, Any]) -> float:
    """Its least value is -3.32237 (Dixon and Szego, 1978)."""
    x = [point[f"x{i}"] for i in range(6)]
    return -sum(
        alpha * math.exp(-sum(a * (value - p / 1e4) ** 2 for a, p, value in zip(row, at, x, strict=True)))
        for alpha, row, at in zip(_ALPHA, _A, _P, strict=True)
    )


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def _digits_loss(point: Mapping[str, Any]) -> float:
    """Return the validation loss of an MLP after three epochs on the UCI digits."""
    images, labels = _digits()
    torch.manual_seed(0)
    net = MLP(width=point["width"], depth=point["depth"])
    optimizer = torch.optim.Adam(net.parameters(), lr=point["lr"], weight_decay=point["decay"])
    for _ in range(3):
        for at in range(0, 1_400, 64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[at : at + 64]), labels[at : at + 64]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(net(images[1_400:]), labels[1_400:]))
    return loss if math.isfinite(loss) else 1e3


_PROBLEMS: Mapping[str, tuple[Mapping[str, Distribution], Objectives, int]] = {
    "Branin": (
        {
            "x": Distribution(kind="uniform", arguments=(-5, 10)),
            "y": Distribution(kind="uniform", arguments=(0, 15)),
        }, _branin, 50,
    ),
    "Hartmann6": (
        {f"x{i}": Distribution(kind="uniform", arguments=(0, 1)) for i in range(6)}, _hartmann6, 80,
    ),
    "digits": (
        {
            "lr": Distribution(kind="loguniform", arguments=(1e-5, 1e-1)),
            "width": Distribution(kind="int", arguments=(8, 128)),
            "depth": Distribution(kind="int", arguments=(1, 3)),
            "decay": Distribution(kind="loguniform", arguments=(1e-6, 1e-1)),
        }, _digits_loss, 30,
    ),
}  # fmt: skip
"""The search problems: space, objective and number of trials."""
