"""Scores of one set of pairs: every photo is restored and measured; failures are recorded and do not stop the run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
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
"""H x W x 3 float32 in [0, 1] -> the same shape and range, e.g. a `fairweather.Restorer`."""
Produce = Callable[[Pair, Picture], Picture]
"""A pair and its degraded photo -> the output: from a restorer, or from a folder of outputs."""


@dataclass(frozen=True)
class Score:
    """The mean of a metric over the photos of a set, with its protocol and data."""

    metric: str
    protocol: str
    data: str
    """Name of the set."""
    n: int
    """Number of photos."""
    value: float
    """Mean of the restored photos."""
    spread: float | None
    """Sample standard deviation over the photos; None for fewer than two."""
    input: float
    """Mean of the degraded photos."""
    worse: int
    """Number of photos that restoring made worse."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for `scores.json` and a model's card, with four decimals."""
        return {key: rounded(value) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class PhotoScore:
    """The metrics of one photo."""

    pair: Pair
    scores: dict[str, float]
    """Metric -> value of the restored photo."""
    input: dict[str, float]
    """Metric -> value of the degraded photo."""

    def gain(self, metric: str) -> float | None:
        """Return the improvement of a metric by restoring; None if input and output both equal the truth."""
        before, after = self.input[metric], self.scores[metric]
        return None if before == after == math.inf else after - before


@dataclass(frozen=True)
class SetScores:
    """One set under one protocol."""

    data: str
    """Name of the set."""
    protocol: Protocol
    photos: tuple[PhotoScore, ...]
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a photo that could not be scored -> the reason."""

    @property
    def scores(self) -> list[Score]:
        """One Score for each metric; empty if every photo failed."""
        return [self._score(metric) for metric in METRICS] if self.photos else []

    def _score(self, metric: str) -> Score:
        restored = [photo.scores[metric] for photo in self.photos]
        degraded = [photo.input[metric] for photo in self.photos]
        finite = all(math.isfinite(value) for value in restored)
        return Score(
            metric=metric,
            protocol=self.protocol.name,
            data=self.data,
            n=len(restored),
            value=sum(restored) / len(restored),
            spread=statistics.stdev(restored) if len(restored) > 1 and finite else None,
            input=sum(degraded) / len(degraded),
            worse=sum(after < before for after, before in zip(restored, degraded, strict=True)),
        )

    def worst_first(self) -> list[PhotoScore]:
        """Return the photos from the lowest PSNR to the highest."""
        return sorted(self.photos, key=lambda photo: photo.scores["psnr"])


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

    Args:
        data: name of the set.
        pairs: its pairs.
        produce: returns the output for a pair: from `restore_pairs` or `outputs_from_folder`.
        protocol: how photos are compared.
        progress: called after each pair.
        inputs: name of a pair -> scores of its degraded photo. Missing ones are measured and added, so that several
            systems can share them.

    Returns:
        The scores; a photo that cannot be read, restored or compared is in `failed`.

    Raises:
        MissingExtra, BadSettings: errors that would occur for every photo.
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


def load_pair(pair: Pair) -> tuple[Picture, Picture]:
    """Read a pair.

    Returns:
        The degraded and the clear photo, H x W x 3 float32 in [0, 1].

    Raises:
        BadImage: one of them cannot be read.
    """
    return to_float(read(pair.degraded).pixels), to_float(read(pair.clear).pixels)


def restore_pairs(restorer: Restore) -> Produce:
    """Return a `produce` function for `score_set` that runs a restorer."""
    return lambda pair, degraded: restorer(degraded)


def outputs_from_folder(folder: Path, pairs: Iterable[Pair]) -> Produce:
    """Return a `produce` function for `score_set` that reads existing outputs.

    Args:
        folder: one output for each pair, named as its degraded photo (any suffix, any case).
        pairs: the pairs.

    Raises:
        BadFolder: an output is missing.
    """
    found = {(path.relative_to(folder).parent / path.stem).as_posix().lower(): path for path in pictures(folder)}
    outputs = {pair.name: found.get(pair.name.lower()) for pair in pairs}
    missing = [name for name, path in outputs.items() if path is None]
    if missing:
        raise BadFolder(
            f"{folder}: {len(missing)} of {len(outputs)} outputs are missing, the first for {missing[0]!r}: add them"
        )

    def produce(pair: Pair, degraded: Picture) -> Picture:
        path = outputs.get(pair.name)
        if path is None:
            raise BadImage(f"{folder}: no output for {pair.name!r}: add it")
        return to_float(read(path).pixels)

    return produce


def clear_pairs(folder: str | Path) -> list[Pair]:
    """Return clear photos as pairs with themselves, to measure how much a restorer changes them.

    Raises:
        BadFolder: there are no pictures.
    """
    folder = Path(folder)
    pairs = [Pair(path, path, path.relative_to(folder).with_suffix("").as_posix()) for path in pictures(folder)]
    if not pairs:
        raise BadFolder(f"{folder} contains no pictures: give a folder of clear photos")
    return pairs


def rounded(value: float) -> float | str:
    """Round to four decimals; infinity, which JSON does not have, becomes "inf"."""
    return round(value, 4) if math.isfinite(value) else str(value)
