"""Compare trained models on scenes that none of them was trained on, to decide which one ships.

    python benchmarks/choose.py RUN|MODEL... [--data DIR] [--hold-back X] [--most N] [--photos 4] [--out DIR]

RUN|MODEL    finished runs, model folders (`fairweather export RUN -o DIR` makes one of an unfinished run) or names of
             shipped models, all for the same weather
--data       the folder of training photos that their sources are relative to; by default that of run.json
--hold-back  the held-out fraction, for models whose card and run do not state it
--most       maximum number of photos of each set, evenly spaced
--photos     photos of each set on its contact sheet
--out        folder for the sheets (SET.jpg: input | each model | ground truth, worst photo first, best last) and for
             <model>.json with the scores of each photo

The scenes are those that the models' `hold_back` kept out of training, without any that another model, or the run that
it started from, was trained on. Photos are scored at full size (protocol rgb), clear photos against themselves. Glow
is defined in benchmarks/glow.py; contrast (ratio) and saturated pixels (percentage points) are changes from the input
(see fairweather.evaluation.no_reference). Nothing under test/ or real/ is used. `fairweather export MODEL -o DIR
--choice TEXT` records the reason on the card.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from glow import glow
from measuring import DATA

from fairweather import model_folder
from fairweather.data.mixture import CLEAR_SUFFIX, HoldoutDivision, divide_holdout
from fairweather.errors import BadFolder, BadSettings, FairweatherError
from fairweather.evaluation import SetScores, find_protocol, score_set, sheets, write_scores
from fairweather.evaluation.no_reference import measure_change
from fairweather.evaluation.scores import Picture, Restore, load_pair
from fairweather.images.io import read, to_float
from fairweather.inference import load
from fairweather.pairs import Pair

RULE = find_protocol("rgb")
HEADINGS = ("held back", "n", "model", "PSNR dB", "±", "SSIM", "worse", "glow", "elsewhere", "contrast", "saturated")
UNTOUCHED = "as they are"
CELL = 380
Sets = Mapping[str, Sequence[Pair]]


@dataclass(frozen=True)
class Row:
    """One model on one set; further measures are means over photos, NaN if undefined."""

    model: str
    result: SetScores
    glow: float
    elsewhere: float
    contrast: float
    saturated: float


def data_of(model: str) -> list[dict[str, Any]]:
    """The data of all trainings of a model, newest first: folder, sources, hold_back."""
    folder = model_folder.find(model)
    training: dict[str, Any] | None = model_folder.read_card(folder, verify=False).training
    found = []
    while training is not None:
        found.append(dict(training.get("data", {})))
        training = training.get("start")
    for record in (folder / "run.json", folder.parent / "run.json"):
        if record.is_file():  # it has the path of the photos; older cards do not record hold_back
            own = json.loads(record.read_text(encoding="utf-8"))["settings"]["data"]
            found[0] |= {key: own[key] for key in ("folder", "hold_back", "sources") if own.get(key) is not None}
    return found


def scenes(models: Sequence[str], root: Path | None, hold_back: float | None) -> dict[str, list[Pair]]:
    """The pairs to compare on, by set.

    Raises BadSettings if a model does not record its hold_back, BadFolder if no pairs remain.
    """
    phases = [divided(model, data, root, hold_back) for model in models for data in data_of(model)]
    seen = frozenset().union(*(one.trained for one in phases))
    left: dict[str, dict[Path, Pair]] = {}
    for one in phases:
        for name, pairs in one.holdout.items():
            fresh = {pair.degraded: pair for pair in pairs if not {pair.degraded, pair.clear} & seen}
            left.setdefault(name, {}).update(fresh)
    found = {name: sorted(pairs.values(), key=lambda pair: pair.name) for name, pairs in left.items() if pairs}
    if not found:
        raise BadFolder("no scene is held out from all of these models: compare models with the same hold_back")
    return found


def divided(model: str, data: Mapping[str, Any], root: Path | None, hold_back: float | None) -> HoldoutDivision:
    """The training and held-out scenes of one training."""
    share = data.get("hold_back", hold_back)
    if share is None:
        raise BadSettings(f"{model}: neither its card nor its run records the held-out fraction: pass --hold-back")
    known = Path(data.get("folder") or ".")
    root = root or (known if known.is_absolute() else DATA / "train")
    sources = data.get("sources") or []
    if not sources and known.name and (root / known.name).is_dir():
        sources = [{"kind": "pairs", "path": known.name}]
    return divide_holdout(sources, root.resolve(), share)


def spread(pairs: Sequence[Pair], most: int | None) -> list[Pair]:
    """At most `most` of them, evenly spaced."""
    if most is None or len(pairs) <= most:
        return list(pairs)
    return [pairs[at * len(pairs) // most] for at in range(most)]


def score(model: str, restore: Restore, data: str, pairs: Sequence[Pair]) -> Row:
    """Score one model on one set."""
    watched: list[tuple[float, ...]] = []

    def produce(pair: Pair, degraded: Picture) -> Picture:
        output = restore(degraded)
        near, far = glow(output, RULE.aligned(output, to_float(read(pair.clear).pixels)))
        change = measure_change(degraded, np.clip(output, 0, 1))
        watched.append((near, far, change.contrast, change.saturated))
        return output

    result = score_set(data, pairs, produce, RULE)
    return Row(model, result, *(mean([one[at] for one in watched]) for at in range(4)))


def mean(values: Sequence[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def markdown(rows: Sequence[Row]) -> str:
    """The table by set."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|--:|---|" + "--:|" * (len(HEADINGS) - 3)]
    for row in rows:
        if not row.result.photos:
            continue
        decibel, structure = row.result.scores
        cells = [row.result.data, str(decibel.n), row.model, f"{decibel.value:.2f}"]
        cells += ["" if decibel.spread is None else f"{decibel.spread:.2f}", f"{structure.value:.3f}"]
        cells += [str(decibel.worse), f"{row.glow:.2f}", f"{row.elsewhere:.2f}", f"{row.contrast:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{round(row.saturated, 2) + 0.0:+.2f}"]) + " |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """One line per model: mean over the degraded sets, equally weighted, and over the clear photos."""
    lines = ["| model | PSNR dB | SSIM | worse | glow | clear photos: PSNR dB | the worst |", "|---|" + "--:|" * 6]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model and row.result.photos]
        degraded = [row for row in own if not row.result.data.endswith(CLEAR_SUFFIX)]
        cells = [mean([row.result.scores[at].value for row in degraded]) for at in (0, 1)]
        words = [model, f"{cells[0]:.2f}", f"{cells[1]:.3f}", str(sum(row.result.scores[0].worse for row in degraded))]
        words.append(f"{mean([row.glow for row in degraded]):.2f}")
        clear = [photo.scores["psnr"] for row in own if row not in degraded for photo in row.result.photos]
        words += [f"{mean(clear):.2f}", f"{min(clear):.2f}"] if clear else ["", ""]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def draw(path: Path, rows: Sequence[Row], systems: Mapping[str, Restore], count: int) -> None:
    """The contact sheet of one set: the same photos for every model, from worst to best."""
    scored = {row.model: {photo.pair.name: photo.scores["psnr"] for photo in row.result.photos} for row in rows}
    pairs = {photo.pair.name: photo.pair for photo in rows[0].result.photos}
    known = [name for name in pairs if all(name in scored[model] for model in systems)]
    order = sorted(known, key=lambda name: mean([scored[model][name] for model in systems]))
    count = min(count, len(order))
    lines = []
    for at in range(count):
        name = order[at * (len(order) - 1) // max(1, count - 1)]
        degraded, clear = load_pair(pairs[name])
        pictures = [degraded, *(restore(degraded) for restore in systems.values())]
        captions = [f"{sheets.short(name)}, input"]
        captions += [f"{model}: {scored[model][name]:.2f} dB" for model in systems]
        if pairs[name].degraded != pairs[name].clear:
            pictures, captions = [*pictures, clear], [*captions, "clear"]
        lines.append(sheets.row([sheets.cell(picture, CELL) for picture in pictures], captions, CELL))
    sheets.paste_up(path, f"{rows[0].result.data}: photos that no model was trained on", lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="RUN|MODEL")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--hold-back", type=float)
    parser.add_argument("--most", type=int)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        opened = {name: load(name, engine=options.engine, threads=options.threads) for name in options.models}
        if len({restorer.card.weather for restorer in opened.values()}) > 1:
            raise BadSettings("these models remove different weather: compare models for the same weather")
        names = [restorer.card.name for restorer in opened.values()]
        alike = len(set(names)) < len(names)  # runs may share a card name
        systems: dict[str, Restore] = {given if alike else r.card.name: r for given, r in opened.items()}
        sets = {
            name: spread(p, options.most) for name, p in scenes(options.models, options.data, options.hold_back).items()
        }
        rows: list[Row] = []
        for data, pairs in sets.items():
            print(f"{data}: {len(pairs)} photos", file=sys.stderr, flush=True)
            untouched = {} if data.endswith(CLEAR_SUFFIX) else {UNTOUCHED: np.asarray}
            rows += [score(name, restore, data, pairs) for name, restore in {**untouched, **systems}.items()]
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            for name in systems:
                results = [row.result for row in rows if row.model == name]
                write_scores(options.out / f"{name.strip('/').replace('/', '-')}.json", results, name)
            for data in sets:
                own = [row for row in rows if row.result.data == data and row.result.photos]
                if own:
                    draw(options.out / f"{data.replace('/', '-')}.jpg", own, systems, options.photos)
    except FairweatherError as error:
        print(f"choose.py: {error}", file=sys.stderr)
        return 1
    print(f"Held-out scenes, protocol {RULE.name}.\n\n{markdown(rows)}\n\n{summary(rows)}")
    for row in rows:
        for reason in row.result.failed.values():
            print(f"not scored by {row.model}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
