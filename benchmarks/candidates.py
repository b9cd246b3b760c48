"""Compare network architectures for haze under one training budget, or ablate the best one.

    python benchmarks/candidates.py --out DIR [--data DIR] [--config TOML] [--minutes 40] [--ablate [NAME]]
                                    [--only NAME ...] [--jobs N] [--threads 1]

--config   the run file. A variant is this file with the changes in benchmarks/variants.py: candidates have another
           [generator] table (and, without norms, a lower learning rate), ablations have other data or losses
--minutes  CPU time per variant. The time of its step (network, loss, optimizer, data preparation) is measured first,
           and the number of steps follows; other programs do not affect it
--ablate   train ablations of this candidate (scattering_maps) instead of the candidates
--jobs     variants trained in parallel, each with --threads

Runs and scores in DIR are resumed and reused. Scores are of held-out scenes of the training photos, at full size,
protocol rgb, mean over photos; glow is defined in benchmarks/glow.py; clear photos are compared with themselves. The
test photos are scored in a separate table, which is not used for any choice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import DATA, ROOT, cpu_minutes, run_training
from scoring import Sets, by_function, on_clear, on_pairs, weather_of
from variants import ABLATIONS, CANDIDATES, Tables, Variant, changed, toml

from fairweather.data.mixture import CLEAR_SUFFIX, divide_holdout
from fairweather.errors import BadSettings, FairweatherError
from fairweather.evaluation.metrics import PROTOCOLS
from fairweather.pairs import find_sets
from fairweather.training.allocator import MALLOC
from fairweather.training.config import read_toml

CONFIG = ROOT / "runs" / "dehaze.toml"
WARM, TIMED = 2, 8
"""Warm-up steps, and timed steps."""
QUIET = {"validate_steps": 0, "sample_steps": 0, "tensorboard": False, "parity": "installed", "device": "cpu"}
INPUT = "the input"


@dataclass(frozen=True)
class Score:
    """One variant on one set."""

    n: int
    psnr: float
    ssim: float | None = None
    """None, as the fields below, for clear photos."""
    near: float | None = None
    elsewhere: float | None = None
    worst: float | None = None
    """PSNR of the worst photo; clear photos only."""


Scores = dict[str, Score]


def train(name: str, tables: Tables, variant: Variant, options: argparse.Namespace, start: Path | None = None) -> None:
    """Train a variant. Raises RuntimeError if training fails or the folder holds a run with other settings."""
    run, path = options.out / name, options.out / f"{name}.toml"
    tables = changed(tables, variant)
    own = tables["run"]
    for length in ("steps", "epochs", "minutes"):
        own.pop(length, None)
    own |= {**QUIET, "threads": options.threads, **({} if start is None else {"start": str(start)})}
    own["steps"] = max(1, round(60 * options.minutes * variant.share / pace(name, tables, options)))
    text = f"# {variant.says}\n\n{toml(tables)}"
    if (run / "run.json").exists() and path.read_text(encoding="utf-8") != text:
        raise RuntimeError(f"{run} was trained with other settings: use those, or another --out")
    path.write_text(text, encoding="utf-8")
    if (run / "model" / "card.json").exists():
        return
    words = [sys.executable, "-m", "fairweather", "train", "--config", str(path)]
    words += ["--data", str(options.data / "train"), "--out", str(run)]
    words += ["--resume"] if (run / "run.json").exists() else []
    run_training(words, options.out / f"{name}.log", OMP_NUM_THREADS=str(options.threads))


def pace(name: str, tables: Tables, options: argparse.Namespace) -> float:
    """Seconds of CPU time per step, measured once in a separate process."""
    kept = options.out / f"{name}.pace"
    if not kept.exists():
        path = options.out / f"{name}-pace.toml"
        path.write_text(toml({**tables, "run": {**tables["run"], "steps": 1}}), encoding="utf-8")
        words = [sys.executable, __file__, "--out", str(options.out), "--data", str(options.data), "--pace", str(path)]
        words += ["--threads", str(options.threads)]
        surroundings = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(words, capture_output=True, text=True, env=surroundings, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: timing its step failed: {done.stderr.strip().splitlines()[-1:]}")
        kept.write_text(done.stdout.strip().splitlines()[-1] + "\n", encoding="utf-8")
        path.unlink()
    return float(kept.read_text(encoding="utf-8"))


def step_time(path: Path, data: Path, threads: int) -> float:
    """In the child process: mean over TIMED steps, with augmentation and without decoding."""
    import torch

    from fairweather.recipes import RECIPES
    from fairweather.training.config import collect_tables, complete_config
    from fairweather.training.dataloader import BatchLoader, open_data
    from fairweather.training.export_run import build_recipe
    from fairweather.training.optimization import TrainingEngine

    torch.set_num_threads(threads)
    settings = complete_config(*collect_tables(None, path, {"data": {"folder": str(data)}}))
    assert settings.run.batch is not None
    assert settings.data.crop is not None
    if "discriminator_warmup" in settings.recipe.settings:
        settings.recipe.settings["discriminator_warmup"] = 0  # the steps before the discriminator is heard are cheaper
    kind = RECIPES[settings.recipe.name]
    dataset = open_data(settings.data, kind, settings.recipe.name, settings.data.crop)
    engine = TrainingEngine(build_recipe(settings), device="cpu", precision=settings.run.precision)
    feeds = (iter(BatchLoader(dataset, seed=settings.run.seed, batch=settings.run.batch)) for _ in range(2))
    batches = next(feeds)
    for _ in range(WARM + TIMED):  # fill the caches
        next(batches)
    batches, began = next(feeds), 0.0
    for at in range(WARM + TIMED):
        if at == WARM:
            began = time.process_time()
        engine.step(next(batches), 0.5)
    return (time.process_time() - began) / TIMED


def held_back(tables: Tables, data: Path) -> dict[str, list[Any]]:
    """The held-out scenes of the run file, whatever sources a variant leaves out."""
    share = tables["data"].get("hold_back", 0.0)
    if not share:
        raise BadSettings("data.hold_back of the run file is 0: set it above 0 to have scenes for validation")
    sources = [one for one in tables["data"].get("sources", []) if one["kind"] != "synthetic"]
    return divide_holdout(sources, data, share).holdout


def scored(name: str, restore: Any, key: str, sets: Sets, path: Path) -> Scores:
    """Scores of a system on every set, cached in a file under `key`."""
    key += " " + " ".join(f"{data}:{len(pairs)}" for data, pairs in sets.items())
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["of"] == key:
        return {data: Score(**values) for data, values in kept["scores"].items()}
    systems = {name: by_function(restore)}
    pairs = {data: one for data, one in sets.items() if not data.endswith(CLEAR_SUFFIX)}
    found: Scores = {}
    for row in on_pairs(systems, pairs, [PROTOCOLS["rgb"]], tell=_tell):
        if row.result.failed:
            raise RuntimeError(f"{name}: {next(iter(row.result.failed.values()))}")
        decibel, structure = row.result.scores
        found[row.result.data] = Score(decibel.n, decibel.value, structure.value, row.near, row.elsewhere)
    for clear in on_clear(systems, {data: one for data, one in sets.items() if data not in pairs}, tell=_tell):
        found[clear.data] = Score(len(clear.decibel), clear.mean, worst=clear.worst)
    document = {"of": key, "scores": {data: asdict(score) for data, score in found.items()}}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def cost(run: Path, threads: int) -> dict[str, Any]:
    """Cost of a trained variant: parameters, GMAC at 256 px, CPU ms at 1080p."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fairweather.generators import GENERATORS
    from fairweather.inference import load

    path = run.with_name(f"{run.name}-cost.json")
    if not path.exists():
        restorer = load(run / "model", engine="openvino", threads=threads)
        network = GENERATORS[restorer.card.generator](**restorer.card.arguments).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.rand(1, 3, 256, 256))
        photo = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
        taken = []
        for _ in range(4):  # the first call compiles
            began = time.process_time()
            restorer(photo)
            taken.append(time.process_time() - began)
        found = {
            "generator": restorer.card.generator,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "gmacs": counter.get_total_flops() / 2e9,
            "ms": 1000 * min(taken),
        }
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known


def costs(names: Sequence[str], says: Mapping[str, str], options: argparse.Namespace) -> str:
    """The table of costs."""
    lines = [
        "| variant | what it is | generator | parameters | GMAC at 256 px | ms at 1080p | steps | CPU min |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        found, steps = (
            cost(options.out / name, options.threads),
            read_toml(options.out / f"{name}.toml")["run"]["steps"],
        )
        cells = [name, says[name], found["generator"], f"{found['parameters']:,}", f"{found['gmacs']:.2f}"]
        cells += [f"{found['ms']:,.0f}", f"{steps:,}", f"{cpu_minutes(options.out / f'{name}.seconds'):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality(rows: Mapping[str, Scores]) -> str:
    """PSNR and SSIM; for clear photos mean and worst PSNR."""
    return _table(
        rows, lambda s: f"{s.psnr:.2f} / {s.ssim:.3f}" if s.worst is None else f"{s.psnr:.1f} / {s.worst:.1f}"
    )


def glows(rows: Mapping[str, Scores]) -> str:
    """Glow near strong edges and elsewhere, in levels of 255."""
    return _table(rows, lambda s: None if s.near is None else f"{s.near:.1f} / {s.elsewhere:.1f}")


def _table(rows: Mapping[str, Scores], cell: Any) -> str:
    sets = {data: score.n for data, score in next(iter(rows.values())).items() if cell(score) is not None}
    lines = ["| variant | " + " | ".join(f"{data} ({n})" for data, n in sets.items()) + " |"]
    lines.append("|---" + "|--:" * len(sets) + "|")
    lines += ["| " + " | ".join([name, *(cell(scores[data]) for data in sets)]) + " |" for name, scores in rows.items()]
    return "\n".join(lines)


def measured(names: Sequence[str], sets: Sets, what: str, options: argparse.Namespace) -> dict[str, Scores]:
    """Scores of the input and of each variant."""
    from fairweather.inference import load

    rows = {INPUT: scored(INPUT, np.asarray, INPUT, sets, options.out / f"input-{what}.json")}
    for name in names:
        restorer = load(options.out / name / "model", threads=options.threads)
        key = restorer.card.checksums["weights.safetensors"]
        rows[name] = scored(name, restorer, key, sets, options.out / f"{name}-{what}.json")
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--ablate", nargs="?", const="scattering_maps", choices=sorted(CANDIDATES), metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=sorted(CANDIDATES | ABLATIONS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pace", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.pace:
        print(step_time(options.pace, options.data / "train", options.threads))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    whole, tables = options.ablate, read_toml(options.config)
    variants = CANDIDATES if whole is None else {whole: CANDIDATES[whole], **ABLATIONS}
    if options.only:
        variants = {name: one for name, one in variants.items() if name in (*options.only, whole)}
    failed: dict[str, BaseException | None] = {}
    try:
        held = held_back(tables, options.data / "train")
        base = tables if whole is None else changed(tables, CANDIDATES[whole])
        for turn in (False, True):  # fine-tuned variants need the trained ones
            with ThreadPoolExecutor(options.jobs) as pool:
                running = {
                    name: pool.submit(
                        *(train, name, tables if name in CANDIDATES else base, variant, options),
                        options.out / whole if whole and variant.goes_on else None,
                    )
                    for name, variant in variants.items()
                    if variant.goes_on is turn and whole not in failed
                }
            failed |= {name: run.exception() for name, run in running.items() if run.exception() is not None}
        names = [name for name in variants if (options.out / name / "model" / "card.json").exists()]
        sets = {data: pairs for data, pairs in find_sets(options.data / "test").items() if weather_of(pairs) == "haze"}
        chosen, tested = (measured(names, one, w, options) for one, w in ((held, "held"), (sets, "test")))
        says = {name: one.says for name, one in variants.items()}
        print(f"Budget: {options.minutes:g} minutes of CPU time per variant, {options.threads} thread(s).\n")
        print(costs(names, says, options))
        print("\nHeld-out scenes of the training photos, PSNR / SSIM (clear photos: mean / worst PSNR):\n")
        print(quality(chosen))
        print("\nThe same scenes, glow near strong edges / elsewhere, levels of 255:\n")
        print(glows(chosen))
        print("\nThe test photos, PSNR / SSIM. This table is not used for any choice:\n")
        print(quality(tested))
    except (FairweatherError, RuntimeError) as error:
        print(f"candidates.py: {error}", file=sys.stderr)
        return 1
    for error in failed.values():
        print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
