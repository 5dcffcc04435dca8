"""What is swept in Hydra's grammar gives the points of Hydra's own sweeper, each with the config of `hydra.compose`."""

from __future__ import annotations

import itertools

import pytest
from campaigns import amount
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.config.compose import Composer
from orchestrator.config.experiment import compose_experiment
from orchestrator.config.overrides import parse
from orchestrator.config.points import IDENTITY
from orchestrator.errors import ConfigError

MODEL = """\
defaults: [{{opt: sgd}}, {{opt@second: adam}}, _self_]
_target_: mine.{name}
lr: {lr}
width: {width}
name: {name}
flag: true
none: null
label: ${{.name}}-${{.width}}
scaled: ${{model.lr}}
kind: ${{.opt.kind}}
hidden: [16, "${{..width}}"]
nested: {{a: 1, b: {{c: x, up: "${{...width}}"}}}}
"""
CONF = {
    "model/net.yaml": MODEL.format(name="Net", lr="1e-3", width=64),
    "model/conv.yaml": MODEL.format(name="Conv", lr="3e-4", width=32) + "kernel: 3\n",
    "model/opt/sgd.yaml": "kind: sgd\nmomentum: 0.9\nlr: ${model.lr}\n",
    "model/opt/adam.yaml": "kind: adam\nbetas: [0.9, 0.999]\nlr: ${model.lr}\n",
    "model/opt/adamw.yaml": "defaults: [adam, _self_]\nkind: adamw\n",
    "data/toy.yaml": "_target_: mine.Toy\nbatch: 32\nseed: ${seed}\nsplit: {train: 0.8, val: 0.2}\nversion: null\n",
    "data/big.yaml": "_target_: mine.Big\nbatch: ${vars.batch}\nwidth: ${model.width}\nversion: null\n",
    "experiment/e.yaml": (
        "# @package _global_\ndefaults: [{override /model: net}, {override /data: toy}]\nname: e\nvars: {batch: 7}\n"
    ),
}
PLAIN = [
    "model.lr=range(3)", "model.lr=range(0,5,2)", "model.lr=range(0.1,0.4,0.1)", "model.lr=range(3,0,-1)",
    "model.lr=range(start=1,stop=4)", "model.lr=sort(3,1,2)", "model.lr=sort(choice(3,1),reverse=true)",
    "model.lr=sort(range(0,3),reverse=true)", "model.lr=sort(tag(slow,choice(b,a)))", "model.lr=shuffle(1,2,3)",
    "model.lr=shuffle(range(0,3))", "model.lr=shuffle(choice(a,b))", "model.lr=tag(fast,choice(1,2))",
    "model.lr=tag(a,b,range(0,2))", "model.lr=1e999,nan", "model.width=int(choice(1.5,2.5))",
    "model.width=float(range(0,2))", "model.width=float(1,2)",
    "model.width=int(range(1,3))", "model.name='a b',\"c,d\",e", "model.name=a\\,b,c\\ d", "model.name=null,true,1",
    "model.name='','null'", "model.name='it\\'s',\"x\\\"y\"", "model.flag=bool(choice(1,0))",
    "model.hidden=sort([3,1]),[2]", "model.hidden=[],[a,'b c',{k: 1}]",
]  # fmt: skip
"""Axes whose values are all that there is to them."""

SWEPT = [
    "model=net,conv", "model=glob([ne*,conv])", "model=glob(*,exclude=[none,convnet,mlp])", "data=toy,big",
    "model={lr: 5},{lr: 6, width: 7}", "model/opt=sgd,adamw", "model/opt=glob(adam*)", "model/opt=null,adam",
    "model/opt=[sgd],[sgd,adamw]", "model/opt@model.second=sgd,adam", "model/opt@model.second=glob(*,exclude=sgd)",
    "+model/opt@model.third=sgd,adamw", "model.lr=1e-3,1e-2", "model.name='${model.lr}',${seed}",
    "model.nested={a:1},{a:2,b:{c:z}}", "model.nested.a=5,{deep: 6}", "model.nested.b.c=x,y", "model.none={a: 1},[2]",
    "+model.new=1,2", "++model.fresh={x:1},[2]", "++model.lr=8,9", "+model.nested.new=1,'2'", "seed=range(0,2)",
    "+trainer.fresh=[1],{a: '${model.lr}'}", "data.batch=8,16", "vars.batch=1,2", "+vars.other=1,2",
]  # fmt: skip
FIXED = [
    "model=conv", "data=big", "model/opt=adamw", "model/opt@model.second=sgd", "+model/opt@model.third=sgd",
    "~model/opt@model.second", "~model.flag=true", "~model.flag=false", "~model.nested.b",
    "++model.width=3", "+model.more={a: [1,{b: 2}]}", "model.hidden=[9]", "model.label='w${model.width}'", "seed=3",
    "model.typo=1", "~model.typo", "vars.batch=5", "model.name=sort([b,a])",
]  # fmt: skip
BASE = ["experiment=e"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name, text in CONF.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def jobs_of(project, overrides):
    """Return the jobs of Hydra's own sweep: the overrides of each."""
    parser = OverridesParser.create(config_loader=Composer(project)._loader)
    return list(itertools.chain(*BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)))


@pytest.fixture(scope="module")
def hydra(project):
    """Return what gives the config of each job of Hydra's own sweep; None where Hydra refuses one."""

    def jobs(overrides):
        try:
            return [one(job) for job in jobs_of(project, [*BASE, *overrides])]
        except Exception:  # noqa: BLE001 - whatever Hydra says, it must be refused here too
            return None

    def one(job):
        config = compose("config", overrides=[f"hydra.searchpath=[file://{project}/conf]", *job])
        return {key: OmegaConf.to_container(config, resolve=True, throw_on_missing=True)[key] for key in IDENTITY}

    Composer(project)  # its resolvers
    with initialize_config_module("orchestrator.conf", version_base=None):
        yield jobs


def ours(project, overrides):
    try:
        return [dict(point.config) for point in compose_experiment(project, [*BASE, *overrides]).points]
    except ConfigError:
        return None


def same(a, b, *, ordered):
    """Whether two lists of configs are equal to the last bit: types, -0.0 and NaN included.

    But for the order of keys: those that a fixed override adds come before those that an axis adds.
    """
    if a is None or b is None:
        return a is b
    a, b = [repr(by_key(each)) for each in a], [repr(by_key(each)) for each in b]
    return a == b if ordered else sorted(a) == sorted(b)


def by_key(tree):
    if isinstance(tree, dict):
        return [(key, by_key(tree[key])) for key in sorted(tree)]
    return [by_key(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("swept", PLAIN)
def test_each_function_gives_the_values_that_it_gives_in_hydra(project, swept):
    line = parse([swept], lambda _: None)
    ours = [{key_of(swept): value} for value in line.axes[0].values] if line.axes else [line.values]
    read = OverridesParser.create().parse_override
    hydras = [{key_of(job): read(job).value()} for [job] in jobs_of(project, [swept])]
    assert same(ours, hydras, ordered="shuffle" not in swept)


@pytest.mark.parametrize("swept", SWEPT[:12])
def test_options_of_groups_give_what_hydra_gives(project, hydra, swept):
    assert same(ours(project, [swept]), hydra([swept]), ordered=True)


def key_of(override):
    return override.lstrip("+~").partition("=")[0]


def in_order(overrides):
    """Leave out values behind an axis of the same key, or a part of it: these are refused, see below."""
    keys = [(key_of(override), override not in FIXED) for override in overrides]
    return not any(
        swept and not again and (f"{later}.".startswith(f"{key}.") or f"{key}.".startswith(f"{later}."))
        for i, (key, swept) in enumerate(keys)
        for later, again in keys[i + 1 :]
    )


quoted = st.text(st.characters(exclude_characters="'\\$", exclude_categories=["Cs"]), max_size=6)
named = quoted.map(lambda text: f"model.name='{text}',x")
lines = (
    st.tuples(
        st.lists(st.sampled_from(FIXED), max_size=3, unique_by=key_of),
        st.lists(st.sampled_from([*SWEPT, *PLAIN]) | named, min_size=1, max_size=2, unique_by=key_of),
    )
    .flatmap(lambda both: st.permutations([*both[0], *both[1]]))
    .filter(in_order)
)


@example(line=["+model/opt@model.third=sgd,adamw", "model.lr=1,2"])
@given(line=lines)
@settings(
    max_examples=amount(6, 150),
    phases=[Phase.explicit, Phase.generate],  # shrinking composes for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_every_point_of_a_command_line_is_what_hydra_composes(project, hydra, line):
    expected = hydra(line)
    assert same(ours(project, line), expected, ordered="shuffle" not in " ".join(line)), line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["model.lr=interval(0,1)"], 'sweep.random={n: 20, space: {model.lr: "uniform(0, 1)"}}'),
        (["model.hidden=extend_list(1,2)"], "give the whole list"),
        (["model.hidden=shuffle([1,2,3])"], "different each time"),
        (["model.lr=glob(*)"], "glob() chooses options of a config group, and model.lr is none"),
        (["model=glob(x*)"], "the options of model are conv"),
        (["model.lr=choice([1],sort(3,2))"], "more than plain values"),
        (["~model/opt=sgd,adam"], "at all points or at none"),
        (["model.lr=1,2", "++model.lr=3"], "put it before the sweep"),
        (["model.nested.a=1,2", "model.nested={a: 3}"], "put it before the sweep"),
        (["model/opt@model.second=sgd,adma"], "(did you mean 'adam'?)"),
        (["model/opt@model.second=adma"], "(did you mean 'adam'?)"),
        (["model/opt=[sgd,adma],[sgd]"], "(did you mean 'adam'?)"),
        (["experiment@vars=e,f"], "a launch has one of it"),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_what_to_do(project, line, told):
    with pytest.raises(ConfigError) as caught:
        compose_experiment(project, [*BASE, *line])
    assert told in str(caught.value)
    assert caught.value.fix


def test_the_last_of_two_values_of_a_key_holds_as_in_hydra(project, hydra):
    again = (
        ["model.lr=1,2", "model.lr=3,4"],
        ["model.lr=1,2", "model.lr=3"],
        ["model.lr=3", "seed=0,1", "model.lr=1,2"],
    )
    for line in again:
        assert same(ours(project, line), hydra(line), ordered=True)


def test_a_cast_keeps_its_type_where_hydra_writes_it_out_and_reads_back_another(project):
    assert [point["model"]["name"] for point in ours(project, ["model.name=str(choice(1,true))"])] == ["1", "true"]
