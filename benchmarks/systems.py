"""The five systems under one budget: each trains on real photos from its file in runs/ and is scored on photos of other
places.

    python benchmarks/systems.py --out DIR [--data DIR] [--only NAME ...] [--size laptop|paper] [--minutes M]
                                 [--jobs N] [--threads N] [--device auto|cpu|cuda]

--data     the folder with train/ and test/
--size     runs/NAME-laptop.toml (128 px, narrow networks, for a CPU) or runs/NAME.toml (as in the papers)
--minutes  wall time per system; by default the number of steps in each file, which is 20 minutes on one core for the
           laptop files
--jobs     systems trained in parallel
--threads  CPU threads of each

The haze systems train on train/sots_outdoor (the unpaired ones sample its two folders independently), derain on
train/rain100/light. Runs in DIR are resumed and reused. Scores are means over the photos of a test set, at full size,
protocol rgb. "CPU min" is the CPU time of a training including export. Contact sheets are written to DIR/NAME-scores/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from measuring import DATA, ROOT, cpu_minutes, run_training

from fairweather.errors import FairweatherError
from fairweather.evaluation import SetScores, evaluate_model
from fairweather.generators import GENERATORS
from fairweather.inference import load
from fairweather.pairs import find_sets
from fairweather.training import Run

HEADINGS = (
    "system",
    "generator",
    "parameters",
    "steps",
    "CPU min",
    "test",
    "n",
    "PSNR",
    "input",
    "SSIM",
    "input",
    "worse",
)


@dataclass(frozen=True)
class System:
    """Training data of a recipe, below the folder of training photos, and its test sets."""

    data: dict[str, str]
    """Flag of `fairweather train` -> folder."""
    tests: tuple[str, ...]
    """On the first one it must score higher than the input."""


UNPAIRED = {"--degraded": "sots_outdoor/hazy", "--clear": "sots_outdoor/clear"}
PAIRED = {"--data": "sots_outdoor"}
HAZE = ("sots_outdoor", "sots_indoor", "i_haze", "nh_haze2")
SYSTEMS = {
    "cyclegan": System(UNPAIRED, HAZE),
    "pix2pix": System(PAIRED, HAZE),
    "claritygan": System(UNPAIRED, HAZE),
    "hazeheal": System(PAIRED, HAZE),
    "derain": System({"--degraded": "rain100/light", "--clear": "rain100/clear"}, ("rain100/light", "rain100/heavy")),
}


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    name: str
    generator: str
    parameters: int
    steps: int
    minutes: float
    results: tuple[SetScores, ...]


def command(name: str, data: Path, run: Path, options: argparse.Namespace) -> list[str]:
    """The command that trains or resumes a system."""
    config = ROOT / "runs" / (f"{name}-laptop.toml" if options.size == "laptop" else f"{name}.toml")
    words = [sys.executable, "-m", "fairweather", "train", "--config", str(config), "--out", str(run)]
    for flag, folder in SYSTEMS[name].data.items():
        words += [flag, str(data / "train" / folder)]
    words += ["--device", options.device]
    if options.minutes is not None:
        words += ["--minutes", str(options.minutes)]
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    return words + (["--resume"] if (run / "run.json").exists() else [])


def train(name: str, data: Path, out: Path, options: argparse.Namespace) -> None:
    """Train a system. Raises RuntimeError with the last line of its log."""
    run = out / name
    if (run / "model" / "card.json").exists():
        return
    run_training(command(name, data, run, options), out / f"{name}.log")


def score(name: str, data: Path, out: Path) -> Trained:
    """Score the model of a finished run on every test set of its weather."""
    run = Run(out / name)
    restorer = load(run.model)
    card = restorer.card
    sets = find_sets(data / "test")
    results = evaluate_model(restorer, {key: sets[key] for key in SYSTEMS[name].tests}, "rgb", out / f"{name}-scores")
    network = GENERATORS[card.generator](**card.arguments)
    parameters = sum(weight.numel() for weight in network.parameters())
    steps = len(run.stats())
    return Trained(name, card.generator, parameters, steps, cpu_minutes(out / f"{name}.seconds"), tuple(results))


def markdown(rows: Sequence[Trained]) -> str:
    """The table: one line per system and test set."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|--:|--:|--:|---|" + "--:|" * 6]
    for row in rows:
        for result in row.results:
            decibel, structure = result.scores
            cells = [row.name, row.generator, f"{row.parameters:,}", f"{row.steps:,}", f"{row.minutes:.0f}"]
            cells += [result.data, str(decibel.n), f"{decibel.value:.2f}", f"{decibel.input:.2f}"]
            cells += [f"{structure.value:.3f}", f"{structure.input:.3f}", str(decibel.worse)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hardware(options: argparse.Namespace) -> str:
    """One line on the hardware."""
    if options.device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return f"CPU, {threads} thread{'s' if threads > 1 else ''} a system, {options.jobs} at a time"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--size", choices=("laptop", "paper"), default="laptop")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.threads is None and options.device == "cpu":
        options.threads = max(1, (os.cpu_count() or 1) // options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {name: pool.submit(train, name, options.data, options.out, options) for name in options.only}
    failed = {name: future.exception() for name, future in running.items() if future.exception() is not None}
    try:
        rows = [score(name, options.data, options.out) for name in options.only if name not in failed]
    except FairweatherError as error:
        print(f"systems.py: {error}", file=sys.stderr)
        return 1
    print(f"Trained on: {hardware(options)}. Scores: protocol rgb, means over n photos.\n\n{markdown(rows)}")
    for row in rows:
        own = row.results[0].scores[0]
        if own.value <= own.input:
            failed[row.name] = RuntimeError(f"{row.name} does not improve {own.data}")
    for error in failed.values():
        print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
