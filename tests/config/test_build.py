"""Objects are built from `_target_` nodes as Hydra's `instantiate` builds them."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from orchestrator.config.build import build, locate
from orchestrator.errors import ConfigError

SPACE = "types.SimpleNamespace"
INNER = {"_target_": SPACE, "lr": 0.1}
CASES = {
    "recursive": {"_target_": SPACE, "optimizer": INNER, "many": [INNER, {"x": INNER}]},
    "not recursive": {"_target_": SPACE, "_recursive_": False, "optimizer": INNER, "many": [INNER, {"x": INNER}]},
    "recursive again, within a list": {"_target_": SPACE, "a": [{"_recursive_": False, "b": INNER}]},
    "converted": {"_target_": SPACE, "_convert_": "all", "a": {"b": [1, {"c": 2}]}, "d": INNER | {"e": {}}},
    "converted within": {"_target_": SPACE, "a": {"b": 1}, "d": INNER | {"_convert_": "all", "e": {"f": 1}}},
    "by position": {"_target_": "builtins.divmod", "_args_": [7, 2]},
    "nodes by position": {"_target_": "builtins.dict", "_args_": [[["a", INNER]]], "b": INNER},
    "nodes by position, not recursive": {"_target_": "builtins.tuple", "_args_": [[INNER]], "_recursive_": False},
    "a function": {"_target_": "math.gcd", "_args_": [12, 18]},
    "an attribute": {"_target_": "builtins.getattr", "_args_": [{"_target_": "builtins.str"}, "upper"]},
    "a class method": {"_target_": "builtins.dict.fromkeys", "_args_": ["ab", 1]},
    "nothing": None,
}


def plain(value):
    """Return what was built as it compares: containers of either kind are the same, calls become their arguments."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, SimpleNamespace):
        return {"built": plain(vars(value))}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", CASES)
def test_what_is_built_is_what_hydra_builds(name):
    ours, theirs = build(CASES[name]), instantiate(CASES[name]) if CASES[name] else None
    assert plain(ours) == plain(theirs)
    assert type(ours) is type(theirs)


def test_keys_of_a_section_are_attributes_unless_it_is_converted():
    node = {"_target_": SPACE, "cfg": {"optim": {"lr": 0.1, "name": "sgd"}, "many": [{"x": 1}]}}
    cfg = build(node).cfg
    assert (cfg.optim.lr, cfg.optim["name"], cfg.many[0].x) == (0.1, "sgd", 1)
    assert isinstance(cfg, dict)
    assert cfg == node["cfg"]
    assert copy.deepcopy(cfg).optim.name == copy.copy(cfg).optim.name == "sgd"
    cfg.optim.lr = 0.2
    assert cfg["optim"]["lr"] == 0.2
    with pytest.raises(AttributeError, match="no key 'rate'; its keys are lr, name"):
        cfg.optim.rate  # noqa: B018 - asked for
    assert not hasattr(cfg, "__len_hint__")
    assert type(build(node | {"_convert_": "all"}).cfg) is dict
    assert type(build(node | {"_recursive_": False}).cfg.optim) is type(cfg)


def test_a_section_is_read_again_without_this_package():
    cfg = build({"optim": {"lr": 0.1}})
    data = pickle.dumps(cfg)
    assert b"orchestrator" not in data
    assert type(pickle.loads(data)) is OrderedDict
    assert pickle.loads(data) == cfg


def test_a_section_stays_one_in_a_loaders_worker_and_is_a_mapping_in_yaml():
    cfg = build({"optim": {"lr": 0.1, "betas": [0.9, {"x": 1}]}})
    sent = pickle.loads(ForkingPickler.dumps(cfg))  # as a worker that is spawned gets its dataset
    assert (sent.optim.lr, sent.optim.betas[1].x) == (0.1, 1)
    assert yaml.full_load(yaml.dump({"cfg": cfg})) == yaml.safe_load(yaml.safe_dump({"cfg": cfg})) == {"cfg": cfg}


def test_a_partial_node_is_called_later_wherever_it_is():
    built = build({"_target_": SPACE, "optimizer": INNER | {"_partial_": True}})
    assert isinstance(built.optimizer, partial)
    assert vars(built.optimizer(params=[1])) == {"lr": 0.1, "params": [1]}


def test_an_attribute_goes_before_a_submodule_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice/__init__.py").write_text("class net: size = 3\n")
    (tmp_path / "twice/net.py").write_text("size = 4\n")
    (tmp_path / "twice/other.py").write_text("size = 5\n")
    (tmp_path / "twice/broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (locate("twice.net.size"), locate("twice.other.size")) == (3, 5)
    with pytest.raises(AttributeError):
        locate("twice.missing.size")
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        locate("twice.broken.size")
    with pytest.raises(ConfigError, match="no module 'thrice'"):
        locate("thrice.net")
