"""What the code of today must read, resume, retry, compare and upload: the runs that version 0.1.0 left.

Only the command line and the files on disk are used, and the expected values are literal: the tests rely on the name
and place of no module but those that queued and running jobs have baked in. The queued jobs are run by
tests/slurm/test_contracts_on_slurm.py.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from old_runs import OldRuns, lines

CODE = "plain-9cb5cb912b30240d1ba179cb6d1e4cf966f5ef54"
PLAIN, FASTER, BROKEN = "ed600bdac5f1", "a44ecb216066", "bca6c0b69b5b"
TERMINATED, KILLED = "dfe98ac73403", "df6e878478d9"
TRIALS = ["c9afd62d01a8", "5a5e0ca36e08", "5a6fdd5e6261"]
PACKED = ["60191eea6339", "8416752afeaf", "8729ad8ade6f", "43688122eb13"]
MENDED = ("if self.breaks and self.global_step == 1:", "if self.breaks and self.global_step == -1:")


# --- names that jobs have baked in --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldRuns:
    """The runs as they were left; they are only looked at."""
    return OldRuns(tmp_path_factory.mktemp("old"))


@pytest.mark.parametrize(
    ("module", "asks_for"),
    [
        ("orchestrator.worker", "sys.argv[1]"),
        ("orchestrator.worker.pack", "sys.argv[1]"),
        ("orchestrator.worker.warm", "sys.argv[1]"),
        ("orchestrator.slurm.teardown", "sys.argv[1]"),
        ("orchestrator.uploader", "sys.argv[1]"),
        ("orchestrator.sidecar", "sys.argv[1]"),
        ("orchestrator.registrar", "JSONDecodeError"),
        ("orchestrator.local.workstation", "sys.argv[1]"),
    ],
)
def test_a_program_that_a_job_names_is_there_and_runs(old: OldRuns, module: str, asks_for: str) -> None:
    """Without its arguments it fails; one that only imported what has moved would end well."""
    done = old.run("-m", module)
    assert (done.returncode, asks_for in done.stderr) == (1, True), done.stderr


def test_what_jobs_are_started_from_can_be_loaded(old: OldRuns) -> None:
    launch = old.runs / "queued" / "launches" / "0001"
    with (launch / "submitit" / "6_submitted.pkl").open("rb") as file:
        start = pickle.load(file).function
    assert type(start).__name__ == "StartWorker"
    assert (start.worker, start.launch, start.offset) == (("-m", "orchestrator.worker"), str(launch), 0)
    with (old.runs / "queued-packs" / "launches" / "0001" / "submitit" / "start.0.packs.pkl").open("rb") as file:
        assert pickle.load(file).function.worker == ("-m", "orchestrator.worker.pack")


# --- looked at ----------------------------------------------------------------------------------------------


def test_the_states_of_old_runs(old: OldRuns) -> None:
    expected = {PLAIN: "done", FASTER: "done", BROKEN: "failed", TERMINATED: "interrupted", KILLED: "interrupted"}
    assert old.states("tiny") == expected
    assert old.states("search") == dict(zip(TRIALS, ["done", "done", "interrupted"], strict=True))
    assert old.states("packed") == dict.fromkeys(PACKED, "done")
    assert old.states("queued") == dict.fromkeys([PACKED[0], PACKED[2], "d8fac63cffe9"], "unknown")
    assert old.states("queued-packs") == dict.fromkeys([PACKED[0], PACKED[2]], "unknown")


def test_what_is_told_of_each_old_run(old: OldRuns) -> None:
    told = {run["run"]: run for run in json.loads(old.orch("status", "tiny", "--json"))["runs"]}
    assert {run: told[run]["reason"] for run in (BROKEN, TERMINATED, KILLED)} == {
        BROKEN: "ArithmeticError at nets.py:39",
        TERMINATED: "stopped by SIGTERM",
        KILLED: "killed by SIGKILL",
    }
    assert told[TERMINATED]["point"] == {"model.lr": 0.1, "model.stops": "SIGTERM"}
    assert told[PLAIN]["best"] == {
        "metric": "val/late",
        "value": 0.0,
        "step": 2,
        "epoch": 0,
        "checkpoint": "a001/checkpoints/best.ckpt",
    }
    assert told[PLAIN]["metrics"] == {
        "train/loss": 0.4520142078399658,
        "val/loss": 0.06871945410966873,
        "val/late": 4.0,
    }


def test_an_old_run_is_shown(old: OldRuns) -> None:
    shown = json.loads(old.orch("show", "tiny", KILLED[:4], "--json"))
    assert (shown["run"], shown["state"], shown["code"], shown["node"]) == (KILLED, "interrupted", CODE, "login")
    assert shown["config"]["model"] == {"_target_": "nets.Tiny", "lr": 0.1, "breaks": False, "stops": "SIGKILL"}
    assert shown["launched"]["by"] == "ada"
    assert shown["launched"]["why"] == "the first look"
    assert shown["data"]["digest"] == "555dcbc58b6ebf778f591db0cde4a35d396d644e04d715aeb9dade7a16c9afd9"
    assert [attempt["state"] for attempt in shown["attempts"]] == ["interrupted"]
    trial = json.loads(old.orch("show", "search", TRIALS[2], "--json"))
    assert (trial["point"], trial["config"]["model"]["x"]) == ({"trial": 2, "model.x": -0.332164}, -0.332164)
    assert PLAIN[:8] in old.orch("status", "tiny", "tag=old")
    assert "model.lr: 0.1 -> 0.2" in old.orch("diff", "tiny", PLAIN, FASTER)


def test_old_logs(old: OldRuns) -> None:
    assert old.orch("logs", "tiny", BROKEN).endswith("ArithmeticError: this run was to fail\n")
    assert ", in training_step\n" in old.orch("logs", "tiny", "state=failed")


def test_old_runs_are_compared(old: OldRuns) -> None:
    tiny = json.loads(old.orch("compare", "tiny", "--json"))
    assert [row["run"] for row in tiny] == [run[:8] for run in (PLAIN, FASTER, BROKEN, TERMINATED, KILLED)]
    assert [row["val/late"] for row in tiny] == [0.0, 0.0, None, None, None]
    search = json.loads(old.orch("compare", "search", "--json"))
    assert [(row["trial"], row["model.x"], row["loss"]) for row in search] == [
        (1, 1.87358, 0.3493153750896454),
        (0, -1.78757, 14.679018020629883),
        (2, -0.332164, None),
    ]
    packed = json.loads(old.orch("compare", "packed", "--json"))
    assert [(row["runs"], row["model.lr"], row["val/loss"]["mean"]) for row in packed] == [
        (PACKED[2:], 0.2, 7.958536230034952e-08),
        (PACKED[:2], 0.1, 0.0007922827498987317),
    ]


# --- uploaded -----------------------------------------------------------------------------------------------

POINTS = {
    PLAIN: ("FINISHED", 57), FASTER: ("FINISHED", 57), BROKEN: ("FAILED", 28),
    TERMINATED: ("KILLED", 36), KILLED: ("KILLED", 35),
    TRIALS[0]: ("FINISHED", 31), TRIALS[1]: ("FINISHED", 31), TRIALS[2]: ("KILLED", 15),
    **dict.fromkeys(PACKED, ("FINISHED", 37)),
}  # fmt: skip
"""Of each run: MLflow's word for its state, and how many values its spools hold, its node's included."""

UPLOADED = """
SELECT (SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid AND key = 'orch.run') AS run, status, count(value)
FROM runs LEFT JOIN metrics ON metrics.run_uuid = runs.run_uuid GROUP BY runs.run_uuid HAVING run IS NOT NULL
"""


def test_all_that_old_runs_have_logged_is_uploaded(tmp_path: Path) -> None:
    old = OldRuns(tmp_path)
    old.orch("ui", "--once")
    with closing(sqlite3.connect(old.runs / ".mlflow" / "mlflow.db")) as store:
        assert {run: tuple(rest) for run, *rest in store.execute(UPLOADED)} == POINTS
        assert store.execute("SELECT name FROM registered_models").fetchall() == [("tiny",)]


# --- retried, resumed and gone on with ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> OldRuns:
    """The runs after what was left to do: the failed one with mended code, the interrupted ones, and one trial more."""
    again = OldRuns(tmp_path_factory.mktemp("again"))
    nets = again.project / "nets.py"
    nets.write_text(nets.read_text().replace(*MENDED))
    again.orch("retry", "tiny", BROKEN)
    again.orch("launch", "experiment=tiny", "tracking=none")
    again.orch("launch", "experiment=search", "tracking=none", "sweep.optuna.n=4")
    return again


def codes(old: OldRuns, name: str, run: str) -> list[str]:
    """Return the code of each attempt of a run."""
    claims = sorted((old.runs / name / "runs" / run).glob("a*/claim.json"))
    return [json.loads(claim.read_text())["code"] for claim in claims]


def test_what_was_done_is_not_run_again(again: OldRuns) -> None:
    assert again.states("tiny") == dict.fromkeys([PLAIN, FASTER, BROKEN, TERMINATED, KILLED], "done")
    done = [("tiny", PLAIN), ("tiny", FASTER), ("search", TRIALS[0]), ("search", TRIALS[1])]
    assert [codes(again, *each) for each in done] == [[CODE]] * 4
    plan = json.loads(again.orch("plan", "experiment=packed", "cluster=inline", "--json"))
    assert [(step["run"], step["action"]) for step in plan["steps"]] == [(run, "skip") for run in PACKED]


def test_a_failed_run_is_retried_from_scratch_with_the_code_of_today(again: OldRuns) -> None:
    first, second = codes(again, "tiny", BROKEN)
    assert (first, CODE in second) == (CODE, False)
    events = again.events("tiny", BROKEN, 2)
    assert [event["resumed"] for event in events if event["kind"] == "training"] == [False]
    assert events[-1]["best"] == {
        "metric": "val/late",
        "value": 0.0,
        "step": 2,
        "epoch": 0,
        "checkpoint": "a002/state/step-2.ckpt",
    }


@pytest.mark.parametrize(("run", "step"), [(TERMINATED, 3), (KILLED, 2)])
def test_an_interrupted_run_goes_on_from_its_old_checkpoint(again: OldRuns, run: str, step: int) -> None:
    """With its own code, at the step it had reached, and with the best value that it had: nothing later beats it."""
    assert codes(again, "tiny", run) == [CODE, CODE]
    events = again.events("tiny", run, 2)
    assert [event["resumed"] for event in events if event["kind"] == "training"] == [True]
    logged = lines(again.attempt("tiny", run, 2) / "metrics.jsonl")
    steps = [line["step"] for line in logged if "val/late" in line.get("values", {})]
    assert (steps[0], steps) == (step, sorted(steps))
    assert [event["progress"]["step"] for event in events if event["kind"] == "progress"][-1] == 6
    assert events[-1]["kind"] == "done"
    assert events[-1]["best"] == {
        "metric": "val/late",
        "value": 0.0,
        "step": 2,
        "epoch": 0,
        "checkpoint": "a001/checkpoints/best.ckpt",
    }


def test_gradients_that_an_old_checkpoint_holds_are_stepped_with(again: OldRuns) -> None:
    """It was stopped after two of four batches. Their gradients, -1.012 of -1.024 or more, move the weight on.

    Which batches come after them is not the matter here: version 0.1.0 begins its numbers anew, where they would go on
    with 1 and 0. Without the gradients the weight would be 0.489 or 0.589.
    """
    logged = lines(again.attempt("tiny", TERMINATED, 2) / "metrics.jsonl")
    (after,) = [line["values"]["val/loss"] for line in logged if line.get("values", {}).get("val/late") == 2.0][:1]
    assert 1 - after**0.5 in (pytest.approx(0.6904, abs=1e-4), pytest.approx(0.5904, abs=1e-4))


def test_a_killed_run_ends_with_what_the_undisturbed_one_has(again: OldRuns) -> None:
    """It goes on from the end of an epoch; the two are alike in all but the signal."""
    (plain,), (killed,) = (
        [event["metrics"] for event in again.events("tiny", run, number) if event["kind"] == "done"]
        for run, number in ((PLAIN, 1), (KILLED, 2))
    )
    assert killed == pytest.approx(plain)


def test_a_search_goes_on_with_the_trials_it_has(again: OldRuns) -> None:
    trials = json.loads(again.orch("status", "search", "--json"))["runs"]
    assert [(trial["run"], trial["state"]) for trial in trials[:3]] == [(run, "done") for run in TRIALS]
    assert [trial["point"] for trial in trials] == [
        {"trial": 0, "model.x": -1.78757},
        {"trial": 1, "model.x": 1.87358},
        {"trial": 2, "model.x": -0.332164},
        {"trial": 3, "model.x": -3.84272},
    ]
    assert trials[3]["run"] == "b3b228e781f9"
    assert trials[3]["state"] == "done"


def test_an_interrupted_trial_counts_its_validations_on(again: OldRuns) -> None:
    numbers = [
        [event["validation"] for event in again.events("search", TRIALS[2], attempt) if event["kind"] == "report"]
        for attempt in (1, 2)
    ]
    assert numbers == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]


def test_checkpoints_keep_the_names_of_what_they_hold(again: OldRuns) -> None:
    """Lightning keys a callback's state by its class's name; a new name would lose what an old checkpoint holds."""
    import torch

    old = again.attempt("search", TRIALS[2], 1) / "checkpoints" / "best.ckpt"
    new, *_ = (again.attempt("search", TRIALS[2], 2) / "state").glob("step-*.ckpt")
    found = [torch.load(path, weights_only=True) for path in (old, new)]
    states = [checkpoint["callbacks"] for checkpoint in found]
    kept = [(state["Progress"]["best"].keys(), state["Prune"].keys()) for state in states]
    assert kept == [({"metric", "value", "step", "epoch", "checkpoint"}, {"validations"})] * 2
    assert found[0]["orch_gradients"].keys() == {"weight"}
