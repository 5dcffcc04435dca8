"""Runs that are killed anywhere, and end with the same bits as one that nobody disturbs.

The users' code is in tests/support/exact_cases.py; each attempt is a fork of a process that has torch loaded.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import campaigns
import exact_cases
import pytest
import torch

from orchestrator import tracking
from orchestrator.layout import AttemptPaths, RunPaths
from orchestrator.records.attempts import read_attempt
from orchestrator.records.checkpoints import latest
from orchestrator.records.record import counted

FEW = ("augmentation, persistent workers", "plateau by step", "averages", "metrics, validated within", "three ranks")
"""They stand for all where there is little time."""
PROGRAM = Path(__file__).parent.parent / "support" / "exact_attempts.py"
MOST_ATTEMPTS = 12


class Attempts:
    """Forks attempts of runs, and tells what came of them."""

    def __init__(self) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def attempt(self, case: str, folder: Path, kill: Any = None, *, restores: bool = True, options: Any = None) -> Any:
        number = len(list(folder.glob("a[0-9]*"))) + 1
        asked = {"case": case, "folder": str(folder), "kill": kill, "restores": restores, "options": options or {}}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({**asked, "attempt": f"a{number:03d}"}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(
        self, case: str, folder: Path, kills: list[Any], *, restores: bool = True, options: Any = None
    ) -> dict[str, int]:
        """Run a case to its end, with kills in the first attempts; returns the places that the last one has passed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number in range(MOST_ATTEMPTS):
            kill = kills[number] if number < len(kills) else None
            answer = self.attempt(case, folder, kill, restores=restores, options=options)
            if answer["status"] == 0:
                return answer["passed"]
            assert kill is not None, f"{case}: {(folder / 'log.0').read_text()[-3000:]}"
            assert answer["status"] in {-signal.SIGKILL, -signal.SIGTERM, 143}, (folder / "log.0").read_text()[-3000:]
        raise AssertionError(f"{case}: not done after {MOST_ATTEMPTS} attempts")

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def attempts():
    made = Attempts()
    yield made
    made.close()


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that must be the same: weights, optimizer, schedulers, the history, what is reported at the end."""
    found = latest([AttemptPaths(path) for path in folder.glob("a[0-9]*")])
    assert found
    saved = torch.load(found, weights_only=False)
    done = json.loads((folder / "done.json").read_text())
    state = {key: digest(saved[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    return {**state, "history": history(folder), **done}


def digest(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {str(key): digest(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [digest(one) for one in value]
    return repr(value)


def history(folder: Path) -> Counter[tuple[str, int, str]]:
    """Return each value that was logged, and how often: of each attempt, up to where the next one has resumed."""
    run = RunPaths(folder)
    attempts = [read_attempt(run, AttemptPaths(path)) for path in sorted(folder.glob("a[0-9]*"))]
    ends = counted(attempts)
    return Counter(
        (name, record.step, float(value).hex())
        for attempt in attempts
        for record, _ in tracking.read(run.attempt(attempt.number).metrics, end=ends.get(attempt.number))
        if isinstance(record, tracking.Metrics)
        for name, value in record.values.items()
    )


def kills_of(rng: random.Random, passed: dict[str, int], number: int) -> list[Any]:
    """Choose kills: each kind of place is as likely as any other, and of it each time."""
    chosen = []
    for _ in range(number):
        place = rng.choice(sorted(passed))
        stop = rng.random() < 0.25
        chosen.append((place, rng.randint(1, passed[place]), int(signal.SIGTERM if stop else signal.SIGKILL)))
    return chosen


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = [key for key in one if one[key] != other[key]]
    if "history" in found:
        apart = [*(one["history"] - other["history"]), *(other["history"] - one["history"])]
        apart = sorted(apart, key=lambda each: (each[1], each[0]))
        found += [f"{name} at {step}" for name, step, _ in apart[:6]]
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.campaign("exact", sample=case in FEW)) for case in exact_cases.CASES]
)
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(case, attempts, tmp_path):
    passed = attempts.run(case, tmp_path / "undisturbed", [])
    expected = outcome(tmp_path / "undisturbed")
    rng = random.Random(f"{campaigns.SEED} {case}")
    for _ in range(campaigns.amount(1, 3)):
        kills = kills_of(rng, passed, campaigns.amount(2, 3))
        options = {"steps": rng.choice([None, 1, 3]), "keep": rng.choice([1, 2]), "asynchronous": rng.random() < 0.7}
        attempts.run(case, tmp_path / "killed", kills, options=options)
        assert differences(outcome(tmp_path / "killed"), expected) == [], f"{case} killed at {kills} with {options}"


def test_without_its_state_a_resumed_run_is_another_one(attempts, tmp_path):
    """What the test above compares would differ."""
    attempts.run("metrics, validated within", tmp_path / "undisturbed", [])
    kills = [("batch's end", 20, int(signal.SIGKILL))]
    attempts.run("metrics, validated within", tmp_path / "killed", kills, restores=False)
    found = differences(outcome(tmp_path / "killed"), outcome(tmp_path / "undisturbed"))
    assert {"state_dict", "history"} <= set(found)


def test_workers_change_no_result(attempts, tmp_path):
    found = {}
    for case in ("augmentation", "augmentation, persistent workers"):
        attempts.run(case, tmp_path / case, [])
        found[case] = outcome(tmp_path / case)
    one, other = found.values()
    assert differences(one, other) == []
