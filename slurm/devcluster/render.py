"""The text of slurm.conf, gres.conf, slurmdbd.conf and the nodes' hosts file. Pure: options in, text out.

A comment explains each unusual setting. All were tried with Slurm 22.05.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .options import ClusterPaths, Options, Ports

CLUSTER_NAME = "devcluster"
LOOPBACK = "127.0.0.1"


def slurm_conf(options: Options, ports: Ports, paths: ClusterPaths, *, loopback_only: bool) -> str:
    """Return slurm.conf.

    Without `loopback_only`, srun listens on every address while it runs. It has to on a host whose own name does not
    resolve to the loopback address: otherwise it would listen only on that other address, which nodes do not use.
    """
    settings = {
        **_identity(ports, paths),
        "CommunicationParameters": "NoCtldInAddrAny" + (",NoInAddrAny" if loopback_only else ""),
        **_processes(options),
        **_timing(options),
        **_queue(options),
        **(_accounting(ports) if options.accounting else {"AccountingStorageType": "accounting_storage/none"}),
    }
    sections = [_lines(settings), _nodes(options, ports), _partitions(options)]
    return "# written by orchestrator.slurm.devcluster; changes are lost\n" + "\n".join(sections)


def gres_conf(options: Options, paths: ClusterPaths) -> str:
    """Return gres.conf: each fake GPU is a character device, which is all that Slurm requires."""
    if not options.gpus:
        return ""
    last = f"[0-{options.gpus - 1}]" if options.gpus > 1 else "0"
    files = {node: paths.gpu(node, 0).with_name(f"gpu{last}") for node in options.node_names}
    return "".join(f"NodeName={node} Name=gpu File={file}\n" for node, file in files.items())


def slurmdbd_conf(ports: Ports, paths: ClusterPaths) -> str:
    """Return slurmdbd.conf. The database is reached through its socket as root: there is no password."""
    return _lines(
        {
            "AuthType": "auth/none",
            "DbdHost": "slurmdbd",
            "DbdAddr": LOOPBACK,
            "DbdPort": ports.slurmdbd,
            "CommunicationParameters": "NoInAddrAny",
            "SlurmUser": "root",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",
            "StorageUser": "root",
            "StorageLoc": "slurm_acct",
            "LogFile": paths.log("slurmdbd"),
            "PidFile": paths.root / "slurmdbd.pid",
        }
    )


def hosts(options: Options, present: str) -> str:
    """Return the /etc/hosts of all daemons: the host's own, and the cluster's names on the loopback address."""
    names = ("slurmctld", "slurmdbd", *options.node_names)
    return "".join(f"{LOOPBACK} {name}\n" for name in names) + present


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _identity(ports: Ports, paths: ClusterPaths) -> dict[str, object]:
    return {
        "ClusterName": CLUSTER_NAME,
        "SlurmctldHost": f"slurmctld({LOOPBACK})",
        "SlurmctldPort": ports.slurmctld,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/none",
        "CredType": "cred/none",
        "DebugFlags": "NO_CONF_HASH",  # the nodes' file may differ from slurmctld's
        "StateSaveLocation": paths.controller_state,
        "SlurmdSpoolDir": paths.root / "nodes" / "%n" / "spool",
        "SlurmctldPidFile": paths.root / "slurmctld.pid",
        "SlurmdPidFile": paths.root / "nodes" / "%n" / "slurmd.pid",
        "SlurmctldLogFile": paths.log("slurmctld"),
        "SlurmdLogFile": paths.log("%n"),
    }


def _processes(options: Options) -> dict[str, object]:
    return {
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",  # no cgroups: they often cannot be created here
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=2",
        "JobAcctGatherParams": "OverMemoryKill",  # as cgroups would, but by sampling
        "SlurmdParameters": "config_overrides",  # nodes have the size that this file states
        "ReturnToService": 2,
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": max(1, options.memory_mb // options.cpus),
        "MailProg": "/bin/true",
    }


def _timing(options: Options) -> dict[str, object]:
    return {
        "AuthInfo": "cred_expire=5",  # a requeued job waits for its old credential to expire
        "SchedulerParameters": "sched_interval=1,bf_interval=1",  # ... and then for the scheduler's next pass
        "KillWait": options.kill_wait_seconds,
        "SlurmdTimeout": options.lost_after_seconds,
        "SlurmctldTimeout": 10,
        "InactiveLimit": 0,
    }


def _queue(options: Options) -> dict[str, object]:
    settings: dict[str, object] = {
        "MaxArraySize": options.max_array_size,
        "MaxJobCount": options.max_job_count,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    return settings | ({"GresTypes": "gpu"} if options.gpus else {})


def _accounting(ports: Ports) -> dict[str, object]:
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": LOOPBACK,
        "AccountingStoragePort": ports.slurmdbd,
        "AccountingStorageEnforce": "associations,limits,qos",
        "AccountingStorageTRES": "gres/gpu",
        "AccountingStoreFlags": "job_comment",
    }


def _nodes(options: Options, ports: Ports) -> str:
    common = {
        "CPUs": options.cpus,
        "RealMemory": options.memory_mb,
        **({"TmpDisk": options.tmp_mb} if options.tmp_mb else {}),
        **({"Gres": f"gpu:{options.gpus}"} if options.gpus else {}),
    }
    return "".join(
        _line({"NodeName": node, "NodeHostname": node, "NodeAddr": LOOPBACK, "Port": port} | common)
        for node, port in zip(options.node_names, ports.nodes, strict=True)
    )


def _partitions(options: Options) -> str:
    partitions: Iterable[dict[str, object]] = (
        {"PartitionName": "debug", "Default": "YES", "PriorityTier": 2, "PreemptMode": "OFF"},
        {"PartitionName": "preemptible", "PriorityTier": 1, "GraceTime": options.grace_seconds},
        {"PartitionName": "urgent", "PriorityTier": 3, "PreemptMode": "OFF"},
        {"PartitionName": "limited", "PriorityTier": 2, "PreemptMode": "OFF", "MaxTime": 60, "MaxNodes": 1},
    )
    return "".join(_line({**partition, "Nodes": "ALL"}) for partition in partitions)


def _line(settings: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items()) + "\n"
