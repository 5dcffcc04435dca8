"""What YAML, OmegaConf and Hydra cannot read, or would make too much of, is told by file and line, and runs nothing."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from campaigns import SEED, amount

from orchestrator.config.experiment import compose_experiment, placing
from orchestrator.errors import ConfigError

HEAD = "# @package _global_\nname: x\n"
BOMB = "vars:\n  a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture
def compose(tmp_path):
    """Compose an experiment of this text, with overrides."""

    def composed(text: str | bytes, *overrides: str):
        file = tmp_path / "conf" / "experiment" / "x.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        words = ["experiment=x", "model._target_=a.B", *overrides]
        with placing(tmp_path, words):
            return compose_experiment(tmp_path, words)

    return composed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: !!bool maybe\n", "line 3: 'maybe' is not of the type bool"),
        ("seed: !!int ''\n", "line 3: '' is not of the type int"),
        ("seed: !!float x\n", "line 3: 'x' is not of the type float"),
        ("vars:\n  - !!timestamp x\n", "line 4: 'x' is not of the type timestamp"),
        (f"vars: {{x: 1{'0' * 5000}}}\n", "line 3: .* is not of the type int"),
        (f"vars: {{x: {'[' * 300}{']' * 300}}}\n", "line 3: it nests too deeply"),
        (f"vars: {{x: {'{a: ' * 2000}1{'}' * 2000}}}\n", "line 3: it nests too deeply"),
        ("vars:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 80)), "nests too deeply"),
        (BOMB, "its aliases .* make too many values"),
        ("vars: &v {a: *v}\n", "line 3: \\*v lies in &v"),
        ("vars: {null: 1}\n", "Incompatible key type"),
        ("sweep: {grid: {seed: 'range(0,1000000000)'}}\n", "too many values"),
        ("sweep: {grid: {seed: 'range(0,inf)'}}\n", "too many values"),
        ("sweep: {grid: {seed: 'range(0,nan)'}}\n", "too many values"),
        ("sweep: {grid: {seed: 'shuffle(range(0,1000000000))'}}\n", "too many values"),
        (f"sweep: {{random: {{n: 5, space: {{seed: 'int(0, 1{'0' * 400})'}}}}}}\n", "it takes two numbers"),
        ("resources: {mem_gb_per_node: 1e308}\n", "positive number below"),
    ],
)
def test_it_is_refused_with_the_place_and_what_is_wrong(compose, text, says):
    with pytest.raises(ConfigError, match=says) as refused:
        compose(HEAD + text)
    assert refused.value.fix


@pytest.mark.parametrize(
    ("text", "says"),
    [("\ufeff" + HEAD, "x.yaml begins with a byte order mark"), ("", "sets nothing"), ("# no more\n", "sets nothing")],
)
def test_a_file_with_a_mark_or_with_nothing_says_so(compose, text, says):
    with pytest.raises(ConfigError, match=says):
        compose(text)


@pytest.mark.parametrize(
    "override",
    ["+experiment@x.mode=[1,{a: b}]", "vars.x=\ud800", f"+vars.x={'[' * 500}", f"seed=1{'0' * 5000}", "seed=int(x)"],
)
def test_an_override_that_hydra_cannot_read_is_refused(compose, override):
    with pytest.raises(ConfigError):
        compose(HEAD, override)


def test_a_package_of_the_search_path_is_not_imported(compose, tmp_path, monkeypatch):
    (tmp_path / "evil" / "conf" / "model").mkdir(parents=True)
    for package in ("evil", "evil/conf"):
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "evil" / "conf" / "model" / "theirs.yaml").write_text("_target_: their.Model\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "conf").mkdir()
    root = Path(__file__).parents[2] / "conf" / "config.yaml"
    (tmp_path / "conf" / "config.yaml").write_text(f"{root.read_text()}\nhydra: {{searchpath: [pkg://evil.conf]}}\n")
    assert compose(HEAD, "model=theirs").points[0].config["model"]["_target_"] == "a.B"


PIECES = [
    "!!bool ",
    "!!int ",
    "!!float ",
    "!!timestamp ",
    "!!binary ",
    "!!set ",
    "!!omap ",
    "!!pairs ",
    "!x ",
    "&a ",
    "*a",
    "<<",
    ": ",
    "- ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    "\n",
    "  ",
    "\t",
    "'",
    '"',
    "|",
    ">",
    "%YAML 9.9",
    "---",
    "...",
    "#",
    "${",
    "}",
    "${oc.env:X}",
    "${vars.x}",
    "${oc.decode:",
    "\\",
    "\x00",
    "\x85",
    "\ufeff",
    "0x",
    "1e999",
    ".nan",
    ".inf",
    "1:30",
    "2020-99-99",
    "=",
    "~",
    "null",
    "_target_",
    "seed",
    "model",
    "sweep",
    "grid",
    "range(0,1e9)",
    "vars",
    "@",
]


@pytest.mark.campaign("damage", sample=True)
def test_any_text_is_read_or_refused(compose):
    chance = random.Random(f"foreign {SEED}")
    for number in range(amount(60, 3_000)):
        text = "".join(chance.choices(PIECES, k=chance.randint(1, 12)))
        with suppress(ConfigError):
            if number % 3:
                compose(
                    f"{HEAD}vars: {{x: 1}}\nresources: {{hours: 1}}\ntags: [a]\n{text}\n".encode("utf-8", "replace")
                )
            else:
                compose(HEAD, f"+vars.y={text}")
