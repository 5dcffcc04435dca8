"""What the keys of a section may be: values are read, and a refusal says the value, the rule and a right one."""

import pytest
import yaml

from orchestrator.config.fields import (
    ANYTHING,
    check,
    check_mapping,
    choice,
    hours,
    not_negative,
    positive,
    text,
    texts,
    truth,
    whole,
)
from orchestrator.errors import ConfigError
from orchestrator.system.units import hours_of

FIELDS = {
    "count": whole(1),
    "most": whole(0, most=256, optional=True),
    "hours": positive(),
    "free": not_negative(),
    "on": truth("true"),
    "mode": choice("sizes", "always"),
    "folder": text("it is a folder", example="/scratch"),
    "lines": texts("it is a list of lines", example="['a']"),
    "other": ANYTHING,
}


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({}, {}),
        ({"hours": 4, "count": 1, "most": 256}, {"hours": 4.0, "count": 1, "most": 256}),
        ({"hours": None, "most": None, "folder": None, "on": None}, {}),
        ({"lines": ["a", "b"], "on": False, "other": [{}]}, {"lines": ("a", "b"), "on": False, "other": [{}]}),
        ({"lines": []}, {"lines": ()}),
        ({"free": 0, "mode": "always", "folder": "a b"}, {"free": 0, "mode": "always", "folder": "a b"}),
    ],
)
def test_values_are_read_and_those_that_are_null_left_out(given, values):
    found = check("section", given, FIELDS)
    assert found == values
    assert list(map(type, found.values())) == list(map(type, values.values()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 0, "section.count is 0: it is a whole number, at least 1\nfix: section.count=1"),
        ("count", True, "section.count is True: it is a whole number, at least 1\nfix: section.count=1"),
        ("count", None, "section.count is None: it is a whole number, at least 1\nfix: section.count=1"),
        ("most", 257, "section.most is 257: it is a whole number from 0 to 256\nfix: section.most=0"),
        ("hours", float("inf"), "section.hours is inf: it is a positive number below 1e12\nfix: section.hours=4"),
        ("hours", True, "section.hours is True: it is a positive number below 1e12\nfix: section.hours=4"),
        ("free", -1, "section.free is -1: it is a number, at least 0\nfix: correct section.free"),
        ("free", float("nan"), "section.free is nan: it is a number, at least 0\nfix: correct section.free"),
        ("on", 1, "section.on is 1: it is true or false\nfix: section.on=true"),
        (
            "mode",
            "alway",
            "section.mode is 'alway' (did you mean 'always'?): it is one of sizes, always\nfix: section.mode=always",
        ),
        ("mode", ["sizes"], "section.mode is ['sizes']: it is one of sizes, always\nfix: section.mode=sizes"),
        ("folder", "", "section.folder is '': it is a folder\nfix: section.folder=/scratch"),
        ("lines", "a", "section.lines is 'a': it is a list of lines\nfix: section.lines=['a']"),
        ("lines", ["a", 3], "section.lines is ['a', 3]: it is a list of lines\nfix: section.lines=['a']"),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule_and_a_right_one(key, value, message):
    with pytest.raises(ConfigError) as refusal:
        check("section", {key: value}, FIELDS)
    assert str(refusal.value) == message


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError) as refusal:
        check("section", {"cuont": 3}, FIELDS, fix="give it under extra: {{{key}: ...}}")
    assert refusal.value.what == "section.cuont is unknown (did you mean 'count'?)"
    assert refusal.value.why.startswith("known are count, most, hours")
    assert refusal.value.fix == "rename it to count, or give it under extra: {cuont: ...}"


def test_what_is_not_a_section_is_refused():
    with pytest.raises(ConfigError, match=r"section is \[3\]: it is a mapping of keys to values"):
        check_mapping("section", [3])


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (1.5, 1.5),
        (720, 720),
        ("24:00:00", 24),
        ("0:30:00", 0.5),
        ("1-12", 36),
        ("2-0:30", 48.5),
        ("1-00:00:36", 24.01),
    ],
)
def test_a_time_is_hours_or_text_in_slurms_format(written, value):
    assert hours().check("resources.hours", written) == pytest.approx(value)


@pytest.mark.parametrize(
    "written", ["1:30", "90", "", "1-", "24h", "-1:00:00", 0, -1, True, float("nan"), float("inf")]
)
def test_what_may_mean_two_times_is_refused(written):
    with pytest.raises(ConfigError, match="it is a number of hours below 3600, or a time such as"):
        hours().check("resources.hours", written)


def test_what_yaml_makes_of_a_time_is_never_taken_for_years():
    written = yaml.safe_load("hours: 24:00:00")["hours"]
    assert written == 86400
    with pytest.raises(ConfigError, match="a number of hours below 3600"):
        hours().check("resources.hours", written)


@pytest.mark.parametrize(("text", "value"), [("90", 1.5), ("90:00", 1.5), ("8:00:00", 8), ("1-0", 24), ("x", None)])
def test_a_text_in_slurms_format(text, value):
    assert hours_of(text) == value
