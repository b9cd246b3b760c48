"""A run that kills itself, in a process of its own, for test_resume.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from fairweather.training import trainer
from tests.training.toy import SMALL, Toy, small_run


def main(recipe: str, out: str, step: str) -> None:
    batch = SMALL[recipe].get("batch", 1)
    fatal = (int(step) - 1) * batch

    def on_sample(epoch: int, index: int) -> None:
        if 5 * epoch + index == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.export_model = lambda *_: None  # type: ignore[assignment]
    small_run(recipe, Path(out), data=Toy(on_sample=on_sample), checkpoint_steps=3)
