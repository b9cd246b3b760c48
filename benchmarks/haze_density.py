"""Fit the no-reference estimate of haze density, and measure its accuracy.

    python benchmarks/haze_density.py [--data DIR] [--hazes 3] [--hold-back 0.15] [--pairs 40] [--write]

--data   the folder of training photos: haze is added to clear/ for the fit; its sets of pairs are checks
--pairs  photos of each set to check, evenly spaced
--write  write the fitted values into src/fairweather/evaluation/no_reference.py

The haze is that of `fairweather synthesize` (random depth, from clear air to dense); the target is its mean 1 - t, and
the model is a ridge regression on the logit. It is tested on haze over held-out photos, and on pairs: how often the
hazy photo of a pair gets the higher estimate, and by how much.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import DATA
from numpy.typing import NDArray

from fairweather.data.datasets import photos_in, scene_of_photo, split_holdout
from fairweather.evaluation import no_reference as density
from fairweather.images.io import read, to_float
from fairweather.pairs import find_sets
from fairweather.weather.haze import HazeSettings, haze

HOME = Path(density.__file__)
HAZE = HazeSettings(density=(0.05, 3.5), airlight=(0.5, 1.0), noise=0.01)
CLEAR = 0.25
"""Fraction of examples without haze (target 0)."""
RIDGE = 3.0
EDGE = 0.01
"""Targets are clipped to [EDGE, 1 - EDGE] before the logit."""

Array = NDArray[np.float64]


def examples(paths: Sequence[Path], hazes: int, seed: int) -> tuple[Array, Array]:
    """Features and targets of `hazes` hazy versions of each photo."""
    generator = torch.Generator().manual_seed(seed)
    rows, truths = [], []
    for path in paths:
        small = density.reduce_for_density(to_float(read(path).pixels))
        clear = torch.from_numpy(small).permute(2, 0, 1)[None]
        for _ in range(hazes):
            picture, truth = small, 0.0
            if torch.rand((), generator=generator) >= CLEAR:
                hazy, made = haze(clear, generator, HAZE)
                picture, truth = hazy[0].permute(1, 2, 0).numpy(), 1 - float(made["transmission"].mean())
            rows.append(density.density_features(picture))
            truths.append(truth)
    return np.array(rows), np.array(truths)


def fit(x: Array, y: Array) -> tuple[Array, Array, Array, float]:
    """Centre, scale, weights and intercept of the ridge regression of logit(y) on x."""
    centre, scale = x.mean(0), x.std(0) + 1e-9
    z = (x - centre) / scale
    target = y.clip(EDGE, 1 - EDGE)
    target = np.log(target / (1 - target))
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (target - target.mean()))
    return centre, scale, weights, float(target.mean())


def install(centre: Array, scale: Array, weights: Array, intercept: float) -> None:
    """Set the fitted values in the imported module."""
    density.FEATURE_CENTRE, density.FEATURE_SCALE, density.FEATURE_WEIGHTS = (
        tuple(map(float, v)) for v in (centre, scale, weights)
    )
    density.INTERCEPT = intercept


def written(source: str) -> str:
    """The module's source with its current values."""
    for name in ("CENTRE", "SCALE", "WEIGHTS"):
        rows = [", ".join(f"{value:.4g}" for value in getattr(density, name)[at : at + 3]) for at in range(0, 20, 3)]
        block = "".join(f"    *({row}),\n" if ", " in row else f"    {row},\n" for row in rows if row)
        source = re.sub(
            rf"^{name}: tuple\[float, \.\.\.\] = \(.*?\)$",
            f"{name}: tuple[float, ...] = (\n{block})",
            source,
            flags=re.MULTILINE | re.DOTALL,
        )
    return re.sub(r"^INTERCEPT = .*$", f"INTERCEPT = {density.INTERCEPT:.4g}", source, flags=re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "train")
    parser.add_argument("--hazes", type=int, default=3)
    parser.add_argument("--hold-back", type=float, default=0.15)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept, held = split_holdout(photos_in(options.data / "clear"), scene_of_photo, options.hold_back)
    install(*fit(*examples(kept, options.hazes, options.seed)))
    x, truth = examples(held, options.hazes, options.seed + 1)
    estimate = 1 / (
        1
        + np.exp(-((x - density.FEATURE_CENTRE) / density.FEATURE_SCALE @ density.FEATURE_WEIGHTS + density.INTERCEPT))
    )
    hazy = truth > 0
    print(f"{len(kept)} photos for the fit, {len(held)} held back, {options.hazes} hazes each")
    error, correlation = np.abs(truth - estimate).mean(), np.corrcoef(truth, estimate)[0, 1]
    print(
        f"held back: correlation {correlation:.3f}, mean error {error:.3f}"
        f"; clear photos get {estimate[~hazy].mean():.3f} (truth 0), hazy ones {estimate[hazy].mean():.3f}"
        f" (truth {truth[hazy].mean():.3f})"
    )
    print("\n| pairs | n | hazy | clear | correct order |\n|---|--:|--:|--:|--:|")
    for name, pairs in find_sets(options.data).items():
        if "rain" in name:
            continue
        pairs = pairs[:: max(1, len(pairs) // options.pairs)]
        hazes, clears = (
            np.array([density.haze_density(to_float(read(path).pixels)) for path in side])
            for side in zip(*((pair.degraded, pair.clear) for pair in pairs), strict=True)
        )
        right = 100 * (hazes > clears).mean()
        print(f"| {name} | {len(pairs)} | {hazes.mean():.3f} | {clears.mean():.3f} | {right:.0f} % |")
    if options.write:
        HOME.write_text(written(HOME.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"\nwritten to {HOME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
