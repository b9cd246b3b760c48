"""Scores of one set of pairs: each photo restored and measured, a bad one reported while the others go on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.evaluation.metrics import METRICS, Protocol
from fairweather.images.io import read, to_float
from fairweather.pairs import Pair, pictures

Picture = NDArray[np.float32]
Restore = Callable[[Picture], Picture]
"""H x W x 3 float32 in [0,1] -> the same shape and range; a ``fairweather.Restorer`` is one."""
Produce = Callable[[Pair, Picture], Picture]
"""What gives the output for a pair and its degraded picture: a restorer, or a folder of finished outputs."""


@dataclass(frozen=True)
class Score:
    """A mean over the photos of one set, and all that keeps it from being a bare number."""

    metric: str
    protocol: str
    data: str
    n: int
    value: float
    """The mean over photos of the metric."""
    spread: float | None
    """Its sample standard deviation over photos; None for fewer than two."""
    input: float
    """The same mean for the degraded photos as they came."""
    worse: int
    """How many of the n photos the restorer left further from the truth than it found them."""

    def as_dict(self) -> dict[str, Any]:
        """For ``scores.json`` and for a model's card."""
        return {
            "metric": self.metric,
            "protocol": self.protocol,
            "data": self.data,
            "n": self.n,
            "value": rounded(self.value),
            "spread": None if self.spread is None else rounded(self.spread),
            "input": rounded(self.input),
            "worse": self.worse,
        }


@dataclass(frozen=True)
class PhotoScore:
    """One photo's metrics, of the output and of the input itself."""

    pair: Pair
    scores: dict[str, float]
    input: dict[str, float]


@dataclass(frozen=True)
class SetScores:
    """One set under one protocol: what was measured, and which photos could not be, with the reason."""

    data: str
    protocol: Protocol
    photos: tuple[PhotoScore, ...]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> list[Score]:
        """One Score a metric; empty when every photo failed."""
        return [self._score(metric) for metric in METRICS] if self.photos else []

    def _score(self, metric: str) -> Score:
        ours = [photo.scores[metric] for photo in self.photos]
        theirs = [photo.input[metric] for photo in self.photos]
        finite = all(math.isfinite(value) for value in ours)
        return Score(
            metric=metric,
            protocol=self.protocol.name,
            data=self.data,
            n=len(ours),
            value=sum(ours) / len(ours),
            spread=statistics.stdev(ours) if len(ours) > 1 and finite else None,
            input=sum(theirs) / len(theirs),
            worse=sum(a < b for a, b in zip(ours, theirs, strict=True)),
        )

    def ranked(self) -> list[PhotoScore]:
        """The photos from best to worst PSNR."""
        return sorted(self.photos, key=lambda photo: -photo.scores["psnr"])


def rounded(value: float) -> float | str:
    """Four decimals; infinity, which JSON does not have, as the text "inf"."""
    return round(value, 4) if math.isfinite(value) else str(value)


def load_pair(pair: Pair) -> tuple[Picture, Picture]:
    """(degraded, clear), H x W x 3 float32 in [0,1] each; raises BadImage, naming the file."""
    return to_float(read(pair.degraded).pixels), to_float(read(pair.clear).pixels)


def score_set(
    data: str,
    pairs: Sequence[Pair],
    produce: Produce,
    protocol: Protocol,
    *,
    progress: Callable[[Pair], None] | None = None,
    inputs: dict[str, dict[str, float]] | None = None,
) -> SetScores:
    """Restore and measure every pair of one set.

    inputs: pair's name -> the scores of its untouched photo; what is missing is measured and put there, so that many
    systems under one protocol measure it once.

    A photo that cannot be read, restored or compared goes to ``failed`` with its reason; a missing extra or a bad
    setting does not, since every photo would fail by it.
    """
    photos, failed, known = [], {}, {} if inputs is None else inputs
    for pair in pairs:
        try:
            degraded, clear = load_pair(pair)
            if pair.name not in known:
                known[pair.name] = protocol.measure(degraded, clear)
            photos.append(PhotoScore(pair, protocol.measure(produce(pair, degraded), clear), known[pair.name]))
        except (MissingExtra, BadSettings):
            raise
        except (FairweatherError, OSError) as error:
            failed[pair.name] = f"{pair.degraded}: {error}"
        if progress is not None:
            progress(pair)
    return SetScores(data, protocol, tuple(photos), failed)


def restore_pairs(restorer: Restore) -> Produce:
    """The outputs of a restorer."""
    return lambda pair, degraded: restorer(degraded)


def outputs_from_folder(folder: Path, pairs: Iterable[Pair]) -> Produce:
    """Finished outputs in ``folder``, one for each pair, named as its degraded photo (any suffix, any case).

    Raises BadFolder naming what is missing, before anything is measured.
    """
    found = {(path.relative_to(folder).parent / path.stem).as_posix().lower(): path for path in pictures(folder)}
    outputs = {pair.name: found.get(pair.name.lower()) for pair in pairs}
    missing = [name for name, path in outputs.items() if path is None]
    if missing:
        raise BadFolder(f"{folder} lacks {len(missing)} of {len(outputs)} outputs, the first for {missing[0]!r}")

    def produce(pair: Pair, degraded: Picture) -> Picture:
        path = outputs[pair.name]
        if path is None:
            raise BadImage(f"no output for {pair.name!r} in {folder}")
        output: Picture = to_float(read(path).pixels)
        return output

    return produce


def clear_pairs(folder: str | Path) -> list[Pair]:
    """Clear photos as pairs with themselves: what a restorer does to a photo that has nothing to remove."""
    folder = Path(folder)
    pairs = [Pair(path, path, path.relative_to(folder).with_suffix("").as_posix()) for path in pictures(folder)]
    if not pairs:
        raise BadFolder(f"{folder} holds no pictures; give a folder of clear photos")
    return pairs


def worst_first(result: SetScores) -> list[PhotoScore]:
    """The photos of a set from the lowest PSNR to the highest."""
    return sorted(result.photos, key=lambda photo: photo.scores["psnr"])


def psnr_gain(photo: PhotoScore, metric: str) -> float | None:
    """By how much the restorer brought the photo nearer to the truth; None where input and output both equal it."""
    before, after = photo.input[metric], photo.scores[metric]
    return None if before == after == float("inf") else after - before
