"""Whether two photos show the same scene, and how far one is shifted against the other.

Haze changes brightness and contrast, not where things are: photos are compared by their fine detail, divided by its own
local strength, so that a veiled distance counts as much as the foreground. Phase correlation of that (Kuglin & Hines,
"The phase correlation image alignment method", 1975; OpenCV's, to a fraction of a pixel) has a response near 1 for the
two sides of a pair, still 0.2 through haze of one percent transmission, and below 0.07 for two different scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.data.photos import Pixels

Detail = NDArray[np.float32]
"""H x W: fine detail over its local strength."""

LONG_SIDE = 1024
"""Photos are reduced to this before they are compared: training sees no more of them."""
SAME = 0.1
"""Response below which two photos have no detail in common."""
SHIFT = 0.75
"""Pixels (at the size that is compared) from which on a shift counts; leaves in the wind make 0.5."""
VIEW = (512, 384)
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


def relation(degraded: Pixels, clear: Pixels) -> Relation:
    """Of two photos of the same size (H x W x 3)."""
    factor = min(1.0, LONG_SIDE / max(clear.shape[:2]))
    one, other = (detail(_resized(photo, factor)) for photo in (degraded, clear))
    right, down, response = shift(other, one)
    if response < 3 * SAME:  # a horizon agrees with its own mirror image, too
        for turn, code in TURNS.items():
            found = shift(other, np.ascontiguousarray(cv2.flip(one, code)))[2]
            if found >= 2 * max(SAME, response):
                return Relation(found, turn=turn)
    if response < SAME:
        return Relation(response, flat=min(_strength(one), _strength(other)) < 0.02)
    shifted = hypot(right, down) >= SHIFT and _confirmed(other, one, right, down)
    return Relation(response, right / factor, down / factor, shifted)


def detail(photo: Pixels) -> Detail:
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


def same_view(one: Pixels, other: Pixels) -> float:
    """The response of two photos of any size, each squeezed to the same one."""
    first, second = (detail(cv2.resize(photo, VIEW, interpolation=cv2.INTER_AREA)) for photo in (one, other))
    return shift(first, second)[2]


def part_of(smaller: Pixels, larger: Pixels) -> tuple[int, int] | None:
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


def likeness(one: Detail, other: Detail) -> float:
    """Correlation of two details of the same shape, -1 to 1."""
    first, second = one - one.mean(), other - other.mean()
    return float((first * second).sum() / np.sqrt((first * first).sum() * (second * second).sum() + 1e-9))


def _confirmed(one: Detail, other: Detail, right: float, down: float) -> bool:
    """Whether the two agree better when moved by the shift, in whole pixels, and so do most quarters."""
    x, y = round(right), round(down)
    height, width = one.shape
    first = one[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    second = other[max(0, y) : height - max(0, -y), max(0, x) : width - max(0, -x)]
    if min(first.shape) < 16 or likeness(first, second) <= likeness(one, other):
        return False
    half = height // 2, width // 2
    agree = []
    for top in (0, height - half[0]):
        for left in (0, width - half[1]):
            quarter = slice(top, top + half[0]), slice(left, left + half[1])
            here = shift(one[quarter], other[quarter])
            if here[2] >= SAME:
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


def _resized(photo: Pixels, factor: float) -> Pixels:
    if factor == 1:
        return photo
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    return np.ascontiguousarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
