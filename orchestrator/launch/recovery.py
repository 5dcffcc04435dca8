"""Whether a run whose attempt has ended early is started again by itself, and with what. Pure: facts in, decision out.

Asked by each process that sees an attempt end: the worker, of what it finds itself; the end of a Slurm job's script; a
supervisor. What Slurm starts again by itself (a preemption, a lost node) and what a run requeues itself (at its time
limit) is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.records.record import Attempt, RunState
from orchestrator.spec import Attempts, Resources

EXCEPTION = "exception"
"""The cause of what `when: [{exception: [pattern]}]` allows; the others are CAUSES of `spec`."""
NEVER = Attempts(of=1, when=(), without_progress=0)
"""The policy of runs that were launched before there was one."""
_BY_REASON = (
    ("out_of_memory", re.compile(r"out of memory")),
    ("node_failed", re.compile(r"its node (failed|did not boot)|killed with its node")),
    ("killed", re.compile(r"(a process was )?killed by (signal \d+|SIG[A-Z]+)")),
)
"""The cause in the reason of an attempt that does not name it, such as one that Slurm gave."""
_OF_THE_NODE = frozenset({"killed", "stalled", "disk"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended. `cause` is empty where it is none that a run may be started again for.

    `step` is the last that it reported, None before the first; `node` where it was ended, as far as that is known.
    """

    cause: str
    reason: str
    step: int | None = None
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory of a node in GB that the last attempt had, and the most that there is; None: not known."""

    mem_gb: float | None = None
    mem_gb_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Start the run again; `left` of the `of` attempts are still to come.

    `mem_gb` and `hours_factor` change the run's limits, None and 1 leave them.
    """

    attempt: int
    of: int
    left: int = 1
    mem_gb: float | None = None
    hours_factor: float = 1.0
    avoid: str = ""
    after_minutes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Do not start the run again. `why` is empty where nobody would expect it to be."""

    why: str = ""


def decide(policy: Attempts | None, endings: Sequence[Ending], room: Room) -> Again | Stop:
    """Return what follows from the endings of a run's attempts in its launch, the last one included."""
    policy = policy or NEVER
    counted = [ending for ending in endings if _is_wanted(policy, ending)]
    if not endings or not _is_wanted(policy, endings[-1]):
        return Stop()
    if len(counted) >= policy.of:
        return Stop(why=f"attempt {len(counted)} of {policy.of}" if policy.of > 1 else "")
    last = endings[-1]
    mem_gb = None
    if last.cause == "out_of_memory":
        mem_gb = _more(policy, room)
        if mem_gb is not None and room.mem_gb is not None and mem_gb <= room.mem_gb:
            return Stop(why=f"there is no more memory to give than {room.mem_gb:.3g} GB")
    if mem_gb is None and len(counted) > 1 and _is_same(counted[-2], last):
        return Stop(why=f"twice the same {_at(last)}")
    return Again(
        attempt=len(endings) + 1,
        of=policy.of,
        left=policy.of - len(counted),
        mem_gb=mem_gb,
        hours_factor=policy.hours_factor,
        avoid=last.node if policy.avoid_node and last.cause in _OF_THE_NODE else "",
        after_minutes=policy.backoff_minutes,
    )


def ending(attempt: Attempt, *, node: str = "") -> Ending:
    """Return how an attempt ended, as its record says; the cause is empty for one that was not interrupted."""
    step = attempt.progress.get("step")
    return Ending(
        cause=cause(attempt),
        reason=attempt.reason,
        step=None if step is None else int(step),
        node=node or (attempt.claim.process.host if attempt.claim else ""),
    )


def cause(attempt: Attempt) -> str:
    """Return why an attempt was interrupted, in a word of CAUSES, or EXCEPTION; empty for any other reason."""
    if attempt.state is not RunState.INTERRUPTED:
        return ""
    return attempt.cause or cause_in(attempt.reason)


def cause_in(reason: str) -> str:
    """Return the cause that a reason in words means."""
    return next((word for word, pattern in _BY_REASON if pattern.search(reason)), "")


def described(reason: str, decision: Again | Stop) -> str:
    """Return the reason of an attempt's end, and why the run is not started again if one would expect that."""
    why = decision.why if isinstance(decision, Stop) else ""
    return f"{reason}; not started again: {why}" if why else reason


def excused(policy: Attempts | None, error: BaseException) -> bool:
    """Return whether a run may be started again after an exception of the user's."""
    text = f"{type(error).__name__}: {error}"
    return any(re.search(pattern, text) for pattern in (policy or NEVER).exceptions)


def memory_steps(policy: Attempts | None, room: Room) -> list[float]:
    """Return the memory of a run's later attempts, if each time it was too little."""
    found, policy = [], policy or NEVER
    if "out_of_memory" not in policy.when or room.mem_gb is None:
        return []
    for _ in range(policy.of - 1):
        more = _more(policy, room)
        if more is None or more <= (room.mem_gb or 0):
            break
        found.append(more)
        room = Room(mem_gb=more, mem_gb_most=room.mem_gb_most)
    return found


def of_launch(attempts: Iterable[Attempt], launch: int) -> list[Attempt]:
    """Return the last attempts in a row that one launch has begun: a launch has attempts of its own."""
    found: list[Attempt] = []
    for attempt in sorted(attempts, key=lambda each: each.number, reverse=True):
        if attempt.claim is None or attempt.claim.launch != launch:
            break
        found.insert(0, attempt)
    return found


def resources(need: Resources, again: Again) -> Resources:
    """Return what a run asks for when it is started again."""
    return replace(
        need,
        mem_gb_per_node=again.mem_gb or need.mem_gb_per_node,
        hours=need.hours and need.hours * again.hours_factor,
    )


def _is_wanted(policy: Attempts, ending: Ending) -> bool:
    return ending.cause in policy.when or ending.cause == EXCEPTION


def _more(policy: Attempts, room: Room) -> float | None:
    """Return more memory than there was, within what may be had; None where it is not known how much there was."""
    if room.mem_gb is None:
        return None
    return min(each for each in (room.mem_gb * policy.mem_factor, policy.mem_gb_most, room.mem_gb_most) if each)


def _is_same(one: Ending, other: Ending) -> bool:
    return (one.cause, one.reason, one.step) == (other.cause, other.reason, other.step)


def _at(ending: Ending) -> str:
    return "before it took a step" if ending.step is None else f"after step {ending.step}"
