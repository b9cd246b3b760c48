"""What a run says while it works: a line a step in stats.jsonl, a line an epoch in epochs.jsonl and in the log,
TensorBoard, a progress bar."""

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
from fairweather.training.epochs import Epochs

log = logging.getLogger("fairweather")

Values = dict[str, float]


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The lines of a stats.jsonl or epochs.jsonl; one that was cut off while it was being written is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def truncate_stats(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines behind `step`, which tell of steps that a resumed run takes again; returns those that stay."""
    kept = [line for line in read_stats(path) if line["step"] <= step]
    _rewrite(path, kept)
    return kept


def _rewrite(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class Report:
    """Open for the length of the loop; `step` takes each step's terms, and `epochs` adds them up."""

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int | None,
        minutes: float | None,
        every: int,
        tensorboard: bool,
        epochs: Epochs,
    ) -> None:
        self.every, self.minutes, self.first, self.epochs = every, minutes, step, epochs
        self.stats = folder / "stats.jsonl"
        kept = truncate_stats(self.stats, step)
        # Told anew from the steps that stay, so that the epoch under way has its first steps too.
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

    def step(self, step: int, time: float, values: Values, photos: int) -> None:
        """Note step number `step`, finished `time` seconds after the run's start, which saw `photos` photos."""
        line = {"step": step, "time": round(time, 4), **values}
        self._file.write(json.dumps(line) + "\n")
        # A line at a time, so that a killed run has told all that it did.
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
                # At the step, not the epoch: what is dropped on resuming is dropped by its step.
                self._board.add_scalar(f"epoch/{name}", value, line["step"])
        speed = means.pop("photos_per_second")
        log.info(
            "epoch %d (step %d): %s  %.1f s, %.1f photos/s",
            *(line["epoch"], line["step"], _joined_values(means), line["seconds"], speed),
        )

    def _words(self, values: Values) -> str:
        return f"{_joined_values(values)}  {self._speed:.1f} photos/s"

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        for file in (self._file, self._epochs_file, self._board):
            # A full disk fails again here, on what the failed write left in the buffer: the first error is the one.
            with suppress(OSError) if error is not None else nullcontext():
                if file is not None:
                    file.close()


def _joined_values(values: Values) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed, so its files are not written; stats.jsonl holds the same numbers")
        return None
    # purge_step hides what a killed run had written behind its last checkpoint.
    return SummaryWriter(str(folder), purge_step=step + 1)
