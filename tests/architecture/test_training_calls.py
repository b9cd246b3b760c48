"""From `fairweather train cyclegan` to an optimizer step: how many calls deep."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch

from fairweather import cli, images
from fairweather.training import trainer
from tests.architecture.imports import SOURCE

HOPS = [
    "cli.main",
    "commands.train.train",
    "training.train",
    "training.loop.fit",
    "training.optimization.TrainingEngine.step",
    "recipes.cyclegan.CycleGAN.step",
    "training.optimization.TrainingEngine.__call__",
]


def test_a_step_is_seven_calls_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "export_model", lambda *_: None)
    for side in ("degraded", "clear"):
        (tmp_path / side).mkdir()
        images.write(tmp_path / side / "0.png", np.full((40, 40, 3), 99, np.uint8))
    stacks: list[list[str]] = []
    step = torch.optim.Adam.step

    def note(self: torch.optim.Adam, *given: object) -> object:
        found: list[str] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(SOURCE):
                module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
                found.insert(0, f"{module}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        stacks.append(found)
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", note)
    words = f"train cyclegan --degraded {tmp_path / 'degraded'} --clear {tmp_path / 'clear'} --out {tmp_path / 'run'}"
    small = "--steps 1 --crop 32 --workers 0 --threads 1 --precision fp32 --device cpu --no-tensorboard"
    networks = "--sample-steps 0 --generator resnet6 --generator.width 4 --generator.blocks 1 --recipe.width 4"
    assert cli.main([*words.split(), *small.split(), *networks.split()]) == 0
    assert len(stacks) == 2, "generators and discriminators"
    for stack in stacks:
        assert stack == HOPS
    assert len(HOPS) <= 8
