"""The development cluster is a real Slurm whose nodes differ as real ones do, and it leaves nothing behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from processes import wait_for
from real_slurm import (
    empty_queue,
    in_campaign,
    job_state,
    output,
    processes_of,
    processes_with,
    running_devcluster,
    submit,
)

from orchestrator.errors import ClusterError, RequestError, StateError
from orchestrator.slurm.devcluster import DevCluster, NodeState, Options, available, daemons, render
from orchestrator.slurm.devcluster.cluster import _install_database, shares
from orchestrator.slurm.devcluster.node import Node, argv, from_json, mounts
from orchestrator.slurm.devcluster.options import ClusterPaths, Ports
from orchestrator.system.processes import ProcessId

PATHS = ClusterPaths(Path("/var/lib/dc"))
PORTS = Ports(slurmctld=20001, slurmdbd=20002, nodes=(20003, 20004))
SMALL = Options(nodes=1, gpus=0)

# ---- text ------------------------------------------------------------------------------------------------------------

GOLDEN = """\
# written by orchestrator.slurm.devcluster; changes are lost
ClusterName=devcluster
SlurmctldHost=slurmctld(127.0.0.1)
SlurmctldPort=20001
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
DebugFlags=NO_CONF_HASH
StateSaveLocation=/var/lib/dc/slurmctld
SlurmdSpoolDir=/var/lib/dc/nodes/%n/spool
SlurmctldPidFile=/var/lib/dc/slurmctld.pid
SlurmdPidFile=/var/lib/dc/nodes/%n/slurmd.pid
SlurmctldLogFile=/var/lib/dc/log/slurmctld.log
SlurmdLogFile=/var/lib/dc/log/%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
MailProg=/bin/true
AuthInfo=cred_expire=5
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
MaxArraySize=10001
MaxJobCount=50000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
AccountingStorageType=accounting_storage/none

NodeName=n0 NodeHostname=n0 NodeAddr=127.0.0.1 Port=20003 CPUs=8 RealMemory=8000 TmpDisk=64 Gres=gpu:2
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port=20004 CPUs=8 RealMemory=8000 TmpDisk=64 Gres=gpu:2

PartitionName=debug Default=YES PriorityTier=2 PreemptMode=OFF Nodes=ALL
PartitionName=preemptible PriorityTier=1 GraceTime=12 Nodes=ALL
PartitionName=urgent PriorityTier=3 PreemptMode=OFF Nodes=ALL
PartitionName=limited PriorityTier=2 PreemptMode=OFF MaxTime=60 MaxNodes=1 Nodes=ALL
"""


def test_slurm_conf_is_this_text():
    options = Options(nodes=2, cpus=8, memory_mb=8000, tmp_mb=64)
    assert render.slurm_conf(options, PORTS, PATHS, loopback_only=True) == GOLDEN


def test_only_srun_may_listen_on_other_addresses_and_only_where_it_has_to():
    text = render.slurm_conf(Options(nodes=2), PORTS, PATHS, loopback_only=False)
    assert "CommunicationParameters=NoCtldInAddrAny\n" in text


def test_accounting_enforces_limits_and_its_daemon_is_on_the_loopback():
    text = render.slurm_conf(Options(nodes=2, accounting=True), PORTS, PATHS, loopback_only=True)
    assert "AccountingStorageHost=127.0.0.1\nAccountingStoragePort=20002\n" in text
    assert "AccountingStorageEnforce=associations,limits,qos\n" in text
    dbd = render.slurmdbd_conf(PORTS, PATHS)
    assert "DbdAddr=127.0.0.1\nDbdPort=20002\nCommunicationParameters=NoInAddrAny\n" in dbd


def test_a_cluster_without_gpus_has_no_word_of_them():
    options = Options(nodes=2, gpus=0)
    assert "gpu" not in render.slurm_conf(options, PORTS, PATHS, loopback_only=True).lower()
    assert render.gres_conf(options, PATHS) == ""


@pytest.mark.parametrize(("gpus", "name"), [(1, "gpu0"), (2, "gpu[0-1]"), (8, "gpu[0-7]")])
def test_gres_conf_names_the_devices_of_each_node(gpus, name):
    assert render.gres_conf(Options(nodes=2, gpus=gpus), PATHS) == (
        f"NodeName=n0 Name=gpu File=/var/lib/dc/nodes/n0/gpu/{name}\n"
        f"NodeName=n1 Name=gpu File=/var/lib/dc/nodes/n1/gpu/{name}\n"
    )


def test_our_names_come_before_the_hosts_own():
    names = "".join(f"127.0.0.1 {name}\n" for name in ("slurmctld", "slurmdbd", "n0", "n1"))
    assert render.hosts(Options(nodes=2), "10.1.2.3 n0\n") == f"{names}10.1.2.3 n0\n"


# ---- requests that are refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/a b", "/a'b", '/a"b', "/a\nb", "/a#b", "/a%n", "relative", "/ü", "/" + 70 * "x"])
def test_a_state_folder_that_slurm_cannot_name_is_refused(path):
    with pytest.raises(RequestError, match="state folder"):
        ClusterPaths(Path(path))


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"nodes": 100}, {"cpus": 0}, {"gpus": -1}, {"tmp_mb": 0}])
def test_impossible_sizes_are_refused_with_their_name(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Options(**wrong)


def test_options_survive_their_record():
    options = Options(nodes=3, tmp_mb=7, accounting=True, shares=("/tmp/a b",))
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    reason = available(accounting=True)
    assert reason is not None
    assert "\n" not in reason
    assert "root" in reason or "apt-get install" in reason


@pytest.fixture
def short():
    """Give a folder whose name is short enough for Slurm's sockets; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_folder_that_never_held_a_cluster_is_not_deleted(short):
    precious = short / "dc" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    with pytest.raises(StateError, match="not deleted"):
        DevCluster(short / "dc").down(purge=True)
    assert precious.read_text() == "years"


def test_down_kills_no_stranger_that_was_given_a_recorded_number(short):
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        process = replace(ProcessId.of(stranger.pid), started=12345.0, ticks="1")
        record = {
            "options": SMALL.to_json(),
            "ports": [1, 2, 3],
            "shares": [],
            "processes": {"n0": process.to_json(), "slurmctld": process.to_json()},
        }
        (short / "cluster.json").write_text(json.dumps(record))
        DevCluster(short).down()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_crash_needs_a_cluster(short):
    with pytest.raises(RequestError, match="no development cluster"):
        DevCluster(short).crash("n0")


# ---- parsing and mounts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "ready", "has_jobs"),
    [
        ("IDLE", True, False),
        ("MIXED", True, True),
        ("ALLOCATED", True, True),
        ("IDLE+COMPLETING", True, True),
        ("IDLE*", False, False),
        ("IDLE+NOT_RESPONDING", False, False),
        ("IDLE+DRAIN", False, False),
        ("DOWN", False, False),
        ("DOWN*+DRAIN", False, False),
        ("UNKNOWN", False, False),
        ("NEW-STATE", False, False),
    ],
)
def test_a_node_is_ready_only_in_a_state_known_to_be_good(state, ready, has_jobs):
    node = NodeState.parse(f"NodeName=n0 Arch=x86_64 State={state} ThreadsPerCore=1 SlurmdStartTime=1700000000 X=y")
    assert (node.name, node.state, node.started) == ("n0", state, 1_700_000_000.0)
    assert (node.ready, node.has_jobs) == (ready, has_jobs)


def test_a_node_that_never_registered_has_no_start():
    assert NodeState.parse("NodeName=n0 State=UNKNOWN* BootTime=None SlurmdStartTime=None").started is None


def test_tmp_is_covered_last_and_shares_stay_where_they_are():
    node = Node(
        name="n0",
        files=(("/s/hosts", "/etc/hosts"),),
        command=("slurmd",),
        tmp="/s/tmp",
        tmp_mb=5,
        shares=("/tmp/a b", "/tmp/c"),
    )
    assert mounts(node) == [
        ["mount", "--bind", "/s/hosts", "/etc/hosts"],
        ["mount", "-t", "tmpfs", "-o", "size=5m", "n0", "/s/tmp"],
        ["mount", "--rbind", "/tmp/a b", "/s/tmp/a b"],
        ["mount", "--rbind", "/tmp/c", "/s/tmp/c"],
        ["mount", "--rbind", "/s/tmp", "/tmp"],
    ]
    assert from_json(argv(node)[-1]) == node


def test_a_daemon_that_is_no_node_keeps_the_hosts_tmp_and_processes():
    daemon = Node(name="slurmctld", files=(), command=("slurmctld",))
    assert mounts(daemon) == []
    assert "-p" not in argv(daemon)


def test_folders_below_tmp_are_shared_once_and_others_need_not_be():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        outer, inner = Path(name), Path(name) / "a b" / "c"
        inner.mkdir(parents=True)
        found = shares((str(inner), str(outer), "/usr"), outer / "state")
        assert str(outer) in found
        assert not [path for path in found if path != str(outer) and path.startswith(str(outer))]
        assert "/usr" not in found


@pytest.mark.parametrize("path", ["/tmp", "/tmp/", "/tmp/no such folder"])
def test_all_of_tmp_or_nothing_cannot_be_shared(path):
    with pytest.raises(RequestError, match="cannot be shared"):
        shares((path,), Path("/tmp/state"))


# ---- the real thing ------------------------------------------------------------------------------------------------


def folder_of(cluster):
    return cluster.slurm_conf.parent.parent


def record(cluster):
    return json.loads((folder_of(cluster) / "cluster.json").read_text())


def lines(path):
    return path.read_text().split() if path.exists() else []


@pytest.mark.slurm
def test_up_again_changes_nothing_and_other_options_are_refused(slurm):
    before = record(slurm)
    slurm.up()
    slurm.up(slurm.options())
    assert record(slurm) == before
    with pytest.raises(RequestError, match="gpus is 2, not 3"):
        slurm.up(replace(slurm.options(), gpus=3))


@pytest.mark.slurm
def test_daemons_listen_on_the_loopback_only(slurm):
    ports = set(record(slurm)["ports"])
    found = {each.laddr for each in psutil.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN}
    ours = [address for address in found if address.port in ports]
    assert len(ours) == 5
    assert {address.ip for address in ours} == {"127.0.0.1"}


@pytest.mark.slurm
def test_each_node_has_its_own_name_processes_and_tmp(slurm, tmp_path):
    look = f"""
        echo $HOSTNAME > /tmp/private.$HOSTNAME                  # the node's own
        echo $HOSTNAME > '{tmp_path}'/shared.$HOSTNAME           # bound back in
        sleep 0.5
        echo $HOSTNAME $(hostname) $(ls /tmp | grep private) $(ls '{tmp_path}' | grep -c shared) \
             $(ls -d /proc/[0-9]* | wc -l) $(getent hosts n3 | cut -d' ' -f1)"""
    seen = output("srun", "--nodelist=n1,n2", "--ntasks=2", "bash", "-c", look).splitlines()
    for name, line in zip(("n1", "n2"), sorted(seen), strict=True):
        environ, hostname, private, shared, processes, address = line.split()
        assert (environ, hostname, private) == (name, name, f"private.{name}")
        assert (shared, address) == ("2", "127.0.0.1")
        assert int(processes) < 20
    assert not list(Path("/tmp").glob("private.n*"))


@pytest.mark.slurm
def test_every_task_of_an_array_runs(slurm, tmp_path):
    submit(tmp_path, "echo $SLURM_ARRAY_TASK_ID", "--array=0-3")
    wait_for(lambda: sorted(lines(tmp_path / "log")) == ["0", "1", "2", "3"], "four tasks' lines")


@pytest.mark.slurm
def test_gpus_are_given_out_one_by_one(slurm, tmp_path):
    show = ("bash", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert output("srun", "--gres=gpu:2", *show) == "0,1"
    step = "srun --exact --ntasks=1 --mem=99 --gres=gpu:1 bash -c 'echo $CUDA_VISIBLE_DEVICES; sleep 1' &"
    submit(tmp_path, f"{step}\n{step}\nwait", "--ntasks=2", "--nodes=1", "--gres=gpu:2")
    wait_for(lambda: sorted(lines(tmp_path / "log")) == ["0", "1"], "two tasks' lines")
    assert "Requested node configuration" in refused("srun", "--gres=gpu:3", "true")


def accepted(*argv):
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def refused(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


@in_campaign
@pytest.mark.slurm
def test_a_preempted_job_gets_a_signal_and_a_grace_time_and_runs_again(slurm, tmp_path):
    body = """
        trap 'echo TERM' TERM
        echo start$SLURM_RESTART_COUNT
        while :; do read -t 0.2 <> <(:); done"""
    (tmp_path / "step.sh").write_text(body)
    job = submit(tmp_path, f"srun bash '{tmp_path}/step.sh'", "--partition=preemptible", "--nodes=4", "--exclusive")
    wait_for(lambda: "start" in lines(tmp_path / "log"), "the job to start")
    urgent = submit(tmp_path, "echo urgent", "--partition=urgent", "--nodes=4", "--exclusive")
    wait_for(lambda: "TERM" in lines(tmp_path / "log"), "its SIGTERM")
    assert job_state(job) == "RUNNING"
    assert job_state(urgent) == "PENDING"
    wait_for(lambda: "start1" in lines(tmp_path / "log"), "the job to start again")
    events = [word for word in lines(tmp_path / "log") if word in {"start", "TERM", "urgent", "start1"}]
    assert events.index("start") < events.index("TERM") < events.index("urgent") < events.index("start1")


@pytest.mark.slurm
def test_a_crashed_node_takes_its_processes_along_and_its_job_runs_again_once_it_is_back(slurm, tmp_path):
    mark = "31536000.25"
    job = submit(tmp_path, f"echo start$SLURM_RESTART_COUNT; srun sleep {mark}", "--nodelist=n1", "--requeue")
    wait_for(lambda: processes_with(mark), "the job's process")
    slurm.crash("n1")
    assert not processes_with(mark)
    assert slurm.status()["n0"] == "IDLE"
    assert job_state(job) == "RUNNING"  # Slurm does not know yet
    slurm.restore("n1")
    assert {node.name: node.ready for node in slurm.nodes()}["n1"]
    wait_for(lambda: "start1" in lines(tmp_path / "log"), "the job to start again")


@pytest.mark.slurm
def test_a_crashed_slurmctld_does_not_answer_and_comes_back_with_its_jobs(slurm, tmp_path):
    saved = folder_of(slurm) / "slurmctld" / "job_state"
    job = submit(tmp_path, "true", "--hold")
    submitted = time.time()
    wait_for(
        lambda: saved.exists() and saved.stat().st_mtime > submitted, "its state on disk"
    )  # it forgets the last five seconds
    slurm.crash("slurmctld")
    assert slurm.status()["slurmctld"] == "stopped"
    assert "DOWN" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False).stdout
    slurm.restore("slurmctld")
    assert job_state(job) == "PENDING"


@pytest.mark.slurm
def test_only_what_was_started_can_be_crashed(slurm):
    with pytest.raises(RequestError, match=r"'slurmctl'.*did you mean 'slurmctld'"):
        slurm.crash("slurmctl")


@pytest.mark.slurm
def test_a_sized_tmp_is_full_when_it_is_full():
    fill = "head -c 70M /dev/zero > /tmp/large || stat -c %s /tmp/large; rm /tmp/large"
    with running_devcluster(replace(SMALL, tmp_mb=64)) as cluster, empty_queue(cluster):
        assert output("srun", "bash", "-c", fill) == str(64 * 2**20)
        assert "Requested node configuration" in refused("sbatch", "--test-only", "--tmp=65", "--wrap=true")


@pytest.mark.slurm
def test_accounting_remembers_how_jobs_ended(accounted_slurm, tmp_path):
    jobs = [submit(tmp_path, "exit 0"), submit(tmp_path, "exit 3")]

    def states():
        return output("sacct", "-XnP", f"--jobs={','.join(jobs)}", "--format=State,ExitCode").split()

    wait_for(lambda: states() == ["COMPLETED|0:0", "FAILED|3:0"], "both ends in the accounting")


@pytest.mark.slurm
def test_a_database_that_starts_takes_no_temporary_tables_from_another(accounted_slurm, tmp_path):
    others = Path(tempfile.gettempdir(), f"#sql-temptable-{os.getpid():x}-1-1.frm")
    others.touch()
    try:
        _install_database(tmp_path / "database", tmp_path)
        assert others.exists()
    finally:
        others.unlink(missing_ok=True)
    assert f"--tmpdir={PATHS.database_tmp}" in daemons.mariadbd(PATHS).argv


@pytest.mark.slurm
def test_accounting_enforces_the_limits_of_a_qos(accounted_slurm):
    output("sacctmgr", "-i", "add", "qos", "tiny", "set", "MaxSubmitJobsPerUser=2")
    output("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=tiny")
    wait_for(lambda: accepted("sbatch", "--test-only", "--qos=tiny", "--wrap=true"), "slurmctld to know the QOS")
    assert "QOSMaxSubmitJobPerUserLimit" in refused("sbatch", "--qos=tiny", "--array=0-2", "--wrap=true")
    output("sbatch", "--qos=tiny", "--array=0-1", "--output=/dev/null", "--wrap=true")
    assert "Invalid qos" in refused("sbatch", "--qos=none", "--wrap=true")


@pytest.fixture
def scratch_cluster():
    """A cluster of one node that a test may take down; not up."""
    if (reason := available()) is not None:
        pytest.skip(f"no real Slurm here: {reason}")
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as folder:
        cluster = DevCluster(Path(folder) / "state")
        yield cluster
        cluster.down()


@pytest.mark.slurm
def test_down_leaves_no_process_no_mount_and_no_folder(scratch_cluster, monkeypatch):
    scratch_cluster.up(SMALL)
    monkeypatch.setenv("SLURM_CONF", str(scratch_cluster.slurm_conf))
    job = output("sbatch", "--parsable", "--output=/dev/null", "--wrap=srun sleep 600")
    wait_for(lambda: job_state(job) == "RUNNING", "the job to run")
    found = processes_of(scratch_cluster)
    assert len(found) >= 4
    scratch_cluster.down(purge=True)
    assert not [each for each in found if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not processes_of(scratch_cluster)
    assert str(folder_of(scratch_cluster)) not in Path("/proc/mounts").read_text()
    assert not folder_of(scratch_cluster).exists()


@pytest.mark.slurm
def test_jobs_go_on_after_down_and_up_and_ports_stay(scratch_cluster, monkeypatch):
    scratch_cluster.up(SMALL)
    monkeypatch.setenv("SLURM_CONF", str(scratch_cluster.slurm_conf))
    folder = folder_of(scratch_cluster)
    runs = f"--wrap=echo start$SLURM_RESTART_COUNT >> {folder}/runs; sleep 600"
    output("sbatch", "--requeue", "--output=/dev/null", runs)
    wait_for(lambda: lines(folder / "runs"), "the job to start")
    ports = record(scratch_cluster)["ports"]
    scratch_cluster.down()
    assert set(scratch_cluster.status().values()) == {"stopped"}
    scratch_cluster.up()
    assert record(scratch_cluster)["ports"] == ports
    assert scratch_cluster.options() == SMALL
    wait_for(lambda: lines(folder / "runs") == ["start", "start1"], "the job to start again")


@pytest.mark.slurm
def test_a_daemon_that_does_not_start_is_quoted_and_nothing_is_left(scratch_cluster, tmp_path, monkeypatch):
    fake = tmp_path / "slurmctld"
    fake.write_text("#!/bin/sh\necho out of cheese\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ClusterError, match=r"(?s)slurmctld ended before ready.*out of cheese"):
        scratch_cluster.up(SMALL)
    assert set(scratch_cluster.status().values()) == {"stopped"}
    assert not processes_of(scratch_cluster)


def command(state, *words):
    argv = [sys.executable, "-m", "orchestrator.slurm.devcluster", "--state", str(state), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.slurm
def test_the_command_line_does_the_same(scratch_cluster):
    state = folder_of(scratch_cluster)
    export = f"export SLURM_CONF={scratch_cluster.slurm_conf}\n"
    assert command(state, "status").stdout == "not up\n"
    up = command(state, "up", "--nodes", "1", "--gpus", "1")
    assert (up.returncode, up.stdout) == (0, export)
    assert command(state, "env").stdout == export
    assert scratch_cluster.options() == Options(nodes=1, gpus=1)
    status = command(state, "status")
    assert (status.returncode, status.stdout.split()) == (0, ["slurmctld", "running", "n0", "IDLE"])
    assert command(state, "crash", "n0").returncode == 0
    status = command(state, "status")
    assert (status.returncode, status.stdout.split()) == (1, ["slurmctld", "running", "n0", "stopped"])
    assert command(state, "restore", "n0").returncode == 0
    other = command(state, "up", "--gpus", "2")
    assert (other.returncode, other.stdout) == (2, "")
    assert "gpus is 1, not 2" in other.stderr
    assert command(state, "down", "--purge").returncode == 0
    assert not state.exists()
    assert command("/a b", "status").returncode == 2
