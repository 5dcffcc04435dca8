"""All private names of Lightning that exact resumption needs, and the versions that are known to have them.

`tests/worker/test_exact_names.py` checks them against the installed version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fetchers import _DataFetcher as DataFetcher
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from torch.nn.parallel import DistributedDataParallel

from orchestrator.worker.fit.exact.place import Place

METADATA = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "reduce_fx",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)
RESULT = ("has_reset", "_forward_cache", "_computed", "_update_count")
CONNECTOR = (
    "_callback_metrics",
    "_logged_metrics",
    "_progress_bar_metrics",
    "_first_loop_iter",
    "_current_fx",
)
RELOADS = (("fit_loop", "_last_train_dl_reload_epoch"), ("val_loop", "_last_val_dl_reload_epoch"))

Saved = dict[str, Any]


# --- where a fit is -----------------------------------------------------------------------------------------------


def place(trainer: pl.Trainer) -> Place:
    """Return the fit's position, from Lightning's own counters."""
    fit = trainer.fit_loop
    loader = fit._combined_loader
    batches = fit.epoch_loop.batch_progress
    return Place(
        epoch=_epochs(trainer),
        batch=batches.current.ready,
        total=batches.total.ready,
        cycles=loader is not None and loader._mode == "max_size_cycle",
    )


def _epochs(trainer: pl.Trainer) -> int:
    current: Any = trainer.fit_loop.epoch_progress.current  # of a type that has `processed`
    return int(current.processed)


def accumulates(trainer: pl.Trainer) -> bool:
    """Whether gradients have accumulated since the optimizer's last step."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return batches.current.ready % trainer.accumulate_grad_batches != 0 and not batches.is_last_batch


def has_ended(trainer: pl.Trainer) -> bool:
    """Whether the fit will begin no other epoch: `_FitLoop.done` without its messages."""
    fit = trainer.fit_loop
    epochs, steps = fit.max_epochs, fit.max_steps
    over = epochs is not None and epochs != -1 and _epochs(trainer) >= epochs
    return over or (steps != -1 and trainer.global_step >= steps) or (trainer.should_stop and fit._can_stop_early)


# --- the moments ----------------------------------------------------------------------------------------------------


def before_batches(trainer: pl.Trainer, do: Callable[[DataFetcher], bool]) -> None:
    """Call `do` before each batch of an epoch; if it returns true, skip the batch itself.

    Everything of the previous batch is done by then: hooks, logging, a validation, schedulers.
    """
    loop = trainer.fit_loop.epoch_loop
    advance = loop.advance

    def run(data_fetcher: DataFetcher) -> None:
        if not do(data_fetcher):
            advance(data_fetcher)

    loop.advance = run  # type: ignore[method-assign]  # only of this loop


def around_epochs(trainer: pl.Trainer, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` ahead of an epoch's first hook, and `after` once everything at its end is done."""
    fit = trainer.fit_loop
    start, end = fit.on_advance_start, fit.on_advance_end

    def on_start() -> None:
        before()
        start()

    def on_end() -> None:
        end()
        after()

    fit.on_advance_start = on_start  # type: ignore[method-assign]  # as above
    fit.on_advance_end = on_end  # type: ignore[method-assign]  # as above


def for_loaders(trainer: pl.Trainer, prepare: Callable[[Any, str, int], Any], begin: Callable[[], None]) -> None:
    """Replace each loader of the fit by `prepare(loader, stage, number)`; call `begin` before the first is made."""
    stages: list[str] = []
    numbers = {"train": 0, "val": 0}
    strategy, fit = trainer.strategy, trainer.fit_loop
    process = strategy.process_dataloader

    def prepared(dataloader: object) -> object:
        processed = process(dataloader)
        if not stages:  # a loader of a test or a prediction
            return processed
        numbers[stages[-1]] += 1
        return prepare(processed, stages[-1], numbers[stages[-1]] - 1)

    def staged(original: Callable[[], None], stage: str) -> Callable[[], None]:
        def set_up() -> None:
            if stage == "train":
                begin()
            numbers[stage] = 0
            stages.append(stage)
            try:
                original()
            finally:
                stages.pop()

        return set_up

    strategy.process_dataloader = prepared  # type: ignore[method-assign]  # as above
    fit.setup_data = staged(fit.setup_data, "train")  # type: ignore[method-assign]  # as above
    val = fit.epoch_loop.val_loop
    val.setup_data = staged(val.setup_data, "val")  # type: ignore[method-assign]  # as above


# --- resuming -------------------------------------------------------------------------------------------------------


def resume_between_epochs(trainer: pl.Trainer) -> None:
    """Make the loops, whose counters are loaded, begin the next epoch as in a fit that was not resumed."""
    trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()


def is_done(trainer: pl.Trainer) -> None:
    """Tell the loops that nothing at their position is half done: they stop treating it as a restart."""
    fit = trainer.fit_loop
    for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
        loop._restarting = False
        loop._resuming_from_checkpoint = False
        loop.reset_restart_stage()


def may_run_validation(trainer: pl.Trainer) -> Callable[[], None]:
    """Lift `max_steps`, which may be reached before the validation still to be run; return a function to undo it."""
    loop = trainer.fit_loop.epoch_loop
    steps, loop.max_steps = loop.max_steps, -1

    def undo() -> None:
        loop.max_steps = steps

    return undo


def rewind_validation(progress: Any) -> None:
    """Set a validation's progress back to before its first batch."""
    before = progress.total.completed - progress.current.completed
    for count, number in ((progress.current, 0), (progress.total, before)):
        count.ready = count.started = count.processed = count.completed = number
    progress.is_last_batch = False


def replay(fetcher: DataFetcher, batches: int) -> None:
    """Read and discard the given number of batches, for a loader that cannot start at a position."""
    fetcher.fetched -= batches  # Lightning has counted them already
    for _ in range(batches):
        next(fetcher)


def flattened(trainer: pl.Trainer) -> list[Any]:
    """Return the loaders of the fit."""
    loader = trainer.fit_loop._combined_loader
    return list(loader.flattened) if loader is not None else []


def checkpoint(trainer: pl.Trainer) -> Saved:
    """Return what Lightning saves of a fit: `Trainer.save_checkpoint` without the file. All ranks call it."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def writes_whole_files(trainer: pl.Trainer) -> bool:
    """Whether a checkpoint is one file, which rank 0 writes; with FSDP and DeepSpeed each rank writes a part."""
    return type(trainer.strategy).save_checkpoint is Strategy.save_checkpoint


def is_compiled(trainer: pl.Trainer) -> bool:
    """Whether the model runs through `torch.compile`."""
    return getattr(trainer.lightning_module, "_compiler_ctx", None) is not None


def fix_order_of_sums(trainer: pl.Trainer) -> None:
    """Have DDP add up gradients in the same order in each attempt, where it does not differ for other reasons.

    It rebuilds its buckets after the first backward pass, in the order in which gradients were ready: of three ranks
    and more the sums then have other bits, and a resumed fit has its first step with the first buckets. Here they are
    rebuilt before, in the order of the parameters. On a GPU that leaves less of the communication to go on beside the
    backward pass, so it is done there only if the trainer is to be deterministic.
    """
    model = trainer.strategy.model
    exact = trainer.strategy.root_device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    if exact and isinstance(model, DistributedDataParallel):
        model.reducer._push_all_rebuilt_params()


# --- state that Lightning does not save -------------------------------------------------------------------------------


def connector(trainer: pl.Trainer) -> Saved:
    """Return the logged values that callbacks and schedulers see."""
    return {name: getattr(trainer._logger_connector, name) for name in CONNECTOR}


def load_connector(trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
    for name, value in saved.items():
        setattr(trainer._logger_connector, name, value)


def loops(trainer: pl.Trainer) -> Saved:
    """Return counters of the loops that their own state dicts leave out."""
    fit = trainer.fit_loop
    val = fit.epoch_loop.val_loop
    return {
        "seen": dict(val._seen_batches_per_dataloader),
        "reloaded": (fit._last_train_dl_reload_epoch, val._last_val_dl_reload_epoch),
        "should_stop": trainer.should_stop,
        "accumulate": trainer.accumulate_grad_batches,
        "stepped": fit.epoch_loop._batches_that_stepped,
    }


def load_loops(trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
    fit = trainer.fit_loop
    val = fit.epoch_loop.val_loop
    val._seen_batches_per_dataloader.update(saved["seen"])
    fit._last_train_dl_reload_epoch, val._last_val_dl_reload_epoch = saved["reloaded"]
    trainer.should_stop = saved["should_stop"]
    trainer.accumulate_grad_batches = saved["accumulate"]
    fit.epoch_loop._batches_that_stepped = saved["stepped"]


def results(trainer: pl.Trainer) -> Saved:
    """Return the running values of the metrics that a training epoch logs."""
    return {name: _result(metric) for name, metric in _collection(trainer).items()}


def load_results(trainer: pl.Trainer, saved: Mapping[str, Saved]) -> None:
    collection = _collection(trainer)
    collection.clear()
    for name, one in saved.items():
        collection[name] = _loaded_result(trainer, one)


def _collection(trainer: pl.Trainer) -> _ResultCollection:
    return trainer.fit_loop.epoch_loop._results


def _result(metric: _ResultMetric) -> Saved:
    sync = metric.meta.sync
    return {
        "meta": {name: getattr(metric.meta, name) for name in METADATA},
        "sync": {"_should": sync._should, "rank_zero_only": sync.rank_zero_only, "_op": sync._op},
        "tensor": metric.is_tensor,
        "own": {name: getattr(metric, name) for name in RESULT},
        "state": {name: getattr(metric, name) for name in metric._defaults} if metric.is_tensor else {},
    }


def _loaded_result(trainer: pl.Trainer, saved: Saved) -> _ResultMetric:
    meta = _Metadata(**saved["meta"])
    meta.sync = _Sync(fn=trainer.strategy.reduce, **saved["sync"])
    metric = _ResultMetric(meta, saved["tensor"])
    for name, value in {**saved["own"], **saved["state"]}.items():
        setattr(metric, name, value)
    if not saved["tensor"]:
        metric.value = trainer.lightning_module.get_submodule(str(meta.metric_attribute))
    return metric
