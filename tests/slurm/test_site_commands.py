"""Slurm as sites have it: hidden partitions, variables that filter answers, several clusters, no accounting."""

from __future__ import annotations

import pytest
from cluster_contract import states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import bench_of, output

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
    assert queue.tasks(queue.Whose(NOBODY), ["7_0"]) == {}


def test_where_there_is_no_sacct_a_job_that_squeue_forgot_is_forgotten(stand_in, tmp_path):
    stand_in("squeue", "exit 0")
    with pytest.MonkeyPatch.context() as patch:  # undone before `stand_in` is: each restores what it found
        patch.setenv("PATH", str(tmp_path / "site's programs"))
        assert queue.tasks(queue.Whose(NOBODY), ["7_0"]) == {}


def test_accounting_that_does_not_answer_for_now_tells_nothing(stand_in):
    stand_in("squeue", "exit 0")
    stand_in("sacct", "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1")
    with pytest.raises(ClusterError, match="Connection refused"):
        queue.tasks(queue.Whose(NOBODY), ["7_0"])


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
