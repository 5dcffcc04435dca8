"""What people write in YAML and on the command line becomes the points they mean, or an error that helps."""

import json
import re

import pytest
from desks import write_conf
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.config import overrides
from orchestrator.config.experiment import compose_experiment
from orchestrator.errors import ConfigError, RequestError
from orchestrator.spec import Attempts, Objective, Pack, Resources

CONF = {
    "model/small.yaml": "_target_: mine.Small\nlr: 1e-3\nwidth: 8\nname: small\nnested: {a: 1, b: [1, 2]}\n",
    "model/big.yaml": "_target_: mine.Big\nlr: 1e-4\nwidth: 64\ndepth: 3\nname: big\nnested: {a: 1, b: [1, 2]}\n",
    "model/opt/sgd.yaml": "kind: sgd\nmomentum: 0.9\n",
    "model/opt/adam.yaml": "kind: adam\nbetas: [0.9, 0.999]\n",
    "model/composed.yaml": "defaults: [{opt: sgd}, _self_]\n_target_: mine.Composed\nlr: 1\nnested: {}\n",
    "data/toy.yaml": "_target_: mine.Data\nbatch_size: 32\nfolder: ${view:}/x\nseed: ${seed}\nversion: null\n",
    "experiment/first.yaml": """\
# @package _global_
defaults:
  - override /model: small
  - override /data: toy
name: first
objective: {metric: val/acc, mode: max}
vars: {scale: 2}
resources: {hours: 4}
sweep:
  grid: {model.lr: [1e-3, 1e-2], model: [small, big]}
  zip: {model.width: [1, 2], data.batch_size: [16, 8]}
  exclude: [{model: big, model.lr: 1e-2}]
  resources: [{when: {model: big}, set: {gpus_per_node: 2}}, {when: {model.width: 2}, set: {hours: 8}}]
""",
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a b'c\"d é"


@pytest.fixture
def project(folder):
    return write_conf(folder, CONF)


def experiment(project, body, *args):
    """ComposedExperiment an experiment of the given YAML over the small model and the toy data."""
    head = "# @package _global_\ndefaults: [{override /model: small}, {override /data: toy}]\nname: e\n"
    write_conf(project, {"experiment/e.yaml": head + body})
    return compose_experiment(project, ["experiment=e", *args])


def simple(project, *args):
    return compose_experiment(project, ["name=x", "model=small", *args])


def points(drafted):
    return [dict(point.point) for point in drafted.points]


def refused(project, *args):
    with pytest.raises(ConfigError) as caught:
        compose_experiment(project, args)
    assert caught.value.fix, caught.value
    assert isinstance(caught.value, RequestError)
    return str(caught.value)


# --- experiments ------------------------------------------------------------------------------------------


def test_an_experiment_file_is_drafted_whole(project):
    found = compose_experiment(project, ["experiment=first"])
    assert (found.name, found.objective, found.notes) == ("first", Objective(metric="val/acc", mode="max"), ())
    assert points(found) == [
        {"model.lr": lr, "model": model, "model.width": width, "data.batch_size": batch}
        for lr, model in [(1e-3, "small"), (1e-3, "big"), (1e-2, "small")]
        for width, batch in [(1, 16), (2, 8)]
    ]
    for point in found.points:
        big, wide = point.point["model"] == "big", point.point["model.width"] == 2
        assert point.config["model"]["_target_"] == ("mine.Big" if big else "mine.Small")
        assert ("depth" in point.config["model"]) is big
        assert point.config["model"]["lr"] == point.point["model.lr"]
        assert point.config["data"]["batch_size"] == point.point["data.batch_size"]
        wanted = Resources(gpus_per_node=2 if big else 0, hours=8.0 if wide else 4.0, attempts=Attempts())
        assert point.resources == wanted
    assert set(found.points[0].config) == {"model", "data", "trainer", "seed", "task"}
    assert found.choices["data"] == "toy"


def test_one_point_where_nothing_is_swept(project):
    (point,) = simple(project).points
    assert point.point == {}
    assert point.config["model"] == {
        "_target_": "mine.Small",
        "lr": 1e-3,
        "width": 8,
        "name": "small",
        "nested": {"a": 1, "b": [1, 2]},
    }


def test_a_mapping_of_free_keys_can_be_given_as_a_whole_and_key_by_key(project):
    write_conf(project, {"cluster/site.yaml": "defaults: [slurm, _self_]\nextra: {tmp: 50G}\n"})
    whole = simple(project, "cluster=site", "cluster.extra={licenses: foo}", "vars={a: 1}")
    one_by_one = simple(project, "cluster=site", "+cluster.extra.licenses=foo", "+vars.a=1")
    assert dict(whole.cluster["extra"]) == {"tmp": "50G", "licenses": "foo"}
    assert whole.cluster == one_by_one.cluster
    assert simple(project, "trainer.callbacks={a: {_target_: mine.A}}").points[0].config["trainer"]["callbacks"] == {
        "a": {"_target_": "mine.A"}
    }


def test_a_key_of_extra_that_is_not_there_is_refused_with_how_to_add_it(project):
    told = refused(project, "name=x", "model=small", "cluster=slurm", "cluster.extra.licenses=foo")
    assert "cluster.extra has no keys" in told
    assert told.endswith("fix: +cluster.extra.licenses=foo, if it is taken there")
    assert "cluster.extra is unknown" in refused(project, "name=x", "model=small", "cluster.extra={licenses: foo}")


def test_sweep_none_drops_the_sweep(project):
    assert points(compose_experiment(project, ["experiment=first", "sweep=none"])) == [{}]
    assert points(compose_experiment(project, ["experiment=first", "sweep=none", "seed=1,2"])) == [
        {"seed": 1},
        {"seed": 2},
    ]


@pytest.mark.parametrize(
    ("args", "lrs", "models"),
    [
        (["model.lr=5,6"], {5, 6}, {"small", "big"}),
        (["model.lr=5"], {None}, {"small", "big"}),
        (["model=big,small"], {1e-3, 1e-2}, {"small", "big"}),
        (["model=small"], {1e-3, 1e-2}, {None}),
        (["model=big", "model.lr=7"], {None}, {None}),
    ],
)
def test_the_command_line_replaces_an_axis_also_of_a_group(project, args, lrs, models):
    found = points(compose_experiment(project, ["experiment=first", *args]))
    assert ({p.get("model.lr") for p in found}, {p.get("model") for p in found}) == (lrs, models)


def test_the_command_line_replaces_one_key_of_a_zip(project):
    found = compose_experiment(project, ["experiment=first", "model=small", "model.lr=1", "model.width=99"])
    assert points(found) == [{"data.batch_size": 16}, {"data.batch_size": 8}]
    assert {point.config["model"]["width"] for point in found.points} == {99}


def test_axes_written_as_text_are_expanded_as_on_the_command_line(project):
    found = experiment(project, "sweep: {grid: {seed: 'range(0,3)', model.name: 'a, b'}}\n")
    assert points(found) == [{"seed": seed, "model.name": name} for seed in range(3) for name in "ab"]
    found = experiment(project, "sweep: {grid: {seed: 'choice(4,7)'}}\n", "model.width=range(1,3)")
    assert points(found) == [{"seed": seed, "model.width": width} for seed in (4, 7) for width in (1, 2)]


RANDOM = """\
sweep:
  random:
    n: 6
    space:
      model.lr: "loguniform(1e-4, 1e-1)"
      model.width: int(8, 64)
      model.name: 'choice(a-b, "it''s, c", null)'
      model: [small, big]
"""


def test_random_points_are_drawn_from_what_is_written(project):
    found = experiment(project, RANDOM)
    assert len(found.points) == 6
    for point in found.points:
        assert 1e-4 <= point.config["model"]["lr"] <= 1e-1
        assert 8 <= point.config["model"]["width"] <= 64
        assert point.config["model"]["name"] in {"a-b", "it's, c", None}
        assert point.config["model"]["_target_"] == f"mine.{point.point['model'].title()}"
    assert {point.point["model"] for point in found.points} == {"small", "big"}
    assert json.loads(json.dumps(found.sweep))["random"]["space"]["model.width"] == "int(8, 64)"


def test_the_command_line_changes_random_points_and_seeds(project):
    first = points(experiment(project, RANDOM))
    assert points(experiment(project, RANDOM, "sweep.random.n=9"))[:6] == first
    assert points(experiment(project, RANDOM, "sweep.random.seed=1")) != first
    without = [{key: value for key, value in point.items() if key != "model"} for point in first]
    assert points(experiment(project, RANDOM, "model=big")) == without
    assert points(experiment(project, RANDOM, "sweep.seeds=2")) == [{**p, "seed": s} for p in first for s in (0, 1)]
    assert points(simple(project, "sweep.seeds=2", "model.lr=3,4")) == [
        {"seed": seed, "model.lr": lr} for seed in (0, 1) for lr in (3, 4)
    ]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("unifrom(0, 1)", "(did you mean 'uniform'?)"),
        ("uniform(0; 1)", "'uniform(0; 1)'"),
        ("0.1", "a name, and"),
        ("uniform(0, 1", "a name, and its"),
        ("choice(1], [2)", "brackets do not match"),
        ("int(a, b)", "two numbers"),
        ("__import__('os').getcwd()", "sweep.random: model.lr"),
        ("uniform()", "two numbers"),
        ("choice()", "choose"),
    ],
)
def test_a_distribution_that_cannot_be_read_is_refused(project, written, told):
    with pytest.raises(ConfigError) as caught:
        experiment(project, f"sweep: {{random: {{n: 2, space: {{model.lr: {json.dumps(written)}}}}}}}\n")
    assert told in str(caught.value)
    assert caught.value.fix


def test_a_sweep_can_be_written_on_the_command_line(project):
    assert points(simple(project, "sweep.grid={seed:[1,2],model.lr:[5]}")) == [
        {"seed": seed, "model.lr": 5} for seed in (1, 2)
    ]
    assert points(simple(project, "sweep.zip=[{seed:[1,2],model.lr:[5,6]}]", "seed=9")) == [
        {"model.lr": 5},
        {"model.lr": 6},
    ]


def test_nested_groups_are_swept_in_a_written_sweep_too(project):
    body = "sweep: {grid: {model: [composed], model/opt: [adam, sgd]}, zip: {model.lr: [1, 2], seed: [3, 4]}}\n"
    found = experiment(project, body)
    assert [(p.config["model"]["opt"]["kind"], p.config["model"]["lr"]) for p in found.points] == [
        ("adam", 1),
        ("adam", 2),
        ("sgd", 1),
        ("sgd", 2),
    ]


@pytest.mark.parametrize("text", ["5", "interval(0,1)", "range(0", "glob(*)"])
def test_text_that_is_no_axis_is_refused(project, text):
    with pytest.raises(ConfigError) as caught:
        experiment(project, f"sweep: {{grid: {{seed: '{text}'}}}}\n")
    assert "seed" in str(caught.value)
    assert caught.value.fix


def test_nested_groups_are_swept_and_overridden(project):
    found = compose_experiment(project, ["name=x", "model=composed", "model/opt=adam,sgd"])
    assert points(found) == [{"model/opt": "adam"}, {"model/opt": "sgd"}]
    assert [point.config["model"]["opt"]["kind"] for point in found.points] == ["adam", "sgd"]
    (one,) = compose_experiment(project, ["name=x", "model=composed", "model/opt=adam", "model.opt.betas=[1,2]"]).points
    assert one.config["model"]["opt"] == {"kind": "adam", "betas": [1, 2]}


def test_options_named_by_numbers_are_options(project):
    write_conf(project, {f"model/{n}.yaml": f"_target_: mine.Net\nlayers: {n}\n" for n in (18, 50)})
    found = compose_experiment(project, ["name=x", "model=18,50"])
    assert [point.config["model"]["layers"] for point in found.points] == [18, 50]


def test_keys_are_added_by_an_axis(project):
    found = simple(project, "+model.new=1,2", "++model.lr=3,4")
    assert [(p.config["model"]["new"], p.config["model"]["lr"]) for p in found.points] == [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]


def takes(target, name):
    """Stand for the signatures of the targets: the small model has a dropout, which its YAML lacks."""
    return (target, name) == ("mine.Small", "dropout")


@pytest.mark.parametrize("swept", ["model.dropout=0.1,0.2", "model.dropout=[1],[2]", "model.dropout=0.1,[2]"])
def test_a_key_that_the_target_takes_and_the_yaml_lacks_is_swept(project, swept):
    words = ["name=x", "model=small", "model.lr=1,2", swept]
    composed = compose_experiment(project, words, takes)
    added = compose_experiment(project, [*words[:3], f"+{swept}"])
    assert [point.config for point in composed.points] == [point.config for point in added.points]
    with pytest.raises(ConfigError, match="is unknown"):
        compose_experiment(project, words)


def test_a_swept_key_of_some_options_is_swept_with_them_as_the_error_says(project):
    write_conf(project, {"model/tall.yaml": "_target_: mine.Tall\ndepth: 1\n"})
    with pytest.raises(ConfigError, match="other options have it") as refused:
        compose_experiment(project, ["name=x", "model=small,tall", "model.depth=2,3"])
    followed = refused.value.fix.partition("'")[2].rstrip("'")
    assert points(compose_experiment(project, ["name=x", followed])) == [
        {"model": "small"},
        {"model": "tall", "model.depth": 2},
        {"model": "tall", "model.depth": 3},
    ]


def test_points_of_a_list_do_not_leak_into_each_other(project):
    found = experiment(
        project, "sweep: {list: [{model.lr: 5, seed: 9}, {model.lr: 6}, {seed: 7}, {model: big}, {model.lr: 8}]}\n"
    )
    seen = [(p.config["model"]["lr"], p.config["seed"], p.config["data"]["seed"]) for p in found.points]
    assert seen == [(5, 9, 9), (6, 0, 0), (1e-3, 7, 7), (1e-4, 0, 0), (8, 0, 0)]


def test_vars_reach_everywhere(project):
    body = "vars: {base: 4, twice: '${vars.base}${vars.base}'}\nmodel: {name: 'n${vars.twice}'}\n"
    found = experiment(project, body, "vars.base=1,2")
    assert [point.config["model"]["name"] for point in found.points] == ["n11", "n22"]
    assert all("vars" not in point.config for point in found.points)


def test_the_view_and_the_project_stand_for_folders_on_the_node(project):
    (point,) = simple(project, "data=toy", "model.name=${project:}/a").points
    assert point.config["data"]["folder"] == "<view>/x"
    assert point.config["model"]["name"] == "<project>/a"


def test_rules_for_resources_that_match_nothing_are_noted(project):
    rules = "resources: [{when: {model: bgi}, set: {hours: 1}}], exclude: [{seed: 3}]"
    found = experiment(project, f"sweep: {{grid: {{seed: [1]}}, {rules}}}\n")
    assert found.notes == (
        "sweep.exclude: {'seed': 3} matches no point",
        "sweep.resources: when {'model': 'bgi'} matches no point",
    )


def test_a_rule_for_resources_sees_a_group_that_is_chosen_but_not_swept(project):
    found = experiment(project, "sweep: {resources: [{when: {model: small}, set: {nodes: 2}}]}\n")
    assert found.points[0].resources.nodes == 2


def test_a_rule_for_resources_chooses_the_type_of_gpu_and_no_run_gets_another_id(project):
    rules = "[{when: {model: big}, set: {gpu_type: h100}}]"
    body = "resources: {gpus_per_node: 1, gpu_type: a100}\nsweep: {grid: {model: [small, big]}%s}\n"
    plain, typed = experiment(project, body % ""), experiment(project, body % f", resources: {rules}")
    assert [point.resources.gpu_type for point in typed.points] == ["a100", "h100"]
    assert [point.config for point in typed.points] == [point.config for point in plain.points]
    assert any("gpu_type counts on Slurm only" in note for note in typed.notes)
    assert not experiment(project, body % "", "cluster=slurm").notes


@pytest.mark.parametrize(("cpus", "per_cpu", "per_node"), [(1, 4, 4), (6, 1.5, 9)])
def test_memory_per_cpu_is_that_of_all_of_a_nodes_cpus(project, cpus, per_cpu, per_node):
    found = simple(project, f"resources.cpus_per_node={cpus}", f"resources.mem_gb_per_cpu={per_cpu}")
    assert found.points[0].resources.mem_gb_per_node == per_node


def test_of_several_rules_the_last_wins(project):
    rules = "[{when: {}, set: {hours: 1, nodes: 3}}, {when: {seed: 1}, set: {hours: 2}}]"
    found = experiment(project, f"sweep: {{grid: {{seed: [0, 1]}}, resources: {rules}}}\n")
    assert [(p.resources.hours, p.resources.nodes) for p in found.points] == [(1.0, 3), (2.0, 3)]


# --- quoting ----------------------------------------------------------------------------------------------

ODD = [
    "a b",
    "a,b",
    "it's",
    'say "x"',
    "k=v",
    "größe ☃",
    "a:b",
    "[1]",
    "{a: 1}",
    "(x)",
    "~",
    "#no",
    "",
    " x ",
    "null",
    "true",
    "1e-3",
    "1",
    "\\",
    "a\\",
    "a\\'b",
    "\\\\'",
    "c:\\dir\\",
    "line\nbreak",
    "tab\t",
    "*",
    "a$b",
    "100%",
    "@",
]


def test_odd_strings_in_yaml_arrive_as_they_are(project):
    found = experiment(project, f"sweep: {{zip: {{model.name: {json.dumps(ODD)}, seed: {list(range(len(ODD)))}}}}}\n")
    assert [point.config["model"]["name"] for point in found.points] == ODD
    assert [point.point["model.name"] for point in found.points] == ODD


def test_odd_strings_inside_lists_go_through_hydra_and_arrive_as_they_are(project):
    found = experiment(project, f"sweep: {{grid: {{model.nested.b: [{json.dumps(ODD)}, []]}}}}\n")
    assert [point.config["model"]["nested"]["b"] for point in found.points] == [ODD, []]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'a b','c,d'", ["a b", "c,d"]),
        ('"it\'s","x=y"', ["it's", "x=y"]),
        ("a b,c", ["a b", "c"]),
        ("'größe','☃'", ["größe", "☃"]),
        ("1e-3,0.01", [1e-3, 0.01]),
        ("'1','2'", ["1", "2"]),
        ("null,true", [None, True]),
        ("[1,2],[3]", [[1, 2], [3]]),
        ("{a:1},{b:2}", [{"a": 1}, {"b": 2}]),
        ("'',x", ["", "x"]),
        ("a\\,b,c", ["a,b", "c"]),
        ("'a$b',c", ["a$b", "c"]),
        ("1,a", [1, "a"]),
        ("1,1.0,true", [1, 1.0, True]),
    ],
)
def test_odd_values_of_an_axis_arrive_as_they_are(project, written, meant):
    found = simple(project, f"+model.new={written}")
    got = [point.config["model"]["new"] for point in found.points]
    assert got == meant
    assert list(map(type, got)) == list(map(type, meant))
    assert [point.point["model.new"] for point in found.points] == meant


def no_groups(_):
    return None


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"])).filter(lambda text: text != "???"),
)
words = st.text("ab c\\,:=()[]{}/+*%_", min_size=1, max_size=5).filter(lambda key: key == key.strip())
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@given(trees)
@example("\\\\'")
@example({"a\\,b": ["'", "\\'", 1e16, -0.0, 5e-324]})
def test_what_an_override_is_quoted_to_is_read_back(value):
    text = overrides.to_override("+", "model.x", value, group=False)
    back = overrides.parse([text], no_groups).fixed
    assert back == (text,)
    assert repr(overrides.axis_of("k", f"{text.partition('=')[2]},0", no_groups).values[0]) == repr(value)


def test_values_that_interpolate_are_resolved_per_point(project):
    found = simple(project, "model.name='${seed}','${model.width}-x'", "seed=1,2")
    assert [p.config["model"]["name"] for p in found.points] == [1, 2, "8-x", "8-x"]


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolver", ["${now:%H}", "${oc.env:HOME}", "${hydra:job.name}"])
def test_what_depends_on_time_or_place_is_refused_in_what_is_computed(project, resolver):
    told = refused(project, "name=x", "model=small", f"model.name='{resolver}'")
    assert told.startswith("model.name reads ${" + resolver[2:].split(":")[0])
    assert "another time or on another machine" in told


def test_and_also_where_it_is_reached_through_other_keys(project):
    body = "vars: {a: '${vars.b}', b: {c: ['x${oc.env:HOME}']}, free: '${now:%H}'}\nmodel: {name: %s}\n"
    with pytest.raises(ConfigError, match=r"model\.name reads \$\{oc\.env:"):
        experiment(project, body.replace("%s", "'${vars.a.c}'"))
    with pytest.raises(ConfigError, match=r"model\.name reads \$\{oc\.env:"):
        experiment(project, body.replace("%s", "'${vars.a.c}'"), "seed=1,2")
    with pytest.raises(ConfigError, match=r"model\.name reads \$\{"):
        experiment(project, body.replace("%s", "'${oc.select:vars.a}'"))


def test_but_not_where_it_decides_only_where_things_lie(project, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/fast")
    assert simple(project, "cluster.scratch='${oc.env:SCRATCH}'").cluster["scratch"] == "/fast"


def test_a_value_given_instead_of_what_is_refused_is_taken(project):
    write_conf(project, {"model/env.yaml": "_target_: mine.M\nname: ${oc.env:HOME}\n"})
    assert "model.name reads" in refused(project, "name=x", "model=env")
    for args in (["model.name=a"], ["model.name=a,b"]):
        assert compose_experiment(project, ["name=x", "model=env", *args]).points[0].config["model"]["name"] == "a"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["model.lrr=1"], "override 'model.lrr=1': model.lrr is unknown (did you mean 'lr'?)"),
        (["modle.lr=1"], "modle.lr is unknown (did you mean 'model'?)"),
        (["model.nested.aa=1"], "model.nested has a, b"),
        (["model.nesetd.a=1"], "did you mean 'nested'?"),
        (["model.lrr=1,2"], "model.lrr is unknown (did you mean 'lr'?)"),
        (["model=smal"], "model=smal: there is no conf/model/smal.yaml (did you mean 'small'?)"),
        (["model=smal,big"], "model='smal' is not an option (did you mean 'small'?)"),
        (["experiment=frist"], "there is no conf/experiment/frist.yaml (did you mean 'first'?)"),
        (["+trianer.x=1"], "trianer is unknown (did you mean 'trainer'?)"),
        (["+resources.gpus=1"], "resources.gpus is unknown"),
        (["+cluster.partition=x"], "cluster.partition is unknown"),
        (["+snapshot.includes=[x]"], "snapshot.includes is unknown (did you mean 'include'?)"),
        (["+sweep.gird={}"], "sweep.gird is unknown (did you mean 'grid'?)"),
        (["objective={metrics:x}"], "objective.metrics is unknown (did you mean 'metric'?)"),
        (["model.lr"], "override 'model.lr' has no '='"),
        (["model.lr=[1"], "override 'model.lr=[1' cannot be read"),
        (["model.lr=1", "+model.lr=2"], "model.lr"),
        (["model._target_=1"], "model._target_ is 1"),
        (["model._target_='a b'"], "model._target_ is 'a b'"),
        (["seed=-1"], "seed is -1"),
        (["seed=4294967296"], "NumPy takes seeds below 2**32"),
        (["seed=true"], "seed is True"),
        (["seed=1,x"], "point seed=x: seed is 'x'"),
        (["task=fti"], "task is 'fti' (did you mean 'fit'?)"),
        (["env=refuze"], "did you mean 'refuse'?"),
        (["objective={metric:a,mode:best}"], "objective.mode is 'best'"),
        (["resources.nodes=0"], "resources.nodes is 0"),
        (["resources.gpu_type=a100:2"], "resources.gpu_type is 'a100:2'"),
        (["resources.mem_gb_per_cpu=0"], "resources.mem_gb_per_cpu is 0"),
        (
            ["resources.mem_gb_per_cpu=1", "resources.mem_gb_per_node=1"],
            "resources.mem_gb_per_cpu and resources.mem_gb_per_node are both set",
        ),
        (["resources.hours=-1"], "resources.hours is -1"),
        (["resources.hours=.inf"], "resources.hours"),
        (["resources.gpus_per_node=1.5"], "resources.gpus_per_node is 1.5"),
        (["resources.pack=8"], "resources.pack is 8"),
        (["resources.pack={run:8}"], "resources.pack.run is unknown (did you mean 'runs'?)"),
        (["resources.pack={runs:2,at_once:3}"], "resources.pack.runs is 2"),
        (["resources.pack=auto", "resources.gpus_per_node=2"], "resources.pack is given for runs of 2 processes"),
        (["cluster.kind=slrm"], "cluster.kind is 'slrm'"),
        (["name='a/b'"], "name is 'a/b'"),
        (["name=a,b"], "name is swept"),
        (["experiment=first,first"], "experiment is swept"),
        (["cluster=inline,workstation"], "cluster is swept"),
        (["snapshot.max_file_mb=1,2"], "snapshot.max_file_mb is swept"),
        (["model.name=${nope}"], "model.name cannot be resolved"),
        (["model.name=${nope}", "seed=1,2"], "model.name cannot be resolved (seed=1)"),
        (["model.name='???'"], "model.name has no value"),
        (["model.name=a,'???'"], "model.name has no value"),
        (["+model.new={1:2}"], "model.new.1: the key 1 is not a string"),
        (["model.name=größe"], "fix: quote it for the shell and for Hydra"),
        (["model.nested.b=[{1:2}],[3]"], "model.nested.b.0.1: the key 1 is not a string"),
        (["data.batch_size=3"], "data.batch_size is unknown"),
        (["+data.batch_size=3"], "data._target_ is not"),
        (["seed=1,2", "~sweep"], "there is no sweep"),
        (["sweep.seeds=5,6"], "sweep.seeds is swept"),
        (["sweep.gird={seed:[1]}"], "sweep.gird is unknown (did you mean 'grid'?)"),
        (["sweep.random={n: 2, space: {model.lr: unifrom(0,1)}}"], "unifrom"),
    ],
)
def test_what_is_wrong_is_refused_with_what_would_be_right(project, args, told):
    assert told in refused(project, "name=x", "model=small", *args)


@pytest.mark.parametrize(
    "key",
    [
        "devices",
        "num_nodes",
        "accelerator",
        "strategy",
        "default_root_dir",
        "plugins",
        "enable_checkpointing",
    ],
)
def test_arguments_of_the_trainer_that_the_engine_owns_are_refused(project, key):
    told = refused(project, "name=x", "model=small", f"+trainer.{key}=1")
    assert f"trainer.{key} is 1" in told
    assert f"fix: remove trainer.{key}" in told
    assert "point seed=1: trainer." in refused(project, "name=x", "model=small", f"+trainer.{key}=1", "seed=1,2")


def test_a_missing_name_is_asked_for_whatever_else_is_missing(project):
    assert "name has no value" in refused(project, "model=small")
    told = refused(project, "model=small,big")
    assert "name has no value" in told
    assert "add name=my-experiment" in told


def test_a_missing_model_is_asked_for(project):
    assert "model=mlp, or model._target_=package.module.Class" in refused(project, "name=x")


def test_a_name_that_cannot_be_resolved_is_no_crash(project):
    assert "name cannot be resolved" in refused(project, "name='${nope}'", "model=small")
    assert "name has no value" in refused(project, "name='???'", "model=small")


def test_a_syntax_error_names_the_file_and_the_line(project):
    write_conf(project, {"model/small.yaml": "_target_: mine.Small\nlr: [1, 2\nwidth: 3\n"})
    told = refused(project, "name=x", "model=small")
    assert "small.yaml, line 3" in told
    assert "this is not YAML" in told


def test_a_file_that_is_no_text_is_refused(project):
    (project / "conf/model/small.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused(project, "name=x", "model=small")


def test_a_point_that_goes_wrong_is_named(project):
    told = refused(project, "name=x", "model=small", "resources.nodes=1,0")
    assert told.startswith("point resources.nodes=0: resources.nodes is 0")


def test_options_of_groups_in_a_written_sweep_are_checked_before_composing(project):
    with pytest.raises(ConfigError, match=r"model='bgi' is not an option \(did you mean 'big'\?\)"):
        experiment(project, "sweep: {grid: {model: [small, bgi]}}\n")


def test_sections_that_are_no_mappings_are_refused(project):
    write_conf(project, {"model/odd.yaml": "[1, 2]\n"})
    assert refused(project, "name=x", "model=odd")
    assert "trainer" in refused(project, "name=x", "model=small", "trainer=null")


# --- where conf/ lies -------------------------------------------------------------------------------------


def test_a_project_without_conf_has_the_built_in_one(folder):
    folder.mkdir()
    (point,) = compose_experiment(folder, ["name=x", "model=mlp", "data=digits"]).points
    assert point.config["model"]["_target_"] == "orchestrator.models.mlp.MLP"
    assert point.config["data"]["version"]["source"] == "dvc"
    assert not (folder / "conf").exists()


def test_a_project_shadows_and_extends_the_built_in_conf(project):
    write_conf(project, {"model/mlp.yaml": "_target_: mine.MLP\n", "trainer/default.yaml": "_target_: mine.Trainer\n"})
    (point,) = compose_experiment(project, ["name=x", "model=mlp", "data=digits"]).points
    assert point.config["model"] == {"_target_": "mine.MLP"}
    assert point.config["trainer"] == {"_target_": "mine.Trainer"}
    assert point.config["data"]["_target_"] == "orchestrator.datasets.digits.DigitsDataModule"


def test_two_projects_in_one_process_do_not_see_each_other(tmp_path):
    one = write_conf(tmp_path / "one", {"model/m.yaml": "_target_: one.M\n"})
    two = write_conf(tmp_path / "two", {"model/m.yaml": "_target_: two.M\n", "model/n.yaml": "_target_: two.N\n"})
    args = ["name=x", "model=m"]
    targets = [compose_experiment(project, args).points[0].config["model"]["_target_"] for project in (one, two, one)]
    assert targets == ["one.M", "two.M", "one.M"]
    assert "there is no conf/model/n.yaml" in refused(one, "name=x", "model=n")


def test_drafting_writes_nothing(project):
    before = sorted(project.rglob("*"))
    compose_experiment(project, ["experiment=first"])
    assert sorted(project.rglob("*")) == before


def test_what_is_drafted_is_plain_and_survives_json(project):
    found = compose_experiment(project, ["experiment=first", "+model.copy=${model.nested}", "seed=1,2"])
    for point in found.points:
        assert json.loads(json.dumps(point.config)) == point.config
        assert point.config["model"]["copy"] == {"a": 1, "b": [1, 2]}
    assert not any(OmegaConf.is_config(value) for value in (found.cluster, found.tracking, found.sweep))


def test_changing_one_point_changes_no_other(project):
    found = compose_experiment(project, ["experiment=first"])
    before = [json.dumps(point.config) for point in found.points]
    for i, point in enumerate(found.points):
        point.config["trainer"]["max_epochs"] = i
        point.config["model"]["lr"] = i
        point.config["data"]["batch_size"] = i
    assert [json.dumps(point.config) for point in compose_experiment(project, ["experiment=first"]).points] == before
    assert [point.config["model"]["lr"] for point in found.points] == list(range(len(before)))
    assert [point.config["data"]["batch_size"] for point in found.points] == list(range(len(before)))


def test_overrides_are_kept_as_they_were_given(project):
    args = ["experiment=first", "seed=1,2", "+model.new='a b'"]
    assert compose_experiment(project, args).overrides == tuple(args)
    assert re.fullmatch("first", compose_experiment(project, args).name)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("null", None), ("auto", Pack()), ("{runs:8}", Pack(runs=8)), ("{runs:auto,at_once:2}", Pack(at_once=2))],
)
def test_runs_are_packed_as_it_is_written(project, written, expected):
    (point,) = compose_experiment(project, ["name=x", "model=small", f"resources.pack={written}"]).points
    assert point.resources.pack == expected
