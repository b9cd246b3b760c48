"""How like are an artefact's pictures to those of the float model, and is that enough to be kept?

The bar for int8 is set in decibels to the truth: a model may lose `DROP` of them. Where no truth is at hand it follows
from the model's own scores: what quantization adds is as good as independent of the model's own error, squared errors
add, and so an artefact whose pictures lie `margin` above the model's PSNR from the float model's loses just that much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.deploy.samples import Sample
from fairweather.restoring.restorer import Restorer

DROP = {"dynamic": 0.15, "static": 0.15, "qat": 0.1}
"""dB that PSNR to the truth may fall, mean over the photos."""
LEAST = 36.0
"""dB between the outputs without which an artefact is refused whatever its PSNR to the truth: it is another network
then, which may be nearer to these truths by chance."""
WITHOUT_SCORES = 26.0
"""The PSNR that a model is taken to have whose card says none; about what laptop-sized training reaches."""
SAME = 99.0
"""dB that stand for equal pictures, whose PSNR is infinite."""


@dataclass(frozen=True)
class Likeness:
    """An artefact against its float model over some photos."""

    psnr: float
    """dB between their pictures, mean over photos."""
    worst: float
    """Largest difference of a value in any picture, in [0,1]."""
    change: float | None
    """dB that PSNR to the truth changes by, mean over photos; None where there are no truths."""
    photos: int

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        change = "" if self.change is None else f", {self.change:+.2f} dB to the truth"
        return f"{self.psnr:.1f} dB alike, worst pixel {self.worst:.3f}{change} on {self.photos} photos"


@dataclass(frozen=True)
class Bar:
    """What an int8 artefact has to reach."""

    psnr: float
    """dB between the outputs, at least."""
    drop: float | None
    """dB to the truth, at most; None where there are no truths."""

    def missed(self, found: Likeness, slack: float = 0.0) -> str | None:
        """What is not reached, in words, or None. With `slack` the bar is harder by that share of it."""
        if self.drop is not None and not (found.change is not None and -found.change <= self.drop * (1 - slack)):
            return f"PSNR to the truth changes by {found.change:+.2f} dB ({-self.drop:+.2f} is allowed)"
        if not found.psnr >= self.psnr + 5 * slack:  # a NaN fails too
            return f"its pictures agree to {found.psnr:.1f} dB ({self.psnr:.1f} are needed)"
        return None


def bar(card: cards.Card, method: str, *, paired: bool) -> Bar:
    """The bar for one model's int8 by a method of DROP."""
    if paired:
        return Bar(LEAST, DROP[method])
    scores = [s["value"] for s in card.scores if str(s["metric"]).lower() == "psnr" and s["protocol"] == "rgb"]
    return Bar(max(LEAST, max(scores, default=WITHOUT_SCORES) + margin(DROP[method])), None)


def margin(drop: float) -> float:
    """dB by which a noise must lie below an error so that both together are `drop` dB worse than the error alone."""
    return -10 * math.log10(10 ** (drop / 10) - 1)


def pictures_of(restorer: Restorer, samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
    """What the network says itself, unguarded: a guard would hide differences."""
    return [np.asarray(restorer(sample.degraded, guard=False), np.float32) for sample in samples]


def compare(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], samples: Sequence[Sample]
) -> Likeness:
    """The float model's pictures of `samples` against an artefact's."""
    truths = [sample.clear for sample in samples]
    changes = [
        decibels(b, truth) - decibels(a, truth)
        for a, b, truth in zip(expected, found, truths, strict=True)
        if truth is not None
    ]
    return Likeness(
        psnr=float(np.mean([decibels(a, b) for a, b in zip(expected, found, strict=True)])),
        worst=max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)),
        change=float(np.mean(changes)) if len(changes) == len(samples) else None,
        photos=len(samples),
    )


def decibels(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """PSNR for pictures in [0,1], at most SAME."""
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return SAME if error == 0 else min(SAME, -10 * math.log10(error))
