"""The training loop: batches, steps, checkpoints, logs, sample sheets and validation."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import torch

from fairweather.data.datasets import PhotoCache
from fairweather.errors import BadSettings
from fairweather.recipes import Batch
from fairweather.training import checkpoint
from fairweather.training.config import RunConfig
from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader
from fairweather.training.run_log import EpochMeter, TrainingLog, epoch_due, epochs_done
from fairweather.training.samples import draw_samples, validate, validation_pairs
from fairweather.training.trainer import PreparedRun

log = logging.getLogger("fairweather")


def fit(prepared: PreparedRun, *, resume: bool) -> int:
    """Train to the end of the run.

    With several processes, the main one's clock is used, and only the main one writes files.

    Args:
        prepared: the run.
        resume: continue from the last checkpoint.

    Returns:
        The number of steps taken since the run's start.

    Raises:
        BadSettings: a loss or gradient is NaN or infinite (the last checkpoint is kept).
        BadFolder: the disk is full (the last checkpoint is kept), or there is no checkpoint to resume from.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a last checkpoint.
    """
    engine, dataset, run, folder = prepared.engine, prepared.dataset, prepared.config.run, prepared.out
    processes, crop = engine.processes, prepared.config.data.crop
    assert run.batch is not None
    assert crop is not None
    batch = processes.size * run.batch  # of all processes together
    steps = run.steps if run.epochs is None else math.ceil(run.epochs * len(dataset) / batch)
    saved = None
    if resume:
        whole = checkpoint.load_checkpoint(folder / "checkpoints")
        saved = checkpoint.process_checkpoint(whole, processes.rank, processes.size)
    step, seconds = (saved["step"], saved["seconds"]) if saved is not None else (0, 0.0)
    clock = Clock(step, seconds, steps, run.minutes)
    batches = _batches(prepared, clock.step * batch)
    if saved is not None:
        engine.load_state(saved["engine"])
        checkpoint.set_random_states(saved["random"])

    def save() -> None:
        others = processes.gather({"engine": engine.process_state(), "random": checkpoint.random_states()})
        if processes.main:
            state = {"step": clock.step, "seconds": clock.seconds, "engine": engine.state()}
            state |= {"random": checkpoint.random_states(), **({"others": others} if others else {})}
            checkpoint.save_checkpoint(folder / "checkpoints", state)

    cadence, photos, holdout = Cadence(run, clock), PhotoCache(2 * crop), validation_pairs(dataset)
    if saved is None:
        save()
    writer = None
    if processes.main:
        with checkpoint.disk_errors(folder, folder / "stats.jsonl"):
            writer = TrainingLog(
                folder,
                step=clock.step,
                steps=clock.steps,
                minutes=run.minutes,
                every=run.log_steps,
                tensorboard=run.tensorboard,
                epochs=EpochMeter(length=len(dataset), batch=batch),
            )
    with writer or nullcontext(), interruptible() as interrupted:
        while clock.progress < 1:
            try:
                terms = engine.step(next(batches), clock.progress)
            except FloatingPointError as error:
                explained = BadSettings(
                    f"{error} in step {clock.step + 1}: lower recipe.lr, set recipe.clip where the recipe has it, or "
                    f"use precision fp32 ({folder / 'checkpoints'} contains the last good state)"
                )
                raise processes.agreed(explained) from error
            clock.tick()
            values = dict(zip(terms, torch.stack([term.float() for term in terms.values()]).tolist(), strict=True))
            values, clock.seconds, stop = processes.settle(values, clock.seconds, interrupted())
            last = clock.progress >= 1
            measure = holdout and (last or (run.validate_steps and clock.step % run.validate_steps == 0))
            sheets = samples_due(run, clock.step, last, len(dataset), batch)
            if writer is not None:
                if measure:
                    values |= validate(engine, holdout, photos)
                with checkpoint.disk_errors(folder, writer.stats):
                    writer.step(clock.step, clock.seconds, values, batch)
                for name in sheets:
                    with checkpoint.disk_errors(folder, sheet := folder / "samples" / name):
                        draw_samples(engine, dataset, run.seed, sheet, paired=engine.recipe.paired)
            if measure or sheets:
                processes.wait()
            if cadence.due(clock) or last or stop:
                save()
            if stop:
                log.info("stopped after step %d: resume with --resume", clock.step)
                raise processes.agreed(KeyboardInterrupt(), 130)
    return clock.step


@dataclass
class Clock:
    """The progress of a run: steps, and seconds of training over all its parts."""

    step: int
    seconds: float
    steps: int | None
    minutes: float | None

    def __post_init__(self) -> None:
        self._start = time.monotonic() - self.seconds

    def tick(self) -> None:
        """Count a step."""
        self.step += 1
        self.seconds = time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        if self.steps is not None:
            return self.step / self.steps
        assert self.minutes is not None
        return self.seconds / (60 * self.minutes)


class Cadence:
    """Decides when the next checkpoint is due."""

    def __init__(self, run: RunConfig, clock: Clock) -> None:
        self.steps, minutes = run.checkpoint_steps, run.checkpoint_minutes
        self.seconds = 60 * minutes if minutes else (math.inf if self.steps else 300.0)
        self.last = clock.seconds

    def due(self, clock: Clock) -> bool:
        by_step = self.steps is not None and clock.step % self.steps == 0
        if by_step or clock.seconds - self.last >= self.seconds:
            self.last = clock.seconds
            return True
        return False


def samples_due(run: RunConfig, step: int, last: bool, length: int, batch: int) -> list[str]:
    """Names of the sample sheets to draw after this step."""
    names = []
    if run.sample_steps and (last or step % run.sample_steps == 0):
        names.append(f"step-{step:07d}.jpg")
    if epoch_due(step, length, batch, run.sample_epochs):
        names.append(f"epoch-{epochs_done(step, length, batch):05d}.jpg")
    return names


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM was received; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _batches(prepared: PreparedRun, position: int) -> Iterator[Batch]:
    """Endless batches, starting after `position` samples."""
    run, processes = prepared.config.run, prepared.engine.processes
    order: dict[str, int] = {"seed": run.seed, "batch": run.batch or 1, "position": position}
    order |= {"rank": processes.rank, "size": processes.size}
    if prepared.gpu_batches is not None:
        return iter(DeviceBatchLoader(prepared.gpu_batches, **order))
    workers = run.workers
    if workers is None and sys.platform != "linux":
        workers = 0  # forking next to the networks' threads is safe on Linux only
    elif workers is None:
        spare = ((os.cpu_count() or 2) - 1) // processes.size
        workers = 1 if prepared.engine.device == "cpu" else max(1, min(8, spare))
    return iter(BatchLoader(prepared.dataset, workers=workers, **order))
