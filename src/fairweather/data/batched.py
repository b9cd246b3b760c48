"""A mixture as whole batches made on a device: its photos are decoded once into the device's memory, and cut, toned,
hazed, rained upon and spoilt there, all of a batch together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fairweather.data import augment as aug
from fairweather.data.folders import Pairs
from fairweather.data.jpeg import jpeg
from fairweather.data.mixture import Mixture
from fairweather.data.photos import Pixels
from fairweather.data.rainy import Rained
from fairweather.data.resampling import cuts
from fairweather.data.source import Sample, Source, stream
from fairweather.data.synthetic import Clear, Hazed, Map, Rehazed
from fairweather.errors import BadSettings
from fairweather.weather.haze import haze, rehaze
from fairweather.weather.rain import rain

ON_DEVICE = 3
"""Tells the stream of a batch's own draws from those of its samples."""


@dataclass(frozen=True)
class Held:
    """The photos of one source in a device's memory, H x 3 x W uint8, in the order of its items."""

    source: Pairs | Rehazed | Clear
    clear: list[Tensor]
    degraded: list[Tensor]
    """Of pairs; else empty."""
    maps: dict[int, Tensor]
    """Measured transmission or true depth of some items, H x 1 x W float16 in [0,1]."""
    banks: list[Tensor]
    """Recorded streaks, M x 1 x h x w float32 in [0,1], those of one size together."""
    fog: list[Tensor]
    """Transmissions of real fog that are laid over these photos, as `maps` has them."""


@dataclass(frozen=True)
class Draw:
    """All that the loader's own random stream decides of a sample."""

    source: int
    item: int
    box: aug.Cut
    curve: tuple[float, NDArray[np.float64]] | None
    bank: float
    """Which recorded streaks, as a share of all of them."""
    fog: tuple[int, aug.Cut] | None
    """Whose fog, and which part of it."""
    noise: float
    quality: int | None


class Batched:
    """The samples of a `Mixture`, a batch at a time, on `device`.

    A sample is of the photo, crop, mirroring and tone, and of the strength of noise and quality of JPEG, that
    `mixture.sample` draws for the same (seed, epoch, index). Depth, haze, streaks and grain come from a generator on
    the device that (seed, epoch and index of the batch's first sample) start, so they are others than the loader's, of
    the same settings. Crops are not rounded to 8 bits before their tone is changed, and JPEG is computed rather than
    written (see `data/jpeg.py`); there is no further difference.
    """

    def __init__(self, mixture: Mixture, device: str | torch.device, memory: int) -> None:
        """Brings every photo to the device. Raises BadSettings where they need more than `memory` bytes there."""
        if mixture.settings.frames is not None:
            raise BadSettings("clips are made on the CPU, sample by sample: leave data.on_device out")
        self.mixture, self.device = mixture, torch.device(device)
        self.memory, self.used = memory, 0
        self._photos: dict[int, tuple[Pixels, Tensor]] = {}
        self.held = [self._hold(source) for source in mixture.sources]
        # Only while they were brought did pixels have to be known again: sources share photos.
        self._photos.clear()

    def __len__(self) -> int:
        return len(self.mixture)

    @torch.no_grad()
    def batch(self, seed: int, keys: Sequence[tuple[int, int]]) -> Sample:
        """The samples of N (epoch, index): `degraded` and `clear`, N x 3 x S x S float32 in [0,1] on the device."""
        crop = self.mixture.settings.augment.crop
        draws = [self._draw(seed, *key) for key in keys]
        first = stream(seed, *keys[0], ON_DEVICE)
        generator = Generator(self.device).manual_seed(int(first.integers(2**63 - 1)))

        boxes = [draw.box for draw in draws]
        photos = [self.held[draw.source].clear[draw.item] for draw in draws]
        clear = self._toned(cuts(photos, boxes, crop), draws)
        degraded = clear.clone()
        for (number, kind), rows in sorted(self._groups(draws).items()):
            one, some = self.held[number], [draws[row] for row in rows]
            if one.degraded:
                photos = [one.degraded[draw.item] for draw in some]
                made = self._toned(cuts(photos, [draw.box for draw in some], crop), some)
            else:
                made, clear[rows] = self._weather(one, kind, clear[rows], some, generator)
            degraded[rows] = made
        return {"degraded": self._spoilt(degraded, draws, generator), "clear": clear}

    def _draw(self, seed: int, epoch: int, index: int) -> Draw:
        """What `Mixture.sample` draws, in its order."""
        rng = stream(seed, epoch, index)
        number, item = self.mixture.drawn(rng)
        one = self.held[number]
        augment = one.source.augment
        height, _, width = one.clear[item].shape
        box = aug.draw_cut(augment, height, width, rng)
        curve = aug.draw_curve(augment, rng)
        bank, fog = float(rng.random()) if isinstance(one.source, Rained) else 0.0, None
        if one.fog:
            lent = int(rng.integers(len(one.fog)))
            height, _, width = one.fog[lent].shape
            fog = lent, aug.draw_cut(augment, height, width, rng)
        if isinstance(one.source, (Hazed, Rehazed, Rained)):
            rng.integers(2**63 - 1)  # the loader's seed of the weather; here a batch has one of its own
        return Draw(number, item, box, curve, bank, fog, *aug.draw_spoil(augment, rng))

    def _groups(self, draws: Sequence[Draw]) -> dict[tuple[int, int], list[int]]:
        """The rows of each source that are not as clear as they were; within it, those that one call can make."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, draw in enumerate(draws):
            one, kind = self.held[draw.source], 0
            if type(one.source) is Clear:
                continue
            if isinstance(one.source, Rained) and one.banks:
                ends = np.cumsum([len(bank) for bank in one.banks])
                kind = int(np.searchsorted(ends, draw.bank * ends[-1], side="right"))
            elif isinstance(one.source, Hazed):
                kind = int(draw.item in one.maps)
            groups[draw.source, kind].append(row)
        return groups

    def _weather(
        self, one: Held, kind: int, clear: Tensor, draws: Sequence[Draw], generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The degraded pictures and the clear ones, which at night differ from the given ones."""
        source = one.source
        assert isinstance(source, (Hazed, Rehazed, Rained))
        if isinstance(source, Rained):
            layers = one.banks[kind] if one.banks else None
            return rain(clear, generator, source.settings, layers=layers)[0], clear
        crop = self.mixture.settings.augment.crop
        if one.fog:
            lent = [draw.fog for draw in draws if draw.fog is not None]
            swaths = cuts([one.fog[item] for item, _ in lent], [box for _, box in lent], crop, smooth=False)
            return _both(rehaze(clear, swaths, generator, source.settings))
        planes = [one.maps[draw.item] for draw in draws] if draws[0].item in one.maps else []
        maps = cuts(planes, [draw.box for draw in draws], crop, smooth=False) if planes else None
        if maps is not None and isinstance(source, Rehazed):
            return _both(rehaze(clear, maps, generator, source.settings))
        return _both(haze(clear, generator, source.settings, maps))

    def _toned(self, pictures: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Pictures of 0 to 255 in [0,1], their tone changed where it is drawn."""
        pictures = (pictures / 255).clamp_(0, 1)
        curves = {row: draw.curve for row, draw in enumerate(draws) if draw.curve is not None}
        if curves:
            rows = list(curves)
            table = np.array([[power, *gains] for power, gains in curves.values()], dtype=np.float32)
            numbers = torch.from_numpy(table).to(self.device)[..., None, None]
            pictures[rows] = (pictures[rows] ** numbers[:, :1] * numbers[:, 1:]).clamp_max(1)
        return pictures

    def _spoilt(self, pictures: Tensor, draws: Sequence[Draw], generator: Generator) -> Tensor:
        """Noise, then JPEG, of the rows that have any. Writes into its argument."""
        noisy = [row for row, draw in enumerate(draws) if draw.noise > 0]
        if noisy:
            sigma = torch.tensor([draws[row].noise for row in noisy]).to(self.device).view(-1, 1, 1, 1)
            grain = torch.randn((len(noisy), *pictures.shape[1:]), generator=generator, device=self.device)
            pictures[noisy] = (pictures[noisy] + sigma * grain).clamp_(0, 1)
        packed = {row: draw.quality for row, draw in enumerate(draws) if draw.quality is not None}
        if packed:
            qualities = torch.tensor(list(packed.values()), dtype=torch.float32).to(self.device)
            pictures[list(packed)] = jpeg(pictures[list(packed)], qualities)
        return pictures

    def _hold(self, source: Source) -> Held:
        photos = self.mixture.photos
        assert isinstance(source, (Pairs, Rehazed, Clear))
        if isinstance(source, (Pairs, Rehazed)):
            both = [photos.pair(pair.degraded, pair.clear) for pair in source.pairs]
            clear = [self._photo(pixels) for _, pixels in both]
            if isinstance(source, Pairs):
                return Held(source, clear, [self._photo(pixels) for pixels, _ in both], {}, [], [])
            return Held(source, clear, [], dict(enumerate(self._measured(source))), [], [])
        clear = [self._photo(photos.get(path)) for path in source.paths]
        maps, banks, fog = {}, [], []
        if isinstance(source, Hazed):
            fog = self._measured(source.fog) if source.fog is not None else []
            known = {item: source.depth(path) for item, path in enumerate(source.paths)}
            maps = {item: self._map(depth) for item, depth in known.items() if depth is not None}
        if isinstance(source, Rained):
            sizes = sorted({layer.shape for layer in source.bank})
            banks = [self._bank([layer for layer in source.bank if layer.shape == size]) for size in sizes]
        return Held(source, clear, [], maps, banks, fog)

    def _measured(self, source: Rehazed) -> list[Tensor]:
        """The transmissions of all of its pairs."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [self._map(one) for one in pool.map(source.transmission, range(source.items))]

    def _photo(self, pixels: Pixels) -> Tensor:
        """H x W x 3 -> H x 3 x W on the device; the same photo is brought once."""
        known = self._photos.get(id(pixels))
        if known is None:
            # beside its pixels, which so live on, and with them their id
            known = self._photos[id(pixels)] = pixels, self._brought(np.array(pixels.transpose(0, 2, 1), order="C"))
        return known[1]

    def _map(self, values: Map) -> Tensor:
        return self._brought((values.astype(np.float32) / 65535).astype(np.float16)[:, None])

    def _bank(self, layers: Sequence[Pixels]) -> Tensor:
        return self._brought(np.stack(layers)[:, None].astype(np.float32) / 255)

    def _brought(self, values: NDArray[Any]) -> Tensor:
        self.used += values.nbytes
        if self.used > self.memory:
            raise BadSettings(
                f"data.on_device: the photos need more than the {self.memory / 2**30:.3g} GiB of data.memory_gib on "
                f"{self.device}; raise that, lower data.short_side, or set data.on_device = false"
            )
        return torch.from_numpy(values).to(self.device)


def _both(made: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return made[0], made[1]["clear"]
