"""Pictures that are there twice: recompressed, resized or mirrored copies, and the same view taken at another time.

Candidates come from the perceptual hashes (one matrix product for all pairs of photos); each is then checked on the
pixels, so that two blue skies over two green meadows are not called copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.data.audit.alignment import likeness, same_view
from fairweather.data.audit.findings import Finding
from fairweather.data.audit.looks import MIRROR, Looks
from fairweather.data.photos import Pixels

COPY_HASH, COPY = 0.8, 0.88
"""Products of hashes from which on, and correlations of thumbnails' detail above which, two photos are copies."""
VIEW_HASH, VIEW = 0.5, 0.15
"""The same for views: the second is the response of phase correlation (`alignment.same_view`)."""
_NEAREST = 8
"""Photos of the other split that a photo is compared with, to see whether they show the same view."""
_BLOCK = 1024


@dataclass(frozen=True)
class Seen:
    """A photo in the search."""

    path: Path
    looks: Looks
    scene: Path
    """The clear photo that it belongs to, or itself: versions of one scene are no copies."""
    split: str
    """train, test, ..., or "" outside of any split."""

    @property
    def degraded(self) -> bool:
        return self.scene != self.path


class Match(NamedTuple):
    product: float
    one: int
    other: int
    mirrored: bool


def find_copies(photos: Sequence[Seen], read: Callable[[Path], Pixels]) -> list[Finding]:
    """Copies among the photos, and views on both sides of a split. `read` gives the few that are looked at again."""
    photos = [photo for photo in photos if not photo.looks.blank]
    clear = [photo for photo in photos if not photo.degraded]
    groups = _groups(clear, {})
    # of two scenes that are copies, the degraded versions are not told again
    known = {photo.scene: number for number, (group, _) in enumerate(groups) for photo in group}
    groups += _groups(photos, known)
    findings = [_told(group, mirrored) for group, mirrored in groups]
    copied = {photo.path: number for number, (group, _) in enumerate(groups) for photo in group}
    for one, other, response in _views(clear, read):
        if one not in copied or copied[one] != copied.get(other):
            findings.append(Finding("view", (one, other), f"likeness {response:.2f} of 1"))
    return findings


def thumb_detail(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A thumbnail's detail over its local strength: what two photos of like composition do not share."""
    grey = thumb.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    return np.asarray(fine / (cv2.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6)) + 2), dtype=np.float32)


def _groups(photos: Sequence[Seen], known: Mapping[Path, Hashable]) -> list[tuple[list[Seen], bool]]:
    """Copies of one another, and whether there are mirrored ones. `known`: scenes that are known to be the same."""
    detail = lru_cache(maxsize=4096)(lambda at: thumb_detail(photos[at].looks.thumb))
    parent = list(range(len(photos)))
    mirrored: set[int] = set()

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for _, one, other, mirror in _matches(photos, COPY_HASH, mirrors=True):
        first, second = photos[one].scene, photos[other].scene
        if known.get(first, first) == known.get(second, second) or root(one) == root(other):
            continue
        there = detail(other)[:, ::-1] if mirror else detail(other)
        if likeness(detail(one), there) >= COPY:
            parent[root(other)] = root(one)
            mirrored |= {one, other} if mirror else set()
    groups = defaultdict[int, list[int]](list)
    for at in range(len(photos)):
        groups[root(at)].append(at)
    return [([photos[at] for at in group], bool(mirrored & {*group})) for group in groups.values() if len(group) > 1]


def _told(group: Sequence[Seen], mirrored: bool) -> Finding:
    splits = sorted({photo.split for photo in group} - {""})
    what = ["in " + " and ".join(splits)] if len(splits) > 1 else []
    what += ["mirrored"] if mirrored else []
    return Finding("leak" if len(splits) > 1 else "copy", tuple(photo.path for photo in group), ", ".join(what))


def _views(photos: Sequence[Seen], read: Callable[[Path], Pixels]) -> Iterator[tuple[Path, Path, float]]:
    splits = {photo.split for photo in photos} - {""}
    if len(splits) < 2:
        return
    nearest = defaultdict[int, list[Match]](list)
    for match in _matches(photos, VIEW_HASH, across=True):
        nearest[match.one].append(match)
        nearest[match.other].append(match)
    tried = {match for found in nearest.values() for match in sorted(found, reverse=True)[:_NEAREST]}
    kept = lru_cache(maxsize=64)(read)
    for match in sorted(tried, key=lambda match: match[1:]):
        one, other = photos[match.one].path, photos[match.other].path
        response = same_view(kept(one), kept(other))
        if response >= VIEW:
            yield one, other, response


def _matches(photos: Sequence[Seen], least: float, *, mirrors: bool = False, across: bool = False) -> Iterator[Match]:
    """Photos whose hashes have a product of at least `least`: each two once, and once more where one is mirrored.

    `across`: only where both are in a split, and not in the same one.
    """
    if len(photos) < 2:
        return
    hashes = np.stack([photo.looks.waves for photo in photos])
    names, split = np.unique([photo.split for photo in photos], return_inverse=True)
    named = (names != "")[split]
    numbers = np.arange(len(photos))
    for start in range(0, len(photos), _BLOCK):
        block = slice(start, start + _BLOCK)
        wanted = numbers[block, None] < numbers
        if across:
            wanted &= (split[block, None] != split) & named[block, None] & named
        for mirrored, others in ((False, hashes), (True, hashes * MIRROR))[: 1 + mirrors]:
            products = hashes[block] @ others.T
            for row, other in zip(*np.nonzero(wanted & (products >= least)), strict=True):
                yield Match(float(products[row, other]), start + int(row), int(other), mirrored)
