"""Logs of a run: stats.jsonl (a line per step), epochs.jsonl, TensorBoard and the progress bar."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fairweather.files import atomic

log = logging.getLogger("fairweather")

LogValues = dict[str, float]


def epochs_done(step: int, length: int, batch: int) -> int:
    """Number of complete passes over `length` samples after `step` steps of `batch` samples."""
    return step * batch // length


def epoch_due(step: int, length: int, batch: int, every: int) -> bool:
    """Whether step number `step` completes another `every` epochs; never if `every` is 0."""
    if not every:
        return False
    before, now = (epochs_done(at, length, batch) // every for at in (step - 1, step))
    return now > before


class EpochMeter:
    """Summarizes the lines of stats.jsonl by epoch.

    It depends only on those lines, so a resumed run, which reads them again, ends with the same epochs.
    """

    def __init__(self, *, length: int, batch: int) -> None:
        self.length, self.batch = length, batch
        self._start = 0.0
        self._sums: dict[str, tuple[float, int]] = {}
        self._steps = 0

    def add(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """Add a step's line and return the line of the epoch that it completes, or None.

        `epoch` counts from 1; `step` and `time` are those of its last step; `seconds` is the time since the last epoch,
        validation and checkpoints included; every other value is the mean over the steps that have it.
        """
        step = line["step"]
        self._steps += 1
        for name, value in line.items():
            if name not in ("step", "time"):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value, count + 1)
        done = epochs_done(step, self.length, self.batch)
        if done == epochs_done(step - 1, self.length, self.batch):
            return None
        seconds = line["time"] - self._start
        epoch = {
            "epoch": done,
            "step": step,
            "time": line["time"],
            "seconds": round(seconds, 4),
            "photos_per_second": round(self._steps * self.batch / seconds, 2) if seconds > 0 else 0.0,
            **{name: total / count for name, (total, count) in self._sums.items()},
        }
        self._start, self._sums, self._steps = line["time"], {}, 0
        return epoch


def read_stats(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a stats.jsonl or epochs.jsonl, up to the first invalid one (one cut off by a kill)."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


def truncate_stats(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines after `step`, since a resumed run repeats those steps, and return the others."""
    kept = [line for line in read_stats(path) if line["step"] <= step]
    _rewrite(path, kept)
    return kept


def _rewrite(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class TrainingLog:
    """Writes the logs of a run; open during the loop."""

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int | None,
        minutes: float | None,
        every: int,
        tensorboard: bool,
        epochs: EpochMeter,
    ) -> None:
        self.every, self.minutes, self.first, self.epochs = every, minutes, step, epochs
        self.stats = folder / "stats.jsonl"
        kept = truncate_stats(self.stats, step)
        # Written again from the kept steps, so that the current epoch includes its first steps.
        _rewrite(folder / "epochs.jsonl", [line for line in map(epochs.add, kept) if line is not None])
        self._file = open(self.stats, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._epochs_file = open(folder / "epochs.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = _tensorboard(folder / "tensorboard", step) if tensorboard else None
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            by_step = [MofNCompleteColumn()] if minutes is None else [TaskProgressColumn()]
            self._bar = Progress(
                TextColumn("step {task.fields[step]}"),
                BarColumn(),
                *by_step,
                TimeRemainingColumn(),
                TextColumn("{task.fields[terms]}"),
                console=console,
            )
            total = steps if minutes is None else minutes * 60
            self._task = self._bar.add_task("", total=total, step=step, terms="")
            self._bar.start()
        self._speed = 0.0
        self._last: float | None = None

    def step(self, step: int, time: float, values: LogValues, photos: int) -> None:
        """Log step number `step` of `photos` photos, finished `time` seconds after the run's start."""
        line = {"step": step, "time": round(time, 4), **values}
        self._file.write(json.dumps(line) + "\n")
        # After each line, so that a killed run has logged every step.
        self._file.flush()
        if self._last is not None and time > self._last:
            now = photos / (time - self._last)
            self._speed = now if not self._speed else 0.95 * self._speed + 0.05 * now
        self._last = time
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.add_scalar("photos_per_second", self._speed, step)
        if self._bar is not None:
            done = step if self.minutes is None else time
            self._bar.update(self._task, completed=done, step=step, terms=self._words(values))
        elif self.every and step % self.every == 0:
            log.info("step %d, %.1f min: %s", step, time / 60, self._words(values))
        if (epoch := self.epochs.add(line)) is not None:
            self._epoch(epoch)

    def _epoch(self, line: dict[str, Any]) -> None:
        self._epochs_file.write(json.dumps(line) + "\n")
        self._epochs_file.flush()
        means = {name: value for name, value in line.items() if name not in ("epoch", "step", "time", "seconds")}
        if self._board is not None:
            for name, value in means.items():
                # By step, since a resumed run drops entries by their step.
                self._board.add_scalar(f"epoch/{name}", value, line["step"])
        speed = means.pop("photos_per_second")
        log.info(
            "epoch %d (step %d): %s  %.1f s, %.1f photos/s",
            *(line["epoch"], line["step"], _joined_values(means), line["seconds"], speed),
        )

    def _words(self, values: LogValues) -> str:
        return f"{_joined_values(values)}  {self._speed:.1f} photos/s"

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        for file in (self._file, self._epochs_file, self._board):
            # After a full disk, closing fails again on the buffered data: the first error is raised.
            with suppress(OSError) if error is not None else nullcontext():
                if file is not None:
                    file.close()


def _joined_values(values: LogValues) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard files, since tensorboard is not installed; stats.jsonl has the same numbers")
        return None
    # purge_step hides what a killed run wrote after its last checkpoint.
    return SummaryWriter(str(folder), purge_step=step + 1)
