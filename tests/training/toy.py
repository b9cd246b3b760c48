"""A made-up dataset that costs nothing, and the short runs that the tests of training are about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fairweather
from fairweather.pairs import Pair
from fairweather.training import Run, trainer

SMALL: dict[str, dict[str, Any]] = {
    "supervised": {
        "generator": "unet",
        "generator_arguments": {"levels": 2, "width": 4},
        "batch": 2,
        "settings": {"ema": 0.9, "ssim": 0.1},
    },
    "pix2pix": {
        "generator": "unet",
        "generator_arguments": {"levels": 3, "width": 4},
        "batch": 2,
        "settings": {"width": 4},
    },
    "cyclegan": {
        "generator": "resnet6",
        "generator_arguments": {"width": 4, "blocks": 1},
        "settings": {"width": 4, "pool": 2},
    },
    "claritygan": {
        "generator": "resnet6",
        "generator_arguments": {"width": 4, "blocks": 1},
        "settings": {"width": 4, "pool": 2, "layers": ("relu1_2",)},
    },
    "derain": {
        "generator": "unet",
        "generator_arguments": {"levels": 3, "width": 4},
        "settings": {"width": 4, "pool": 2},
    },
    "hazeheal": {
        "generator": "mbconv_unet",
        "generator_arguments": {"levels": 2, "width": 4},
        "batch": 2,
        "settings": {"width": 4, "layers": ("relu1_2",)},
    },
}
"""The smallest run of each recipe that still has everything in it (dropout, batch statistics, a full pool, EMA)."""


class Toy:
    """Five smooth pictures an epoch, hazed; every draw from (seed, epoch, index)."""

    def __init__(self, crop: int = 32, length: int = 5, on_sample: Callable[[int, int], None] | None = None) -> None:
        self.crop, self.length, self.on_sample = crop, length, on_sample

    def __len__(self) -> int:
        return self.length

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        if self.on_sample is not None:
            self.on_sample(epoch, index)
        generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * epoch + index)
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        clear = torch.nn.functional.interpolate(coarse, (self.crop, self.crop), mode="bilinear")[0]
        t = 0.4 + 0.5 * torch.rand((), generator=generator)
        return {"degraded": clear * t + 0.8 * (1 - t), "clear": clear}

    def holdout(self) -> dict[str, list[Pair]]:
        return {}


def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the export out: it has tests of its own, and takes seconds."""
    monkeypatch.setattr(trainer, "export_model", lambda *_: None)


def small_run(recipe: str, out: Path, **options: Any) -> Run:
    """A run of a few steps on one thread in fp32."""
    quiet = {"tensorboard": False, "sample_steps": 0, "log_steps": 0, "workers": 0}
    fixed = {"crop": 32, "threads": 1, "precision": "fp32", "device": "cpu"}
    given = {"data": Toy(), "steps": 8, **quiet, **fixed, **SMALL[recipe], "out": out, **options}
    return fairweather.train(recipe, **given)


def leaves(tree: Any, at: str = "") -> dict[str, Any]:
    """A nested state as dotted name -> leaf."""
    if isinstance(tree, dict):
        return {name: leaf for key, part in tree.items() for name, leaf in leaves(part, f"{at}.{key}").items()}
    if isinstance(tree, (list, tuple)):
        return {name: leaf for key, part in enumerate(tree) for name, leaf in leaves(part, f"{at}.{key}").items()}
    return {at: tree}


def assert_same_state(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Equal bit for bit, the clock aside."""
    a, b = leaves(first), leaves(second)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if name == ".seconds":
            continue
        same = torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name]
        assert same, f"{name} differs"
