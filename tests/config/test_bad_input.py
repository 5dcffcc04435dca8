"""Bad input of every kind is refused with what, why and a fix, the right exit status, and no traces.

Each case is one command of the real command line in a project of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from states import adopt
from suggestions import corrected_in, followed, suggestions

from orchestrator import api
from orchestrator.cli import main, parse
from orchestrator.project import find_project
from orchestrator.records.attempts import EventWriter, claim_attempt
from orchestrator.records.record import Claim
from orchestrator.system.processes import ProcessId

GLOBAL = "# @package _global_\n"
DEFAULTS = "defaults:\n  - override /model: net\n"
PROJECT = {
    "conf/trainer/default.yaml": "_target_: mine.trainers.Trainer\nmax_epochs: 1\ncallbacks: {}\n",
    "conf/model/net.yaml": "_target_: mine.nets.Net\nwidth: 8\nlr: 0.1\n",
    "conf/model/deep.yaml": "_target_: mine.nets.Net\nwidth: 16\nlr: 0.1\n",
    "conf/experiment/base.yaml": f"{GLOBAL}{DEFAULTS}name: base\n",
    "mine/nets.py": (
        "class Net:\n"
        "    def __init__(self, width: int, lr: float = 0.1, name: str = 'net', deep: bool = False, mode=None): ...\n"
        "SIZE = 3\n"
    ),
    "mine/trainers.py": "class Trainer:\n    def __init__(self, max_epochs: int = 1, **rest): ...\n",
    "mine/callbacks.py": "class Stop:\n    def __init__(self, patience: int): ...\n",
}

Files = Mapping[str, str | bytes | Callable[[Path], None]]


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)


def tree(folder: Path) -> dict[str, Any]:
    """Return everything below a folder: kinds, modes, bytes, where links lead, and when folders changed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            content: Any = path.readlink()
        else:
            content = path.read_bytes() if path.is_file() else path.lstat().st_mtime_ns
        found[str(path.relative_to(folder))] = (mode, content)
    return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ORCH_RUNS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "here" / "project"
    write(folder, PROJECT)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a refused command wrote to standard error."""

    said: str

    def names(self, *texts: str) -> None:
        for text in texts:
            assert text in self.said


@pytest.fixture
def refused(project, capsys):
    """Run a command that is to be refused; everything in and beside the project must stay as it is."""

    state = project.parent.parent / "state"

    def run(*argv: str, status: int = 2) -> Refusal:
        before = tree(project.parent), tree(state)
        try:
            found = main([argv[0], "--project", str(project), *argv[1:]])
        except SystemExit as ended:  # argparse ends so
            found = ended.code
        out, said = capsys.readouterr()
        talk = ("note: ", "base: 1 run, 1 to submit")
        said = "\n".join(line for line in said.splitlines() if not line.startswith(talk))
        assert found == status
        assert out == ""
        assert "Traceback" not in said
        assert said.startswith("error: ")
        assert said.count("\nfix: ") == 1, said
        assert said.split("\nfix: ")[1].strip()
        assert (tree(project.parent), tree(state)) == before
        follow(project, argv, said)
        capsys.readouterr()
        return Refusal(said=said)

    return run


LOOKS = ("plan", "status", "show", "logs", "compare", "diff", "data")
_FOLLOWED: set[tuple[str, ...]] = set()
"""What was suggested before, and for which kind of command: following it again would only take time."""


def follow(project: Path, argv: tuple[str, ...], said: str) -> None:
    """Do what an error suggests, word by word: the command then succeeds, or finds another fault of this input."""
    verb, *words = argv
    if verb not in LOOKS or "--project" in words or (verb, *suggestions(said)) in _FOLLOWED:
        return
    _FOLLOWED.add((verb, *suggestions(said)))
    for changed, named in followed(words, said):
        check_followed(project, [verb, *changed], said, named)
    bad = project / "conf" / "experiment" / "bad.yaml"
    for meant in suggestions(said)[-said.count("did you mean") :] if "(did you mean" in said and bad.is_file() else ():
        written = bad.read_text()
        if corrected := corrected_in(written.splitlines(), meant):
            bad.write_text("\n".join(corrected) + "\n")
            check_followed(project, list(argv), said, meant)
            bad.write_text(written)


def check_followed(project: Path, argv: list[str], said: str, named: str) -> None:
    """Run a changed command: it succeeds, or names another fault than before, which is not in what was suggested."""
    talk = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(talk):
        try:
            status = main([argv[0], "--project", str(project), *argv[1:]])
        except SystemExit as ended:
            status = ended.code
    error = talk.getvalue().partition("error: ")[2]
    again = named in error.partition(": ")[0] or error.splitlines()[:1] == said.partition("error: ")[2].splitlines()[:1]
    assert status == 0 or not again, f"{said}\n--- followed by: {argv}\n{error}"


def experiment(text: str) -> Files:
    return {"conf/experiment/bad.yaml": text}


def case(name: str, *says: str, files: Files | None = None, argv: tuple[str, ...] = ("experiment=bad",)) -> Any:
    return pytest.param(files or {}, argv, says, id=name)


def yaml(name: str, text: str, *says: str) -> Any:
    return case(name, *says, files=experiment(f"{GLOBAL}{text}"))


def words(name: str, *argv_and_says: Any) -> Any:
    *argv, says = argv_and_says
    return case(name, *says, argv=("experiment=base", *argv))


# --- YAML files -------------------------------------------------------------------------------------------

YAML = [
    yaml("syntax error", "name: [a\ntask: fit\n", "bad.yaml", "line"),
    yaml("tab", "name: a\n\ttask: fit\n", "bad.yaml", "line 3"),
    yaml("duplicate key", f"{DEFAULTS}name: a\nseed: 1\nseed: 2\n", "bad.yaml", "seed"),
    yaml("value with a colon", f"{DEFAULTS}name: a: b\n", "bad.yaml", "line 4"),
    yaml("top level is a list", "- name: a\n", "bad.yaml"),
    yaml("top level is text", "just text\n", "just text is unknown"),
    yaml("unknown anchor", f"{DEFAULTS}name: a\nvars: {{x: *nowhere}}\n", "bad.yaml", "nowhere"),
    yaml("merge of what is no mapping", f"{DEFAULTS}name: a\nvars: {{x: &l [1], <<: *l}}\n", "bad.yaml"),
    yaml("a Python object", f"{DEFAULTS}name: !!python/object/apply:os.getcwd []\n", "bad.yaml"),
    case("not UTF-8", "bad.yaml", files={"conf/experiment/bad.yaml": b"name: caf\xe9\n"}),
    case("NUL bytes", "bad.yaml", files={"conf/experiment/bad.yaml": b"name: a\0b\n"}),
    case("a folder named like a file", "bad", files={"conf/experiment/bad.yaml/inside": ""}),
    case("a dangling link", "bad", files={"conf/experiment/bad.yaml": lambda p: p.symlink_to("nowhere.yaml")}),
    yaml("defaults is no list", "defaults: {model: net}\nname: a\n", "'experiment/bad'", "defaults must be a list"),
    yaml("unknown group", "defaults:\n  - override /modle: net\nname: a\n", "modle"),
    yaml(
        "unknown option in defaults",
        "defaults:\n  - override /model: nett\nname: a\n",
        "model/nett",
        "did you mean 'net'",
    ),
    yaml("includes itself", "defaults:\n  - /experiment/bad\nname: a\n", "leads back", "conf"),
    yaml("missing value", f"{DEFAULTS}task: fit\n", "name", "???", "name=my-experiment"),
    yaml("missing model", "name: a\n", "model._target_", "model=mlp"),
    yaml(
        "unknown top-level key",
        f"{DEFAULTS}name: a\nrecources: {{nodes: 1}}\n",
        "recources",
        "did you mean 'resources'",
        "rename it to resources",
    ),
    yaml("a key that is not text", f"{DEFAULTS}name: a\n1: 2\n", "1 is unknown"),
    yaml("unknown resource", f"{DEFAULTS}name: a\nresources: {{gpus: 1}}\n", "resources.gpus", "gpus_per_node"),
    yaml("sweep kind", f"{DEFAULTS}name: a\nsweep: {{gird: {{seed: [1, 2]}}}}\n", "sweep.gird", "did you mean 'grid'"),
    yaml("sweep is a list", f"{DEFAULTS}name: a\nsweep: [1, 2]\n", "sweep", "mapping"),
    yaml("model is a list", "name: a\nmodel: [1]\n", "model"),
    yaml("resources is a number", f"{DEFAULTS}name: a\nresources: 4\n", "resources", "4"),
    yaml(
        "a sweep for Hydra's sweeper",
        f"{DEFAULTS}name: a\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{model.lr: '0.1,0.2'}}}}}}\n",
        "bad.yaml: hydra.sweeper is set",
        'fix: sweep: {grid: {model.lr: "0.1,0.2"}}',
    ),
    yaml(
        "a launcher of Hydra's",
        "defaults: [{override /model: net}, {override /hydra/launcher: submitit_slurm}]\nname: a\n",
        "bad.yaml: hydra/launcher is set",
        "`cluster` and `resources`",
    ),
    yaml(
        "Hydra's section, by a package",
        "defaults: [{override /model: net}, {/vars@hydra.sweeper: deep}]\nname: a\n",
        "vars@hydra.sweeper is set",
    ),
    case(
        "Hydra's section, by a header",
        "deep.yaml: hydra.run.dir is set",
        files={"conf/model/deep.yaml": "# @package hydra.run\ndir: out\n"},
        argv=("experiment=base", "model=deep"),
    ),
    case(
        "Hydra's section in config.yaml",
        "config.yaml: hydra.job is set",
        "name=my-experiment",
        files={"conf/config.yaml": "hydra: {job: {chdir: true}}\n"},
        argv=("experiment=base",),
    ),
    yaml("an open interpolation", f'{DEFAULTS}name: a\nvars:\n  x: ["${{b"]\n', "bad.yaml, line 6: vars.x[0] is '${b'"),
    yaml(
        "a template's group in defaults",
        "defaults: [{override /model: net}, {override /callbacks: default}]\nname: a\n",
        "bad.yaml: callbacks is not a key here",
        "trainer: {callbacks:",
    ),
    yaml("a template's top-level key", f"{DEFAULTS}name: a\nlogger: {{csv: 1}}\n", "logger is not a key", "tracking:"),
    words("a template's group on the command line", "debug=fdr", ["debug is not a key", "orch run --on inline"]),
    words("Hydra's launcher on the command line", "hydra/launcher=submitit", ["hydra/launcher=submitit", "cluster="]),
    case(
        "a folder configs/ in place of conf/",
        "there is no conf/experiment/mine.yaml",
        "fix: ln -s configs conf",
        files={"conf": lambda path: shutil.move(path, path.with_name("configs"))},
        argv=("experiment=mine",),
    ),
    case(
        "config.yaml of the project is broken",
        "config.yaml, line",
        files={"conf/config.yaml": "a: [\n"},
        argv=("experiment=base",),
    ),
    case(
        "a group's file is broken", "net.yaml, line", files={"conf/model/net.yaml": "a: [\n"}, argv=("experiment=base",)
    ),
]

# --- values of built-in keys ------------------------------------------------------------------------------

VALUES = [
    words(f"{override}", override, [key, *more])
    for override, key, *more in [
        ("resources.nodes=0", "resources.nodes is 0", "at least 1"),
        ("resources.nodes=1.5", "resources.nodes is 1.5", "whole number"),
        ("resources.nodes=null", "resources.nodes is None"),
        ("resources.gpus_per_node=-1", "resources.gpus_per_node is -1", "at least 0"),
        ("resources.gpus_per_node=two", "resources.gpus_per_node is 'two'"),
        ("resources.cpus_per_node=true", "resources.cpus_per_node is True"),
        ("resources.cpus_per_node=[4]", "resources.cpus_per_node is [4]"),
        ("resources.mem_gb_per_node=0", "resources.mem_gb_per_node is 0", "positive"),
        ("resources.mem_gb_per_node=32GB", "resources.mem_gb_per_node is '32GB'"),
        ("resources.hours=-1", "resources.hours is -1"),
        ("resources.hours=inf", "resources.hours is inf"),
        ("resources.hours=nan", "resources.hours is nan"),
        ("seed=-1", "seed is -1", "at least 0"),
        ("seed=4294967296", "seed is 4294967296", "2**32"),
        ("seed=1.5", "seed is 1.5"),
        ("seed=true", "seed is True"),
        ("seed=one", "seed is 'one'"),
        ("seed=null", "seed is None"),
        ("task=fit_tset", "task is 'fit_tset'", "did you mean 'fit_test'"),
        ("task=3", "task is 3"),
        ("env=strict", "env is 'strict'", "refuse, warn"),
        ("objective=acc", "objective is 'acc'", "mapping"),
        ("objective={metric: 3, mode: max}", "objective.metric is 3"),
        ("objective={metric: acc}", "objective.mode is None"),
        ("objective={metric: acc, mode: best}", "objective.mode is 'best'", "min or max"),
        ("objective={metric: acc, mode: max, mood: 1}", "objective.mood is unknown"),
        ("snapshot.include=assets", "snapshot.include is 'assets'", "list of globs"),
        ("snapshot.include=[3]", "snapshot.include is [3]"),
        ("snapshot.include=[/etc/*]", "'/etc/*'", "inside the project"),
        ("snapshot.include=[../*]", "'../*'", "inside the project"),
        ("snapshot.include=[no/such/*]", "'no/such/*'", "names no file"),
        ("snapshot.max_file_mb=0", "snapshot.max_file_mb is 0"),
        ("snapshot.max_total_mb=lots", "snapshot.max_total_mb is 'lots'"),
        ("cluster.kind=slrum", "cluster.kind is 'slrum'"),
        ("cluster.scratch=3", "cluster.scratch is 3"),
        ("cluster.grace_seconds=-5", "cluster.grace_seconds is -5"),
        ("cluster.grace_seconds=soon", "cluster.grace_seconds is 'soon'"),
        ("+cluster.cpus=2", "cluster.cpus is unknown"),
        ("cluster=5", "cluster=5", "inline"),
        ("tracking.kind=wandb", "tracking.kind is 'wandb'", "embedded"),
        ("+tracking.uri=http://x", "tracking.uri is unknown"),
        ("+trainer.devices=4", "trainer.devices is 4", "resources.gpus_per_node"),
        ("+trainer.strategy=ddp", "trainer.strategy is 'ddp'", "resources"),
        ("+trainer.logger=false", "trainer.logger is False", "tracking"),
        ("+trainer.logger=[1]", "trainer.logger", "mapping"),
        ("+trainer.logger.csv=3", "trainer.logger.csv is 3"),
        ("+trainer.logger.csv={_target_: pytorch_lightning.loggers.CSVLogger, nam: a}", "trainer.logger.csv", "nam"),
        ("+trainer.logger.m={_target_: pytorch_lightning.loggers.MLFlowLogger}", "trainer.logger.m", "tracking_uri"),
        ("+trainer.default_root_dir=out", "trainer.default_root_dir is 'out'"),
        ("+trainer.enable_progress_bar=3", "trainer.enable_progress_bar is 3", "true or false"),
        ("trainer.callbacks=[1]", "override 'trainer.callbacks=[1]'", "mapping"),
        ("+trainer.callbacks.stop=3", "trainer.callbacks.stop is 3"),
        ("+trainer.callbacks.stop={patience: 3}", "trainer.callbacks.stop", "_target_"),
        ("trainer._target_=null", "trainer._target_ is None"),
        ("trainer=null", "trainer"),
        ("+model.mode=nan", "NaN"),
        ("model.lr=inf", "infinity"),
    ]
]
VALUES += [
    words("workstation cpus", "cluster=workstation", "cluster.cpus=0", ["cluster.cpus is 0", "at least 1"]),
    words("no GPU", "cluster=workstation", "cluster.devices=[]", ["cluster.devices is []", "list of GPUs"]),
    words("a GPU twice", "cluster=workstation", "cluster.devices=[0,0]", ["cluster.devices is [0, 0]", "each once"]),
    words("half a GPU", "cluster=workstation", "cluster.runs_per_gpu=0.5", ["cluster.runs_per_gpu is 0.5"]),
    words("priority as text", "cluster=workstation", "cluster.priority=high", ["cluster.priority is 'high'"]),
    words("workstation cpus as text", "cluster=workstation", "cluster.cpus=many", ["cluster.cpus is 'many'"]),
]

# --- targets ----------------------------------------------------------------------------------------------

TARGETS = [
    words("missing package", "model._target_=mien.nets.Net", ["mien.nets.Net", "no module 'mien'"]),
    words("missing module", "model._target_=mine.net.Net", ["mine.net.Net", "did you mean 'nets'"]),
    words("missing attribute", "model._target_=mine.nets.Nat", ["mine.nets.Nat", "did you mean 'Net'"]),
    words("not callable", "model._target_=mine.nets.SIZE", ["mine.nets.SIZE", "cannot be called"]),
    words("not a dotted name", "model._target_='mine nets'", ["model._target_ is 'mine nets'", "dotted name"]),
    words("a number as target", "model._target_=3", ["model._target_ is 3"]),
    words("target null", "model._target_=null", ["model._target_ is None"]),
    words("data without target", "+data.batch_size=3", ["data.batch_size", "data._target_"]),
    words("unknown argument", "+model.widht=3", ["model.widht=3", "did you mean 'width'"]),
    words("missing argument", "~model.width", ["model: mine.nets.Net needs width"]),
    words(
        "unknown argument of a callback",
        "+trainer.callbacks.stop={_target_: mine.callbacks.Stop, patiense: 3}",
        ["trainer.callbacks.stop.patiense", "did you mean 'patience'"],
    ),
    words(
        "missing argument of a callback",
        "+trainer.callbacks.stop={_target_: mine.callbacks.Stop}",
        ["trainer.callbacks.stop", "needs patience"],
    ),
    words("a model that is called later", "+model._partial_=true", ["model._partial_ is True", "~model._partial_"]),
    words(
        "a callback that is called later",
        "+trainer.callbacks.stop={_target_: mine.callbacks.Stop, patience: 3, _partial_: true}",
        ["trainer.callbacks.stop._partial_ is True"],
    ),
    words(
        "a torch module as model",
        "model={_target_: torch.nn.ReLU}",
        "~model.width",
        "~model.lr",
        ["torch.nn.ReLU is not a LightningModule"],
    ),
    case(
        "a torch module of one's own as model",
        "mine.bare.Net is not a LightningModule",
        files={
            "mine/bare.py": "from abc import ABC\nfrom torch import nn\n"
            "class Base(nn.Module, ABC): ...\n"
            "class Net(Base):\n    def __init__(self, width: int, lr: float): ...\n"
        },
        argv=("experiment=base", "model._target_=mine.bare.Net"),
    ),
    words(
        "two progress bars",
        "trainer.callbacks={rich: {_target_: pytorch_lightning.callbacks.RichProgressBar},"
        " tqdm: {_target_: pytorch_lightning.callbacks.TQDMProgressBar}}",
        ["trainer.callbacks.rich and trainer.callbacks.tqdm", "one progress bar", "trainer.callbacks.tqdm=null"],
    ),
    words("text for an int", "model.width=abc", ["model.width is 'abc'", "mine.nets.Net takes an int"]),
    words("text for a float", "model.lr='1e-3'", ["model.lr is '1e-3'", "takes a float"]),
    words("float for an int", "model.width=8.5", ["model.width is 8.5", "takes an int"]),
    words("bool for an int", "model.width=true", ["model.width is True", "takes an int"]),
    words("number for a bool", "+model.deep=1", ["model.deep is 1", "true or false"]),
    words("number for text", "+model.name=3", ["model.name is 3", "takes text"]),
    words("list for a float", "model.lr='[0.1, 0.2]'", ["model.lr is"]),
    words("one wrong value in a sweep", "model.lr=0.1,0.2,fast", ["model.lr is 'fast'", "takes a float"]),
    words(
        "value of a nested node",
        "+model.mode={_target_: mine.callbacks.Stop, patience: long}",
        ["model.mode.patience is 'long'"],
    ),
    words("text for the trainer", "trainer.max_epochs=ten", ["trainer.max_epochs is 'ten'"]),
    case(
        "a module with a syntax error",
        "mine.broken.Net",
        "broken.py",
        files={"mine/broken.py": "class Net(:\n"},
        argv=("experiment=base", "model._target_=mine.broken.Net"),
    ),
]

# --- interpolations ---------------------------------------------------------------------------------------

INTERPOLATIONS = [
    words("vars as a value", "vars=3", ["vars is 3", "write vars: {key: value}"]),
    words("missing key", "model.lr=${vars.nowhere}", ["model.lr", "vars.nowhere"]),
    words("cycle", "+vars.a=${vars.b}", "+vars.b=${vars.a}", "model.lr=${vars.a}", ["cannot be resolved"]),
    words("itself", "model.lr=${model.lr}", ["model.lr", "cannot be resolved"]),
    words("unclosed", "model.lr='${vars.x'", ["${vars.x"]),
    words("unknown resolver", "model.lr=${nowhere:1}", ["model.lr", "nowhere"]),
    words("time", "+model.name=${now:%H}", ["model.name", "${now:...}", "a different id"]),
    words("environment", "+model.name=${oc.env:HOME}", ["model.name", "${oc.env:...}"]),
    words("hydra", "+model.name=${hydra:runtime.cwd}", ["model.name", "${hydra:...}"]),
    words(
        "time through another key",
        "+vars.t=${now:%H}",
        "+vars.u=${vars.t}",
        "+model.name=x-${vars.u}",
        ["model.name", "${now:...}"],
    ),
    words("time at one point of a sweep", "+vars.t=${now:%H}", "model.mode=1,${vars.t}", ["model.mode"]),
    words("interpolation to the wrong type", "seed=${name}", ["seed is 'base'"]),
]

# --- sweeps -----------------------------------------------------------------------------------------------


def sweep(name: str, text: str, *says: str) -> Any:
    return yaml(name, f"{DEFAULTS}name: a\nsweep: {text}\n", *says)


SWEEPS = [
    sweep("empty axis", "{grid: {seed: []}}", "seed has no values", "sweep"),
    sweep("an axis that is no list", "{grid: {seed: 3}}", "seed is 3", "list of values"),
    sweep("grid is a list", "{grid: [1]}", "sweep.grid"),
    sweep("unequal zip", "{zip: {seed: [1, 2], model.lr: [0.1]}}", "seed has 2, model.lr has 1"),
    sweep("swept twice", "{grid: {seed: [1, 2]}, zip: {seed: [3, 4]}}", "seed is swept twice"),
    sweep("everything excluded", "{grid: {seed: [1, 2]}, exclude: [{seed: 1}, {seed: 2}]}", "all 2 are excluded"),
    sweep("duplicate points", "{grid: {seed: [1, 1]}}", "seed=1", "the same run"),
    sweep("points that come to the same", "{list: [{model.width: 8}, {model.lr: 0.1}]}", "the same run"),
    sweep("a swept name", "{grid: {name: [a, b]}}", "name is swept", "a launch has one"),
    sweep("a swept cluster", "{grid: {cluster: [inline, workstation]}}", "cluster is swept"),
    sweep("a swept key below one per launch", "{grid: {tracking.kind: [none, embedded]}}", "tracking.kind is swept"),
    sweep("an option that does not exist", "{grid: {model: [net, dep]}}", "model='dep'", "did you mean 'deep'"),
    sweep("an unknown swept key", "{grid: {model.widht: [1, 2]}}", "model.widht", "did you mean 'width'"),
    sweep("an axis without a name", "{grid: {'': [1, 2]}}", "''"),
    sweep("a range that cannot be expanded", "{grid: {seed: 'range(0,5,0)'}}", "range(0,5,0)"),
    sweep("an entry of list that is not a point", "{list: [3]}", "sweep.list", "3"),
    sweep("a rule without set", "{resources: [{when: {seed: 1}}]}", "sweep.resources", "`when` and `set`"),
    sweep(
        "a rule that sets nonsense",
        "{grid: {seed: [1]}, resources: [{when: {seed: 1}, set: {gpus: 2}}]}",
        "resources.gpus",
        "seed=1",
    ),
    sweep("one bad seed", "{grid: {seed: [1, two]}}", "seed is 'two'"),
    words("a sweep on the command line that cannot be expanded", "seed=range(0,5,0)", ["seed=range(0,5,0)"]),
    words("a swept name on the command line", "name=a,b", ["name is swept"]),
    case(
        "a swept key that only some options have",
        "model=net model.depth=2: override 'model.depth=2': model.depth is unknown",
        "fix: sweep it with these: 'sweep={list: [{model:net}, {model:tall,model.depth:2}, "
        "{model:tall,model.depth:3}]}'",
        files={
            "conf/model/tall.yaml": "_target_: mine.tall.Net\nwidth: 8\ndepth: 1\n",
            "mine/tall.py": "class Net:\n    def __init__(self, width: int, depth: int): ...\n",
        },
        argv=("experiment=base", "model=net,tall", "model.depth=2,3"),
    ),
    words("an option on the command line that does not exist", "model=net,dep", ["dep", "did you mean 'deep'"]),
    words("a swept experiment", "experiment=base,base", ["experiment is swept"]),
]

# --- overrides --------------------------------------------------------------------------------------------

OVERRIDES = [
    words("no equals sign", "model.lr", ["'model.lr'", "no '='"]),
    words("unbalanced quote", "model.lr='0.1", ["model.lr='0.1", "cannot be read"]),
    words("unbalanced brace", "objective={metric: a", ["objective={metric: a", "cannot be read"]),
    words("unbalanced bracket", "model.lr=[1", ["model.lr=[1", "cannot be read"]),
    words("empty key", "=3", ["'=3'", "sets no key"]),
    words("empty word", "", ["''", "no '='"]),
    words("key with a space", "model lr=3", ["'model lr=3'"]),
    words("unknown key", "model.widht=3", ["model.widht", "did you mean 'width'"]),
    words("unknown key below a value", "model.width.x=3", ["model.width.x"]),
    words("unknown top-level key", "modell.width=3", ["modell.width"]),
    words("deletion of a missing key", "~model.nowhere", ["~model.nowhere"]),
    words("deletion of another value", "~model.width=9", ["~model.width=9"]),
    words("deletion of a needed section", "~resources", ["resources"]),
    words("deletion of the seed", "~seed", ["seed"]),
    words("an unknown option", "model=nett", ["model=nett", "did you mean 'net'", "deep, mlp, net"]),
    words("an unknown group", "modle=net", ["modle", "did you mean 'model'"]),
    words("hydra's own options", "hydra.run.dir=/tmp/x", ["hydra"]),
    case("unknown experiment", "experiment=bsae", "did you mean 'base'", argv=("experiment=bsae",)),
    case("no experiment", "name has no value", argv=()),
]

# --- names ------------------------------------------------------------------------------------------------

NAMES = [
    yaml(
        f"name {name!r}",
        f"{DEFAULTS}name: {json.dumps(name, ensure_ascii=False)}\n",
        f"name is {name!r}",
        "bad.yaml, line 4",
    )
    for name in ("a b", "it's", 'say "x"', "a\nb", "-a", ".a", "a/b", "..", "a" * 101, "größe", "名前", "", " a", "a*")
]
NAMES += [words("a number as name", "name=3", ["name is 3"]), words("no name", "name=null", ["name is None"])]


@pytest.mark.parametrize(
    ("files", "argv", "says"), [*YAML, *VALUES, *TARGETS, *INTERPOLATIONS, *SWEEPS, *OVERRIDES, *NAMES]
)
def test_a_wrong_configuration_is_refused(project, refused, files, argv, says):
    write(project, files)
    refused("plan", *argv).names(*says)


IGNORED = {
    ".gitignore": "lib/\n/own.py\nruns/\n",
    "lib/nets.py": "class Net:\n    def __init__(self, width: int, lr: float): ...\n",
    "lib/deep/layers.py": "def wrap(f): return f\n@wrap\ndef net(width, lr): ...\n",
    "own.py": "class Base:\n    def __init__(self, width: int, lr: float): ...\n",
    "mine/derived.py": "from own import Base\nclass Net(Base): ...\n",
}


@pytest.mark.parametrize(
    ("target", "file", "include"),
    [
        ("lib.nets.Net", "lib/nets.py", "lib"),
        ("lib.deep.layers.net", "lib/deep/layers.py", "lib"),  # asked of Python
        ("mine.derived.Net", "own.py", "own.py"),
    ],
)
def test_a_target_that_git_ignores_is_refused_until_it_is_included(project, refused, capsys, target, file, include):
    write(project, IGNORED)
    repository(project)
    words = ("experiment=base", f"model._target_={target}")
    told = refused("plan", *words)
    told.names(f"{project / file} is the source of a target, and not frozen", f"fix: snapshot.include=[{include}]")
    fix = told.said.split("fix: ")[1]
    assert main(["plan", "--project", str(project), *words, fix]) == 0
    assert main(["plan", "--project", str(project), "experiment=base"]) == 0
    capsys.readouterr()


def test_a_target_on_pythonpath_only_is_refused(project, refused, monkeypatch):
    elsewhere = project.parent / "else where"
    write(elsewhere, {"nets.py": "class Net:\n    def __init__(self, width: int, lr: float): ...\n"})
    monkeypatch.setenv("PYTHONPATH", f"{elsewhere}{os.pathsep}")
    monkeypatch.syspath_prepend(str(elsewhere))
    told = refused("plan", "experiment=base", "model._target_=nets.Net")
    told.names("target 'nets.Net' is on PYTHONPATH only", "move nets into the project")


@pytest.mark.parametrize("verb", ["launch", "run", "retry"])
@pytest.mark.parametrize("text", ["model.lr=1,2", "+vars.x=1", "experiment=base", "model@old=a,b", "~seed=3"])
def test_an_override_is_no_message(refused, verb, text):
    refused(verb, "experiment=base", "-m", text).names(f"the message of -m is '{text}'", f"leave -m out: '{text}'")


@pytest.mark.parametrize("text", ["lr=0.1 was best", "half the width", "", "-", "2=3?"])
def test_a_sentence_is_a_message(text):
    assert parse(["launch", "experiment=base", f"--message={text}"]).message == text


# --- data versions ----------------------------------------------------------------------------------------


def data(name: str, version: str, *says: str, files: Files | None = None) -> Any:
    return case(name, *says, argv=("experiment=base", f"data.version={version}"), files=files)


def repository(folder: Path) -> None:
    """Make a git repository with one commit, its only revision `main`."""
    write(folder, {"README": "hello\n"})
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)


DATA = [
    data("a number", "3", "data.version is 3", "mapping"),
    data("a list", "[1]", "data.version is [1]"),
    data("no source", "{path: data}", "source: None", "dvc, directory"),
    data("unknown source", "{source: dirctory, path: data}", "dirctory", "did you mean 'directory'"),
    data("unknown key", "{source: directory, pth: data}", "'pth'", "did you mean 'path'"),
    data("no path", "{source: directory}", "no 'path'"),
    data("path is a number", "{source: directory, path: 3}", "path: 3", "text"),
    data("path is empty", "{source: directory, path: ''}", "path: ''"),
    data("missing folder", "{source: directory, path: dta}", "dta", "did you mean 'data'", files={"data/x": "1"}),
    data("nonsense", "{source: directory, path: /no/such/place}", "/no/such/place"),
    data("a file", "{source: directory, path: data/x}", "data/x is a file", files={"data/x": "1"}),
    data("empty folder", "{source: directory, path: data}", "holds no files", files={"data": Path.mkdir}),
    data(
        "a link that leaves",
        "{source: directory, path: data}",
        "leads out",
        files={"data/x": "1", "data/out": lambda path: path.symlink_to("/etc/hosts")},
    ),
    data(
        "a dangling link",
        "{source: directory, path: data}",
        "data/out",
        files={"data/x": "1", "data/out": lambda path: path.symlink_to("nowhere")},
    ),
    data("no git repository", "{source: dvc, path: data, rev: HEAD}", "git"),
    data("missing repository", "{source: dvc, repo: /no/such/repo, path: data, rev: HEAD}", "/no/such/repo"),
    data("unknown revision", "{source: dvc, repo: repo, path: data, rev: mian}", "mian", files={"repo": repository}),
    data(
        "no DVC repository",
        "{source: dvc, repo: repo, path: digits, rev: main}",
        "not a DVC repository",
        files={"repo": repository},
    ),
    data(
        "a path that leaves the repository",
        "{source: dvc, repo: repo, path: ../x, rev: main}",
        "../x",
        files={"repo": repository},
    ),
]


# --- what may not be frozen -------------------------------------------------------------------------------

CODE = [
    case("credentials", "'.env'", "credentials", files={".env": "TOKEN=1"}, argv=("experiment=base",)),
    case("a key", "'mine/id_rsa'", files={"mine/id_rsa": "x"}, argv=("experiment=base",)),
    case(
        "credentials asked for",
        "credentials.json",
        files={"mine/credentials.json": "{}"},
        argv=("experiment=base", "snapshot.include=[mine/*.json]"),
    ),
    case(
        "a large file",
        "mine/big.json",
        "snapshot.max_file_mb",
        files={"mine/big.json": "1" * 20_000},
        argv=("experiment=base", "snapshot.max_file_mb=0.01"),
    ),
    case(
        "large in all",
        "snapshot.max_total_mb",
        files={"mine/big.json": "1" * 20_000},
        argv=("experiment=base", "snapshot.max_total_mb=0.01"),
    ),
    case(
        "a link that leaves the project",
        "mine/out.py",
        files={"mine/out.py": lambda path: path.symlink_to("/etc/hosts")},
        argv=("experiment=base",),
    ),
    case(
        "a link above the project",
        "mine/up.py",
        files={"mine/up.py": lambda path: path.symlink_to("../../outside.py")},
        argv=("experiment=base",),
    ),
]

# --- resources that can never fit -------------------------------------------------------------------------

RESOURCES = [
    words(
        "more CPUs than the machine has",
        "cluster=workstation",
        "resources.cpus_per_node=99999",
        ["resources.cpus_per_node is 99999", "CPU slots"],
    ),
    words(
        "more CPUs than slots",
        "cluster=workstation",
        "cluster.cpus=1",
        "resources.cpus_per_node=2",
        ["resources.cpus_per_node"],
    ),
    words("two nodes inline", "resources.nodes=2", ["resources.nodes is 2", "cluster=inline is one machine"]),
    words(
        "more GPUs than named",
        "cluster.devices=[0,1]",
        "resources.gpus_per_node=3",
        ["resources.gpus_per_node is 3", "the GPUs to give are 0, 1"],
    ),
    words(
        "more memory than there is",
        "cluster=workstation",
        "cluster.mem_gb=8",
        "resources.mem_gb_per_node=9",
        ["resources.mem_gb_per_node is 9", "8.0 GB"],
    ),
    words("at one point", "seed=0,1", "sweep.resources=[{when: {seed: 1}, set: {nodes: 3}}]", ["resources.nodes is 3"]),
]


@pytest.mark.parametrize("verb", ["plan", "launch"])
@pytest.mark.parametrize(("files", "argv", "says"), [*DATA, *CODE, *RESOURCES])
def test_what_cannot_be_run_is_refused(project, refused, verb, files, argv, says):
    write(project, files)
    refused(verb, *argv).names(*says)


# --- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["plan", "launch", "status", "data"])
@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere", "there is no folder"), ("file", "is not a folder"), ("file/below", "there is no folder")],
)
def test_a_project_that_is_no_folder_is_refused(project, refused, verb, name, says):
    write(project, {"file": ""})
    argv = ["resolve"] if verb == "data" else []
    refused(verb, *argv, "--project", str(project / name)).names(says, name)


@pytest.mark.parametrize("runs", ["{project}/file", "{project}/file/below", "/proc/nowhere/runs", "{project}/link"])
def test_a_runs_folder_that_cannot_be_made_is_refused(project, refused, runs):
    write(project, {"file": "", "link": lambda path: path.symlink_to("nowhere/at/all")})
    where = runs.format(project=project)
    refused("launch", "experiment=base", "--runs", where, status=1).names("cannot make", "--runs")


def test_the_project_itself_is_no_runs_folder(project, refused):
    refused("launch", "experiment=base", "--runs", str(project)).names("is the project itself", "runs/")


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777, 0o707])
def test_a_runs_folder_that_others_may_write_is_refused(project, refused, mode):
    runs = project / "runs"
    runs.mkdir()
    runs.chmod(mode)
    refused("launch", "experiment=base", status=1).names("others may write", str(runs), "chmod go-w")


def test_an_experiments_folder_that_others_may_write_is_refused(project, refused):
    launched(project)
    folder = project / "runs" / "base"
    folder.chmod(0o770)
    refused("launch", "experiment=base", "seed=7", status=1).names("others may write", str(folder), "chmod -R go-w")


# --- records ----------------------------------------------------------------------------------------------


class Parked:
    """A cluster that takes launches and never starts anything."""

    background = True

    def check(self, shapes, folder, data):
        return ()

    def submit(self, launch):
        pass

    def observe(self, launch, tasks):
        return {}

    def cancel(self, launch, tasks):
        pass


_LAUNCHED: dict[tuple[str, ...], tuple[TemporaryDirectory[str], list[str]]] = {}
"""The `runs/` that launches have left, to be copied: composing the same again takes a second."""


def launched(project: Path, *overrides: str, name: str = "base") -> list[str]:
    """Launch runs that never start, and have the first one end well. Returns the ids."""
    runs = project / "runs"
    key = (name, *overrides, *sorted(os.listdir(runs) if runs.exists() else ()))
    if key not in _LAUNCHED:
        ids = _launch(project, *overrides, name=name)
        _LAUNCHED[key] = TemporaryDirectory(prefix="runs-"), ids
        shutil.copytree(runs, _LAUNCHED[key][0].name, symlinks=True, dirs_exist_ok=True)
        return ids
    kept, ids = _LAUNCHED[key]
    shutil.copytree(kept.name, runs, symlinks=True, dirs_exist_ok=True)
    adopt(runs)
    return ids


def _launch(project: Path, *overrides: str, name: str) -> list[str]:
    found = find_project(project)
    with api.prepare(found, ["experiment=base", f"name={name}", *(overrides or ["seed=0,1"])]) as prepared:
        api.launch(found, prepared, cluster=Parked())
    records = list(api.read(found, name).records.values())
    attempt = found.runs.experiment(name).run(records[0].id).attempt(1)
    claim = Claim(
        launch=1, index=0, code=records[0].code, generation=1, history=1, process=ProcessId.current(), time=1.0
    )
    assert claim_attempt(attempt, claim)
    EventWriter(attempt.events).write("done", metrics={"val/acc": 0.5})
    attempt.log.write_text("it went well\n")
    return [record.id for record in records]


DAMAGE = {
    "empty": b"",
    "NUL": bytes(100),
    "torn": b'{"v": 1, "exper',
    "a list": b"[1]\n",
    "text": b'"text"\n',
    "a number": b"3\n",
    "no UTF-8": b"\xff\xfe\n",
    "another object": b'{"v": 1}\n',
    "a newer format": b'{"v": 99}\n',
    "deep": b"[" * 100_000,
}
LOOKING = [
    ("status", "base"),
    ("show", "base", "seed=0"),
    ("logs", "base"),
    ("compare", "base"),
    ("diff", "base", "seed=0", "seed=1"),
    ("plan", "experiment=base", "seed=0,1"),
    ("launch", "experiment=base", "seed=0,1"),
    ("cancel", "base"),
    ("retry", "base"),
]


def in_launch(project: Path, file: str) -> Path:
    return project / "runs" / "base" / "launches" / "0001" / file


@pytest.mark.parametrize("file", ["launch.json", "plan.jsonl"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_launch_is_named(project, refused, kind, file):
    launched(project)
    in_launch(project, file).write_bytes(DAMAGE[kind])
    refused("status", "base", status=1).names(str(in_launch(project, file)))


@pytest.mark.parametrize("argv", LOOKING, ids=lambda argv: argv[0])
def test_nothing_is_done_where_a_launch_is_damaged(project, refused, argv):
    """Least of all are its runs taken for new ones."""
    launched(project)
    whole = in_launch(project, "plan.jsonl").read_bytes()
    in_launch(project, "plan.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    refused(*argv, status=1).names("plan.jsonl is damaged", "it has 1 lines, and plan.offsets 2")


@pytest.mark.parametrize("file", ["launch.json", "plan.jsonl", "plan.offsets", "base-0.json"])
def test_a_launch_with_a_missing_file_is_named(project, refused, file):
    launched(project)
    in_launch(project, file).unlink()
    refused("show", "base", "seed=0", status=1).names("is damaged", file)


@pytest.mark.parametrize("kind", ["empty", "NUL", "torn", "a list", "no UTF-8", "deep"])
@pytest.mark.parametrize("file", ["plan.offsets", "base-0.json"])
def test_a_run_whose_line_cannot_be_read_is_named(project, refused, kind, file):
    launched(project)
    in_launch(project, file).write_bytes(DAMAGE[kind])
    refused("show", "base", "seed=1", status=1).names("is damaged")


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        *(("status", kind) for kind in DAMAGE if kind != "a newer format"),
        ("compare", "torn"),
        ("logs", "NUL"),
        ("show", "a list"),
        ("show", "deep"),
    ],
)
@pytest.mark.parametrize("file", ["claim.json", "events.jsonl"])
def test_what_a_dying_process_left_is_no_error_and_no_completion(project, capsys, file, verb, kind):
    first, _ = launched(project)
    attempt = project / "runs" / "base" / "runs" / first / "a001"
    before = attempt / "events.jsonl"
    (attempt / file).write_bytes(
        (before.read_bytes() if file == "events.jsonl" and kind == "torn" else b"") + DAMAGE[kind]
    )
    frozen = tree(project.parent)
    assert main([verb, "--project", str(project), "base", first]) == 0
    out, said = capsys.readouterr()
    assert "Traceback" not in said
    assert tree(project.parent) == frozen
    if verb == "status":
        done = file == "claim.json" or kind == "torn"
        assert (" done " in out) == done


@pytest.mark.parametrize("argv", LOOKING, ids=lambda argv: argv[0])
def test_what_a_newer_version_has_recorded_is_not_guessed_at(project, refused, argv):
    first, _ = launched(project)
    events = project / "runs" / "base" / "runs" / first / "a001" / "events.jsonl"
    events.write_bytes(DAMAGE["a newer format"])
    refused(*argv, status=1).names(str(events), "has events of version 99", "the version of orch that ran the job")


def test_runs_whose_folders_have_vanished_are_not_done(project, capsys):
    launched(project)
    shutil.rmtree(project / "runs" / "base" / "runs")
    assert main(["status", "--project", str(project), "base"]) == 0
    assert " done" not in capsys.readouterr().out


def test_a_file_in_place_of_a_folder_of_records_is_named(project, refused):
    first, _ = launched(project)
    events = project / "runs" / "base" / "runs" / first / "a001" / "events.jsonl"
    events.unlink()
    events.mkdir()
    refused("status", "base", status=1).names(str(events))


# --- selections, verbs and options ------------------------------------------------------------------------

CHOICES = [
    (("status", "bsae"), ["'bsae'", "did you mean 'base'"]),
    (("status", "base", "faild"), ["'faild'", "did you mean 'failed'"]),
    (("status", "base", "state=faild"), ["'faild'", "did you mean 'failed'", "states are"]),
    (("status", "base", "launch=x"), ["launch='x'", "number"]),
    (("status", "base", "seed=99"), ["seed=99", "no run of base"]),
    (("status", "base", "ffffffffffff"), ["ffffffffffff"]),
    (("status", "nothing=here"), ["nothing=here"]),
    (("status", "base", "other"), ["base and other", "name one"]),
    (("show", "base"), ["17 runs chosen", "id prefix"]),
    (("show", "base", "state=done", "seed=1"), ["no run"]),
    (("logs", "base", "-f"), ["17 runs chosen"]),
    (("logs", "base", "done", "--attempt", "9"), ["no attempt 9"]),
    (("diff", "base"), ["0 runs given", "two"]),
    (("diff", "base", "seed=1"), ["1 run given"]),
    (("diff", "base", "seed=1", "seed=99"), ["seed=99"]),
    (("compare", "base", "--metric", "val/ac"), ["'val/ac'", "did you mean 'val/acc'"]),
    (("run", "experiment=base", "seed=0,1"), ["base has 2 points", "orch launch"]),
    (("retry", "bsae"), ["'bsae'", "did you mean 'base'"]),
    (("cancel", "bsae"), ["'bsae'", "did you mean 'base'"]),
    (("ui", "--port", "70000"), ["port 70000"]),
    (("ui", "--port", "-3"), ["port -3"]),
]


@pytest.fixture
def two_experiments(project):
    launched(project, "seed=1", name="other")
    return launched(project, "seed=range(0,17)")


@pytest.mark.parametrize(
    ("argv", "says"), CHOICES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_wrong_choice_of_runs_is_refused(project, refused, two_experiments, argv, says):
    refused(*argv).names(*says)


def test_a_prefix_that_several_runs_share_is_refused(refused, two_experiments):
    firsts = [run_id[0] for run_id in two_experiments]
    shared = next(first for first in firsts if firsts.count(first) > 1)  # 17 runs, 16 digits
    refused("show", "base", shared).names("runs chosen", "one is needed")


@pytest.mark.parametrize("verb", ["show", "logs", "compare", "cancel", "retry", "diff", "ui"])
def test_without_any_experiment_there_is_nothing_to_choose(refused, verb):
    words = ["aa", "bb"] if verb == "diff" else []
    refused(verb, *words).names("no experiments in", "orch launch")


def test_a_port_that_is_taken_is_refused(project, refused):
    launched(project)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused("ui", "--port", str(port)).names(f"port {port}", "--port")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["plan", "--rerum", "never"], ["--rerum", "did you mean '--rerun'"]),
        (["plan", "--rerun", "sometimes"], ["sometimes", "never"]),
        (["launch", "--wiat"], ["--wiat", "did you mean '--wait'"]),
        (["logs", "--attempt", "two"], ["--attempt", "two"]),
        (["ui", "--port", "http"], ["--port", "http"]),
        (["data", "stgae"], ["stgae", "resolve"]),
        (["status", "-x"], ["-x"]),
        (["lanuch"], ["'lanuch'", "did you mean 'launch'"]),
    ],
)
def test_an_unknown_verb_or_option_names_the_nearest(refused, argv, says):
    refused(*argv).names(*says)


@pytest.mark.parametrize("argv", [[], ["--bogus", "status"], ["--bogus"]])
def test_a_command_without_a_verb_or_with_options_before_it_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, said = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said.startswith("error: ")
    assert "\nfix: " in said


# --- as a user runs it ------------------------------------------------------------------------------------


def orch(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator", *argv],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["plan", "experiment=base", "seed=two"], 2, "seed is 'two'"),
        (["launch", "experiment=base", "model.widht=3"], 2, "did you mean 'width'"),
        (["status", "bsae"], 2, "did you mean 'base'"),
        (["status", "base"], 1, "launch.json is damaged"),
    ],
)
def test_the_program_ends_with_the_status_and_one_message(project, argv, status, says):
    launched(project)
    if status == 1:
        in_launch(project, "launch.json").write_bytes(b"")
    before = tree(project.parent)
    done = orch(*argv, cwd=project)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert "\nfix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(project.parent) == before


@pytest.fixture
def odd(project):
    return project.rename(project.with_name("a b'c\"d\n${e}:größe"))


def test_a_project_in_a_folder_with_an_odd_name_works(odd, capsys):
    where = ["--project", str(odd)]
    assert main(["plan", *where, "experiment=base", "seed=0,1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [step["action"] for step in plan["steps"]] == ["submit", "submit"]
    first, second = launched(odd)
    assert main(["status", *where, "base", "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == [first, second]
    assert main(["plan", *where, "experiment=base", "seed=0,1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [step["action"] for step in plan["steps"]] == ["skip", "skip"]
    assert main(["show", *where, "base", first, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["model"]["width"] == 8


def test_an_odd_folder_is_found_from_within_and_holds_its_runs(odd, tmp_path):
    runs = tmp_path / "runs of 'me'\nand \"you\""
    done = orch("plan", "experiment=base", "--runs", str(runs), cwd=odd / "mine")
    assert (done.returncode, "1 run: 1 to submit" in done.stdout) == (0, True)
    assert not runs.exists()


def test_errors_in_an_odd_folder_name_the_file(odd, capsys):
    write(odd, experiment(f"{GLOBAL}{DEFAULTS}name: a\nseed: two\n"))
    assert main(["plan", "--project", str(odd), "experiment=bad"]) == 2
    assert f"seed is 'two' ({odd}/conf/experiment/bad.yaml, line 5)" in capsys.readouterr().err
