"""Secrets: named in YAML, put in place on the node, and in nothing that we write; what looks like one is not shown."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from git_desk import environ
from processes import ROOT

from orchestrator.config import credentials
from orchestrator.config.secrets import Secrets
from orchestrator.errors import OrchError

VALUE = 'ünsafe "key"\\with/odd$characters'
NET = """
from pytorch_lightning.demos.boring_classes import BoringModel

class Net(BoringModel):
    def __init__(self, endpoint: str, api_key: str, expects: str, fails: bool = False):
        super().__init__()
        self.save_hyperparameters()
        if api_key.encode().hex() != expects:
            raise ValueError("another secret than that")
        self.fails, self.endpoint = fails, endpoint

    def training_step(self, batch, batch_idx):
        if self.fails:
            raise PermissionError(f"refused: {self.endpoint}")
        return super().training_step(batch, batch_idx)
"""
EXPERIMENT = """
# @package _global_
name: keyed
model:
  _target_: keyed.Net
  endpoint: "https://me:${secret:THE_KEY}@example.org"
  api_key: ${secret:THE_KEY}
  expects: ${vars.hex}
  fails: false
vars: {hex: "00"}
trainer: {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 0}
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
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
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


def test_nothing_that_we_write_holds_it(desk):
    desk.orch("ui", "--once")
    forms = {VALUE.encode(), json.dumps(VALUE)[1:-1].encode(), json.dumps(VALUE, ensure_ascii=False)[1:-1].encode()}
    forms |= {VALUE.encode("utf-16-le"), VALUE.replace('"', '\\"').encode()}
    holding = [
        path
        for path in (desk.folder / "runs").rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms)
    ]
    assert holding == []
    assert (desk.folder / "runs" / ".mlflow" / "mlflow.db").stat().st_size > 0
    assert list((desk.folder / "runs").rglob("step-*.ckpt"))


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
    assert "note: model.api_key looks like a credential, and is written to disk: name it by ${secret:NAME}" in told
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
