"""The calls of published modules on `self.logger`: MLflow's, TensorBoard's, Weights & Biases', and unknown ones."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only

from orchestrator.layout import AttemptPaths
from orchestrator.tracking import ArtifactLine, Metrics, Params, SpoolWriter, Tags, read
from orchestrator.tracking.logger import SpoolLogger


class Run:
    """A run whose module logs."""

    def __init__(self, folder):
        self.attempt = AttemptPaths(folder / "exp" / "runs" / "0a1b2c" / "a001")
        self.attempt.path.mkdir(parents=True)
        self.writer = SpoolWriter(self.attempt.metrics)
        self.logger = SpoolLogger(self.writer, self.attempt)
        self.artifacts = self.attempt.path.parent / "artifacts"

    def found(self, kind):
        return [record for record, _ in read(self.attempt.metrics) if isinstance(record, kind)]

    def metrics(self):
        return [(name, each.step, value) for each in self.found(Metrics) for name, value in each.values.items()]

    def files(self):
        """The files among the artifacts; each has a line in the spool."""
        lines = {str(self.attempt.path.joinpath(line.path).resolve()) for line in self.found(ArtifactLine)}
        files = {path for path in self.artifacts.rglob("*") if path.is_file()}
        assert lines == {str(path.resolve()) for path in files}
        return {str(path.relative_to(self.artifacts)) for path in files}


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    with made.writer:
        yield made


NOTES = "notes 'of' the run.txt"

MLFLOW_FILES = {
    "log_text": (("hello", "a.txt"), "a.txt"),
    "log_dict": (({"a": 1}, "a.json"), "a.json"),
    "log_figure": ((Figure(), "plots/a.png"), "plots/a.png"),
    "log_image": ((np.zeros((2, 2, 3)), "a.png"), "a.png"),
    "log_table": (({"a": [1, 2]}, "t.json"), "t.json"),
}


@pytest.mark.parametrize("first", ["run_id", "version", "keyword", "none"])
@pytest.mark.parametrize("name", MLFLOW_FILES)
def test_a_file_is_logged_with_and_without_the_runs_id(run, name, first):
    arguments, path = MLFLOW_FILES[name]
    call = getattr(run.logger.experiment, name)
    match first:
        case "keyword":
            call(*arguments, run_id=run.logger.run_id)
        case "none":
            call(*arguments)
        case _:
            call(getattr(run.logger, first), *arguments)
    assert run.files() == {path}


def test_the_names_of_mlflows_arguments_are_known(run):
    run.logger.experiment.log_text(run_id=run.logger.run_id, text="x", artifact_file="a.txt")
    run.logger.experiment.log_text(text="x", path="b.txt")
    run.logger.experiment.log_text("", "empty.txt")
    run.logger.experiment.log_figure("another run's id", Figure(), "c.svg", save_kwargs={"dpi": 10})
    assert run.files() == {"a.txt", "b.txt", "c.svg", "empty.txt"}


def test_after_a_runs_id_an_artifact_is_given_a_folder_otherwise_a_name(run, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / NOTES).write_text("x")
    (source / "deep" / "b").write_text("y")
    experiment, run_id = run.logger.experiment, run.logger.run_id
    experiment.log_artifact(run_id, str(source / NOTES))
    experiment.log_artifact(run_id, str(source / NOTES), "folder")
    experiment.log_artifact(run_id, local_path=source / NOTES, artifact_path="named")
    experiment.log_artifact(source / NOTES, "other/name.txt")
    experiment.log_artifacts(run_id, str(source), "all")
    experiment.log_artifact(run_id, str(source / "deep"))
    assert run.files() == {
        NOTES,
        f"folder/{NOTES}",
        f"named/{NOTES}",
        "other/name.txt",
        f"all/{NOTES}",
        "all/deep/b",
        "deep/b",
    }


def test_what_is_logged_as_a_tree_can_be_read_again(run):
    tree = {"b": [1.5, None], "a": torch.tensor(2)}
    run.logger.experiment.log_dict(tree, "tree.yaml")
    run.logger.experiment.log_dict(tree, "tree.json")
    assert (run.artifacts / "tree.yaml").read_text() == "b:\n- 1.5\n- null\na: tensor(2)\n"
    assert json.loads((run.artifacts / "tree.json").read_text()) == {"b": [1.5, None], "a": "tensor(2)"}


def test_rows_of_a_table_are_appended(run):
    for value in (1, 2):
        run.logger.experiment.log_table(run.logger.run_id, {"x": [value], "y": ["a"]}, "t.json")
    assert json.loads((run.artifacts / "t.json").read_text()) == {"columns": ["x", "y"], "data": [[1, "a"], [2, "a"]]}


def test_mlflows_metrics_params_and_tags_reach_the_spool(run):
    experiment, run_id = run.logger.experiment, run.logger.run_id
    experiment.log_metric(run_id, "client", 1.0, 1_700_000_000_000, 7)
    experiment.log_metric("fluent", 2.0, 8)
    experiment.log_metric(run_id, "named", 3.0, step=9)
    experiment.log_metrics({"many": 4.0}, step=10)
    experiment.log_param(run_id, "p", 1)
    experiment.log_params({"q": 2})
    experiment.set_tag(run_id, "t", "v")
    experiment.set_tags({"u": 1})
    metric = SimpleNamespace(key="batch", value=5.0, step=11, timestamp=5)
    entry = SimpleNamespace(key="k", value="v")
    experiment.log_batch(run_id, metrics=[metric], params=[entry], tags=[entry], synchronous=True)
    assert run.metrics() == [
        ("client", 7, 1.0),
        ("fluent", 8, 2.0),
        ("named", 9, 3.0),
        ("many", 10, 4.0),
        ("batch", 11, 5.0),
    ]
    assert [run.found(Metrics)[number].time_ms for number in (0, 4)] == [1_700_000_000_000, 5]
    assert [each.values for each in run.found(Params)] == [{"p": 1}, {"q": 2}, {"k": "v"}]
    assert [each.values for each in run.found(Tags)] == [{"t": "v"}, {"u": "1"}, {"k": "v"}]


def test_what_is_logged_without_a_step_hides_nothing(run):
    experiment = run.logger.experiment
    for value in (1.0, 2.0):
        experiment.log_metric("a", value)
        experiment.log_batch(metrics=[SimpleNamespace(key="b", value=value, step=0, timestamp=1)])
    run.logger.log_metrics({"train/loss": 0.5}, step=40)
    experiment.log_metric("a", 3.0)
    experiment.add_figure("confusion", [Figure(), Figure()])
    experiment.add_figure("confusion", Figure())
    assert [step for name, step, _ in run.metrics() if name == "a"] == [0, 1, 40]
    assert [step for name, step, _ in run.metrics() if name == "b"] == [0, 1]
    assert run.files() == {f"confusion/step-0000{step}.png" for step in ("40", "40-1", "41")}


def test_tensorboards_numbers_reach_the_spool(run):
    writer = run.logger.experiment
    writer.add_scalar("x", torch.tensor(1.0), 3)
    writer.add_scalar("x", 2.0, global_step=4, walltime=1.5, new_style=True)
    writer.add_scalars("losses", {"a": 1.0, "b": 2.0}, 5)
    writer.add_hparams({"lr": 0.1}, {"hparam/acc": 0.9}, run_name="r")
    assert run.metrics() == [
        ("x", 3, 1.0),
        ("x", 4, 2.0),
        ("losses/a", 5, 1.0),
        ("losses/b", 5, 2.0),
        ("hparam/acc", 0, 0.9),
    ]
    assert run.found(Metrics)[1].time_ms == 1500
    assert [each.values for each in run.found(Params)] == [{"lr": 0.1}]


@pytest.mark.parametrize(
    ("call", "size"),
    [
        (lambda w: w.add_image("images/a", torch.ones(3, 4, 5), 2), (5, 4)),
        (lambda w: w.add_image("images/a", torch.ones(3, 4, 5, dtype=torch.bfloat16), 2), (5, 4)),
        (lambda w: w.add_image("images/a", np.ones((4, 5, 3)), 2, dataformats="HWC"), (5, 4)),
        (lambda w: w.add_image("images/a", torch.ones(4, 5), global_step=2, dataformats="HW"), (5, 4)),
        (lambda w: w.add_images("images/a", torch.ones(3, 1, 4, 5), 2), (15, 4)),
    ],
)
def test_tensorboards_images_are_saved_whatever_their_axes(run, call, size):
    call(run.logger.experiment)
    assert run.files() == {"images/a/step-000002.png"}
    with Image.open(run.artifacts / "images" / "a" / "step-000002.png") as saved:
        assert saved.size == size
        assert saved.convert("L").getextrema() == (255, 255)


def test_tensorboards_figures_are_closed_and_more_of_a_step_replace_none(run):
    figure = plt.figure()
    writer = run.logger.experiment
    writer.add_figure("../plots / it", figure, 1)
    writer.add_figure("../plots / it", [Figure(), Figure()], 1)
    writer.add_text("/said", "hello", 1)
    writer.add_graph(torch.nn.Linear(1, 1), torch.zeros(1))
    assert not plt.fignum_exists(figure.number)
    names = {f"plots / it/step-000001{number}.png" for number in ("", "-1", "-2")}
    assert run.files() == {*names, "said/step-000001.txt", "model.txt"}


def test_histograms_are_kept_as_a_line_for_each_step(run):
    for step in (1, 2):
        run.logger.experiment.add_histogram("w", torch.tensor([0.0, 1.0, float("nan")]), step, bins=2)
    run.logger.experiment.add_histogram("empty", torch.tensor([]), 1)
    first, second = map(json.loads, (run.artifacts / "histograms" / "w.jsonl").read_text().splitlines())
    assert first == {
        "step": 1,
        "min": 0.0,
        "max": 1.0,
        "mean": 0.5,
        "std": 0.5,
        "not_finite": 1,
        "counts": [1, 1],
        "edges": [0.0, 0.5, 1.0],
    }
    assert second["step"] == 2
    assert run.files() == {"histograms/w.jsonl", "histograms/empty.jsonl"}


def test_the_calls_of_wandb_logger_are_known(run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    logger = run.logger
    logger.log_image(key="samples", images=[torch.zeros(3, 4, 4), str(tmp_path / "a.jpg")], step=2, caption=["a", "b"])
    logger.log_table("table", columns=["a"], data=[[1]], step=2)
    logger.log_text("texts", columns=["a"], data=[["b"]], step=2)
    logger.log_text("said", "hello", step=2)
    logger.experiment.log({"x": 1.0, "n": 2}, step=2)
    assert run.files() == {
        "samples/step-000002.png",
        "samples/step-000002-1.jpg",
        "table/step-000002.json",
        "texts/step-000002.json",
        "said/step-000002.txt",
    }
    assert run.metrics() == [("x", 2, 1.0), ("n", 2, 2.0)]


def test_the_logger_has_the_calls_of_its_experiment(run):
    run.logger.add_scalar("x", 1.0, 2)
    run.logger.log_figure(Figure(), "a.png")
    assert run.metrics() == [("x", 2, 1.0)]
    assert run.files() == {"a.png"}


def test_an_unknown_call_is_one_warning_and_whatever_is_done_with_its_answer_is_nothing(run, caplog):
    for _ in range(2):
        run.logger.watch(torch.nn.Linear(1, 1), log="all")
        run.logger.experiment.add_embedding(torch.zeros(1), 3)
        assert not run.logger.experiment.get_run(run.logger.run_id).data.metrics["x"]
        with run.logger.experiment.start_span("s") as span:
            span.set_inputs([])
        assert list(run.logger.experiment.search_runs([])) == []
    names = [record.args[0] for record in caplog.records]
    assert names == ["watch", "add_embedding", "get_run", "start_span", "search_runs"]
    assert not run.attempt.metrics.exists()


def test_what_only_asks_whether_a_name_is_there_is_no_warning_and_private_names_are_not(run, caplog):
    assert hasattr(run.logger, "experiment")
    assert hasattr(run.logger, "watch")
    for thing in (run.logger, run.logger.experiment, run.logger.experiment.summary):
        assert not hasattr(thing, "__array__")
        assert not hasattr(thing, "_ipython_display_")
    assert caplog.records == []


def test_the_loggers_names_are_those_of_the_attempt_on_every_rank(run, monkeypatch):
    logger = SpoolLogger(SpoolWriter(run.attempt.metrics.parent / "null"), run.attempt)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert (logger.run_id, logger.experiment_id) == ("0a1b2c", "exp")
    assert logger.save_dir == logger.log_dir == logger.root_dir == str(run.attempt.path)
    assert (logger.name, logger.version) == ("", "")
    logger.log_image("a", [torch.zeros(3, 4, 4)])
    logger.log_figure(Figure(), "a.png")
    logger.watch(torch.nn.Linear(1, 1))
    assert not run.artifacts.exists()
