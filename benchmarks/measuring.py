"""What quality.py measures: systems on pairs, on clear photos that should stay, and on real photos without a truth."""

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
from fairweather.evaluation import PROTOCOLS, SetScores, against_themselves, from_folder, score_set, write_scores
from fairweather.evaluation.metrics import psnr
from fairweather.evaluation.protocols import Protocol
from fairweather.evaluation.sets import Picture, Produce, Restore
from fairweather.files import atomic
from fairweather.images import read, to_float
from fairweather.pairs import Pair, pictures

RAINY = {"rain", "rainy", "rainy_image", "light", "heavy"}
"""Names of the folder of degraded photos that say that it rains there; all others are taken to be hazy."""
STAYS = 36.0
"""dB between a clear photo and what became of it from which hardly anybody sees a difference side by side."""
Sets = Mapping[str, Sequence[Pair]]
Maker = Callable[[str, Sequence[Pair]], Produce | None]
"""(set's name, its pairs) -> what makes the outputs, or None for a set that this system has nothing for."""


@dataclass(frozen=True)
class System:
    """Something that takes weather out, by one of two ways: it can be run, or only its outputs are at hand."""

    make: Maker
    restore: Restore | None = None
    """None where there are only outputs: it is then not run on clear photos and on those without a truth."""
    weather: str | None = None
    """What it is for: it is scored on such sets alone. None: on all."""

    def fits(self, weather: str) -> bool:
        return self.weather not in ("haze", "rain") or self.weather == weather


@dataclass(frozen=True)
class Row:
    """One system on one set under one protocol."""

    system: str
    result: SetScores
    near: float = math.nan
    """Glow in levels of 255, see glow.py; of haze sets only."""
    elsewhere: float = math.nan


@dataclass(frozen=True)
class Kept:
    """One system on clear photos: how near each stayed to itself."""

    system: str
    data: str
    decibel: Mapping[str, float]
    """Photo -> PSNR against itself (RGB, float, no rounding); infinite where nothing was changed."""

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
        """Share of the photos that keep STAYS dB or more."""
        return sum(value >= STAYS for value in self.decibel.values()) / len(self.decibel)


@dataclass(frozen=True)
class Natural:
    """One system on real photos without a truth: photo -> change from the input (see evaluation/unreferenced.py)."""

    system: str
    data: str
    changes: Mapping[str, Mapping[str, float]]

    def mean(self, name: str) -> float:
        return sum(change[name] for change in self.changes.values()) / len(self.changes)


@dataclass(frozen=True)
class Measured:
    """All that one run of quality.py found."""

    rows: Sequence[Row] = ()
    kept: Sequence[Kept] = ()
    natural: Sequence[Natural] = ()
    failed: Sequence[str] = field(default=())

    def kept_overall(self, system: str, among: Callable[[str], bool] = lambda data: True) -> Kept | None:
        """A system's clear photos of several folders together."""
        found = {
            f"{one.data}/{photo}": value
            for one in self.kept
            if one.system == system and among(one.data)
            for photo, value in one.decibel.items()
        }
        return Kept(system, "all", found) if found else None

    def write(self, folder: Path) -> None:
        """<system>.json with each photo's own numbers; clear.json and real.json."""
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
    """Whether a set's degraded photos are hazy or rainy, by the name of their folder."""
    return "rain" if pairs[0].degraded.parent.name.lower() in RAINY else "haze"


def protocols_of(pairs: Sequence[Pair]) -> list[Protocol]:
    """RGB for all; rain is also told in the luma of the deraining papers."""
    return [PROTOCOLS[name] for name in (("rgb", "rain-y") if weather_of(pairs) == "rain" else ("rgb",))]


def by_function(restore: Restore, weather: str | None = None) -> System:
    """A system that is a function of the picture alone."""
    return System(lambda data, pairs: lambda pair, degraded: restore(degraded), restore, weather)


def by_outputs(folder: Path, sets: Sets) -> System:
    """A system of which only the outputs are at hand. Raises BadFolder when it has nothing for any set."""
    places = {data: folder / data if (folder / data).is_dir() else folder for data in sets}
    if len(sets) > 1:
        places = {data: place for data, place in places.items() if place != folder}
    if not places or not folder.is_dir():
        raise BadFolder(f"{folder} holds no outputs: it needs a folder for each set, named {', '.join(sets)}")
    return System(lambda data, pairs: from_folder(places[data], pairs) if data in places else None)


def on_pairs(
    systems: Mapping[str, System], sets: Sets, rules: Sequence[Protocol] = (), tell: Callable[[str], None] = print
) -> list[Row]:
    """Every system on every set that it fits, in the order in which a reader compares them: set by set.

    rules: the protocols; by default those of each set's weather. tell: is called with a line before each.
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
    """The second protocol does not run the network again."""
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
    if weather_of(pairs) == "rain":  # streaks are no glow
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
    """A folder of clear photos and the clear side of each set, every photo once, as pairs with themselves."""
    found = {} if folder is None else {folder.resolve().name: against_themselves(folder)}
    seen: set[Path] = set()
    for data, pairs in sets.items():
        name = data.rpartition("/")[0] if data.endswith(("/light", "/heavy")) else data
        clear = [path for path in dict.fromkeys(pair.clear for pair in pairs) if path not in seen]
        seen.update(clear)
        if clear:
            found[f"{name}/clear"] = [Pair(path, path, path.stem) for path in clear]
    return found


def on_clear(systems: Mapping[str, System], sets: Sets, tell: Callable[[str], None] = print) -> list[Kept]:
    """Every system that can be run, whatever its weather, on photos that have none."""
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
    """Every system that can be run and fits, on each folder of photos below `folder` (named after its weather)."""
    from fairweather.evaluation.unreferenced import change

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
                    changes[photo] = change(before, system.restore(before)).as_dict()
                found.append(Natural(name, place.name, changes))
    return found
