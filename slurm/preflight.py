"""The check before anything is submitted: whether such runs could ever start here, and if not, which option is wrong.

It runs `sbatch --test-only`. Slurm's short error messages are explained with its lists of partitions, nodes, accounts
and reservations.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.cluster import Scratch
from orchestrator.errors import ClusterError, OrchError, RequestError, nearest
from orchestrator.slurm import commands, expressions, limits, submission
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Resources
from orchestrator.system.processes import ProgramError
from orchestrator.system.units import size

_MB = 1024 * 1024
_NO_NODE = re.compile(r"node configuration is not available|node.* not available|nodes are busy", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """Slurm's configuration, as far as it matters for these options. Each part is read once, when first needed."""

    options: SlurmOptions

    @cached_property
    def whole(self) -> limits.Limits:
        return limits.Limits.parse(self._ask("scontrol", "show", "config"))

    @cached_property
    def partitions(self) -> dict[str, limits.Partition]:
        text = self._ask("scontrol", "--all", "--oneliner", "show", "partition")
        return {partition.name: partition for partition in limits.partitions(text)}

    @cached_property
    def nodes(self) -> list[limits.Node]:
        return limits.nodes(self._ask("scontrol", "--all", "--oneliner", "show", "node"))

    def _ask(self, *argv: str) -> str:
        return commands.ask(argv, cluster=self.cluster)

    @property
    def cluster(self) -> str:
        """The cluster to ask; empty: this machine's own."""
        return self.options.clusters or ""

    @property
    def chosen(self) -> list[limits.Partition]:
        """The partitions that jobs may run in."""
        return limits.chosen_partitions(self.options.partition, self.partitions)

    @property
    def eligible(self) -> list[limits.Node]:
        """The nodes of the partitions that jobs may run in."""
        names = {partition.name for partition in self.chosen}
        return [node for node in self.nodes if names & set(node.partitions)]

    def accounts(self, column: str) -> list[str]:
        """Return the accounts, or the QOSes (by `column`), that this user may use; none without accounting."""
        argv = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}"]
        found = _words([*argv, f"format={column}"], "")
        return sorted({name for line in found for name in line.split(",") if name})

    def default_account(self) -> str:
        """Return this user's default account; an empty text without one."""
        argv = ["sacctmgr", "--noheader", "--parsable2", "show", "user", getpass.getuser(), "format=defaultaccount"]
        return next(iter(_words(argv, "")), "")

    def reservations(self) -> list[str]:
        found = _words(["scontrol", "--oneliner", "show", "reservation"], self.cluster)
        return [match[1] for line in found if (match := re.match(r"ReservationName=(\S+)", line))]


def _words(argv: Sequence[str], cluster: str) -> list[str]:
    try:
        return commands.run(argv, cluster=cluster).splitlines()
    except ProgramError:
        return []  # these lists only improve messages


# --- shapes -----------------------------------------------------------------------------------------------


def check(site: Site, need: Resources, script: str) -> str:
    """Check whether a run of this shape could ever start. Return what it would wait for first, or an empty text.

    Raises RequestError if it never could, ClusterError if Slurm does not answer.
    """
    if why := limits.refusal(need, (site.options.partition or "").split(","), site.partitions):
        raise _impossible(need, why, _other_partitions(site, need))
    if shut_out := _shut_out(site):  # Slurm accepts such a job, and never starts it
        raise shut_out
    argv = ["sbatch", "--test-only"]
    try:
        commands.with_retries(
            lambda: commands.run(argv, cluster=site.cluster, stdin=script.encode()), useless=_is_retry_useless
        )
    except ProgramError as error:
        limit = submission.limit(error.stderr)
        if limit and (limit.named or _has_jobs(site)):  # temporary, and not the request's fault
            return ""
        return _explained(site, need, error)
    down = [partition.name for partition in site.chosen if partition.state == "DOWN"]
    return f"partition {', '.join(down)} is down: runs wait until it is up" if down else ""


def _is_retry_useless(error: ProgramError) -> bool:
    known = submission.limit(error.stderr) is not None or _NO_NODE.search(error.stderr)
    return bool(known) or commands.is_retry_useless(error)


def _has_jobs(site: Site) -> bool:
    """Return whether the user has jobs in the queue. Without any, a refusal is a site's rule and not a job limit."""
    argv = ["squeue", "--all", "--noheader", f"--user={os.getuid()}", "--format=%A"]
    return bool(re.search(r"^[0-9]", commands.ask(argv, cluster=site.cluster), re.MULTILINE))


def _explained(site: Site, need: Resources, error: ProgramError) -> str:
    """Raise an error that explains sbatch's message; return a note if the cause is temporary and the job would wait."""
    said = commands.one_line(error.stderr)
    if error.status is None or commands.UNANSWERED.search(commands.slurm_message(error.stderr)):
        fix = "is this a login node, and does `sinfo` answer?"
        raise ClusterError("Slurm does not answer", why=said, fix=fix) from error
    for pattern, explain in _WORDS:
        if pattern.search(error.stderr) and (told := explain(site)):
            raise told from error
    if _NO_NODE.search(error.stderr) and site.eligible:
        where = f"in partition {', '.join(partition.name for partition in site.chosen)} "
        if why := limits.shortage(need, site.eligible):
            raise _impossible(need, where + why, _other_partitions(site, need)) from error
        if not _restricts_nodes(site.options) and (why := limits.nodes_away(need, site.eligible)):
            return f"{where}{why}: runs wait until they are back"
    raise _impossible(need, said, "change resources, or cluster.partition, account, qos") from error


def _restricts_nodes(options: SlurmOptions) -> bool:
    """Whether the options restrict jobs to some nodes of their partition, so that a shortage cannot be explained."""
    return bool(options.constraint or options.nodelist or options.exclude or options.gres or options.extra)


def _impossible(need: Resources, why: str, fix: str) -> RequestError:
    asked = ", ".join(f"{key}={value}" for key, value in need.to_json().items() if value)
    return RequestError(f"Slurm would not run this ({asked})", why=why, fix=fix)


def _other_partitions(site: Site, need: Resources) -> str:
    others = {name: each for name, each in site.partitions.items() if each not in site.chosen}
    able = sorted(name for name, each in others.items() if _could(site, each, need))
    return f"change resources, or cluster.partition={' or '.join(able)}" if able else "ask for less in resources"


def _could(site: Site, partition: limits.Partition, need: Resources) -> bool:
    nodes = [node for node in site.nodes if partition.name in node.partitions]
    return bool(nodes) and not partition.hidden and not partition.refuses(need) and not limits.shortage(need, nodes)


# --- names that Slurm does not know -----------------------------------------------------------------------


def _by_commas(text: str) -> list[str]:
    return text.split(",")


def _unknown(
    key: str,
    value: str | None,
    known: Collection[str],
    more: str = "",
    *,
    words: Callable[[str], Iterable[str]] = _by_commas,
) -> RequestError | None:
    """Return the error for an option with a name that does not exist; None if all of its names exist."""
    wrong = next((word for word in words(value or "") if word and word not in known), None)
    if wrong is None or value is None:
        return None
    there = f"there are {', '.join(sorted(known))}" if known else "Slurm shows none to you"
    hint = nearest(wrong, known)
    fix = _corrected(key, value, wrong, hint.split("'")[1]) if hint else f"correct cluster.{key}, or leave it out"
    return RequestError(f"cluster.{key}={value}: Slurm knows no {key} {wrong!r}{hint}", why=there + more, fix=fix)


def _corrected(key: str, value: str, wrong: str, right: str) -> str:
    """Return the override with the wrong name replaced by the right one, quoted for a shell and Hydra."""
    said = re.sub(rf"(?<![\w.-]){re.escape(wrong)}(?![\w.-])", lambda _: right, value)
    if said == value:
        return f"correct cluster.{key}"  # the name is part of a range
    return f"cluster.{key}={said}" if re.fullmatch(r"[\w./-]+", said) else shlex.quote(f'cluster.{key}="{said}"')


def _partition(site: Site) -> OrchError | None:
    return _unknown("partition", site.options.partition, site.partitions)


def _account(site: Site) -> OrchError | None:
    unknown = _unknown("account", site.options.account, site.accounts("account"), f" for {getpass.getuser()}")
    return unknown or _shut_out(site)


def _shut_out(site: Site) -> OrchError | None:
    """Return the error for an account, given or default, that may use none of the chosen partitions; None if it may."""
    if not all(partition.accounts or partition.denied for partition in site.chosen):
        return None
    account = site.options.account or site.default_account()
    reasons = [partition.shuts_out(account) for partition in site.chosen] if account else []
    if not reasons or not all(reasons):
        return None
    mine = [each for each in site.accounts("account") if not all(part.shuts_out(each) for part in site.chosen)]
    able = [name for name, part in site.partitions.items() if not part.hidden and not part.shuts_out(account)]
    fixes = [f"cluster.account={' or '.join(mine)}"] if mine else []
    fixes += [f"cluster.partition={' or '.join(sorted(able))}"] if able else []
    what = f"account {account} may not run in partition {site.options.partition or site.chosen[0].name}"
    return RequestError(what, why="; ".join(reasons), fix=", or ".join(fixes) or "ask the site for access")


def _qos(site: Site) -> OrchError | None:
    return _unknown("qos", site.options.qos, site.accounts("qos"), f" for {getpass.getuser()}")


def _constraint(site: Site) -> OrchError | None:
    known = {feature for node in site.nodes for feature in node.features}
    more = " as features of nodes" if known else ""
    return _unknown("constraint", site.options.constraint, known, more, words=expressions.features)


def _reservation(site: Site) -> OrchError | None:
    return _unknown("reservation", site.options.reservation, site.reservations())


def _node(site: Site) -> OrchError | None:
    known = [node.name for node in site.nodes]
    options = {"nodelist": site.options.nodelist, "exclude": site.options.exclude}
    found = (_unknown(key, value, known, words=expressions.nodes) for key, value in options.items())
    return next(filter(None, found), None)


_WORDS: tuple[tuple[re.Pattern[str], Callable[[Site], OrchError | None]], ...] = (
    (re.compile(r"invalid partition", re.IGNORECASE), _partition),
    (re.compile(r"invalid account|access/permission denied|permission denied", re.IGNORECASE), _account),
    (re.compile(r"invalid qos", re.IGNORECASE), _qos),
    (re.compile(r"invalid feature", re.IGNORECASE), _constraint),
    (re.compile(r"reservation is invalid|invalid reservation", re.IGNORECASE), _reservation),
    (re.compile(r"invalid node name", re.IGNORECASE), _node),
)


# --- scratch ----------------------------------------------------------------------------------------------


def scratch(site: Site) -> Scratch:
    """Return the capacity of the nodes' scratch, as far as Slurm knows it: TmpDisk, the size of TmpFS."""
    folder, names = site.options.scratch, ", ".join(partition.name for partition in site.chosen)
    where = f"scratch of the nodes of partition {names}" if names else "scratch of the nodes"
    told = site.whole.tmp_folder.rstrip("/")
    if folder is not None and f"{folder.rstrip('/')}/".partition(f"{told}/")[0]:
        return Scratch(where=f"{where} is {folder}, whose size Slurm does not show (its TmpFS is {told or '/'})")
    sizes = [node.tmp_mb * _MB for node in site.eligible]
    if not sizes or not all(sizes):
        return Scratch(where=f"{where} is of unknown size (Slurm says TmpDisk=0)")
    return Scratch(where=where, bytes=max(sizes), least_bytes=min(sizes))


SCRATCH_FIX = "choose a smaller version or another partition, or name the right folder with cluster.scratch"


def small_nodes(data: Mapping[str, int], found: Scratch) -> list[str]:
    """Return a note for each data version that fits only on some nodes."""
    least = found.least_bytes
    return [
        f"data version {name} has {size(needed)}, and some nodes' scratch only {size(least)}:"
        " cluster.staging.request_tmp=true avoids those"
        for name, needed in data.items()
        if least is not None and found.bytes is not None and least < needed <= found.bytes
    ]
