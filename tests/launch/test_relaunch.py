"""Runs whose jobs could not be requeued: the next command launches them, with the attempts that they have left."""

from __future__ import annotations

import time

import pytest
from launches import planned_run

from orchestrator.cluster import JobState, Observation
from orchestrator.launch.relaunch import relaunch
from orchestrator.layout import ExperimentPaths
from orchestrator.records.attempts import EventWriter, claim_attempt
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim
from orchestrator.spec import Attempts, Pack, Resources
from orchestrator.system.processes import ProcessId

SOON = Attempts(backoff_minutes=0.0)


class Ended:
    """A cluster on which every job has ended, for a reason."""

    def __init__(self, reason, ago=5.0):
        self.reason, self.ago, self.submitted = reason, ago, []

    def observe(self, _launch, tasks):
        ended = time.time() - self.ago
        seen = Observation(state=JobState.ENDED, reason=self.reason, job="7_0", node="n0", unattended=True, ended=ended)
        return dict.fromkeys(tasks, seen)

    def submit(self, launch):
        self.submitted.append(launch.number)


def interrupted(folder, resources, *, step=4):
    """Publish a launch of one run, whose first attempt has ended silently."""
    paths = ExperimentPaths(folder / "runs" / "x")
    run = planned_run(resources=resources, run="aaaabbbbcccc")
    header = LaunchHeader(experiment="x", cluster={"kind": "slurm"})
    launch = publish_launch(paths, 1, header, [{"seed": 0}], [run])
    launch.complete.touch()
    attempt = paths.run(run.run).attempt(1)
    claim_attempt(
        attempt,
        Claim(
            launch=1,
            index=0,
            code="c0de",
            generation=1,
            history=1,
            process=ProcessId.current(),
            time=time.time() - 60,
            job="7_0",
        ),
    )
    EventWriter(attempt.events).write("progress", progress={"step": step}, metrics={})
    return paths


def test_a_killed_run_is_launched_once_more_with_what_it_has_left(tmp_path):
    need = Resources(mem_gb_per_node=8, attempts=SOON, pack=Pack(runs=2))
    paths, cluster = interrupted(tmp_path, need), Ended("out of memory: killed by Slurm")
    assert relaunch(read_experiment(paths, {"slurm": cluster}), {"slurm": cluster}) == 1
    assert cluster.submitted == [2]
    state = read_experiment(paths, {"slurm": cluster})
    (record,) = state.records.values()
    planned = record.planned
    assert (planned.launch, planned.attempt, planned.history, planned.action) == (2, 2, 1, "resume")
    assert planned.resources == Resources(mem_gb_per_node=12, attempts=Attempts(of=2, backoff_minutes=0.0))
    assert "start again by themselves" in state.launches[-1].header.message
    assert state.launches[-1].header.token != state.launches[0].header.token
    assert relaunch(state, {"slurm": cluster}) == 0, "what it has not begun yet is left alone"


@pytest.mark.parametrize(
    ("resources", "cluster"),
    [
        (Resources(), Ended("killed by signal 9")),
        (Resources(attempts=SOON), Ended("cancelled in Slurm")),
        (Resources(attempts=SOON), Ended("killed by signal 9", ago=8 * 86_400)),
        (Resources(attempts=Attempts()), Ended("killed by signal 9", ago=5)),
        (Resources(attempts=Attempts(of=1)), Ended("killed by signal 9")),
    ],
    ids=["an older launch", "cancelled", "long ago", "a minute is not over", "one attempt"],
)
def test_other_runs_are_left_to_the_user(resources, cluster, tmp_path):
    state = read_experiment(interrupted(tmp_path, resources), {"slurm": cluster})
    assert relaunch(state, {"slurm": cluster}) == 0
    assert cluster.submitted == []
