"""A film instead of photos: what a network says of one frame is held to what it said of those before it.

What a network finds in two frames that hardly differ differs a little more than they do, and the eye sees that as
flicker. `Steady` smooths maps, which are small, and costs little; `Blend` mixes whole frames along their motion, for
networks that give pictures. Both look back only, both follow what moves, and both begin anew at a cut.
NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

SECONDS = 0.5
"""After so long the share of an old answer has fallen to 1/e, where what it was about is still there."""
BEHIND = 0.1
"""The same behind a network with a memory of its own, which has smoothed already: what is left changes quickly."""
SLOWER = 4.0
"""The airlight is the whole scene's: it changes this many times as slowly as what is seen of a single place."""
TOLERANCE = 0.06
"""A place is taken for the same one where its brightness, in [0, 1], came along up to about this."""
ASTRAY = 1.0
"""Pixels by which a place may miss itself on the way to the frame before and back; a tenth of the way beside it."""
CUT = 0.25
"""Where less than this share of a frame is found in the one before, it shows another scene."""
SIDE = 256
"""The longer side of the picture on which motion is looked for."""
_LAYERS = 4
"""Channels that OpenCV moves at once; of more it gives a wrong picture without a word."""


class Move(NamedTuple):
    """Where each place of a frame was in the frame before, and how far that is to be believed."""

    x: Floats
    """h x w: column in the small picture of the frame before."""
    y: Floats
    """h x w: its row."""
    trust: Floats
    """h x w: 1 where the place looks as it did, 0 where something else was there."""

    def moved(self, before: Floats) -> Floats:
        """What belonged to the frame before (h' x w' x C, any size), where it is in this one."""
        height, width = before.shape[:2]
        if (height, width) == self.x.shape:
            x, y = self.x, self.y
        else:
            across, down = width / self.x.shape[1], height / self.x.shape[0]
            x = (cv2.resize(self.x, (width, height)) + np.float32(0.5)) * np.float32(across) - np.float32(0.5)
            y = (cv2.resize(self.y, (width, height)) + np.float32(0.5)) * np.float32(down) - np.float32(0.5)
        moved = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved).reshape(before.shape)

    def carried(self, state: Floats) -> Floats:
        """A network's memory of the frame before, 1 x C x h' x w', where it is in this frame; there is none of what
        was not seen then."""
        channels, height, width = state.shape[1:]
        layers = np.ascontiguousarray(state[0].transpose(1, 2, 0))
        layers = np.pad(layers, ((0, 0), (0, 0), (0, -channels % _LAYERS)))
        parts = [np.ascontiguousarray(part) for part in np.split(layers, layers.shape[2] // _LAYERS, 2)]
        moved = np.concatenate([self.moved(part) for part in parts], 2)[..., :channels]
        return np.ascontiguousarray((moved * self.trusted(height, width)).transpose(2, 0, 1)[None])

    def trusted(self, height: int, width: int) -> Floats:
        """`trust` at another size, h' x w' x 1."""
        return np.asarray(cv2.resize(self.trust, (width, height)), np.float32)[..., None]


class Motion:
    """The motion from frame to frame, found on small pictures: DIS optical flow (Kroeger et al., ECCV 2016)."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, small: Array) -> Move | None:
        """From the picture shown last to this one, h x w x 3 (uint8, or float32 in [0, 1]).

        None for the first picture, one of another size, and one of another scene.
        """
        light = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        if light.dtype != np.uint8:
            light = np.rint(light * 255).astype(np.uint8)
        last, self._last = self._last, light
        if last is None or last.shape != light.shape or min(light.shape) < 16:
            return None
        flow, back = self._flow.calc(light, last, None), self._flow.calc(last, light, None)
        rows, columns = np.indices(light.shape, np.float32)
        x, y = columns + flow[..., 0], rows + flow[..., 1]
        followed = cv2.remap(last, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        off = cv2.absdiff(light, followed).astype(np.float32) / 255
        # There and back again ends where it began, unless the place was hidden in one of the two (Sundaram et al.,
        # ECCV 2010, section 4); what came in from outside was.
        astray = np.square(flow + cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)).sum(-1)
        astray /= ASTRAY**2 + np.float32(0.01) * np.square(flow).sum(-1)
        trust = np.exp(-((cv2.blur(off, (5, 5)) / TOLERANCE) ** 2) - astray)
        trust[(x < -1) | (y < -1) | (x > light.shape[1]) | (y > light.shape[0])] = 0
        if trust.mean() < CUT:
            return None
        return Move(x, y, np.asarray(trust, np.float32))


class Steady:
    """The maps of a film's frames, smoothed over time.

    t and O of a place are followed as it moves, and held where it still looks as it did; the airlight, which is the
    whole scene's, changes more slowly. After `seconds` the share of an old answer has fallen to 1/e; with 0 maps stay
    as they are.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._motion = Motion()
        self._held: Floats | None = None

    def __call__(self, reduced: Floats, maps: Floats, step: float) -> Floats:
        """The maps to be applied: 1 x 7 x h' x w', of what the network gave for this frame (`maps`) and before.

        `reduced`: the frame as the network saw it, 1 x 3 x h x w in [0, 1]; `step`: seconds since the frame before.
        """
        if not self.seconds:
            return maps
        return self.along(self._motion(np.ascontiguousarray(reduced[0].transpose(1, 2, 0))), maps, step)

    def along(self, move: Move | None, maps: Floats, step: float) -> Floats:
        """The same where the motion since the frame before is known already (None: this is another scene)."""
        if not self.seconds:
            return maps
        new = np.ascontiguousarray(maps[0].transpose(1, 2, 0))
        if move is not None and self._held is not None and self._held.shape == new.shape:
            keep = move.trusted(*new.shape[:2]) * np.float32(math.exp(-step / self.seconds))
            local = [0, 4, 5, 6]
            held = move.moved(np.ascontiguousarray(self._held[..., local]))
            air = np.float32(math.exp(-step / (SLOWER * self.seconds)))
            new[..., local] += keep * (held - new[..., local])
            new[..., 1:4] += air * (self._held[..., 1:4] - new[..., 1:4])
        self._held = new
        return np.ascontiguousarray(new.transpose(2, 0, 1)[None])


class Blend:
    """A film's frames, each mixed with the one before it along the motion in the film that came in.

    For any network; what it costs is a little sharpness where motion is not found to the pixel. `share` of the frame
    before is kept where the place looks as it did.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self._motion = Motion()
        self._held: Array | None = None

    def __call__(self, frame: Array, restored: Array) -> Array:
        """The restored frame, mixed; `frame` is what came in: both H x W x 3 of one type."""
        height, width = frame.shape[:2]
        move = self._motion(small(frame))
        if move is not None and self._held is not None and self._held.shape == restored.shape:
            before = move.moved(self._held)
            keep = np.float32(self.share) * move.trusted(height, width)
            mixed = restored + keep * (before.astype(np.float32) - restored)
            restored = mixed if restored.dtype == np.float32 else np.rint(mixed).astype(restored.dtype)
        self._held = restored
        return restored


def small(frame: Array) -> Array:
    """A frame, H x W x 3, reduced to at most SIDE pixels a side, as `Motion` takes it."""
    height, width = frame.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return (reduced >> 8).astype(np.uint8) if reduced.dtype == np.uint16 else np.asarray(reduced)
