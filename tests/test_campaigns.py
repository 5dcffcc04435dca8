"""Campaigns: which ones CI runs for a commit, when it begins no more, and what becomes of one that takes too long."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import campaigns
import psutil
import pytest
from campaigns import BEGIN_BEFORE_MINUTES, CAMPAIGNS, END_BEFORE_MINUTES, Campaign, fits, order, run, within
from processes import wait_for

TESTS = Path(__file__).parent
IN_CI = [campaign for campaign in CAMPAIGNS if fits(campaign, 0)]


def test_each_commit_begins_with_one_of_the_campaigns_and_each_campaign_has_its_commits():
    orders = [order(f"{number:040x}") for number in range(len(CAMPAIGNS))]
    assert {each[0].name for each in orders} == {campaign.name for campaign in CAMPAIGNS}
    assert all(sorted(c.name for c in each) == sorted(c.name for c in CAMPAIGNS) for each in orders)
    assert order("6effb16" + "0" * 33) == order("6effb16" + "0" * 33)


def test_ci_begins_no_campaign_late_and_none_that_would_end_late():
    short, long = Campaign(name="short", minutes=1), Campaign(name="long", minutes=36)
    assert fits(short, BEGIN_BEFORE_MINUTES - 0.1)
    assert not fits(short, BEGIN_BEFORE_MINUTES)
    assert fits(long, END_BEFORE_MINUTES - 36)
    assert not fits(long, END_BEFORE_MINUTES - 35.9)


def test_all_but_the_largest_campaign_fit_into_ci_whenever_one_may_begin():
    assert {campaign.name for campaign in CAMPAIGNS} - {campaign.name for campaign in IN_CI} == {"scale-10000"}
    assert all(campaign.minutes <= END_BEFORE_MINUTES - BEGIN_BEFORE_MINUTES for campaign in IN_CI)


def test_each_campaign_has_tests_and_each_marked_test_a_campaign():
    texts = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    named = set(re.findall(r"mark\.campaign\(\"([\w-]+)\"", texts))
    assert named | {"fuzz"} == {campaign.name for campaign in CAMPAIGNS}


def test_a_campaign_tells_its_name_and_seed_and_gives_them_to_its_tests(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    test = tmp_path / "test_one.py"
    test.write_text("import campaigns\ndef test_it(): assert (campaigns.NAME, campaigns.SEED) == ('mine', 17)\n")
    assert run(Campaign(name="mine", minutes=5, arguments=of(test)), 17) == "passed"
    assert "campaign mine seed 17" in capfd.readouterr().out
    assert run(Campaign(name="other", minutes=5, arguments=of(test)), 17) == "failed"
    assert "campaign other seed 17: failed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("ended", "ci", "long_tests"), [("passed", 1, 1), ("stopped after 1 minutes", 1, 0), ("failed", 0, 0)]
)
def test_a_campaign_that_is_stopped_fails_the_long_tests_but_not_ci(monkeypatch, ended, ci, long_tests):
    monkeypatch.setattr(campaigns, "run", lambda *_: ended)
    assert campaigns.run_while_time_is_left("6effb16", time.time()) == bool(ci)
    assert campaigns.run_all(CAMPAIGNS, 1) == bool(long_tests)


STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_what_takes_too_long_is_interrupted_then_killed_and_nothing_of_it_is_left(monkeypatch):
    monkeypatch.setattr(campaigns, "GRACE_SECONDS", 0.1)
    argv = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        child = int(process.stdout.readline())
        assert within(process, 0.1) is None
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: gone(child), "the child to be gone")


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def of(test):
    """Return pytest's arguments for a test file that belongs to no campaign of ours."""
    options = ("-o", f"pythonpath={shlex.quote(str(TESTS / 'support'))}", "-p", "_hypothesis_pytestplugin")
    return ("-q", "-c", os.devnull, "--rootdir", str(test.parent), *options, str(test))


def test_an_unknown_campaign_is_refused_with_those_that_there_are():
    argv = [sys.executable, campaigns.__file__, "chaoss"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "chaos" in done.stderr
