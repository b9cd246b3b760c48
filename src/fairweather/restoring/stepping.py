"""Networks with a memory, frame by frame: state in, state out, and nothing kept in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairweather.cards import StateSpec
from fairweather.errors import BadSettings

if TYPE_CHECKING:
    from fairweather.restoring.restorer import Restorer, Seen

Floats = NDArray[np.float32]
Run = Callable[..., list[Floats]]
"""A network's inputs, in its own order -> all its outputs."""


class Stepping:
    """An engine of a network with a memory. Called with a picture alone it is an engine like any other, for which each
    picture is the first of its clip; `step` goes on from a state."""

    def __init__(self, run: Run, spec: StateSpec) -> None:
        self._run = run
        self.spec = spec

    def __call__(self, picture: Floats) -> Floats:
        return self.step(picture)[0]

    def step(self, picture: Floats, state: Floats | None = None) -> tuple[Floats, Floats]:
        """1 x 3 x h x w in [0, 1], and the state behind the frame before (None: there is none) -> the answer, and the
        state behind this one, 1 x channels x h/stride x w/stride. Raises BadSettings for a state of another size."""
        shape = (1, self.spec.channels, picture.shape[2] // self.spec.stride, picture.shape[3] // self.spec.stride)
        if state is None:
            state = np.zeros(shape, np.float32)
        elif state.shape != shape:
            raise BadSettings(
                f"a state of {' x '.join(map(str, state.shape))} does not belong to this frame, whose own is "
                f"{' x '.join(map(str, shape))}: begin anew (state None) where frames change their size or model"
            )
        answer, after = self._run(picture, state)
        return answer, after


def engine_of(run: Run, card: Any) -> Callable[[Floats], Floats]:
    """The engine of a card (or what is like one) whose network is run by `run`."""
    spec: StateSpec | None = getattr(card, "state", None)
    return Stepping(run, spec) if spec is not None else lambda picture: run(picture)[0]


def step(restorer: Restorer, frame: NDArray[Any], state: Floats | None = None) -> tuple[Seen, Floats]:
    """What a restorer whose model has a memory sees in the next frame of a clip, and the state behind it.

    frame: H x W x 3 uint8, uint16 or float32 in [0, 1]. state: what the call for the frame before gave; None for the
    first frame, and after a cut. `restorer.applied(frame, seen)` is the restored frame, at any strength. The restorer
    keeps nothing of it, so that one restorer may be in the middle of several clips.
    Raises BadSettings (a model without a memory, a state of another size), and BadImage as a call of the restorer does.
    """
    from fairweather.restoring.restorer import Restorer

    engine = restorer.engine
    if not isinstance(engine, Stepping):
        raise BadSettings(
            f"model {restorer.card.name} has no memory: take one whose card has a state, or frame by frame"
        )
    behind: list[Floats] = []

    def run(picture: Floats) -> Floats:
        answer, after = engine.step(picture, state)
        behind.append(after)
        return answer

    seen = Restorer(restorer.card, run, memory=1).seen(frame)  # with all that it checks on the way
    return seen, behind[-1]
