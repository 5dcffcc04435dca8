"""`sweep.optuna`: what is refused, what is composed at launch, what a node fills in, and the ids of trials."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.config.experiment import compose_experiment
from orchestrator.errors import ConfigError, OrchError, StateError
from orchestrator.identity import trial_id
from orchestrator.project import find_project
from orchestrator.records.searches import trial_config
from orchestrator.spec.search import Search

EXPERIMENT = """
# @package _global_
defaults:
  - override /model: mlp
  - override /data: synthetic
name: tune
objective: {metric: val/acc, mode: max}
tracking: {kind: none}
sweep:
  optuna:
    n: 5
    space: {model.lr: "loguniform(1e-4, 1e-1)"}
"""


OURS = """
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler

class Mine(RandomSampler):
    pass

class Broken(BasePruner):
    def prune(self, study, trial):
        raise ValueError("it is broken")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "p" / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "p" / "conf" / "experiment" / "tune.yaml").write_text(EXPERIMENT)
    (tmp_path / "p" / "ours.py").write_text(OURS)
    return tmp_path / "p"


def searching(space: str, *more: str) -> list[str]:
    return ["experiment=tune", f"sweep.optuna.space={{{space}}}", *more]


def trials(project: Path, *words: str):
    with api.prepare(find_project(project), ["experiment=tune", *words]) as prepared:
        return prepared.experiment.runs


def search_of(project: Path, space: str, *more: str) -> Search:
    with api.prepare(find_project(project), searching(space, *more)) as prepared:
        return prepared.experiment.runs[0].trial.search


LR = 'model.lr: "loguniform(1e-4, 1e-1)"'
REFUSED = [
    (searching("model.lrr: 'uniform(0, 1)'"), "there is no key model.lrr"),
    (searching("model.lr: 'normal(0, 1)'"), "a search needs bounds"),
    (searching("model.lr: 'uniform(1, 0)'"), "a lower and a higher bound"),
    (searching("model.lr: 'unifrom(0, 1)'"), "did you mean 'uniform'"),
    (searching("model.lr: 3"), "that is not a distribution"),
    (searching("model: 'choice(mlp, convnte)'"), "convnet"),
    (searching("model.width: 'choice(16, 16)'"), "a choice twice"),
    (searching("cluster: 'choice(inline, slurm)'"), "a launch has one of it"),
    (searching("resources.hours: 'uniform(1, 2)'"), "fixed for all trials before the first one starts"),
    (searching("data.version: 'choice(null)'"), "fixed for all trials before the first one starts"),
    (searching(LR, "sweep.optuna.n=0"), "whole number from 1"),
    (searching(LR, "sweep.optuna.sampler={_target_: optuna.samplers.TPESampler, seed: 3}"), "sweep.optuna.seed=3"),
    (searching(LR, "sweep.optuna.sampler={_target_: optuna.samplers.TPSampler}"), "TPESampler"),
    (searching(LR, "sweep.optuna.sampler={_target_: optuna.samplers.TPESampler, n_startup: 3}"), "n_startup"),
    (searching(LR, "sweep.optuna.pruners={}"), "did you mean 'pruner'"),
    (searching(LR, "sweep.optuna.objectives=[{metric: a, mode: max}]"), "objective={metric: a, mode: max}"),
    (searching(LR, "objective=null"), "no objective"),
    (searching(LR, "seed=1,2"), "is given together with seed"),
    (searching(LR, "+sweep.grid={seed: [1, 2]}"), "is given together with sweep.grid"),
    (searching(LR, "model.lr=0.1"), "nothing to search"),
    (searching("model.width: 'choice(1, 1.0)'"), "a choice twice"),
    (searching(LR, "init_from='weights/${model.lr}.ckpt'"), "init_from reads a searched value"),
    (searching(LR, "sweep.optuna.pruner={_target_: ours.Broken}"), "it is broken"),
    (searching(LR, "model.dropout='${oc.select:model.lr}'"), "computed"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_a_search_that_cannot_work_is_refused_with_what_would(project, words, told):
    with pytest.raises(OrchError) as error, api.prepare(find_project(project), words):
        pass
    assert isinstance(error.value, ConfigError)
    assert told in str(error.value)


def test_the_bounds_of_what_is_searched_are_checked_as_arguments_of_the_targets(project):
    with (
        pytest.raises(ConfigError, match="max_epochs"),
        api.prepare(find_project(project), searching("trainer.max_epochs: 'choice(3, many)'")),
    ):
        pass


def test_more_trials_only_add_and_any_other_change_makes_another_search(project):
    five, eight = trials(project), trials(project, "sweep.optuna.n=8")
    assert [run.id for run in eight[:5]] == [run.id for run in five]
    assert [dict(run.point) for run in eight] == [{"trial": number} for number in range(8)]
    others = [
        trials(project, "sweep.optuna.seed=1"),
        trials(project, "model.width=7"),
        trials(project, "seed=1"),
        trials(project, "objective.mode=min"),
        trials(project, "sweep.optuna.pruner=null"),
        trials(project, 'sweep.optuna.space={model.lr: "loguniform(1e-4, 2e-1)"}'),
    ]
    assert len({runs[0].id for runs in [five, *others]}) == 1 + len(others)


def test_golden_ids_never_change():
    assert trial_id("0123456789ab", 0) == "d740edcbd683"
    assert trial_id("0123456789ab", 41) == "ac412ee4a723"


def test_a_value_on_the_command_line_takes_a_key_out_of_the_search(project):
    search = search_of(project, f"{LR}, model.width: 'int(4, 8)'", "model.width=5")
    assert list(search.space) == ["model.lr"]
    assert search.templates[0].config["model"]["width"] == 5


def test_texts_that_hold_what_is_searched_are_filled_in_and_copies_keep_their_type(project):
    """Through `vars`, too, which is no part of a run's config."""
    more = """
data: {samples: "${vars.width}"}
vars: {width: "${model.width}", rate: "${model.lr}"}
trainer:
  callbacks:
    stop: {_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: "at ${vars.rate} of ${vars.width}"}
"""
    with (project / "conf" / "experiment" / "tune.yaml").open("a") as file:
        file.write(more)
    search = search_of(project, f"{LR}, model.width: 'int(4, 8)'")
    config = trial_config(search, {"trial": 3, "model.lr": 0.02, "model.width": 6})
    assert (config["model"]["lr"], config["model"]["width"], config["data"]["samples"]) == (0.02, 6, 6)
    assert config["trainer"]["callbacks"]["stop"]["monitor"] == "at 0.02 of 6"
    [width] = {template.config["model"]["width"] for template in search.templates}
    assert search.templates[0].config["data"]["samples"] == width  # and the template is as it was


def test_each_choice_of_a_group_has_a_template_with_the_keys_that_it_has(project):
    search = search_of(project, f"model: 'choice(mlp, convnet)', {LR}, model.depth: 'int(1, 3)'")
    found = {template.choices["model"]: template for template in search.templates}
    assert found["mlp"].keys == ("model.lr", "model.depth")
    assert found["convnet"].keys == ("model.lr",)
    config = trial_config(search, {"model": "convnet", "model.lr": 0.5})
    assert config["model"]["_target_"].endswith("ConvNet")
    assert config["model"]["lr"] == 0.5
    with pytest.raises(StateError):
        trial_config(search, {"model": "convnet"})


def test_a_key_that_the_class_takes_and_the_yaml_lacks_is_searched(project):
    (project / "conf/model").mkdir()
    (project / "conf/model/lean.yaml").write_text("_target_: orchestrator.models.mlp.MLP\nlr: 0.1\n")
    search = search_of(project, "model.depth: 'int(1, 3)'", "model=lean")
    assert search.templates[0].keys == ("model.lr", "model.depth")
    assert trial_config(search, {"model.lr": 0.1, "model.depth": 3})["model"]["depth"] == 3


def test_the_projects_own_sampler_is_found_and_leaves_no_trace(project):
    before = list(sys.path)
    search = search_of(project, LR, "sweep.optuna.sampler={_target_: ours.Mine}")
    assert search.sampler == {"_target_": "ours.Mine"}
    assert sys.path == before


def test_lists_are_choices_too_and_are_composed(project):
    drafted = compose_experiment(
        project, searching("trainer.callbacks: 'choice({}, {})'".replace("{}, {}", "{},{a: null}"))
    )
    assert [dict(template.choices) for template in drafted.search.templates] == [
        {"trainer.callbacks": {}},
        {"trainer.callbacks": {"a": None}},
    ]


def test_a_search_survives_being_written_down(project):
    search = search_of(project, f"model: 'choice(mlp, convnet)', {LR}")
    assert Search.from_json(json.loads(json.dumps(search.to_json()))) == search
