"""Packs on a real Slurm: several runs share a job, and each still has its own record, log and end."""

from __future__ import annotations

import pytest
from cluster_contract import states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output, processes_of

from orchestrator import api
from orchestrator.cluster import Change
from orchestrator.errors import RequestError
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.project import Project
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Pack
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm


@pytest.fixture
def bench(slurm, tmp_path):
    cluster = SlurmCluster(SlurmOptions())
    return Bench(paths=ExperimentPaths(tmp_path / "a run's folder" / "x"), kind="slurm", cluster=cluster)


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


def urgent_job():
    """Submit a job that needs all nodes, and so preempts."""
    output("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


def played_by(bench, runs):
    return [sum(played.run == run.id for played in bench.played()) for run in runs]


def begun(bench, *runs):
    names = [path.name for path in (bench.paths.path / "played").glob("*")]
    return all(any(name.startswith(f"{run.id}.") for name in names) for run in runs)


def test_a_preempted_pack_goes_on_with_what_had_not_ended(slurm, tmp_path, gate):
    cluster = SlurmCluster(SlurmOptions(partition="preemptible"))
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=cluster)
    done, failed = packed(1, at_once=2)[0], scripted({"ends": ["raise"]}, seed=1, pack=Pack(runs=6, at_once=2))
    waits = [scripted(gate.script(steps=2), seed=seed, pack=Pack(runs=6, at_once=2)) for seed in range(2, 6)]
    bench.launch([done, failed, *waits])
    wait_for(lambda: begun(bench, *waits[:2]), "two runs to wait, and two for their turn")
    assert states(bench, [done, failed, *waits]) == [
        RunState.DONE,
        RunState.FAILED,
        RunState.RUNNING,
        RunState.RUNNING,
        RunState.QUEUED,
        RunState.QUEUED,
    ]
    bench.cancel(waits[0])
    bench.cancel(waits[3])
    wait_for(lambda: begun(bench, waits[2]), "the next run to begin in the place of the cancelled one")
    assert states(bench, waits) == [RunState.CANCELLED, RunState.RUNNING, RunState.RUNNING, RunState.CANCELLED]
    urgent_job()
    wait_for(lambda: states(bench, waits[1:3]) == [RunState.QUEUED] * 2, "the pack to be preempted")
    gate.open()
    wait_for_end(bench)
    records = bench.records()
    assert states(bench, waits) == [RunState.CANCELLED, RunState.DONE, RunState.DONE, RunState.CANCELLED]
    assert played_by(bench, [done, failed, *waits]) == [1, 1, 1, 2, 2, 0]
    for run in waits[1:3]:
        first, second = records[run.id].attempts
        assert (first.claim.job, first.claim.restart, second.claim.restart) == (second.claim.job, 0, 1)
        assert first.reason.startswith("preempted")
    assert len(records[failed.id].attempts) == 1


def test_a_run_that_has_had_its_time_makes_way_for_the_others(slurm, tmp_path, gate):
    cluster = SlurmCluster(SlurmOptions(signal_seconds=1))
    options = {"max_requeues": 0}  # it would go on once the job has been started again
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=cluster, options=options)
    pack = Pack(runs=2)
    long = scripted(gate.script(), seed=0, pack=pack, hours=1e-3)
    short = scripted(seed=1, pack=pack, hours=1e-3)
    bench.launch([long, short])
    wait_for_end(bench)
    wait_for(lambda: not output("squeue", "--noheader"), "the job to end")
    assert states(bench, [long, short]) == [RunState.INTERRUPTED, RunState.DONE]
    assert bench.records()[long.id].reason.startswith("time limit of 0.001 h")


def test_runs_go_on_when_the_process_that_forks_them_is_killed(bench, gate, slurm):
    runs = [scripted(gate.script(), seed=seed, pack=Pack(runs=6, at_once=2)) for seed in range(4)]
    bench.launch(runs)
    wait_for(lambda: begun(bench, *runs[:2]), "two runs to begin")
    (parent,) = {each.parent() for each in workers(slurm) if _is_forked(each)}
    parent.kill()
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 4
    assert played_by(bench, runs) == [1] * 4


def workers(cluster):
    """Return the processes of packs: their supervisors, warm parents, and what these have forked."""
    return [each for each in processes_of(cluster) if "orchestrator.worker" in " ".join(each.cmdline())]


def _is_forked(process):
    parent = process.parent()
    return "orchestrator.worker.warm" in process.cmdline() and parent.cmdline() == process.cmdline()


def test_a_job_ends_when_all_that_it_has_left_is_cancelled(bench, gate):
    first, *others = packed(1), *packed(4, gate.script())[1:]
    runs = [*first, *others]
    bench.launch(runs)
    wait_for(lambda: begun(bench, *runs[:2]), "the second run to begin")
    for run in others:
        bench.cancel(run)
    wait_for(lambda: not output("squeue", "--noheader"), "the job to end")
    assert states(bench, runs) == [RunState.DONE] + [RunState.CANCELLED] * 3
    assert played_by(bench, runs) == [1, 1, 0, 0]


def test_a_job_that_is_cancelled_in_slurm_leaves_no_run_behind(bench, gate, slurm):
    runs = packed(3, gate.script())
    bench.launch(runs)
    wait_for(lambda: begun(bench, runs[0]), "the first run to begin")
    output("scancel", "--user=root")
    wait_for(lambda: not output("squeue", "--noheader"), "the job to end")
    wait_for(lambda: not workers(slurm), "all its processes to be gone")
    assert states(bench, runs) == [RunState.INTERRUPTED] * 3
    gate.open()
    bench.launch(runs)
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 3


# --- care for the queue -------------------------------------------------------------------------------------


def project_of(bench):
    return Project.around(RunsRoot(bench.paths.path.parent))


def test_the_canary_has_a_job_of_its_own_and_the_others_share_theirs_once_it_is_done(bench, gate):
    runs = packed(8, gate.script(), runs=3)
    launched = bench.launch(runs, canary=2)
    assert launched.waiting.tasks == 6
    wait_for(lambda: begun(bench, runs[0]), "the canary to begin")
    assert {bench.records()[run.id].reason for run in runs[2:]} == {"the canary comes first: 0 of 2 runs are done"}
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 8
    assert played_by(bench, runs) == [1] * 8
    jobs = [bench.records()[run.id].last.claim.job for run in runs]
    assert [jobs.index(job) for job in jobs] == [0, 0, 2, 2, 2, 5, 5, 5]


def test_a_pack_that_waits_is_held_as_a_whole_released_and_changed(bench, gate):
    crowd = [scripted(gate.script(), seed=seed, cpus_per_node=4) for seed in range(100, 104)]  # one fills a node
    runs = packed(4, runs=2)
    bench.launch(crowd)
    wait_for(lambda: len(bench.played()) == 4, "all nodes to be at work")
    bench.launch([*crowd, *runs])
    project, name = project_of(bench), bench.paths.name
    first, second = runs[:2], runs[2:]

    def records_of(chosen):
        return [bench.records()[run.id] for run in chosen]

    with pytest.raises(RequestError, match="hours of packed runs"):
        api.change(project, name, records_of(first), Change(hours=0.5))
    api.hold(project, name, records_of(first))
    api.change(project, name, records_of(runs), Change(options={"partition": "limited"}))
    wait_for(lambda: all("JobHeld" in record.reason for record in records_of(first)), "Slurm's word on the hold")
    assert not any("JobHeld" in record.reason for record in records_of(second))
    assert output("squeue", "--noheader", "--array", "--state=PENDING", "--format=%P").split() == ["limited"] * 2
    gate.open()
    wait_for(lambda: states(bench, second) == [RunState.DONE] * 2, "the other pack to end")
    assert states(bench, first) == [RunState.QUEUED] * 2
    api.release(project, name, records_of(first))
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 4
    assert played_by(bench, runs) == [1] * 4


def test_a_run_that_is_held_in_a_running_pack_begins_once_it_is_released(bench, gate):
    runs = packed(3, gate.script())
    bench.launch(runs)
    wait_for(lambda: begun(bench, runs[0]), "the first run to begin")
    project, name = project_of(bench), bench.paths.name
    api.hold(project, name, [bench.records()[runs[1].id]])
    gate.open()
    wait_for(lambda: states(bench, [runs[0], runs[2]]) == [RunState.DONE] * 2, "the others to end")
    assert states(bench, [runs[1]]) == [RunState.QUEUED]
    assert played_by(bench, runs) == [1, 0, 1]
    api.release(project, name, [bench.records()[runs[1].id]])
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 3
