"""The moments at which a fit is saved and resumed.

Between two batches, everything of the first one is done, including hooks, logging, a validation and schedulers, and
nothing of the second one has begun. The same holds between two epochs. A validation may be saved as it begins. A fit
resumed from such a moment is bit-identical: its checkpoint holds the state that Lightning does not save (`state.py`),
and its data is a function of the position in the fit (`place.py`).
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.worker.fit.exact import lightning, state
from orchestrator.worker.fit.exact.place import Last, Source, can_be_exact, is_exact, make_exact
from orchestrator.worker.fit.progress import Saved

_log = logging.getLogger(__name__)
EXACTNESS = 1
"""In an attempt's events: how data depends on the seed. 1: as a function of position; 0: as Lightning draws it."""
KEY = "orch_exact"
"""A checkpoint's key for its moment and, for each rank, a block of bytes (`state.py`) and gradients not yet applied."""
_VERSION = 1


class Moment(StrEnum):
    """The position of a fit when it is saved."""

    BATCH = "batch"
    """Before a batch."""
    VALIDATION = "validation"
    """In a validation: the saved state is that at its start, and the validation is run again."""
    EPOCH = "epoch"
    """After an epoch, before the next one."""


class Seam(Callback):
    """Calls `reached` at each moment, saves the state that Lightning does not, and resumes from a moment.

    It comes before all other callbacks, so that none has changed the state at the start of a validation yet.
    """

    def __init__(
        self,
        seed: int,
        *,
        trusted: bool,
        metrics_bytes: Callable[[], int],
        report: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """Unless `trusted`, no code that a checkpoint may name is run: its counters are taken, its other state not.

        `metrics_bytes` returns the size of the attempt's metric log. `report` is called once training starts, with
        what keeps the fit from resuming exactly.
        """
        self._seed, self._trusted, self._metrics_bytes, self._report = seed, trusted, metrics_bytes, report
        self.attached = False
        self._reached: Callable[[Moment], None] = lambda _: None
        self._loaded: Saved | None = None
        self._state: Mapping[str, Any] | None = None
        self._older = False
        self._undo: Callable[[], None] = lambda: None
        self._saving: Moment | None = None
        self._begun: bytes | None = None
        """The state at the start of the validation that is going on."""
        self._begun_metrics_bytes = 0
        self._made_at: object = None
        self._datasets: dict[state.Name, object] = {}
        self._sources: dict[int, Source] = {}
        """What is behind the loaders of the training, by their numbers."""
        self._before: state.Attributes = {}
        self._touched: set[tuple[state.Name, str]] = set()
        """Attributes that the sanity check has changed, which a resumed fit does not run."""
        self._baseline: state.Attributes | None = None

    @property
    def state_key(self) -> str:
        return "orch.Seam"

    def attach(self, trainer: pl.Trainer, reached: Callable[[Moment], None]) -> None:
        """Hook into a trainer's fit: it calls `reached` at each moment, and its loaders become exact."""
        self.attached, self._trainer, self._reached = True, trainer, reached
        lightning.for_loaders(trainer, self._prepared, self._set_up)
        lightning.before_batches(trainer, self._before_batch)
        lightning.around_epochs(trainer, self._before_epoch, self._after_epoch)

    # --- saving

    @contextmanager
    def saving(self, moment: Moment) -> Iterator[None]:
        """Mark checkpoints saved in the body as those of a moment; others, such as a user's callback saves, are not."""
        self._saving = moment if self.attached else None
        try:
            yield
        finally:
            self._saving = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        if self._saving is None:
            return
        block = self._begun if self._saving is Moment.VALIDATION else None
        mine = {
            "state": _tensor(block or state.save(trainer, self._changed())),
            "gradients": _gradients(pl_module) if lightning.accumulates(trainer) else {},
            "last": {number: source.last for number, source in self._sources.items() if source.last},
            "machine": machine(trainer.strategy.root_device),
        }
        checkpoint[KEY] = {"version": _VERSION, "moment": self._saving.value, "ranks": _gathered(mine, trainer)}
        if self._saving is Moment.EPOCH:
            checkpoint["epoch"] -= 1  # as in other checkpoints: the epoch in which it was saved

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.attached:
            self._before = self._attributes()

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.attached:
            self._touched = set(_differing(self._attributes(), self._before))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.attached and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._begun_metrics_bytes = self._metrics_bytes()
            self._begun = state.save(trainer, self._changed())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = None

    def metrics_bytes(self, moment: Moment) -> int:
        """Return how long the metric log was at a moment: what follows is logged again by a run that resumes there."""
        within = self._begun is not None and moment is Moment.VALIDATION
        return self._begun_metrics_bytes if within else self._metrics_bytes()

    def _changed(self) -> state.Attributes:
        now = self._attributes()
        return {**{key: now[key] for key in self._touched if key in now}, **_differing(now, self._baseline or {})}

    def _attributes(self) -> state.Attributes:
        return state.attributes(state.objects_of(self._trainer, self._datasets))

    # --- resuming

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        self._loaded, self._state = None, None
        found = checkpoint.get(KEY)
        self._older = not found
        if not self.attached or not found or found["version"] != _VERSION:
            return
        self._loaded = found
        trainer.num_sanity_val_steps = 0
        ranks = found["ranks"]
        if not self._trusted or len(ranks) != trainer.world_size:
            return
        block = bytes(ranks[trainer.global_rank]["state"].cpu().numpy())
        self._state = state.read(block, torch.device("cpu"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._report:
            self._report(self._obstacles() if self.attached else [])

    def _obstacles(self) -> list[str]:
        """Return why this fit cannot resume exactly, or has not. All ranks must call it, once training starts."""
        trainer = self._trainer
        found = [] if lightning.writes_whole_files(trainer) else ["a sharded strategy is not tested"]
        if lightning.is_compiled(trainer):
            found.append("torch.compile is not tested")
        for number, loader in enumerate(lightning.flattened(trainer)):
            name = f"training loader {number} ({type(loader).__name__})"
            if not _has_its_place(loader):
                found.append(f"{name} is read again, and has to give the same")
            elif not is_exact(loader):
                found.append(f"{name} keeps its own state")
            elif not getattr(loader, "in_order", True):
                found.append(f"{name} has in_order=False")
        mine = self._of_rank()
        return sorted({*found, *(each for rank in _gathered({"found": mine}, trainer) for each in rank["found"])})

    def _of_rank(self) -> list[str]:
        """Return what has changed on this rank since the checkpoint that the fit resumes from."""
        if self._loaded is None:
            return ["the checkpoint was made without exact state"] if self._older else []
        ranks = self._loaded["ranks"]
        if len(ranks) != self._trainer.world_size:
            return [f"the checkpoint is of {len(ranks)} processes, not {self._trainer.world_size}"]
        saved = ranks[self._trainer.global_rank]
        now = machine(self._trainer.strategy.root_device)
        found = [
            f"{name} was {one}, and is {now[name]}"
            for name, one in saved.get("machine", {}).items()
            if now.get(name, one) != one
        ]
        for number, last in saved.get("last", {}).items():
            if number in self._sources and self._differs(number, last):
                found.append(
                    f"training loader {number} gives other data than before: see batch {last[2]} of epoch {last[0]}"
                )
        return found

    def _differs(self, number: int, last: Last) -> bool:
        try:
            return self._sources[number].differs(last)
        except Exception as error:  # noqa: BLE001 - of the user's data; if it lasts, the training raises it, too
            _log.info("the last batch cannot be read again to compare it: %s", error)
            return False

    def _set_up(self) -> None:
        """Prepare the loops before they check whether anything is left to do."""
        if self._loaded is None:
            return
        moment, loops = self._loaded["moment"], self._trainer.fit_loop
        if moment == Moment.EPOCH:
            lightning.resume_between_epochs(self._trainer)
            if self._state:  # if no epoch is left, nothing else restores these
                lightning.load_connector(self._trainer, self._state["connector"])
                self._trainer.should_stop = self._state["loops"]["should_stop"]
        elif moment == Moment.VALIDATION and loops.restarting:  # not just asked for the number of batches
            self._undo()
            self._undo = lightning.may_run_validation(self._trainer)

    def _before_epoch(self) -> None:
        if not self._active:
            return
        if self._baseline is None:
            self._baseline = self._attributes()
        if self._loaded is not None and self._loaded["moment"] == Moment.EPOCH:
            self._restore()

    def _before_batch(self, fetcher: Any) -> bool:
        """Resume, or save. Return whether the batch is done already, so that only its validation is left."""
        if not self._active:
            return False
        if self._loaded is None:
            self._reached(Moment.BATCH)
            return False
        moment, trainer = self._loaded["moment"], self._trainer
        where = lightning.place(trainer)
        if not any(map(_has_its_place, lightning.flattened(trainer))):
            lightning.replay(fetcher, where.batch)
        elif fetcher.length is None and self._made_at != where:
            iter(fetcher)  # it has prefetched from another position
        self._restore()
        return bool(moment == Moment.VALIDATION)

    def _after_epoch(self) -> None:
        if self._active:
            self._reached(Moment.EPOCH)

    @property
    def _active(self) -> bool:
        """Whether the run's own fit is running, and not that of a finder, which has no callbacks."""
        return self in self._trainer.callbacks  # type: ignore[attr-defined]  # Lightning's connector sets it

    def _restore(self) -> None:
        loaded, trainer = self._loaded, self._trainer
        self._loaded = None
        lightning.is_done(trainer)
        self._undo()
        if loaded is None or self._state is None:
            return
        device = trainer.strategy.root_device
        gradients = loaded["ranks"][trainer.global_rank]["gradients"]
        for name, parameter in trainer.lightning_module.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.device)
        moved = state.read(bytes(loaded["ranks"][trainer.global_rank]["state"].cpu().numpy()), device)
        state.restore(trainer, moved, state.objects_of(trainer, self._datasets))
        self._state = None

    # --- data

    def _prepared(self, loader: Any, stage: str, number: int) -> Any:
        trainer = self._trainer
        if stage == "train":
            self._made_at = lightning.place(trainer)
        if not can_be_exact(loader):
            return loader
        if loader.num_workers == 0 and hasattr(loader.dataset, "__dict__"):
            self._datasets["dataset", stage, number] = loader.dataset  # read in this process: its attributes are state
        source = Source(
            loader,
            name=(stage, number),
            seed=self._seed,
            rank=trainer.global_rank,
            where=lambda: lightning.place(trainer),
        )
        if stage == "train":
            self._sources[number] = source
        return make_exact(loader, source)


def _has_its_place(loader: object) -> bool:
    """Whether a loader can start at the fit's position by itself."""
    return is_exact(loader) or hasattr(loader, "load_state_dict")


def machine(device: torch.device) -> dict[str, str]:
    """Return what has to be the same for a fit to have the same bits."""
    gpu = {"GPU": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {**_versions(), "CPU": _cpu(), "threads": str(torch.get_num_threads()), **gpu}


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "numpy")}


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _differing(now: state.Attributes, before: state.Attributes) -> state.Attributes:
    return {key: value for key, value in now.items() if before.get(key) != value}


def _gradients(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    """Return the gradients accumulated so far, on the CPU, by the names of their parameters."""
    if not module.automatic_optimization:
        return {}
    return {name: one.grad.detach().cpu() for name, one in module.named_parameters() if one.grad is not None}


def _tensor(block: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(block), dtype=torch.uint8)


def _gathered(mine: Saved, trainer: pl.Trainer) -> list[Saved]:
    """Return what each rank has to save, in the order of ranks. All ranks must call it."""
    if trainer.world_size == 1:
        return [mine]
    ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, mine)
    return ranks
