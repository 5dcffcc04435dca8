"""Words choose runs: an id prefix, a state, a launch, or a point as it was swept."""

import pytest

from orchestrator.cli.selection import Selection, parse
from orchestrator.errors import RequestError
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Record, RunState
from orchestrator.spec import Resources, RunId


def record(run="0123456789ab", state=RunState.DONE, launch=1, **point):
    planned = PlannedRun(
        run=RunId(run),
        launch=launch,
        index=0,
        action="submit",
        attempt=1,
        generation=1,
        history=1,
        code="c",
        point={key.replace("__", "."): value for key, value in point.items()},
        resources=Resources(),
    )
    return Record(planned=planned, state=state, reason="", attempts=())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Selection()),
        (["01ab"], Selection(ids=("01ab",))),
        (["failed"], Selection(states=(RunState.FAILED,))),
        (["state=failed,queued"], Selection(states=(RunState.FAILED, RunState.QUEUED))),
        (["done", "state=failed"], Selection(states=(RunState.DONE, RunState.FAILED))),
        (["launch=3", "launch=12"], Selection(launches=(3, 12))),
        (["model.lr=1e-3,1e-2", "model.lr=1"], Selection(point={"model.lr": ("1e-3", "1e-2", "1")})),
        (["a", "model=mlp"], Selection(ids=("a",), point={"model": ("mlp",)})),
        (["name=x=y"], Selection(point={"name": ("x=y",)})),
    ],
)
def test_words_are_read(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize(
    ("value", "text", "same"),
    [
        (0.001, "1e-3", True),
        (0.001, "0.001", True),
        (0.001, "1e-4", False),
        (1, "1.0", True),
        (1, "one", False),
        (0, "false", False),
        (0, "0", True),
        (True, "true", True),
        (True, "True", True),
        (True, "1", False),
        (False, "false", True),
        (False, "0", False),
        (None, "null", True),
        (None, "None", False),
        (None, "", False),
        ("mlp", "mlp", True),
        ("mlp", "MLP", False),
        ("1e-3", "0.001", False),
        ("größe", "größe", True),
        ([1, 2], "[1, 2]", True),
        ("", "", True),
    ],
)
def test_a_value_matches_as_what_it_is(value, text, same):
    chosen = Selection(point={"key": (text,)})
    assert chosen.matches(record(key=value)) is same


def test_kinds_are_combined_with_and_and_values_of_one_kind_with_or():
    records = [
        record("aaa000000000", RunState.DONE, 1, model__lr=1e-3, seed=0),
        record("aab000000000", RunState.FAILED, 1, model__lr=1e-2, seed=1),
        record("bbb000000000", RunState.FAILED, 2, model__lr=1e-1, seed=0),
    ]

    def chosen(*words):
        return [r.id[:3] for r in parse(words).choose(records, {1: ["paper"], 2: ["paper", "ablation"]})]

    assert chosen() == ["aaa", "aab", "bbb"]
    assert chosen("tag=ablation") == ["bbb"]
    assert chosen("tag=paper,none", "failed") == ["aab", "bbb"]
    assert chosen("aa") == ["aaa", "aab"]
    assert chosen("aa", "b") == ["aaa", "aab", "bbb"]
    assert chosen("aa", "failed") == ["aab"]
    assert chosen("model.lr=1e-3,0.01") == ["aaa", "aab"]
    assert chosen("model.lr=1e-3", "model.lr=0.1") == ["aaa", "bbb"]
    assert chosen("model.lr=1e-3,0.01", "seed=1") == ["aab"]
    assert chosen("launch=2", "done") == []


def test_a_key_that_a_run_does_not_have_matches_no_value_of_it():
    assert not parse(["model.lr=1"]).matches(record(seed=0))
    assert not parse(["model.lr=null"]).matches(record(seed=0))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("faild", "did you mean 'failed'?"),
        ("state=don", "did you mean 'done'?"),
        ("zzz", ""),
        ("launch=two", "launch=3"),
        ("launch=-1", ""),
        ("launch=", ""),
        ("0123456789abc", ""),
        ("", ""),
    ],
)
def test_a_word_of_no_form_is_refused_with_what_it_could_be(word, hint):
    with pytest.raises(RequestError) as caught:
        parse([word])
    assert hint in str(caught.value)
    assert caught.value.fix
    assert caught.value.why
