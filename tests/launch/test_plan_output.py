"""`orch plan` as it is read: what is rare is seen among thousands, and what is asked for is summed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import ROOT

from orchestrator import cli
from orchestrator.cli.plan import plan_lines
from orchestrator.cli.text import ROWS
from orchestrator.cluster import Capacity, Scratch
from orchestrator.dry_run import Plan
from orchestrator.launch.estimate import DataTotal, DiskForecast, shape_totals
from orchestrator.launch.plan import Action, Step
from orchestrator.layout import LaunchPaths
from orchestrator.spec import Resources, RunId
from orchestrator.spec.experiment import Run

MODEL = "orchestrator.models.mlp.MLP"
EXPERIMENT = """\
# @package _global_
name: base
defaults: [{override /model: mlp}, {override /data: synthetic}]
"""


def step(number, action=Action.SUBMIT, resources=None):
    run = Run(
        id=RunId(f"{number:012x}"),
        point={"seed": number},
        config={},
        resources=resources or Resources(),
        data_digest=None,
    )
    return Step(run=run, action=action, reason="why", attempt=1, generation=1, history=1, code="c0de")


def planned(steps, *, hours=None, scratch=None, data=(), **known):
    known = {"runs": 0, "bytes": 0, "largest_bytes": 0, "saved": 0, "unknown": {}, "problem": "", **known}
    acting = [each for each in steps if each.action is not Action.SKIP]
    return Plan(
        steps=tuple(steps),
        acting=tuple(acting),
        launch=LaunchPaths(Path("/r/x/launches/0003")),
        arrays=None,
        data=data,
        notes=(),
        shapes=shape_totals(acting, arrays=None, default_hours=hours),
        capacity=Capacity(scratch=scratch or Scratch(where="scratch /tmp")),
        checkpoints=DiskForecast(free_bytes=10**9, folder=Path("/r"), **known),
    )


def test_the_first_rows_of_each_action_are_shown():
    steps = [step(i, Action.SKIP if i % 1000 else Action.RETRY) for i in range(10_000)]
    lines = plan_lines(planned(steps))
    rows = [line.split()[0] for line in lines[1 : lines.index("... and 9965 more: --all")]]
    assert (rows.count("skip"), rows.count("retry")) == (25, 10)
    assert "10000 runs: 10 to retry, 9990 to skip" in lines
    assert len(lines) < ROWS + 15


def test_all_rows_are_shown_when_asked_and_where_they_are_few():
    assert len(rows_of(plan_lines(planned([step(i) for i in range(ROWS)])))) == ROWS
    many = planned([step(i) for i in range(ROWS + 1)])
    assert len(rows_of(plan_lines(many))) == ROWS
    assert len(rows_of(plan_lines(many, everything=True))) == ROWS + 1


def rows_of(lines):
    return [line for line in lines if line.startswith("submit")]


def test_shapes_are_summed_up_and_what_is_unknown_is_not_claimed():
    wide = Resources(nodes=2, gpus_per_node=4, gpu_type="a100", cpus_per_node=32, mem_gb_per_node=64, hours=3)
    lines = plan_lines(planned([step(1, resources=wide), step(2, resources=wide), step(3)]))
    assert [" ".join(line.split()) for line in lines[lines.index("") :]][3:6] == [
        "RUNS TASKS EACH TIME LIMIT AT MOST",
        "2 16 2 nodes x (4 a100 GPUs, 32 CPUs, 64 GB) 3 h 48 GPU-hours",
        "1 1 1 CPU none asked",
    ]
    assert "at most 48 GPU-hours in all" in lines


def test_the_clusters_own_time_limit_is_called_so():
    lines = plan_lines(planned([step(1, resources=Resources(cpus_per_node=4))], hours=1.5))
    assert any("1.5 h, the default" in line and "6 CPU-hours" in line for line in lines)


def test_where_nothing_is_to_be_done_nothing_is_asked_for():
    assert plan_lines(planned([step(1, Action.SKIP)]))[-1] == "1 run: 1 to skip"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"unknown": {MODEL: 2}}, "checkpoints: unknown (none of these models was trained here; --forecast builds"),
        ({"unknown": {MODEL: 2}, "problem": "it raised"}, "checkpoints: unknown (it raised); 1 GB free in /r"),
        ({"runs": 1, "bytes": 5000, "largest_bytes": 5000}, "checkpoints: about 5 kB; 1 GB free in /r"),
        (
            {"runs": 2, "bytes": 9000, "largest_bytes": 5000},
            "checkpoints: about 9 kB, up to 5 kB a run; 1 GB free in /r",
        ),
        ({"runs": 1, "bytes": 5000, "largest_bytes": 5000, "unknown": {MODEL: 1}}, "1 GB free in /r; unknown of 1 run"),
    ],
)
def test_what_is_known_of_checkpoints_is_told(known, told):
    assert told in plan_lines(planned([step(1), step(2)], **known))[-1]


@pytest.mark.parametrize(
    ("scratch", "told"),
    [
        (Scratch(where="scratch /tmp", bytes=9000, free_bytes=5000), "scratch /tmp holds 9 kB, 5 kB free"),
        (Scratch(where="scratch is of unknown size"), "scratch is of unknown size"),
    ],
)
def test_data_stands_beside_the_scratch_that_it_goes_to(scratch, told):
    data = DataTotal(digest="d", name="data/x 0123", bytes=7, files=1, runs=1)
    lines = plan_lines(planned([step(1)], scratch=scratch, data=(data,)))
    assert f"data data/x 0123: 7 bytes in 1 file; {told}" in lines


# --- as it is typed ---------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "a project"
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "base.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(folder)
    return folder


def test_a_plan_as_json_carries_all_of_it(project, capsys):
    assert cli.main(["plan", "experiment=base", "seed=1,2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["launch"], len(told["steps"]), told["data"]) == (1, 2, [])
    assert [(shape["runs"], shape["arrays"]) for shape in told["resources"]] == [(2, None)]
    assert told["checkpoints"]["unknown"] == {MODEL: 2}
    assert told["scratch"]["free_bytes"] > 0
    assert "scripts" not in told
    assert not (project / "runs").exists()


@pytest.mark.parametrize("cluster", ["inline", "workstation"])
def test_a_cluster_without_scripts_says_so(cluster, project, capsys):
    assert cli.main(["plan", "experiment=base", f"cluster={cluster}", "--sbatch"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        f"error: cluster={cluster} submits no scripts: only a Slurm cluster does\nfix: orch plan --sbatch" in said.err
    )


def test_a_forecast_that_was_asked_for_is_known_from_then_on(project, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert cli.main(["plan", "experiment=base", "--forecast"]) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    assert first.startswith("checkpoints: about ")
    assert cli.main(["plan", "experiment=base"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(";")[0] == first.split(";")[0]
