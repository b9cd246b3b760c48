"""Datasets: a pure function of (seed, epoch, index), over pairs or over two unpaired folders, with cached photos."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.pairs import Pair, find_sets, pictures

Sample = dict[str, Tensor]
"""`degraded` and `clear`, each 3 x S x S float32 in [0,1]; a clip has `moves` as well (see `data.video_clips`)."""
PhotoPixels = NDArray[np.uint8]
"""H x W x 3."""
MapPixels = NDArray[np.uint8] | NDArray[np.uint16]
"""H x W, a depth map with the bit depth of its file."""
Size = tuple[int, int]
T = TypeVar("T")
V = TypeVar("V", PhotoPixels, MapPixels)

RESIDE_BORDER = 10
"""RESIDE's clear indoor photos have a border of 10 px that its hazy ones lack (640 x 480 and 620 x 460)."""
GIB = 2**30


class Dataset(Protocol):
    """A map-style dataset whose random draws depend only on (seed, epoch, index), in any thread and order."""

    def __len__(self) -> int:
        """Samples per epoch."""
        ...

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        """Return sample `index` (0 <= index < len) of an epoch; the same arguments give the same bits."""
        ...

    def holdout(self) -> dict[str, list[Pair]]:
        """Return the pairs of the scenes kept out of training, by the name of their source."""
        ...


class Source(Protocol):
    """A list of photos or pairs, and how a training sample is made from one of them."""

    @property
    def items(self) -> int:
        """Number of photos or pairs."""
        ...

    @property
    def holdout(self) -> list[Pair]:
        """The pairs kept out of training."""
        ...

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        """Return a training sample of one item; it depends only on `item` and `rng`."""
        ...


def paired_dataset(
    folder: str | Path, *, augment: Augment | None = None, hold_back: float = 0.0, memory: int = 4 * GIB
) -> SourceDataset:
    """Return the dataset of all pairs in a folder.

    Args:
        folder: one or several sets of pairs, under any names that `fairweather.pairs` knows.
        augment: crops and augmentation.
        hold_back: share of whole scenes kept out of training and returned by `holdout()`.
        memory: limit for cached photos in bytes.

    Raises:
        BadFolder, BadImage: photos are unmatched or broken; every photo is decoded once to find out.
    """
    augment = augment or Augment()
    photos = PhotoCache(cached_short_side(augment), memory)
    return SourceDataset(PhotoPairs(all_pairs(folder), photos, augment, hold_back), Path(folder).resolve().name)


def unpaired_dataset(
    degraded: str | Path, clear: str | Path, *, augment: Augment | None = None, memory: int = 4 * GIB
) -> UnpairedDataset:
    """Return the dataset of two folders of unrelated photos; see `paired_dataset` for the other arguments.

    Raises:
        BadFolder, BadImage: a folder has no photos, or some are broken.
    """
    augment = augment or Augment()
    photos = PhotoCache(cached_short_side(augment), memory)
    return UnpairedDataset(photos_in(degraded), photos_in(clear), photos, augment)


class SourceDataset:
    """A dataset of one source: each epoch visits every item once, in a new order."""

    def __init__(self, source: Source, name: str) -> None:
        self.source = source
        self.name = name

    def __len__(self) -> int:
        return self.source.items

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        item = int(epoch_order(seed, epoch, 0, len(self))[index])
        return self.source.make(item, item_rng(seed, epoch, index))

    def holdout(self) -> dict[str, list[Pair]]:
        return {self.name: self.source.holdout} if self.source.holdout else {}


class UnpairedDataset:
    """Two folders of unrelated photos.

    Each side has its own order, crops and tone, drawn independently of the other. An epoch visits every photo of the
    longer side once, and those of the shorter side as evenly as possible.
    """

    def __init__(self, degraded: Sequence[Path], clear: Sequence[Path], photos: PhotoCache, augment: Augment) -> None:
        photos.check([*degraded, *clear])
        self.sides = {"degraded": list(degraded), "clear": list(clear)}
        self.photos = photos
        self.augment = augment

    def __len__(self) -> int:
        return max(len(paths) for paths in self.sides.values())

    def holdout(self) -> dict[str, list[Pair]]:
        return {}

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        sample = {}
        for number, (side, paths) in enumerate(self.sides.items(), start=1):
            rng = item_rng(seed, epoch, index, number)
            photo = self.photos.get(paths[epoch_order(seed, epoch, number, len(paths))[index % len(paths)]])
            box = aug.draw_crop(self.augment, photo.shape[0], photo.shape[1], rng)
            picture = aug.apply_tone(aug.crop(photo, box, self.augment.crop), aug.draw_tone(self.augment, rng))
            sample[side] = to_tensor(aug.corrupt(self.augment, picture, rng) if side == "degraded" else picture)
        return sample


class PhotoPairs:
    """Pairs of photos: one crop, flip and tone for both sides, noise and JPEG on the degraded one."""

    def __init__(self, pairs: Sequence[Pair], photos: PhotoCache, augment: Augment, hold_back: float = 0.0) -> None:
        photos.check(pairs=((pair.degraded, pair.clear) for pair in pairs))
        self.pairs, self.holdout = split_holdout(pairs, scene_of_pair, hold_back)
        self.photos = photos
        self.augment = augment

    @property
    def items(self) -> int:
        return len(self.pairs)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        pair = self.pairs[item]
        sides = self.photos.pair(pair.degraded, pair.clear)
        box = aug.draw_crop(self.augment, sides[0].shape[0], sides[0].shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        degraded, clear = (aug.apply_tone(aug.crop(side, box, self.augment.crop), table) for side in sides)
        return {"degraded": to_tensor(aug.corrupt(self.augment, degraded, rng)), "clear": to_tensor(clear)}


class PhotoCache:
    """Decoded photos by path, 8 bits a channel, safe to share between sources and threads.

    The pixels depend only on the path: a photo that exceeds the memory limit is decoded again on each access.
    """

    def __init__(self, short_side: int | None = None, memory: int = 4 * GIB) -> None:
        """
        Args:
            short_side: larger photos are reduced (by area) to this short side in pixels.
            memory: limit for all cached photos in bytes.
        """
        self.short_side = short_side
        self.memory = memory
        self.used = 0
        self._cached: dict[tuple[Path, Size | str], MapPixels] = {}
        self._sizes: dict[Path, Size] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        # pickled for worker processes that are spawned; locks cannot be
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def check(
        self, photos: Iterable[Path] = (), pairs: Iterable[tuple[Path, Path]] = (), maps: Iterable[Path] = ()
    ) -> None:
        """Decode all photos once, in threads, to find broken ones.

        Raises:
            BadImage, BadFolder: files are broken, or the sizes of a pair differ; the message names the first twenty.
        """
        reads: list[tuple[Callable[..., object], tuple[Path, ...]]] = [
            *((self.get, (path,)) for path in dict.fromkeys(photos)),
            *((self.pair, pair) for pair in dict.fromkeys(pairs)),
            *((self.map, (path,)) for path in dict.fromkeys(maps)),
        ]

        def error_of(read: tuple[Callable[..., object], tuple[Path, ...]]) -> BadImage | BadFolder | None:
            try:
                read[0](*read[1])
            except (BadImage, BadFolder) as error:
                return error
            return None

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            errors = {str(error): error for error in pool.map(error_of, reads) if error is not None}
        if errors:
            more = f"\n... and {len(errors) - 20} more" if len(errors) > 20 else ""
            kind = BadImage if all(isinstance(error, BadImage) for error in errors.values()) else BadFolder
            raise kind("\n".join(list(errors)[:20]) + more)

    def get(self, path: Path) -> PhotoPixels:
        """Return a photo, H x W x 3 uint8, read-only."""
        return self._photo(path, None)

    def pair(self, degraded: Path, clear: Path) -> tuple[PhotoPixels, PhotoPixels]:
        """Return both photos of a pair at one size.

        Raises:
            BadFolder: their sizes differ by more than RESIDE's border.
        """
        first = self._photo(degraded, None)
        with self._lock:
            size = self._sizes[degraded]
        return first, self._photo(clear, size)

    def map(self, path: Path) -> MapPixels:
        """Return a depth map, H x W uint8 or uint16, reduced like the photos, read-only."""
        cached = self._cached.get((path, "map"))
        if cached is not None:
            return cached
        values = np.ascontiguousarray(images.read(path).pixels[..., 0])
        return self._store((path, "map"), reduce_photo(values, self.short_side))

    def _photo(self, path: Path, size: Size | None) -> PhotoPixels:
        """A photo, less RESIDE's border where its file is larger than `size` by that."""
        with self._lock:
            own = self._sizes.get(path)
            cached = self._cached.get((path, "whole" if size is None or size == own else size))
        if cached is not None:
            return cast(PhotoPixels, cached)
        pixels = to_eight_bits(images.read(path).pixels)
        own = (pixels.shape[0], pixels.shape[1])
        if size is not None and own != size:
            border = RESIDE_BORDER
            if own != (size[0] + 2 * border, size[1] + 2 * border):
                raise BadFolder(
                    f"{path} is {own[1]} x {own[0]}, its degraded partner {size[1]} x {size[0]}: "
                    "crop one of them to the same size, or remove the pair"
                )
            pixels = np.ascontiguousarray(pixels[border:-border, border:-border])
        with self._lock:
            self._sizes[path] = own
        key = (path, "whole" if size is None or size == own else size)
        return self._store(key, reduce_photo(pixels, self.short_side))

    def _store(self, key: tuple[Path, Size | str], pixels: V) -> V:
        pixels.flags.writeable = False
        with self._lock:
            if key not in self._cached and self.used + pixels.nbytes <= self.memory:
                self._cached[key] = pixels
                self.used += pixels.nbytes
        return pixels


def cached_short_side(augment: Augment) -> int:
    """The short side of cached photos: twice the crop, so that a crop of half the photo is not enlarged."""
    return max(2 * augment.crop, augment.load_size or 0)


def to_eight_bits(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> PhotoPixels:
    """Return uint8 unchanged, and uint16 rounded to 8 bits."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reduce_photo(pixels: V, short_side: int | None) -> V:
    """Reduce a photo or map by area so that its short side is at most `short_side`; never enlarge it."""
    height, width = pixels.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    factor = short_side / min(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cast(V, np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=pixels.dtype))


def all_pairs(folder: str | Path) -> list[Pair]:
    """The pairs of every set in a folder, sorted by name."""
    sets = find_sets(folder)
    if len(sets) == 1:
        return next(iter(sets.values()))
    return [Pair(p.degraded, p.clear, f"{name}/{p.name}") for name, pairs in sets.items() for p in pairs]


def photos_in(folder: str | Path) -> list[Path]:
    """Every photo in a folder and below, sorted.

    Raises:
        BadFolder: there is none.
    """
    found = pictures(folder)
    if not found:
        raise BadFolder(f"{folder} has no photos: add some, or use another folder")
    return found


def split_holdout(items: Sequence[T], scene: Callable[[T], str], hold_back: float) -> tuple[list[T], list[T]]:
    """Split items into training and holdout by whole scenes, the same ones on every machine and in every run.

    Scenes are ordered by a hash of their key, so adding photos changes the split as little as possible.

    Args:
        items: photos or pairs.
        scene: the key of an item's scene.
        hold_back: share of the scenes in the holdout; above 0 it is at least one scene.

    Returns:
        Training items and holdout items.

    Raises:
        BadSettings: the share is outside [0, 1), or nothing is left to train on.
    """
    if not 0 <= hold_back < 1:
        raise BadSettings(f"hold_back is {hold_back}: the share of scenes kept out of training must be in [0, 1)")
    scenes = sorted({scene(item) for item in items}, key=lambda key: sha256(os.fsencode(key)).digest())
    count = max(1, round(hold_back * len(scenes))) if hold_back > 0 else 0
    if count and count >= len(scenes):
        raise BadSettings(f"hold_back {hold_back} leaves none of {len(scenes)} scenes to train on: lower it")
    holdout = set(scenes[:count])
    return [item for item in items if scene(item) not in holdout], [item for item in items if scene(item) in holdout]


def scene_of_pair(pair: Pair) -> str:
    """A scene is its clear photo: RESIDE's 1400_1 and 1400_2 share the scene 1400."""
    return scene_of_photo(pair.clear)


def scene_of_photo(path: Path) -> str:
    return path.stem.lower()


def check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"sample {index} of an epoch of {length}")


def item_rng(*key: int) -> np.random.Generator:
    """A random generator that depends only on the key.

    NumPy's SeedSequence hashes its entropy (O'Neill's seed_seq), so that neighbouring keys give unrelated streams.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in key])))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator seeded by the next draw of a NumPy one."""
    return torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, side: int, n: int) -> NDArray[np.intp]:
    """The order in which an epoch visits n items; `side` distinguishes the two folders of unpaired data."""
    return item_rng(seed, epoch, side, n).permutation(n)


def to_tensor(picture: NDArray[np.float32]) -> Tensor:
    """H x W x 3 float32 -> 3 x H x W, copied."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
