"""A run folder, as `train` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairweather.inference import Restorer


@dataclass(frozen=True)
class Run:
    """A training run on disk."""

    folder: Path
    """run.json, stats.jsonl, epochs.jsonl, samples/, state/ and, once the run has ended, model/."""

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folder / "model"

    def settings(self) -> dict[str, Any]:
        """run.json: every setting, versions, seed, commit."""
        from fairweather.training.config import read_record

        return read_record(self.folder)

    def stats(self) -> list[dict[str, Any]]:
        """stats.jsonl: one dict a step, with `step`, `time` (seconds since the start) and every loss term."""
        from fairweather.training.run_log import read_stats

        return read_stats(self.folder / "stats.jsonl")

    def epochs(self) -> list[dict[str, Any]]:
        """epochs.jsonl: one dict an epoch, with `epoch`, `step`, `time`, `seconds`, `photos_per_second` and the mean
        of every loss term."""
        from fairweather.training.run_log import read_stats

        return read_stats(self.folder / "epochs.jsonl")

    def restorer(self, **options: Any) -> Restorer:
        """A Restorer of the model; options as for `fairweather.load`."""
        from fairweather.inference import load

        return load(self.model, **options)
