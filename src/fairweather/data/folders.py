"""Training data from folders: pairs by their names, and the two sides of unpaired data, each drawn on its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.data.photos import Photos, Pixels
from fairweather.data.source import Sample, Visited, check_index, order, stream, to_tensor
from fairweather.errors import BadFolder, BadSettings
from fairweather.pairs import Pair, find_sets, pictures

T = TypeVar("T")


def paired(
    folder: str | Path, *, augment: Augment | None = None, hold_back: float = 0.0, memory: int = 4 * 2**30
) -> Visited:
    """The pairs in `folder` (under any names that `fairweather.pairs` knows; several sets there are taken together).

    `hold_back`: share of whole scenes kept out of training, given by `held_back()`; `memory`: bytes of photos kept.
    Every photo is decoded once before this returns. Raises BadFolder or BadImage naming what is unmatched or broken.
    """
    augment = augment or Augment()
    photos = Photos(kept_short_side(augment), memory)
    return Visited(Pairs(all_pairs(folder), photos, augment, hold_back), Path(folder).resolve().name)


def unpaired(
    degraded: str | Path, clear: str | Path, *, augment: Augment | None = None, memory: int = 4 * 2**30
) -> Unpaired:
    """Two folders of photos that do not belong together. Raises BadFolder or BadImage as `paired` does."""
    augment = augment or Augment()
    return Unpaired(photos_in(degraded), photos_in(clear), Photos(kept_short_side(augment), memory), augment)


def kept_short_side(augment: Augment) -> int:
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


def split(items: Sequence[T], scene: Callable[[T], str], hold_back: float) -> tuple[list[T], list[T]]:
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


class Pairs:
    """Real (or ready-made) pairs: one crop, flip and tone for both sides, noise and JPEG on the degraded one."""

    def __init__(self, pairs: Sequence[Pair], photos: Photos, augment: Augment, hold_back: float = 0.0) -> None:
        photos.check((), ((pair.degraded, pair.clear) for pair in pairs))
        self.pairs, self.held = split(pairs, scene_of_pair, hold_back)
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
        return {"degraded": to_tensor(aug.spoil(self.augment, first, rng)), "clear": to_tensor(second)}


class Unpaired:
    """Two folders whose photos do not belong together.

    Each side has an order, a crop and a tone of its own: nothing that is drawn for one is used for the other. An epoch
    visits every photo of the longer side once, and those of the shorter side as evenly as can be.
    """

    def __init__(self, degraded: Sequence[Path], clear: Sequence[Path], photos: Photos, augment: Augment) -> None:
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
            picture = self._cut(self.photos.get(path), stream(seed, epoch, index, number), side == "degraded")
            sample[side] = to_tensor(picture)
        return sample

    def _cut(self, photo: Pixels, rng: np.random.Generator, degraded: bool) -> aug.Picture:
        box = aug.draw_cut(self.augment, photo.shape[0], photo.shape[1], rng)
        picture = aug.toned(aug.cut(photo, box, self.augment.crop), aug.draw_tone(self.augment, rng))
        return aug.spoil(self.augment, picture, rng) if degraded else picture
