"""Clips with moving weather and a known truth, from still photos, from pairs and from the frames of clear films.

The haze hangs in the scene and moves with it, its density and its light drift slowly, its swaths drift with the wind;
rain falls. Everything comes from the generator that is handed in: the same seed is the same clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.data.camera import Camera, draw_camera, draw_drift
from fairweather.data.source import torch_generator
from fairweather.errors import BadImage, BadSettings
from fairweather.weather.haze import BLUE, DUST, MIN_TRANSMISSION, HazeSettings, compose, fractal_noise, invented_depth
from fairweather.weather.rain import RainSettings, added, falling_streaks, screened

Picture = NDArray[np.float32]
Pixels = NDArray[np.uint8]
DRIFT = 0.15
"""How far the logarithm of the density drifts from its mean."""
DEPTH_SIDE = 256
"""Depth is invented on a photo reduced to this short side: it is smooth."""


class Air:
    """Haze over the frames of one clip: a call with the frame's number; all that stays or drifts is drawn at the start.

    It is weather/haze.py's scattering model, with the same settings except `night` and `grain`, which it ignores:
    transmission exp(-density_t patches_t distance), airlight A_t, sensor noise that is another in each frame.
    """

    def __init__(
        self, settings: HazeSettings, rng: np.random.Generator, *, density: tuple[float, float] | None = None
    ) -> None:
        """density: drawn log-uniformly from this range rather than the settings' own."""
        low, high = settings.density if density is None else density
        even = settings.even and density is None
        self.density = float(rng.uniform(low, high) if even else np.exp(rng.uniform(np.log(low), np.log(high))))
        blue = float(rng.random() < settings.blue) * rng.uniform(0, 1) * np.array(BLUE)
        self.airlight = rng.uniform(*settings.airlight) + rng.uniform(-1, 1, 3) * settings.tint + blue
        self.linear = bool(rng.random() < settings.linear)
        self.clear = bool(rng.random() < settings.clear)
        self.noise = 0.0 if self.clear else float(rng.uniform(0, settings.noise))
        # settings that are off draw nothing, so that a seed makes the same clip as before they were there
        bends = settings.bend != (1.0, 1.0)
        self.bend = float(np.exp(rng.uniform(*np.log(settings.bend)))) if bends else 1.0
        self.near = float(rng.uniform(*settings.near)) if settings.near[1] > 0 else 0.0
        if density is not None:  # a measured optical distance is no depth map
            self.bend, self.near = 1.0, 0.0
        if settings.warm != (0.0, 0.0):
            hue = np.array(DUST) ** rng.uniform(*settings.warm)
            self.airlight = self.airlight * hue / hue.max()
        darkened = settings.dark > 0 and rng.random() < settings.dark
        self.power = float(rng.uniform(*settings.gamma)) if darkened and not self.clear else 1.0
        cast = float(rng.uniform(*settings.cast)) if settings.cast[1] > 0 else 0.0
        self.cast = ((self.airlight / self.airlight.max()).clip(0.001, 1) ** cast).astype(np.float32)
        self.thin, self.dense = settings.patches
        self.thicker, self.brighter = draw_drift(DRIFT, 120, rng), draw_drift(0.015, 150, rng)
        self.patches: Camera | None = None
        patchy = bool(rng.random() < settings.patchy)
        generator = torch_generator(rng)
        if patchy:
            field = fractal_noise(1, 256, 256, generator, octaves=3, like=torch.zeros(1))
            self.field = field[0, 0].numpy()
            self.patches = draw_camera((256, 256), (64, 64), rng, speed=0.4, window=2.0)
        self._grain = np.random.default_rng(rng.integers(2**63 - 1))

    def __call__(self, frame: int, clear: Picture, distance: Picture) -> Picture:
        """Frame number `frame` in haze: H x W x 3 in [0, 1], and H x W of optical distance at density 1."""
        if self.clear:
            return clear.copy()
        depth = self.near + (1 - self.near) * distance.clip(0) ** self.bend
        depth = (depth * (self.density * np.exp(self.thicker.at(frame)))).astype(np.float32)
        if self.patches is not None:
            patch = self.patches.look(self.field, frame).clip(0, 1)
            patch = cv2.resize(patch, depth.shape[::-1], interpolation=cv2.INTER_CUBIC)
            depth = depth * (self.thin + (self.dense - self.thin) * patch)
        light = (self.airlight + self.brighter.at(frame)).clip(0, 1).astype(np.float32)
        transmission = np.exp(-depth).clip(MIN_TRANSMISSION, 1).astype(np.float32)
        scene = (clear**self.power * self.cast).astype(np.float32)
        hazy = compose(_tensor(scene), _tensor(transmission), torch.from_numpy(light)[None], linear=self.linear)
        picture: Picture = np.ascontiguousarray(hazy[0].permute(1, 2, 0).numpy())
        picture += self._grain.normal(0, self.noise, picture.shape).astype(np.float32)
        return picture.clip(0, 1)


def hazy_clip(
    photo: NDArray[np.uint8],
    frames: int,
    generator: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    settings: HazeSettings | None = None,
    depth: NDArray[np.float32] | None = None,
    speed: float = 2.0,
) -> Iterator[tuple[Pixels, Pixels]]:
    """(degraded, clear), each H x W x 3 uint8, for as many frames: a camera moves over a photo in drifting haze.

    photo: H x W x 3 uint8. size: height and width of the frames, three quarters of the photo's where not given. depth:
    H x W in [0, 1], invented where not given. speed: pixels a frame, at most about. Frames are made one by one: memory
    does not depend on how many there are. Raises BadImage and BadSettings at the first frame.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise BadImage(f"a clip is made from a photo of H x W x 3 uint8, not {photo.shape} {photo.dtype}")
    if frames < 1:
        raise BadSettings(f"a clip has at least 1 frame, not {frames}")
    rows, columns = size or (max(1, photo.shape[0] * 3 // 4), max(1, photo.shape[1] * 3 // 4))
    picture = images.to_float(photo)
    camera = draw_camera(photo.shape[:2], (rows, columns), generator, speed=speed)
    distance = invented(picture, generator) if depth is None else depth
    air = Air(settings or HazeSettings(), generator)
    for frame in range(frames):
        clear = camera.look(picture, frame).clip(0, 1)
        hazy = air(frame, clear, camera.look(distance, frame).clip(0, 1))
        yield images.from_float(hazy, np.uint8), images.from_float(clear, np.uint8)


def film(
    picture: Callable[[int], tuple[Pixels, NDArray[np.generic]]],
    camera: Camera,
    frames: int,
    augment: Augment,
    rng: np.random.Generator,
    *,
    weather: Callable[[int, Picture, Picture], Picture] | None = None,
) -> tuple[list[Picture], list[Picture]]:
    """The degraded and the clear frames of a training clip, S x S x 3 each.

    picture(t): what the camera looks at in frame t. With `weather`, the clear picture (H x W x 3 uint8) and its optical
    distance (H x W float32), from which weather(t, clear, distance) makes the degraded one; without, the clear and the
    degraded picture of a pair. All frames share one tone; sensor noise and JPEG are of one strength, another each time.
    """
    table = aug.draw_tone(augment, rng)
    noise, quality = aug.draw_spoil(augment, rng)
    grain = np.random.default_rng(rng.integers(2**63 - 1))
    degraded, clear = [], []
    for frame in range(frames):
        first, second = (camera.look(one, frame) for one in picture(frame))
        clear.append(aug.toned(first, table))
        if weather is None:
            spoilt = aug.toned(second, table)
        else:
            spoilt = weather(frame, clear[-1], np.asarray(second, np.float32).clip(0))
        degraded.append(_spoilt(spoilt, noise, quality, grain))
    return degraded, clear


class Rain:
    """Rain over the frames of one clip: streaks that fall, and in some clips a veil that hangs in the scene."""

    def __init__(self, settings: RainSettings, frames: int, size: tuple[int, int], rng: np.random.Generator) -> None:
        """size: height and width of the frames."""
        self.streaks = falling_streaks(frames, *size, torch_generator(rng), settings)
        self.fall = screened if rng.random() < settings.screen else added
        tint = 1 + settings.tint * torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
        self.streaks = self.streaks * tint
        veil = HazeSettings(density=settings.density, airlight=settings.airlight, tint=0, patchy=0, linear=0, noise=0)
        air = Air(veil, rng)
        self.veil = air if rng.random() < settings.veil else None
        self.clear = bool(rng.random() < settings.clear)

    def __call__(self, frame: int, clear: Picture, distance: Picture) -> Picture:
        """Frame number `frame` in rain, as `Air` gives it in haze."""
        if self.clear:
            return clear.copy()
        fallen = self.fall(_tensor(clear), self.streaks[frame : frame + 1])
        picture: Picture = np.ascontiguousarray(fallen[0].permute(1, 2, 0).numpy())
        return picture if self.veil is None else self.veil(frame, picture, distance)


def _spoilt(picture: Picture, noise: float, quality: int | None, grain: np.random.Generator) -> Picture:
    """Sensor noise and JPEG over one frame."""
    if noise > 0:
        picture = (picture + grain.normal(0, noise, picture.shape).astype(np.float32)).clip(0, 1)
    return picture if quality is None else aug.jpeg(picture, quality)


def invented(picture: Picture, rng: np.random.Generator) -> Picture:
    """A plausible depth for an H x W x 3 photo without one, H x W in [0, 1]."""
    height, width = picture.shape[:2]
    scale = min(1.0, DEPTH_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    depth = invented_depth(1, size[1], size[0], torch_generator(rng), guide=_tensor(small))[0, 0].numpy()
    large: Picture = cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)
    return large


def consecutive(paths: Sequence[Path], length: int) -> list[int]:
    """Where in a sorted list of frames a clip of this length may begin: all of it in one folder."""
    starts = range(len(paths) - length + 1)
    return [at for at in starts if paths[at].parent == paths[at + length - 1].parent]


def _tensor(picture: Picture) -> Tensor:
    """H x W (x C) -> 1 x C x H x W."""
    planes = picture[..., None] if picture.ndim == 2 else picture
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]
