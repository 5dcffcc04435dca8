"""Campaigns: long-running tests, by name, each with a printed seed and a time limit of its own.

python tests/support/campaigns.py [NAME...] [--seed N]                   those named, or all: `make test-long`
python tests/support/campaigns.py --commit HASH --began SECONDS          as many as CI has time for: `.ci/run`

A test belongs to a campaign by its mark, `@pytest.mark.campaign("chaos")`, and is then left out of `make test`;
with `sample=True` it runs there, too, with smaller numbers (`amount`). Every property-based test belongs to `fuzz`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

NAME = os.environ.get("ORCH_TEST_CAMPAIGN", "")
"""The campaign that this process's tests run in; empty in `make test`."""
SEED = int(os.environ.get("ORCH_TEST_SEED", "0"))
"""The seed of a campaign's random moments and values; 0 in `make test`."""

BEGIN_BEFORE_MINUTES = 40.0
"""CI begins no more campaigns this long after its own start ..."""
END_BEFORE_MINUTES = 75.0
"""... and none whose time limit would end after this."""
GRACE_SECONDS = 60.0
"""The time that pytest has after an interrupt to shut down servers and clusters."""

PARALLEL = ("--numprocesses", "3", "--dist", "loadfile", "--no-loadscope-reorder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Tests that run together; the limit is a multiple of the time that they take on two idle cores."""

    name: str
    minutes: float
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


SCALE = ("tests/slurm/test_scale.py",)
CAMPAIGNS = (
    Campaign(name="chaos", minutes=30, arguments=("tests/data", "tests/launch", "tests/slurm", "tests/tracking")),
    Campaign(name="slurm", minutes=35, arguments=("tests/slurm",)),
    Campaign(name="fuzz", minutes=30, arguments=PARALLEL),
    Campaign(name="damage", minutes=25, arguments=("tests/config", "tests/records", "tests/cli")),
    Campaign(name="exact", minutes=35, arguments=("tests/worker/test_exactness.py",)),
    Campaign(name="uploaders", minutes=20, arguments=("tests/tracking/test_tracking_server.py",)),
    Campaign(name="scale", minutes=30, arguments=SCALE, environ={"SCALE_RUNS": "500"}),
    Campaign(name="scale-10000", minutes=240, arguments=SCALE, environ={"SCALE_RUNS": "10000"}),
)
BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}


def amount(few: int, many: int) -> int:
    """Return the number of kills, runs or examples in a test: few in `make test`, many in a campaign."""
    return many if NAME else few


def order(commit: str) -> list[Campaign]:
    """Return all campaigns in an order that starts with a different one for each commit."""
    first = int(commit, 16) % len(CAMPAIGNS)
    return [*CAMPAIGNS[first:], *CAMPAIGNS[:first]]


def fits(campaign: Campaign, elapsed_minutes: float) -> bool:
    """Return whether CI may begin a campaign this long after its own start."""
    return elapsed_minutes < BEGIN_BEFORE_MINUTES and elapsed_minutes + campaign.minutes <= END_BEFORE_MINUTES


def run(campaign: Campaign, seed: int) -> str:
    """Run a campaign's tests, and return how that ended: `passed`, `failed`, or `stopped after N minutes`."""
    say(f"campaign {campaign.name} seed {seed} (at most {campaign.minutes:g} minutes)")
    argv = [sys.executable, "-m", "pytest", *campaign.arguments, f"--hypothesis-seed={seed}"]
    mine = {"ORCH_TEST_CAMPAIGN": campaign.name, "ORCH_TEST_SEED": str(seed)}
    environ = {**campaign.environ, **os.environ, **mine}
    process = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
    status = within(process, campaign.minutes * 60)
    ended = {None: f"stopped after {campaign.minutes:g} minutes", 0: "passed"}.get(status, "failed")
    say(f"campaign {campaign.name} seed {seed}: {ended}")
    return ended


def within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return a process's exit status; None if it had to be stopped, with all of its group."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    except BaseException:
        stop(process)
        raise
    stop(process)
    return None


def stop(process: subprocess.Popen[bytes]) -> None:
    """Give an interrupted process time to clean up, then kill all of its group."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_all(campaigns: Sequence[Campaign], seed: int) -> bool:
    """Run campaigns one after another, even if one fails; return whether all passed."""
    return summary({campaign.name: run(campaign, seed) for campaign in campaigns}, seed) == {"passed"}


def run_while_time_is_left(commit: str, began: float) -> bool:
    """Run campaigns, starting with the commit's first, as long as CI has time; a stopped one does not fail CI."""
    seed, results = int(commit[:8], 16), {}
    for campaign in order(commit):
        if fits(campaign, (time.time() - began) / 60):
            results[campaign.name] = run(campaign, seed)
        else:
            say(f"campaign {campaign.name}: not run, there is no time left for its {campaign.minutes:g} minutes")
    return "failed" not in summary(results, seed)


def summary(results: Mapping[str, str], seed: int) -> set[str]:
    """Print which campaigns ran, and return their outcomes."""
    say(f"campaigns: {', '.join(f'{name} seed {seed} {ended}' for name, ended in results.items()) or 'none'}")
    return set(results.values())


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Run campaigns of tests.")
    parser.add_argument("names", nargs="*", choices=[*BY_NAME, []], metavar="NAME", help=", ".join(BY_NAME))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--commit", help="choose by this commit's hash")
    parser.add_argument("--began", type=float, help="when CI began, in seconds since 1970")
    told = parser.parse_args(argv)
    if told.commit:
        return 0 if run_while_time_is_left(told.commit, told.began or time.time()) else 1
    seed = random.randrange(2**31) if told.seed is None else told.seed
    return 0 if run_all([BY_NAME[name] for name in told.names] or CAMPAIGNS, seed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
