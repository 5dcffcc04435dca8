"""The fingerprint tells environments apart by what is installed, and by nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.snapshot.environment import (
    Environment,
    current,
    differences,
    distributions,
    editable_roots,
    editable_roots_in,
    site_folders,
)

ROOT = Path(__file__).parents[2]
PRINT = "import json; from orchestrator.snapshot.environment import current; print(json.dumps(current().to_json()))"
BASE = Environment(
    python="3.11.7", platform="linux-x86_64", prefix="/env", distributions={"numpy": "2.0", "torch": "2.13.0"}
)


def test_it_knows_what_importlib_finds_in_the_site_folders():
    names = {Path(folder).as_posix() for folder in site_folders()}
    expected = {}
    for found in metadata.distributions(path=sorted(names)):
        expected.setdefault(found.name.lower().replace("_", "-").replace(".", "-"), found.version)
    assert current().distributions == expected
    assert current().distributions["pytest"] == pytest.__version__


def test_a_worker_with_the_snapshot_on_its_path_gets_the_same(tmp_path):
    (tmp_path / "planted-1.0.dist-info").mkdir()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", PRINT], cwd=tmp_path, env=env, capture_output=True, check=True)
    there = Environment.from_json(json.loads(done.stdout))
    assert there == current()
    assert there.digest == current().digest


def test_it_survives_its_json():
    assert Environment.from_json(json.loads(json.dumps(BASE.to_json()))) == BASE


def test_the_digest_depends_on_all_but_the_place():
    assert replace(BASE, prefix="/elsewhere").digest == BASE.digest
    changed = [
        replace(BASE, python="3.12.1"),
        replace(BASE, platform="linux-aarch64"),
        replace(BASE, distributions={"numpy": "2.0"}),
        replace(BASE, distributions={"numpy": "2.1", "torch": "2.13.0"}),
    ]
    assert len({BASE.digest, *(other.digest for other in changed)}) == 5
    reordered = dict(reversed(BASE.distributions.items()))
    assert replace(BASE, distributions=reordered).digest == BASE.digest


def test_differences_are_lines_that_a_person_can_act_on():
    now = Environment(
        python="3.12.1",
        platform="linux-aarch64",
        prefix="/other",
        distributions={"torch": "2.14.1", "zarr": "3.0"},
    )
    assert differences(BASE, now) == [
        "python 3.11.7 -> 3.12.1",
        "platform linux-x86_64 -> linux-aarch64",
        "numpy is missing (was 2.0)",
        "torch 2.13.0 -> 2.14.1",
        "zarr 3.0 is new",
    ]


def test_another_place_alone_is_no_difference():
    assert differences(BASE, replace(BASE, prefix="/elsewhere")) == []


def installed(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def test_names_are_normalised_and_every_kind_of_metadata_is_read(tmp_path):
    folder = installed(
        tmp_path / "it's a\nsite",
        "Foo_Bar.baz-1.0.dist-info",
        "torch-2.13.0+cpu.dist-info",
        "old-0.9-py3.11.egg-info",
        "bare.egg-info",
        "old-style-2.0.dist-info",
        "~umpy-1.0.dist-info",
        "pkg",
        "x-1.0.data",
    )
    assert distributions([folder, tmp_path / "missing"]) == {
        "bare": "",
        "foo-bar-baz": "1.0",
        "old": "0.9",
        "old-style": "2.0",
        "torch": "2.13.0+cpu",
    }


def test_the_folder_that_python_imports_from_first_wins_and_torn_upgrades_are_told_alike(tmp_path):
    first = installed(tmp_path / "a", "numpy-1.26.dist-info", "numpy-1.25.dist-info")
    second = installed(tmp_path / "b", "numpy-2.0.dist-info", "scipy-1.0.dist-info")
    assert distributions([first, second]) == {"numpy": "1.26", "scipy": "1.0"}


def test_editable_installs_are_found_and_others_are_not(tmp_path):
    source = tmp_path / "a source%20 'ü'"
    source.mkdir()
    site = installed(
        tmp_path / "site", "a-1.dist-info", "b-1.dist-info", "c-1.dist-info", "d-1.dist-info", "e-1.dist-info"
    )
    records = {
        "a": {"url": source.as_uri(), "dir_info": {"editable": True}},
        "b": {"url": tmp_path.as_uri(), "dir_info": {}},
        "c": {"url": "https://example.org/c.git", "vcs_info": {"vcs": "git"}},
        "d": {"url": (tmp_path / "deleted").as_uri(), "dir_info": {"editable": True}},
    }
    for name, record in records.items():
        (site / f"{name}-1.dist-info" / "direct_url.json").write_text(json.dumps(record))
    (site / "e-1.dist-info" / "direct_url.json").write_bytes(b"\0torn")
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    (site / "legacy.egg-link").write_text(f"{legacy}\n.")
    assert editable_roots_in([site, tmp_path / "missing"]) == sorted([source, legacy])


def test_the_editable_roots_of_this_environment_exist():
    assert all(root.is_dir() and root.is_absolute() for root in editable_roots())
