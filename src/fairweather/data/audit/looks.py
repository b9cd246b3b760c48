"""What one photo's pixels tell: a frame around it, colours that are not there, and a fingerprint to find copies by."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.data.photos import Pixels

THUMB = 96
"""Side of the square thumbnail that is kept of every photo."""
_WAVES = 10
_FLAT = 8
"""Levels (of 255) that a frame's pixels may differ by: what JPEG does to a single colour."""
_DEEPEST = 0.4
"""A frame takes no more of a photo's side than this."""


class Frame(NamedTuple):
    """Pixels of one colour at each edge."""

    top: int
    right: int
    bottom: int
    left: int


@dataclass(frozen=True)
class Looks:
    """What is kept of a photo once it is decoded: 10 KB."""

    digest: bytes
    """Of the pixels: equal for equal pictures, whatever file they are in."""
    thumb: NDArray[np.uint8]
    """THUMB x THUMB, grey, squeezed."""
    waves: NDArray[np.float32]
    """The perceptual hash: 100 numbers of length 1 together (see `waves`)."""
    frame: Frame | None
    colourless: bool
    blank: bool


def look(photo: Pixels) -> Looks:
    """H x W x 3 uint8."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    thumb = np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    blank = int(grey.max()) - int(grey.min()) <= _FLAT
    return Looks(
        blake2b(repr(photo.shape).encode() + np.ascontiguousarray(photo).data, digest_size=16).digest(),
        thumb,
        waves(thumb),
        None if blank else frame(photo),
        bool((photo[..., :1] == photo[..., 1:]).all()),
        blank,
    )


def waves(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A perceptual hash: the longest waves of the picture's cosine transform, each times its frequency.

    Photos have amplitudes like one over frequency, so that all weigh alike then. Two hashes are compared by their
    product: 1 for copies, recompressed or resized ones too; about 0 for two photos at random.
    """
    small = cv2.resize(thumb, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    along = np.arange(_WAVES)
    frequency = np.hypot(along[:, None], along[None]).astype(np.float32)
    found = cv2.dct(small)[:_WAVES, :_WAVES] * np.where(frequency < _WAVES, frequency, 0)
    return np.asarray((found / (np.linalg.norm(found) + 1e-6)).ravel(), dtype=np.float32)


MIRROR = np.tile(np.where(np.arange(_WAVES) % 2, -1, 1), _WAVES).astype(np.float32)
"""A hash times this is that of the mirrored photo: odd waves change their sign."""


def frame(photo: Pixels) -> Frame | None:
    """The frame of one colour around a photo (a scan's border, letterbox bars), or None.

    A blown-out sky is constant too, but ends along a skyline: a frame ends across much of the photo's width at once,
    and across nearly all of it where the photo has it at one edge alone.
    """
    sides = (photo, photo[:, ::-1].swapaxes(0, 1), photo[::-1], photo.swapaxes(0, 1))
    found = [_Edge(*_edge(side)) for side in sides]
    depths = []
    for edge in found:
        alike = sum(other.depth > 0 and _alike(edge.colour, other.colour) for other in found)
        depths.append(edge.depth if edge.ends >= _ENDS[alike] else 0)
    return Frame(*depths) if any(depths) else None


_ENDS = (2.0, 0.9, 0.4, 0.25, 0.25)
"""Share of the line where a frame ends that must change colour, by how many edges have that frame."""


class _Edge(NamedTuple):
    depth: int
    ends: float
    colour: NDArray[np.float64]


def _edge(photo: Pixels) -> tuple[int, float, NDArray[np.float64]]:
    """Lines of one colour from the top, the share of the pixels that change where they end, and the colour."""
    limit = int(photo.shape[0] * _DEEPEST)
    colour = np.median(photo[0], axis=0)
    depth = 0
    while depth <= limit and _changed(photo[depth], colour, _FLAT) < 0.01:
        depth += 1
    if depth < 2 or depth > limit:
        return 0, 0.0, colour
    after = photo[depth : depth + 8]  # JPEG blurs the end over a block of 8
    return depth, max(_changed(line, colour, 2 * _FLAT) for line in after), colour


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return float(np.abs(one - other).max()) <= _FLAT


def _changed(line: NDArray[np.uint8], colour: NDArray[np.float64], levels: int) -> float:
    return float((np.abs(line - colour).max(axis=1) > levels).mean())
