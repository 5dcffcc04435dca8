"""A run's id is the hash of what it computes: it never changes by itself, and always with what is computed."""

import copy
import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import orchestrator.conf
from orchestrator.errors import ConfigError
from orchestrator.identity import (
    TRAINER_DEFAULTS,
    TRAINER_NOT_IDENTITY,
    canonical,
    document,
    run_id,
)

MINIMAL = {
    "model": {"_target_": "mine.Model"},
    "data": {"_target_": None, "version": None},
    "trainer": {"_target_": "pytorch_lightning.Trainer", "max_epochs": 10, "callbacks": {}},
    "seed": 0,
    "task": "fit",
}
FULL = {
    "model": {"_target_": "mine.Model", "lr": 1e-3, "width": 64, "name": "größe '\"\n", "betas": [0.9, 0.999]},
    "data": {
        "_target_": "mine.Data", "data_dir": "<view>", "batch_size": 64, "shuffle": True,
        "version": {"source": "dvc", "path": "data/digits", "rev": "HEAD"},
    },
    "trainer": {
        "_target_": "pytorch_lightning.Trainer", "max_epochs": 3, "precision": "bf16-mixed", "max_steps": -1,
        "callbacks": {"stop": {"_target_": "mine.Stop", "patience": None}}, "enable_progress_bar": True,
    },
    "seed": 17,
    "task": "fit_test",
}  # fmt: skip
DIGEST = "ab" * 32


def identity(config=FULL, *, data_digest=DIGEST, world_size=1):
    return run_id(document(config, data_digest=data_digest, world_size=world_size))


def changed(path, value, config=FULL):
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return config


# GOLDEN: these never change. They lie in users' folders and in MLflow stores; a change here would run every
# finished run anew. If one fails, the code is wrong, not the number.
@pytest.mark.parametrize(
    ("config", "digest", "world_size", "golden"),
    [
        (MINIMAL, None, 1, "9144f14b622f"),
        (MINIMAL, DIGEST, 1, "64650d4aa778"),
        (MINIMAL, None, 4, "257d408d438a"),
        (FULL, DIGEST, 1, "823d59d6fbce"),
        (FULL, DIGEST, 8, "4a31ae11c105"),
        (changed(["seed"], 2**32 - 1), None, 1, "d90fc79b0ae0"),
        (changed(["model"], {"_target_": "m.M", "x": [-0.0, 1e10, 1e-7, {"y": []}]}), None, 1, "24b9bbaa6333"),
    ],
)
def test_golden_ids_never_change(config, digest, world_size, golden):
    assert identity(config, data_digest=digest, world_size=world_size) == golden


def test_the_canonical_form_never_changes():
    text = canonical(document(FULL, data_digest=DIGEST, world_size=2))
    assert text == (
        '{"data":{"_target_":"mine.Data","batch_size":64,"data_dir":"<view>","shuffle":true},'
        f'"data_digest":"{DIGEST}","id_version":1,'
        '"model":{"_target_":"mine.Model","betas":[0.9,0.999],"lr":0.001,'
        '"name":"gr\\u00f6\\u00dfe \'\\"\\n","width":64},"seed":17,"task":"fit_test",'
        '"trainer":{"callbacks":{"stop":{"_target_":"mine.Stop","patience":null}},"max_epochs":3,'
        '"precision":"bf16-mixed"},"world_size":2}'
    )


def test_what_equals_a_built_in_default_is_left_out():
    whole = {**MINIMAL, "trainer": dict(TRAINER_DEFAULTS)}
    left = {"id_version": 1, "model": MINIMAL["model"], "trainer": {}}
    assert document(whole, data_digest=None, world_size=1) == left
    assert identity(whole, data_digest=None) == identity(MINIMAL, data_digest=None)


@pytest.mark.parametrize("key", sorted(TRAINER_DEFAULTS))
def test_a_later_trainer_key_at_its_default_changes_no_id(key):
    assert identity(changed(["trainer"], {})) == identity(changed(["trainer"], {key: TRAINER_DEFAULTS[key]}))


@pytest.mark.parametrize("value", [1.0, True, "1"])
def test_a_default_of_another_type_is_no_default(value):
    plain = identity(changed(["trainer", "accumulate_grad_batches"], 1))
    assert identity(changed(["trainer", "accumulate_grad_batches"], value)) != plain


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["seed"], 18),
        (["task"], "fit"),
        (["model", "lr"], 2e-3),
        (["model", "lr"], "0.001"),
        (["model", "width"], 64.0),
        (["model", "betas"], [0.999, 0.9]),
        (["model", "new"], None),
        (["model", "_target_"], "mine.Other"),
        (["data", "batch_size"], 32),
        (["data", "shuffle"], 1),
        (["trainer", "max_epochs"], 4),
        (["trainer", "deterministic"], True),
        (["trainer", "callbacks"], {}),
    ],
)
def test_what_is_computed_changes_the_id(path, value):
    assert identity(changed(path, value)) != identity()


def test_the_data_and_the_number_of_processes_change_the_id():
    ids = {identity(), identity(data_digest=None), identity(data_digest="cd" * 32), identity(world_size=4)}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["trainer", "enable_progress_bar"], False),
        (["trainer", "enable_model_summary"], True),
        (["data", "version"], {"source": "directory", "path": "/elsewhere"}),
        (["resources"], {"hours": 99}),
        (["cluster"], {"kind": "slurm", "partition": "gpu"}),
        (["tracking"], {"kind": "none"}),
        (["name"], "other"),
        (["vars"], {"x": 1}),
        (["model"], dict(reversed(FULL["model"].items()))),
    ],
)
def test_how_and_where_it_runs_does_not(path, value):
    assert identity(changed(path, value)) == identity()


def test_arguments_without_a_datamodule_do_not_count():
    assert identity(changed(["data"], {"_target_": None, "version": {"source": "dvc"}})) == identity(
        changed(["data"], {})
    )


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_two_floats_have_one_form_only_if_they_are_the_same(a, b):
    assert float(json.loads(canonical({"x": a}))["x"]).hex() == a.hex()
    assert (canonical({"x": a}) == canonical({"x": b})) == (a.hex() == b.hex())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_equal_to_itself_or_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="NaN or an infinity") as caught:
        identity(changed(["model", "betas"], [0.9, {"x": value}]))
    assert caught.value.fix


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, Path("x"), {1: "a", "b": 2}, object()])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(ConfigError, match="a value that is not plain") as caught:
        identity(changed(["model", "lr"], value))
    assert caught.value.fix


def test_every_built_in_trainer_key_is_left_out_at_its_value_in_conf():
    """Otherwise a key added to conf/ would change every id there is."""
    file = Path(orchestrator.conf.__file__).parent / "trainer" / "default.yaml"
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(written) == set(TRAINER_DEFAULTS) | TRAINER_NOT_IDENTITY
    assert {key: written[key] for key in TRAINER_DEFAULTS} == TRAINER_DEFAULTS
    assert not TRAINER_NOT_IDENTITY & set(TRAINER_DEFAULTS)


def test_the_id_is_twelve_hexadecimal_digits():
    assert len(identity()) == 12
    assert int(identity(), 16) >= 0
