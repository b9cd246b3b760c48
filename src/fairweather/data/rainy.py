"""Rain over clear photos: computed streaks, or layers recorded in pairs (rain - clear)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.data.photos import Photos, Pixels
from fairweather.data.source import to_tensor, torch_generator
from fairweather.data.synthetic import Clear, to_picture
from fairweather.pairs import Pair
from fairweather.weather.rain import RainSettings, rain, streaks_of_pair


class Rained(Clear):
    """Rain over clear photos. Of the samples that take recorded streaks (`settings.recorded`), each draws one layer."""

    def __init__(
        self, paths: Sequence[Path], photos: Photos, augment: Augment, hold_back: float = 0.0,
        settings: RainSettings | None = None, streaks: Sequence[Pair] = (), *, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(paths, photos, augment, hold_back, match)
        photos.check((), ((pair.degraded, pair.clear) for pair in streaks))
        self.held = []
        self.settings = settings or RainSettings()
        self.bank = [streak_layer(*photos.pair(pair.degraded, pair.clear)) for pair in streaks]

    def degraded(self, clear: aug.Picture, item: int, box: aug.Cut, rng: np.random.Generator) -> aug.Picture:
        layer = None
        chosen = rng.random()
        if self.bank:
            layer = torch.from_numpy(self.bank[int(chosen * len(self.bank))].astype(np.float32) / 255)[None, None]
        rainy, _ = rain(to_tensor(clear)[None], torch_generator(rng), self.settings, layers=layer)
        return to_picture(rainy)


def streak_layer(rainy: Pixels, clear: Pixels) -> Pixels:
    """The streaks of a pair, H x W uint8."""
    sides = (to_tensor(images.to_float(side))[None] for side in (rainy, clear))
    return np.asarray(images.from_float(streaks_of_pair(*sides)[0, 0].numpy(), np.uint8))
