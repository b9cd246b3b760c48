"""What one photo's pixels tell: a frame around it, colours that are not there, and a fingerprint to find copies by."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import hypot
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.data.datasets import PhotoPixels

THUMB = 96
"""Side of the square thumbnail that is kept of every photo."""
_WAVES = 10
_FLAT = 8
"""Levels (of 255) that a frame's pixels may differ by: what JPEG does to a single colour."""
_DEEPEST = 0.4
"""A frame takes no more of a photo's side than this."""


class BorderFrame(NamedTuple):
    """Pixels of one colour at each edge."""

    top: int
    right: int
    bottom: int
    left: int


@dataclass(frozen=True)
class PixelFacts:
    """What is kept of a photo once it is decoded: 10 KB."""

    digest: bytes
    """Of the pixels: equal for equal pictures, whatever file they are in."""
    thumb: NDArray[np.uint8]
    """THUMB x THUMB, grey, squeezed."""
    waves: NDArray[np.float32]
    """The perceptual hash: 100 numbers of length 1 together (see `waves`)."""
    frame: BorderFrame | None
    colourless: bool
    blank: bool


def pixel_facts(photo: PhotoPixels) -> PixelFacts:
    """H x W x 3 uint8."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    thumb = np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    blank = int(grey.max()) - int(grey.min()) <= _FLAT
    return PixelFacts(
        blake2b(repr(photo.shape).encode() + np.ascontiguousarray(photo).data, digest_size=16).digest(),
        thumb,
        fingerprint(thumb),
        None if blank else find_border(photo),
        bool((photo[..., :1] == photo[..., 1:]).all()),
        blank,
    )


def fingerprint(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
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


def find_border(photo: PhotoPixels) -> BorderFrame | None:
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
    return BorderFrame(*depths) if any(depths) else None


_ENDS = (2.0, 0.9, 0.4, 0.25, 0.25)
"""Share of the line where a frame ends that must change colour, by how many edges have that frame."""


class _Edge(NamedTuple):
    depth: int
    ends: float
    colour: NDArray[np.float64]


def _edge(photo: PhotoPixels) -> tuple[int, float, NDArray[np.float64]]:
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


# Whether two photos show the same scene, and how far one is shifted against the other.
#
# Haze changes brightness and contrast, not where things are: photos are compared by their fine detail, divided by its own
# local strength, so that a veiled distance counts as much as the foreground. Phase correlation of that (Kuglin & Hines,
# "The phase correlation image alignment method", 1975; OpenCV's, to a fraction of a pixel) has a response near 1 for the
# two sides of a pair, still 0.2 through haze of one percent transmission, and below 0.07 for two different scenes.

Detail = NDArray[np.float32]
"""H x W: fine detail over its local strength."""

LONG_SIDE = 1024
"""Photos are reduced to this before they are compared: training sees no more of them."""
MIN_RESPONSE = 0.1
"""Response below which two photos have no detail in common."""
MAX_SHIFT = 0.75
"""Pixels (at the size that is compared) from which on a shift counts; leaves in the wind make 0.5."""
VIEW_SIZE = (512, 384)
"""Photos of unknown relation are squeezed to this."""

TURNS = {"mirrored": 1, "upside down": 0, "turned by 180 degrees": -1}
"""What cv2.flip undoes."""


@dataclass(frozen=True)
class Relation:
    """How the degraded photo lies on the clear one."""

    response: float
    right: float = 0.0
    """Pixels, at the photos' full size, that the degraded one's content lies further right."""
    down: float = 0.0
    shifted: bool = False
    turn: str = ""
    """A key of TURNS, where one side must be turned so to match."""
    flat: bool = False
    """One of them has no detail to go by."""


def relation(degraded: PhotoPixels, clear: PhotoPixels) -> Relation:
    """Of two photos of the same size (H x W x 3)."""
    factor = min(1.0, LONG_SIDE / max(clear.shape[:2]))
    one, other = (detail(_resized(photo, factor)) for photo in (degraded, clear))
    right, down, response = shift(other, one)
    if response < 3 * MIN_RESPONSE:  # a horizon agrees with its own mirror image, too
        for turn, code in TURNS.items():
            found = shift(other, np.ascontiguousarray(cv2.flip(one, code)))[2]
            if found >= 2 * max(MIN_RESPONSE, response):
                return Relation(found, turn=turn)
    if response < MIN_RESPONSE:
        return Relation(response, flat=min(_strength(one), _strength(other)) < 0.02)
    shifted = hypot(right, down) >= MAX_SHIFT and _confirmed(other, one, right, down)
    return Relation(response, right / factor, down / factor, shifted)


def detail(photo: PhotoPixels) -> Detail:
    """Differences of Gaussians, 0.8 to 2.2 px wide, over their root mean square nearby (and one level of noise)."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 0.8) - cv2.GaussianBlur(grey, (0, 0), 2.2)
    # its running sums end a little below zero where a strong edge has passed
    strength = np.sqrt(np.maximum(cv2.blur(fine * fine, (25, 25)), 0))
    return np.asarray(fine / (strength + 1), dtype=np.float32)


def shift(one: Detail, other: Detail) -> tuple[float, float, float]:
    """Pixels right and down that `other` lies from `one` (same shape), and the response."""
    height, width = (_even(side) for side in one.shape)
    top, left = (one.shape[0] - height) // 2, (one.shape[1] - width) // 2
    # copies, of sides that OpenCV need not pad: it multiplies the window into what it is given,
    # and its centre is half a pixel off where it pads to an odd size
    first, second = (side[top : top + height, left : left + width].copy() for side in (one, other))
    if min(height, width) < 16:
        return 0.0, 0.0, 1.0  # too small to say anything against it
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (right, down), response = cv2.phaseCorrelate(first, second, window)
    return float(right), float(down), float(response)


def same_view(one: PhotoPixels, other: PhotoPixels) -> float:
    """The response of two photos of any size, each squeezed to the same one."""
    first, second = (detail(cv2.resize(photo, VIEW_SIZE, interpolation=cv2.INTER_AREA)) for photo in (one, other))
    return shift(first, second)[2]


def part_of(smaller: PhotoPixels, larger: PhotoPixels) -> tuple[int, int] | None:
    """Where (left, top) in the larger photo the smaller one was cut out; None where it was not."""
    if any(a > b for a, b in zip(smaller.shape[:2], larger.shape[:2], strict=True)):
        return None
    part, whole = detail(smaller), detail(larger)
    height, width = part.shape[0] // 2, part.shape[1] // 2
    # two opposite quarters, which would not be found as far apart in a photo of another scale
    first, second = _place(part[:height, :width], whole), _place(part[-height:, -width:], whole)
    right, down = second[0] - first[0], second[1] - first[1]
    if abs(right - (part.shape[1] - width)) > 1 or abs(down - (part.shape[0] - height)) > 1:
        return None
    return first


def _place(part: Detail, whole: Detail) -> tuple[int, int]:
    left, top = cv2.minMaxLoc(cv2.matchTemplate(whole, np.ascontiguousarray(part), cv2.TM_CCOEFF_NORMED))[3]
    return int(left), int(top)


def correlation(one: Detail, other: Detail) -> float:
    """Correlation of two details of the same shape, -1 to 1."""
    first, second = one - one.mean(), other - other.mean()
    return float((first * second).sum() / np.sqrt((first * first).sum() * (second * second).sum() + 1e-9))


def _confirmed(one: Detail, other: Detail, right: float, down: float) -> bool:
    """Whether the two agree better when moved by the shift, in whole pixels, and so do most quarters."""
    x, y = round(right), round(down)
    height, width = one.shape
    first = one[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    second = other[max(0, y) : height - max(0, -y), max(0, x) : width - max(0, -x)]
    if min(first.shape) < 16 or correlation(first, second) <= correlation(one, other):
        return False
    half = height // 2, width // 2
    agree = []
    for top in (0, height - half[0]):
        for left in (0, width - half[1]):
            quarter = slice(top, top + half[0]), slice(left, left + half[1])
            here = shift(one[quarter], other[quarter])
            if here[2] >= MIN_RESPONSE:
                agree.append(hypot(here[0] - right, here[1] - down) < 0.5 + 0.1 * hypot(right, down))
    return sum(agree) > len(agree) / 2


def _strength(one: Detail) -> float:
    return float(np.abs(one).mean())


def _even(side: int) -> int:
    """The largest even side that OpenCV transforms without padding."""
    side -= side % 2
    while side > 16 and cv2.getOptimalDFTSize(side) != side:
        side -= 2
    return side


def _resized(photo: PhotoPixels, factor: float) -> PhotoPixels:
    if factor == 1:
        return photo
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    return np.ascontiguousarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
