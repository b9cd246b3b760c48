"""Time of a training step: every recipe compared with a plain PyTorch loop of the same networks and losses.

    python benchmarks/training.py [--recipe NAME ...] [--size laptop|paper] [--rounds 15] [--threads N] [--device auto]

The plain loops are in plain_loops.py. Both sides have the same weights, batches (synthetic, in memory), precision and
allocator; the plain loop uses the memory format that is faster for its networks. First each takes ten fp32 steps from
the same state, with a full history of generated photos if the recipe has one, and their losses are compared: "agree
to" is the largest relative difference of any term. Then rounds of one step each of fairweather fp32, plain fp32,
fairweather bf16, plain bf16 (or the device's default precision), every second round in reverse order. Times are
medians over the rounds, ratios are medians of the rounds' ratios.

Networks, crop and batch come from runs/NAME-laptop.toml (if missing, runs/NAME.toml; runs/dehaze.toml for supervised);
with --size paper from runs/NAME.toml, or the recipe's defaults.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RUNS = Path(__file__).resolve().parent.parent / "runs"
NAMES = ("cyclegan", "pix2pix", "claritygan", "hazeheal", "derain", "supervised")
CHECKED = 10
PROGRESS = 0.1
"""Position in the run of all measured steps: after every warm-up and before every decay."""
MOST, MOST_MIXED, DIGITS = 1.05, 0.65, 5e-5
Row = dict[str, Any]


def settings_of(name: str, size: str) -> Any:
    """The settings of the run file for `size`."""
    from fairweather.training.config import collect_tables, complete_config

    names = {"laptop": [f"{name}-laptop", name], "paper": [name]}[size] + ["dehaze"] * (name == "supervised")
    config = next((path for stem in names if (path := RUNS / f"{stem}.toml").is_file()), None)
    return complete_config(*collect_tables(None if config else name, config, {}))


def batches_of(count: int, batch: int, crop: int) -> Iterator[Any]:
    """Synthetic photos: smooth, with grain and haze; no value occurs twice."""
    import torch

    from fairweather.recipes import Batch

    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        coarse = torch.rand(batch, 3, 8, 8, generator=generator)
        clear = torch.nn.functional.interpolate(coarse, (crop, crop), mode="bicubic").clamp(0, 1)
        clear = (clear + 0.05 * torch.rand(clear.shape, generator=generator)).clamp(0, 1)
        t = 0.3 + 0.6 * torch.rand(batch, 1, 1, 1, generator=generator)
        yield Batch(clear * t + 0.9 * (1 - t), clear)


class Sides:
    """A recipe and its plain loop in one precision, from the same weights."""

    def __init__(self, recipe: Any, precision: str, device: str) -> None:
        import torch
        from plain_loops import PLAIN

        from fairweather.recipes import RECIPES
        from fairweather.training.optimization import TrainingEngine, learning_rate

        name = next(key for key, kind in RECIPES.items() if kind is type(recipe))
        self.engine = TrainingEngine(copy.deepcopy(recipe), device=device, precision=precision, seed=0)  # type: ignore[arg-type]
        norms = any(isinstance(part, torch.nn.InstanceNorm2d) for part in recipe.modules())
        self.loop = PLAIN[name](
            copy.deepcopy(recipe).to(self.engine.fabric.device),
            {group: learning_rate(one, PROGRESS) for group, one in self.engine.optimizer_groups.items()},
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision],
            # With PyTorch's own instance norm that layout is the slower one on a CPU.
            channels_last=self.engine.channels_last and not (norms and self.engine.device == "cpu"),
            seed=0,
        )

    def ours(self, batch: Any) -> dict[str, float]:
        import torch

        terms = self.engine.step(batch, PROGRESS)
        return dict(zip(terms, torch.stack([term.float() for term in terms.values()]).tolist(), strict=True))

    def plain(self, batch: Any) -> dict[str, float]:
        return self.loop.step(batch)


def agreement(sides: Sides, batches: Sequence[Any]) -> float:
    """Largest relative difference of a term between the two sides over the batches."""
    import torch

    worst = 0.0
    for number, batch in enumerate(batches):
        results = []
        for step in (sides.ours, sides.plain):
            torch.manual_seed(number)  # of dropout
            results.append(step(batch))
        ours, plain = results
        assert ours.keys() == plain.keys(), f"{sorted(ours)} and {sorted(plain)}"
        for name, value in plain.items():
            worst = max(worst, abs(ours[name] - value) / max(abs(value), 1e-6))
    return worst


def take_turns(steps: dict[str, Callable[[Any], Any]], batches: Sequence[Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-2, rounds):  # two warm-up rounds
        batch = batches[number % len(batches)]
        for name in list(steps)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            steps[name](batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def measure(name: str, size: str, rounds: int, device: str, settings: Any = None) -> Row:
    """Measure one line of the table."""
    import torch

    from fairweather.training.export_run import build_recipe
    from fairweather.training.optimization import choose_device, choose_precision

    settings = settings or settings_of(name, size)
    device = choose_device(device)  # type: ignore[arg-type]
    default = choose_precision("auto", device)  # type: ignore[arg-type]
    if "pool" in settings.recipe.settings:  # small enough to be sampled within the compared steps
        own = {**settings.recipe.settings, "pool": 3}
        settings = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, settings=own))
    torch.manual_seed(0)
    recipe = build_recipe(settings)
    batches = list(batches_of(CHECKED, settings.run.batch, settings.data.crop))
    sides = {precision: Sides(recipe, precision, device) for precision in dict.fromkeys(("fp32", default))}
    worst = agreement(sides["fp32"], batches)
    steps = {(kind, p): getattr(side, kind) for p, side in sides.items() for kind in ("ours", "plain")}
    times = take_turns(steps, batches, rounds)  # type: ignore[arg-type,type-var]

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        return median(a / b for a, b in zip(times[one], times[other], strict=True))  # type: ignore[index]

    return {
        "recipe": name,
        "generator": settings.generator.name,
        "size": f"{settings.run.batch} x {settings.data.crop} px",
        "agree": worst,
        "precision": default,
        "ms": {kind: 1000 * median(times[kind]) for kind in steps},  # type: ignore[index]
        "ratio": {precision: ratio(("ours", precision), ("plain", precision)) for precision in sides},
        "mixed": ratio(("ours", default), ("ours", "fp32")) if default != "fp32" else None,
    }


def markdown(rows: Sequence[Row]) -> str:
    """One line per recipe; missed targets are bold."""
    default = next((row["precision"] for row in rows if row["precision"] != "fp32"), None)
    precisions = ["fp32", *([default] if default else [])]
    heads = ["recipe", "generator", "batch", "agree to"]
    heads += [f"{p} {word}" for p in precisions for word in ("ms", "plain ms", "ratio")]
    heads += [f"{default} / fp32"] if default else []
    lines = ["| " + " | ".join(heads) + " |", "|---|---|--:" + "|--:" * (len(heads) - 3) + "|"]

    def cell(value: float, most: float, form: str = ".2f") -> str:
        return f"{value:{form}}" if value <= most else f"**{value:{form}}**"

    for row in rows:
        cells = [row["recipe"], row["generator"], row["size"], cell(row["agree"], DIGITS, ".0e")]
        for p in precisions:
            cells += [f"{row['ms'][kind, p]:.0f}" for kind in ("ours", "plain")] + [cell(row["ratio"][p], MOST)]
        cells += [cell(row["mixed"], MOST_MIXED)] if default else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="*", default=list(NAMES), choices=NAMES, metavar="NAME")
    parser.add_argument("--size", default="laptop", choices=("laptop", "paper"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    options = parser.parse_args(arguments)

    import logging

    import torch
    from measuring import cores, processor, warn_if_busy

    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{processor()}, {cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"medians of {options.rounds} rounds; a ratio is the median of the rounds' ratios\n")
    warn_if_busy()
    rows = []
    for name in options.recipe:
        rows.append(measure(name, options.size, options.rounds, options.device))
        print(markdown(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(markdown(rows))
    apart = [row["recipe"] for row in rows if row["agree"] > DIGITS]
    if apart:
        print(f"\nlosses of the first {CHECKED} fp32 steps differ: {', '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    from fairweather.training.allocator import restart_tuned

    restart_tuned()
    sys.exit(main())
