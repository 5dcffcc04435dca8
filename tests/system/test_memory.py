"""How much memory a process may take, in control groups of both kinds."""

from __future__ import annotations

import psutil
import pytest

from orchestrator.system.memory import free_bytes

MB = 10**6


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_group_counts_and_cached_files_are_free(tmp_path, version):
    names = ("memory.max", "memory.current", "inactive_file")
    root, line = tmp_path / "fs", "0::/slurm/job_7/step_0\n"
    top = root
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        line = "5:cpu,cpuacct:/x\n3:memory:/slurm/job_7/step_0\n"
        top = root / "memory"
    groups = tmp_path / "cgroup"
    groups.write_text(line)
    for path, most, used, cached in (
        ("slurm", "max", 9, 0),
        ("slurm/job_7", 100, 90, 30),
        ("slurm/job_7/step_0", 80, 20, 0),
    ):
        folder = top / path
        folder.mkdir(parents=True)
        for name, value in zip(names, (most, used, cached), strict=True):
            text = value if value == "max" else str(value * MB)
            if name == names[2]:
                folder.joinpath("memory.stat").write_text(f"anon 5\n{name} {text}\n")
            else:
                folder.joinpath(name).write_text(f"{text}\n")
    assert free_bytes(groups, root) == 40 * MB


def test_without_a_group_the_machine_counts(tmp_path):
    assert 0 < free_bytes(tmp_path / "none", tmp_path) <= psutil.virtual_memory().total
