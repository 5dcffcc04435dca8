"""Runs of equal points are told apart by what else differs."""

from __future__ import annotations

import pytest

from orchestrator import ledger
from orchestrator.cli import comparison, render
from orchestrator.cli.points import points
from orchestrator.layout import RunsRoot
from orchestrator.spec import Resources

CONFIG = {"model": {"lr": 0.1, "width": 8}, "trainer": {"max_epochs": 3, "callbacks": {}}, "seed": 0}


class Book:
    """An experiment's launches of one run each, which has not been submitted."""

    def __init__(self, folder):
        self._experiment = RunsRoot(folder).experiment("x")
        self._launches = 0

    def launch(self, point, *, data=None, nodes=1, **changes):
        """Launch a run at a point, whose configuration differs from CONFIG in some leaves; returns its id."""
        self._launches += 1
        run = f"{self._launches:012x}"
        line = {
            "index": 0, "run": run, "action": "submit", "reason": "new", "attempt": 1, "generation": 1, "history": 1,
            "code": "c0de", "data": data, "base": 0, "point": point, "resources": Resources(nodes=nodes).to_json(),
            "set": [[key.split("__"), value] for key, value in changes.items()],
        }  # fmt: skip
        header = {"cluster": {"kind": "inline"}, "choices": {"model": "mlp"}, "objective": None, "message": ""}
        ledger.publish(self._experiment, self._launches, header, [CONFIG], [line])
        return run

    def read(self):
        return ledger.read(self._experiment, {})

    def points(self):
        book = self.read()
        return {run: render.told(point) for run, point in points(book, list(book.records.values())).items()}


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "it's runs")


def test_points_that_differ_stay_as_they_were_swept(book):
    runs = [book.launch({"seed": 1}), book.launch({"seed": 2}, trainer__max_epochs=9)]
    assert book.points() == {runs[0]: "seed=1", runs[1]: "seed=2"}


def test_equal_points_show_the_keys_in_which_their_runs_differ(book):
    short, long = book.launch({"seed": 1}), book.launch({"seed": 1}, trainer__max_epochs=9)
    other = book.launch({"seed": 2})
    assert book.points() == {
        short: "seed=1 trainer.max_epochs=3", long: "seed=1 trainer.max_epochs=9", other: "seed=2",
    }  # fmt: skip


def test_runs_without_a_sweep_are_told_apart_too_and_by_three_keys_at_most(book):
    first = book.launch({})
    second = book.launch({}, model__lr=0.2, model__width=4, trainer__max_epochs=1, seed=5)
    assert book.points() == {
        first: "model.lr=0.1 model.width=8 trainer.max_epochs=3",
        second: "model.lr=0.2 model.width=4 trainer.max_epochs=1",
    }


def test_runs_that_differ_in_their_data_or_their_ranks_show_those(book):
    runs = [book.launch({}, data="a" * 64), book.launch({}, data="b" * 64)]
    assert book.points() == {runs[0]: "data.digest=aaaaaaaa", runs[1]: "data.digest=bbbbbbbb"}
    wide = book.launch({"seed": 7}), book.launch({"seed": 7}, nodes=2)
    assert [book.points()[run] for run in wide] == ["seed=7 resources.nodes=1", "seed=7 resources.nodes=2"]


def test_compare_has_a_column_for_what_tells_equal_points_apart(book):
    short, long = book.launch({"seed": 1}), book.launch({"seed": 1}, trainer__max_epochs=9)
    found = book.read()
    made = comparison.compare(found, list(found.records.values()), None, [])
    header, rows = render.comparison_table(made)
    assert header == ["run", "seed", "trainer.max_epochs", "state", "time", ""]
    assert [row[:3] for row in rows] == [[short[:8], 1, 3], [long[:8], 1, 9]]


def test_the_states_of_an_experiment_in_words(book):
    book.launch({})
    book.launch({})
    assert render.states(book.read()) == "2 runs: 2 queued"  # by this process, which has yet to submit them
