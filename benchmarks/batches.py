"""How fast do training samples come? The loader, sample by sample, beside whole batches made on the device.

    python benchmarks/batches.py [--config runs/ship/dehaze.toml] [--data ../shared/data/train] [--batch 16]
                                 [--seconds 10] [--device cpu] [--threads 1] [--workers 8]

The same run file, photos, crops and settings of the weather on both sides; one process each, in turn, for so many
seconds of the clock and, on a CPU, of the processor, which other programs cannot stretch: the table counts samples per
second of both. With --device cuda the loader has its worker processes, as `fairweather train` gives it; on a CPU it
works in this process, since a worker there takes the networks' time. With --sources every source alone, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WARM = 2
"""Batches before the clock starts."""


def measured(batches: Iterator[Any], batch: int, seconds: float, settle: Callable[[], None]) -> tuple[float, float]:
    """Samples per second of the clock, and of this process's processor time."""
    for _ in range(WARM):
        next(batches)
    settle()
    began, spent, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        settle()
        count += batch
    return count / (time.perf_counter() - began), count / max(1e-9, time.process_time() - spent)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "runs" / "ship" / "dehaze.toml")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "train")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8, help="of the loader, beside a GPU")
    parser.add_argument("--sources", action="store_true", help="every source of the file alone, too")
    said = parser.parse_args(arguments)
    import cv2
    import torch

    from fairweather.data.gpu_batches import GPUBatches
    from fairweather.data.mixture import Mixture
    from fairweather.recipes import RECIPES
    from fairweather.training.config import collect_tables, complete_config
    from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader, open_data

    torch.set_num_threads(said.threads)
    cv2.setNumThreads(said.threads)
    settings = complete_config(*collect_tables(None, said.config, {"data": {"folder": str(said.data)}}))
    name = settings.recipe.name
    data = open_data(settings.data, RECIPES[name], name, settings.data.crop or 256)
    assert isinstance(data, Mixture)
    batched = GPUBatches(data, said.device, int(settings.data.memory_gib * 2**30))
    cuda = said.device == "cuda"

    def settle() -> None:
        if cuda:
            torch.cuda.synchronize()

    kinds = [
        f"{one.kind}{f' ({one.weather})' if one.kind == 'synthetic' else ''}: {one.path}"
        for one in data.settings.sources
    ]
    print(f"{said.config.name}, {settings.data.crop} px, batch {said.batch}, {said.device}, {said.threads} thread(s)\n")
    print("| samples a second | loader | batches on the device | per processor second: loader | batches |")
    print("|---|--:|--:|--:|--:|")
    edges = data.edges.copy()
    for number in range(-1, len(kinds) if said.sources else 0):
        # One source alone is a mixture in which the others have no weight.
        data.edges = edges if number < 0 else (torch.arange(len(kinds)).numpy() >= number).astype(float)
        sides = [
            BatchLoader(data, seed=1, batch=said.batch, workers=said.workers if cuda else 0),
            DeviceBatchLoader(batched, seed=1, batch=said.batch),
        ]
        clock, spent = zip(*(measured(iter(side), said.batch, said.seconds, settle) for side in sides), strict=True)
        row = [f"{value:.0f}" for value in (*clock, *spent)]
        print(f"| {'all sources' if number < 0 else kinds[number]} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
