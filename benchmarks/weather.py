"""Accuracy of `restore --weather auto`, and the cost of its errors, in two tables.

    python benchmarks/weather.py [--data DIR] [--clear DIR] [--real DIR] [--dehaze NAME|PATH] [--derain NAME|PATH]
                                 [--engine auto] [--photos]

--data    test pairs: sets of hazy and rainy photos, and their clear sides
--clear   further clear photos
--real    folders of photos without ground truth
--photos  also list every photo with a decision other than that of its set

The first table counts decisions by kind of photo. The second has their consequences: PSNR of clear photos against
themselves (those detected as clear are unchanged), and the mean PSNR that hazy and rainy photos lose compared with
naming the model (protocol rgb for haze, rain-y for rain).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from measuring import DATA
from scoring import weather_of

from fairweather.errors import BadSettings, FairweatherError
from fairweather.evaluation.metrics import PROTOCOLS, psnr
from fairweather.images.io import read, to_float
from fairweather.inference.restorer import AutoRestorer, load
from fairweather.inference.weather_detection import WEATHER_MODELS, Decision, Weather, load_detector, plan
from fairweather.pairs import Pair, find_sets, pictures

DECISIONS = ("none", "haze", "rain", "both")
NEAR, FAR = 36.0, 28.0
"""PSNR in dB: no visible difference, and a clearly visible one."""


@dataclass(frozen=True)
class Row:
    """Decisions on one kind of photos, and their cost."""

    name: str
    truth: str
    """none, haze or rain; empty if unknown."""
    seen: Mapping[str, Weather]
    decibel: Mapping[str, float]
    """PSNR with auto: clear photos against themselves, others against the ground truth."""
    named: Mapping[str, float]
    """PSNR against the ground truth with the named model."""

    @property
    def counts(self) -> list[int]:
        return [sum(weather.decided == decision for weather in self.seen.values()) for decision in DECISIONS]

    @property
    def loss(self) -> float:
        """Mean dB lost compared with naming the model."""
        return statistics.fmean(self.named.values()) - statistics.fmean(self.decibel.values())

    @property
    def strays(self) -> dict[str, Weather]:
        return {name: weather for name, weather in self.seen.items() if self.truth and weather.decided != self.truth}


def clear_row(auto: AutoRestorer, name: str, paths: Sequence[Path]) -> Row:
    """Clear photos; only those detected as hazy or rainy are restored."""
    seen, decibel = {}, {}
    for path in paths:
        photo = to_float(read(path).pixels)
        weather = seen[path.stem] = auto.detect(photo)
        touched = weather.decided != "none"
        restored = auto.apply(photo, plan(lambda weather=weather: weather, models=auto.models))
        decibel[path.stem] = psnr(restored, photo) if touched else math.inf
    return Row(name, "none", seen, decibel, {})


def weather_row(auto: AutoRestorer, name: str, truth: Decision, pairs: Sequence[Pair]) -> Row:
    """Photos of one kind of weather, restored with auto and with the named model."""
    protocol = PROTOCOLS["rain-y" if truth == "rain" else "rgb"]
    seen: dict[str, Weather] = {}
    decibel: dict[str, float] = {}
    named: dict[str, float] = {}
    for pair in pairs:
        degraded, clear = (to_float(read(path).pixels) for path in (pair.degraded, pair.clear))
        weather = seen[pair.name] = auto.detect(degraded)
        detected = plan(lambda weather=weather: weather, models=auto.models)
        try:
            decided = auto.plan(weather=truth)
        except BadSettings:  # no model for it ships
            continue
        if detected.missing:
            continue
        for values, chosen in ((decibel, detected), (named, decided)):
            values[pair.name] = protocol.measure(auto.apply(degraded, chosen), clear)["psnr"]
    return Row(name, truth, seen, decibel, named)


def real_row(auto: AutoRestorer, name: str, paths: Sequence[Path]) -> Row:
    """Photos of which nobody has written down what is in them."""
    return Row(name, "", {path.stem: auto.detect(to_float(read(path).pixels)) for path in paths}, {}, {})


def confusion(rows: Sequence[Row]) -> str:
    """The table of decisions."""
    lines = [f"| photos | n | {' | '.join(DECISIONS)} | right |", "|---|--:|" + "--:|" * (len(DECISIONS) + 1)]
    for row in rows:
        right = f"{row.counts[DECISIONS.index(row.truth)] / len(row.seen):.0%}" if row.truth else ""
        lines.append(f"| {row.name} | {len(row.seen)} | {' | '.join(map(str, row.counts))} | {right} |")
    return "\n".join(lines)


def consequences(rows: Sequence[Row]) -> str:
    """The table of consequences, with all clear photos combined."""
    lines = ["| photos | n | result |", "|---|--:|---|"]
    for row in rows:
        if row.truth == "none":
            lines.append(f"| {row.name} | {len(row.seen)} | {stayed(list(row.decibel.values()))} |")
        elif row.named:
            mean = statistics.fmean(row.decibel.values())
            lines.append(f"| {row.name} | {len(row.named)} | {mean:.2f} dB, {row.loss:.2f} dB lost by deciding |")
        elif row.truth:
            lines.append(f"| {row.name} | 0 | no model for {row.truth}: not measured |")
    every = [value for row in rows if row.truth == "none" for value in row.decibel.values()]
    if every:
        lines.append(f"| all clear photos | {len(every)} | {stayed(every)} |")
    return "\n".join(lines)


def stayed(values: Sequence[float]) -> str:
    """PSNR of clear photos against themselves."""
    worst = "untouched" if math.isinf(min(values)) else f"{min(values):.1f} dB"
    share = sum(value >= NEAR for value in values) / len(values)
    below = sum(value < FAR for value in values)
    return f"{share:.0%} at {NEAR:g} dB or more, {below} below {FAR:g} dB, the worst {worst}"


def rows_of(
    auto: AutoRestorer, data: Path, clear: Path | None, real: Path | None, tell: Callable[[str], None]
) -> list[Row]:
    """All kinds of photos: hazy, rainy, clear and unknown."""
    rows, sides = [], {}
    for name, pairs in find_sets(data).items():
        tell(name)
        truth = cast("Decision", weather_of(pairs))
        rows.append(weather_row(auto, name, truth, pairs))
        sides[f"{pairs[0].clear.parent.parent.name}, clear"] = sorted({pair.clear for pair in pairs})
    rows.sort(key=lambda row: row.truth)
    if clear is not None:
        sides[f"{clear.resolve().name}, clear"] = pictures(clear)
    for name, paths in sides.items():
        tell(name)
        rows.append(clear_row(auto, name, paths))
    for folder in sorted(real.iterdir()) if real is not None else []:
        if folder.is_dir() and folder.name != "video":
            tell(folder.name)
            rows.append(real_row(auto, f"{folder.name} (no truth)", pictures(folder)))
    return rows


def milliseconds(auto: AutoRestorer, repeats: int = 10) -> dict[str, float]:
    """Median time of one decision on a photo in memory, by size."""
    times = {}
    for name, (height, width) in {"0.4 MP": (512, 768), "2 MP": (1080, 1920), "12 MP": (3000, 4000)}.items():
        photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        auto.detect(photo)
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            auto.detect(photo)
            taken.append(time.perf_counter() - began)
        times[name] = 1000 * statistics.median(taken)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = DATA.is_dir()
    parser.add_argument("--data", type=Path, default=DATA / "test")
    parser.add_argument("--clear", type=Path, default=DATA / "kodak" if there else None)
    parser.add_argument("--real", type=Path, default=DATA / "real" if there else None)
    parser.add_argument("--recognizer", type=Path, help="folder of a weather classifier; by default the shipped one")
    parser.add_argument("--dehaze", default=WEATHER_MODELS["haze"], metavar="NAME|PATH")
    parser.add_argument("--derain", default=WEATHER_MODELS["rain"], metavar="NAME|PATH")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--photos", action="store_true")
    options = parser.parse_args(arguments)
    try:
        given = {} if options.recognizer is None else {"folder": options.recognizer}
        models = {"rain": options.derain, "haze": options.dehaze}
        auto = AutoRestorer(
            lambda open_model: load_detector(open_model, **given, engine=options.engine),
            lambda name: load(name, engine=options.engine),
            models,
        )
        rows = rows_of(auto, options.data, options.clear, options.real, lambda name: print(name, file=sys.stderr))
    except FairweatherError as error:
        print(f"weather.py: {error}", file=sys.stderr)
        return 1
    print(f"{confusion(rows)}\n\n{consequences(rows)}\n")
    print("one decision: " + ", ".join(f"{name} {taken:.0f} ms" for name, taken in milliseconds(auto).items()))
    if options.photos:
        for row in rows:
            for name, weather in row.strays.items():
                value = row.decibel.get(name)
                print(f"{row.name} {name}: {weather}" + ("" if value is None else f", {value:.1f} dB"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
