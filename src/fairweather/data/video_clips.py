"""Clips: consecutive frames as one training sample, from photos, pairs or video frames.

A virtual camera moves over the pictures. Haze is attached to the scene and moves with it, its density and light drift
slowly, swaths drift with the wind, and rain falls. All random numbers come from the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather import images
from fairweather.data import augment as aug
from fairweather.data.augment import Augment, Picture
from fairweather.data.datasets import PhotoPairs, PhotoPixels, Sample, to_tensor, torch_generator
from fairweather.data.synthetic import ClearPhotos, DepthMap, RehazedPairs, SyntheticHaze, SyntheticRain
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.pairs import Pair
from fairweather.weather.haze import BLUE, DUST, MIN_TRANSMISSION, HazeSettings, compose, fractal_noise, invented_depth
from fairweather.weather.rain import RainSettings, added, falling_streaks, screened

Array = NDArray[Any]
FramePair = tuple[PhotoPixels, NDArray[np.generic]]
"""The clear picture, and the degraded one or the optical distance."""
ClipWeather = Callable[[int, Picture, Picture], Picture]
"""(frame number, clear frame, optical distance) -> degraded frame."""

DRIFT = 0.15
"""Amplitude of the drift of the logarithm of the density."""
DEPTH_SIDE = 256
"""Depth is invented on a photo reduced to this short side."""
REHAZE_POWER = (0.4, 2.0)
"""The power of a measured transmission, as in `fairweather.weather.haze.rehaze`."""


class MovingCamera:
    """A source of clips from another source's photos.

    `degraded` and `clear` are strips, 3 x T S x S, with the T frames stacked vertically; `moves`, T x 2 x 3, is the
    motion of the camera (`Camera.moves`). Both sides of a pair share one camera. Haze follows the depth, the measured
    transmission or the fog of the source; rain falls. With `moving`, the photos are video frames (one folder a video,
    sorted by name), and a clip is T consecutive ones.
    """

    def __init__(
        self, source: PhotoPairs | RehazedPairs | ClearPhotos, frames: int, *, speed: float = 3.0, moving: bool = False
    ) -> None:
        self.source, self.frames, self.speed = source, frames, speed
        self.starts: list[int] | None = None
        if moving:
            paths = source.paths if isinstance(source, ClearPhotos) else [pair.clear for pair in source.pairs]
            self.starts = consecutive_frames(paths, frames)
            if not self.starts:
                folder = paths[0].parent if paths else "the folder"
                raise BadFolder(f"{folder} has no {frames} frames in a row: give longer videos, or lower data.frames")

    @property
    def items(self) -> int:
        return self.source.items if self.starts is None else len(self.starts)

    @property
    def holdout(self) -> list[Pair]:
        return self.source.holdout

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        augment: Augment = self.source.augment
        first = item if self.starts is None else self.starts[item]
        picture, weather = self._scene(first, rng)
        rows, columns = picture(0)[0].shape[:2]
        share = float(rng.uniform(*augment.scale))
        # Photo pixels per pixel of the frame; the photo is reduced by this first, so that the camera does not alias.
        window = max(1 / augment.enlarge, share * min(rows, columns) / augment.crop)
        size = (max(1, round(columns / window)), max(1, round(rows / window)))
        still = _resized(picture(0), size) if self.starts is None else None
        mirrored = bool(rng.random() < augment.flip)
        speed = float(rng.uniform(0, self.speed))
        camera = draw_camera(size[::-1], (augment.crop,) * 2, rng, speed=speed, mirrored=mirrored)
        sides = render_clip(
            lambda t: _resized(picture(t), size) if still is None else still,
            *(camera, self.frames, augment, rng),
            weather=weather,
        )
        degraded, clear = (to_tensor(np.concatenate(frames)) for frames in sides)
        return {"degraded": degraded, "clear": clear, "moves": torch.from_numpy(camera.moves(self.frames))}

    def _scene(self, first: int, rng: np.random.Generator) -> tuple[Callable[[int], FramePair], ClipWeather | None]:
        """The pictures in front of the camera (see `render_clip`), and the weather over them."""
        source, step = self.source, 0 if self.starts is None else 1
        if isinstance(source, ClearPhotos):
            distance = self._distance(source, first, rng)
            weather: ClipWeather = lambda t, clear, _: clear.copy()  # noqa: E731
            if isinstance(source, SyntheticRain):
                weather = ClipRain(source.settings, self.frames, (source.augment.crop,) * 2, rng)
            elif isinstance(source, SyntheticHaze):
                weather = ClipHaze(source.settings, rng, density=REHAZE_POWER if source.fog else None)
            return lambda t: (source.photos.get(source.paths[first + t * step]), distance), weather

        def sides(t: int) -> tuple[PhotoPixels, PhotoPixels]:
            pair = source.pairs[first + t * step]
            return source.photos.pair(pair.degraded, pair.clear)

        if isinstance(source, PhotoPairs):
            return lambda t: sides(t)[::-1], None
        measured = source.transmission
        weather = ClipHaze(source.settings, rng, density=REHAZE_POWER)
        return lambda t: (sides(t)[1], _optical_distance(measured(first + t * step))), weather

    def _distance(self, source: ClearPhotos, item: int, rng: np.random.Generator) -> Picture:
        """Optical distance over a photo, H x W: of reused fog, true depth, or invented; a video keeps the first one."""
        photo = source.photos.get(source.paths[item])
        if isinstance(source, SyntheticHaze) and source.fog is not None:
            distance = _optical_distance(source.fog.transmission(int(rng.integers(source.fog.items))))
            fog: Picture = cv2.resize(distance, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            return fog
        if isinstance(source, SyntheticHaze) and self.starts is None:
            known = source.depth(source.paths[item])
            if known is not None:
                return known.astype(np.float32) / np.float32(65535)
        if isinstance(source, (SyntheticHaze, SyntheticRain)):
            return invented_clip_depth(images.to_float(photo), rng)
        return np.zeros(photo.shape[:2], np.float32)


def render_clip(
    picture: Callable[[int], FramePair],
    camera: Camera,
    frames: int,
    augment: Augment,
    rng: np.random.Generator,
    *,
    weather: ClipWeather | None = None,
) -> tuple[list[Picture], list[Picture]]:
    """Render the degraded and the clear frames of a training clip, S x S x 3 each.

    All frames share the tone and the strength of sensor noise and JPEG; the noise itself differs.

    Args:
        picture: frame number -> the clear picture (H x W x 3 uint8) and its optical distance (H x W float32), or
            without `weather` the clear and the degraded picture of a pair.
        weather: (frame number, clear, distance) -> degraded, S x S x 3.
    """
    table = aug.draw_tone(augment, rng)
    noise, quality = aug.draw_corruption(augment, rng)
    grain = np.random.default_rng(rng.integers(2**63 - 1))
    degraded, clear = [], []
    for frame in range(frames):
        first, second = (camera.render(one, frame) for one in picture(frame))
        clear.append(aug.apply_tone(first, table))
        if weather is None:
            frame_degraded = aug.apply_tone(second, table)
        else:
            frame_degraded = weather(frame, clear[-1], np.asarray(second, np.float32).clip(0))
        if noise > 0:
            added_noise = grain.normal(0, noise, frame_degraded.shape).astype(np.float32)
            frame_degraded = (frame_degraded + added_noise).clip(0, 1)
        degraded.append(frame_degraded if quality is None else aug.jpeg(frame_degraded, quality))
    return degraded, clear


def hazy_clip(
    photo: PhotoPixels,
    frames: int,
    generator: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    settings: HazeSettings | None = None,
    depth: NDArray[np.float32] | None = None,
    speed: float = 2.0,
) -> Iterator[tuple[PhotoPixels, PhotoPixels]]:
    """Yield the frames of a hazy clip with ground truth: a camera moves over a photo in drifting haze.

    Frames are made one by one, so memory does not depend on their number.

    Args:
        photo: H x W x 3 uint8.
        frames: number of frames.
        generator: source of all random numbers.
        size: height and width of the frames; by default three quarters of the photo's.
        settings: ranges of the haze.
        depth: H x W in [0, 1]; invented by default.
        speed: largest speed of the camera in pixels a frame, approximately.

    Yields:
        (degraded, clear), each rows x columns x 3 uint8.

    Raises:
        BadImage, BadSettings: at the first frame, for a photo of another type or no frames.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise BadImage(f"the photo of a clip must be H x W x 3 uint8, not {photo.shape} {photo.dtype}")
    if frames < 1:
        raise BadSettings(f"a clip needs at least 1 frame, not {frames}")
    rows, columns = size or (max(1, photo.shape[0] * 3 // 4), max(1, photo.shape[1] * 3 // 4))
    picture = images.to_float(photo)
    camera = draw_camera(photo.shape[:2], (rows, columns), generator, speed=speed)
    distance = invented_clip_depth(picture, generator) if depth is None else depth
    air = ClipHaze(settings or HazeSettings(), generator)
    for frame in range(frames):
        clear = camera.render(picture, frame).clip(0, 1)
        hazy = air(frame, clear, camera.render(distance, frame).clip(0, 1))
        yield images.from_float(hazy, np.uint8), images.from_float(clear, np.uint8)


class ClipHaze:
    """Haze over the frames of one clip, drawn once and then called with the number of each frame.

    The scattering model of `weather.haze` and its settings, except for `night` and `grain`: transmission
    exp(-density_t patches_t distance), airlight A_t, new sensor noise in each frame.
    """

    def __init__(
        self, settings: HazeSettings, rng: np.random.Generator, *, density: tuple[float, float] | None = None
    ) -> None:
        """
        Args:
            density: range of the density, log-uniform, of a measured optical distance; by default the settings' own.
        """
        low, high = settings.density if density is None else density
        even = settings.even and density is None
        self.density = float(rng.uniform(low, high) if even else np.exp(rng.uniform(np.log(low), np.log(high))))
        blue = float(rng.random() < settings.blue) * rng.uniform(0, 1) * np.array(BLUE)
        self.airlight = rng.uniform(*settings.airlight) + rng.uniform(-1, 1, 3) * settings.tint + blue
        self.linear = bool(rng.random() < settings.linear)
        self.clear = bool(rng.random() < settings.clear)
        self.noise = 0.0 if self.clear else float(rng.uniform(0, settings.noise))
        # settings that are off draw no random numbers, so that new settings do not change the clips of a seed
        bends = settings.bend != (1.0, 1.0)
        self.bend = float(np.exp(rng.uniform(*np.log(settings.bend)))) if bends else 1.0
        self.near = float(rng.uniform(*settings.near)) if settings.near[1] > 0 else 0.0
        if density is not None:  # a measured optical distance is not a depth map
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
        """Return a hazy frame, from a clear one (H x W x 3 in [0, 1]) and optical distance at density 1 (H x W)."""
        if self.clear:
            return clear.copy()
        depth = self.near + (1 - self.near) * distance.clip(0) ** self.bend
        depth = (depth * (self.density * np.exp(self.thicker.at(frame)))).astype(np.float32)
        if self.patches is not None:
            patch = self.patches.render(self.field, frame).clip(0, 1)
            patch = cv2.resize(patch, depth.shape[::-1], interpolation=cv2.INTER_CUBIC)
            depth = depth * (self.thin + (self.dense - self.thin) * patch)
        light = (self.airlight + self.brighter.at(frame)).clip(0, 1).astype(np.float32)
        transmission = np.exp(-depth).clip(MIN_TRANSMISSION, 1).astype(np.float32)
        scene = (clear**self.power * self.cast).astype(np.float32)
        hazy = compose(_batch(scene), _batch(transmission), torch.from_numpy(light)[None], linear=self.linear)
        picture: Picture = np.ascontiguousarray(hazy[0].permute(1, 2, 0).numpy())
        picture += self._grain.normal(0, self.noise, picture.shape).astype(np.float32)
        return picture.clip(0, 1)


class ClipRain:
    """Rain over the frames of one clip: falling streaks, and in some clips a veil attached to the scene."""

    def __init__(self, settings: RainSettings, frames: int, size: tuple[int, int], rng: np.random.Generator) -> None:
        """
        Args:
            size: height and width of the frames.
        """
        self.streaks = falling_streaks(frames, *size, torch_generator(rng), settings)
        self.blend = screened if rng.random() < settings.screen else added
        tint = 1 + settings.tint * torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
        self.streaks = self.streaks * tint
        veil = HazeSettings(density=settings.density, airlight=settings.airlight, tint=0, patchy=0, linear=0, noise=0)
        air = ClipHaze(veil, rng)
        self.veil = air if rng.random() < settings.veil else None
        self.clear = bool(rng.random() < settings.clear)

    def __call__(self, frame: int, clear: Picture, distance: Picture) -> Picture:
        """Return a frame in rain; arguments as for `ClipHaze`."""
        if self.clear:
            return clear.copy()
        rainy = self.blend(_batch(clear), self.streaks[frame : frame + 1])
        picture: Picture = np.ascontiguousarray(rainy[0].permute(1, 2, 0).numpy())
        return picture if self.veil is None else self.veil(frame, picture, distance)


@dataclass(frozen=True)
class Drift:
    """A number that varies smoothly around zero: the sum of two sine waves with a total amplitude of `reach`."""

    reach: float
    waves: tuple[tuple[float, float, float], ...]
    """(share of the reach, period in frames, phase in radians)"""

    def at(self, frame: float) -> float:
        """The value in a frame."""
        sines = sum(share * np.sin(2 * np.pi * frame / period + phase) for share, period, phase in self.waves)
        return float(self.reach * sines)


def draw_drift(reach: float, period: float, rng: np.random.Generator) -> Drift:
    """Draw a drift: a wave of about this period in frames, and one of half the amplitude and 1 / 2.3 of the period."""
    length = period * float(np.exp(rng.uniform(-0.4, 0.4)))
    phases = rng.uniform(0, 2 * np.pi, 2)
    return Drift(reach, ((2 / 3, length, float(phases[0])), (1 / 3, length / 2.3, float(phases[1]))))


@dataclass(frozen=True)
class Camera:
    """The part of a picture (height x width) in each frame (rows x columns), always inside its border."""

    picture: tuple[int, int]
    frame: tuple[int, int]
    x: Drift
    y: Drift
    turn: Drift
    """Rotation in radians."""
    zoom: Drift
    """Logarithm of the change of the window's size."""
    window: float
    """Pixels of the picture per pixel of the frame, on average."""
    mirrored: bool = False

    def matrix(self, frame: float) -> NDArray[np.float64]:
        """The affine map from pixels (x, y) of a frame to the picture, 2 x 3."""
        (height, width), (rows, columns) = self.picture, self.frame
        scale, angle = self.window * np.exp(self.zoom.at(frame)), self.turn.at(frame)
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        # Half of the box around the rotated window; the rest of the picture is the range of its centre.
        half_x = (abs(cosine) * (columns - 1) + abs(sine) * (rows - 1)) / 2
        half_y = (abs(sine) * (columns - 1) + abs(cosine) * (rows - 1)) / 2
        middle_x = (width - 1) / 2 + self.x.at(frame) * max(0.0, (width - 1) / 2 - half_x)
        middle_y = (height - 1) / 2 + self.y.at(frame) * max(0.0, (height - 1) / 2 - half_y)
        across = -1 if self.mirrored else 1
        turned = np.array([[across * cosine, -sine], [across * sine, cosine]])
        shift = np.array([middle_x, middle_y]) - turned @ [(columns - 1) / 2, (rows - 1) / 2]
        return np.column_stack([turned, shift])

    def moves(self, frames: int) -> NDArray[np.float32]:
        """The affine maps from each frame to the one before, T x 2 x 3 for frames 0 to T - 1.

        Coordinates run from -1 to 1 between the frame's outer edges (PyTorch's affine_grid without align_corners).
        """
        sides = np.array(self.frame[::-1], float)
        normed = np.vstack([np.column_stack([np.diag(2 / sides), 1 / sides - 1]), [0, 0, 1]])
        whole = [np.vstack([self.matrix(t), [0, 0, 1]]) for t in range(frames)]
        steps = [np.linalg.inv(before) @ now for before, now in zip([whole[0], *whole], whole, strict=False)]
        back = np.linalg.inv(normed)
        moves: NDArray[np.float32] = np.array([(normed @ step @ back)[:2] for step in steps], np.float32)
        return moves

    def render(self, picture: Array, frame: float) -> Array:
        """Render a frame of a picture of `self.picture` pixels, with any channels, in the same dtype."""
        if picture.shape[:2] != self.picture:
            raise BadSettings(f"the camera needs pictures of {self.picture} pixels, not {picture.shape[:2]}")
        rendered: Array = cv2.warpAffine(
            picture,
            self.matrix(frame),
            self.frame[::-1],
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return rendered


def draw_camera(
    picture: tuple[int, int],
    frame: tuple[int, int],
    rng: np.random.Generator,
    *,
    speed: float = 2.0,
    window: float | None = None,
    mirrored: bool = False,
) -> Camera:
    """Draw a camera with a random path, zoom and rotation.

    Args:
        picture: height and width of the picture.
        frame: height and width of the frames.
        speed: largest speed in pixels of the frame per frame, approximately.
        window: pixels of the picture per pixel of the frame, 1 by default; less if the picture is too small.
        mirrored: mirror the frames left to right.

    Raises:
        BadSettings: a side is 0, or the speed negative.
    """
    if min(*picture, *frame) < 1 or speed < 0:
        raise BadSettings(f"a camera needs sides of 1 or more and a speed of 0 or more: {picture}, {frame}, {speed}")
    moves = min(1.0, speed)
    turn, zoom = draw_drift(0.03 * moves, 180, rng), draw_drift(0.06 * moves, 150, rng)
    # Even the widest and most rotated window has to fit.
    fits = min((picture[0] - 1) / max(1, frame[0] - 1), (picture[1] - 1) / max(1, frame[1] - 1))
    largest = fits * np.exp(-zoom.reach) / (1 + turn.reach * max(frame) / min(frame))
    scale = min(1.0 if window is None else window, float(largest))
    paths = []
    for long, short in ((picture[1], frame[1]), (picture[0], frame[0])):
        room = max(1.0, (long - short * scale) / 2 / scale)  # in pixels of the frame
        # A sine of this period and amplitude moves by at most `speed` a frame; the period is at least 20 frames.
        period = max(20.0, 2 * np.pi * room / max(speed, 1e-3) * float(rng.uniform(1, 2)))
        paths.append(draw_drift(1.0, period, rng))
    return Camera(picture, frame, paths[0], paths[1], turn, zoom, scale, mirrored)


def invented_clip_depth(picture: Picture, rng: np.random.Generator) -> Picture:
    """Invent depth for a photo, H x W x 3 -> H x W in [0, 1], at a reduced size since it is smooth."""
    height, width = picture.shape[:2]
    scale = min(1.0, DEPTH_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    depth = invented_depth(1, size[1], size[0], torch_generator(rng), guide=_batch(small))[0, 0].numpy()
    large: Picture = cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)
    return large


def consecutive_frames(paths: Sequence[Path], length: int) -> list[int]:
    """The indices in a sorted list of frames at which a clip of this length within one folder can start."""
    starts = range(len(paths) - length + 1)
    return [at for at in starts if paths[at].parent == paths[at + length - 1].parent]


def _batch(picture: Picture) -> Tensor:
    """H x W (x C) -> 1 x C x H x W."""
    planes = picture[..., None] if picture.ndim == 2 else picture
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]


def _optical_distance(transmission: DepthMap) -> Picture:
    share = (transmission.astype(np.float32) / np.float32(65535)).clip(MIN_TRANSMISSION, 1)
    distance: Picture = -np.log(share)
    return distance


def _resized(sides: FramePair, size: tuple[int, int]) -> FramePair:
    """Both at this width and height."""
    interpolation = cv2.INTER_AREA if size[0] < sides[0].shape[1] else cv2.INTER_CUBIC
    first = cv2.resize(sides[0], size, interpolation=interpolation)
    smooth = interpolation if sides[1].ndim == 3 else cv2.INTER_LINEAR  # maps must not overshoot
    second = cv2.resize(sides[1], size, interpolation=smooth)
    return first, second
