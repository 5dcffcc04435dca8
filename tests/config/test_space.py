"""Random points depend on their seed alone: the same everywhere, and more of them only add."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.sweep.space import EXAMPLES, distribution, drawn
from orchestrator.errors import ConfigError

SPACE = {
    "model.lr": distribution("model.lr", "loguniform", (1e-4, 1e-1)),
    "model.width": distribution("model.width", "int", (16, 256)),
    "model": distribution("model", "choice", ("mlp", "convnet", None)),
    "model.dropout": distribution("model.dropout", "uniform", (0, 0.5)),
    "vars.shift": distribution("vars.shift", "normal", (10, 2)),
}

# Never change these: runs in users' folders were drawn like this.
GOLDEN = [
    {"model.lr": 0.0190799, "model.width": 100, "model": None, "model.dropout": 0.325123, "vars.shift": 10.1614},
    {"model.lr": 0.00224988, "model.width": 83, "model": "convnet", "model.dropout": 0.181987, "vars.shift": 5.14228},
    {"model.lr": 0.0272564, "model.width": 236, "model": "mlp", "model.dropout": 0.422407, "vars.shift": 11.4311},
]


def column(kind, *arguments, n=4000):
    return [point["k"] for point in drawn({"k": distribution("k", kind, arguments)}, n=n, seed=3)]


def test_the_points_of_a_seed_never_change():
    assert drawn(SPACE, n=3, seed=0) == GOLDEN


def test_another_seed_draws_other_points():
    assert not any(a == b for a, b in zip(drawn(SPACE, n=50, seed=0), drawn(SPACE, n=50, seed=1), strict=True))


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 5), st.randoms())
def test_more_points_only_add_and_no_key_moves_another(n, more, seed, shuffled: random.Random):
    long = drawn(SPACE, n=n + more, seed=seed)
    assert drawn(SPACE, n=n, seed=seed) == long[:n]
    keys = shuffled.sample(sorted(SPACE), shuffled.randint(1, len(SPACE)))
    if "model.lr" in keys:  # of many values: no draw is dropped as a repetition
        part = drawn({key: SPACE[key] for key in keys}, n=n, seed=seed)
        assert part == [{key: point[key] for key in keys} for point in long[:n]]


def test_values_follow_their_distributions():
    assert statistics.mean(column("uniform", -1, 3)) == pytest.approx(1, abs=0.1)
    assert statistics.median(column("loguniform", 1e-4, 1)) == pytest.approx(1e-2, rel=0.25)
    normal = column("normal", 5, 2)
    assert (statistics.mean(normal), statistics.stdev(normal)) == pytest.approx((5, 2), abs=0.15)
    quarters = statistics.quantiles(column("uniform", 0, 1))
    assert quarters == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def test_whole_numbers_include_both_bounds_and_repetitions_are_dropped():
    assert sorted(column("int", -2, 3)) == [-2, -1, 0, 1, 2, 3]
    assert sorted(column("int", 16, 70, 16)) == [16, 32, 48, 64]
    assert set(column("choice", "a", None, True, 1.5, n=100)) == {"a", None, True, 1.5}
    assert len(column("choice", 1, 1.0, True, n=100)) == 3  # told apart as ids do


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.sampled_from(["uniform", "loguniform"]))
def test_values_stay_within_their_bounds_and_are_short(one, other, kind):
    low, high = min(one, other), max(one, other)
    if low < high:
        for value in column(kind, low, high, n=5):
            assert low <= value <= high
            assert value in {low, high} or float(f"{value:.6g}") == value


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("logunifrm", (1, 2), "(did you mean 'loguniform'?)"),
        ("uniform", (1,), "two numbers"),
        ("uniform", ("a", 1), "two numbers"),
        ("uniform", (2, 1), "a lower and a higher bound"),
        ("uniform", (1, 1), "a lower and a higher bound"),
        ("loguniform", (0, 1), "have a logarithm"),
        ("loguniform", (-1, 1), "have a logarithm"),
        ("int", (1.5, 3), "whole numbers"),
        ("int", (3, 1), "a lower"),
        ("int", (True, 3), "two numbers"),
        ("int", (1, 9, 0), "its step is at least 1"),
        ("int", (1, 9, 2, 2), "or three with a step"),
        ("int", (1, 9, 0.5), "whole numbers"),
        ("uniform", (1, 9, 2), "two numbers"),
        ("normal", (0, 0), "a standard deviation above zero"),
        ("normal", (float("nan"), 1), "two numbers"),
        ("uniform", (0, float("inf")), "two numbers"),
        ("choice", (), "values to choose from"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_with_an_example(kind, arguments, told):
    with pytest.raises(ConfigError) as caught:
        distribution("model.lr", kind, arguments)
    assert told in str(caught.value)
    assert caught.value.fix in {f'model.lr: "{example}"' for example in EXAMPLES.values()}
