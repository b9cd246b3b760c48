"""What runs/ship/weather.py learns from: photos with haze, rain, both or neither, as recorded or made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.datasets import (
    PhotoCache,
    all_pairs,
    item_rng,
    photos_in,
    scene_of_pair,
    scene_of_photo,
    split_holdout,
    to_tensor,
    torch_generator,
)
from fairweather.data.synthetic import DISPARITY, streak_layer
from fairweather.pairs import Pair
from fairweather.weather.haze import HazeSettings, haze, transmission_of_pair
from fairweather.weather.rain import RainSettings, added, recorded_streaks, screened, streak_layers

HOLD_BACK = 0.15
REGION = 320
"""Side of what a sample shows: reduced by two it is the view that haze is seen in, and it holds four windows."""
HAZY = ("sots_outdoor", "sots_indoor", "o_haze", "nh_haze")
HAZE = HazeSettings(density=(0.5, 3.5), airlight=(0.6, 1.0), tint=0.04)
TONE = aug.Augment(exposure=(-0.5, 0.25), gamma=(0.85, 1.2), tone=0.4)
KINDS = {
    "hazy": 0.24, "hazed": 0.12, "rainy": 0.10, "rained": 0.13, "hazy, rained": 0.05, "hazed, rained": 0.05,
    "clear": 0.31,
}  # fmt: skip
"""Shares of the samples: as recorded (hazy, rainy), made here (hazed, rained), both at once, neither."""
SEEN = 0.08
"""What a haze changes, the mean over colours, where it counts as seen."""
KEPT = 36.0
"""dB that a clear photo keeps where nobody sees a difference."""


class Sources(NamedTuple):
    """Photos of one side of the split."""

    hazy: dict[str, list[Pair]]
    rainy: list[Pair]
    clear: dict[str, list[Path]]


class Sample(NamedTuple):
    """3 x 320 x 320, and for each weather 1, 0, or NaN where a person could not say either."""

    picture: Tensor
    haze: float
    rain: float


def sources(data: Path, hold_back: float = HOLD_BACK) -> tuple[Sources, Sources]:
    """What is learned from, and what is held back (whole scenes)."""
    sides: tuple[Sources, Sources] = (Sources({}, [], {}), Sources({}, [], {}))
    for name in (*HAZY, "rain100"):
        for side, pairs in zip(sides, split_holdout(all_pairs(data / name), scene_of_pair, hold_back), strict=True):
            side.clear[name] = sorted({pair.clear for pair in pairs})
            if name == "rain100":
                side.rainy.extend(pairs)
            else:
                side.hazy[name] = pairs
    for name in ("clear", "depth"):
        photos = [path for path in photos_in(data / name) if not path.stem.endswith(DISPARITY)]
        for side, paths in zip(sides, split_holdout(photos, scene_of_photo, hold_back), strict=True):
            side.clear[name] = paths
    return sides


class Samples:
    """Samples by (seed, step, index). `behind` is the share of the hazy and the hazed whose foreground is made clear:
    fog that begins behind what stands near. `costly` is the share of the clear and the rained that are drawn from
    `dear`: clear photos with which a mistake would cost much."""

    def __init__(
        self,
        found: Sources,
        photos: PhotoCache,
        seed: int,
        computed: int = 64,
        behind: float = 0.0,
        costly: float = 0.0,
        dear: Sequence[Path] = (),
    ) -> None:
        self.found, self.photos, self.seed, self.behind = found, photos, seed, behind
        self.costly, self.dear = (costly if dear else 0.0), dear
        layers = []
        for pair in found.rainy:
            layer = streak_layer(*photos.pair(pair.degraded, pair.clear))
            layers.append(cv2.resize(layer, _at_least(layer.shape, REGION))[:REGION, :REGION])
        self.recorded = torch.from_numpy(np.stack(layers))[:, None]
        generator = torch_generator(item_rng(seed, 1 << 32))
        made = [
            streak_layers(8, REGION, REGION, generator, RainSettings(strength=(0.2, 0.8)), like=torch.zeros(1))[0]
            for _ in range(computed // 8)
        ]
        self.computed = (torch.cat(made) * 255).byte()

    def batch(self, step: int, size: int) -> list[Sample]:
        return [self.sample(step, index) for index in range(size)]

    def sample(self, step: int, index: int) -> Sample:
        rng = item_rng(self.seed, step, index)
        shares = np.array(list(KINDS.values()))
        kind = str(rng.choice(list(KINDS), p=shares / shares.sum()))
        picture, hazy, rainy = self._taken(kind, rng)
        generator = torch_generator(rng)
        if "hazed" in kind:
            made, record = haze(picture[None], generator, HAZE)
            veiled = 1 - float(record["transmission"].mean())
            hazy = 1.0 if veiled > 0.2 else math.nan
            if self.behind and rng.random() < self.behind:
                foggy, clear = (one.permute(1, 2, 0).numpy() for one in (made[0], picture))
                parted = behind(foggy, clear, rng)
                made, hazy = to_tensor(parted)[None], 1.0 if visible(parted, clear) else math.nan
            picture = made[0]
        if "rained" in kind:
            picture, rainy = self._rained(picture, generator, rng)
        picture, rainy = _spoiled(picture, rainy, rng)
        return Sample(picture, hazy, rainy)

    def _taken(self, kind: str, rng: np.random.Generator) -> tuple[Tensor, float, float]:
        """A region of a photo of the kind, before weather is made, and what is known of it."""
        if kind.startswith("hazy"):
            name = str(rng.choice(HAZY, p=[0.45, 0.25, 0.15, 0.15]))
            pair, rain = one_of(self.found.hazy[name], rng), 0.0
            if self.behind and rng.random() < self.behind:
                return self._parted(pair, rng)
            path = pair.degraded
        elif kind == "rainy":
            path, rain = one_of(self.found.rainy, rng).degraded, 1.0
        elif self.costly and rng.random() < self.costly:
            path, rain = one_of(self.dear, rng), 0.0
        else:
            name = str(rng.choice(["clear", *HAZY, "rain100", "depth"], p=[0.52, 0.2, 0.06, 0.06, 0.08, 0.06, 0.02]))
            path, rain = one_of(self.found.clear[name], rng), 0.0
        region, share = _region(self.photos.get(path), rng)
        region = aug.apply_tone(region, aug.draw_tone(TONE, rng))
        # A part of a hazy photo may show what lies near and is clear.
        hazy = (1.0 if share > 0.4 else math.nan) if kind.startswith("hazy") else 0.0
        if kind == "clear" and rng.random() < 0.15:
            region = _hard(region, rng)
        return to_tensor(region), hazy, rain

    def _parted(self, pair: Pair, rng: np.random.Generator) -> tuple[Tensor, float, float]:
        """A region of a hazy photo whose foreground is as in the clear one."""
        hazy, clear = (images.to_float(photo) for photo in self.photos.pair(pair.degraded, pair.clear))
        both, _ = _region(np.concatenate([behind(hazy, clear, rng), clear], axis=2), rng)
        parted, clear = both[..., :3], both[..., 3:]
        toned = aug.apply_tone(images.from_float(parted, np.uint8), aug.draw_tone(TONE, rng))
        return to_tensor(toned), 1.0 if visible(parted, clear) else math.nan, 0.0

    def _rained(self, picture: Tensor, generator: torch.Generator, rng: np.random.Generator) -> tuple[Tensor, float]:
        bank = self.recorded if rng.random() < 0.6 else self.computed
        layer = bank[int(rng.integers(len(bank)))][None].float() / 255
        streaks = recorded_streaks(layer, 1, REGION, REGION, generator) * rng.uniform(0.4, 1.0)
        compose = screened if rng.random() < 0.5 else added
        rainy = compose(picture[None], streaks)[0]
        return rainy, 1.0 if float((rainy - picture).abs().mean()) > 0.007 else math.nan


def dear(found: Sources, photos: PhotoCache, dehaze: Callable[[np.ndarray], np.ndarray]) -> list[Path]:
    """The clear photos that a model would change to less than KEPT dB of themselves: pale, soft or smoggy ones."""
    chosen = []
    for path in [path for paths in found.clear.values() for path in paths]:
        photo = photos.get(path)
        change = np.square(images.to_float(dehaze(photo)) - images.to_float(photo)).mean()
        if change > 10 ** (-KEPT / 10):
            chosen.append(path)
    return chosen


def behind(hazy: np.ndarray, clear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hazy photo with its haze left only where that is thickest. H x W x 3 float32 in [0,1].

    A draw of the photo, what is nearest by the transmission t of the pair, is taken from the clear one. The haze of a
    pair is I - J = (1 - t)(A - J), so a share m of it is the same scene with 1 - t m times as large.
    """
    few = (to_tensor(cv2.resize(one, (128, 128), interpolation=cv2.INTER_AREA))[None] for one in (hazy, clear))
    rough = transmission_of_pair(*few)[0][0, 0].numpy()
    # At the brightness of the airlight t cannot be measured: the median of what lies around decides.
    rough = cv2.GaussianBlur(cv2.medianBlur(rough, 5), (0, 0), 2)
    near = rng.uniform(0.25, 0.75)
    low, high = (float(one) for one in np.quantile(-rough, [near - 0.1, near + 0.1]))
    share = np.clip((-rough - low) / max(1e-3, high - low), 0, 1)
    share = cv2.resize(share * share * (3 - 2 * share), clear.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return clear + share[..., None] * (hazy - clear)


def visible(hazy: np.ndarray, clear: np.ndarray) -> bool:
    """Whether a tenth of the picture, at least, is changed by more than SEEN."""
    return float(np.quantile(np.abs(hazy - clear).mean(axis=2), 0.9)) > SEEN


def _region(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """REGION x REGION of a photo (or of several of one size, one behind the other), mirrored or not, and the share of
    it that this shows: nearly all of it squeezed, as haze is looked for, or a square at about its own scale, as rain
    is."""
    height, width = photo.shape[:2]
    if rng.random() < 0.5:
        part = rng.uniform(0.8, 1.0, 2)
        tall, wide = round(height * part[0]), round(width * part[1])
    else:
        tall = wide = min(height, width, round(REGION / rng.uniform(0.7, 1.3)))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    cut = photo[top : top + tall, left : left + wide]
    smaller = min(tall, wide) >= REGION
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    pictures = (np.ascontiguousarray(cut[..., at : at + 3]) for at in range(0, photo.shape[2], 3))
    region = np.concatenate([cv2.resize(one, (REGION, REGION), interpolation=interpolation) for one in pictures], 2)
    return (region[:, ::-1] if rng.random() < 0.5 else region), tall * wide / (height * width)


def _hard(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clear photos that a careless eye takes for weather: shaken, overexposed, lying on their side, half out of
    focus, in front of something white."""
    kind = rng.integers(5)
    if kind == 0:  # motion blur in any direction: smears like streaks, over everything
        long, angle = int(rng.integers(5, 16)), rng.uniform(0, math.pi)
        kernel = np.zeros((2 * long + 1, 2 * long + 1), np.float32)
        end = (round(long * math.cos(angle)), round(long * math.sin(angle)))
        cv2.line(kernel, (long - end[0], long - end[1]), (long + end[0], long + end[1]), 1.0)
        return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    if kind == 1:
        return np.minimum(picture * np.float32(rng.uniform(1.3, 2.2)), np.float32(1))
    if kind == 2:
        return np.ascontiguousarray(np.rot90(picture))
    soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(2, 8))
    if kind == 4:
        soft = np.minimum(soft * np.float32(0.2) + np.float32(rng.uniform(0.7, 0.9)), np.float32(1))
    mask = np.zeros(picture.shape[:2], np.float32)
    centre = (int(rng.integers(REGION)), int(rng.integers(REGION)))
    cv2.ellipse(mask, centre, tuple(int(a) for a in rng.integers(60, 160, 2)), int(rng.integers(180)), 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 6 if kind == 3 else 1)[..., None]
    return picture * mask + soft * (1 - mask)


def _spoiled(picture: Tensor, rain: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Blur, grey, noise and JPEG, whatever the weather. Streaks that a blur took away are not to be seen any more."""
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    blurred, greyed, noisy, packed = rng.random(4)
    if blurred < 0.15:
        sigma = rng.uniform(0.5, 2.0)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
        rain = math.nan if rain == 1 and sigma > 0.8 else rain
    if greyed < 0.06:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if noisy < 0.2:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.0, 0.03))
    pixels = np.clip(pixels, 0, 1)
    if packed < 0.4:
        pixels = aug.jpeg(pixels, int(rng.integers(40, 96)))
    return to_tensor(pixels), rain


def _at_least(shape: Sequence[int], side: int) -> tuple[int, int]:
    factor = max(1.0, side / min(shape))
    return math.ceil(shape[1] * factor), math.ceil(shape[0] * factor)


def one_of(things: Sequence[Any], rng: np.random.Generator) -> Any:
    return things[int(rng.integers(len(things)))]
