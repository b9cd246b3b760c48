"""A camera that moves over a picture: where it looks at any moment is a formula, for clips of any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadSettings

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
