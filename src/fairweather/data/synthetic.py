"""Pairs made from clear photos: invented or measured haze, computed or recorded rain, and photos left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.data.datasets import (
    PhotoCache,
    PhotoPixels,
    Sample,
    Values,
    item_rng,
    photos_in,
    scene_of_pair,
    scene_of_photo,
    split_holdout,
    to_tensor,
    torch_generator,
)
from fairweather.errors import BadFolder, BadImage
from fairweather.pairs import Pair
from fairweather.weather.haze import HazeSettings, haze, rehaze, transmission_of_pair
from fairweather.weather.rain import RainSettings, rain, streaks_of_pair

DISPARITY = "_disparity"
"""What the name of a disparity map adds to its photo's: `street.jpg` with `street_disparity.png`."""

BLOCK = 20
"""Photos of an RGB-D folder with consecutive numbers that are held back together, because neighbours show one room."""
MARGIN = 3
"""Photos at both ends of a block that are neither trained nor validated on: the next block may show the same room."""
VALIDATION = 20_177
"""Seeds the haze of validation pairs."""

Map = NDArray[np.uint16]
"""H x W, 0..65535 for 0..1: depth or transmission."""


class ClearPhotos:
    """Clear photos on both sides, so that a network learns to leave them alone; one side still gets noise and JPEG."""

    scene: ClassVar[Callable[[Path], str]] = staticmethod(scene_of_photo)
    """What is held back together."""

    def __init__(
        self,
        paths: Sequence[Path],
        photos: PhotoCache,
        augment: Augment,
        hold_back: float = 0.0,
        match: Sequence[str] = (),
    ) -> None:
        """match: patterns of file names; of the photos only those that match one are used, all where there is none.

        Raises BadFolder where none matches."""
        # split first, so that a scene is held back from all sources of a folder alike
        self.paths, held = (matching(some, match) for some in split_holdout(paths, type(self).scene, hold_back))
        if paths and not self.paths:
            raise BadFolder(f"{paths[0].parent}: no file name matches {', '.join(match)}: correct match, or remove it")
        photos.check([*self.paths, *held])
        self.held: list[Pair] = [Pair(path, path, path.stem) for path in held]
        self.photos = photos
        self.augment = augment

    @property
    def items(self) -> int:
        return len(self.paths)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        clear, box = self.clear(item, rng)
        degraded = to_tensor(aug.corrupt(self.augment, self.degraded(clear, item, box, rng), rng))
        return {"degraded": degraded, "clear": to_tensor(clear)}

    def clear(self, item: int, rng: np.random.Generator) -> tuple[aug.Picture, aug.Cut]:
        """The clear side, S x S x 3, and the box that it was cut from."""
        photo = self.photos.get(self.paths[item])
        box = aug.draw_cut(self.augment, photo.shape[0], photo.shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        return aug.toned(aug.cut(photo, box, self.augment.crop), table), box

    def degraded(self, clear: aug.Picture, item: int, box: aug.Cut, rng: np.random.Generator) -> aug.Picture:
        """What the weather makes of a clear picture; a new array."""
        return clear.copy()


class Hazy(ClearPhotos):
    """Haze over clear photos: along true depth where there is a disparity map, else along the estimated depth that
    `depths` names, else along invented depth.

    With `fog`, pairs of real fog, it is theirs: the transmission measured in one of them is laid over another photo.
    Fog from a machine drifts as it likes, so that its swaths fit anywhere; haze that depth makes does not.
    """

    def __init__(
        self, paths: Sequence[Path], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
        settings: HazeSettings | None = None, fog: Sequence[Pair] = (), depths: Mapping[Path, Path] | None = None,
        *, validated: bool = False, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """depths: photo -> file of its depth, 16 bits, 0 near to 65535 far, of any size.
        validated: each photo that is held back gives a validation pair, under one haze that stays the same."""
        disparities = {path.stem: path for path in paths if path.stem.endswith(DISPARITY)}
        super().__init__([path for path in paths if path.stem not in disparities], photos, augment, hold_back, match)
        self.settings = settings or HazeSettings()
        self._measured = {
            path: depth_of_disparity(disparities[path.stem + DISPARITY], photos.get(path).shape[:2])
            for path in [*self.paths, *(pair.clear for pair in self.held)]
            if path.stem + DISPARITY in disparities
        }
        needed = {*self.paths, *(pair.clear for pair in self.held)} - self._measured.keys()
        self._maps = {path: file for path, file in (depths or {}).items() if path in needed}
        photos.check((), maps=self._maps.values())
        self.fog = Rehazed(fog, photos, augment) if fog else None
        self.held = [HazedPair(pair.degraded, pair.clear, pair.name, self) for pair in self.held] if validated else []

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        photo, box = self.clear(item, rng)
        hazy, clear = self.weathered(photo, self.paths[item], box, rng)
        return {"degraded": to_tensor(aug.corrupt(self.augment, hazy, rng)), "clear": to_tensor(clear)}

    def weathered(
        self, clear: aug.Picture, path: Path, box: aug.Cut, rng: np.random.Generator
    ) -> tuple[aug.Picture, aug.Picture]:
        """A hazy picture, and the one without haze, which differs from the given one at night."""
        if self.fog is not None:
            swaths = self.fog.transmission(int(rng.integers(self.fog.items)))
            cut = aug.draw_cut(self.augment, swaths.shape[0], swaths.shape[1], rng)
            fog = map_tensor(aug.cut(swaths, cut, self.augment.crop))
            hazy, record = rehaze(to_tensor(clear)[None], fog, torch_generator(rng), self.settings)
        else:
            depth = self.depth(path)
            given = None if depth is None else map_tensor(aug.cut(depth, box, self.augment.crop))
            hazy, record = haze(to_tensor(clear)[None], torch_generator(rng), self.settings, given)
        return to_picture(hazy), to_picture(record["clear"])

    def depth(self, path: Path) -> Map | None:
        """Depth of a photo at its size in memory, H x W; None where it has none."""
        if path in self._measured:
            return self._measured[path]
        if path not in self._maps:
            return None
        values = self.photos.map(self._maps[path])
        near, far = self.ends(values)
        height, width = self.photos.get(path).shape[:2]
        scaled = (values.astype(np.float32) - np.float32(near)) * np.float32(65535 / max(far - near, 1))
        scaled = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(scaled.clip(0, 65535).round(), dtype=np.uint16)

    def ends(self, values: Values) -> tuple[float, float]:
        """The values of a depth map that become depths 0 and 1.

        Estimated depth is known up to scale and shift, so the nearest point is always at 0; `HazeSettings.near` moves
        it away again."""
        near, far = np.percentile(values[::4, ::4], (1, 99))
        return float(near), float(far)


class RGBD(Hazy):
    """Haze along the true depth of photos that have a depth map each. The farthest point of each photo has depth 1.

    With the default settings the haze is that of RESIDE's indoor training set (Li et al., TIP 2019), see
    `RESIDE_INDOOR`.
    """

    scene: ClassVar[Callable[[Path], str]] = staticmethod(lambda path: block_of_photo(path))

    def __init__(
        self, paths: Sequence[Path], depths: Mapping[Path, Path], photos: PhotoCache, augment: Augment,
        hold_back: float = 0.0, settings: HazeSettings | None = None, *, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """depths: photo -> file of its depth, 8 or 16 bits, of the same aspect, proportional to the distance.

        Raises BadFolder where a photo has none."""
        missing = [path.name for path in paths if path not in depths]
        if missing:
            named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise BadFolder(f"{paths[0].parent}: no depth map for {named}: add files of the same names to depth/")
        settings = settings or RESIDE_INDOOR
        super().__init__(paths, photos, augment, hold_back, settings, depths=depths, validated=True, match=match)
        inner = {path for block in blocks(pair.clear for pair in self.held) for path in block[MARGIN:-MARGIN] or block}
        self.held = [pair for pair in self.held if pair.clear in inner]

    def ends(self, values: Values) -> tuple[float, float]:
        return 0.0, float(values.max())


RESIDE_INDOOR = HazeSettings(
    density=(0.6, 1.8), even=True, airlight=(0.7, 1.0), tint=0.0, patchy=0.0, linear=0.0, noise=0.0
)
"""t = exp(-beta d / max d), beta in [0.6, 1.8], grey airlight in [0.7, 1.0], both evenly drawn, in stored values
(Li et al., Benchmarking Single Image Dehazing, TIP 2019)."""


@dataclass(frozen=True)
class HazedPair(Pair):
    """A validation pair whose degraded side is synthesized: the same for the same photo and settings."""

    source: Hazy = field(repr=False, compare=False)

    def sides(self) -> tuple[PhotoPixels, PhotoPixels]:
        """The hazy and the clear photo, H x W x 3 each, as large as its source keeps photos."""
        photo = images.to_float(self.source.photos.get(self.clear))
        depth = self.source.depth(self.clear)
        rng = item_rng(VALIDATION, int.from_bytes(sha256(self.name.encode()).digest()[:8], "little"))
        given = None if depth is None else map_tensor(depth)
        hazy, record = haze(to_tensor(photo)[None], torch_generator(rng), self.source.settings, given)
        first, second = (images.from_float(to_picture(side), np.uint8) for side in (hazy, record["clear"]))
        return np.asarray(first, dtype=np.uint8), np.asarray(second, dtype=np.uint8)


def block_of_photo(path: Path) -> str:
    """Photos with consecutive numbers are one scene, `BLOCK` of them; a photo without a number is its own."""
    stem = path.stem.lower()
    digits = len(stem) - len(stem.rstrip("0123456789"))
    return f"{stem[:-digits]}{int(stem[-digits:]) // BLOCK} of {BLOCK}" if digits else stem


def blocks(paths: Iterable[Path]) -> list[list[Path]]:
    """Photos by their block, each in the order of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        found.setdefault(block_of_photo(path), []).append(path)
    return list(found.values())


def matching(paths: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """The paths whose file name matches one of the patterns; all where there is none."""
    return [path for path in paths if not patterns or any(fnmatchcase(path.name, one) for one in patterns)]


def depths_of(photos: Iterable[Path], root: Path, folder: Path, *, required: bool) -> dict[Path, Path]:
    """Photo -> its depth map: for `root`/clear/a.jpg it is `folder`/clear/a.jpg.png. Photos without one are left out.

    Raises BadFolder where the folder does not exist, or holds a map for none of the photos and `required` is set.
    """
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder (depths): create the depth maps there, or remove depths")
    files = {path: folder / f"{path.relative_to(root)}.png" for path in photos}
    found = {path: file for path, file in files.items() if file.is_file()}
    if required and not found:
        example = next(iter(files.values()), folder)
        raise BadFolder(f"{folder} has no depth map for any photo (such as {example}): create them, or remove depths")
    return found


def rgbd_in(folder: Path) -> tuple[list[Path], dict[Path, Path]]:
    """The photos of `folder`/clear, and photo -> file of the same stem in `folder`/depth. BadFolder without any."""
    files = {path.stem: path for path in photos_in(folder / "depth")}
    paths = photos_in(folder / "clear")
    return paths, {path: files[path.stem] for path in paths if path.stem in files}


class Rehazed:
    """Pairs whose own transmission is measured, t = (I - A) / (J - A), and used again at another density, under another
    airlight: endless haze over true depth. A pair is measured when it is first asked for."""

    def __init__(
        self, pairs: Sequence[Pair], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
        settings: HazeSettings | None = None,
    ) -> None:  # fmt: skip
        photos.check((), ((pair.degraded, pair.clear) for pair in pairs))
        self.pairs, _ = split_holdout(pairs, scene_of_pair, hold_back)
        self.held: list[Pair] = []
        self.photos = photos
        self.augment = augment
        self.settings = settings or HazeSettings()
        self._measured: dict[int, Map] = {}

    @property
    def items(self) -> int:
        return len(self.pairs)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        pair = self.pairs[item]
        _, photo = self.photos.pair(pair.degraded, pair.clear)
        box = aug.draw_cut(self.augment, photo.shape[0], photo.shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        clear = to_tensor(aug.toned(aug.cut(photo, box, self.augment.crop), table))
        transmission = map_tensor(aug.cut(self.transmission(item), box, self.augment.crop))
        hazy, _ = rehaze(clear[None], transmission, torch_generator(rng), self.settings)
        return {"degraded": to_tensor(aug.corrupt(self.augment, to_picture(hazy), rng)), "clear": clear}

    def transmission(self, item: int) -> Map:
        """The measured transmission of one pair, as large as its photos are kept."""
        # no lock: two threads that measure the same pair come to the same map
        known = self._measured.get(item)
        if known is None:
            pair = self.pairs[item]
            known = self._measured[item] = measured_transmission(*self.photos.pair(pair.degraded, pair.clear))
        return known


def measured_transmission(degraded: PhotoPixels, clear: PhotoPixels) -> Map:
    """The transmission of a pair, made smooth along the edges of its clear photo.

    Where the clear photo is as bright as the airlight (sky, white walls) a pair says nothing of t; its JPEG or noise
    would be read as speckles of haze. So each pixel weighs as much as its evidence, (J - A)^2: weak ones take their t
    from the strong ones around them, at whatever distance those are (push-pull, Gortler et al., The Lumigraph, 1996),
    and a guided filter with the same weights (He, Sun & Tang, TPAMI 2013) takes the noise out of the rest.
    """
    hazy, guide = (images.to_float(side) for side in (degraded, clear))
    measured, airlight = transmission_of_pair(to_tensor(hazy)[None], to_tensor(guide)[None])
    evidence = np.square(guide - airlight[0].numpy()).sum(axis=2)
    weight = evidence / (evidence + np.float32(0.01))
    filled = _pushed_and_pulled(measured[0, 0].numpy(), weight)
    luma = cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY)
    radius = max(2, min(luma.shape) // 40)
    smooth = _weighted_guided_filter(luma, filled, weight + np.float32(0.01), radius, 1e-3)
    return np.asarray((np.clip(smooth, 0, 1) * 65535).round(), dtype=np.uint16)


def _pushed_and_pulled(values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values where their weight is 1, those of the surroundings where it is 0, H x W each."""
    if min(values.shape) > 1:
        size = ((values.shape[1] + 1) // 2, (values.shape[0] + 1) // 2)
        total = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
        means = cv2.resize(values * weight, size, interpolation=cv2.INTER_AREA) / np.maximum(total, np.float32(1e-6))
        around = _pushed_and_pulled(means, np.minimum(total * 4, np.float32(1)))
        around = cv2.resize(around, values.shape[::-1], interpolation=cv2.INTER_LINEAR)
        values = values * weight + around * (1 - weight)
    return values


def _weighted_guided_filter(
    guide: NDArray[np.float32], source: NDArray[np.float32], weight: NDArray[np.float32], radius: int, eps: float
) -> NDArray[np.float32]:
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.boxFilter(x, -1, window, borderType=cv2.BORDER_REFLECT), dtype=np.float32)

    total = mean(weight)
    mean_guide, mean_source = mean(weight * guide) / total, mean(weight * source) / total
    slope = (mean(weight * guide * source) / total - mean_guide * mean_source) / (
        mean(weight * guide * guide) / total - mean_guide * mean_guide + np.float32(eps)
    )
    offset = mean_source - slope * mean_guide
    return (mean(weight * slope) * guide + mean(weight * offset)) / total


def depth_of_disparity(path: Path, size: tuple[int, ...]) -> Map:
    """Depth, 0 near to 65535 far, from a file of disparities (8 or 16 bit, any scale, 0 unknown), at its photo's size.

    Unknown pixels are filled as in KITTI's development kit (the farther of the nearest known pixels left and right) but
    those above all known ones of their column are sky, and far, and those below are near (a car's own bonnet). Depth is
    the inverse of disparity, cut at the 5th percentile: stereo cameras do not tell apart what is beyond.
    """
    read = images.read(path).pixels
    disparity = read[..., 0].astype(np.float32)
    known = disparity > 0
    if not known.any():
        raise BadImage(f"{path} holds no disparity above 0; replace it, or take it away to let depth be invented")
    far, near = (float(percentile) for percentile in np.percentile(disparity[known], (5, 95)))
    rows = np.arange(len(known))[:, None]
    seen = known.any(axis=0)
    first, last = known.argmax(axis=0), len(known) - 1 - known[::-1].argmax(axis=0)
    disparity[(rows < first) & seen] = far
    disparity[(rows > last) & seen] = near
    disparity = _filled(disparity)
    depth = far / np.maximum(disparity, far)
    depth = cv2.resize(depth.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray((np.clip(depth, 0, 1) * 65535).round(), dtype=np.uint16)


def _filled(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zeros replaced by the smaller of the nearest values left and right; whole empty rows by the nearest row."""
    columns = np.arange(disparity.shape[1])[None]
    empty = disparity <= 0
    left = np.maximum.accumulate(np.where(empty, -1, columns), axis=1)
    right = np.minimum.accumulate(np.where(empty, columns.size, columns)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(disparity, ((0, 0), (0, 1)), constant_values=np.inf)
    padded[padded == 0] = np.inf
    rows = np.arange(disparity.shape[0])[:, None]
    # column -1 is the padding, too: no neighbour on that side
    filled = np.minimum(padded[rows, left], padded[rows, right])
    good = np.flatnonzero(np.isfinite(filled).all(axis=1))
    nearest = good[np.abs(np.arange(len(filled))[:, None] - good[None]).argmin(axis=1)]
    return np.asarray(filled[nearest], dtype=np.float32)


def map_tensor(depth: NDArray[np.generic]) -> Tensor:
    """S x S uint16 -> 1 x 1 x S x S in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(depth).astype(np.float32) / np.float32(65535))[None, None]


def to_picture(tensor: Tensor) -> aug.Picture:
    """1 x 3 x S x S -> S x S x 3."""
    return np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy())


# Rain over clear photos: computed streaks, or layers recorded in pairs (rain - clear).


class Rainy(ClearPhotos):
    """Rain over clear photos. Of the samples that take recorded streaks (`settings.recorded`), each draws one layer."""

    def __init__(
        self, paths: Sequence[Path], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
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


def streak_layer(rainy: PhotoPixels, clear: PhotoPixels) -> PhotoPixels:
    """The streaks of a pair, H x W uint8."""
    sides = (to_tensor(images.to_float(side))[None] for side in (rainy, clear))
    return np.asarray(images.from_float(streaks_of_pair(*sides)[0, 0].numpy(), np.uint8))
