"""A desk: the folder of a project with its own module and experiments, and the commands run in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from processes import ROOT, orch_argv

from orchestrator.clusters import observers
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import Record

if TYPE_CHECKING:
    from mlflow.entities import Run


def write_conf(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files below a project's conf/, and return the project's folder."""
    for name, text in files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


class Desk:
    """A project: `nets` is the source of its module, `experiments` are the texts of its experiments by name."""

    def __init__(self, folder: Path, *, nets: str, experiments: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        (folder / "conf" / "experiment").mkdir(parents=True)
        (folder / "nets.py").write_text(nets)
        for name, text in experiments.items():
            (folder / "conf" / "experiment" / f"{name}.yaml").write_text(text)

    def start(self, *words: str, played: bool = False) -> subprocess.Popen[str]:
        """Start `orch WORDS`; with `played`, the scripted worker plays the runs."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(orch_argv(*words, played=played), cwd=self.folder, env=self.env, text=True, **pipes)

    def orch(self, *words: str, status: int = 0, played: bool = False) -> str:
        """Return the output of `orch WORDS`, which must end with this status."""
        process = self.start(*words, played=played)
        said, _ = process.communicate()
        assert process.returncode == status, f"{words}: {process.returncode}\n{said}"
        return said

    def records(self, name: str) -> list[Record]:
        return list(read_experiment(ExperimentPaths(self.folder / "runs" / name), observers()).records.values())

    def tracked(self, name: str, which: str = "tags.`orch.kind` = 'run'") -> list[Run]:
        """Return the runs of an experiment in the embedded MLflow store: the child runs, or those of a filter."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder}/runs/.mlflow/mlflow.db")
        experiment = client.get_experiment_by_name(name)
        return list(client.search_runs([experiment.experiment_id], which))

    def trials(self, name: str) -> list[Record]:
        """Return the records of a search's trials, in the order of their numbers."""
        return sorted(self.records(name), key=lambda record: record.planned.point["trial"])
