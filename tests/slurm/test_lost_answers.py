"""Errors of Slurm's: which are final, what comes of those that pass, and of answers that are lost."""

from __future__ import annotations

import json
import time

import pytest
from cluster_contract import states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import bench_of, output

from orchestrator.errors import ClusterError
from orchestrator.launch.canary import hold, release
from orchestrator.records.launches import read_launch
from orchestrator.records.record import RunState
from orchestrator.slurm import commands, leases, submission
from orchestrator.slurm.cluster import jobs_of
from orchestrator.slurm.task import StartWorker
from orchestrator.testing.launches import scripted

LISTED = "sbatch: error: Batch job submission failed: "
FINAL = """
Invalid partition name specified
Invalid account or account/partition combination specified
Invalid qos specification
Invalid wckey specification
Invalid license specification
Invalid generic resource (gres) specification
Invalid Trackable RESource (TRES) specification
Invalid job array specification
Invalid feature specification
Invalid node name specified
Requested reservation is invalid
Access denied to requested reservation
Access/permission denied
Requested time limit is invalid (missing or exceeds some limit)
Node count specification invalid
Time limit specification required, but not provided
More processors requested than permitted
No partition specified or system default partition
User's group not permitted to use this partition
Requested nodes not in this partition
Requested operation not supported on this system
Pathname of a file, directory or other parameter too long
Container support is not configured
Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)
sbatch: unrecognized option '--gpus-per-nod=1'
sbatch: error: Invalid --mem specification
sbatch: error: cli_filter plugin terminated with error
sbatch: error: Batch script is empty!
sbatch: error: lua: Requesting memory by node is not supported. Use --mem-per-cpu.
"""
"""Of slurm_errno.c as Slurm 22.05 has it, of sbatch itself, and of a site's plugins."""
PASSING = """
Zero Bytes were transmitted or received
Socket timed out on send/recv operation
Connection reset by peer
Unable to contact slurm controller (connect failure)
Slurm backup controller in standby mode
Controller is in standby mode, try a different controller
Unexpected message received
Connection refused
Communication connection failure
Message receive failure
Invalid job credential
Job credential expired
Protocol authentication error
Invalid authentication credential
Munge encode failed: Invalid argument
Unable to create job record, try again
Requested operation is presently disabled
Unspecified error
System submissions disabled
Partition in DOWN state
Job dependency problem
Invalid user id
Required partition not available (inactive or drain)
I/O error writing script/environment to file
Slurm temporarily unable to accept job, sleeping and retrying
Unable to connect to database
what?
slurm_load_jobs error: Unable to contact slurm controller (connect failure)
Interrupted system call
"""


@pytest.mark.parametrize(
    "text",
    [
        *FINAL.split("\n")[1:-1],
        f"sbatch: INFO: the portal is temporarily slow\n{LISTED}Invalid partition name specified",
    ],
)
def test_what_names_an_invalid_or_forbidden_thing_is_final(text):
    assert commands.is_final(text)


@pytest.mark.parametrize(
    "text",
    [*PASSING.split("\n"), f"sbatch: note: more than 24 h are not permitted\n{LISTED}Zero Bytes were transmitted"],
)
def test_any_other_error_passes(text):
    assert not commands.is_final(text)


# --- one sbatch after the other -----------------------------------------------------------------------------

SBATCH = """
[[ " $* " = *" --test-only "* ]] && {{ cat > /dev/null; echo "$TESTED" >&2; [ -z "$TESTED" ]; exit $?; }}
calls="{folder}/sbatch.calls"; echo >> "$calls"
said="{folder}/said.$(wc -l < "$calls")"
[ -e "$said" ] || {{ echo "Submitted batch job 41"; exit 0; }}
cat "$said" >&2; exit 1
"""


@pytest.fixture
def sbatch(stand_in, tmp_path, monkeypatch):
    """What has sbatch fail with these texts, one after the other, and then submit job 41; `tested`: --test-only's."""
    stand_in("srun", "exit 1")
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def fail(*said, tested=""):
        stand_in("sbatch", SBATCH.format(folder=tmp_path))
        for number, text in enumerate(said, 1):
            (tmp_path / f"said.{number}").write_text(text)
        monkeypatch.setenv("TESTED", tested)

    return fail


def submitted(folder, *, seen=()):
    """Submit a script; `seen` is what one look after the other finds in Slurm. Returns the job, and sbatch's calls."""
    looks = iter([*seen, *[None] * 99])
    start = StartWorker(("-m", "x"), str(folder), 0)
    parameters = {"job_name": "x", "additional_parameters": {}}
    (folder / "submitit").mkdir(exist_ok=True)
    path = folder / "submitit" / "start.pkl"
    job = submission.submit(parameters, start, path, cluster="", find=lambda: next(looks), renew=lambda: None)
    return job, len((folder / "sbatch.calls").read_text())


@pytest.mark.parametrize("said", ["Unable to contact slurm controller (connect failure)", "Unspecified error"])
def test_what_was_not_taken_is_submitted_again(said, sbatch, tmp_path):
    sbatch(LISTED + said, LISTED + said)
    assert submitted(tmp_path) == ("41", 3)


@pytest.mark.parametrize(
    ("said", "tested", "kind"),
    [
        ("Slurm backup controller in standby mode", LISTED + "Slurm backup controller in standby mode", ClusterError),
        ("Unspecified error", "", ClusterError),
        ("Unspecified error", "allocation failure: Another one", ClusterError),
        ("Unspecified error", "allocation failure: Unspecified error", submission.RefusedError),
    ],
)
def test_what_does_not_pass_waits_unless_test_only_says_the_same(said, tested, kind, sbatch, tmp_path):
    sbatch(*[LISTED + said] * 9, tested=tested)
    with pytest.raises(ClusterError, match=said) as error:
        submitted(tmp_path)
    assert type(error.value) is kind


@pytest.mark.parametrize("said", ["Invalid qos specification", "Access/permission denied"])
def test_what_is_final_is_tried_once(said, sbatch, tmp_path):
    sbatch(LISTED + said)
    with pytest.raises(submission.RefusedError, match=said):
        submitted(tmp_path)
    assert (tmp_path / "sbatch.calls").read_text() == "\n"


LOST = ["Socket timed out on send/recv operation", "Zero Bytes were transmitted or received", "Message receive failure"]


@pytest.mark.parametrize("said", [*(LISTED + said for said in LOST), "", "Connection reset by peer"])
def test_after_a_lost_answer_it_is_looked_for_and_not_submitted_again(said, sbatch, tmp_path):
    sbatch(said)
    assert submitted(tmp_path, seen=[None, None, "40"]) == ("40", 1)
    (tmp_path / "sbatch.calls").unlink()
    with pytest.raises(submission.LostAnswerError, match="Slurm's answer was lost"):
        submitted(tmp_path)
    assert (tmp_path / "sbatch.calls").read_text() == "\n"


# --- on a real Slurm ----------------------------------------------------------------------------------------

LATE = f"""
for word in "$@"; do [ "$word" = --test-only ] && exec {{real}} "$@"; done
(while [ ! -e "$0.may" ]; do sleep 0.1; done; {{real}} "$@") > /dev/null 2>&1 &
echo '{LISTED}Socket timed out on send/recv operation' >&2; exit 1
"""
NEVER = LATE.replace("(while", "#")
FAILS_ONCE = """
[ -e "$0.failed" ] || { touch "$0.failed"; echo "x: error: Zero Bytes were transmitted or received" >&2; exit 1; }
exec {real} "$@"
"""


def arrays_of(launch):
    """Return the arrays that Slurm has with a launch's token, by id."""
    token = read_launch(launch).token
    lines = output("squeue", "--noheader", "--states=all", "--format=%F %k").splitlines()
    return {line.split()[0] for line in lines if f"orch:{token}:" in line}


@pytest.mark.slurm
@pytest.mark.parametrize("name", ["squeue", "scontrol", "sbatch"])
def test_a_command_that_fails_once_before_a_launch_is_asked_again(name, slurm, stand_in, tmp_path):
    stand_in(name, FAILS_ONCE)
    bench, run = bench_of(tmp_path), scripted()
    assert bench.launch([run]).waiting is None
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]


@pytest.mark.slurm
def test_an_array_that_is_taken_late_is_found_and_not_submitted_again(slurm, stand_in, gate, tmp_path):
    program = stand_in("sbatch", LATE)
    bench, runs = bench_of(tmp_path), [scripted(gate.script(), seed=seed) for seed in range(2)]
    launched = bench.launch(runs)
    assert launched.waiting.tasks == 2
    assert "answer was lost (Batch job submission failed: Socket timed out" in launched.waiting.reason
    assert states(bench, runs) == [RunState.WAITING] * 2
    assert bench.cluster.submit_pending(launched.paths) == 0
    program.with_name("sbatch.may").touch()
    wait_for(lambda: states(bench, runs) == [RunState.RUNNING] * 2, "the late array to be seen")
    assert bench.launch(runs).paths is None
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 2
    assert len(arrays_of(launched.paths)) == 1
    assert len(bench.played()) == 2


def wait_no_longer(launch):
    """Have the last lease end long ago."""
    end = launch.leases()[-1].end
    end.write_text(json.dumps({**json.loads(end.read_text()), "time": time.time() - 3600}))


@pytest.mark.slurm
def test_what_was_never_taken_is_submitted_after_twice_the_message_timeout(slurm, stand_in, tmp_path):
    stand_in("sbatch", NEVER)
    bench, run = bench_of(tmp_path), scripted()
    launch = bench.launch([run]).paths
    assert leases.last(launch).end.lost_seconds == 20.0
    stand_in("sbatch", 'exec {real} "$@"')
    assert bench.cluster.submit_pending(launch) == 0
    assert states(bench, [run]) == [RunState.WAITING]
    wait_no_longer(launch)
    assert bench.cluster.submit_pending(launch) == 1
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    assert arrays_of(launch) == {jobs_of(launch)[0].id}


def tasks_of(job):
    """Return the states and reasons of an array's tasks that have not ended, by index."""
    lines = output("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K %T %r").splitlines()
    found = (line.split(maxsplit=2) for line in lines)
    return {int(index): (state, reason) for index, state, reason in found}


@pytest.fixture
def late_launch(slurm, stand_in, tmp_path):
    """What launches runs that fill node n0, one at a time; Slurm takes their array once it is let to."""
    program = stand_in("sbatch", LATE)
    bench = bench_of(tmp_path, nodelist="n0")

    def launch(*scripts):
        runs = [scripted(script, seed=seed, cpus_per_node=4) for seed, script in enumerate(scripts)]
        launched = bench.launch(runs)
        assert launched.waiting.tasks == len(runs)
        stand_in("sbatch", 'exec {real} "$@"')
        return bench, launched.paths, runs, program.with_name("sbatch.may").touch

    return launch


@pytest.mark.slurm
def test_a_late_second_array_runs_nothing_again_and_every_verb_acts_on_both(late_launch, gate):
    bench, launch, runs, take_late = late_launch(gate.script(), gate.script())
    wait_no_longer(launch)
    assert bench.cluster.submit_pending(launch) == 2
    (first,) = jobs_of(launch)
    wait_for(bench.played, "one to begin")
    begun = next(index for index, run in enumerate(runs) if run.id == bench.played()[0].run)
    take_late()
    wait_for(lambda: len(arrays_of(launch)) == 2, "the late array")
    (second,) = arrays_of(launch) - {first.id}
    assert states(bench, runs)[begun] is RunState.RUNNING
    assert bench.records()[runs[begun].id].job == first.name(begun)
    assert bench.launch(runs).paths is None
    wait_for(lambda: begun not in tasks_of(second), "the late task of a claimed run to be cancelled")
    assert list(tasks_of(second)) == [1 - begun]
    bench.cluster.hold(launch, [1 - begun])
    for job in (first.id, second):
        wait_for(lambda job=job: "JobHeld" in tasks_of(job)[1 - begun][1], "both to be held")
    bench.cluster.release(launch, [1 - begun])
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 2
    wait_for(lambda: not output("squeue", "--noheader"), "all jobs to end")
    assert len(bench.played()) == 2
    assert [len(record.attempts) for record in bench.records().values()] == [1, 1]


@pytest.mark.slurm
def test_a_late_array_of_held_runs_is_held(late_launch):
    bench, launch, runs, take_late = late_launch({})
    blocker = output("sbatch", "--parsable", "--exclusive", "--nodelist=n0", "--output=/dev/null", "--wrap=sleep 600")
    wait_for(lambda: output("squeue", "--noheader", f"--jobs={blocker}", "--format=%T") == "RUNNING", "n0 to be full")
    hold(launch, [0])
    take_late()
    wait_for(lambda: len(arrays_of(launch)) == 1, "the late array")
    (late,) = arrays_of(launch)
    assert bench.launch(runs).paths is None
    wait_for(lambda: "JobHeld" in tasks_of(late)[0][1], "it to be held")
    output("scancel", blocker)
    release(launch, [0])
    bench.cluster.release(launch, [0])
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE]
