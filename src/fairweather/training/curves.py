"""Loss curves of runs as an image: one panel per term of stats.jsonl, runs over each other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadSettings, MissingExtra
from fairweather.files import atomic
from fairweather.training.run_log import read_stats

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps, and the values of one term at them."""

VALIDATION = "validation"
SMOOTHED = 0.02
"""Window of the bold lines' moving mean, as a share of the longest run's steps."""
FEW = 60
"""Up to this many values are also drawn as points."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette for colour-blind readers, without its yellow (too pale on white)."""
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


@dataclass(frozen=True)
class Curves:
    """The curves of one run."""

    folder: Path
    about: str
    """Recipe and generator, if run.json can be read."""
    steps: int
    minutes: float
    terms: dict[str, Series]


def read_curves(run: str | os.PathLike[str]) -> Curves:
    """Read the curves of a run that has ended, is in progress or was killed. Raises BadFolder if there are none."""
    run = Path(run)
    path = run / "stats.jsonl"
    if not path.is_file():
        raise BadFolder(f"{path}: no such file: give a run folder (the --out of `fairweather train`)")
    lines = read_stats(path)
    if not lines:
        raise BadFolder(f"{path} has no steps yet: wait for the first one, or check why the run ended before it")
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for term, value in line.items():
            if term not in ("step", "time") and _is_finite(value):
                points.setdefault(term, []).append((line["step"], value))
    if not points:
        raise BadFolder(f"{path} has nothing to plot, since every loss is NaN or infinite: use another run")
    arrays = {term: np.asarray(pairs, np.float64) for term, pairs in points.items()}
    return Curves(
        folder=run.resolve(),
        about=_about(run / "run.json"),
        steps=int(lines[-1]["step"]),
        minutes=time / 60 if _is_finite(time := lines[-1].get("time", 0)) else 0.0,
        terms={term: (pairs[:, 0], pairs[:, 1]) for term, pairs in arrays.items()},
    )


def draw_curves(runs: Sequence[Curves], path: str | os.PathLike[str]) -> Path:
    """Write the image (PNG, SVG, PDF or JPEG by its suffix). Raises BadSettings, BadFolder, MissingExtra."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BadSettings(f"{path}: unsupported image format: use a name that ends in {', '.join(SUFFIXES)} (-o)")
    try:
        from matplotlib.figure import Figure  # not pyplot, which has global state and searches for a display
    except ImportError:
        raise MissingExtra("matplotlib", "train", "plotting") from None
    panels = _panels(runs)
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3 if len(panels) <= 9 else 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(5.0, 4.2 * columns), 2.7 * rows + 0.9 + 0.2 * len(runs)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    labels = _labels(runs)
    last = max(curves.steps for curves in runs)
    window = max(1, round(SMOOTHED * last)) | 1
    for axis, term in zip(axes, panels, strict=False):
        if term == VALIDATION:
            _validation(axis, runs)
        else:
            _term(axis, runs, term, window)
        axis.set_title(f"{term}, PSNR in dB" if term == VALIDATION else term, fontsize=10, loc="left")
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.set_xlim(min(0.0, last - 1.5), last + max(0.5, 0.02 * last))
        axis.xaxis.set_major_locator(_ticks())
        axis.xaxis.set_major_formatter(_thousands)
    for at, axis in enumerate(axes):
        if at >= len(panels):
            axis.remove()
        elif at + columns >= len(panels):  # the lowest of its column
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("step", fontsize=8)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        keys = [Line2D([], [], color=_colour(at), linestyle=_dash(at), linewidth=2) for at in range(len(runs))]
        legend = figure.legend(keys, labels, loc="outside upper left", fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a folder may be named a$b$c
    else:
        figure.suptitle(labels[0], fontsize=10, x=0.01, ha="left", fontweight="bold", parse_math=False)
    if window > 1:
        figure.supxlabel(f"faint: every step; bold: mean over {window} steps", fontsize=8, x=0.01, ha="left")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower())
    return path


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean over `window` neighbours (an odd number), fewer at the ends."""
    reach = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start, stop = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    means: NDArray[np.float64] = (total[stop] - total[start]) / (stop - start)
    return means


def thinned(series: Series, bins: int = 1000) -> Series:
    """Reduce a long series to the minimum and maximum of each bin, at their own steps: it looks the same."""
    steps, values = series
    if len(steps) <= 2 * bins:
        return series
    kept: list[int] = []
    for part in np.array_split(np.arange(len(steps)), bins):
        kept += sorted({int(part[values[part].argmin()]), int(part[values[part].argmax()])})
    return steps[kept], values[kept]


def _panels(runs: Iterable[Curves]) -> list[str]:
    """The terms of all runs in their order; validation last, as one panel."""
    terms = dict.fromkeys(term for curves in runs for term in curves.terms)
    panels = [term for term in terms if not _validates(term)]
    return panels + ([VALIDATION] if len(panels) < len(terms) else [])


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _validates(term: str) -> bool:
    return term.partition("/")[0] == VALIDATION


def _term(axis: Any, runs: Sequence[Curves], term: str, window: int) -> None:
    shown, bold = [], []
    for at, curves in enumerate(runs):
        if term not in curves.terms:
            continue
        steps, values = curves.terms[term]
        means = smoothed(values, window)
        few = len(values) <= FEW
        if window > 1:
            axis.plot(*thinned((steps, values)), color=_colour(at), alpha=0.22, linewidth=0.6, zorder=2)
        axis.plot(
            *thinned((steps, means)),
            **{"color": _colour(at), "linestyle": _dash(at), "linewidth": 1.6, "zorder": 3 + at},
            **({"marker": "o", "markersize": 3} if few else {}),
        )
        shown += [*np.percentile(values, (1, 99)), means.min(), means.max()]
        bold += [means.min(), means.max()]
    low, high = min(shown), max(shown)
    # Over such a range, a linear axis would show the first steps and then a flat line.
    if low > 0 and max(bold) > 30 * min(bold):
        axis.set_yscale("log")
        axis.set_ylim(low / 1.15, high * 1.15)
    elif high > low:
        margin = 0.05 * (high - low)
        axis.set_ylim(0 if 0 <= low < 0.15 * high else low - margin, high + margin)


def _validation(axis: Any, runs: Sequence[Curves]) -> None:
    """The mean of each run; of a single run each source too."""
    for at, curves in enumerate(runs):
        sources = [name for name in curves.terms if name.startswith(f"{VALIDATION}/")]
        if len(runs) == 1 and len(sources) > 1:
            for place, name in enumerate(sources, start=1):
                style = {"color": _colour(place), "linestyle": _dash(place), "linewidth": 1}
                marker = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4, "alpha": 0.9}
                axis.plot(*curves.terms[name], **style, **marker, label=name.partition("/")[2])
        if VALIDATION in curves.terms:
            style = {"color": _colour(at), "linestyle": _dash(at), "linewidth": 2}
            axis.plot(*curves.terms[VALIDATION], **style, marker=MARKERS[at % len(MARKERS)], markersize=5, label="mean")
    if len(runs) == 1 and len(axis.lines) > 1:
        axis.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _labels(runs: Sequence[Curves]) -> list[str]:
    names = [curves.folder.name for curves in runs]
    labels = []
    for curves, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            name = f"{curves.folder.parent.name}/{name}"
        words = [name, curves.about, f"{curves.steps:,} step{'s' * (curves.steps != 1)}"]
        words.append(f"{curves.minutes:.0f} min" if curves.minutes >= 1 else f"{60 * curves.minutes:.0f} s")
        labels.append("  |  ".join(word for word in words if word))
    return labels


def _about(record: Path) -> str:
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
        return f"{settings['recipe']['name']}, {settings['generator']['name']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""  # curves can be drawn without run.json


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _dash(at: int) -> str:
    return DASHES[at // len(COLOURS) % len(DASHES)]


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True)


def _thousands(step: float, _: int | None = None) -> str:
    if step >= 10_000:
        return f"{step / 1000:g}k"
    return f"{step:,.0f}"
