"""What Slurm prints is read whole: each of its states has a meaning, and nothing it may print is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import JobState, Scratch
from orchestrator.slurm import commands, limits, preflight
from orchestrator.slurm.limits import Limits, Partition
from orchestrator.slurm.states import observation, parse, printed_reason
from orchestrator.spec import Resources

MEMORY, NODE = "out of memory: killed by Slurm", "its node failed"
PENDING, RUNNING, ENDED = JobState.PENDING, JobState.RUNNING, JobState.ENDED
WORDS = {
    # squeue(1), sacct(1): JOB STATE CODES, all of them. A real Slurm says most of them in tests/slurm. Of these only
    # the word is here: BOOT_FAIL (no node here boots: it is one that Slurm powers up or reboots for the job, and that
    # does not come), LAUNCH_FAILED, RECONFIG_FAIL, REVOKED (federations), STAGE_OUT (burst buffers) and OUT_OF_MEMORY
    # (told by a cgroup's counter; without cgroups Slurm says FAILED, and prints why: see below).
    "BOOT_FAIL": (ENDED, "its node did not boot"), "CANCELLED": (ENDED, "cancelled in Slurm"),
    "COMPLETED": (ENDED, "ended without a final event"),
    "DEADLINE": (ENDED, "deadline"), "FAILED": (ENDED, "failed in Slurm"),
    "NODE_FAIL": (ENDED, "its node failed"), "OUT_OF_MEMORY": (ENDED, "out of memory: killed by Slurm"),
    "PREEMPTED": (ENDED, "preempted"), "REVOKED": (ENDED, "revoked"), "TIMEOUT": (ENDED, "time limit"),
    "LAUNCH_FAILED": (ENDED, "launch failed"), "RECONFIG_FAIL": (ENDED, "reconfig fail"),
    "PENDING": (PENDING, "Why"), "CONFIGURING": (PENDING, "Why"), "REQUEUED": (PENDING, "Why"),
    "REQUEUE_FED": (PENDING, "Why"), "RESV_DEL_HOLD": (PENDING, "Why"), "REQUEUE_HOLD": (PENDING, "requeue_hold"),
    "SPECIAL_EXIT": (PENDING, "special_exit"), "RUNNING": (RUNNING, "Why"), "RESIZING": (RUNNING, "Why"),
    "SIGNALING": (RUNNING, "Why"), "STAGE_OUT": (RUNNING, "Why"), "COMPLETING": (RUNNING, "completing"),
    "STOPPED": (RUNNING, "stopped"), "SUSPENDED": (RUNNING, "suspended"),
}  # fmt: skip


# --- states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_state_has_a_meaning(word):
    seen = observation("7_1", word, "Why", "n1")
    assert (seen.state, seen.reason, seen.job, seen.node) == (*WORDS[word], "7_1", "n1")


@pytest.mark.parametrize("reason", ["None", "(null)", ""])
def test_no_reason_is_none(reason):
    assert observation("7_1", "PENDING", reason, "").reason == ""


@pytest.mark.parametrize(
    "reason", ["Priority", "Dependency", "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail, UnavailableNodes:n[1-3]"]
)
def test_what_a_job_waits_for_is_told_in_slurms_words(reason):
    assert observation("7_1", "PENDING", reason, "").reason == reason


@pytest.mark.parametrize("node", ["(null)", "None assigned", ""])
def test_no_node_is_none(node):
    assert observation("7_1", "PENDING", "Priority", node).node == ""


@pytest.mark.parametrize(
    ("word", "state"),
    [("CANCELLED by 1000", ENDED), ("CANCELLED by 0", ENDED), ("PENDING+", PENDING), ("CANCELLED+", ENDED)],
)
def test_a_state_is_its_first_word(word, state):
    assert observation("7_1", word, "None", "n1").state is state


def test_who_cancelled_it_makes_no_difference():
    assert observation("7_1", "CANCELLED by 1000", "None", "n1") == observation("7_1", "CANCELLED", "None", "n1")


@pytest.mark.parametrize("word", ["HIBERNATING", "running", "", "RUNNINGX", "1", "?"])
def test_an_unknown_word_stays_unknown_and_is_shown(word):
    seen = observation("7_1", word, "None", "n1")
    assert (seen.state, seen.reason) == (JobState.UNKNOWN, f"Slurm says {word!r}, which is not known here")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slurmstepd-n0: error: StepId=1.0 exceeded memory limit (328437760 > 104857600), being killed", MEMORY),
        ("slurmstepd-n0: error: Exceeded job memory limit", MEMORY),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0. Some of your processes may have been", MEMORY),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch. Some of the step tasks have been", MEMORY),
        ("srun: error: n0: task 0: Out Of Memory", MEMORY),
        ("srun: error: Node failure on n1", NODE),
        ("srun: error: Task launch for StepId=2.0 failed on node n1: Communication connection failure", NODE),
        ("srun: error: Task launch for StepId=2.0 failed on node n1: Invalid job credential", ""),
        ("srun: error: n0: task 0: Killed", ""),
        ("the loss exceeded memory limit", ""),
        ("RuntimeError: CUDA out of memory", ""),
        ("", ""),
    ],
)
def test_why_slurm_killed_a_step_is_known_by_what_it_printed(line, told):
    assert printed_reason(f"loading data\n{line}\nsrun: error: n0: task 0: Exited\n") == told


# --- lines ------------------------------------------------------------------------------------------------


def test_squeues_lines():
    text = (
        "41_0|RUNNING|None|n[1-2]|9|a.0001|orch:t:0 mine\n41_1|PENDING|Priority||N/A|a.0001|orch:t:0\n"
        "9|COMPLETED|None|n1|5|wrap|(null)\n"
    )
    assert [
        (seen.job, seen.observation.state, seen.observation.node, seen.name, seen.comment) for seen in parse(text)
    ] == [
        ("41_0", RUNNING, "n[1-2]", "a.0001", "orch:t:0 mine"),
        ("41_1", PENDING, "", "a.0001", "orch:t:0"),
        ("9", ENDED, "n1", "wrap", "(null)"),
    ]


def test_saccts_lines_have_no_comment():
    text = "41_0|CANCELLED by 1000|None|n1|7|a.0001\n41_1|OUT_OF_MEMORY|OutOfMemory|n2|8|a.0001\n"
    assert [(seen.job, seen.observation.reason, seen.name, seen.comment) for seen in parse(text)] == [
        ("41_0", "cancelled in Slurm", "a.0001", ""),
        ("41_1", "out of memory: killed by Slurm", "a.0001", ""),
    ]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1d"])
def test_a_comment_may_hold_what_python_takes_for_a_lines_end(mark):
    (seen,) = parse(f"7_1|RUNNING|None|n1|Unknown|a|mine{mark}8_1|RUNNING|None|n1|yours\n")
    assert (seen.job, seen.comment) == ("7_1", f"mine{mark}8_1|RUNNING|None|n1|yours")


def test_a_comment_may_hold_bars():
    (seen,) = parse("41_0|RUNNING|None|n1|N/A|a|orch:t:0 a|b||c")
    assert seen.comment == "orch:t:0 a|b||c"


@pytest.mark.parametrize(
    ("word", "end", "ended"),
    [
        ("CANCELLED by 0", "1795392067", 1795392067.0),
        ("TIMEOUT", "Unknown", None),
        ("FAILED", "", None),
        ("RUNNING", "1795392067", None),
        ("FAILED", "2026-11-23T00:01:07", None),
        ("FAILED", "٤", None),
    ],
)
def test_when_a_job_ended_is_known_once_it_has(word, end, ended):
    (seen,) = parse(f"41_0|{word}|None|n1|{end}|")
    assert seen.observation.ended == ended


@pytest.mark.parametrize(
    "line",
    [
        "",
        "|",
        "slurm_load_jobs error: Socket timed out",
        "JOBID|STATE|REASON|NODELIST",
        "41_[0-3]|PENDING|None|",
        "41_0",
        "41_0|RUNNING",
        "41_0|RUNNING|x",
        "41_0.batch|FAILED||n1",
        "41_x|RUNNING|None|n1",
        "-1|RUNNING|None|",
        "٤١_0|RUNNING|None|n1",
        " 41_0|RUNNING|None|n1",
        "41_0_0|RUNNING|None|n1",
    ],
)
def test_odd_lines_are_skipped_and_the_others_read(line):
    assert [seen.job for seen in parse(f"{line}\n41_7|RUNNING|None|n1|")] == ["41_7"]


@pytest.mark.parametrize(("word", "own"), [(word, word in {"COMPLETED", "FAILED"}) for word in sorted(WORDS)])
def test_only_a_job_that_slurm_did_not_end_has_ended_of_itself(word, own):
    (seen,) = parse(f"41_0|{word}|None|n1|")
    assert seen.of_itself is own


@given(
    st.text() | st.lists(st.sampled_from(["41_0", "|", "\n", "RUNNING", "CANCELLED by 1", "\0", "é", "+"])).map("".join)
)
def test_parsing_never_raises_and_yields_only_tasks(text):
    for seen in parse(text):
        assert seen.job.replace("_", "", 1).isdecimal()
        assert seen.observation.state in JobState
        assert seen.observation.job == seen.job


@given(st.text(), st.text(), st.text())
def test_every_state_a_text_may_give_has_an_observation(word, reason, node):
    assert observation("1", word, reason, node).state in JobState


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("sbatch: error: Invalid account\n", "Invalid account"),
        ("a\nsqueue: b\n \n", "b"),
        ("", "no message"),
        ("\n \n", "no message"),
        ("plain", "plain"),
    ],
)
def test_the_last_line_that_says_something(text, last):
    assert commands.last_line(text) == last


# --- limits -----------------------------------------------------------------------------------------------

CONFIG = """Configuration data as of 2025-01-01T00:00:00
MaxArraySize            = 501
MaxDBDMsgs              = 20004
MaxJobCount             = 90000
MaxJobId                = 67043328
"""
SHOWN = (
    "PartitionName=short AllowGroups=ALL Default=YES DefaultTime=NONE MaxNodes=2 MaxTime=01:30:00 MinNodes=0 "
    "State=UP TRES=cpu=8,mem=4G\n"
    "PartitionName=long Default=NO MaxNodes=UNLIMITED MaxTime=2-00:00:00\n"
    "PartitionName=free Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED\n"
)
SHORT = Partition(name="short", default=True, max_minutes=90, max_nodes=2)
LONG = Partition(name="long", default=False, max_minutes=2880, max_nodes=None)
FREE = Partition(name="free", default=False, max_minutes=None, max_nodes=None)
KNOWN = {partition.name: partition for partition in (SHORT, LONG, FREE)}


def test_the_clusters_limits():
    assert Limits.parse(CONFIG) == Limits(max_array_size=501, max_job_count=90_000)


@pytest.mark.parametrize("text", ["", "nonsense", "MaxArraySize = (null)", "  NotMaxArraySize = 7"])
def test_what_slurm_does_not_say_is_its_default(text):
    assert Limits.parse(text) == Limits(max_array_size=1001, max_job_count=10_000)


def test_partitions():
    assert limits.partitions(SHOWN) == [SHORT, LONG, FREE]


@given(st.text())
def test_limits_and_partitions_never_raise(text):
    assert Limits.parse(text).max_array_size >= 0
    assert limits.partitions(text) == [] or "PartitionName=" in text


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("01:30:00", 90),
        ("00:01:00", 1),
        ("1-02:03:00", 1563),
        ("365-00:00:00", 525_600),
        ("UNLIMITED", None),
        ("NONE", None),
        ("90", None),
        ("", None),
    ],
)
def test_minutes(text, minutes):
    assert limits.minutes(text) == minutes


@pytest.mark.parametrize(
    ("need", "chosen", "told"),
    [
        (Resources(hours=1.5, nodes=2), [""], ""),
        (Resources(), [""], ""),
        (Resources(hours=2), [""], "partition short allows 1.5 h"),
        (Resources(nodes=3), ["short"], "partition short allows 2 nodes"),
        (Resources(hours=2), ["short", "long"], ""),
        (Resources(hours=50), ["short", "long"], "partition short allows 1.5 h; partition long allows 48 h"),
        (Resources(hours=5000, nodes=999), ["free"], ""),
        (Resources(hours=2), ["hidden"], ""),
        (Resources(hours=2), ["short", "hidden"], ""),
    ],
)
def test_a_run_is_refused_only_where_no_chosen_partition_would_ever_take_it(need, chosen, told):
    assert limits.refusal(need, chosen, KNOWN) == told


def test_without_partitions_nothing_is_refused():
    assert limits.refusal(Resources(hours=10_000, nodes=10_000), [""], {}) == ""


# --- nodes ------------------------------------------------------------------------------------------------

NODES = (
    "NodeName=n0 Arch=x86_64 CPUEfctv=60 CPUTot=64 AvailableFeatures=a100,ib Gres=gpu:a100:4(S:0-1),shard:8 "
    "OS=Linux 6.1 #1 SMP RealMemory=512000 State=IDLE TmpDisk=900000 Partitions=gpu,all\n"
    "NodeName=n1 CPUTot=16 AvailableFeatures=(null) Gres=(null) RealMemory=64000 State=MIXED+DRAIN TmpDisk=0 "
    "Partitions=all Reason=bad disk: State=odd TmpDisk=7 [root@2025-01-01T00:00:00]\n"
)
BIG, SMALL = limits.nodes(NODES)


def test_nodes():
    assert (BIG.cpus, BIG.gpus, BIG.memory_mb, BIG.tmp_mb) == (60, 4, 512_000, 900_000)
    assert (BIG.partitions, BIG.features, BIG.up, BIG.reason) == (("gpu", "all"), ("a100", "ib"), True, "")
    assert (SMALL.cpus, SMALL.gpus, SMALL.tmp_mb, SMALL.features) == (16, 0, 0, ())
    assert (SMALL.state, SMALL.up, SMALL.reason) == ("MIXED+DRAIN", False, "bad disk: State=odd TmpDisk=7")


@given(st.text())
def test_reading_nodes_never_raises(text):
    assert limits.nodes(text) == [] or "NodeName=" in text


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:2", 2),
        ("gpu:a100:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:1,gpu:v100:2", 3),
        ("shard:8", 0),
        ("(null)", 0),
        ("mygpu:2", 0),
    ],
)
def test_gpus_of_a_node(gres, gpus):
    assert limits.nodes(f"NodeName=n0 Gres={gres}")[0].gpus == gpus


@pytest.mark.parametrize(
    ("state", "up"),
    [
        ("IDLE", True),
        ("MIXED", True),
        ("ALLOCATED*", True),
        ("IDLE+CLOUD+POWERED_DOWN", True),
        ("IDLE+COMPLETING", True),
        ("DOWN", False),
        ("DOWN*", False),
        ("IDLE*+DRAIN", False),
        ("DOWN+NOT_RESPONDING", False),
        ("UNKNOWN", False),
    ],
)
def test_whether_a_node_is_up(state, up):
    assert limits.nodes(f"NodeName=n0 State={state}")[0].up is up


@pytest.mark.parametrize(
    ("need", "told"),
    [
        (Resources(), ""),
        (Resources(gpus_per_node=4, cpus_per_node=60, mem_gb_per_node=500), ""),
        (Resources(gpus_per_node=8), "no node has 8 GPUs: the largest has 4"),
        (Resources(cpus_per_node=61), "no node has 61 CPUs: the largest has 60"),
        (Resources(mem_gb_per_node=501), "no node has 501 GB of memory: the largest has 500"),
        (Resources(gpus_per_node=1, nodes=2), "1 node of 2 can hold it, and 2 are asked for"),
    ],
)
def test_what_too_few_nodes_have(need, told):
    assert limits.shortage(need, [BIG, SMALL]) == told


def test_what_only_different_nodes_have_is_on_no_node():
    wide = limits.nodes("NodeName=n2 CPUTot=128 RealMemory=1000")[0]
    need = Resources(cpus_per_node=100, mem_gb_per_node=100)
    assert limits.shortage(need, [BIG, wide]) == "no node has all of it at once"


def test_each_process_gets_a_cpu():
    assert [limits.cpus_asked(Resources(gpus_per_node=4, cpus_per_node=each)) for each in (1, 4, 34)] == [4, 4, 32]


def test_runs_wait_for_nodes_that_are_away():
    assert limits.nodes_away(Resources(), [BIG, SMALL]) == ""
    told = "1 of 2 nodes that can hold a run are down or drained (n1: MIXED+DRAIN, bad disk: State=odd TmpDisk=7)"
    assert limits.nodes_away(Resources(nodes=2), [BIG, SMALL]) == told


def test_a_partition_for_larger_runs_and_for_some_accounts():
    text = "PartitionName=p Default=YES MinNodes=4 AllowAccounts=phys,bio DenyAccounts=phys"
    (found,) = limits.partitions(text)
    assert found.refuses(Resources()) == "partition p is for runs of 4 nodes or more (MinNodes)"
    assert found.refuses(Resources(nodes=4)) == ""
    assert [found.shuts_out(account) for account in ("phys", "bio")] == ["", ""]
    assert found.shuts_out("chem") == "partition p is only for account phys or bio (AllowAccounts)"
    (found,) = limits.partitions("PartitionName=p MinNodes=0 AllowAccounts=ALL DenyAccounts=chem")
    assert found.refuses(Resources()) == ""
    assert [found.shuts_out("phys"), found.shuts_out("chem")] == [
        "",
        "partition p is not for account chem (DenyAccounts)",
    ]


def test_a_partition_that_takes_no_jobs_or_has_too_few_nodes():
    text = "PartitionName=p Default=YES State=DRAIN TotalNodes=2 DefaultTime=01:00:00 MaxTime=UNLIMITED"
    (found,) = limits.partitions(text)
    assert found.refuses(Resources()) == "partition p takes no jobs now (its state is DRAIN)"
    assert found.refuses(Resources(nodes=3)) == "partition p has 2 nodes"
    assert limits.default_hours([found]) == 1


@pytest.mark.parametrize(
    ("chosen", "hours"), [(None, 1.5), ("long", 48), ("short,long", 48), ("short,free", None), ("hidden", None)]
)
def test_the_time_limit_of_a_run_that_asks_for_none(chosen, hours):
    assert limits.default_hours(limits.chosen_partitions(chosen, KNOWN)) == hours


def test_data_that_fits_on_some_nodes_only_is_told_with_what_keeps_off_the_others():
    scratch = Scratch(where="scratch", bytes=4_000_000, least_bytes=1_000_000)
    (note,) = preflight.small_nodes({"a": 1_000_000, "b": 3_000_000}, scratch)
    assert note.startswith("data version b has 3 MB, and some nodes' scratch only 1 MB: ")
    assert note.endswith("cluster.staging.request_tmp=true avoids those")
