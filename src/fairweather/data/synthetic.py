"""Sources that add weather to clear photos: haze along invented, estimated or measured depth, and rain."""

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
    MapPixels,
    PhotoCache,
    PhotoPixels,
    Sample,
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
"""Suffix of the stem of a disparity map: `street_disparity.png` belongs to `street.jpg`."""
BLOCK = 20
"""Consecutive numbers in an RGB-D folder that form one scene, since neighbours show the same room."""
MARGIN = 3
"""Photos at both ends of a holdout block that are not validated on: the next block may show the same room."""
VALIDATION_SEED = 20_177
"""Seed of the haze of validation pairs."""

DepthMap = NDArray[np.uint16]
"""H x W, 0 to 65535 for 0 to 1: depth or transmission."""

RESIDE_INDOOR = HazeSettings(
    density=(0.6, 1.8), even=True, airlight=(0.7, 1.0), tint=0.0, patchy=0.0, linear=0.0, noise=0.0
)
"""t = exp(-beta d / max d), beta in [0.6, 1.8], grey airlight in [0.7, 1.0], both uniform, composed in sRGB (Li et al.,
Benchmarking Single Image Dehazing, TIP 2019)."""


class ClearPhotos:
    """Clear photos on both sides, to learn to leave them unchanged; the degraded side still gets noise and JPEG."""

    scene: ClassVar[Callable[[Path], str]] = staticmethod(scene_of_photo)
    """Key of the photos that are kept out of training together."""

    def __init__(
        self,
        paths: Sequence[Path],
        photos: PhotoCache,
        augment: Augment,
        hold_back: float = 0.0,
        match: Sequence[str] = (),
    ) -> None:
        """
        Args:
            match: patterns of file names; only photos that match one are used (all, if empty).

        Raises:
            BadFolder: no photo matches.
        """
        # split before matching, so that a scene is held out from all sources of a folder
        self.paths, holdout = (matching(some, match) for some in split_holdout(paths, type(self).scene, hold_back))
        if paths and not self.paths:
            raise BadFolder(f"{paths[0].parent}: no file name matches {', '.join(match)}: correct match, or remove it")
        photos.check([*self.paths, *holdout])
        self.holdout: list[Pair] = [Pair(path, path, path.stem) for path in holdout]
        self.photos = photos
        self.augment = augment

    @property
    def items(self) -> int:
        return len(self.paths)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        clear, box = self.cropped(self.paths[item], rng)
        degraded, clear = self.weathered(clear, self.paths[item], box, rng)
        return {"degraded": to_tensor(aug.corrupt(self.augment, degraded, rng)), "clear": to_tensor(clear)}

    def cropped(self, path: Path, rng: np.random.Generator) -> tuple[aug.Picture, aug.CropBox]:
        """A crop of a photo, S x S x 3 with its tone changed, and its box."""
        photo = self.photos.get(path)
        box = aug.draw_crop(self.augment, photo.shape[0], photo.shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        return aug.apply_tone(aug.crop(photo, box, self.augment.crop), table), box

    def weathered(
        self, clear: aug.Picture, path: Path, box: aug.CropBox, rng: np.random.Generator
    ) -> tuple[aug.Picture, aug.Picture]:
        """The degraded picture, a new array, and the clear one (at night it differs from the given one)."""
        return clear.copy(), clear


class SyntheticHaze(ClearPhotos):
    """Haze over clear photos, along true depth if there is a disparity map, else along estimated or invented depth.

    With `fog`, pairs of real fog, the transmission measured in one of them is applied to another photo. This suits
    patches of machine-made fog, which are independent of the scene; haze that follows depth fits only its own photo.
    """

    def __init__(
        self, paths: Sequence[Path], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
        settings: HazeSettings | None = None, fog: Sequence[Pair] = (), depths: Mapping[Path, Path] | None = None,
        *, validated: bool = False, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            depths: photo -> file of its estimated depth, 16 bits, 0 near to 65535 far, of any size.
            validated: each holdout photo becomes a validation pair with fixed haze.
        """
        disparities = {path.stem: path for path in paths if path.stem.endswith(DISPARITY)}
        super().__init__([path for path in paths if path.stem not in disparities], photos, augment, hold_back, match)
        self.settings = settings or HazeSettings()
        every = [*self.paths, *(pair.clear for pair in self.holdout)]
        self._true_depths = {
            path: depth_of_disparity(disparities[path.stem + DISPARITY], photos.get(path).shape[:2])
            for path in every
            if path.stem + DISPARITY in disparities
        }
        needed = {*every} - self._true_depths.keys()
        self._depth_files = {path: file for path, file in (depths or {}).items() if path in needed}
        photos.check(maps=self._depth_files.values())
        self.fog = RehazedPairs(fog, photos, augment) if fog else None
        self.holdout = [HazedPair(one.degraded, one.clear, one.name, self) for one in self.holdout] if validated else []

    def weathered(
        self, clear: aug.Picture, path: Path, box: aug.CropBox, rng: np.random.Generator
    ) -> tuple[aug.Picture, aug.Picture]:
        if self.fog is not None:
            transmission = self.fog.transmission(int(rng.integers(self.fog.items)))
            fog_box = aug.draw_crop(self.augment, transmission.shape[0], transmission.shape[1], rng)
            cropped = map_tensor(aug.crop(transmission, fog_box, self.augment.crop))
            hazy, record = rehaze(to_tensor(clear)[None], cropped, torch_generator(rng), self.settings)
        else:
            depth = self.depth(path)
            given = None if depth is None else map_tensor(aug.crop(depth, box, self.augment.crop))
            hazy, record = haze(to_tensor(clear)[None], torch_generator(rng), self.settings, given)
        return to_picture(hazy), to_picture(record["clear"])

    def depth(self, path: Path) -> DepthMap | None:
        """The known depth of a photo at its cached size; None if it has to be invented."""
        if path in self._true_depths:
            return self._true_depths[path]
        if path not in self._depth_files:
            return None
        values = self.photos.map(self._depth_files[path])
        near, far = self.depth_limits(values)
        height, width = self.photos.get(path).shape[:2]
        scaled = (values.astype(np.float32) - np.float32(near)) * np.float32(65535 / max(far - near, 1))
        scaled = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(scaled.clip(0, 65535).round(), dtype=np.uint16)

    def depth_limits(self, values: MapPixels) -> tuple[float, float]:
        """The values of a depth map that become depths 0 and 1.

        Estimated depth is known up to scale and shift, so the nearest point is at 0; `HazeSettings.near` moves it away.
        """
        near, far = np.percentile(values[::4, ::4], (1, 99))
        return float(near), float(far)


class RGBDHaze(SyntheticHaze):
    """Haze along the true depth of photos that all have a depth map; the farthest point of each photo has depth 1.

    With the default settings it is the haze of RESIDE's indoor training set, see `RESIDE_INDOOR`.
    """

    scene: ClassVar[Callable[[Path], str]] = staticmethod(lambda path: block_of_photo(path))

    def __init__(
        self, paths: Sequence[Path], depths: Mapping[Path, Path], photos: PhotoCache, augment: Augment,
        hold_back: float = 0.0, settings: HazeSettings | None = None, *, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            depths: photo -> file of its depth, 8 or 16 bits, of the same aspect, proportional to the distance.

        Raises:
            BadFolder: a photo has no depth map.
        """
        missing = [path.name for path in paths if path not in depths]
        if missing:
            named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise BadFolder(f"{paths[0].parent}: no depth map for {named}: add files of the same names to depth/")
        settings = settings or RESIDE_INDOOR
        super().__init__(paths, photos, augment, hold_back, settings, depths=depths, validated=True, match=match)
        blocks: dict[str, list[Path]] = {}
        for path in sorted(pair.clear for pair in self.holdout):
            blocks.setdefault(block_of_photo(path), []).append(path)
        inner = {path for block in blocks.values() for path in block[MARGIN:-MARGIN] or block}
        self.holdout = [pair for pair in self.holdout if pair.clear in inner]

    def depth_limits(self, values: MapPixels) -> tuple[float, float]:
        return 0.0, float(values.max())


@dataclass(frozen=True)
class HazedPair(Pair):
    """A validation pair whose degraded side is synthesized, always the same for the same photo and settings."""

    source: SyntheticHaze = field(repr=False, compare=False)

    def sides(self) -> tuple[PhotoPixels, PhotoPixels]:
        """The hazy and the clear photo, H x W x 3 uint8 each, at their cached size."""
        photo = images.to_float(self.source.photos.get(self.clear))
        depth = self.source.depth(self.clear)
        rng = item_rng(VALIDATION_SEED, int.from_bytes(sha256(self.name.encode()).digest()[:8], "little"))
        given = None if depth is None else map_tensor(depth)
        hazy, record = haze(to_tensor(photo)[None], torch_generator(rng), self.source.settings, given)
        first, second = (images.from_float(to_picture(side), np.uint8) for side in (hazy, record["clear"]))
        return np.asarray(first, dtype=np.uint8), np.asarray(second, dtype=np.uint8)


class RehazedPairs:
    """Pairs whose measured transmission, t = (I - A) / (J - A), is reused at other densities and airlights.

    A pair is measured on first use.
    """

    def __init__(
        self, pairs: Sequence[Pair], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
        settings: HazeSettings | None = None,
    ) -> None:  # fmt: skip
        photos.check(pairs=((pair.degraded, pair.clear) for pair in pairs))
        self.pairs, _ = split_holdout(pairs, scene_of_pair, hold_back)
        self.holdout: list[Pair] = []
        self.photos = photos
        self.augment = augment
        self.settings = settings or HazeSettings()
        self._measured: dict[int, DepthMap] = {}

    @property
    def items(self) -> int:
        return len(self.pairs)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        pair = self.pairs[item]
        _, photo = self.photos.pair(pair.degraded, pair.clear)
        box = aug.draw_crop(self.augment, photo.shape[0], photo.shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        clear = to_tensor(aug.apply_tone(aug.crop(photo, box, self.augment.crop), table))
        transmission = map_tensor(aug.crop(self.transmission(item), box, self.augment.crop))
        hazy, _ = rehaze(clear[None], transmission, torch_generator(rng), self.settings)
        return {"degraded": to_tensor(aug.corrupt(self.augment, to_picture(hazy), rng)), "clear": clear}

    def transmission(self, item: int) -> DepthMap:
        """The measured transmission of a pair, at the cached size of its photos."""
        # no lock: two threads that measure one pair get the same map
        if item not in self._measured:
            pair = self.pairs[item]
            self._measured[item] = measured_transmission(*self.photos.pair(pair.degraded, pair.clear))
        return self._measured[item]


class SyntheticRain(ClearPhotos):
    """Rain over clear photos: computed streaks, or for a share of samples (`settings.recorded`) those of real pairs."""

    def __init__(
        self, paths: Sequence[Path], photos: PhotoCache, augment: Augment, hold_back: float = 0.0,
        settings: RainSettings | None = None, streaks: Sequence[Pair] = (), *, match: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(paths, photos, augment, hold_back, match)
        photos.check(pairs=((pair.degraded, pair.clear) for pair in streaks))
        self.holdout = []
        self.settings = settings or RainSettings()
        self.bank = [streak_layer(*photos.pair(pair.degraded, pair.clear)) for pair in streaks]

    def weathered(
        self, clear: aug.Picture, path: Path, box: aug.CropBox, rng: np.random.Generator
    ) -> tuple[aug.Picture, aug.Picture]:
        layer = None
        chosen = rng.random()
        if self.bank:
            layer = torch.from_numpy(self.bank[int(chosen * len(self.bank))].astype(np.float32) / 255)[None, None]
        rainy, _ = rain(to_tensor(clear)[None], torch_generator(rng), self.settings, layers=layer)
        return to_picture(rainy), clear


def block_of_photo(path: Path) -> str:
    """The scene of an RGB-D photo: `BLOCK` consecutive numbers are one; a photo without a number is its own."""
    stem = path.stem.lower()
    digits = len(stem) - len(stem.rstrip("0123456789"))
    return f"{stem[:-digits]}{int(stem[-digits:]) // BLOCK} of {BLOCK}" if digits else stem


def matching(paths: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """The paths whose file name matches one of the patterns; all, if there are no patterns."""
    return [path for path in paths if not patterns or any(fnmatchcase(path.name, one) for one in patterns)]


def estimated_depths(photos: Iterable[Path], root: Path, folder: Path, *, required: bool) -> dict[Path, Path]:
    """Find the depth maps of photos: `folder`/clear/a.jpg.png for `root`/clear/a.jpg.

    Raises:
        BadFolder: the folder does not exist, or has no map for any photo and `required` is set.
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
    """The photos of `folder`/clear, and photo -> depth map of the same stem in `folder`/depth."""
    files = {path.stem: path for path in photos_in(folder / "depth")}
    paths = photos_in(folder / "clear")
    return paths, {path: files[path.stem] for path in paths if path.stem in files}


def measured_transmission(degraded: PhotoPixels, clear: PhotoPixels) -> DepthMap:
    """Measure the transmission of a pair, smoothed along the edges of its clear photo.

    Where the clear photo is as bright as the airlight (sky, white walls), t is undefined, and JPEG artefacts and noise
    would appear as speckles of haze. So pixels are weighted by their evidence, (J - A)^2: weak ones are filled in from
    strong ones at any distance (push-pull, Gortler et al., The Lumigraph, 1996), and a guided filter with the same
    weights (He, Sun & Tang, TPAMI 2013) removes the noise.
    """
    hazy, guide = (images.to_float(side) for side in (degraded, clear))
    measured, airlight = transmission_of_pair(to_tensor(hazy)[None], to_tensor(guide)[None])
    evidence = np.square(guide - airlight[0].numpy()).sum(axis=2)
    weight = evidence / (evidence + np.float32(0.01))
    filled = _push_pull(measured[0, 0].numpy(), weight)
    luma = cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY)
    radius = max(2, min(luma.shape) // 40)
    smooth = _weighted_guided_filter(luma, filled, weight + np.float32(0.01), radius, 1e-3)
    return np.asarray((np.clip(smooth, 0, 1) * 65535).round(), dtype=np.uint16)


def _push_pull(values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep values of weight 1 and fill in those of weight 0 from their surroundings, H x W each."""
    if min(values.shape) > 1:
        size = ((values.shape[1] + 1) // 2, (values.shape[0] + 1) // 2)
        total = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
        means = cv2.resize(values * weight, size, interpolation=cv2.INTER_AREA) / np.maximum(total, np.float32(1e-6))
        around = _push_pull(means, np.minimum(total * 4, np.float32(1)))
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


def depth_of_disparity(path: Path, size: tuple[int, ...]) -> DepthMap:
    """Convert a disparity map to depth, 0 near to 65535 far.

    Unknown pixels are filled as in KITTI's development kit (the farther of the nearest known pixels left and right),
    except that those above all known ones of their column are far (sky), and those below are near (the bonnet of the
    car). Depth is the inverse of disparity, clipped at the 5th percentile, beyond which stereo cameras are imprecise.

    Args:
        path: a file of disparities, 8 or 16 bits, of any scale, 0 for unknown.
        size: height and width of the result.

    Raises:
        BadImage: no disparity is known.
    """
    disparity = images.read(path).pixels[..., 0].astype(np.float32)
    known = disparity > 0
    if not known.any():
        raise BadImage(f"{path} has no disparity above 0: replace it, or remove it to use a random depth")
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
    """Replace zeros by the smaller of the nearest values left and right, empty rows by the nearest row."""
    columns = np.arange(disparity.shape[1])[None]
    empty = disparity <= 0
    left = np.maximum.accumulate(np.where(empty, -1, columns), axis=1)
    right = np.minimum.accumulate(np.where(empty, columns.size, columns)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(disparity, ((0, 0), (0, 1)), constant_values=np.inf)
    padded[padded == 0] = np.inf
    rows = np.arange(disparity.shape[0])[:, None]
    # column -1 is the padding as well: no neighbour on that side
    filled = np.minimum(padded[rows, left], padded[rows, right])
    good = np.flatnonzero(np.isfinite(filled).all(axis=1))
    nearest = good[np.abs(np.arange(len(filled))[:, None] - good[None]).argmin(axis=1)]
    return np.asarray(filled[nearest], dtype=np.float32)


def streak_layer(rainy: PhotoPixels, clear: PhotoPixels) -> PhotoPixels:
    """Measure the rain streaks of a pair, H x W uint8."""
    sides = (to_tensor(images.to_float(side))[None] for side in (rainy, clear))
    return np.asarray(images.from_float(streaks_of_pair(*sides)[0, 0].numpy(), np.uint8))


def map_tensor(values: NDArray[np.generic]) -> Tensor:
    """H x W uint16 -> 1 x 1 x H x W in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(values).astype(np.float32) / np.float32(65535))[None, None]


def to_picture(tensor: Tensor) -> aug.Picture:
    """1 x 3 x H x W -> H x W x 3."""
    return np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy())
