"""What `orch show` prints is YAML that reads back as what it was."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.yaml_text import yaml_lines

NASTY = [
    "", " ", "yes", "No", "null", "~", "1", "1e-3", "0x1f", "010", "1:30", "24:00:00", ".inf", ".5", "-", "- a", "-1",
    "a: b", "a #b", "#a", "a:", "key=", "=", "<<", "'", '"', "\\", "{a}", "[1]", "a, b", "&x", "*x", "!x", "|", ">",
    "%x", "@x", "`x`", "?", "? x", "two\nlines\n", "\ttab", "a ", " a", "größe", "\x7f", "\x85", "\u2028", "\ufeff",
    "😀\n", "val/acc", "/a folder/runs", "2026-11-30", "2026-11-30 12:00:00", "_", "__", "a.b_c",
    "KeyError at model.py:41", "0b01", "1e5", "12e05", "0c", "3f", "01e20e91cea8",
    "${secret:THE_KEY}", "---", "...", "_1", "1_000",
]  # fmt: skip
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
TREE = st.recursive(LEAF, lambda tree: st.lists(tree, max_size=4) | st.dictionaries(TEXT, tree, max_size=4))


@pytest.mark.parametrize("text", NASTY)
def test_text_that_yaml_could_take_for_something_else_reads_back_as_text(text):
    assert yaml.safe_load("\n".join(yaml_lines({text: [text]}))) == {text: [text]}


@given(TREE)
def test_a_tree_reads_back_as_it_was(tree):
    assert yaml.safe_load("\n".join(yaml_lines(tree))) == tree


def test_a_tree_is_laid_out_for_people():
    tree = {
        "state": "done",
        "config": {"lr": 1e-05, "layers": [8, 16], "opt": [{"name": "adam", "betas": []}]},
        "why": "",
    }
    assert yaml_lines(json.loads(json.dumps(tree))) == [
        "state: done",
        "config:",
        "  lr: 1.0e-05",
        "  layers:",
        "    - 8",
        "    - 16",
        "  opt:",
        "    - name: adam",
        "      betas: []",
        'why: ""',
    ]
