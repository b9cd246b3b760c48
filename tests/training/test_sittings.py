"""A run by the clock in several sittings: its length and learning rates count the time of training alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairweather.training import checkpoint, loop
from fairweather.training.optimization import TrainingEngine
from tests.training.toy import Toy, assert_same_state, no_export, small_run

MINUTES = 14 / 60
"""Seven steps of two photos, each of which takes a second by the clock of these tests."""


class Clock:
    """Stands still but for the photos that are drawn, and for what passes between two sittings."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.photos = 0
        self.rates: list[tuple[float, float]] = []

    def sit(self, out: Path, *, stop_after: int | None = None, **options: Any) -> Callable[[], None]:
        def on_sample(epoch: int, index: int) -> None:
            self.now += 1
            self.photos += 1
            if self.photos == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        return lambda: small_run(
            "supervised", out, data=Toy(on_sample=on_sample), steps=None, minutes=MINUTES, **options
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    no_export(monkeypatch)
    made = Clock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: made.now))
    step = TrainingEngine.step

    def watched(self: TrainingEngine, batch: Any, progress: float) -> Any:
        terms = step(self, batch, progress)
        made.rates.append((progress, self.optimizers["generator"].param_groups[0]["lr"]))
        return terms

    monkeypatch.setattr(TrainingEngine, "step", watched)
    return made


def test_three_sittings_are_one_run(clock: Clock, tmp_path: Path) -> None:
    clock.sit(tmp_path / "whole")()
    whole, clock.rates = clock.rates, []
    assert [round(progress, 6) for progress, _ in whole] == [round(step / 7, 6) for step in range(7)]
    assert len({rate for _, rate in whole}) == 7
    for stop, resume in ((4, False), (4, True)):
        clock.photos = 0
        with pytest.raises(KeyboardInterrupt):
            clock.sit(tmp_path / "part", stop_after=stop, resume=resume)()
        clock.now += 3600  # the machine did something else
    assert checkpoint.load_checkpoint(tmp_path / "part" / "checkpoints")["seconds"] == 8
    clock.sit(tmp_path / "part", resume=True)()
    assert clock.rates == whole
    ends = [checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")]
    assert_same_state(*ends)
    assert [end["seconds"] for end in ends] == [14, 14]


def test_what_was_lost_with_a_crash_is_trained_again(clock: Clock, tmp_path: Path) -> None:
    """Killed after four steps, the last checkpoint after two: the time of the lost steps does not count."""
    clock.sit(tmp_path / "whole")()
    clock.photos = 0
    with pytest.raises(KeyboardInterrupt):
        clock.sit(tmp_path / "part", stop_after=8, checkpoint_steps=2)()
    path = tmp_path / "part" / "checkpoints"
    path.joinpath("previous.pt").replace(path / "latest.pt")
    assert checkpoint.load_checkpoint(path)["seconds"] < 8
    clock.sit(tmp_path / "part", resume=True)()
    assert_same_state(*(checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")))
