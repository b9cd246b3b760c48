"""Throughput of training samples: the data loader compared with batches made on the device.

    python benchmarks/batches.py [--config runs/ship/dehaze.toml] [--data ../shared/data/train] [--batch 16]
                                 [--seconds 10] [--device cpu] [--threads 1] [--workers 8]

Both sides use the same run file, photos, crops and weather settings. They run alternately, each in its own process, for
--seconds of wall time. The table has samples per second of wall time and of CPU time; other programs do not affect the
latter. With --device cuda the loader uses worker processes, as `fairweather train` does; on a CPU it runs in the main
process, since workers would compete with the networks. --sources also measures each source alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import DATA, ROOT

WARM = 2
"""Warm-up batches."""


def measured(batches: Iterator[Any], batch: int, seconds: float, settle: Callable[[], None]) -> tuple[float, float]:
    """Samples per second of wall time and of this process's CPU time."""
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
    parser.add_argument("--data", type=Path, default=DATA / "train")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8, help="worker processes of the loader (CUDA only)")
    parser.add_argument("--sources", action="store_true", help="also measure each source alone")
    args = parser.parse_args(arguments)
    import cv2
    import torch

    from fairweather.data.gpu_batches import GPUBatches
    from fairweather.data.mixture import Mixture
    from fairweather.recipes import RECIPES
    from fairweather.training.config import collect_tables, complete_config
    from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader, open_data

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    settings = complete_config(*collect_tables(None, args.config, {"data": {"folder": str(args.data)}}))
    name = settings.recipe.name
    data = open_data(settings.data, RECIPES[name], name, settings.data.crop or 256)
    assert isinstance(data, Mixture)
    batched = GPUBatches(data, args.device, int(settings.data.memory_gib * 2**30))
    cuda = args.device == "cuda"

    def settle() -> None:
        if cuda:
            torch.cuda.synchronize()

    kinds = [
        f"{one.kind}{f' ({one.weather})' if one.kind == 'synthetic' else ''}: {one.path}"
        for one in data.settings.sources
    ]
    print(f"{args.config.name}, {settings.data.crop} px, batch {args.batch}, {args.device}, {args.threads} thread(s)\n")
    print("| samples a second | loader | batches on the device | per processor second: loader | batches |")
    print("|---|--:|--:|--:|--:|")
    edges = data.edges.copy()
    for number in range(-1, len(kinds) if args.sources else 0):
        # A single source is the mixture with weight 0 for the others.
        data.edges = edges if number < 0 else (torch.arange(len(kinds)).numpy() >= number).astype(float)
        sides = [
            BatchLoader(data, seed=1, batch=args.batch, workers=args.workers if cuda else 0),
            DeviceBatchLoader(batched, seed=1, batch=args.batch),
        ]
        clock, spent = zip(*(measured(iter(side), args.batch, args.seconds, settle) for side in sides), strict=True)
        row = [f"{value:.0f}" for value in (*clock, *spent)]
        print(f"| {'all sources' if number < 0 else kinds[number]} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
