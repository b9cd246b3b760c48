"""Quality cost of mixed precision: paired recipes trained in fp32 and in mixed precision with several seeds.

    python benchmarks/precision.py --out DIR [--data DIR] [--recipe pix2pix hazeheal] [--steps 240] [--seeds 1 2 3]
                                   [--mixed bf16] [--test DIR] [--jobs N] [--threads 1]

Each run is `fairweather train` with runs/NAME-laptop.toml, shortened to --steps (schedules end with the shortened
run), on `train/sots_outdoor` of --data; the seed sets weights and order of photos, equal in both precisions. Models
are scored on
--test (a folder of pairs, or a name below `test/`; PSNR in dB at full size, protocol rgb, mean over photos) by the
       same engine
in fp32. The scores are not used for any choice.

Finished runs in DIR are reused, interrupted ones resumed. The table has one line per recipe: scores by seed, their
means, the difference of the means and its standard error. The exit code is 1 if a difference exceeds 0.3 dB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from measuring import DATA, ROOT, run_training
from systems import SYSTEMS

from fairweather.errors import BadFolder, FairweatherError

PAIRED = tuple(name for name, system in SYSTEMS.items() if "--data" in system.data)
MOST = 0.3
"""dB between the means."""


@dataclass(frozen=True)
class One:
    """A run to train and score."""

    recipe: str
    precision: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.precision}-{self.seed}"


def command(one: One, options: argparse.Namespace) -> list[str]:
    """The command that trains or resumes it."""
    run = options.out / one.name
    words = [sys.executable, "-m", "fairweather", "train", "--config", str(ROOT / "runs" / f"{one.recipe}-laptop.toml")]
    for flag, folder in SYSTEMS[one.recipe].data.items():
        words += [flag, str(options.data / "train" / folder)]
    values = {"--out": run, "--steps": options.steps, "--seed": one.seed, "--precision": one.precision}
    values |= {"--threads": options.threads, "--device": options.device, "--sample-steps": 0, "--validate-steps": 0}
    for flag, value in values.items():
        words += [flag, str(value)]
    return words + (["--resume"] if (run / "run.json").exists() else [])


def train(one: One, options: argparse.Namespace) -> None:
    """Train it. Raises RuntimeError with the last line of its log."""
    run = options.out / one.name
    if (run / "model" / "card.json").exists():
        steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]["run"]["steps"]
        if steps != options.steps:
            raise RuntimeError(f"{run} was trained for {steps} steps: take --steps {steps} or another --out")
        return
    run_training(command(one, options), options.out / f"{one.name}.log", OMP_NUM_THREADS=str(options.threads))


def score(one: One, test: str, options: argparse.Namespace) -> float:
    """PSNR of the run's model, cached in its folder."""
    from fairweather.evaluation import evaluate_model
    from fairweather.inference import load
    from fairweather.pairs import find_sets

    kept = options.out / one.name / "score.json"
    key = f"{test} {(options.out / one.name / 'model' / 'card.json').stat().st_mtime_ns}"
    if kept.exists() and key in (found := json.loads(kept.read_text(encoding="utf-8"))):
        return float(found[key])
    sets = find_sets(Path(test))
    if len(sets) != 1:
        raise BadFolder(f"{test} holds {len(sets)} sets of pairs; name one of them (--test)")
    (result,) = evaluate_model(load(options.out / one.name / "model", precision="f32"), sets, "rgb")
    kept.write_text(json.dumps({key: result.scores[0].value}) + "\n", encoding="utf-8")
    return float(result.scores[0].value)


def compare(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean difference second - first over the seeds, and its standard error (NaN for one seed)."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    spread = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return fmean(differences), spread


def markdown(scores: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int]) -> str:
    """One line per recipe, from {recipe: {precision: score of each seed}}; the first precision is fp32."""
    precisions = list(next(iter(scores.values())))
    heads = ["recipe", *(f"{p}, seed {seed}" for p in precisions for seed in seeds)]
    heads += [*(f"{p} mean" for p in precisions), "difference", "standard error"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for recipe, found in scores.items():
        mean, error = compare(*(found[p] for p in precisions))
        cells = [recipe, *(f"{value:.2f}" for p in precisions for value in found[p])]
        cells += [f"{fmean(found[p]):.2f}" for p in precisions]
        cells += [f"{mean:+.2f}" if abs(mean) <= MOST else f"**{mean:+.2f}**", f"{error:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--recipe", nargs="+", choices=PAIRED, default=list(PAIRED), metavar="NAME")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--mixed", choices=("bf16", "fp16"), default="bf16")
    parser.add_argument("--test", default="sots_outdoor")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    test = options.test if Path(options.test).is_dir() else str(options.data / "test" / options.test)
    every = [One(r, p, seed) for seed in options.seeds for r in options.recipe for p in ("fp32", options.mixed)]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(train, one, options) for one in every]
    failed = [error for run in runs if (error := run.exception()) is not None]
    for error in failed:
        print(error, file=sys.stderr)
    if failed:
        return 1
    try:
        values: dict[One, float] = {one: score(one, test, options) for one in every}
    except FairweatherError as error:
        print(f"precision.py: {error}", file=sys.stderr)
        return 1
    scores: dict[str, dict[str, Any]] = {
        recipe: {p: [values[One(recipe, p, seed)] for seed in options.seeds] for p in ("fp32", options.mixed)}
        for recipe in options.recipe
    }
    print(f"{options.steps} steps; PSNR in dB on {Path(test).name}, protocol rgb\n\n{markdown(scores, options.seeds)}")
    apart = [recipe for recipe, found in scores.items() if abs(compare(*found.values())[0]) > MOST]
    if apart:
        print(f"\nmore than {MOST} dB apart: {', '.join(apart)}", file=sys.stderr)
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
