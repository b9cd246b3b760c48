"""A camera that moves over a picture: where it looks at any moment is a formula, for clips of any length."""

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
from fairweather.data.augment import Augment
from fairweather.data.datasets import PairDataset, Sample, to_tensor, torch_generator
from fairweather.data.synthetic import ClearPhotos, Hazy, Map, Rainy, Rehazed
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.pairs import Pair
from fairweather.weather.haze import BLUE, DUST, MIN_TRANSMISSION, HazeSettings, compose, fractal_noise, invented_depth
from fairweather.weather.rain import RainSettings, added, falling_streaks, screened

Array = NDArray[Any]


@dataclass(frozen=True)
class Drift:
    """A number that wanders about zero for ever: two sine waves, together no further from it than `reach`."""

    reach: float
    waves: tuple[tuple[float, float, float], ...]
    """(share of the reach, period in frames, phase in radians)"""

    def at(self, frame: float) -> float:
        """Its value in this frame."""
        sines = sum(share * np.sin(2 * np.pi * frame / period + phase) for share, period, phase in self.waves)
        return float(self.reach * sines)


def draw_drift(reach: float, period: float, rng: np.random.Generator) -> Drift:
    """One whose slow wave has about this period in frames, and whose quick one is half as strong and 2.3 times as fast.

    Its first value is anywhere in the reach.
    """
    length = period * float(np.exp(rng.uniform(-0.4, 0.4)))
    phases = rng.uniform(0, 2 * np.pi, 2)
    return Drift(reach, ((2 / 3, length, float(phases[0])), (1 / 3, length / 2.3, float(phases[1]))))


@dataclass(frozen=True)
class Camera:
    """What part of a picture of height x width each frame of rows x columns shows; never anything beyond its border."""

    picture: tuple[int, int]
    frame: tuple[int, int]
    x: Drift
    y: Drift
    turn: Drift
    """In radians."""
    zoom: Drift
    """Of the logarithm of the window's size."""
    window: float
    """Pixels of the picture for one of the frame, on average."""
    mirrored: bool = False

    def matrix(self, frame: float) -> NDArray[np.float64]:
        """2 x 3: pixel (x, y) of this frame -> its place in the picture."""
        (height, width), (rows, columns) = self.picture, self.frame
        scale, angle = self.window * np.exp(self.zoom.at(frame)), self.turn.at(frame)
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        # Half of the box that the turned window needs; what is left of the picture is where its middle may be.
        half_x = (abs(cosine) * (columns - 1) + abs(sine) * (rows - 1)) / 2
        half_y = (abs(sine) * (columns - 1) + abs(cosine) * (rows - 1)) / 2
        middle_x = (width - 1) / 2 + self.x.at(frame) * max(0.0, (width - 1) / 2 - half_x)
        middle_y = (height - 1) / 2 + self.y.at(frame) * max(0.0, (height - 1) / 2 - half_y)
        across = -1 if self.mirrored else 1
        turned = np.array([[across * cosine, -sine], [across * sine, cosine]])
        shift = np.array([middle_x, middle_y]) - turned @ [(columns - 1) / 2, (rows - 1) / 2]
        return np.column_stack([turned, shift])

    def moves(self, frames: int) -> NDArray[np.float32]:
        """T x 2 x 3 for frames 0 to T - 1: a place in this frame -> where it was in the one before, both in coordinates
        that run from -1 to 1 over the frame's outer edges (PyTorch's affine_grid without align_corners)."""
        sides = np.array(self.frame[::-1], float)
        normed = np.vstack([np.column_stack([np.diag(2 / sides), 1 / sides - 1]), [0, 0, 1]])
        whole = [np.vstack([self.matrix(t), [0, 0, 1]]) for t in range(frames)]
        steps = [np.linalg.inv(before) @ now for before, now in zip([whole[0], *whole], whole, strict=False)]
        back = np.linalg.inv(normed)
        moves: NDArray[np.float32] = np.array([(normed @ step @ back)[:2] for step in steps], np.float32)
        return moves

    def look(self, picture: Array, frame: float) -> Array:
        """A picture of `self.picture` pixels, any channels -> what this frame shows of it, same dtype."""
        if picture.shape[:2] != self.picture:
            raise BadSettings(f"this camera looks at {self.picture} pixels (rows, columns), not at {picture.shape[:2]}")
        seen: Array = cv2.warpAffine(
            picture,
            self.matrix(frame),
            self.frame[::-1],
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return seen


def draw_camera(
    picture: tuple[int, int],
    frame: tuple[int, int],
    rng: np.random.Generator,
    *,
    speed: float = 2.0,
    window: float | None = None,
    mirrored: bool = False,
) -> Camera:
    """A camera of its own path, zoom and turning: at most about `speed` pixels of the frame a frame.

    window: pixels of the picture for one of the frame; 1 where the picture has room for it, else as many as there are
    (drawn smaller pictures are enlarged). Raises BadSettings where a side is 0 or speed below 0.
    """
    if min(*picture, *frame) < 1 or speed < 0:
        raise BadSettings(f"a camera needs pixels and a speed from 0: {picture}, {frame}, {speed}")
    moves = min(1.0, speed)
    turn, zoom = draw_drift(0.03 * moves, 180, rng), draw_drift(0.06 * moves, 150, rng)
    # So that even the widest and most turned window fits.
    fits = min((picture[0] - 1) / max(1, frame[0] - 1), (picture[1] - 1) / max(1, frame[1] - 1))
    largest = fits * np.exp(-zoom.reach) / (1 + turn.reach * max(frame) / min(frame))
    scale = min(1.0 if window is None else window, float(largest))
    paths = []
    for long, short in ((picture[1], frame[1]), (picture[0], frame[0])):
        room = max(1.0, (long - short * scale) / 2 / scale)  # in pixels of the frame
        # A sine of this period and reach moves by no more than `speed` a frame; never quicker than once in 20 frames.
        period = max(20.0, 2 * np.pi * room / max(speed, 1e-3) * float(rng.uniform(1, 2)))
        paths.append(draw_drift(1.0, period, rng))
    return Camera(picture, frame, paths[0], paths[1], turn, zoom, scale, mirrored)


# Clips with moving weather and a known truth, from still photos, from pairs and from the frames of clear films.
#
# The haze hangs in the scene and moves with it, its density and its light drift slowly, its swaths drift with the wind;
# rain falls. Everything comes from the generator that is handed in: the same seed is the same clip.

Picture = NDArray[np.float32]
Pixels = NDArray[np.uint8]
DRIFT = 0.15
"""How far the logarithm of the density drifts from its mean."""
DEPTH_SIDE = 256
"""Depth is invented on a photo reduced to this short side: it is smooth."""


class ClipHaze:
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
    distance = synthetic_clip(picture, generator) if depth is None else depth
    air = ClipHaze(settings or HazeSettings(), generator)
    for frame in range(frames):
        clear = camera.look(picture, frame).clip(0, 1)
        hazy = air(frame, clear, camera.look(distance, frame).clip(0, 1))
        yield images.from_float(hazy, np.uint8), images.from_float(clear, np.uint8)


def render_clip(
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
    noise, quality = aug.draw_corruption(augment, rng)
    grain = np.random.default_rng(rng.integers(2**63 - 1))
    degraded, clear = [], []
    for frame in range(frames):
        first, second = (camera.look(one, frame) for one in picture(frame))
        clear.append(aug.toned(first, table))
        if weather is None:
            spoilt = aug.toned(second, table)
        else:
            spoilt = weather(frame, clear[-1], np.asarray(second, np.float32).clip(0))
        degraded.append(_corrupted(spoilt, noise, quality, grain))
    return degraded, clear


class ClipRain:
    """Rain over the frames of one clip: streaks that fall, and in some clips a veil that hangs in the scene."""

    def __init__(self, settings: RainSettings, frames: int, size: tuple[int, int], rng: np.random.Generator) -> None:
        """size: height and width of the frames."""
        self.streaks = falling_streaks(frames, *size, torch_generator(rng), settings)
        self.fall = screened if rng.random() < settings.screen else added
        tint = 1 + settings.tint * torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
        self.streaks = self.streaks * tint
        veil = HazeSettings(density=settings.density, airlight=settings.airlight, tint=0, patchy=0, linear=0, noise=0)
        air = ClipHaze(veil, rng)
        self.veil = air if rng.random() < settings.veil else None
        self.clear = bool(rng.random() < settings.clear)

    def __call__(self, frame: int, clear: Picture, distance: Picture) -> Picture:
        """Frame number `frame` in rain, as `Air` gives it in haze."""
        if self.clear:
            return clear.copy()
        fallen = self.fall(_tensor(clear), self.streaks[frame : frame + 1])
        picture: Picture = np.ascontiguousarray(fallen[0].permute(1, 2, 0).numpy())
        return picture if self.veil is None else self.veil(frame, picture, distance)


def _corrupted(picture: Picture, noise: float, quality: int | None, grain: np.random.Generator) -> Picture:
    """Sensor noise and JPEG over one frame."""
    if noise > 0:
        picture = (picture + grain.normal(0, noise, picture.shape).astype(np.float32)).clip(0, 1)
    return picture if quality is None else aug.jpeg(picture, quality)


def synthetic_clip(picture: Picture, rng: np.random.Generator) -> Picture:
    """A plausible depth for an H x W x 3 photo without one, H x W in [0, 1]."""
    height, width = picture.shape[:2]
    scale = min(1.0, DEPTH_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    depth = invented_depth(1, size[1], size[0], torch_generator(rng), guide=_tensor(small))[0, 0].numpy()
    large: Picture = cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)
    return large


def consecutive_frames(paths: Sequence[Path], length: int) -> list[int]:
    """Where in a sorted list of frames a clip of this length may begin: all of it in one folder."""
    starts = range(len(paths) - length + 1)
    return [at for at in starts if paths[at].parent == paths[at + length - 1].parent]


def _tensor(picture: Picture) -> Tensor:
    """H x W (x C) -> 1 x C x H x W."""
    planes = picture[..., None] if picture.ndim == 2 else picture
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]


# Any source of a mixture as clips: the same photos and the same weather, before a camera that moves.

REPEATS = (0.4, 2.0)
"""The power of a measured transmission, as in `fairweather.weather.haze.rehaze`."""
Sides = tuple[Pixels, NDArray[np.generic]]
ClipWeather = Callable[[int, Picture, Picture], Picture]


class MovingCamera:
    """Clips of a source's photos, as strips: `degraded` and `clear` are 3 x T S x S, the T frames one below another;
    `moves`, T x 2 x 3, says how the camera moved (`Camera.moves`).

    Pairs are filmed as they are, both sides by one camera. Haze hangs where the source would put it: along its depth,
    its measured transmission, or the fog it borrows; rain falls. With `moving` the photos are the frames of films (a
    folder each, in the order of their names), and a clip is T of them that follow each other.
    """

    def __init__(
        self, source: PairDataset | Rehazed | ClearPhotos, frames: int, *, speed: float = 3.0, moving: bool = False
    ) -> None:
        self.source, self.frames, self.speed = source, frames, speed
        self.starts: list[int] | None = None
        if moving:
            paths = source.paths if isinstance(source, ClearPhotos) else [pair.clear for pair in source.pairs]
            self.starts = consecutive_frames(paths, frames)
            if not self.starts:
                folder = paths[0].parent if paths else "the folder"
                raise BadFolder(f"{folder} has no {frames} frames in a row: give longer films, or lower data.frames")

    @property
    def items(self) -> int:
        return self.source.items if self.starts is None else len(self.starts)

    @property
    def held(self) -> list[Pair]:
        return self.source.held

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        augment: Augment = self.source.augment
        films = self.starts is not None
        first = item if self.starts is None else self.starts[item]
        sides, weather = self._scene(first, films, rng)
        rows, columns = sides(0)[0].shape[:2]
        share = float(rng.uniform(*augment.scale))
        # One pixel of the frame is so many of the photo, which is reduced by that before the camera looks at it.
        window = max(1 / augment.enlarge, share * min(rows, columns) / augment.crop)
        size = (max(1, round(columns / window)), max(1, round(rows / window)))
        still = None if films else _reduced(sides(0), size)
        crop = (augment.crop, augment.crop)
        mirrored = bool(rng.random() < augment.flip)
        speed = float(rng.uniform(0, self.speed))
        camera = draw_camera(size[::-1], crop, rng, speed=speed, mirrored=mirrored)
        shots = render_clip(
            lambda t: _reduced(sides(t), size) if still is None else still,
            *(camera, self.frames, augment, rng),
            weather=weather,
        )
        degraded, clear = (to_tensor(np.concatenate(frames)) for frames in shots)
        return {"degraded": degraded, "clear": clear, "moves": torch.from_numpy(camera.moves(self.frames))}

    def _scene(
        self, first: int, films: bool, rng: np.random.Generator
    ) -> tuple[Callable[[int], Sides], ClipWeather | None]:
        """What lies before the camera in frame t (`film` says in which words), and the weather over it."""
        source = self.source

        def at(t: int) -> int:
            return first + t if films else first

        if isinstance(source, PairDataset):
            pairs = source.pairs

            def both(t: int) -> Sides:
                pair = pairs[at(t)]
                degraded, clear = source.photos.pair(pair.degraded, pair.clear)
                return clear, degraded

            return both, None
        if isinstance(source, Rehazed):
            rehazed, hazes = source, source.settings

            def measured(t: int) -> Sides:
                pair = rehazed.pairs[at(t)]
                return rehazed.photos.pair(pair.degraded, pair.clear)[1], _distance(rehazed.transmission(at(t)))

            return measured, ClipHaze(hazes, rng, density=REPEATS)

        photo = source.photos.get(source.paths[first])
        distance = self._distance(photo, first, films, rng)

        def one(t: int) -> Sides:
            return source.photos.get(source.paths[at(t)]), distance

        if isinstance(source, Rainy):
            return one, ClipRain(source.settings, self.frames, (source.augment.crop, source.augment.crop), rng)
        if isinstance(source, Hazy):
            return one, ClipHaze(source.settings, rng, density=REPEATS if source.fog else None)
        return one, lambda t, clear, _: clear.copy()

    def _distance(self, photo: Pixels, item: int, films: bool, rng: np.random.Generator) -> Picture:
        """Optical distance over a photo, H x W: borrowed fog, true depth, or invented; in a film that of its first
        frame stays."""
        source, size = self.source, photo.shape[1::-1]
        if isinstance(source, Hazy) and source.fog is not None:
            swaths = _distance(source.fog.transmission(int(rng.integers(source.fog.items))))
            fog: Picture = cv2.resize(swaths, size, interpolation=cv2.INTER_LINEAR)
            return fog
        known = source.depth(source.paths[item]) if isinstance(source, Hazy) and not films else None
        if known is not None:
            return known.astype(np.float32) / np.float32(65535)
        if isinstance(source, (Hazy, Rainy)):
            return synthetic_clip(images.to_float(photo), rng)
        return np.zeros(photo.shape[:2], np.float32)


def _distance(transmission: Map) -> Picture:
    """Optical distance of a transmission, 0..65535 for 0..1."""
    share = (transmission.astype(np.float32) / np.float32(65535)).clip(MIN_TRANSMISSION, 1)
    distance: Picture = -np.log(share)
    return distance


def _reduced(sides: Sides, size: tuple[int, int]) -> Sides:
    """Both at this width and height."""
    interpolation = cv2.INTER_AREA if size[0] < sides[0].shape[1] else cv2.INTER_CUBIC
    first = cv2.resize(sides[0], size, interpolation=interpolation)
    smooth = interpolation if sides[1].ndim == 3 else cv2.INTER_LINEAR  # maps must not overshoot
    second = cv2.resize(sides[1], size, interpolation=smooth)
    return first, second
