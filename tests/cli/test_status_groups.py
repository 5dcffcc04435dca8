"""Status of many runs: counted by state and by what was swept, and only the first of them listed."""

from __future__ import annotations

import pytest
from swept import swept

from orchestrator.cli import main

MANY = [
    {"model": model, "model.lr": lr / 1000, "data.kind": f"k{lr % 20}", "seed": seed}
    for model in ("mlp", "convnet")
    for lr in range(1, 21)
    for seed in (0, 1)
]


def state(point) -> str:
    if point["model"] == "convnet" and point["model.lr"] > 0.018:
        return "failed"
    return "interrupted" if point["model.lr"] == 0.001 and point["model"] == "mlp" else "done"


def reach(point) -> float:
    return point["model.lr"] + (0.5 if point["model"] == "mlp" else 0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("many") / "runs"
    swept(root, MANY, reach=reach, state=state, curves=False)
    return root


def status(capsys, runs, *words: str) -> list[list[str]]:
    assert main(["status", "sweep", "--runs", str(runs), *words]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def table(lines: list[list[str]]) -> list[list[str]]:
    start = next(number for number, line in enumerate(lines) if line[:1] == ["KEY"])
    return lines[start + 1 : lines.index([], start)]


def test_each_value_of_a_swept_key_has_its_runs_by_state_and_its_best(runs, capsys):
    found = table(status(capsys, runs))
    assert found[0] == ["model", "mlp", "40", "38", "2", "0.52"]  # done, interrupted
    assert found[1] == ["convnet", "40", "36", "4", "0.018"]  # done, failed


def test_many_numbers_are_ranges_and_of_many_names_the_most_frequent_are_shown(runs, capsys):
    found = table(status(capsys, runs))
    start = next(number for number, line in enumerate(found) if line[0] == "model.lr")
    assert found[start][1:5] == ["0.001", "to", "0.003", "12"]
    assert [line[2] for line in found[start + 1 : start + 6]] == ["0.006", "0.01", "0.013", "0.016", "0.02"]
    names = found[start + 6 :]
    assert names[0][0] == "data.kind"
    assert names[-1][:3] == ["14", "others", "56"]


def test_a_seed_only_tells_repetitions_apart(runs, capsys):
    assert "seed" not in [line[0] for line in table(status(capsys, runs))]


def test_a_few_runs_are_listed_what_fails_is_told_and_all_lists_all(runs, capsys):
    lines = status(capsys, runs)
    listed = [line for line in lines if any(word.startswith("model=") for word in line)]
    assert len(listed) == 10
    assert ["...", "and", "70", "more:", "orch", "status", "sweep", "--all"] in lines
    assert any(line[:3] == ["4", "x", "KeyError"] for line in lines)
    every = status(capsys, runs, "--all")
    assert len([line for line in every if any(word.startswith("model=") for word in line)]) == len(MANY)
    assert not any(line[:1] == ["KEY"] for line in every)


def test_some_runs_are_listed_as_ever(runs, capsys):
    lines = status(capsys, runs, "model=mlp")
    assert len([line for line in lines if "model=mlp" in line]) == 40
