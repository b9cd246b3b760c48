"""Time and memory against a photo's pixels and against the number of photos, with fitted lines.

    python benchmarks/scaling.py [--model dehaze] [--engine openvino] [--megapixels 1 4 12 24 48] [--photos 4 16 32 64]
                                 [--runs 5] [--out docs/scaling.png]

Each point is a separate process. For a size: one photo from file to file, the median of the warm runs, and the peak
memory of the process. For a number: that many photos of SHARED megapixels through the folder pipeline, without the
cold start. A line is fitted to each series by least squares; the table has R^2 and the largest relative distance of a
point. Memory must not grow with the number of photos: that line is flat, R^2 is meaningless, and the largest distance
matters. The photos are mosaics of examples/, as in speed.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import cores, peak, processor, warn_if_busy

SHARED = 2.0
"""Megapixels of each photo when the number of photos varies."""
Point = tuple[float, float, float]
"""Megapixels or photos; seconds; MiB."""


@dataclass(frozen=True)
class Line:
    """y = base + slope * x, fitted by least squares."""

    base: float
    slope: float
    fit: float
    """R^2; 1 if all values are equal."""
    furthest: float
    """Largest relative distance of a point from the line."""


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line to at least two points with different x."""
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    base = mean_y - slope * mean_x
    left = sum((y - base - slope * x) ** 2 for x, y in points)
    whole = sum((y - mean_y) ** 2 for _, y in points)
    furthest = max(abs(y / (base + slope * x) - 1) for x, y in points)
    return Line(base, slope, 1 - left / whole if whole else 1.0, furthest)


def sides(megapixels: float) -> tuple[int, int]:
    """Width and height in the ratio 4 : 3 with about this many pixels."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    return round(height * 4 / 3), height


def measure_size(model: str, engine: str, source: Path, runs: int) -> Point:
    """In the child process: one photo repeatedly, from file to file."""
    import speed

    found = speed.measure(model, source, runs, engine)
    return 0.0, found["total"], found["peak"] / 2**20


def measure_number(model: str, engine: str, source: Path, number: int) -> Point:
    """In the child process: copies of a photo through the folder pipeline, after one warm-up copy."""
    from fairweather.inference import batch, load

    restorer = load(model, engine=engine)
    with tempfile.TemporaryDirectory() as place:
        photos, out = Path(place) / "photos", Path(place) / "out"
        photos.mkdir()
        for index in range(number):
            (photos / f"{index:04}.jpg").write_bytes(source.read_bytes())
        batch.run(batch.plan([source], Path(place) / "warm"), restorer=restorer, progress=False)
        jobs = batch.plan([photos], out)
        start = time.perf_counter()
        batch.run(jobs, restorer=restorer, progress=False)
        seconds = time.perf_counter() - start
        assert len(list(out.glob("*.jpg"))) == number, "all photos are there"
    return float(number), seconds, peak() / 2**20


def child(*arguments: str) -> list[Any]:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"scaling.py: {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def markdown(series: dict[str, Sequence[Point]]) -> str:
    """Tables of points and lines; `series` by variable, "megapixels" or "photos"."""
    lines = []
    for what, points in series.items():
        lines += [f"| {what} | seconds | MiB |", "|--:|--:|--:|"]
        lines += [f"| {x:g} | {seconds:.2f} | {memory:.0f} |" for x, seconds, memory in points] + [""]
    lines += ["| line | at 0 | for each | R^2 | furthest point |", "|---|--:|--:|--:|--:|"]
    for what, points in series.items():
        for name, unit, which in (("time", "s", 1), ("memory", "MiB", 2)):
            found = line([(point[0], point[which]) for point in points])
            parts = [
                f"{found.base:.2f} {unit}",
                f"{found.slope:.3f} {unit}",
                f"{found.fit:.4f}",
                f"{found.furthest:.1%}",
            ]
            lines.append(f"| {name} against {what} | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def draw(series: dict[str, Sequence[Point]], title: str, out: Path) -> None:
    """Draw four plots with their lines as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(series), figsize=(4.2 * len(series), 6), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for column, (what, points) in enumerate(series.items()):
        for row, (name, which) in enumerate((("seconds", 1), ("MiB", 2))):
            axis, pairs = axes[row][column], [(point[0], point[which]) for point in points]
            found, last = line(pairs), max(x for x, _ in pairs)
            axis.plot([0, last], [found.base, found.base + found.slope * last], color="0.6", linewidth=1)
            axis.plot(*zip(*pairs, strict=True), "o", markersize=5)
            axis.set(xlabel=what, ylabel=name, xlim=(0, None), ylim=(0, 1.15 * max(y for _, y in pairs)))
            axis.set_title(f"R² {found.fit:.4f}, furthest {found.furthest:.1%}", fontsize=9)
    from fairweather.files import atomic

    with atomic(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dehaze")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--megapixels", nargs="*", type=float, default=[1.0, 4.0, 12.0, 24.0, 48.0])
    parser.add_argument("--photos", nargs="*", type=int, default=[4, 16, 32, 64])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "scaling.png")
    parser.add_argument("--measure", nargs=2, metavar=("PHOTO", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        source, number = Path(options.measure[0]), int(options.measure[1])
        system = (options.model, options.engine, source)
        print(json.dumps(measure_number(*system, number) if number else measure_size(*system, options.runs)))
        return 0
    if min(len(set(options.megapixels)), len(set(options.photos))) < 3:
        parser.error("--megapixels and --photos: give at least three values, since two points always lie on a line")
    import speed

    print(f"{processor()}, {cores()} cores; {options.model}, {options.engine}\n")
    warn_if_busy()
    series: dict[str, Sequence[Point]] = {}
    shared = ("--model", options.model, "--engine", options.engine, "--runs", str(options.runs))
    with tempfile.TemporaryDirectory() as place:

        def photo(megapixels: float) -> str:
            path = str(Path(place) / f"{megapixels:g}.jpg")
            if not Path(path).exists():
                speed.child("--make", path, "--size", "x".join(map(str, sides(megapixels))))
            return path

        for megapixels in options.megapixels:
            found = child("--measure", photo(megapixels), "0", *shared)
            series.setdefault("megapixels", [])
            series["megapixels"] = [*series["megapixels"], (megapixels, found[1], found[2])]
            print(f"{megapixels:g} megapixels: {found[1]:.2f} s, {found[2]:.0f} MiB", file=sys.stderr)
        for number in options.photos:
            found = child("--measure", photo(SHARED), str(number), *shared)
            series["photos"] = [*series.get("photos", []), (float(number), found[1], found[2])]
            print(f"{number} photos: {found[1]:.2f} s, {found[2]:.0f} MiB", file=sys.stderr)
    print(markdown(series))
    draw(series, f"{options.model}, {options.engine}, {processor()}, {cores()} cores", options.out)
    print(f"\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
