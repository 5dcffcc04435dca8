"""A sweep's definition gives the points it says, in order, and is refused where it contradicts itself."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.sweep.grid import MOST_POINTS, ask_above, define, expand, matches
from orchestrator.config.sweep.space import distribution, drawn
from orchestrator.errors import ConfigError


def points(raw, *, axes=None, replaced=()):
    found, notes = expand(define(raw, axes=axes or {}, replaced=replaced))
    assert notes == ()
    return list(found)


def refused(raw, *, axes=None):
    with pytest.raises(ConfigError) as caught:
        expand(define(raw, axes=axes or {}))
    assert caught.value.why
    assert caught.value.fix
    return str(caught.value)


def test_no_sweep_is_one_point_without_coordinates():
    assert points({}) == [{}]
    assert points({"grid": {}, "zip": {}, "list": [], "exclude": [], "resources": []}) == [{}]
    assert points({"grid": None, "zip": None, "list": None, "exclude": None, "resources": None}) == [{}]


def test_a_grid_is_a_product_whose_last_axis_varies_fastest():
    assert points({"grid": {"a": [1, 2], "b": ["x", None, True]}}) == [
        {"a": a, "b": b} for a in (1, 2) for b in ("x", None, True)
    ]


def test_zipped_keys_go_together():
    assert points({"zip": {"w": [1, 2], "b": [20, 10]}}) == [{"w": 1, "b": 20}, {"w": 2, "b": 10}]


def test_several_zips_multiply():
    raw = {"zip": [{"a": [1, 2], "b": [3, 4]}, {"c": [5, 6], "d": [7, 8]}]}
    assert points(raw) == [{"a": a, "b": b, "c": c, "d": d} for a, b in ((1, 3), (2, 4)) for c, d in ((5, 7), (6, 8))]


def test_listed_points_may_have_different_keys():
    assert points({"list": [{"a": 1}, {"b": 2, "a": 3}]}) == [{"a": 1}, {"b": 2, "a": 3}]


def test_all_kinds_multiply_and_the_command_line_comes_last():
    raw = {"grid": {"g": [1, 2]}, "zip": {"z": [3, 4]}, "list": [{"l": 5}, {"l": 6}]}
    assert points(raw, axes={"c": (7, 8)}) == [
        {"g": g, "z": z, "l": n, "c": c} for g in (1, 2) for z in (3, 4) for n in (5, 6) for c in (7, 8)
    ]


SPACE = {"x": distribution("x", "uniform", (0, 1)), "y": distribution("y", "choice", ("p", "q"))}
RANDOM = {"random": {"n": 4, "seed": 1, "space": SPACE}}


def test_seeds_are_an_axis():
    assert points({"seeds": 3}) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert points({"seeds": 2}, axes={"a": (1, 2)})[1] == {"seed": 0, "a": 2}


def test_random_points_are_drawn_once_and_multiply_with_the_rest():
    found = points({**RANDOM, "grid": {"a": [1, 2]}, "seeds": 2})
    draws = drawn(SPACE, n=4, seed=1)
    assert found == [{"a": a, **draw, "seed": seed} for a in (1, 2) for draw in draws for seed in (0, 1)]


@pytest.mark.parametrize("replaced", ["x", "y"])
def test_a_value_of_the_command_line_leaves_the_other_draws_where_they_were(replaced):
    left = [{key: value for key, value in point.items() if key != replaced} for point in points(RANDOM)]
    distinct = [point for i, point in enumerate(left) if point not in left[:i]]
    found, notes = expand(define(RANDOM, replaced=[replaced], axes={replaced: (9,)}))
    assert list(found) == [{**point, replaced: 9} for point in distinct]
    assert notes == (() if len(distinct) == 4 else ("sweep.random: 2 of 4 draws gave a point that was there already",))
    assert points(RANDOM, replaced=["x", "y"]) == [{}]


def test_the_command_line_replaces_seeds():
    assert points({"seeds": 3, "grid": {"a": [1]}}, replaced=["seed"]) == [{"a": 1}]
    assert points({"seeds": 3}, axes={"seed": (7,)}, replaced=["seed"]) == [{"seed": 7}]


def test_a_sweep_too_large_to_expand_is_refused_before_it_is():
    axis = list(range(1_000))
    assert "the sweep has 1,000,000,000 points" in refused({"grid": {"a": axis, "b": axis, "c": axis}})
    assert len(points({"grid": {"a": list(range(MOST_POINTS))}})) == MOST_POINTS


def test_from_how_many_runs_on_a_launch_asks():
    assert (ask_above({}), ask_above({"ask_above": None}), ask_above({"ask_above": 0})) == (1_000, 1_000, 0)
    for wrong in (-1, "many", True, 1.5):
        with pytest.raises(ConfigError, match=r"sweep.ask_above is"):
            ask_above({"ask_above": wrong})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"grid": {"a": [1, 2], "b": [3]}}, [{"b": 3, "a": 9}]),
        ({"zip": {"a": [1, 2], "b": [3, 4]}}, [{"b": 3, "a": 9}, {"b": 4, "a": 9}]),
        ({"zip": {"a": [1, 2]}}, [{"a": 9}]),
        ({"list": [{"a": 1, "b": 3}, {"a": 2}]}, [{"b": 3, "a": 9}, {"a": 9}]),
        ({"list": [{"a": 1}, {"a": 2}]}, [{"a": 9}]),
    ],
)
def test_an_axis_of_the_command_line_replaces_the_one_written(raw, expected):
    assert points(raw, axes={"a": (9,)}, replaced=["a"]) == expected


def test_a_fixed_value_of_the_command_line_drops_the_axis():
    assert points({"grid": {"a": [1, 2], "b": [3]}}, replaced=["a"]) == [{"b": 3}]


def test_exclusions_drop_the_points_that_have_all_their_values():
    raw = {"grid": {"a": [1, 2], "b": [3, 4]}, "exclude": [{"a": 1, "b": 4}, {"b": 3, "a": 2}]}
    assert points(raw) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_an_exclusion_that_matches_nothing_is_noted():
    raw = {"grid": {"a": [1]}, "exclude": [{"a": 2}, {"typo": 1}]}
    assert expand(define(raw, axes={}))[1] == (
        "sweep.exclude: {'a': 2} matches no point",
        "sweep.exclude: {'typo': 1} matches no point",
    )


def test_resource_rules_are_kept_in_their_order():
    rules = [{"when": {"a": 1}, "set": {"hours": 2}}, {"when": {}, "set": {"nodes": 2}}]
    assert define({"resources": rules}, axes={}).resources == (({"a": 1}, {"hours": 2}), ({}, {"nodes": 2}))


@pytest.mark.parametrize(
    ("rule", "point", "expected"),
    [
        ({}, {}, True),
        ({}, {"a": 1}, True),
        ({"a": 1}, {}, False),
        ({"a": None}, {}, False),
        ({"a": None}, {"a": None}, True),
        ({"a": 1e-2}, {"a": 0.01, "b": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
    ],
)
def test_a_rule_matches_what_has_all_its_values(rule, point, expected):
    assert matches(rule, point) is expected


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"gird": {}}, "sweep.gird is unknown (did you mean 'grid'?)"),
        ({"model.lr": [1, 2]}, "grid: {model.lr: [...]}"),
        ({"grid": {"a": []}}, "sweep.grid: a has no values"),
        ({"grid": {"a": 1}}, "a: [1]"),
        ({"grid": {"a": None}}, "a swept key needs a list"),
        ({"grid": {"a": "x"}}, "a swept key needs a list"),
        ({"grid": [1]}, "sweep.grid is [1]"),
        ({"zip": {"a": [1, 2], "b": [1, 2, 3]}}, "a has 2, b has 3 values"),
        ({"zip": {"a": [], "b": []}}, "sweep.zip: a has no values"),
        ({"zip": [{"a": [1]}, 3]}, "is a list of such mappings"),
        ({"zip": "a"}, "is a list of such mappings"),
        ({"list": [{"a": 1}, 5]}, "sweep.list: 5 is not a point"),
        ({"list": [{}]}, "sweep.list: {} is not a point"),
        ({"list": {"a": 1}}, "it is a list of mappings"),
        ({"exclude": [{}]}, "sweep.exclude: {} is not a point"),
        ({"exclude": "a"}, "it is a list of mappings"),
        ({"grid": {"a": [1]}, "zip": {"a": [2]}}, "a is swept twice"),
        ({"grid": {"a": [1]}, "list": [{"b": 1}, {"a": 2}]}, "a is swept twice"),
        ({"zip": [{"a": [1]}, {"a": [2]}]}, "a is swept twice"),
        ({"grid": {"a": [1, 2]}, "exclude": [{"a": 1}, {"a": 2}]}, "all 2 are excluded"),
        ({"resources": [{"when": {"a": 1}}]}, "each rule has `when` and `set`"),
        ({"resources": [{"when": 1, "set": {}}]}, "each rule has `when` and `set`"),
        ({"resources": [{"when": {}, "set": {}, "if": {}}]}, "each rule has `when` and `set`"),
        ({"resources": ["x"]}, "each rule has `when` and `set`"),
        ({"resources": {"when": {}, "set": {}}}, "it is a list of mappings"),
        ({"seeds": 0}, "sweep.seeds is 0"),
        ({"seeds": [1, 2]}, "a whole number from 1"),
        ({"seeds": True}, "a whole number from 1"),
        ({"seeds": 2, "grid": {"seed": [1]}}, "seed is swept twice"),
        ({"random": {"n": 2, "space": SPACE}, "grid": {"x": [1]}}, "x is swept twice"),
        ({"random": 5}, "it has n, seed, space"),
        ({"random": {"n": 5, "size": 5}}, "it has n, seed, space"),
        ({"random": {"space": SPACE}}, "sweep.random.n is None"),
        ({"random": {"n": 10**9, "space": SPACE}}, "from 1 to 100,000"),
        ({"random": {"n": 1, "seed": -1, "space": SPACE}}, "sweep.random.seed is -1"),
        ({"random": {"n": 1}}, "what to draw it from"),
        ({"random": {"n": 1, "space": {}}}, "what to draw it from"),
        ({"random": {"n": 1, "space": {"model": {"lr": SPACE["x"]}}}}, "that is not a distribution"),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused(raw, told):
    assert told in refused(raw)


def test_a_key_swept_on_the_command_line_and_not_replaced_is_swept_twice():
    assert "a is swept twice" in refused({"grid": {"a": [1]}}, axes={"a": (2,)})


def test_an_empty_axis_of_the_command_line_is_refused():
    assert "the command line: a has no values" in refused({}, axes={"a": ()})


keys = st.text(min_size=1, max_size=4).filter(lambda key: key.strip("."))
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4))


@st.composite
def definitions(draw):
    """A grid and some zips over distinct keys, and how many partial points each of their blocks has."""
    names = draw(st.lists(keys, unique=True, min_size=1, max_size=7))
    cut = draw(st.integers(0, len(names)))
    grid = {name: draw(st.lists(values, min_size=1, max_size=3)) for name in names[:cut]}
    zips, rest, lengths = [], names[cut:], [len(axis) for axis in grid.values()]
    while rest:
        size, length = draw(st.integers(1, len(rest))), draw(st.integers(1, 3))
        zips.append({name: draw(st.lists(values, min_size=length, max_size=length)) for name in rest[:size]})
        lengths.append(length)
        rest = rest[size:]
    return {"grid": grid, "zip": zips}, names, lengths


@given(definitions())
def test_the_points_are_the_product_of_the_blocks_and_each_has_every_key(definition):
    raw, names, lengths = definition
    found = points(raw)
    assert len(found) == math.prod(lengths)
    assert all(set(point) == set(names) for point in found)
    assert found == points(raw)
    columns = {**raw["grid"], **{key: column for group in raw["zip"] for key, column in group.items()}}
    assert all(any(v is value for v in columns[key]) for point in found for key, value in point.items())


@given(definitions(), st.data())
def test_exclusions_and_what_they_leave_are_all_points(definition, data):
    raw, _, _ = definition
    every = points(raw)
    rule = data.draw(st.sampled_from(every))
    left = [point for point in every if not matches(rule, point)]
    if left:
        assert points({**raw, "exclude": [rule]}) == left
    else:
        assert f"all {len(every)} are excluded" in refused({**raw, "exclude": [rule]})


def test_a_big_sweep_is_what_itertools_says():
    grid = {f"k{i}": list(range(n)) for i, n in enumerate((7, 11, 13))}
    assert [tuple(point.values()) for point in points({"grid": grid})] == list(itertools.product(*grid.values()))


def test_exclude_also_sees_what_the_command_line_fixed():
    definition = define(
        {"grid": {"model.lr": [1, 2]}, "exclude": [{"model": "convnet", "model.lr": 2}]}, replaced=["model"], axes={}
    )
    assert expand(definition, {"model": "convnet"}) == (({"model.lr": 1},), ())
    assert len(expand(definition, {"model": "mlp"})[0]) == 2
