"""The fast way to a point's config gives exactly what Hydra gives, in any order, with any values."""

import copy
import random

import pytest
from campaigns import amount
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.config.compose import Composer
from orchestrator.config.overrides import to_override
from orchestrator.config.points import resolve_points
from orchestrator.errors import ConfigError

# 60 leaves, three groups (one nested), and interpolations of every kind.
CONF = {
    "model/mlp.yaml": """\
_target_: mine.MLP
defaults: []
lr: 1e-3
width: 64
flag: false
none: null
name: mlp
label: ${.name}-${.width}
scaled: ${model.lr}
hidden: [16, "${..width}", 4]
nested: {a: 1, b: {c: x, up: "${...width}", far: "${vars.first}"}, list: [1, 2.5, z]}
also: ${seed}
""",
    "model/conv.yaml": """\
_target_: mine.Conv
lr: 3e-4
width: 32
flag: true
none: null
name: conv
kernel: 3
"dotted.key": ${seed}
label: ${model.name}_${.kernel}
scaled: ${vars.scaled}
hidden: []
nested: {a: 2, b: {c: y, up: "${model.kernel}", far: "${vars.whole}"}, list: [{deep: "${seed}", fixed: 1}]}
""",
    "data/toy.yaml": """\
_target_: mine.Data
defaults: [{aug: none}, _self_]
batch: 32
seed: ${seed}
folder: ${view:}/${.batch}
model_lr: ${model.lr}
copy: ${model.nested}
split: {train: 0.8, val: 0.2, names: [a, b]}
version: null
""",
    "data/big.yaml": """\
_target_: mine.Big
defaults: [{aug: none}, _self_]
batch: 256
seed: ${vars.chain}
folder: ${project:}/x
model_lr: "lr=${model.lr}"
copy: ${vars}
split: {train: 0.9, val: 0.1, names: ["${data.batch}"]}
version: null
""",
    "data/aug/none.yaml": "kind: null\nstrength: 0.0\n",
    "data/aug/flip.yaml": "kind: flip\nstrength: ${data.batch}\nextra: ${..batch}\n",
    "experiment/all.yaml": """\
# @package _global_
defaults: [{override /model: mlp}, {override /data: toy}]
name: all
vars:
  first: ${vars.second}
  second: ${seed}
  chain: ${vars.first}
  scaled: ${model.lr}
  text: "lr ${model.lr} of ${vars.first}, ${model.nested.b.c}"
  whole: ${model.split_of_data}
  free: 1
model: {split_of_data: "${data.split}"}
trainer: {max_epochs: "${vars.free}", callbacks: {stop: {_target_: mine.Stop, patience: "${model.width}"}}}
""",
}
# With a key that is itself computed somewhere, everything goes through Hydra.
COMPUTED = 'vars:\n  which: model\n  computed: ${${vars.which}.width}\n  decoded: ${oc.decode:"${seed}"}'


def make(folder, files):
    for name, content in files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Composer(folder)


@pytest.fixture(scope="module")
def composer(tmp_path_factory):
    return make(tmp_path_factory.mktemp("a b'c"), CONF)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    changed = CONF["experiment/all.yaml"].replace("vars:", COMPUTED)
    return make(tmp_path_factory.mktemp("computed"), {**CONF, "experiment/all.yaml": changed})


FIXED = ("experiment=all",)


def by_hydra(composer, point, prefixes=None):
    """Return the config that one composition with the point as overrides gives; None where Hydra refuses it."""
    overrides = [
        to_override((prefixes or {}).get(key, ""), key, value, group=composer.chooses(key, value))
        for key, value in point.items()
    ]
    try:
        config = composer.compose([*FIXED, *overrides]).config
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except Exception:  # noqa: BLE001 - whatever Hydra says, it must be refused here too
        return None


def by_us(composer, points, prefixes=None):
    return [dict(item.config) for item in resolve_points(composer, FIXED, points, prefixes or {})]


def same(a, b):
    """Whether two trees are equal to the last bit: types, order of keys, -0.0 and NaN included."""
    return repr(a) == repr(b)


text = st.one_of(
    st.sampled_from(["", "a b", "a,b", "it's", 'x"y', "k=v", "größe ☃", "[1]", "{a}", "null", "1e-3", "true", "\\",
                     "a\\'", "x\ny", " ", "???x", "#", "a: b", "~"]),
    st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=6).filter(lambda t: t != "???"),
)  # fmt: skip
numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.sampled_from([1e-3, 1e10, 1e16, -0.0, 1, 1.0, 0]))
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
lists = st.lists(scalars | st.lists(scalars, max_size=2), max_size=3)
dicts = st.dictionaries(st.sampled_from(["p", "q", "r-s", "t_1"]), scalars | lists, max_size=3)
interpolations = st.sampled_from(
    ["${model.lr}", "${seed}", "x${vars.first}", "${data.split}", "${.name}", "${vars.nope}", "$", "a$b", "\\${seed}"]
)

AXES = {
    "model": st.sampled_from(["mlp", "conv"]),
    "data": st.sampled_from(["toy", "big"]),
    "data/aug": st.sampled_from(["none", "flip"]),
    "model.lr": scalars, "model.width": scalars, "model.name": text | interpolations, "model.label": scalars,
    "model.flag": st.booleans(), "model.none": scalars, "model.nested.a": scalars, "model.nested.b.c": scalars,
    "model.nested.list": lists, "model.hidden": lists, "model.split_of_data": dicts | scalars,
    "data.batch": scalars, "data.seed": scalars, "data.split.train": numbers, "data.split": dicts, "data.copy": scalars,
    "data.aug.strength": scalars, "seed": scalars, "vars.first": scalars, "vars.second": scalars, "vars.free": scalars,
    "trainer.max_epochs": scalars, "trainer.callbacks.stop.patience": scalars, "trainer.callbacks": dicts,
    "+vars.new": scalars | lists | dicts, "++model.fresh": scalars | dicts, "+trainer.fresh": scalars,
    "++model.lr": scalars, "model.nested.list.0": scalars, "model.nested.list[0]": scalars, "model.typo": scalars,
}  # fmt: skip


def distinct(keys):
    """Leave out keys that name the same value twice: which of them wins is no question of speed."""
    bare = [key.lstrip("+").replace("[", ".").rstrip("]") for key in keys]
    return not any(
        i != j and (a == b or b.startswith(f"{a}.")) and "/" not in a + b and a not in {"model", "data"}
        for i, a in enumerate(bare)
        for j, b in enumerate(bare)
    )


sets_of_keys = st.lists(st.sampled_from(sorted(AXES)), unique=True, min_size=1, max_size=5).filter(distinct)
rounds = sets_of_keys.flatmap(
    lambda keys: st.lists(st.fixed_dictionaries({key: AXES[key] for key in keys}), min_size=1, max_size=3)
)
few = settings(
    max_examples=amount(6, 150),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking composes for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def bare(points):
    """Split the `+` and `++` off the keys, as an axis of the command line does."""
    prefixes = {key.lstrip("+"): key[: len(key) - len(key.lstrip("+"))] for point in points for key in point}
    return [{key.lstrip("+"): value for key, value in point.items()} for point in points], prefixes


@given(rounds)
@example([{"seed": 1}, {"seed": 2}])
@example([{"model.lr": 1e-3, "model.width": 1e10}, {"model.lr": -0.0, "model.width": None}])
@example([{"model.lr": 1, "model": "conv"}, {"model.lr": 2.0, "model": "mlp"}, {"model.lr": True, "model": "conv"}])
@example([{"data": "big", "data.batch": 8, "data/aug": "flip"}, {"data": "toy", "data.batch": 9, "data/aug": "flip"}])
@example([{"data.split.train": 0.5}, {"data.split.train": 0.25}])
@example([{"model.nested.a": 5}, {"model.nested.a": [1, {"p": None}]}, {"model.nested.a": 6}])
@example([{"model.nested.list.0": 5}, {"model.nested.list.0": 6}])
@example([{"+vars.new": {"p": 1}}, {"+vars.new": "x"}])
@example([{"model.name": "a"}, {"model.name": "${model.lr}"}, {"model.name": "b"}])
@example([{"model.name": "a"}, {"model.name": "???"}])
@example([{"vars.first": "\\"}, {"vars.first": "a\\'"}])
@few
def test_every_point_is_what_hydra_composes(composer, points):
    plain, prefixes = bare(points)
    expected = [by_hydra(composer, point, prefixes) for point in plain]
    if None in expected:
        with pytest.raises(ConfigError):
            by_us(composer, plain, prefixes)
        wanted = [(point, config) for point, config in zip(plain, expected, strict=True) if config is not None]
    else:
        wanted = list(zip(plain, expected, strict=True))
    for config, (_, hydra) in zip(by_us(composer, [point for point, _ in wanted], prefixes), wanted, strict=True):
        assert same(config, hydra)


FAST = [key for key in AXES if "+" not in key and "[" not in key and key != "model.typo" and AXES[key] is scalars]


@given(st.data())
@few
def test_points_with_different_keys_do_not_leak_into_each_other(composer, data):
    """As `sweep.list` allows. A value of one point must not be what another finds."""
    some = st.lists(st.sampled_from([*FAST, "model", "data"]), unique=True, min_size=2, max_size=4)
    keys = data.draw(some.filter(distinct))
    points = data.draw(
        st.lists(
            st.sampled_from(keys).flatmap(
                lambda key: st.fixed_dictionaries({key: AXES[key]}, optional={k: AXES[k] for k in keys if k != key})
            ),
            min_size=2,
            max_size=4,
        )
    )
    expected = [by_hydra(composer, point) for point in points]
    wanted = [(point, config) for point, config in zip(points, expected, strict=True) if config is not None]
    order = data.draw(st.permutations(range(len(wanted))))
    shuffled = by_us(composer, [wanted[i][0] for i in order])
    for config, i in zip(shuffled, order, strict=True):
        assert same(config, wanted[i][1])


def test_the_order_of_many_points_does_not_matter(composer):
    points = [
        {"model": model, "data": data, "model.lr": lr, "seed": seed}
        for model in ("mlp", "conv")
        for data in ("toy", "big")
        for lr in (1e-3, "x", None)
        for seed in (0, 1)
    ]
    straight = by_us(composer, points)
    order = random.Random(0).sample(range(len(points)), len(points))
    for config, i in zip(by_us(composer, [points[i] for i in order]), order, strict=True):
        assert same(config, straight[i])
    for i in (0, 7, len(points) - 1):
        assert same(straight[i], by_hydra(composer, points[i]))


def test_what_one_point_is_given_is_not_changed_by_the_next(composer):
    points = [{"model.lr": lr, "model.nested.a": lr} for lr in (1, 2, 3)]
    seen, kept = [], []
    for item in resolve_points(composer, FIXED, points, {}):
        seen.append(item.config)
        kept.append(copy.deepcopy(item.config))
    assert all(same(a, b) for a, b in zip(seen, kept, strict=True))
    for config in seen:
        config["model"]["lr"] = config["model"]["nested"]["a"] = "changed"
        assert sum(other["model"]["lr"] == "changed" for other in seen) == 1 + seen.index(config)


def test_everything_is_plain(composer):
    def types(tree):
        if isinstance(tree, dict):
            return {dict} | {t for key, value in tree.items() for t in (type(key), *types(value))}
        return {list}.union(*map(types, tree)) if isinstance(tree, list) else {type(tree)}

    for config in by_us(composer, [{"data": "big", "seed": seed} for seed in (1, 2)]):
        assert types(config) <= {dict, list, str, int, float, bool, type(None)}


def test_where_a_key_is_computed_every_point_goes_through_hydra_and_is_the_same(computed):
    points = [{"model": model, "model.width": width} for model in ("conv", "mlp") for width in (1, "x")]
    configs = by_us(computed, points)
    assert [config["vars"]["computed"] for config in configs] == [1, "x", 1, "x"]
    assert all(same(config, by_hydra(computed, point)) for config, point in zip(configs, points, strict=True))


class Counting(Composer):
    """Knows how often it was asked."""

    composed = 0

    def compose(self, overrides):
        self.composed += 1
        return super().compose(overrides)


def test_added_keys_and_lists_compose_once_per_list_whatever_the_number_of_points(composer):
    counting = Counting(composer.folder.parent)
    lists = ([1, "${seed}"], [], [{"a": 1}])
    points = [{"vars.new": i, "model.nested.list": each, "model.lr": i} for each in lists for i in range(20)]
    configs = [dict(item.config) for item in resolve_points(counting, FIXED, points, {"vars.new": "+"})]
    assert counting.composed == 3 + 1, "and once without the values, to see which keys are there"
    for i in (0, 25, 59):
        assert same(configs[i], by_hydra(composer, points[i], {"vars.new": "+"}))


def test_of_keys_that_lie_in_each_other_the_last_one_holds(composer):
    inner, outer = {"model.lr": 5}, {"model": {"lr": 6}}
    for point in ({**inner, **outer}, {**outer, **inner}, {"model.nested": {"a": 7}, "model.nested.a": 8}):
        assert same(by_us(composer, [point])[0], by_hydra(composer, point))


def test_hydra_composes_once_per_choice_of_groups_whatever_the_number_of_points(composer):
    def leaves(tree):
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 1

    counting = Counting(composer.folder.parent)
    points = [{"model": m, "model.lr": i, "vars.free": i, "data.batch": i} for m in ("mlp", "conv") for i in range(20)]
    configs = by_us(counting, points)
    assert counting.composed == 2
    assert leaves(configs[0]) >= 60
    assert same(configs[-1], by_hydra(composer, points[-1]))
