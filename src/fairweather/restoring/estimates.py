"""What the models themselves say of the weather in a photo: second witnesses beside the network that recognises it.

A network that was taught to take weather out and to leave clear photos alone knows how much there is to take out. That
is other knowledge than the recognizer's, from more and other training: on held-back photos either misses what the other
sees (docs/models.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fairweather.restoring.restorer import Restorer

NO_VEIL, NO_STREAKS = math.log(0.01), -60.0
"""The least that `veil` and `streaks` answer, and what is taken for their answers where they are not asked."""
SIDE = 96
"""Windows are shown to the model in this size, the middle of each: enough for streaks, and a third of the work."""


def veil(dehaze: Restorer, photo: NDArray[Any]) -> float:
    """ln(0.01 + the mean of 1 - t), at least NO_VEIL, for the transmission t that a maps model sees: -4 in clear air,
    towards 0 in fog."""
    transmission = dehaze.maps(photo)["transmission"]
    return math.log(0.01 + max(0.0, 1 - float(transmission.mean(dtype=np.float64))))


def streaks(derain: Restorer, windows: Iterable[NDArray[np.float32]]) -> float:
    """How much a model changes in windows of a photo (each 3 x S x S in [0,1], S >= SIDE), in dB against white.

    The median over the windows of 10 lg(mean square change): rain is everywhere, a fence is in one place. -60 and less
    is nothing, -15 heavy rain.
    """
    changes = []
    for window in windows:
        edge = (window.shape[1] - SIDE) // 2
        middle = np.ascontiguousarray(window[:, edge : edge + SIDE, edge : edge + SIDE].transpose(1, 2, 0))
        changes.append(float(np.square(derain(middle, guard=False) - middle).mean()))
    return 10 * math.log10(max(10 ** (NO_STREAKS / 10), float(np.median(changes))))
