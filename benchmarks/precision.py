"""Does mixed precision cost quality? Paired recipes trained in fp32 and in bf16, with several seeds, scored alike.

    python benchmarks/precision.py --out DIR [--data DIR] [--only NAME ...] [--steps N] [--seeds N]
                                   [--jobs N] [--threads N]

--data   the folder with train/sots_outdoor and test/sots_outdoor
--only   which of pix2pix and hazeheal; each trains by its runs/NAME-laptop.toml, shortened to --steps

A run that has ended in DIR is not repeated, one that was stopped is gone on with. The score is the mean PSNR over the
test photos (protocol rgb), the network computed in f32 whatever it was trained in. Nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from fairweather.errors import FairweatherError
from fairweather.evaluation import evaluate
from fairweather.pairs import find_sets
from fairweather.restoring import load
from fairweather.training.allocator import MALLOC

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("pix2pix", "hazeheal")
PRECISIONS = ("fp32", "bf16")
SET = "sots_outdoor"
MOST = 0.3
"""The means of the two precisions may differ by this many dB."""


def train(name: str, precision: str, seed: int, run: Path, options: argparse.Namespace) -> None:
    """One run to its end. Raises RuntimeError with what it said last."""
    if (run / "model" / "card.json").exists():
        return
    words = [sys.executable, "-m", "fairweather", "train", "--config", str(ROOT / "runs" / f"{name}-laptop.toml")]
    words += ["--data", str(options.data / "train" / SET), "--out", str(run), "--device", "cpu"]
    words += ["--precision", precision, "--seed", str(seed), "--steps", str(options.steps)]
    words += ["--threads", str(options.threads), *(["--resume"] if (run / "run.json").exists() else [])]
    log = run.parent / f"{run.name}.log"
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **MALLOC}).returncode
    if code:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        raise RuntimeError(f"{run.name}: training ended with code {code}: {said[-1] if said else 'no word'}")


def score(run: Path, data: Path) -> float:
    """Mean PSNR in dB of a run's model."""
    pairs = find_sets(data / "test")[SET]
    [result] = evaluate(load(run / "model", precision="f32"), {SET: pairs})
    return result.scores[0].value


def table(scores: dict[str, dict[str, list[float]]]) -> tuple[str, bool]:
    """The scores as a table, and whether every recipe's two means are near enough to each other."""
    lines = ["| recipe | fp32, each seed | bf16, each seed | fp32 mean | bf16 mean | difference | seeds' spread |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    near = True
    for name, both in scores.items():
        means = {precision: mean(values) for precision, values in both.items()}
        difference = means["bf16"] - means["fp32"]
        near &= abs(difference) <= MOST
        cells = [name, *(" ".join(f"{value:.2f}" for value in both[precision]) for precision in PRECISIONS)]
        cells += [f"{means['fp32']:.2f}", f"{means['bf16']:.2f}", f"{difference:+.2f}"]
        cells.append(f"{max(stdev(values) if len(values) > 1 else 0.0 for values in both.values()):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines), near


def parser() -> argparse.ArgumentParser:
    """What may be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = {
        (name, precision, seed): options.out / f"{name}-{precision}-{seed}"
        for name in options.only
        for seed in range(1, options.seeds + 1)
        for precision in PRECISIONS
    }
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(train, *key, run, options) for key, run in runs.items()]:
                future.result()
        scores: dict[str, dict[str, list[float]]] = {name: {p: [] for p in PRECISIONS} for name in options.only}
        for (name, precision, _), run in runs.items():
            scores[name][precision].append(score(run, options.data))
    except (FairweatherError, RuntimeError) as error:
        print(f"precision.py: {error}", file=sys.stderr)
        return 1
    text, near = table(scores)
    print(f"PSNR in dB on {SET}, protocol rgb, after {options.steps} steps.\n\n{text}")
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
