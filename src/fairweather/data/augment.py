"""Augmentation: the crop, flip and tone that a pair shares, the sensor noise and JPEG of the degraded side alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadSettings

Range = tuple[float, float]
Picture = NDArray[np.float32]
"""H x W x 3 in [0,1]."""


@dataclass(frozen=True)
class Augment:
    """How a training sample is cut from a photo and changed.

    `Augment.paper()` gives what pix2pix and CycleGAN do, `Augment.plain()` the largest square and nothing else.
    """

    crop: int = 256
    """Side of a sample in pixels."""
    load_size: int | None = None
    """The way of pix2pix (Isola et al., CVPR 2017, section 6.2) and CycleGAN's code: every photo is first resized to
    load_size x load_size (286 there), and the crop is taken from that;
    `scale`, `aspect`, `whole` and `enlarge` then have no say."""
    scale: Range = (0.4, 1.0)
    """Side of the crop as a share of the largest box of its aspect that fits into the photo; then resized to `crop`."""
    aspect: Range = (0.75, 1.3333)
    """Width over height of the crop before it is resized to a square, drawn evenly in its logarithm."""
    whole: float = 0.15
    """Share of samples that see the whole photo, squeezed to a square: what a network that reduces photos meets."""
    enlarge: float = 1.25
    """A crop is never enlarged by more than this (photos that are too small for it give their largest box)."""
    flip: float = 0.5
    """Share of samples mirrored left to right."""
    exposure: Range = (-0.35, 0.15)
    """Stops (powers of two) of exposure, both sides alike; little upwards, because what clips cannot be restored."""
    gamma: Range = (0.85, 1.2)
    """Exponent on [0,1], both sides alike, drawn evenly in its logarithm."""
    white_balance: float = 0.04
    """Standard deviation, in stops, of each channel's own gain, both sides alike."""
    tone: float = 0.5
    """Share of samples whose exposure, gamma and white balance are changed."""
    noise: float = 0.015
    """Largest standard deviation of sensor noise on the degraded side, on the scale of [0,1]."""
    noise_share: float = 0.15
    """Share of samples with such noise."""
    jpeg: tuple[int, int] = (50, 95)
    """Range of JPEG qualities on the degraded side."""
    jpeg_share: float = 0.2
    """Share of samples whose degraded side went through JPEG."""

    def __post_init__(self) -> None:
        for name in ("whole", "flip", "tone", "noise_share", "jpeg_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettings(f"augment.{name} is {getattr(self, name)}: a share lies between 0 and 1")
        for name in ("scale", "aspect", "gamma", "jpeg"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise BadSettings(f"augment.{name} is ({low}, {high}): give the smaller first, above 0")
        if self.scale[1] > 1:
            raise BadSettings(f"augment.scale reaches {self.scale[1]}: a crop cannot be larger than its photo (1.0)")
        if self.exposure[0] > self.exposure[1]:
            raise BadSettings(f"augment.exposure is {self.exposure}: give the smaller first")
        if self.crop < 1 or self.enlarge < 1 or self.noise < 0 or self.white_balance < 0 or self.jpeg[1] > 100:
            raise BadSettings("augment needs crop >= 1, enlarge >= 1, noise >= 0, white_balance >= 0, jpeg <= 100")
        if self.load_size is not None and self.load_size < self.crop:
            raise BadSettings(f"augment.load_size {self.load_size} is smaller than augment.crop {self.crop}")

    @classmethod
    def paper(cls, crop: int = 256, load_size: int | None = None) -> Augment:
        """Resized to 286 (in proportion for another crop), a random crop of 256, mirrored or not, nothing else."""
        load_size = round(crop * 286 / 256) if load_size is None else load_size
        return cls(crop=crop, load_size=load_size, tone=0.0, noise_share=0.0, jpeg_share=0.0)

    @classmethod
    def plain(cls, crop: int = 256) -> Augment:
        """The largest square of the photo, resized; no chance in it but the square's place."""
        return cls(crop=crop, scale=(1, 1), aspect=(1, 1), whole=0, flip=0, tone=0, noise_share=0, jpeg_share=0)


@dataclass(frozen=True)
class Cut:
    """A crop box in pixels of the photo (resized to `first` x `first` before, if given), and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    first: int | None = None


def draw_cut(augment: Augment, height: int, width: int, rng: np.random.Generator) -> Cut:
    """A random crop of a height x width photo."""
    # every draw is made whether it is used or not: a switch changes what it switches and nothing after it
    whole, scale, aspect, down, right, mirrored = rng.random(6)
    flipped = bool(mirrored < augment.flip)
    if augment.load_size is not None:
        free = augment.load_size - augment.crop + 1
        return Cut(int(down * free), int(right * free), augment.crop, augment.crop, flipped, augment.load_size)
    if whole < augment.whole:
        return Cut(0, 0, height, width, flipped)
    ratio = _between_logs(augment.aspect, aspect)
    box_width = min(width, height * ratio)
    box_height = box_width / ratio
    least = min(1.0, augment.crop / augment.enlarge / max(1.0, min(box_width, box_height)))
    low, high = (max(least, bound) for bound in augment.scale)
    share = low + (high - low) * scale
    cut_height = min(height, max(1, round(box_height * share)))
    cut_width = min(width, max(1, round(box_width * share)))
    return Cut(
        int(down * (height - cut_height + 1)), int(right * (width - cut_width + 1)), cut_height, cut_width, flipped
    )


def cut(picture: NDArray[np.generic], box: Cut, crop: int) -> NDArray[np.generic]:
    """The box of a H x W [x C] picture as crop x crop [x C]: by area where that reduces, else cubic (maps: linear)."""
    if box.first is not None:
        reduces = min(picture.shape[:2]) >= box.first
        picture = cv2.resize(picture, (box.first, box.first), interpolation=_interpolation(picture, reduces))
    picture = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    if picture.shape[:2] != (crop, crop):
        reduces = min(box.height, box.width) >= crop
        picture = cv2.resize(picture, (crop, crop), interpolation=_interpolation(picture, reduces))
    return np.asarray(picture[:, ::-1] if box.mirrored else picture)


def _interpolation(picture: NDArray[np.generic], reduces: bool) -> int:
    if reduces:
        return int(cv2.INTER_AREA)
    # maps (disparity, transmission) must not overshoot; 8-bit pictures saturate anyway
    return int(cv2.INTER_CUBIC if picture.dtype == np.uint8 else cv2.INTER_LINEAR)


def draw_curve(augment: Augment, rng: np.random.Generator) -> tuple[float, NDArray[np.float64]] | None:
    """The exponent and each channel's gain of a change of tone; None where the tone stays."""
    used, stops, exponent = rng.random(3)
    gains = rng.normal(0.0, 1.0, 3)
    if used >= augment.tone:
        return None
    low, high = augment.exposure
    power = _between_logs(augment.gamma, exponent)
    return power, np.exp2(low + (high - low) * stops + augment.white_balance * gains)


def draw_tone(augment: Augment, rng: np.random.Generator) -> NDArray[np.float32]:
    """A table of 256 x 1 x 3 float32: the value in [0,1] of each 8-bit value of each channel."""
    curve = draw_curve(augment, rng)
    table = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None, None].repeat(3, axis=2)
    if curve is None:
        return table
    power, gain = curve
    return np.asarray(np.minimum(table**power * gain, 1.0), dtype=np.float32)


def toned(picture: NDArray[np.generic], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """H x W x 3 uint8 -> H x W x 3 float32 in [0,1] through the table of `draw_tone`."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(picture), table), dtype=np.float32)


def draw_corruption(augment: Augment, rng: np.random.Generator) -> tuple[float, int | None]:
    """The standard deviation of the noise, 0 for none, and the quality of the JPEG, if there is one."""
    noisy, strength, packed, quality = rng.random(4)
    low, high = augment.jpeg
    sigma = float(augment.noise * strength) if noisy < augment.noise_share else 0.0
    return sigma, int(low + (high - low + 1) * quality) if packed < augment.jpeg_share else None


def corrupt(augment: Augment, picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """What a camera adds to a degraded H x W x 3 float32 picture: noise, then JPEG. May write into its argument."""
    sigma, quality = draw_corruption(augment, rng)
    if sigma > 0:
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(sigma)
        np.clip(picture, 0.0, 1.0, out=picture)
    return picture if quality is None else jpeg(picture, quality)


def jpeg(picture: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
    """H x W x 3 float32 in [0,1] after JPEG of that quality (4:2:0, as most cameras write it)."""
    pixels = cv2.convertScaleAbs(picture, alpha=255.0)
    _, code = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    pixels = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


def _between_logs(bounds: Range, where: float) -> float:
    return exp(log(bounds[0]) + (log(bounds[1]) - log(bounds[0])) * where)
