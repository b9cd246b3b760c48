"""The training loop: batches in, steps, and all that is kept on the way."""

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
from pathlib import Path
from types import FrameType

import torch

from fairweather.data.datasets import Dataset, PhotoCache
from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadSettings
from fairweather.training import checkpoint, run_log
from fairweather.training.config import RunConfig
from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader
from fairweather.training.optimization import TrainingEngine
from fairweather.training.run_log import TrainingLog
from fairweather.training.samples import draw_samples, validate, validation_pairs

log = logging.getLogger("fairweather")


@dataclass
class Clock:
    """How far a run is: steps, and seconds of training over all its parts."""

    step: int
    seconds: float
    steps: int | None
    minutes: float | None

    def __post_init__(self) -> None:
        self._start = time.monotonic() - self.seconds

    def tick(self) -> None:
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
    """When the next checkpoint is due."""

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


def steps_of(run: RunConfig, length: int, batch: int) -> int | None:
    """Number of steps of the run; None where the clock ends it."""
    if run.epochs is not None:
        return math.ceil(run.epochs * length / batch)
    return run.steps


def fit(
    engine: TrainingEngine, dataset: Dataset, run: RunConfig, folder: Path, *, crop: int, paired: bool, resume: bool,
    batched: GPUBatches | None = None,
) -> int:  # fmt: skip
    """Train to the end of `run`, in `folder`, and return the number of steps that it has now.

    Batches are made by `batched` on its device where there is that, else by `dataset`, sample by sample.
    Several processes take their steps together; the main one decides by its clock, and writes all that is written.
    Raises BadSettings on a NaN (the last checkpoint stays), BadFolder where the disk is full (the last checkpoint
    stays), KeyboardInterrupt on Ctrl-C after one more checkpoint.
    """
    assert run.batch is not None
    processes = engine.processes
    batch = processes.size * run.batch  # of all processes together
    clock = Clock(0, 0.0, steps_of(run, len(dataset), batch), run.minutes)
    saved = (
        checkpoint.rank_state(checkpoint.load_checkpoint(folder / "checkpoints"), processes.rank, processes.size)
        if resume
        else None
    )
    if saved is not None:
        clock = Clock(saved["step"], saved["seconds"], clock.steps, clock.minutes)
    place: dict[str, int] = {"seed": run.seed, "batch": run.batch, "position": clock.step * batch}
    place |= {"rank": processes.rank, "size": processes.size}
    if batched is not None:
        batches = iter(DeviceBatchLoader(batched, **place))
    else:
        workers = run.workers if run.workers is not None else _workers(engine.device, processes.size)
        batches = iter(BatchLoader(dataset, workers=workers, **place))
    if saved is not None:
        engine.load_state(saved["engine"])
        checkpoint.set_random_states(saved["random"])

    def save() -> None:
        others = processes.gather({"engine": engine.own_state(), "random": checkpoint.random_states()})
        if processes.main:
            whole = {"step": clock.step, "seconds": clock.seconds, "engine": engine.state()}
            more = {"others": others} if others else {}
            checkpoint.save_checkpoint(folder / "checkpoints", {**whole, "random": checkpoint.random_states(), **more})

    cadence, photos, held = Cadence(run, clock), PhotoCache(2 * crop), validation_pairs(dataset)
    if saved is None:
        save()
    report = None
    if processes.main:
        with checkpoint.disk_errors(folder, folder / "stats.jsonl"):
            report = TrainingLog(
                folder,
                step=clock.step,
                steps=clock.steps,
                minutes=run.minutes,
                every=run.log_steps,
                tensorboard=run.tensorboard,
                epochs=run_log.EpochMeter(length=len(dataset), batch=batch),
            )
    with report or nullcontext(), interruptible() as interrupted:
        while clock.progress < 1:
            try:
                terms = engine.step(next(batches), clock.progress)
            except FloatingPointError as error:
                wrong = BadSettings(
                    f"{error} in step {clock.step + 1}; {folder / 'state'} holds the last good state. "
                    "Lower recipe.lr, set recipe.clip where there is one, or take precision 'fp32'"
                )
                raise processes.agreed(wrong) from error
            clock.tick()
            values = dict(zip(terms, torch.stack([term.float() for term in terms.values()]).tolist(), strict=True))
            values, clock.seconds, stop = processes.settle(values, clock.seconds, interrupted())
            last = clock.progress >= 1
            measure = held and (last or (run.validate_steps and clock.step % run.validate_steps == 0))
            sheets = samples_due(run, clock.step, last, len(dataset), batch)
            if report is not None:
                if measure:
                    values |= validate(engine, held, photos)
                with checkpoint.disk_errors(folder, report.stats):
                    report.step(clock.step, clock.seconds, values, batch)
                for name in sheets:
                    with checkpoint.disk_errors(folder, sheet := folder / "samples" / name):
                        draw_samples(engine, dataset, run.seed, sheet, paired=paired)
            if measure or sheets:
                processes.wait()
            if cadence.due(clock) or last or stop:
                save()
            if stop:
                log.info("stopped after step %d; --resume goes on from here", clock.step)
                raise processes.agreed(KeyboardInterrupt(), 130)
    return clock.step


def samples_due(run: RunConfig, step: int, last: bool, length: int, batch: int) -> list[str]:
    """Names of the sample sheets to draw after this step."""
    names = []
    if run.sample_steps and (last or step % run.sample_steps == 0):
        names.append(f"step-{step:07d}.jpg")
    if run_log.epoch_due(step, length, batch, run.sample_epochs):
        names.append(f"epoch-{run_log.epochs_done(step, length, batch):05d}.jpg")
    return names


def _workers(device: str, processes: int) -> int:
    if sys.platform != "linux":
        return 0  # elsewhere a process cannot be forked safely beside the networks' threads
    return 1 if device == "cpu" else max(1, min(8, ((os.cpu_count() or 2) - 1) // processes))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, and the call that is given says so; a second Ctrl-C stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
