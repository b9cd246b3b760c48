"""Augmentation: crop, flip and tone for both sides of a pair; sensor noise and JPEG for the degraded side."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.weather.draws import Range, check_number, check_range

Picture = NDArray[np.float32]
"""H x W x 3 in [0,1]."""


@dataclass(frozen=True)
class Augment:
    """How a training sample is cut from a photo and changed.

    `Augment.paper()` does the same as pix2pix and CycleGAN; `Augment.plain()` cuts the largest square without changes.
    """

    crop: int = 256
    """Side of a sample in pixels."""
    load_size: int | None = None
    """Resize every photo to load_size x load_size (286 in the paper) before it is cropped, as in pix2pix (Isola et al.,
    CVPR 2017, section 6.2) and CycleGAN's code; `scale`, `aspect`, `whole` and `enlarge` have no effect then."""
    scale: Range = (0.4, 1.0)
    """Side of the crop as a share of the largest box of its aspect in the photo, before it is resized to `crop`."""
    aspect: Range = (0.75, 1.3333)
    """Width over height of the crop before it is resized to a square, drawn log-uniformly."""
    whole: float = 0.15
    """Share of samples that show the whole photo, resized to a square, as the input of networks that reduce photos."""
    enlarge: float = 1.25
    """Largest enlargement of a crop (photos that are too small give their largest box)."""
    flip: float = 0.5
    """Share of samples mirrored left to right."""
    exposure: Range = (-0.35, 0.15)
    """Change of exposure in stops (powers of two), the same for both sides; little upwards, since clipped values cannot
    be restored."""
    gamma: Range = (0.85, 1.2)
    """Exponent on [0,1], the same for both sides, drawn log-uniformly."""
    white_balance: float = 0.04
    """Standard deviation, in stops, of each channel's gain, the same for both sides."""
    tone: float = 0.5
    """Share of samples whose exposure, gamma and white balance are changed."""
    noise: float = 0.015
    """Largest standard deviation of sensor noise on the degraded side, on the scale [0,1]."""
    noise_share: float = 0.15
    """Share of samples with such noise."""
    jpeg: tuple[int, int] = (50, 95)
    """Range of JPEG qualities on the degraded side."""
    jpeg_share: float = 0.2
    """Share of samples whose degraded side is compressed as JPEG."""

    def __post_init__(self) -> None:
        check_number("augment.crop", self.crop, 1, 16384)
        if self.load_size is not None:
            check_number("augment.load_size", self.load_size, self.crop, 16384)
        for name in ("whole", "flip", "tone", "noise_share", "jpeg_share"):
            check_number(f"augment.{name}", getattr(self, name), 0, 1)
        check_range("augment.scale", self.scale, 0, 1, above=True)
        check_range("augment.jpeg", self.jpeg, 1, 100)
        for name in ("aspect", "gamma"):
            check_range(f"augment.{name}", getattr(self, name), above=True)
        check_range("augment.exposure", self.exposure, -20, 20)
        check_number("augment.enlarge", self.enlarge, 1)
        for name in ("noise", "white_balance"):
            check_number(f"augment.{name}", getattr(self, name))

    @classmethod
    def paper(cls, crop: int = 256, load_size: int | None = None) -> Augment:
        """Resize to 286 (in proportion for another crop), crop at random, mirror half; nothing else."""
        load_size = round(crop * 286 / 256) if load_size is None else load_size
        return cls(crop=crop, load_size=load_size, tone=0.0, noise_share=0.0, jpeg_share=0.0)

    @classmethod
    def plain(cls, crop: int = 256) -> Augment:
        """The largest square of the photo, resized; only its place is random."""
        return cls(crop=crop, scale=(1, 1), aspect=(1, 1), whole=0, flip=0, tone=0, noise_share=0, jpeg_share=0)


@dataclass(frozen=True)
class CropBox:
    """A crop in pixels of the photo, or of the photo resized to `load_size` x `load_size` first."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool
    load_size: int | None = None


def draw_crop(augment: Augment, height: int, width: int, rng: np.random.Generator) -> CropBox:
    """Draw a crop of a height x width photo."""
    # all numbers are drawn whether they are used or not, so that one setting does not change the draws of the others
    whole, scale, aspect, down, right, mirrored = rng.random(6)
    flipped = bool(mirrored < augment.flip)
    if augment.load_size is not None:
        free = augment.load_size - augment.crop + 1
        return CropBox(int(down * free), int(right * free), augment.crop, augment.crop, flipped, augment.load_size)
    if whole < augment.whole:
        return CropBox(0, 0, height, width, flipped)
    ratio = _log_interpolated(augment.aspect, aspect)
    box_width = min(width, height * ratio)
    box_height = box_width / ratio
    least = min(1.0, augment.crop / augment.enlarge / max(1.0, min(box_width, box_height)))
    low, high = (max(least, bound) for bound in augment.scale)
    share = low + (high - low) * scale
    rows = min(height, max(1, round(box_height * share)))
    columns = min(width, max(1, round(box_width * share)))
    return CropBox(int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns, flipped)


def crop(picture: NDArray[np.generic], box: CropBox, side: int) -> NDArray[np.generic]:
    """Cut a box out of H x W [x C] and resize it to side x side [x C]: by area to reduce, else cubic (maps: linear)."""
    if box.load_size is not None:
        reduces = min(picture.shape[:2]) >= box.load_size
        picture = cv2.resize(picture, (box.load_size,) * 2, interpolation=_interpolation(picture, reduces))
    picture = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    if picture.shape[:2] != (side, side):
        reduces = min(box.height, box.width) >= side
        picture = cv2.resize(picture, (side, side), interpolation=_interpolation(picture, reduces))
    return np.asarray(picture[:, ::-1] if box.mirrored else picture)


def _interpolation(picture: NDArray[np.generic], reduces: bool) -> int:
    if reduces:
        return int(cv2.INTER_AREA)
    # maps (disparity, transmission) must not overshoot; 8-bit pictures saturate anyway
    return int(cv2.INTER_CUBIC if picture.dtype == np.uint8 else cv2.INTER_LINEAR)


def draw_tone_curve(augment: Augment, rng: np.random.Generator) -> tuple[float, NDArray[np.float64]] | None:
    """Draw a change of tone: an exponent and each channel's gain, or None for no change."""
    used, stops, exponent = rng.random(3)
    gains = rng.normal(0.0, 1.0, 3)
    if used >= augment.tone:
        return None
    low, high = augment.exposure
    power = _log_interpolated(augment.gamma, exponent)
    return power, np.exp2(low + (high - low) * stops + augment.white_balance * gains)


def draw_tone(augment: Augment, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a change of tone as a lookup table, 256 x 1 x 3 float32 in [0,1]."""
    curve = draw_tone_curve(augment, rng)
    table = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None, None].repeat(3, axis=2)
    if curve is None:
        return table
    power, gain = curve
    return np.asarray(np.minimum(table**power * gain, 1.0), dtype=np.float32)


def apply_tone(picture: NDArray[np.generic], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """H x W x 3 uint8 -> H x W x 3 float32 in [0,1], through a table of `draw_tone`."""
    return np.asarray(cv2.LUT(np.ascontiguousarray(picture), table), dtype=np.float32)


def draw_corruption(augment: Augment, rng: np.random.Generator) -> tuple[float, int | None]:
    """Draw the standard deviation of the noise (0 for none) and the JPEG quality (None for none)."""
    noisy, strength, packed, quality = rng.random(4)
    low, high = augment.jpeg
    sigma = float(augment.noise * strength) if noisy < augment.noise_share else 0.0
    return sigma, int(low + (high - low + 1) * quality) if packed < augment.jpeg_share else None


def corrupt(augment: Augment, picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Add sensor noise, then JPEG, to a degraded H x W x 3 float32 picture; may write into its argument."""
    sigma, quality = draw_corruption(augment, rng)
    if sigma > 0:
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(sigma)
        np.clip(picture, 0.0, 1.0, out=picture)
    return picture if quality is None else jpeg(picture, quality)


def jpeg(picture: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
    """Compress H x W x 3 float32 in [0,1] as JPEG (4:2:0, as most cameras do) and decode it."""
    pixels = cv2.convertScaleAbs(picture, alpha=255.0)
    _, code = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    pixels = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


def _log_interpolated(bounds: Range, share: float) -> float:
    return exp(log(bounds[0]) + (log(bounds[1]) - log(bounds[0])) * share)
