"""Secrets: named in YAML, put in place on the node, and in nothing that we write; what looks like one is not shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from git_desk import environ
from processes import ROOT

from orchestrator.config import credentials
from orchestrator.config.secrets import Secrets, forms
from orchestrator.errors import OrchError
from orchestrator.records.attempts import EventWriter, read_events

VALUE = "ünsafe \"key\"\\with/odd$characters&<more>\nand a second line of 'its' own"
NET = """
import json, logging
from pathlib import Path
from urllib.parse import quote
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

class Held:
    def __init__(self, key):
        self.key = key

class Call(pl.Callback):
    def __init__(self, key):
        self.key = key

    def on_train_start(self, trainer, module):
        logging.getLogger("theirs").warning("started with %r", self.key)
        trainer.logger.log_hyperparams({"call": {"key": self.key}})
        trainer.logger.experiment.set_tag("note", f"key {self.key!r}")

class Net(BoringModel):
    def __init__(self, endpoint: str, api_key: str, expects: str, fails: bool = False, nested=None, keeps=False):
        super().__init__()
        self.save_hyperparameters()
        self.save_hyperparameters({"held": Held(api_key), "raw": api_key.encode(), "pair": (1, [{"x": api_key}])})
        if api_key.encode().hex() != expects:
            raise ValueError("another secret than that")
        self.fails = fails
        if keeps:
            self.kept = api_key

    def training_step(self, batch, batch_idx):
        key = self.hparams.api_key
        assert self.hparams.nested["deep"][0]["key"] == key == self.hparams.held.key  # what the code sees stays
        if self.fails:
            seen = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
            assert key.encode() not in seen
            try:
                line = key.splitlines()[1]
                raise ValueError(repr(key), key.encode(), json.dumps([json.dumps(key)]), quote(key), line)
            except ValueError as error:
                raise PermissionError(f"refused: {self.hparams.endpoint}") from error
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(1.0))
"""
EXPERIMENT = """
# @package _global_
name: keyed
model:
  _target_: keyed.Net
  endpoint: "https://me:${secret:THE_KEY}@example.org"
  api_key: ${secret:THE_KEY}
  nested: {deep: [{key: "${secret:THE_KEY}"}]}
  expects: ${vars.hex}
  fails: false
  keeps: false
vars: {hex: "00"}
objective: {metric: val/loss, mode: min}
tracking: {register: keyed net}
trainer:
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  callbacks: {call: {_target_: keyed.Call, key: "${secret:THE_KEY}"}}
sweep: {grid: {model.fails: [false, true]}}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A project of two runs that use a secret from a file: one is done, one fails and has it in its message."""
    base = tmp_path_factory.mktemp("secrets")
    folder, config = base / "project", base / "config"
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "keyed.py").write_text(NET)
    (folder / "conf" / "experiment" / "keyed.yaml").write_text(EXPERIMENT)
    (config / "orchestrator" / "secrets").mkdir(parents=True)
    secret = config / "orchestrator" / "secrets" / "THE_KEY"
    secret.write_text(f"{VALUE}\n")
    secret.chmod(0o600)
    env = {
        **environ(),
        "XDG_CONFIG_HOME": str(config),
        "XDG_STATE_HOME": str(base / "state"),
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(base / "cache"),
    }

    def orch(*words, status=0):
        argv = [sys.executable, "-m", "orchestrator", *words]
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert status is None or done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    said = orch("launch", "experiment=keyed", f"vars.hex='{VALUE.encode().hex()}'", status=1)
    return SimpleNamespace(folder=folder, orch=orch, secret=secret, said=said)


def runs(desk):
    return json.loads(desk.orch("status", "keyed", "--json"))["runs"]


def test_a_run_gets_the_secret_and_the_others_message_is_kept_without_it(desk):
    done, failed = runs(desk)
    assert (done["state"], failed["state"]) == ("done", "failed")
    assert failed["failure"]["message"] == "refused: https://me:***@example.org"
    assert "PermissionError: refused: https://me:***@example.org" in desk.orch("logs", "keyed", "failed")


def holding(*folders):
    """Return the files that hold the secret in any form that it may be written in."""
    searched = {form.encode() for form in forms(VALUE)} | {
        VALUE.encode("utf-16-le"),
        VALUE.replace('"', '\\"').encode(),
    }
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.name != Path(__file__).name]  # the frozen checkout holds this file, too
    return [path for path in files if any(form in path.read_bytes() for form in searched)]


def test_nothing_that_we_write_holds_it(desk):
    runs, base = desk.folder / "runs", desk.folder.parent
    desk.orch("ui", "--once")
    desk.orch("compare", "keyed", "--html", str(base / "page.html"))
    assert holding(runs, base / "state", base / "cache") == []
    assert all(form not in (base / "page.html").read_text() for form in forms(VALUE))
    assert (runs / ".mlflow" / "mlflow.db").stat().st_size > 0
    assert list(runs.rglob("step-*.ckpt"))
    assert list(runs.rglob("model.pth"))


def test_what_a_checkpoint_has_of_the_arguments_is_masked_at_any_depth(desk):
    (path, *_) = (desk.folder / "runs").rglob("state/step-*.ckpt")
    sys.path.insert(0, str(desk.folder))
    kept = torch.load(path, weights_only=False)["hyper_parameters"]
    sys.path.remove(str(desk.folder))
    assert kept["api_key"] == kept["nested"]["deep"][0]["key"] == kept["held"] == "***"
    assert kept["endpoint"] == "https://me:***@example.org"
    assert (kept["raw"], kept["pair"], kept["fails"]) == (b"***", (1, [{"x": "***"}]), False)


def test_a_model_that_keeps_the_secret_in_itself_is_not_registered(desk):
    words = ["experiment=keyed", "name=kept", "sweep=none", f"vars.hex='{VALUE.encode().hex()}'", "model.keeps=true"]
    said = desk.orch("launch", *words) + desk.orch("ui", "kept", "--once", status=None)
    assert "the model contains the value of a secret" in said
    assert [path for path in (desk.folder / "runs" / ".mlflow").rglob("model.pth") if "kept" in str(path)] == []
    assert holding(desk.folder / "runs" / ".mlflow") == []


def test_what_is_shown_names_it_only(desk):
    shown = [desk.orch(*words) for words in (["show", "keyed", "done"], ["diff", *[run["run"] for run in runs(desk)]])]
    shown += [desk.said, desk.orch("plan", "experiment=keyed"), desk.orch("compare", "keyed")]
    assert all(VALUE not in text for text in shown)
    assert "api_key: ${secret:THE_KEY}" in shown[0]


def test_its_value_is_no_part_of_the_identity(desk):
    before = {run["run"] for run in runs(desk)}
    desk.secret.write_text("another")
    plan = json.loads(desk.orch("plan", "experiment=keyed", f"vars.hex='{VALUE.encode().hex()}'", "--json"))
    desk.secret.write_text(f"{VALUE}\n")
    assert {step["run"] for step in plan["steps"]} == before


def test_without_the_secret_a_run_fails_before_it_trains_and_says_what_to_do(desk):
    desk.secret.chmod(0o644)
    told = desk.orch("run", "experiment=keyed", "name=open", "sweep=none", status=1)
    desk.secret.chmod(0o600)
    assert "secret THE_KEY is not used: others may read" in told
    told = desk.orch(
        "run", "experiment=keyed", "name=none", "sweep=none", "model.api_key='${secret:NO_SUCH}'", status=1
    )
    assert "there is no secret NO_SUCH here" in told
    assert "fix: on a machine that shares your home: install -m 600" in told


@pytest.mark.parametrize(
    "override",
    [
        "name='x-${secret:THE_KEY}'",
        "tracking=server tracking.uri='http://${secret:THE_KEY}'",
        "+data.version='{source: directory, path: \"${secret:THE_KEY}\"}'",
    ],
)
def test_a_secret_is_refused_where_no_node_puts_it_in_place(desk, override):
    told = desk.orch("plan", "experiment=keyed", *override.split(" ", 1 if "tracking" in override else 0), status=2)
    assert "refers to ${secret:THE_KEY}" in told


def test_a_literal_credential_is_told_of_and_masked(desk):
    told = desk.orch("plan", "experiment=keyed", "model.api_key=hunter2,hunter3", "sweep=none", "--all")
    assert "note: model.api_key looks like a credential, and is written to disk: write ${secret:NAME} instead" in told
    assert "hunter" not in told
    assert "model.api_key=***" in told


def test_the_environment_comes_before_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ONE", "from the environment")
    found = Secrets.of({"a": ["${secret:ONE}", {"b": "x ${secret:ONE} y"}], "c": 1})
    assert found.placed({"a": ["<${secret:ONE}>"], "c": 1}) == {"a": ["<from the environment>"], "c": 1}
    assert found.redact("it is from the environment.") == "it is ***."
    with pytest.raises(OrchError, match="there is no secret TWO here"):
        Secrets.of("${secret:TWO}")


def test_a_short_value_is_put_in_place_and_not_hidden_everywhere():
    short = Secrets({"PIN": "1"})
    assert short.placed("${secret:PIN}") == "1"
    assert short.redact("step 1 of 10") == "step 1 of 10"


@pytest.mark.parametrize(
    "key", ["password", "db.PASSWD", "model.api_key", "hf_token", "aws_secret_access_key", "apikey"]
)
def test_what_looks_like_a_credential(key):
    assert credentials.is_credential(key, "abc")
    assert not credentials.is_credential(key, "${secret:X}")
    assert not credentials.is_credential(key, None)
    assert credentials.masked_override(f"+{key}='abc'") == f"+{key}=***"


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("model={_target_: a.B, password: hunter2, x: 1}", "model={_target_: a.B, password: ***, x: 1}"),
        ("a={b: {password: hun ter2}, c: '${secret:X}'}", "a={b: {password: ***}, c: ${secret:X}}"),
        ("m={password: ${secret:X}, n: 3}", "m={password: ${secret:X}, n: 3}"),
        ("sweep.list=[{model.api_key: hunter2},{lr: 1}]", "sweep.list=[{model.api_key: ***}, {lr: 1}]"),
        ("a={max_tokens: 512, pad_token: abc}", "a={max_tokens: 512, pad_token: abc}"),
        ("~model.password=hunter2", "~model.password=***"),
        ("a={b:1,password:hunter2}", "a={b:1,password:***}"),
        ("u=https://ada:hunter2@host/x", "u=https://ada:***@host/x"),
        ("u=https://ghp_0123456789abcdefghij@host/x", "u=https://***@host/x"),
        ("u=ssh://git@host/x", "u=ssh://git@host/x"),
        ("u=https://ada:${secret:K}@host", "u=https://ada:${secret:K}@host"),
        ("u=https://host/x?token=hunter2&b=1", "u=https://host/x?token=***&b=1"),
        (
            "data.version={source: dvc, repo: 'https://a:hunter2@h/x'}",
            "data.version={source: dvc, repo: 'https://a:***@h/x'}",
        ),
    ],
)
def test_an_override_is_shown_without_credentials(override, shown):
    found = credentials.masked_override(override)
    assert found.replace("'***'", "***") == shown
    assert "hunter" not in found


def test_what_lies_below_a_credentials_key_is_masked_and_numbers_are_not():
    sweep = {"space": {"model.api_key": {"choices": ["hunter2"], "_target_": "x.Y", "n": 3}}}
    assert credentials.masked(sweep) == {"space": {"model.api_key": {"choices": ["***"], "_target_": "x.Y", "n": 3}}}
    assert list(credentials.literal({"data": {"repo": "https://a:hunter2@h"}})) == ["data.repo"]
    script = "export HF_TOKEN=hunter2; A=1\nWANDB_API_KEY='x y' python $TOKEN\n"
    assert credentials.masked_script(script) == "export HF_TOKEN=***; A=1\nWANDB_API_KEY=*** python $TOKEN\n"


def test_redaction_changes_texts_only_and_no_numbers_or_what_it_is_given():
    secrets = Secrets({"PIN": "12345", "WORD": "ab"})
    given = {"12345": 12345, "x": [12345.0, ("12345", b"12345", {"ab"})], "t": torch.ones(2), "none": None}
    found = secrets.redact(given)
    assert found == {"***": 12345, "x": [12345.0, ("***", b"***", {"ab"})], "t": given["t"], "none": None}
    assert given["x"][1][0] == "12345"
    assert not Secrets({"A": "", "B": "\n\n"})


def test_an_event_stays_readable_whatever_the_secret_is(tmp_path):
    events = EventWriter(tmp_path / "events.jsonl", redact=Secrets({"A": "done", "B": "1234", "C": "a001"}).redact)
    events.write("done", best={"checkpoint": "a001/state/x.ckpt", "value": 1234.5}, reason="done 1234")
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event.kind, event.data["best"]["checkpoint"], event.data["best"]["value"]) == (
        "done",
        "a001/state/x.ckpt",
        1234.5,
    )
    assert event.data["reason"] == "*** ***"


@pytest.mark.parametrize("key", ["max_tokens", "pad_token", "tokenizer", "token_dim", "secretary", "keys", "monkey"])
def test_what_does_not(key):
    assert not credentials.is_credential(key, "abc")


def test_reading_as_root_is_no_excuse(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "orchestrator" / "secrets" / "MINE"
    path.parent.mkdir(parents=True)
    path.write_text("value")
    path.chmod(0o640)
    with pytest.raises(OrchError, match="others may read"):
        Secrets.of("${secret:MINE}")
    path.chmod(0o400)
    assert Secrets.of("${secret:MINE}").placed("${secret:MINE}") == "value"
