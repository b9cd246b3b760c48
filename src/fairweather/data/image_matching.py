"""Facts about one photo's pixels (border, colour, perceptual hash), and how two photos relate (copy, shift, mirror).

Haze changes brightness and contrast, not positions. So photos are compared by their fine detail, divided by its local
strength, so that the veiled distance counts as much as the foreground. Phase correlation of that detail (Kuglin &
Hines, "The phase correlation image alignment method", 1975) has a response near 1 for the two sides of a pair, still
0.2 through haze of one percent transmission, and below 0.07 for two different scenes.

The perceptual hash is real-valued, unlike imagehash's: one matrix product compares all photos of a folder, and the hash
of a mirrored photo follows from a change of signs.
"""

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
"""Side of the square thumbnail of each photo."""
FREQUENCIES = 10
"""Frequencies of the perceptual hash along each axis."""
FLAT = 8
"""Largest difference, in levels of 255, within an area of one colour after JPEG."""
MAX_BORDER = 0.4
"""Largest border as a share of the photo's side."""
ENDS = (2.0, 0.9, 0.4, 0.25, 0.25)
"""Smallest share of pixels that change where a border ends, by the number of edges with that border."""

Detail = NDArray[np.float32]
"""H x W: fine detail over its local strength."""

LONG_SIDE = 1024
"""Photos are reduced to this before they are compared."""
MIN_RESPONSE = 0.1
"""Response below which two photos have no detail in common."""
MAX_SHIFT = 0.75
"""Smallest shift to report, in pixels at the compared size; leaves in the wind give 0.5."""
VIEW_SIZE = (512, 384)
"""Photos of any size are resized to this to compare views."""

FLIPS = {"mirrored": 1, "upside down": 0, "rotated by 180 degrees": -1}
"""Name -> code of cv2.flip."""


class Border(NamedTuple):
    """Width in pixels of the one-coloured border at each edge."""

    top: int
    right: int
    bottom: int
    left: int


@dataclass(frozen=True)
class PixelFacts:
    """The facts that the audit stores about a decoded photo: 10 KB."""

    digest: bytes
    """Hash of the pixels: equal for equal pictures in any file format."""
    thumb: NDArray[np.uint8]
    """THUMB x THUMB, grey, not in proportion."""
    fingerprint: NDArray[np.float32]
    """Perceptual hash: 100 numbers of total length 1 (see `fingerprint`)."""
    border: Border | None
    colourless: bool
    blank: bool
    """A single colour."""


def pixel_facts(photo: PhotoPixels) -> PixelFacts:
    """Compute the facts of a photo, H x W x 3 uint8."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    thumb = np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    blank = int(grey.max()) - int(grey.min()) <= FLAT
    return PixelFacts(
        blake2b(repr(photo.shape).encode() + np.ascontiguousarray(photo).data, digest_size=16).digest(),
        thumb,
        fingerprint(thumb),
        None if blank else find_border(photo),
        bool((photo[..., :1] == photo[..., 1:]).all()),
        blank,
    )


def fingerprint(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute a perceptual hash: the low frequencies of the cosine transform, each times its frequency.

    Amplitudes in photos are inversely proportional to frequency, so this weights them equally. The inner product of two
    hashes is 1 for copies, including recompressed and resized ones, and about 0 for two random photos.
    """
    small = cv2.resize(thumb, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    along = np.arange(FREQUENCIES)
    frequency = np.hypot(along[:, None], along[None]).astype(np.float32)
    found = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES] * np.where(frequency < FREQUENCIES, frequency, 0)
    return np.asarray((found / (np.linalg.norm(found) + 1e-6)).ravel(), dtype=np.float32)


MIRROR = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES).astype(np.float32)
"""A hash times this is the hash of the mirrored photo: odd frequencies change their sign."""


def find_border(photo: PhotoPixels) -> Border | None:
    """Find a border of one colour (a scan's frame, letterbox bars).

    An overexposed sky is constant as well, but ends along a skyline. A border ends across much of the photo's width at
    once, and across nearly all of it if it is at one edge only.
    """
    sides = (photo, photo[:, ::-1].swapaxes(0, 1), photo[::-1], photo.swapaxes(0, 1))
    found = [_Edge(*_edge(side)) for side in sides]
    depths = []
    for edge in found:
        same = sum(other.depth > 0 and np.abs(edge.colour - other.colour).max() <= FLAT for other in found)
        depths.append(edge.depth if edge.ends >= ENDS[same] else 0)
    return Border(*depths) if any(depths) else None


class _Edge(NamedTuple):
    depth: int
    ends: float
    colour: NDArray[np.float64]


def _edge(photo: PhotoPixels) -> tuple[int, float, NDArray[np.float64]]:
    """Rows of one colour at the top, the share of pixels that change below them, and the colour."""
    limit = int(photo.shape[0] * MAX_BORDER)
    colour = np.median(photo[0], axis=0)
    depth = 0
    while depth <= limit and _changed(photo[depth], colour, FLAT) < 0.01:
        depth += 1
    if depth < 2 or depth > limit:
        return 0, 0.0, colour
    after = photo[depth : depth + 8]  # JPEG blurs the end over a block of 8
    return depth, max(_changed(line, colour, 2 * FLAT) for line in after), colour


def _changed(line: NDArray[np.uint8], colour: NDArray[np.float64], levels: int) -> float:
    return float((np.abs(line - colour).max(axis=1) > levels).mean())


@dataclass(frozen=True)
class Relation:
    """How the degraded photo of a pair is aligned with the clear one."""

    response: float
    right: float = 0.0
    """Pixels, at full size, by which the degraded photo's content is further right."""
    down: float = 0.0
    shifted: bool = False
    flip: str = ""
    """A key of FLIPS if one side must be flipped to match."""
    flat: bool = False
    """One of them has no detail."""


def relation(degraded: PhotoPixels, clear: PhotoPixels) -> Relation:
    """Relate two photos of the same size, H x W x 3 uint8."""
    factor = min(1.0, LONG_SIDE / max(clear.shape[:2]))
    one, other = (detail(_resized(photo, factor)) for photo in (degraded, clear))
    right, down, response = shift(other, one)
    if response < 3 * MIN_RESPONSE:  # above it a flip is not tried: a horizon matches its mirror image, too
        for flip, code in FLIPS.items():
            found = shift(other, np.ascontiguousarray(cv2.flip(one, code)))[2]
            if found >= 2 * max(MIN_RESPONSE, response):
                return Relation(found, flip=flip)
    if response < MIN_RESPONSE:
        return Relation(response, flat=min(float(np.abs(side).mean()) for side in (one, other)) < 0.02)
    shifted = hypot(right, down) >= MAX_SHIFT and _confirmed(other, one, right, down)
    return Relation(response, right / factor, down / factor, shifted)


def detail(photo: PhotoPixels) -> Detail:
    """Differences of Gaussians, 0.8 to 2.2 px wide, over their root mean square nearby (and one level of noise)."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 0.8) - cv2.GaussianBlur(grey, (0, 0), 2.2)
    # blur's running sums can end slightly below zero
    strength = np.sqrt(np.maximum(cv2.blur(fine * fine, (25, 25)), 0))
    return np.asarray(fine / (strength + 1), dtype=np.float32)


def shift(one: Detail, other: Detail) -> tuple[float, float, float]:
    """Shift of `other` against `one` (same shape) in pixels right and down, and the response."""
    height, width = (_even(side) for side in one.shape)
    top, left = (one.shape[0] - height) // 2, (one.shape[1] - width) // 2
    # Copies, since OpenCV multiplies the window into its arguments; of sides that it does not pad, since its centre is
    # half a pixel off where it pads to an odd size.
    first, second = (side[top : top + height, left : left + width].copy() for side in (one, other))
    if min(height, width) < 16:
        return 0.0, 0.0, 1.0  # too small to reject
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (right, down), response = cv2.phaseCorrelate(first, second, window)
    return float(right), float(down), float(response)


def same_view(one: PhotoPixels, other: PhotoPixels) -> float:
    """The response of two photos of any size, resized to the same one."""
    first, second = (detail(cv2.resize(photo, VIEW_SIZE, interpolation=cv2.INTER_AREA)) for photo in (one, other))
    return shift(first, second)[2]


def crop_position(smaller: PhotoPixels, larger: PhotoPixels) -> tuple[int, int] | None:
    """The place (left, top) in the larger photo that the smaller one was cropped from, or None."""
    if any(a > b for a, b in zip(smaller.shape[:2], larger.shape[:2], strict=True)):
        return None
    part, whole = detail(smaller), detail(larger)
    height, width = part.shape[0] // 2, part.shape[1] // 2
    # two opposite quarters: at another scale their distance would differ
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
    """Whether the two agree better after the shift, in whole pixels, and most quarters have the same shift."""
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
