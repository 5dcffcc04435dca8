"""Runs of equal points are told apart by what else differs."""

from __future__ import annotations

import pytest
from launches import planned_run

from orchestrator.config.credentials import described
from orchestrator.layout import RunsRoot
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.report import columns
from orchestrator.report.points import points
from orchestrator.report.ranking import ranked
from orchestrator.report.summary import states
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
        planned = planned_run(
            run=run,
            data=data,
            point=point,
            resources=Resources(nodes=nodes),
            changes=[[key.split("__"), value] for key, value in changes.items()],
        )
        header = LaunchHeader(cluster={"kind": "inline"}, choices={"model": "mlp"})
        publish_launch(self._experiment, self._launches, header, [CONFIG], [planned])
        return run

    def read(self):
        return read_experiment(self._experiment, {})

    def points(self):
        state = self.read()
        return {run: described(point) for run, point in points(state, list(state.records.values())).items()}


@pytest.fixture
def state(tmp_path):
    return Book(tmp_path / "it's runs")


def test_points_that_differ_stay_as_they_were_swept(state):
    runs = [state.launch({"seed": 1}), state.launch({"seed": 2}, trainer__max_epochs=9)]
    assert state.points() == {runs[0]: "seed=1", runs[1]: "seed=2"}


def test_equal_points_show_the_keys_in_which_their_runs_differ(state):
    short, long = state.launch({"seed": 1}), state.launch({"seed": 1}, trainer__max_epochs=9)
    other = state.launch({"seed": 2})
    assert state.points() == {
        short: "seed=1 trainer.max_epochs=3",
        long: "seed=1 trainer.max_epochs=9",
        other: "seed=2",
    }


def test_runs_without_a_sweep_are_told_apart_too_and_by_three_keys_at_most(state):
    first = state.launch({})
    second = state.launch({}, model__lr=0.2, model__width=4, trainer__max_epochs=1, seed=5)
    assert state.points() == {
        first: "model.lr=0.1 model.width=8 trainer.max_epochs=3",
        second: "model.lr=0.2 model.width=4 trainer.max_epochs=1",
    }


def test_runs_that_differ_in_their_data_or_their_ranks_show_those(state):
    runs = [state.launch({}, data="a" * 64), state.launch({}, data="b" * 64)]
    assert state.points() == {runs[0]: "data.digest=aaaaaaaa", runs[1]: "data.digest=bbbbbbbb"}
    wide = state.launch({"seed": 7}), state.launch({"seed": 7}, nodes=2)
    assert [state.points()[run] for run in wide] == ["seed=7 resources.nodes=1", "seed=7 resources.nodes=2"]


def test_compare_has_a_column_for_what_tells_equal_points_apart(state):
    short, long = state.launch({"seed": 1}), state.launch({"seed": 1}, trainer__max_epochs=9)
    found = state.read()
    made = ranked(found, list(found.records.values()), None, [])
    header, rows = columns.table(made)
    assert header == ["run", "seed", "trainer.max_epochs", "state", "time", ""]
    assert [row[:3] for row in rows] == [[short[:8], 1, 3], [long[:8], 1, 9]]


def test_the_states_of_an_experiment_in_words(state):
    state.launch({})
    state.launch({})
    assert states(state.read()) == "2 runs: 2 queued"  # by this process, which has yet to submit them
