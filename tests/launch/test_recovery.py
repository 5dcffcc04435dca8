"""Which runs start again by themselves, with what, and which do not: facts in, a decision out."""

from __future__ import annotations

import pytest

from orchestrator.config import schema
from orchestrator.errors import ConfigError
from orchestrator.launch.recovery import (
    EXCEPTION,
    Again,
    Ending,
    Room,
    Stop,
    cause_in,
    decide,
    described,
    excused,
    memory_steps,
)
from orchestrator.spec import Attempts, Resources

KILLED = Ending(cause="killed", reason="killed by signal 9", step=5, node="n1")
FULL = Ending(cause="out_of_memory", reason="out of memory: killed by Slurm", step=5, node="n1")
PREEMPTED = Ending(cause="", reason="preempted, stopped by SIGTERM", step=5)


def at(ending, step):
    return Ending(cause=ending.cause, reason=ending.reason, step=step, node=ending.node)


def test_a_killed_run_starts_again_elsewhere_after_a_while_until_its_attempts_are_used_up():
    first = decide(Attempts(), [KILLED], Room())
    assert first == Again(attempt=2, of=3, left=2, avoid="n1", after_minutes=1.0)
    assert isinstance(decide(Attempts(), [KILLED, at(KILLED, 7)], Room()), Again)
    last = decide(Attempts(), [KILLED, at(KILLED, 7), at(KILLED, 9)], Room())
    assert last == Stop(why="attempt 3 of 3")
    assert described("killed by signal 9", last) == "killed by signal 9; not started again: attempt 3 of 3"
    assert described("killed by signal 9", first) == "killed by signal 9"


def test_preemptions_do_not_count():
    endings = [at(PREEMPTED, step) for step in range(50)]
    assert isinstance(decide(Attempts(of=2), [*endings, KILLED], Room()), Again)
    assert decide(Attempts(), endings, Room()) == Stop()  # Slurm itself, or the run, sees to it


def test_what_happens_twice_at_the_same_step_ends_the_run():
    assert decide(Attempts(of=9), [KILLED, KILLED], Room()) == Stop(why="twice the same after step 5")
    early = at(KILLED, None)
    assert decide(Attempts(of=9), [early, PREEMPTED, early], Room()).why == "twice the same before it took a step"


def test_memory_grows_up_to_what_there_is():
    policy, room = Attempts(of=5, mem_gb_most=70.0), Room(mem_gb=32.0, mem_gb_most=64.0)
    assert decide(policy, [FULL], room).mem_gb == 48
    assert decide(policy, [FULL, FULL], Room(mem_gb=48.0, mem_gb_most=64.0)).mem_gb == 64
    assert (
        decide(policy, [FULL], Room(mem_gb=64.0, mem_gb_most=64.0)).why == "there is no more memory to give than 64 GB"
    )
    assert decide(policy, [FULL], room).avoid == ""
    assert memory_steps(policy, room) == [48, 64]
    assert decide(policy, [FULL], Room()).mem_gb is None  # it is not known how much it had
    assert decide(policy, [FULL, FULL], Room()).why == "twice the same after step 5"


def test_only_the_causes_that_a_person_wants_and_never_for_older_launches():
    assert decide(Attempts(when=("node_failed",)), [KILLED], Room()) == Stop()
    assert decide(Attempts(of=1), [KILLED], Room()) == Stop()
    assert decide(None, [KILLED], Room()) == Stop()


def test_exceptions_that_match_a_pattern():
    policy = Attempts(when=(), exceptions=("NCCL error", "^ConnectionError"))
    assert excused(policy, RuntimeError("an NCCL error: remote"))
    assert excused(policy, ConnectionError("reset"))
    assert not excused(policy, ValueError("shapes"))
    assert not excused(Attempts(), RuntimeError("NCCL error"))
    assert isinstance(decide(policy, [Ending(cause=EXCEPTION, reason="x", step=1)], Room()), Again)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("killed by signal 9 (rank 1 on n0)", "killed"),
        ("killed by SIGKILL", "killed"),
        ("out of memory: killed by Slurm", "out_of_memory"),
        ("killed with its node, or by Slurm; its job was started again", "node_failed"),
        ("its node failed", "node_failed"),
        ("time limit", ""),
        ("cancelled in Slurm", ""),
        ("preempted, stopped by SIGTERM", ""),
        ("stopped by SIGTERM", ""),
    ],
)
def test_the_cause_in_a_reason(reason, cause):
    assert cause_in(reason) == cause


def test_a_policy_is_read_checked_and_written_with_what_differs_from_the_defaults():
    need = schema.resources({"attempts": {"of": 2, "when": ["killed", {"exception": ["a.b"]}]}})
    assert need.attempts == Attempts(of=2, when=("killed",), exceptions=("a.b",))
    assert Resources.from_json(need.to_json()) == need
    assert schema.resources({}).to_json()["attempts"] == {}
    assert "attempts" not in Resources().to_json()
    for wrong in ({"of": 0}, {"when": ["kiled"]}, {"when": [{"exception": "("}]}, {"mem_factor": 0.5}, 3):
        with pytest.raises(ConfigError, match=r"resources\.attempts"):
            schema.resources({"attempts": wrong})
