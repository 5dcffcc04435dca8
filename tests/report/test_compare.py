"""Comparing runs: ranks, groups over seeds with their standard errors, chosen metrics, and the page."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import time

import pytest
from launches import planned_run

from orchestrator.cli import main
from orchestrator.layout import RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim
from orchestrator.report.comparison import Estimate
from orchestrator.spec import Objective
from orchestrator.system.processes import ProcessId
from orchestrator.tracking import SpoolWriter


@pytest.fixture
def runs(tmp_path):
    return RunsRoot(tmp_path / "it's runs")


def ended(runs, points, *, objective=("val/acc", "max"), state=lambda _: "done", curve=()):
    """Make an experiment of runs that have ended with `value(i)`, without running anything."""
    experiment = runs.experiment("e")
    header = LaunchHeader(
        experiment="e",
        objective=Objective(metric=objective[0], mode=objective[1]),
        cluster={"kind": "inline"},
        python="python",
    )
    planned = [planned_run(index=i, run=f"{i:012x}", point=point) for i, (point, _) in enumerate(points)]
    published = publish_launch(experiment, 1, header, [{"model": {}}], planned)
    published.complete.touch()
    for i, (_, metrics) in enumerate(points):
        attempt = experiment.run(f"{i:012x}").attempt(1)
        claim = Claim(
            launch=1, index=i, code="c0de", generation=1, history=1, process=ProcessId.current(), time=time.time()
        )
        claim_attempt(attempt, claim)
        with SpoolWriter(attempt.metrics) as spool:
            for step, value in enumerate(curve):
                spool.metrics({"val/acc": value + i, "weird<b>": float(step)}, step=step)
        word = {"metrics": metrics} if state(i) == "done" else {"signature": "E", "message": "", "traceback": ""}
        EventWriter(attempt.events).write(state(i), **word)


def compared(runs, capsys, *words):
    assert main(["compare", "e", *words, "--runs", str(runs.path)]) == 0
    return capsys.readouterr().out


def test_runs_that_differ_in_their_seed_only_are_one_row_with_mean_and_standard_error(runs, capsys):
    values = {1e-3: [0.91, 0.93, 0.95], 1e-2: [0.80, 0.82, 0.99]}
    ended(runs, [({"lr": lr, "seed": s}, {"val/acc": v}) for lr, vs in values.items() for s, v in enumerate(vs)])
    first, second = json.loads(compared(runs, capsys, "--json"))
    for row, lr in ((first, 1e-3), (second, 1e-2)):
        assert row["lr"] == lr
        assert row["val/acc"]["mean"] == pytest.approx(statistics.fmean(values[lr]))
        assert row["val/acc"]["error"] == pytest.approx(statistics.stdev(values[lr]) / math.sqrt(3))
        assert row["val/acc"]["runs"] == len(row["runs"]) == 3
    head, best, other = compared(runs, capsys).splitlines()
    assert head.split() == ["runs", "lr", "val/acc", "state"]
    assert best.split() == ["3", "0.001", "0.930", "±", "0.012", "3", "done", "best"]
    assert other.split()[:3] == ["3", "0.01", "0.870"]
    assert len(compared(runs, capsys, "--each").splitlines()) == 7
    [row, _] = csv.DictReader(io.StringIO(compared(runs, capsys, "--csv")))
    assert float(row["val/acc"]) == first["val/acc"]["mean"]
    assert float(row["val/acc ±"]) == first["val/acc"]["error"]


def test_of_a_group_only_what_is_done_counts_and_the_rest_is_told(runs, capsys):
    ended(runs, [({"lr": 1, "seed": s}, {"val/acc": 0.5}) for s in range(3)], state=lambda i: "failed" if i else "done")
    line = compared(runs, capsys).splitlines()[1]
    assert line.split() == ["1", "of", "3", "1", "0.5", "1", "done,", "2", "failed", "best"]


def test_without_a_second_seed_each_run_has_a_row(runs, capsys):
    ended(runs, [({"lr": lr, "seed": 0}, {"val/acc": lr}) for lr in (1, 2)])
    assert [line.split()[0] for line in compared(runs, capsys).splitlines()] == ["run", "00000000", "00000000"]
    assert compared(runs, capsys).splitlines()[1].endswith("best")


def test_chosen_metrics_are_shown_and_the_first_ranks(runs, capsys):
    ended(runs, [({"lr": lr}, {"val/acc": lr, "val/loss": -lr, "x": 1.0, "y": 2.0}) for lr in (1.0, 2.0)])
    rows = json.loads(compared(runs, capsys, "--metric", "val/loss", "--metric", "x", "--json"))
    assert [list(row) for row in rows] == [["run", "lr", "val/loss", "x", "state", "time"]] * 2
    assert [row["lr"] for row in rows] == [2.0, 1.0]
    assert main(["compare", "e", "--metric", "val/acx", "--runs", str(runs.path)]) == 2
    assert "did you mean 'val/acc'?" in capsys.readouterr().err


def test_of_many_runs_the_best_are_shown(runs, capsys):
    ended(runs, [({"lr": lr}, {"val/acc": lr}) for lr in range(60)])
    assert len(compared(runs, capsys).splitlines()) == 51
    assert len(compared(runs, capsys, "--all").splitlines()) == 61
    assert len(compared(runs, capsys, "--csv").splitlines()) == 61


@pytest.mark.parametrize(
    ("values", "shown"),
    [([1.0], "1"), ([0.5, 0.5], "0.5"), ([1.0, 2.0], "1.50 ± 0.50"), ([1e6, 2e6], "1500000 ± 500000")],
)
def test_an_estimate_has_as_many_digits_as_its_error(values, shown):
    assert str(Estimate.of(values)) == shown


def test_averaged_over_other_keys_than_the_seed(runs, capsys):
    points = [({"lr": lr, "fold": fold, "seed": 0}, {"val/acc": lr + fold}) for lr in (1, 2) for fold in (0, 1)]
    ended(runs, points)
    rows = json.loads(compared(runs, capsys, "--over", "fold", "--json"))
    assert [(row["lr"], row["seed"], row["val/acc"]["mean"]) for row in rows] == [(2, 0, 2.5), (1, 0, 1.5)]
    assert main(["compare", "e", "--over", "fould", "--runs", str(runs.path)]) == 2
    assert "did you mean 'fold'" in capsys.readouterr().err


def test_what_is_no_number_has_no_mean_and_is_never_the_best(runs, capsys):
    values = {1: [math.nan, 0.5], 2: [0.1, 0.2], 3: [math.inf, -math.inf]}
    ended(runs, [({"lr": lr, "seed": s}, {"val/acc": v}) for lr, vs in values.items() for s, v in enumerate(vs)])
    best, *others = [line.split() for line in compared(runs, capsys).splitlines()[1:]]
    assert (best[1], best[-1]) == ("2", "best")
    assert [other[2] for other in others] == ["nan", "nan"]


def test_a_page_that_cannot_be_written_is_an_error(runs, capsys, tmp_path):
    ended(runs, [({"lr": 1}, {"val/acc": 1.0})])
    assert main(["compare", "e", "--html", str(tmp_path / "no" / "page.html"), "--runs", str(runs.path)]) == 2
    assert "cannot write" in capsys.readouterr().err
