"""Slurm as sites have it: hidden partitions, variables that filter answers, several clusters, no accounting."""

from __future__ import annotations

import time

import pytest
from cluster_contract import states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import bench_of, output

from orchestrator.cluster import JobState
from orchestrator.errors import ClusterError, RequestError
from orchestrator.records.record import RunState
from orchestrator.slurm import commands, expressions, queue
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Resources
from orchestrator.testing.launches import scripted

NOBODY = 65534


# --- what is asked is answered whole ----------------------------------------------------------------------


@pytest.fixture
def hidden_partition(slurm):
    """A partition of their owners: ordinary users are shown neither it nor the jobs in it, not even their own."""
    output("scontrol", "create", "PartitionName=owner", "Nodes=ALL", "Hidden=YES")
    yield "owner"
    wait_for(lambda: not output("squeue", "--all", "--noheader", "--partition=owner"), "its jobs to end")
    output("scontrol", "delete", "PartitionName=owner")


@pytest.mark.slurm
def test_an_ordinary_user_sees_jobs_in_a_hidden_partition(hidden_partition, slurm, stand_in, gate, tmp_path):
    slurm.slurm_conf.parents[2].chmod(0o711)
    for name in ("squeue", "scontrol"):
        stand_in(name, f'exec setpriv --reuid={NOBODY} --clear-groups {{real}} "$@"')
    bench, run = bench_of(tmp_path, partition=hidden_partition), scripted(gate.script())
    with pytest.raises(RequestError, match=r"cluster.partition=debug or preemptible or urgent$"):  # not the hidden one
        bench_of(tmp_path, partition="limited").launch([scripted(hours=4)])
    bench.launch([run])
    assert output("squeue", "--noheader") == ""
    wait_for(bench.played, "the run to begin")
    assert states(bench, [run]) == [RunState.RUNNING]
    assert bench.launch([run]).paths is None
    (job,) = output("squeue", "--all", "--noheader", "--format=%A").split()
    assert queue.job_runs(job)
    gate.open()
    wait_for_end(bench)
    assert len(bench.played()) == 1


FILTERS = {
    "SQUEUE_PARTITION": "limited",
    "SQUEUE_STATES": "CD",
    "SQUEUE_FORMAT": "%j",
    "SQUEUE_FORMAT2": "JobID",
    "SQUEUE_USERS": "nobody",
    "SQUEUE_NAMES": "another",
    "SQUEUE_ACCOUNT": "another",
    "SQUEUE_QOS": "another",
    "SQUEUE_SORT": "-i",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_BITSTR_LEN": "1",
    "SACCT_FORMAT": "State",
    "SCANCEL_STATE": "PENDING",
    "SCANCEL_PARTITION": "limited",
    "SCANCEL_NAME": "another",
    "SLURM_JOB_ID": "1",
}


@pytest.mark.slurm
def test_no_variable_of_the_user_filters_what_is_asked(slurm, gate, tmp_path, monkeypatch):
    bench = bench_of(tmp_path)
    runs = [scripted(gate.script(), seed=seed) for seed in range(2)]
    for name, value in FILTERS.items():
        monkeypatch.setenv(name, value)
    bench.launch(runs)
    wait_for(lambda: len(bench.played()) == 2, "both to begin")
    assert states(bench, runs) == [RunState.RUNNING] * 2
    assert bench.launch(runs).paths is None
    bench.cancel(runs[0])
    wait_for(lambda: states(bench, runs)[0] is RunState.CANCELLED, "one to be cancelled")
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs)[1] is RunState.DONE
    for name in FILTERS:
        monkeypatch.delenv(name)


def test_only_what_chooses_the_installation_reaches_slurms_commands():
    environ = {
        **FILTERS,
        "SBATCH_PARTITION": "debug",
        "SLURM_CLUSTERS": "other",
        "SINFO_FORMAT": "%P",
        "SCONTROL_ALL": "0",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JWT": "ey",
        "PATH": "/usr/bin",
        "SLURMISH": "kept",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "ey", "PATH": "/usr/bin", "SLURMISH": "kept"}
    assert commands.environment("", environ) == kept
    assert commands.environment("gamma", environ) == {**kept, "SLURM_CLUSTERS": "gamma"}
    assert commands.environment("gamma", {**environ, "SLURM_CLUSTER_NAME": "gamma"}) == kept


# --- a site's own words -----------------------------------------------------------------------------------

POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)
LUA = f"""
echo 'sbatch: error:     --> error: requested timelimit exceeds max of 24 hours' >&2
echo 'sbatch: error:  ' >&2
echo "sbatch: error: {POLICY}" >&2
exit 1"""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LUA, f": --> error: requested timelimit exceeds max of 24 hours; {POLICY}\n"),
        (f'echo "sbatch: error: {POLICY}" >&2; exit 1', f": {POLICY}\n"),  # of a user who has no job at all
    ],
)
def test_a_site_that_refuses_for_good_is_not_waited_for(text, why, slurm, stand_in, tmp_path):
    stand_in("sbatch", text)
    bench = bench_of(tmp_path)
    with pytest.raises(RequestError) as error:
        bench.launch([scripted()])
    assert why in str(error.value)
    assert not bench.paths.path.exists()


# --- accounting of another kind ---------------------------------------------------------------------------

OTHER_PLUGIN = "You are not running a supported accounting_storage plugin\nOnly 'accounting_storage/slurmdbd' is."


@pytest.mark.parametrize(
    "text",
    [
        f'echo "{OTHER_PLUGIN}" >&2; exit 1',
        "echo 'Slurm accounting storage is disabled' >&2; exit 1",
        "echo 'bash: sacct: command not found' >&2; exit 127",
    ],
)
def test_without_accounting_a_job_that_squeue_forgot_is_forgotten(text, stand_in):
    stand_in("squeue", "exit 0")
    stand_in("sacct", text)
    assert queue.tasks(queue.QueueScope(NOBODY), ["7_0"]) == {}


def test_where_there_is_no_sacct_a_job_that_squeue_forgot_is_forgotten(stand_in, tmp_path):
    stand_in("squeue", "exit 0")
    with pytest.MonkeyPatch.context() as patch:  # undone before `stand_in` is: each restores what it found
        patch.setenv("PATH", str(tmp_path / "site's programs"))
        assert queue.tasks(queue.QueueScope(NOBODY), ["7_0"]) == {}


# --- each witness answers for itself ------------------------------------------------------------------------

SQUEUE = "exec echo '7_0|{}|None|n1|Unknown|x.0001|orch:t:0'"
SACCT = "exec echo '7_0|{}|None|n1|1795392067'"
NOTHING, FAILS, HANGS = "exit 0", "echo 'x: error: Connection refused' >&2; exit 1", "exec sleep 30"
LATE = "no answer within 3.0 s"
RUNNING, ENDED, UNKNOWN = JobState.RUNNING, JobState.ENDED, JobState.UNKNOWN


@pytest.mark.parametrize(
    ("squeue", "sacct", "told"),
    [
        (SQUEUE.format("RUNNING"), FAILS, (RUNNING, "")),
        (SQUEUE.format("RUNNING"), SACCT.format("FAILED"), (RUNNING, "")),
        (SQUEUE.format("COMPLETED"), SACCT.format("RUNNING"), (ENDED, "ended without a final event")),
        (NOTHING, SACCT.format("TIMEOUT"), (ENDED, "time limit")),
        (NOTHING, SACCT.format("RUNNING"), None),  # it is hours behind
        (NOTHING, SACCT.format("PENDING"), None),
        (NOTHING, NOTHING, None),
        (NOTHING, SACCT.format("ODD"), (UNKNOWN, "Slurm says 'ODD', which is not known here")),
        (NOTHING, FAILS, (UNKNOWN, "squeue no longer knows its job, and sacct does not answer: Connection refused")),
        (FAILS, SACCT.format("OUT_OF_MEMORY"), (ENDED, "out of memory: killed by Slurm")),
        (FAILS, SACCT.format("PREEMPTED"), (UNKNOWN, "squeue does not answer: Connection refused (sacct says ended)")),
        (FAILS, SACCT.format("RUNNING"), (UNKNOWN, "squeue does not answer: Connection refused (sacct says running)")),
        (FAILS, NOTHING, (UNKNOWN, "squeue does not answer: Connection refused")),
        (FAILS, FAILS, (UNKNOWN, "squeue does not answer: Connection refused (nor does sacct: Connection refused)")),
        (HANGS, SACCT.format("FAILED"), (ENDED, "failed in Slurm")),
        (HANGS, HANGS, (UNKNOWN, f"squeue does not answer: {LATE} (nor does sacct: {LATE})")),
    ],
)
def test_each_witness_answers_for_itself(squeue, sacct, told, stand_in, monkeypatch):
    stand_in("squeue", squeue)
    stand_in("sacct", sacct)
    monkeypatch.setattr(queue, "_ANSWER_SECONDS", 3.0)
    seen = queue.tasks(queue.QueueScope(NOBODY), ["7_0"]).get("7_0")
    found = (seen.observation.state, seen.observation.reason) if seen else None
    assert found == told


def test_a_silent_squeue_says_how_old_its_last_answer_is(stand_in, monkeypatch):
    stand_in("squeue", SQUEUE.format("RUNNING"))
    stand_in("sacct", NOTHING)
    scope = queue.QueueScope(NOBODY)
    assert queue.tasks(scope, ["7_0"])["7_0"].observation.state is RUNNING
    stand_in("squeue", FAILS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    told = "squeue does not answer: Connection refused (2 h ago it said running)"
    assert queue.tasks(scope, ["7_0"])["7_0"].observation.reason == told


def test_a_hanging_squeue_is_waited_for_once_by_looks_at_many_launches(stand_in, monkeypatch):
    program = stand_in("squeue", 'echo >> "$0.calls"; exec sleep 30')
    stand_in("sacct", NOTHING)
    monkeypatch.setattr(queue, "_ANSWER_SECONDS", 3.0)
    for job in range(5):
        assert queue.tasks(queue.QueueScope(NOBODY), [f"{job}_0"])[f"{job}_0"].observation.state is UNKNOWN
        with pytest.raises(ClusterError, match=r"no answer within 3\.0 s"):
            queue.queue(queue.QueueScope(NOBODY))
    assert (program.parent / "squeue.calls").read_text() == "\n"


# --- words of expressions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a100", ["a100"]),
        ("a100&(80gb|40gb)", ["a100", "80gb", "40gb"]),
        ("[rack1|rack2]", ["rack1", "rack2"]),
        ("[rack1*2&rack2*4]", ["rack1", "rack2"]),
        ("!old", ["old"]),
        ("gpu*2 & ib", ["gpu", "ib"]),
        ("a,b", ["a", "b"]),
        ("", []),
    ],
)
def test_features_of_a_constraint(text, words):
    assert expressions.features(text) == words


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("ba[0-1,4]", ["ba0", "ba1", "ba4"]),
        ("n1,ba[08-10],n2", ["n1", "ba08", "ba09", "ba10", "n2"]),
        ("r[1-2]n[0,3]x", ["r1n0x", "r1n3x", "r2n0x", "r2n3x"]),
        ("/home/me/nodes", []),
        ("n[1-", ["n1-"]),
        ("", []),
    ],
)
def test_nodes_of_a_list(text, names):
    assert list(expressions.nodes(text)) == names


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"constraint": "a100&(80g|40gb)"}, "knows no constraint '80g'", "'cluster.constraint=\"a100&(80gb|40gb)\"'"),
        ({"constraint": "[a100*2&h100*1]"}, "knows no constraint 'h100'", "'cluster.constraint=\"[a100*2&a100*1]\"'"),
        ({"nodelist": "ba[0-1,4]"}, "knows no nodelist 'ba4'", "correct cluster.nodelist"),
        ({"exclude": "ba0,bb1"}, "knows no exclude 'bb1'", "'cluster.exclude=\"ba0,ba1\"'"),
    ],
)
def test_the_word_of_an_expression_that_slurm_does_not_know_is_named(options, what, fix, stand_in, tmp_path):
    node = "NodeName=ba{} CPUTot=4 AvailableFeatures=a100,80gb,40gb RealMemory=1000 State=IDLE Partitions=gpu"
    shown = {"node": "\n".join(map(node.format, range(2))), "partition": "PartitionName=gpu Default=YES"}
    cases = " ".join(f"*' show {what}') echo '{text}';;" for what, text in shown.items())
    said = "Invalid feature specification" if "constraint" in options else "Invalid node name specified"
    stand_in("scontrol", f'case "$*" in {cases} esac')
    stand_in("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    stand_in("srun", "exit 1")
    with pytest.raises(RequestError) as error:
        SlurmCluster(SlurmOptions.parse(options)).check({Resources()}, tmp_path / "x", {})
    assert what in str(error.value)
    assert fix in str(error.value).partition("\nfix: ")[2]
