"""The five systems under one budget: each trains on real photos from its own file in runs/, and is scored on photos of
other places.

    python benchmarks/systems.py --out DIR [--data DIR] [--only NAME ...] [--size laptop|paper] [--minutes M]
                                 [--jobs N] [--threads N] [--device auto|cpu|cuda]

--data     the folder with train/ and test/
--size     which files: runs/NAME-laptop.toml (128 px, narrow networks, for a CPU) or runs/NAME.toml (the papers')
--minutes  the budget of every system by the clock; without it each file's own number of steps, which for the laptop
           files was chosen to take 20 minutes on one core
--jobs     systems that train at the same time
--threads  CPU threads of each

The haze systems learn from train/sots_outdoor (the unpaired ones draw its two folders independently), derain from
train/rain100/light. A run that is in DIR already is gone on with, and not repeated when it has ended. Scores are means
over the photos of a test set, at full size, in RGB (protocol rgb). "CPU min" is the processor time of a training,
export included. Contact sheets land in DIR/NAME-scores/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fairweather.errors import FairweatherError
from fairweather.evaluation import SetScores, evaluate_model
from fairweather.generators import GENERATORS
from fairweather.inference import load
from fairweather.pairs import find_sets
from fairweather.training import Run
from fairweather.training.allocator import MALLOC

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT.parent / "shared" / "data"
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
    """What a recipe learns from, below the folder of training photos, and the test sets that it answers to."""

    data: dict[str, str]
    """Flag of `fairweather train` -> folder."""
    tests: tuple[str, ...]
    """The first is the one that it has to beat its input on."""


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
    """A run that has ended."""

    name: str
    generator: str
    parameters: int
    steps: int
    minutes: float
    results: tuple[SetScores, ...]


def command(name: str, data: Path, run: Path, options: argparse.Namespace) -> list[str]:
    """The words that train a system, or go on with it."""
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


def to_its_end(words: Sequence[str], path: Path, **environment: str) -> None:
    """Run a training whose words land in the log at `path`; its seconds of processor time go beside it (.seconds).

    Raises RuntimeError with what it said last where it fails.
    """
    with open(path, "a", encoding="utf-8") as log:
        surroundings = {**os.environ, **MALLOC, **environment}
        started = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=surroundings)
        _, status, used = os.wait4(started.pid, 0)
    started.returncode = code = os.waitstatus_to_exitcode(status)
    with open(path.with_suffix(".seconds"), "a", encoding="utf-8") as seconds:
        print(used.ru_utime + used.ru_stime, file=seconds)  # a line for each sitting
    if code:
        said = path.read_text(encoding="utf-8").strip().splitlines()
        raise RuntimeError(f"{path.stem}: training ended with code {code}: {said[-1] if said else 'no word'}")


def train(name: str, data: Path, out: Path, options: argparse.Namespace) -> None:
    """Train a system to its end. Raises RuntimeError with what it said last."""
    run = out / name
    if (run / "model" / "card.json").exists():
        return
    to_its_end(command(name, data, run, options), out / f"{name}.log")


def score(name: str, data: Path, out: Path) -> Trained:
    """Score the model of a run that has ended on every test set of its weather."""
    run = Run(out / name)
    restorer = load(run.model)
    card = restorer.card
    sets = find_sets(data / "test")
    results = evaluate_model(restorer, {key: sets[key] for key in SYSTEMS[name].tests}, "rgb", out / f"{name}-scores")
    network = GENERATORS[card.generator](**card.arguments)
    parameters = sum(weight.numel() for weight in network.parameters())
    steps = len(run.stats())
    return Trained(name, card.generator, parameters, steps, minutes(out / f"{name}.seconds"), tuple(results))


def minutes(path: Path) -> float:
    """Minutes of processor time of a run's sittings: what other programs took of the machine is not in it."""
    return sum(map(float, path.read_text(encoding="utf-8").split())) / 60


def markdown(rows: Sequence[Trained]) -> str:
    """The table: one line a system and test set."""
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
    """One line on what trained."""
    if options.device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    return f"CPU, {threads} thread{'s' if threads > 1 else ''} a system, {options.jobs} at a time"


def parser() -> argparse.ArgumentParser:
    """What may be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PHOTOS)
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
            failed[row.name] = RuntimeError(f"{row.name} leaves {own.data} no better than it came")
    for error in failed.values():
        print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
