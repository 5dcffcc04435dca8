"""Files of conf/: what Hydra would compose and nobody would read is refused, with what to write in its place."""

from __future__ import annotations

import pytest
from desks import write_conf

from orchestrator.config.experiment import compose_experiment, placing
from orchestrator.errors import ConfigError

EXPERIMENT = "defaults: [{override /model: net}]\nname: e\n"
FILES = {
    "model/net.yaml": "_target_: mine.Net\nlr: 0.1\nwidth: 8\npath: null\n",
    "model/deep.yaml": "_target_: mine.Net\n",
}
LICENCE = "# Copyright: somebody.\n#\n" + "# Permission is hereby granted ...\n" * 40


@pytest.fixture
def project(tmp_path):
    return write_conf(tmp_path, FILES)


def points(project, *overrides):
    return [dict(point.point) for point in compose_experiment(project, ["experiment=e", *overrides]).points]


def test_what_is_said_of_a_sweep_for_hydras_sweeper_gives_its_points(project):
    hydra = "hydra: {sweeper: {params: {model.lr: '0.1,0.2', model.width: 'range(1,4)', seed: 3}}}\n"
    write_conf(project, {"experiment/e.yaml": f"# @package _global_\n{EXPERIMENT}{hydra}"})
    with pytest.raises(ConfigError, match=r"hydra\.sweeper") as refused:
        points(project)
    write_conf(project, {"experiment/e.yaml": f"# @package _global_\n{EXPERIMENT}{refused.value.fix}\n"})
    found = points(project)
    assert len(found) == 6
    assert found[-1] == {"model.lr": 0.2, "model.width": 3, "seed": 3}


@pytest.mark.parametrize("head", [LICENCE, "\n# run: orch launch experiment=e\n\n", "#\n"])
def test_a_package_is_read_behind_a_comment(project, head):
    write_conf(project, {"experiment/e.yaml": f"{head}# @package _global_\n{EXPERIMENT}"})
    assert points(project) == [{}]


def test_a_package_is_not_read_behind_a_key(project):
    write_conf(project, {"experiment/e.yaml": f"{EXPERIMENT}# @package _global_\n"})
    with pytest.raises(ConfigError, match="come under `experiment:`"):
        points(project)


def test_hydras_search_path_is_used(project, tmp_path):
    (tmp_path / "more/model").mkdir(parents=True)
    (tmp_path / "more/model/other.yaml").write_text("_target_: mine.Other\n")
    root = "defaults: [data: none, model: none, trainer: default, resources: default, cluster: inline, "
    root += "tracking: none, sweep: none, _self_, experiment: null]\nname: ???\nseed: 0\nvars: {}\ntask: fit\n"
    root += "objective: {metric: null, mode: null}\nlaunch: {}\ntags: []\nenv: warn\nsnapshot: {}\n"
    write_conf(project, {"config.yaml": f"{root}hydra: {{searchpath: ['file://{tmp_path}/more']}}\n"})
    (point,) = compose_experiment(project, ["name=x", "model=other"]).points
    assert point.config["model"]["_target_"] == "mine.Other"


def test_a_text_that_opens_an_interpolation_is_written_as_the_error_says(project):
    text = "# @package _global_\n" + EXPERIMENT + "vars: {x: %s}\nmodel: {path: '${vars.x}'}\n"
    write_conf(project, {"experiment/e.yaml": text % "'a ${literal'"})
    with pytest.raises(ConfigError, match=r"vars\.x is") as refused:
        points(project)
    write_conf(project, {"experiment/e.yaml": text % refused.value.fix.split("itself: ")[1]})
    (point,) = compose_experiment(project, ["experiment=e"]).points
    assert point.config["model"]["path"] == "a ${literal"


def test_a_folder_of_another_name_is_noticed(tmp_path):
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/net.yaml").write_text("a: 1\n")
    composed = compose_experiment(tmp_path, ["name=x", "model=mlp"])
    assert "configs/ is not read, and there is no conf/: ln -s configs conf" in composed.notes
    (tmp_path / "conf").symlink_to("configs")
    assert not any("configs" in note for note in compose_experiment(tmp_path, ["name=x", "model=mlp"]).notes)


# --- what is deleted, and how options are named ------------------------------------------------------------


def test_a_key_that_is_null_is_deleted(project):
    write_conf(project, {"experiment/e.yaml": f"# @package _global_\n{EXPERIMENT}"})
    for overrides in (["~model.path"], ["~model.path=null"], ["~model.lr", "~model.path"]):
        (point,) = compose_experiment(project, ["experiment=e", *overrides]).points
        assert "path" not in point.config["model"]
    with pytest.raises(ConfigError, match="deletes nothing"):
        points(project, "~model.pat")


@pytest.mark.parametrize(
    "sweep",
    [
        "grid: {model: [net.yaml, deep.yaml]}",
        "grid: {model: 'net.yaml,deep.yaml'}",
        "list: [{model: net}, {model: deep.yaml}]",
        "zip: {model: [net, deep, deep], seed: [0, 0, 1]}, exclude: [{model: deep.yaml, seed: 1}]",
    ],
)
def test_an_option_may_be_named_by_its_file_also_in_a_sweep(project, sweep):
    rule = "resources: [{when: {model: deep.yaml}, set: {cpus_per_node: 2}}]"
    text = f"# @package _global_\ndefaults: [{{override /model: net.yaml}}]\nname: e\nsweep: {{{sweep}, {rule}}}\n"
    write_conf(project, {"experiment/e.yaml": text})
    composed = compose_experiment(project, ["experiment=e"])
    assert [point.point["model"] for point in composed.points] == ["net", "deep"]
    assert [point.resources.cpus_per_node for point in composed.points] == [1, 2]
    assert [point["model"] for point in points(project, "sweep=none", "model=deep.yaml,net.yaml")] == ["deep", "net"]
    assert composed.choices["model"] == "net"


# --- numbers that only YAML sees ---------------------------------------------------------------------------

MINE = {"cluster/mine.yaml": "defaults: [slurm]\naccount: 0123\nsbatch_defaults: {time: 8:00:00}\n"}


def composed(project, body, *overrides):
    write_conf(project, {"experiment/e.yaml": f"# @package _global_\n{EXPERIMENT}{body}\n"})
    with placing(project, ["experiment=e", *overrides]):
        return compose_experiment(project, ["experiment=e", *overrides])


@pytest.mark.parametrize(
    ("body", "overrides", "hours"),
    [
        ("resources: {hours: 24:00:00}", [], [24]),
        ("resources: {hours: 1:30:00}", [], [1.5]),
        ("resources:\n  hours: 2-12", [], [60]),
        ("vars: {big: &big {hours: 24:00:00}}\nresources: {<<: *big}", [], [24]),
        ("vars: {big: &big {hours: 24:00:00}}\nresources: {<<: *big, hours: 2}", [], [2]),
        ("sweep: {grid: {resources.hours: [1:30:00, 2]}}", [], [1.5, 2]),
        ("sweep: {list: [{resources.hours: 1:30:00}, {resources: {hours: 8:00:00}}]}", [], [1.5, 8]),
        ("sweep: {resources: [{when: {seed: 0}, set: {hours: 24:00:00}}]}", [], [24]),
        ("", ["resources=long,default"], [48, None]),
        ("vars: {hours: 24:00:00}\nresources: {hours: '${vars.hours}'}", ["vars.hours=3"], [3]),
        ("", ["resources.hours=24:00:00"], [24]),
        ("", ["resources={hours: 1:30:00}"], [1.5]),
        ("", ["resources.hours=1:30:00,1-12"], [1.5, 36]),
        ("", ["sweep.resources=[{when: {seed: 0}, set: {hours: 24:00:00}}]"], [24]),
    ],
)
def test_a_time_in_slurms_format_needs_no_quotes(project, body, overrides, hours):
    write_conf(project, {"resources/long.yaml": "defaults: [default]\nhours: 48:00:00\n"})
    assert [point.resources.hours for point in composed(project, body, *overrides).points] == hours


@pytest.mark.parametrize(
    ("body", "overrides", "told"),
    [
        (
            "resources: {hours: 1:30}",
            [],
            r"resources.hours is '1:30' \(.*e.yaml, line 4\): .* write 1:30:00, or 0:01:30",
        ),
        ("", ["resources.hours=1:30"], r"resources.hours is '1:30' \(override "),
        ("sweep: 010", [], "sweep is 8"),
        ("resources: {nodes: 010}", [], r"resources.nodes is '010' \(.*line 4\)"),
        ("resources: {mem_gb_per_node: 1:30}", [], r"resources.mem_gb_per_node is '1:30'"),
        ("cluster: {devices: [00, 01]}", [], r"cluster.devices is \['00', '01'\]"),
        ("sweep: {grid: {resources.hours: [30:00]}}", [], r"resources.hours is '30:00' \(.*e.yaml, line 4\)"),
        (
            "sweep: {resources: [{when: {}, set: {hours: 1:30}}]}",
            [],
            r"sweep.resources: resources.hours is '1:30' \(.*e.yaml, line 4\)",
        ),
        (
            "vars: {hours: 1:30}\nresources: {hours: '${vars.hours}'}",
            [],
            r"vars.hours is written 1:30, and resources.hours reads it \(.*line 4\): YAML reads it as the number 90",
        ),
        (
            "vars: {account: 0123}\ncluster: {account: '${vars.account}'}",
            ["cluster=slurm"],
            r"vars.account is written 0123, and cluster.account reads it",
        ),
        (
            "vars: {hours: 1:30}\nsweep: {resources: [{when: {}, set: {hours: '${vars.hours}'}}]}",
            [],
            r"vars.hours is written 1:30",
        ),
    ],
)
def test_what_yaml_makes_of_a_time_or_a_name_is_not_taken_for_it(project, body, overrides, told):
    with pytest.raises(ConfigError, match=told):
        composed(project, body, *overrides)


def test_names_and_options_of_a_cluster_are_what_is_written(project):
    write_conf(project, MINE)
    cluster = composed(project, "cluster: {partition: 07, extra: {time-min: 1:30}}", "cluster=mine").cluster
    assert (cluster["partition"], cluster["account"]) == ("07", "0123")
    assert (cluster["sbatch_defaults"], cluster["extra"]) == ({"time": "8:00:00"}, {"time-min": "1:30"})
    assert composed(project, "", "cluster=mine", "cluster.account=0456").cluster["account"] == "0456"


def test_what_is_in_the_ids_of_runs_stays_what_yaml_makes_of_it(project):
    sweep = "sweep: {grid: {model.width: [010, 1:30]}, resources: [{when: {model.width: 1:30}, set: {hours: 2}}]}"
    found = composed(project, f"vars: {{lr: 1:30}}\nmodel: {{lr: '${{vars.lr}}', path: 0123}}\n{sweep}").points
    assert [point.config["model"]["width"] for point in found] == [8, 90]
    assert [point.resources.hours for point in found] == [None, 2]
    assert found[0].config["model"]["lr"] == 90
    assert found[0].config["model"]["path"] == 83
