"""What a plan says it would ask for is what is known: sums, sizes that runs really had, and else it says so."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from processes import ROOT

from orchestrator.data import Entry, Manifest
from orchestrator.errors import RequestError
from orchestrator.launch.estimate import DiskForecast, Models, data_totals, disk_forecast, shape_totals
from orchestrator.launch.estimate.checkpoints import KEPT
from orchestrator.launch.launch import WORKER, data_of
from orchestrator.launch.plan import make_plan
from orchestrator.layout import ExperimentPaths
from orchestrator.local import scratch as space
from orchestrator.local.inline import Inline
from orchestrator.models.mlp import MLP
from orchestrator.records.checkpoints import saved_by
from orchestrator.records.record import RunState
from orchestrator.spec import Resources, RunId
from orchestrator.spec.experiment import Run
from orchestrator.system.units import size
from orchestrator.testing.launches import Bench, trained

MODEL = {"_target_": "orchestrator.models.mlp.MLP", "in_features": 64, "num_classes": 10, "width": 300}


def steps(*needs, data=None, model=None):
    runs = [
        Run(
            id=RunId(f"{i:012x}"), point={"seed": i}, config={"model": model or MODEL}, resources=need, data_digest=data
        )
        for i, need in enumerate(needs)
    ]
    return make_plan(runs, {}, code="c0de")


# --- sums -------------------------------------------------------------------------------------------------


def test_hours_times_devices_times_runs():
    wide, narrow = Resources(nodes=2, gpus_per_node=4, cpus_per_node=32, hours=3), Resources(cpus_per_node=8)
    first, second = shape_totals(steps(wide, narrow, wide), arrays={wide: 2, narrow: 1}, default_hours=0.5)
    assert (first.runs, first.arrays, first.tasks, first.gpu_hours, first.cpu_hours) == (2, 2, 16, 48, 384)
    assert (second.runs, second.hours, second.asked, second.gpu_hours, second.cpu_hours) == (1, 0.5, False, 0, 4)


def test_nothing_is_summed_up_that_nobody_knows():
    (one,) = shape_totals(steps(Resources()), arrays=None, default_hours=None)
    assert (one.arrays, one.hours, one.gpu_hours, one.cpu_hours) == (None, None, None, None)


def test_each_data_version_is_counted_once_with_its_readers():
    manifest = Manifest.of([Entry(path="a", hash="md5:" + "0" * 32, size=7, sources=())], origin={"path": "data/it's"})
    found = steps(Resources(), Resources(), data=manifest.digest)
    manifests = {manifest.digest: manifest}
    (one,) = data_totals(found, manifests)
    assert (one.name, one.bytes, one.files, one.runs) == (f"data/it's {manifest.digest[:8]}", 7, 1, 2)
    assert data_of(found, manifests) == {one.name: 7}


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_900, "1 MB"),
        (1_234_567, "1.23 MB"),
        (67_108_864, "67.1 MB"),
        (10**15, "1,000 TB"),
    ],
)
def test_sizes_are_told_as_a_person_reads_them(count, told):
    assert size(count) == told


# --- scratch of this machine ------------------------------------------------------------------------------


def test_data_larger_than_this_machines_scratch_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"data version big has 1,000,000 TB: scratch .* holds .*") as error:
        Inline(scratch=str(tmp_path)).check({Resources()}, tmp_path, {"big": 10**18})
    assert "cluster.scratch" in error.value.fix


def test_data_larger_than_what_is_free_is_told(tmp_path):
    free = space.scratch(str(tmp_path)).free_bytes
    total = space.scratch(str(tmp_path)).bytes
    assert space.check({"small": 1}, str(tmp_path)) == ()
    (note,) = space.check({"large": (free + total) // 2}, str(tmp_path))
    assert "unless it is there already" in note


def test_a_scratch_that_is_not_here_is_unknown_and_refuses_nothing():
    assert space.scratch("/no such folder").bytes is None
    assert space.check({"big": 10**18}, "/no such folder") == ()


# --- checkpoints ------------------------------------------------------------------------------------------


def models(folder, *, measure, code="c0de"):
    return Models(
        project=folder, search_path=[str(ROOT), *sys.path], code=code, cache=folder / "cache", measure=measure
    )


def saved_bytes(model):
    """Return what torch really writes for a model and its optimizer after one step."""
    optimizer = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    file = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}, file)
    return len(file.getvalue())


def test_a_model_that_was_never_trained_is_weighed_as_torch_would_save_it(tmp_path):
    (size,) = models(tmp_path, measure=True).checkpoint_sizes([MODEL])
    real = saved_bytes(MLP(in_features=64, num_classes=10, width=300))
    assert size.bytes <= real <= size.bytes * 1.05


def test_an_answer_is_kept_for_the_same_code(tmp_path):
    assert models(tmp_path, measure=False).checkpoint_sizes([MODEL]) == [None]
    (size,) = models(tmp_path, measure=True).checkpoint_sizes([MODEL])
    assert models(tmp_path, measure=False).checkpoint_sizes([MODEL, {**MODEL, "width": 9}]) == [size, None]
    assert models(tmp_path, measure=False, code="other").checkpoint_sizes([MODEL]) == [None]


def test_a_model_that_cannot_be_built_says_why_and_the_others_are_weighed(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    search = Models(
        project=tmp_path, search_path=[str(tmp_path), str(ROOT), *sys.path], code="", cache=tmp_path / "c", measure=True
    )
    made = ["Adam", "Dict", "Lists", "Several", "Asks", "Nothing"]
    found = search.checkpoint_sizes([{"_target_": f"odd.{name}"} for name in ("Broken", *made)])
    assert found[0].bytes is None
    assert found[0].problem.startswith("odd.Broken cannot be built on its own: FileNotFoundError: ")
    assert "it's not here" in found[0].problem
    weights = 4 * (10 * 10 + 10)
    state = {name: (found[1 + i].bytes - weights) / weights for i, name in enumerate(made)}
    assert {name: round(each, 1) for name, each in state.items()} == {
        "Adam": 2,
        "Dict": 1,
        "Lists": 2,
        "Several": 1,
        "Asks": 2,
        "Nothing": 0,
    }
    kept = json.loads(next((tmp_path / "c").iterdir()).read_text())["answer"]
    assert len(kept) == len(made)  # what failed may work another time


ODD = """
import torch
class Adam(torch.nn.Linear):
    def __init__(self):
        super().__init__(10, 10)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
class Dict(Adam):
    def configure_optimizers(self):
        return {"optimizer": torch.optim.SGD(self.parameters(), lr=1, momentum=0.9), "lr_scheduler": None}
class Lists(Adam):
    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters())], []
class Several(Adam):
    def configure_optimizers(self):
        return [torch.optim.SGD([self.weight], lr=1, momentum=0.9), torch.optim.SGD([self.bias], lr=1, momentum=0.9)]
class Asks(Adam):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.trainer.lr)
class Nothing(Adam):
    def configure_optimizers(self):
        return None
class Broken(Adam):
    def __init__(self):
        open("it's not here")
"""


def test_a_program_that_dies_is_a_problem_and_no_error(tmp_path):
    (tmp_path / "deadly.py").write_text("import os\nprint('noise')\nos._exit(3)\n")
    search = Models(
        project=tmp_path, search_path=[str(tmp_path), *sys.path], code="", cache=tmp_path / "c", measure=True
    )
    (size,) = search.checkpoint_sizes([{"_target_": "deadly.Net"}])
    assert size.bytes is None
    assert size.problem


@pytest.mark.usefixtures("tidy")
def test_what_earlier_runs_saved_is_what_the_next_are_expected_to(tmp_path):
    cluster = Inline(grace_seconds=1.0)
    bench = Bench(paths=ExperimentPaths(tmp_path / "it's runs" / "x"), kind="inline", cluster=cluster)
    run = trained(steps=2)
    bench.launch([run], worker=WORKER)
    cluster.run()
    records = bench.records()
    assert records[run.id].state is RunState.DONE
    checkpoints = saved_by(bench.paths.run(run.id).attempt(1))
    assert 0 < len(checkpoints) <= KEPT
    known = make_plan([trained(steps=2, seed=seed) for seed in (1, 2, 3)], records, code="c0de")
    other = steps(Resources())
    found = disk_forecast([*known, *other], records, bench.paths, models(tmp_path, measure=False))
    each = KEPT * max(path.stat().st_size for path in checkpoints)
    assert (found.runs, found.saved, found.bytes, found.largest_bytes) == (3, 3, 3 * each, each)
    assert found.unknown == {MODEL["_target_"]: 1}
    assert found.free_bytes > 0
    assert found.note == ""


def test_checkpoints_that_do_not_fit_are_told(tmp_path):
    full = DiskForecast(
        runs=3, bytes=10**12, largest_bytes=10**12, saved=0, unknown={}, problem="", free_bytes=10**9, folder=tmp_path
    )
    assert full.note.startswith("the checkpoints of 3 runs need about 1 TB, and ")
    assert " has 1 GB free: free some space" in full.note


def test_without_earlier_runs_and_unasked_nothing_is_claimed(tmp_path):
    found = disk_forecast(steps(Resources()), {}, ExperimentPaths(tmp_path / "x"), models(tmp_path, measure=False))
    assert (found.runs, found.bytes, found.unknown) == (0, 0, {MODEL["_target_"]: 1})
