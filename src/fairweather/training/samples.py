"""Sample sheets and holdout PSNR during training; neither affects the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from fairweather import images
from fairweather.data.datasets import Dataset, PhotoCache, PhotoPixels
from fairweather.data.synthetic import HazedPair
from fairweather.files import make_folder
from fairweather.generators import padded
from fairweather.pairs import Pair
from fairweather.training.checkpoint import random_states, set_random_states
from fairweather.training.dataloader import SampleSource
from fairweather.training.optimization import TrainingEngine

ROWS = 4
PAIRS_PER_SOURCE = 12


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores modes and random generators on exit."""
    modes = {module: module.training for module in network.modules()}
    states = random_states()
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        set_random_states(states)


def draw_samples(engine: TrainingEngine, samples: SampleSource, seed: int, path: Path, *, paired: bool) -> None:
    """Write a sheet with rows of input | output, and | target for pairs."""
    count = min(ROWS, len(samples))
    chosen = [samples.sample(seed, 0, at * len(samples) // count) for at in range(count)]
    degraded = torch.stack([sample["degraded"] for sample in chosen])
    columns = [degraded, _output(engine, degraded, engine.recipe.preview)]
    if paired:
        columns.append(torch.stack([sample["clear"] for sample in chosen]))
    sheet = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
    make_folder(path.parent, "--out")
    images.write(path, images.from_float(sheet.permute(1, 2, 0).numpy(), np.uint8))


def restore(engine: TrainingEngine, degraded: Tensor) -> Tensor:
    """Run the network to export on N x 3 x H x W of any size -> the same shape, float32 on the CPU, in [0,1]."""
    return _output(engine, degraded, padded)


def _output(engine: TrainingEngine, degraded: Tensor, through: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    network = engine.restorer_network()
    # In float32 for every training precision, as in the export.
    with evaluation_mode(network):
        restored = through(network, degraded.to(engine.fabric.device))
    return restored.float().clamp(0, 1).cpu()


def validation_pairs(dataset: Dataset) -> dict[str, list[Pair]]:
    """Up to about PAIRS_PER_SOURCE holdout pairs of each source, evenly spaced."""
    chosen = {}
    for name, pairs in dataset.holdout().items():
        if pairs:
            step = max(1, len(pairs) // PAIRS_PER_SOURCE)
            chosen[name] = pairs[::step][:PAIRS_PER_SOURCE]
    return chosen


def validate(engine: TrainingEngine, pairs: dict[str, list[Pair]], photos: PhotoCache) -> dict[str, float]:
    """Mean PSNR in dB of the network to export, per source (`validation/NAME`) and over sources (`validation`).

    Photos are reduced to `photos.short_side` as in training: the values compare steps and are not scores.
    """
    values = {}
    for name, chosen in pairs.items():
        values[f"validation/{name}"] = fmean(_psnr(engine, *_sides(pair, photos)) for pair in chosen)
    return values | ({"validation": fmean(values.values())} if values else {})


def _sides(pair: Pair, photos: PhotoCache) -> tuple[PhotoPixels, PhotoPixels]:
    return pair.sides() if isinstance(pair, HazedPair) else photos.pair(pair.degraded, pair.clear)


def _psnr(engine: TrainingEngine, degraded: np.ndarray, clear: np.ndarray) -> float:
    first, target = (torch.from_numpy(images.to_float(side)).permute(2, 0, 1)[None] for side in (degraded, clear))
    error = (restore(engine, first) - target).square().mean().clamp_min(1e-10)
    return float(-10 * error.log10())
