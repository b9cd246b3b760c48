"""What a dataset is here: a pure function of (seed, epoch, index), and the seeding that makes it one."""

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
"""`degraded` and `clear`, each 3 x S x S float32 in [0,1]; of clips `moves` as well (see `fairweather.data.video_clips`)."""


class Dataset(Protocol):
    """A map-style dataset whose every random draw comes from (seed, epoch, index), whoever asks in whatever order."""

    def __len__(self) -> int:
        """Samples per epoch."""
        ...

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        """The sample number `index` (0 <= index < len) of an epoch; the same arguments give the same bits."""
        ...

    def held_back(self) -> dict[str, list[Pair]]:
        """The pairs of the scenes kept out of training, by the name of their source."""
        ...


class Source(Protocol):
    """A kind of training pair: photos in a certain order, and what is made of one of them."""

    @property
    def items(self) -> int:
        """How many photos or pairs it holds."""
        ...

    @property
    def held(self) -> list[Pair]:
        """The pairs that are kept out of training."""
        ...

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        """The training sample of one item; nothing but `item` and `rng` may decide it."""
        ...


def item_rng(*key: int) -> np.random.Generator:
    """A random generator that depends on all of the key and on nothing else.

    NumPy's SeedSequence hashes its entropy (O'Neill's seed_seq), so that neighbouring keys give unrelated streams.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in key])))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator whose seed is the next draw of a NumPy one."""
    return torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, side: int, n: int) -> NDArray[np.intp]:
    """The order in which an epoch visits n items; `side` tells apart the two folders of unpaired data."""
    return item_rng(seed, epoch, side, n).permutation(n)


def to_tensor(picture: NDArray[np.float32]) -> Tensor:
    """S x S x 3 float32 -> 3 x S x S tensor of its own memory."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"sample {index} of an epoch of {length}")


class VisitedItems:
    """A dataset of one source: an epoch visits every item once, in an order of its own."""

    def __init__(self, source: Source, name: str) -> None:
        self.source = source
        self.name = name

    def __len__(self) -> int:
        return self.source.items

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        item = int(order(seed, epoch, 0, len(self))[index])
        return self.source.make(item, item_rng(seed, epoch, index))

    def held_back(self) -> dict[str, list[Pair]]:
        return {self.name: self.source.held} if self.source.held else {}


# Photos in memory: each decoded once, as 8 bits, no larger than training needs, within a budget.

PhotoPixels = NDArray[np.uint8]
Size = tuple[int, int]
Values = NDArray[np.uint8] | NDArray[np.uint16]
"""H x W, a depth map as its file has it."""
V = TypeVar("V", NDArray[np.uint8], NDArray[np.uint8] | NDArray[np.uint16])

RESIDE_BORDER = 10
"""RESIDE's indoor clear photos keep a border of 10 px that its hazy ones have lost (640 x 480 and 620 x 460)."""


class PhotoCache:
    """Photos by path. Safe to share between sources and threads: what is given depends on the path alone.

    A photo that does not fit into the budget any more is decoded whenever it is asked for: slower, the same pixels.
    """

    def __init__(self, short_side: int | None = None, memory: int = 4 * 2**30) -> None:
        """`short_side`: larger photos are reduced (by area) to this many pixels on their short side.
        `memory`: the most bytes kept."""
        self.short_side = short_side
        self.memory = memory
        self.used = 0
        self._kept: dict[tuple[Path, Size | None], PhotoPixels] = {}
        self._maps: dict[Path, Values] = {}
        self._sizes: dict[Path, Size] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        # a worker process that is not forked gets a copy; a lock does not travel
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def check(self, photos: Iterable[Path], pairs: Iterable[tuple[Path, Path]] = (), maps: Iterable[Path] = ()) -> None:
        """Decode everything once, and name every file that is broken and every pair whose sizes differ.

        Raises BadImage or BadFolder; the message names all of them (the first twenty), not the first alone.
        """
        singles = list(dict.fromkeys(photos))
        couples = list(dict.fromkeys(pairs))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            broken = list(pool.map(self._trial, singles)) + list(pool.map(self._trial_pair, couples))
            broken += list(pool.map(self._trial_map, dict.fromkeys(maps)))
        faults = list(dict.fromkeys(fault for fault in broken if fault))
        if faults:
            more = f"\n... and {len(faults) - 20} more" if len(faults) > 20 else ""
            kind = BadImage if all(fault.startswith("\0") for fault in faults) else BadFolder
            raise kind("\n".join(fault.lstrip("\0") for fault in faults[:20]) + more)

    def _trial(self, path: Path) -> str:
        try:
            self.get(path)
        except BadImage as error:
            return f"\0{error}"
        return ""

    def _trial_pair(self, pair: tuple[Path, Path]) -> str:
        try:
            self.pair(*pair)
        except BadImage as error:
            return f"\0{error}"
        except BadFolder as error:
            return str(error)
        return ""

    def _trial_map(self, path: Path) -> str:
        try:
            self.map(path)
        except BadImage as error:
            return f"\0{error}"
        return ""

    def map(self, path: Path) -> Values:
        """A depth map, H x W of its own 8 or 16 bits, reduced as photos are; not to be written to."""
        with self._lock:
            kept = self._maps.get(path)
        if kept is not None:
            return kept
        values = np.ascontiguousarray(images.read(path).pixels[..., 0])
        values = reduce_photo(values, self.short_side)
        values.flags.writeable = False
        with self._lock:
            if path not in self._maps and self.used + values.nbytes <= self.memory:
                self._maps[path] = values
                self.used += values.nbytes
        return values

    def get(self, path: Path) -> PhotoPixels:
        """H x W x 3 uint8, not to be written to."""
        return self._get(path, None)

    def pair(self, degraded: Path, clear: Path) -> tuple[PhotoPixels, PhotoPixels]:
        """Both photos of a pair at the same size; BadFolder where their sizes differ."""
        first = self._get(degraded, None)
        with self._lock:
            size = self._sizes[degraded]
        return first, self._get(clear, size)

    def _get(self, path: Path, size: Size | None) -> PhotoPixels:
        with self._lock:
            kept = self._kept.get((path, size))
            if kept is None and size is not None and self._sizes.get(path) == size:
                kept = self._kept.get((path, None))
        if kept is not None:
            return kept
        pixels = to_eight_bits(images.read(path).pixels)
        own = (pixels.shape[0], pixels.shape[1])
        if size is not None and own != size:
            pixels = _without_border(pixels, size, path)
        pixels = reduce_photo(pixels, self.short_side)
        pixels.flags.writeable = False
        key = (path, size if size != own else None)
        with self._lock:
            self._sizes[path] = own
            if key not in self._kept and self.used + pixels.nbytes <= self.memory:
                self._kept[key] = pixels
                self.used += pixels.nbytes
        return pixels


def to_eight_bits(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> PhotoPixels:
    """uint8 as it is; uint16 rounded to it."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reduce_photo(pixels: V, short_side: int | None) -> V:
    """Photos or maps reduced by area so that the short side is at most `short_side`; never enlarged."""
    height, width = pixels.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    factor = short_side / min(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cast(V, np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=pixels.dtype))


def _without_border(pixels: PhotoPixels, size: Size, path: Path) -> PhotoPixels:
    border = RESIDE_BORDER
    height, width = pixels.shape[:2]
    if (height, width) != (size[0] + 2 * border, size[1] + 2 * border):
        raise BadFolder(
            f"{path} is {width} x {height}, its degraded partner {size[1]} x {size[0]}: "
            "the two photos of a pair must have the same size; crop one of them or take the pair out"
        )
    return np.ascontiguousarray(pixels[border:-border, border:-border])


# Training data from folders: pairs by their names, and the two sides of unpaired data, each drawn on its own.

T = TypeVar("T")


def paired_dataset(
    folder: str | Path, *, augment: Augment | None = None, hold_back: float = 0.0, memory: int = 4 * 2**30
) -> VisitedItems:
    """The pairs in `folder` (under any names that `fairweather.pairs` knows; several sets there are taken together).

    `hold_back`: share of whole scenes kept out of training, given by `held_back()`; `memory`: bytes of photos kept.
    Every photo is decoded once before this returns. Raises BadFolder or BadImage naming what is unmatched or broken.
    """
    augment = augment or Augment()
    photos = PhotoCache(stored_short_side(augment), memory)
    return VisitedItems(PairDataset(all_pairs(folder), photos, augment, hold_back), Path(folder).resolve().name)


def unpaired_dataset(
    degraded: str | Path, clear: str | Path, *, augment: Augment | None = None, memory: int = 4 * 2**30
) -> UnpairedDataset:
    """Two folders of photos that do not belong together. Raises BadFolder or BadImage as `paired` does."""
    augment = augment or Augment()
    return UnpairedDataset(
        photos_in(degraded), photos_in(clear), PhotoCache(stored_short_side(augment), memory), augment
    )


def stored_short_side(augment: Augment) -> int:
    """How large a photo has to stay in memory: twice the crop, so that a crop of half of it is not enlarged."""
    return max(2 * augment.crop, augment.load_size or 0)


def all_pairs(folder: str | Path) -> list[Pair]:
    """The pairs of every set in a folder, in the order of their names."""
    sets = find_sets(folder)
    if len(sets) == 1:
        return next(iter(sets.values()))
    return [Pair(p.degraded, p.clear, f"{name}/{p.name}") for name, pairs in sets.items() for p in pairs]


def photos_in(folder: str | Path) -> list[Path]:
    """Every picture in a folder and below, in order; BadFolder where there is none."""
    found = pictures(folder)
    if not found:
        raise BadFolder(f"{folder} holds no photos; put some there or name another folder")
    return found


def split_holdout(items: Sequence[T], scene: Callable[[T], str], hold_back: float) -> tuple[list[T], list[T]]:
    """Training items and those held back: whole scenes, the same ones on every machine and in every run.

    The scenes are taken in the order of a hash of their key, so that which ones go does not depend on which others
    are there more than it must; round(hold_back * scenes) of them, at least one when the share is above zero.
    """
    if not 0 <= hold_back < 1:
        raise BadSettings(f"hold_back is {hold_back}: the share of scenes kept out of training lies in [0, 1)")
    scenes = sorted({scene(item) for item in items}, key=lambda key: sha256(os.fsencode(key)).digest())
    count = max(1, round(hold_back * len(scenes))) if hold_back > 0 else 0
    if count and count >= len(scenes):
        raise BadSettings(f"hold_back {hold_back} would leave none of {len(scenes)} scenes to train on; lower it")
    held = set(scenes[:count])
    return [item for item in items if scene(item) not in held], [item for item in items if scene(item) in held]


def scene_of_pair(pair: Pair) -> str:
    """A scene is its clear photo: RESIDE's 1400_1 and 1400_2 share the scene 1400."""
    return scene_of_photo(pair.clear)


def scene_of_photo(path: Path) -> str:
    return path.stem.lower()


class PairDataset:
    """Real (or ready-made) pairs: one crop, flip and tone for both sides, noise and JPEG on the degraded one."""

    def __init__(self, pairs: Sequence[Pair], photos: PhotoCache, augment: Augment, hold_back: float = 0.0) -> None:
        photos.check((), ((pair.degraded, pair.clear) for pair in pairs))
        self.pairs, self.held = split_holdout(pairs, scene_of_pair, hold_back)
        self.photos = photos
        self.augment = augment

    @property
    def items(self) -> int:
        return len(self.pairs)

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        pair = self.pairs[item]
        degraded, clear = self.photos.pair(pair.degraded, pair.clear)
        box = aug.draw_cut(self.augment, degraded.shape[0], degraded.shape[1], rng)
        table = aug.draw_tone(self.augment, rng)
        first, second = (aug.toned(aug.cut(side, box, self.augment.crop), table) for side in (degraded, clear))
        return {"degraded": to_tensor(aug.corrupt(self.augment, first, rng)), "clear": to_tensor(second)}


class UnpairedDataset:
    """Two folders whose photos do not belong together.

    Each side has an order, a crop and a tone of its own: nothing that is drawn for one is used for the other. An epoch
    visits every photo of the longer side once, and those of the shorter side as evenly as can be.
    """

    def __init__(self, degraded: Sequence[Path], clear: Sequence[Path], photos: PhotoCache, augment: Augment) -> None:
        photos.check([*degraded, *clear])
        self.sides = {"degraded": list(degraded), "clear": list(clear)}
        self.photos = photos
        self.augment = augment

    def __len__(self) -> int:
        return max(len(paths) for paths in self.sides.values())

    def held_back(self) -> dict[str, list[Pair]]:
        return {}

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        sample = {}
        for number, (side, paths) in enumerate(self.sides.items(), start=1):
            path = paths[order(seed, epoch, number, len(paths))[index % len(paths)]]
            picture = self._cut(self.photos.get(path), item_rng(seed, epoch, index, number), side == "degraded")
            sample[side] = to_tensor(picture)
        return sample

    def _cut(self, photo: PhotoPixels, rng: np.random.Generator, degraded: bool) -> aug.Picture:
        box = aug.draw_cut(self.augment, photo.shape[0], photo.shape[1], rng)
        picture = aug.toned(aug.cut(photo, box, self.augment.crop), aug.draw_tone(self.augment, rng))
        return aug.corrupt(self.augment, picture, rng) if degraded else picture
