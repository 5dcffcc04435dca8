"""Packs on a real Slurm: several runs share a job, and each still has its own record, log and end."""

from __future__ import annotations

import pytest
from cluster_contract import Gate, states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator.layout import ExperimentPaths
from orchestrator.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Pack
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm


@pytest.fixture
def bench(slurm, tmp_path):
    cluster = SlurmCluster(SlurmOptions())
    return Bench(paths=ExperimentPaths(tmp_path / "a run's folder" / "x"), kind="slurm", cluster=cluster)


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "open")
    yield gate
    gate.open()


def packed(count, script=None, *, runs=6, at_once=1, **more):
    return [scripted(script, seed=seed, pack=Pack(runs=runs, at_once=at_once), **more) for seed in range(count)]


def test_runs_share_jobs_and_each_ends_for_itself(bench):
    good, bad = packed(7), scripted({"ends": ["raise"]}, seed=7, pack=Pack(runs=6))
    launched = bench.launch([*good[:3], bad, *good[3:]])
    wait_for_end(bench)
    wait_for(lambda: not output("squeue", "--noheader"), "all jobs to end")
    assert states(bench, [*good, bad]) == [RunState.DONE] * 7 + [RunState.FAILED]
    assert [job.indices for job in jobs_of(launched.paths)] == [(0, 6)]
    assert len({record.attempts[0].claim.job for record in bench.records().values()}) == 2
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in [*good, bad])
