"""Jobs that version 0.1.0 put into a Slurm's queue, and that begin once the code of today is installed."""

from __future__ import annotations

import json

import pytest
from old_runs import OldRuns
from processes import wait_for
from real_slurm import output
from states import adopt

pytestmark = pytest.mark.slurm

FIRST, SECOND, THIRD = "60191eea6339", "8729ad8ade6f", "d8fac63cffe9"


def test_jobs_that_the_old_code_has_queued_are_run_to_their_end(slurm, tmp_path):
    """A canary, whose end submits the two runs that wait for it, and a pack of two runs."""
    old = OldRuns(tmp_path, slurm=True)
    adopt(old.runs)  # in the state folder that the jobs see: an old script hands them no proof
    jobs = []
    for name, script in (("queued", "6_submission.sh"), ("queued-packs", "8_submission.sh")):
        launch = old.runs / name / "launches" / "0001"
        jobs.append(output("sbatch", "--parsable", str(launch / "submitit" / script), cwd=launch))
    runs = [("queued", FIRST), ("queued", SECOND), ("queued", THIRD), ("queued-packs", FIRST), ("queued-packs", SECOND)]

    def last_events():
        return [[{"kind": ""}, *old.events(name, run, 1)][-1]["kind"] for name, run in runs]

    wait_for(lambda: all(kind in {"done", "failed", "interrupted"} for kind in last_events()), "the runs to end")
    assert last_events() == ["done"] * 5
    assert old.states("queued") == dict.fromkeys([FIRST, SECOND, THIRD], "done")
    assert old.states("queued-packs") == dict.fromkeys([FIRST, SECOND], "done")
    claims = [json.loads((old.attempt(name, run, 1) / "claim.json").read_text()) for name, run in runs]
    assert [claims[0]["job"], *(claim["job"] for claim in claims[3:])] == [f"{jobs[0]}_0", *[f"{jobs[1]}_0"] * 2]
    turns = old.runs / "queued" / "launches" / "0001" / "turns"
    assert [job["indices"] for job in json.loads((turns / "0002" / "jobs.json").read_text())] == [[0], [1, 2]]
