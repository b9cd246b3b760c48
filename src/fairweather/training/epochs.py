"""Epochs: when one ends, and what its steps come to."""

from __future__ import annotations

from typing import Any


def epochs_done(step: int, length: int, batch: int) -> int:
    """How many passes over `length` samples are complete after `step` steps of `batch` samples."""
    return step * batch // length


def due(step: int, length: int, batch: int, every: int) -> bool:
    """Whether step number `step` completes the next `every` epochs; never where `every` is 0."""
    if not every:
        return False
    before, now = (epochs_done(at, length, batch) // every for at in (step - 1, step))
    return now > before


class Epochs:
    """Adds up the lines of stats.jsonl into one line an epoch.

    It knows nothing but those lines, so that a resumed run, which reads them again, ends with the same epochs.
    """

    def __init__(self, *, length: int, batch: int) -> None:
        self.length, self.batch = length, batch
        self._begun = 0.0
        self._sums: dict[str, tuple[float, int]] = {}
        self._steps = 0

    def add(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """The epoch that this step completes, or None.

        `epoch` counts from 1; `step` and `time` are its last step's; `seconds` is all that passed since the epoch
        before (looking and saving too), `photos_per_second` follows from it. Every other value is the mean over the
        steps that have it.
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
        seconds = line["time"] - self._begun
        epoch = {
            "epoch": done,
            "step": step,
            "time": line["time"],
            "seconds": round(seconds, 4),
            "photos_per_second": round(self._steps * self.batch / seconds, 2) if seconds > 0 else 0.0,
            **{name: total / count for name, (total, count) in self._sums.items()},
        }
        self._begun, self._sums, self._steps = line["time"], {}, 0
        return epoch
