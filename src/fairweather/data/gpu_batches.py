"""Batches of a mixture prepared on a GPU: photos are decoded into its memory once, then cropped, toned, degraded and
corrupted there, a whole batch at a time."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from fairweather.data import augment as aug
from fairweather.data.augment import CropBox
from fairweather.data.datasets import GIB, PhotoPairs, PhotoPixels, Sample, Source, item_rng
from fairweather.data.mixture import Mixture
from fairweather.data.synthetic import ClearPhotos, DepthMap, RehazedPairs, SyntheticHaze, SyntheticRain
from fairweather.errors import BadSettings
from fairweather.weather.haze import haze, rehaze
from fairweather.weather.rain import rain

# The example tables of the JPEG standard (ITU-T T.81, annex K.1), which nearly every encoder scales by its quality.
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
"""Rows Y, Cb, Cr of ITU-R BT.601 as in JFIF, with Cb and Cr around 0."""
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
CUBIC = -0.75
"""Keys's parameter (Cubic Convolution Interpolation for Digital Image Processing, IEEE TASSP 1981) in OpenCV."""
BATCH_STREAM = 3
"""Separates the random stream of a batch from those of its samples."""


@dataclass(frozen=True)
class DevicePhotos:
    """The photos of one source in a device's memory, H x 3 x W uint8, in the order of its items."""

    source: PhotoPairs | RehazedPairs | ClearPhotos
    clear: list[Tensor]
    degraded: list[Tensor] = field(default_factory=list)
    """Of pairs only."""
    maps: dict[int, Tensor] = field(default_factory=dict)
    """Item -> its measured transmission or known depth, H x 1 x W float16 in [0,1]."""
    banks: list[Tensor] = field(default_factory=list)
    """Recorded streaks, M x 1 x h x w float32 in [0,1], grouped by size."""
    fog: list[Tensor] = field(default_factory=list)
    """Transmissions of real fog for these photos, as in `maps`."""


@dataclass(frozen=True)
class SampleDraw:
    """The random draws of a sample that are the same as in the CPU loader."""

    source: int
    item: int
    box: CropBox
    curve: tuple[float, NDArray[np.float64]] | None
    bank: float
    """Position of the recorded streaks in the bank, in [0,1)."""
    fog: tuple[int, CropBox] | None
    """Number and crop of the fog's transmission."""
    noise: float
    quality: int | None


class GPUBatches:
    """The samples of a mixture as batches prepared on a device.

    For one (seed, epoch, index), photo, crop, flip, tone, noise strength and JPEG quality are those of
    `mixture.sample`. Depth, haze, streaks and noise have the same distributions, but different values: they come from a
    generator on the device, seeded by the batch's first sample. Crops are not rounded to 8 bits, and JPEG is computed
    (`batch_jpeg`).
    """

    def __init__(self, mixture: Mixture, device: str | torch.device, memory: int) -> None:
        """Copy every photo to the device.

        Args:
            mixture: the photos and their weather.
            device: the device on which batches are prepared.
            memory: limit for the photos on the device in bytes.

        Raises:
            BadSettings: the photos need more memory, or the mixture consists of clips.
        """
        if mixture.settings.frames is not None:
            raise BadSettings("data.on_device does not support clips (data.frames): remove one of the two")
        self.mixture, self.device = mixture, torch.device(device)
        self.memory, self.used = memory, 0
        self._copies: dict[int, tuple[PhotoPixels, Tensor]] = {}
        self.photos = [self._load(source) for source in mixture.sources]
        self._copies.clear()  # needed during loading only, since sources share photos

    def __len__(self) -> int:
        return len(self.mixture)

    @torch.no_grad()
    def batch(self, seed: int, keys: Sequence[tuple[int, int]]) -> Sample:
        """Make a batch.

        Args:
            seed: seed of the run.
            keys: N x (epoch, index).

        Returns:
            `degraded` and `clear`, N x 3 x S x S float32 in [0,1] on the device.
        """
        crop = self.mixture.settings.augment.crop
        draws = [self._draw(seed, *key) for key in keys]
        first = item_rng(seed, *keys[0], BATCH_STREAM)
        generator = Generator(self.device).manual_seed(int(first.integers(2**63 - 1)))

        photos = [self.photos[draw.source].clear[draw.item] for draw in draws]
        clear = self._toned(batch_crops(photos, [draw.box for draw in draws], crop), draws)
        degraded = clear.clone()
        for (number, kind), rows in sorted(self._groups(draws).items()):
            one, some = self.photos[number], [draws[row] for row in rows]
            if one.degraded:
                photos = [one.degraded[draw.item] for draw in some]
                degraded[rows] = self._toned(batch_crops(photos, [draw.box for draw in some], crop), some)
            else:
                degraded[rows], clear[rows] = self._weathered(one, kind, clear[rows], some, generator)
        return {"degraded": self._corrupted(degraded, draws, generator), "clear": clear}

    def _draw(self, seed: int, epoch: int, index: int) -> SampleDraw:
        """The draws of `Mixture.sample`, in its order."""
        rng = item_rng(seed, epoch, index)
        number, item = self.mixture.draw_item(rng)
        one = self.photos[number]
        augment = one.source.augment
        height, _, width = one.clear[item].shape
        box = aug.draw_crop(augment, height, width, rng)
        curve = aug.draw_tone_curve(augment, rng)
        bank, fog = float(rng.random()) if isinstance(one.source, SyntheticRain) else 0.0, None
        if one.fog:
            chosen = int(rng.integers(len(one.fog)))
            height, _, width = one.fog[chosen].shape
            fog = chosen, aug.draw_crop(augment, height, width, rng)
        if isinstance(one.source, (SyntheticHaze, RehazedPairs, SyntheticRain)):
            rng.integers(2**63 - 1)  # the seed of the loader's weather
        return SampleDraw(number, item, box, curve, bank, fog, *aug.draw_corruption(augment, rng))

    def _groups(self, draws: Sequence[SampleDraw]) -> dict[tuple[int, int], list[int]]:
        """(source, kind) -> the rows of the batch that one call can degrade; clear photos have none."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, draw in enumerate(draws):
            one, kind = self.photos[draw.source], 0
            if type(one.source) is ClearPhotos:
                continue
            if isinstance(one.source, SyntheticRain) and one.banks:
                ends = np.cumsum([len(bank) for bank in one.banks])
                kind = int(np.searchsorted(ends, draw.bank * ends[-1], side="right"))
            elif isinstance(one.source, SyntheticHaze):
                kind = int(draw.item in one.maps)
            groups[draw.source, kind].append(row)
        return groups

    def _weathered(
        self, one: DevicePhotos, kind: int, clear: Tensor, draws: Sequence[SampleDraw], generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The degraded pictures and the clear ones, which at night differ from the given ones."""
        source = one.source
        assert isinstance(source, (SyntheticHaze, RehazedPairs, SyntheticRain))
        if isinstance(source, SyntheticRain):
            layers = one.banks[kind] if one.banks else None
            return rain(clear, generator, source.settings, layers=layers)[0], clear
        if one.fog:
            windows = [(one.fog[draw.fog[0]], draw.fog[1]) for draw in draws if draw.fog is not None]
        else:
            windows = [(one.maps[draw.item], draw.box) for draw in draws if draw.item in one.maps]
        crop, maps = self.mixture.settings.augment.crop, None
        if windows:
            maps = batch_crops([plane for plane, _ in windows], [box for _, box in windows], crop, smooth=False)
        if maps is not None and (one.fog or isinstance(source, RehazedPairs)):
            hazy, record = rehaze(clear, maps, generator, source.settings)
        else:
            hazy, record = haze(clear, generator, source.settings, maps)
        return hazy, record["clear"]

    def _toned(self, pictures: Tensor, draws: Sequence[SampleDraw]) -> Tensor:
        """Pictures of 0 to 255 scaled to [0,1], with the tone changed where it is drawn."""
        pictures = (pictures / 255).clamp_(0, 1)
        curves = {row: draw.curve for row, draw in enumerate(draws) if draw.curve is not None}
        if curves:
            rows = list(curves)
            table = np.array([[power, *gains] for power, gains in curves.values()], dtype=np.float32)
            numbers = torch.from_numpy(table).to(self.device)[..., None, None]
            pictures[rows] = (pictures[rows] ** numbers[:, :1] * numbers[:, 1:]).clamp_max(1)
        return pictures

    def _corrupted(self, pictures: Tensor, draws: Sequence[SampleDraw], generator: Generator) -> Tensor:
        """Add noise, then JPEG artefacts, to the pictures for which they are drawn. Modifies its argument."""
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

    def _load(self, source: Source) -> DevicePhotos:
        photos = self.mixture.photos
        assert isinstance(source, (PhotoPairs, RehazedPairs, ClearPhotos))
        if isinstance(source, ClearPhotos):
            loaded = DevicePhotos(source, [self._photo(photos.get(path)) for path in source.paths])
            if isinstance(source, SyntheticHaze):
                loaded.fog.extend(self._transmissions(source.fog) if source.fog is not None else [])
                depths = {item: source.depth(path) for item, path in enumerate(source.paths)}
                loaded.maps.update((item, self._map(depth)) for item, depth in depths.items() if depth is not None)
            if isinstance(source, SyntheticRain):
                for size in sorted({layer.shape for layer in source.bank}):
                    layers = np.stack([layer for layer in source.bank if layer.shape == size])
                    loaded.banks.append(self._copied(layers[:, None].astype(np.float32) / 255))
            return loaded
        both = [photos.pair(pair.degraded, pair.clear) for pair in source.pairs]
        loaded = DevicePhotos(source, [self._photo(pixels) for _, pixels in both])
        if isinstance(source, PhotoPairs):
            loaded.degraded.extend(self._photo(pixels) for pixels, _ in both)
        else:
            loaded.maps.update(enumerate(self._transmissions(source)))
        return loaded

    def _transmissions(self, source: RehazedPairs) -> list[Tensor]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [self._map(one) for one in pool.map(source.transmission, range(source.items))]

    def _photo(self, pixels: PhotoPixels) -> Tensor:
        """H x W x 3 -> H x 3 x W on the device; one photo is copied once."""
        known = self._copies.get(id(pixels))
        if known is None:
            # stored with its pixels, which keeps their id from being reused
            known = self._copies[id(pixels)] = pixels, self._copied(np.array(pixels.transpose(0, 2, 1), order="C"))
        return known[1]

    def _map(self, values: DepthMap) -> Tensor:
        return self._copied((values.astype(np.float32) / 65535).astype(np.float16)[:, None])

    def _copied(self, values: NDArray[Any]) -> Tensor:
        self.used += values.nbytes
        if self.used > self.memory:
            raise BadSettings(
                f"data.on_device: the photos need more than the {self.memory / GIB:.3g} GiB of data.memory_gib on "
                f"{self.device}: raise it, lower data.short_side, or set data.on_device = false"
            )
        return torch.from_numpy(values).to(self.device)


def batch_crops(photos: Sequence[Tensor], boxes: Sequence[CropBox], crop: int, *, smooth: bool = True) -> Tensor:
    """Crop and resize N photos at once, as `augment.crop` does: by area to reduce, else cubic.

    A resize along one axis is a matrix R of weights, so the crop of a photo P is R_y P R_x^T: antialiased at any scale
    and aspect without an image pyramid. A mirrored crop has the rows of R_x in reverse.

    Args:
        photos: H x C x W each, of any size and number type.
        boxes: one a photo.
        crop: side of the result.
        smooth: False resizes maps linearly, so that they do not overshoot.

    Returns:
        N x C x crop x crop float32, at the scale of the photos, not rounded.
    """
    windows = [_window(photo, box) for photo, box in zip(photos, boxes, strict=True)]
    count, channels, device = len(windows), windows[0].shape[1], windows[0].device
    height, width = (max(window.shape[axis] for window in windows) for axis in (0, 2))
    # Smaller windows are padded by zeros without weight.
    stack = torch.zeros(count, height, channels, width, device=device)
    for row, window in zip(stack, windows, strict=True):
        row[: window.shape[0], :, : window.shape[2]] = window
    sizes = [(window.shape[0], window.shape[2]) for window in windows]
    # One small table is copied to the device: first edge, step and length of each axis.
    table = torch.tensor([_axis_numbers(size, box, crop) for size, box in zip(sizes, boxes, strict=True)]).to(device)
    areas = [min(size) >= (box.load_size or crop) for size, box in zip(sizes, boxes, strict=True)]
    rows = _weights(table[:, 0:3], areas, crop, height, smooth)
    columns = _weights(table[:, 3:6], areas, crop, width, smooth)
    columns = torch.where(table[:, 6, None, None] > 0, columns.flip(1), columns)
    across = torch.bmm(stack.view(count, height * channels, width), columns.transpose(1, 2))
    both = torch.bmm(rows, across.view(count, height, channels * crop))
    return both.view(count, crop, channels, crop).transpose(1, 2).contiguous()


def _window(photo: Tensor, box: CropBox) -> Tensor:
    if box.load_size is not None:  # a box of the whole photo resized to a square
        return photo
    return photo[box.top : box.top + box.height, :, box.left : box.left + box.width]


def _axis_numbers(size: tuple[int, int], box: CropBox, crop: int) -> list[float]:
    """First edge, step and length of both axes in pixels of the window; 1.0 if the box is mirrored."""
    numbers: list[float] = []
    for side, corner in zip(size, (box.top, box.left), strict=True):
        step = side / (box.load_size or crop)
        numbers += [corner * step if box.load_size else 0.0, step, float(side)]
    return [*numbers, float(box.mirrored)]


def _weights(axes: Tensor, areas: Sequence[bool], crop: int, side: int, smooth: bool) -> Tensor:
    """The resize matrices, N x crop x side, of axes N x 3 (first edge, step, length)."""
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
        # One tap after the other, so that taps clamped to one pixel are always added in the same order.
        place = (base + at).clamp_min(0).minimum(length - 1).long()
        between.scatter_add_(2, place, weight)
    reduced = torch.tensor(list(areas), device=axes.device).view(-1, 1, 1)
    return torch.where(reduced, by_area, between)


def _cubic(away: Tensor) -> list[tuple[int, Tensor]]:
    """The four taps of cubic convolution for points at a distance `away` (0 to 1) behind a pixel."""

    def near(x: Tensor) -> Tensor:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    return [(-1, far(1 + away)), (0, near(away)), (1, near(1 - away)), (2, far(2 - away))]


def batch_jpeg(pictures: Tensor, qualities: Tensor) -> Tensor:
    """Apply the quantization of JPEG to a batch, with halved chroma (4:2:0).

    It equals libjpeg except for rounding between its steps: scaled tables, 8-bit pixels, chroma enlarged linearly.

    Args:
        pictures: N x 3 x H x W in [0,1].
        qualities: N, 1 to 100.
    """
    height, width = pictures.shape[-2:]
    pixels = F.pad((pictures * 255).round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    # Rounded where libjpeg does: half a level changes many coefficients by a whole step of the table.
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
