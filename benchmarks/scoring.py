"""Run systems on pairs, on clear photos and on real photos without ground truth, and collect the scores."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from glow import glow

from fairweather.errors import BadFolder
from fairweather.evaluation import PROTOCOLS, SetScores, clear_pairs, outputs_from_folder, score_set, write_scores
from fairweather.evaluation.metrics import Protocol, psnr
from fairweather.evaluation.scores import Picture, Produce, Restore
from fairweather.files import atomic
from fairweather.images.io import read, to_float
from fairweather.pairs import Pair, pictures

RAINY = {"rain", "rainy", "rainy_image", "light", "heavy"}
"""Folder names of rainy photos; all other degraded photos count as hazy."""
STAYS = 36.0
"""PSNR in dB of a clear photo against itself above which a difference is hardly visible."""
Sets = Mapping[str, Sequence[Pair]]
Maker = Callable[[str, Sequence[Pair]], Produce | None]
"""(name of the set, its pairs) -> the function that makes outputs, or None if the system has none for the set."""


@dataclass(frozen=True)
class System:
    """A system to score: a function of the photo, or a folder of its outputs."""

    make: Maker
    restore: Restore | None = None
    """None if only outputs exist; clear photos and photos without ground truth are then left out."""
    weather: str | None = None
    """The weather that it removes, which limits the sets; None: all sets."""

    def fits(self, weather: str) -> bool:
        return self.weather not in ("haze", "rain") or self.weather == weather


@dataclass(frozen=True)
class Row:
    """Scores of one system on one set with one protocol."""

    system: str
    result: SetScores
    near: float = math.nan
    """Glow in levels of 255 (glow.py); haze sets only."""
    elsewhere: float = math.nan


@dataclass(frozen=True)
class Kept:
    """PSNR of clear photos against themselves for one system."""

    system: str
    data: str
    decibel: Mapping[str, float]
    """Photo -> PSNR against itself (RGB, float, no rounding); infinite if unchanged."""

    @property
    def worst(self) -> float:
        return min(self.decibel.values())

    @property
    def mean(self) -> float:
        return sum(self.decibel.values()) / len(self.decibel)

    @property
    def spread(self) -> float | None:
        finite = all(map(math.isfinite, self.decibel.values()))
        return statistics.stdev(self.decibel.values()) if finite and len(self.decibel) > 1 else None

    @property
    def unchanged(self) -> int:
        return sum(map(math.isinf, self.decibel.values()))

    @property
    def stay(self) -> float:
        """Fraction of the photos at STAYS dB or more."""
        return sum(value >= STAYS for value in self.decibel.values()) / len(self.decibel)


@dataclass(frozen=True)
class Natural:
    """Changes by one system in real photos without ground truth (fairweather.evaluation.no_reference)."""

    system: str
    data: str
    changes: Mapping[str, Mapping[str, float]]

    def mean(self, name: str) -> float:
        return sum(change[name] for change in self.changes.values()) / len(self.changes)


@dataclass(frozen=True)
class Measured:
    """The results of one run of quality.py."""

    rows: Sequence[Row] = ()
    kept: Sequence[Kept] = ()
    natural: Sequence[Natural] = ()
    failed: Sequence[str] = field(default=())

    def kept_overall(self, system: str, among: Callable[[str], bool] = lambda data: True) -> Kept | None:
        """A system's clear photos over several folders."""
        found = {
            f"{one.data}/{photo}": value
            for one in self.kept
            if one.system == system and among(one.data)
            for photo, value in one.decibel.items()
        }
        return Kept(system, "all", found) if found else None

    def write(self, folder: Path) -> None:
        """Write <system>.json, clear.json and real.json with the values of each photo."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(row.system for row in self.rows):
            results = [row.result for row in self.rows if row.system == name]
            write_scores(folder / f"{name.replace(' ', '-').replace('/', '-')}.json", results, name)
        clear = [{"system": k.system, "data": k.data, "psnr": {p: _json(v) for p, v in k.decibel.items()}}
                 for k in self.kept]  # fmt: skip
        real = [{"system": n.system, "data": n.data, "change": dict(n.changes)} for n in self.natural]
        for name, document in (("clear", clear), ("real", real)):
            with atomic(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _json(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else "inf"


def weather_of(pairs: Sequence[Pair]) -> str:
    """ "haze" or "rain", by the folder name of the degraded photos."""
    return "rain" if pairs[0].degraded.parent.name.lower() in RAINY else "haze"


def protocols_of(pairs: Sequence[Pair]) -> list[Protocol]:
    """rgb for all sets, and rain-y for rain."""
    return [PROTOCOLS[name] for name in (("rgb", "rain-y") if weather_of(pairs) == "rain" else ("rgb",))]


def by_function(restore: Restore, weather: str | None = None) -> System:
    """A system that is a function of the photo."""
    return System(lambda data, pairs: lambda pair, degraded: restore(degraded), restore, weather)


def by_outputs(folder: Path, sets: Sets) -> System:
    """A system given by its output pictures. Raises BadFolder if it has none for any set."""
    places = {data: folder / data if (folder / data).is_dir() else folder for data in sets}
    if len(sets) > 1:
        places = {data: place for data, place in places.items() if place != folder}
    if not places or not folder.is_dir():
        raise BadFolder(f"{folder} has no outputs: add a folder for each set, named {', '.join(sets)}")
    return System(lambda data, pairs: outputs_from_folder(places[data], pairs) if data in places else None)


def on_pairs(
    systems: Mapping[str, System], sets: Sets, rules: Sequence[Protocol] = (), tell: Callable[[str], None] = print
) -> list[Row]:
    """Score every system on every set with its weather, set by set.

    rules: the protocols; by default those of the set's weather. tell: called with a progress line.
    """
    rows = []
    for data, pairs in sets.items():
        makers = {name: one.make(data, pairs) for name, one in systems.items() if one.fits(weather_of(pairs))}
        outputs = {name: produce for name, produce in makers.items() if produce is not None}
        used = rules or protocols_of(pairs)
        if len(used) > 1:
            outputs = {name: _remembered(produce) for name, produce in outputs.items()}
        for rule in used:
            inputs: dict[str, dict[str, float]] = {}
            for name, produce in outputs.items():
                tell(f"{data}: {name} ({rule.name})")
                rows.append(_row(name, data, pairs, produce, rule, inputs))
    return rows


def _remembered(produce: Produce) -> Produce:
    """Cache outputs, so that a second protocol does not run the network again."""
    outputs: dict[str, Picture] = {}

    def once(pair: Pair, degraded: Picture) -> Picture:
        if pair.name not in outputs:
            outputs[pair.name] = produce(pair, degraded)
        return outputs[pair.name]

    return once


def _row(
    system: str,
    data: str,
    pairs: Sequence[Pair],
    produce: Produce,
    protocol: Protocol,
    inputs: dict[str, dict[str, float]],
) -> Row:
    if weather_of(pairs) == "rain":  # glow is defined for haze
        return Row(system, score_set(data, pairs, produce, protocol, inputs=inputs))
    glows: list[tuple[float, float]] = []

    def watched(pair: Pair, degraded: Picture) -> Picture:
        output = produce(pair, degraded)
        glows.append(glow(output, protocol.aligned(output, to_float(read(pair.clear).pixels))))
        return output

    result = score_set(data, pairs, watched, protocol, inputs=inputs)
    near, elsewhere = (_mean([pair[k] for pair in glows]) for k in (0, 1))
    return Row(system, result, near, elsewhere)


def _mean(values: Iterable[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def clear_photos(sets: Sets, folder: Path | None) -> dict[str, list[Pair]]:
    """Clear photos of a folder and of each set, every photo once, as pairs with themselves."""
    found = {} if folder is None else {folder.resolve().name: clear_pairs(folder)}
    seen: set[Path] = set()
    for data, pairs in sets.items():
        name = data.rpartition("/")[0] if data.endswith(("/light", "/heavy")) else data
        clear = [path for path in dict.fromkeys(pair.clear for pair in pairs) if path not in seen]
        seen.update(clear)
        if clear:
            found[f"{name}/clear"] = [Pair(path, path, path.stem) for path in clear]
    return found


def on_clear(systems: Mapping[str, System], sets: Sets, tell: Callable[[str], None] = print) -> list[Kept]:
    """Run every system on clear photos, whatever its weather."""
    kept = []
    for data, pairs in sets.items():
        for name, system in systems.items():
            if system.restore is not None:
                tell(f"{data}: {name}")
                values = {}
                for pair in pairs:
                    photo = to_float(read(pair.clear).pixels)
                    values[pair.name] = psnr(np.clip(system.restore(photo), 0, 1), photo)
                kept.append(Kept(name, data, values))
    return kept


def on_real(systems: Mapping[str, System], folder: Path, tell: Callable[[str], None] = print) -> list[Natural]:
    """Run systems on the folders of real photos below `folder`, whose names state the weather."""
    from fairweather.evaluation.no_reference import measure_change

    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "video"):
        weather = "rain" if "rain" in place.name.lower() else "haze"
        photos = {path.stem: path for path in pictures(place)}
        for name, system in systems.items():
            if system.restore is not None and system.fits(weather) and photos:
                tell(f"{place.name}: {name}")
                changes: dict[str, dict[str, Any]] = {}
                for photo, path in photos.items():
                    before = to_float(read(path).pixels)
                    changes[photo] = measure_change(before, system.restore(before)).as_dict()
                found.append(Natural(name, place.name, changes))
    return found
