"""JPEG on a whole batch at once, on any device: what quantization does to a picture, without a file."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from fairweather.data import augment as aug
from fairweather.data.augment import Cut
from fairweather.data.datasets import PairDataset, PhotoPixels, Sample, Source, item_rng
from fairweather.data.mixture import Mixture
from fairweather.data.synthetic import ClearPhotos, Hazy, Map, Rainy, Rehazed
from fairweather.errors import BadSettings
from fairweather.weather.haze import haze, rehaze
from fairweather.weather.rain import rain

# The example tables of the standard (ITU-T T.81, annex K.1), which nearly every encoder scales by its quality.
LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Rows Y, Cb, Cr of ITU-R BT.601 as JFIF has them, Cb and Cr about 0."""
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def batch_jpeg(pictures: Tensor, qualities: Tensor) -> Tensor:
    """N x 3 x H x W in [0,1] after JPEG of N qualities (1 to 100), chroma halved both ways (4:2:0).

    What libjpeg gives but for rounding between its steps: scaled tables, 8-bit pixels, chroma enlarged linearly.
    """
    height, width = pictures.shape[-2:]
    pixels = F.pad((pictures * 255).round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    # Rounded where libjpeg does: half a level more or less moves many coefficients by a whole step of the table.
    planes = torch.einsum("ij,njhw->nihw", pixels.new_tensor(TO_YCC), pixels).round()
    luma = _quantized(planes[:, :1] - 128, qualities, LUMA) + 128
    chroma = _quantized(F.avg_pool2d(planes[:, 1:], 2).round(), qualities, CHROMA)
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear")
    planes = torch.cat([luma.clamp(0, 255), chroma.clamp(-128, 127)], 1)
    coded = torch.einsum("ij,njhw->nihw", pixels.new_tensor(TO_RGB), planes)[..., :height, :width]
    return coded.round().clamp(0, 255) / 255


def _quantized(planes: Tensor, qualities: Tensor, table: tuple[int, ...]) -> Tensor:
    """N x C x H x W, sides multiples of 8: the cosine transform of each 8 x 8 block, rounded to the table's steps."""
    # libjpeg's jpeg_quality_scaling
    percent = torch.where(qualities < 50, (5000 / qualities).floor(), 200 - 2 * qualities).view(-1, 1, 1)
    base = planes.new_tensor(table).view(1, 8, 8)
    steps = ((base * percent + 50) / 100).floor().clamp(1, 255).view(-1, 1, 1, 8, 1, 8)
    k, n = torch.arange(8.0).view(8, 1), torch.arange(8.0).view(1, 8)
    cosines = torch.cos((2 * n + 1) * k * math.pi / 16) * torch.where(k == 0, 8**-0.5, 0.5)
    cosines = cosines.to(planes)
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8)
    waves = torch.einsum("ij,nchjwk,lk->nchiwl", cosines, blocks, cosines)
    waves = (waves / steps).round() * steps
    blocks = torch.einsum("ij,nchiwl,lk->nchjwk", cosines, waves, cosines)
    return blocks.flatten(4).flatten(2, 3).round()


# The crops of a whole batch at once, on any device: `augment.cut` as two products of matrices.
#
# Whatever a resize does along one axis, it takes weighed sums of pixels. Written as a matrix R of weights, a crop of a
# photo P is R_y P R_x^T: antialiased exactly at any scale and aspect, without a pyramid of reduced photos; a mirrored
# crop has the rows of R_x in reverse.

CUBIC = -0.75
"""Keys's parameter (Cubic Convolution Interpolation for Digital Image Processing, IEEE TASSP 1981) in OpenCV."""


def batch_crops(photos: Sequence[Tensor], boxes: Sequence[Cut], crop: int, *, smooth: bool = True) -> Tensor:
    """The boxes of N photos (H x C x W each, of any size and number type) as N x C x crop x crop float32.

    As `augment.cut` has them: by area where a box is reduced, else cubic; maps (`smooth=False`) linearly, so that they
    do not overshoot. Values keep the scale of the photos, and are not rounded.
    """
    windows = [_window(photo, box) for photo, box in zip(photos, boxes, strict=True)]
    count, channels, device = len(windows), windows[0].shape[1], windows[0].device
    height, width = (max(window.shape[axis] for window in windows) for axis in (0, 2))
    # What is beyond a smaller window is zero, and has no weight.
    stack = torch.zeros(count, height, channels, width, device=device)
    for row, window in zip(stack, windows, strict=True):
        row[: window.shape[0], :, : window.shape[2]] = window
    sizes = [(window.shape[0], window.shape[2]) for window in windows]
    # One small table travels to the device: where each sample begins, how far its steps are, how long its axis is.
    table = torch.tensor([_numbers(size, box, crop) for size, box in zip(sizes, boxes, strict=True)]).to(device)
    areas = [min(size) >= (box.first or crop) for size, box in zip(sizes, boxes, strict=True)]
    rows = _weights(table[:, 0:3], areas, crop, height, smooth)
    columns = _weights(table[:, 3:6], areas, crop, width, smooth)
    columns = torch.where(table[:, 6, None, None] > 0, columns.flip(1), columns)
    across = torch.bmm(stack.view(count, height * channels, width), columns.transpose(1, 2))
    both = torch.bmm(rows, across.view(count, height, channels * crop))
    return both.view(count, crop, channels, crop).transpose(1, 2).contiguous()


def _window(photo: Tensor, box: Cut) -> Tensor:
    if box.first is not None:  # a box of the photo as it is when resized to a square
        return photo
    return photo[box.top : box.top + box.height, :, box.left : box.left + box.width]


def _numbers(size: tuple[int, int], box: Cut, crop: int) -> list[float]:
    """First edge, step and length of both axes in pixels of the window, and whether the box is mirrored."""
    numbers: list[float] = []
    for side, corner in zip(size, (box.top, box.left), strict=True):
        step = side / (box.first or crop)
        numbers += [corner * step if box.first else 0.0, step, float(side)]
    return [*numbers, float(box.mirrored)]


def _weights(axes: Tensor, areas: Sequence[bool], crop: int, side: int, smooth: bool) -> Tensor:
    """The matrices R, N x crop x side, of axes N x 3 (first edge, step, length)."""
    first, step, length = (axes[:, at, None, None] for at in range(3))
    edges = first + step * torch.arange(crop, device=axes.device).view(1, crop, 1)
    pixels = torch.arange(side, device=axes.device).view(1, 1, side)
    covered = torch.minimum(edges + step, pixels + 1) - torch.maximum(edges, pixels.to(edges))
    by_area = covered.clamp_min(0) / step
    if all(areas):
        return by_area
    middles = edges + step / 2 - 0.5
    base = middles.floor()
    away = middles - base
    between = torch.zeros_like(by_area)
    taps = _cubic(away) if smooth else [(0, 1 - away), (1, away)]
    for at, weight in taps:
        # One tap after the other: two that meet at an edge are added in the same order every time.
        place = (base + at).clamp_min(0).minimum(length - 1).long()
        between.scatter_add_(2, place, weight)
    reduced = torch.tensor(list(areas), device=axes.device).view(-1, 1, 1)
    return torch.where(reduced, by_area, between)


def _cubic(away: Tensor) -> list[tuple[int, Tensor]]:
    """The four taps of cubic convolution for points that lie `away` (0 to 1) behind a pixel."""

    def near(x: Tensor) -> Tensor:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    return [(-1, far(1 + away)), (0, near(away)), (1, near(1 - away)), (2, far(2 - away))]


# A mixture as whole batches made on a device: its photos are decoded once into the device's memory, and cut, toned,
# hazed, rained upon and spoilt there, all of a batch together.

ON_DEVICE = 3
"""Tells the stream of a batch's own draws from those of its samples."""


@dataclass(frozen=True)
class DevicePhotos:
    """The photos of one source in a device's memory, H x 3 x W uint8, in the order of its items."""

    source: PairDataset | Rehazed | ClearPhotos
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
class BatchDraw:
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


class GPUBatches:
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
        self._photos: dict[int, tuple[PhotoPixels, Tensor]] = {}
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
        first = item_rng(seed, *keys[0], ON_DEVICE)
        generator = Generator(self.device).manual_seed(int(first.integers(2**63 - 1)))

        boxes = [draw.box for draw in draws]
        photos = [self.held[draw.source].clear[draw.item] for draw in draws]
        clear = self._toned(batch_crops(photos, boxes, crop), draws)
        degraded = clear.clone()
        for (number, kind), rows in sorted(self._groups(draws).items()):
            one, some = self.held[number], [draws[row] for row in rows]
            if one.degraded:
                photos = [one.degraded[draw.item] for draw in some]
                made = self._toned(batch_crops(photos, [draw.box for draw in some], crop), some)
            else:
                made, clear[rows] = self._weather(one, kind, clear[rows], some, generator)
            degraded[rows] = made
        return {"degraded": self._spoilt(degraded, draws, generator), "clear": clear}

    def _draw(self, seed: int, epoch: int, index: int) -> BatchDraw:
        """What `Mixture.sample` draws, in its order."""
        rng = item_rng(seed, epoch, index)
        number, item = self.mixture.drawn(rng)
        one = self.held[number]
        augment = one.source.augment
        height, _, width = one.clear[item].shape
        box = aug.draw_cut(augment, height, width, rng)
        curve = aug.draw_curve(augment, rng)
        bank, fog = float(rng.random()) if isinstance(one.source, Rainy) else 0.0, None
        if one.fog:
            lent = int(rng.integers(len(one.fog)))
            height, _, width = one.fog[lent].shape
            fog = lent, aug.draw_cut(augment, height, width, rng)
        if isinstance(one.source, (Hazy, Rehazed, Rainy)):
            rng.integers(2**63 - 1)  # the loader's seed of the weather; here a batch has one of its own
        return BatchDraw(number, item, box, curve, bank, fog, *aug.draw_corruption(augment, rng))

    def _groups(self, draws: Sequence[BatchDraw]) -> dict[tuple[int, int], list[int]]:
        """The rows of each source that are not as clear as they were; within it, those that one call can make."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, draw in enumerate(draws):
            one, kind = self.held[draw.source], 0
            if type(one.source) is ClearPhotos:
                continue
            if isinstance(one.source, Rainy) and one.banks:
                ends = np.cumsum([len(bank) for bank in one.banks])
                kind = int(np.searchsorted(ends, draw.bank * ends[-1], side="right"))
            elif isinstance(one.source, Hazy):
                kind = int(draw.item in one.maps)
            groups[draw.source, kind].append(row)
        return groups

    def _weather(
        self, one: DevicePhotos, kind: int, clear: Tensor, draws: Sequence[BatchDraw], generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The degraded pictures and the clear ones, which at night differ from the given ones."""
        source = one.source
        assert isinstance(source, (Hazy, Rehazed, Rainy))
        if isinstance(source, Rainy):
            layers = one.banks[kind] if one.banks else None
            return rain(clear, generator, source.settings, layers=layers)[0], clear
        crop = self.mixture.settings.augment.crop
        if one.fog:
            lent = [draw.fog for draw in draws if draw.fog is not None]
            swaths = batch_crops([one.fog[item] for item, _ in lent], [box for _, box in lent], crop, smooth=False)
            return _both(rehaze(clear, swaths, generator, source.settings))
        planes = [one.maps[draw.item] for draw in draws] if draws[0].item in one.maps else []
        maps = batch_crops(planes, [draw.box for draw in draws], crop, smooth=False) if planes else None
        if maps is not None and isinstance(source, Rehazed):
            return _both(rehaze(clear, maps, generator, source.settings))
        return _both(haze(clear, generator, source.settings, maps))

    def _toned(self, pictures: Tensor, draws: Sequence[BatchDraw]) -> Tensor:
        """Pictures of 0 to 255 in [0,1], their tone changed where it is drawn."""
        pictures = (pictures / 255).clamp_(0, 1)
        curves = {row: draw.curve for row, draw in enumerate(draws) if draw.curve is not None}
        if curves:
            rows = list(curves)
            table = np.array([[power, *gains] for power, gains in curves.values()], dtype=np.float32)
            numbers = torch.from_numpy(table).to(self.device)[..., None, None]
            pictures[rows] = (pictures[rows] ** numbers[:, :1] * numbers[:, 1:]).clamp_max(1)
        return pictures

    def _spoilt(self, pictures: Tensor, draws: Sequence[BatchDraw], generator: Generator) -> Tensor:
        """Noise, then JPEG, of the rows that have any. Writes into its argument."""
        noisy = [row for row, draw in enumerate(draws) if draw.noise > 0]
        if noisy:
            sigma = torch.tensor([draws[row].noise for row in noisy]).to(self.device).view(-1, 1, 1, 1)
            grain = torch.randn((len(noisy), *pictures.shape[1:]), generator=generator, device=self.device)
            pictures[noisy] = (pictures[noisy] + sigma * grain).clamp_(0, 1)
        packed = {row: draw.quality for row, draw in enumerate(draws) if draw.quality is not None}
        if packed:
            qualities = torch.tensor(list(packed.values()), dtype=torch.float32).to(self.device)
            pictures[list(packed)] = batch_jpeg(pictures[list(packed)], qualities)
        return pictures

    def _hold(self, source: Source) -> DevicePhotos:
        photos = self.mixture.photos
        assert isinstance(source, (PairDataset, Rehazed, ClearPhotos))
        if isinstance(source, (PairDataset, Rehazed)):
            both = [photos.pair(pair.degraded, pair.clear) for pair in source.pairs]
            clear = [self._photo(pixels) for _, pixels in both]
            if isinstance(source, PairDataset):
                return DevicePhotos(source, clear, [self._photo(pixels) for pixels, _ in both], {}, [], [])
            return DevicePhotos(source, clear, [], dict(enumerate(self._measured(source))), [], [])
        clear = [self._photo(photos.get(path)) for path in source.paths]
        maps, banks, fog = {}, [], []
        if isinstance(source, Hazy):
            fog = self._measured(source.fog) if source.fog is not None else []
            known = {item: source.depth(path) for item, path in enumerate(source.paths)}
            maps = {item: self._map(depth) for item, depth in known.items() if depth is not None}
        if isinstance(source, Rainy):
            sizes = sorted({layer.shape for layer in source.bank})
            banks = [self._bank([layer for layer in source.bank if layer.shape == size]) for size in sizes]
        return DevicePhotos(source, clear, [], maps, banks, fog)

    def _measured(self, source: Rehazed) -> list[Tensor]:
        """The transmissions of all of its pairs."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [self._map(one) for one in pool.map(source.transmission, range(source.items))]

    def _photo(self, pixels: PhotoPixels) -> Tensor:
        """H x W x 3 -> H x 3 x W on the device; the same photo is brought once."""
        known = self._photos.get(id(pixels))
        if known is None:
            # beside its pixels, which so live on, and with them their id
            known = self._photos[id(pixels)] = pixels, self._brought(np.array(pixels.transpose(0, 2, 1), order="C"))
        return known[1]

    def _map(self, values: Map) -> Tensor:
        return self._brought((values.astype(np.float32) / 65535).astype(np.float16)[:, None])

    def _bank(self, layers: Sequence[PhotoPixels]) -> Tensor:
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
