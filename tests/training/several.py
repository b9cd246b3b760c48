"""One process of a run of several: `python -m tests.training.several RECIPE OUT SAID`, for test_processes.py.

SAID is a JSON object: options for `small_run`; `trouble`, what goes wrong in which process and step; `apart`, which
leaves every process with the gradients of its own photos. Each process leaves its state in OUT/rank-R.pt.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from torch import Tensor

from fairweather import cli
from fairweather.commands import train as verb
from fairweather.errors import BadImage
from fairweather.training import loop, trainer
from fairweather.training.distributed import ProcessGroup
from tests.training.toy import SMALL, Toy, small_run


class Troubled(Toy):
    """Pictures; and trouble in process `rank` as it prepares the first one of `step`: an error, or a signal's name."""

    def __init__(self, batch: int, *, what: str = "", rank: int = 0, step: int = 0) -> None:
        super().__init__()
        self.what, self.left = what, (step - 1) * batch if rank == int(os.environ.get("LOCAL_RANK", 0)) else -1

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        sample = super().sample(seed, epoch, index)
        self.left -= 1
        if self.left != -1:
            return sample
        if self.what == "error":
            raise BadImage("photo.png: not a picture")
        if self.what == "nan":
            return {side: photo * math.nan for side, photo in sample.items()}
        os.kill(os.getpid(), getattr(signal, self.what))
        return sample


def main(recipe: str, out: str, words: str) -> int:
    """What `fairweather train` does in one process, and its exit code."""
    said, folder = json.loads(words), Path(out)
    options = {**SMALL[recipe], **said}
    options.setdefault("data", Troubled(options.get("batch", 1), **options.pop("trouble", {})))
    if options.pop("apart", False):
        ProcessGroup.mean_gradients = lambda self, parameters, loss: loss.item()  # type: ignore[method-assign]
    fit = loop.fit

    def fit_and_tell(prepared: trainer.PreparedRun, *, resume: bool) -> int:
        step = fit(prepared, resume=resume)
        engine = prepared.engine
        told = {"step": step, "engine": engine.state(), "draw": torch.rand(3), "threads": torch.get_num_threads()}
        torch.save(told, folder / f"rank-{engine.processes.rank}.pt")
        return step

    loop.fit = fit_and_tell
    trainer.export_model = lambda *_: None  # type: ignore[assignment]
    verb.parse = lambda *_: lambda: 0 if small_run(recipe, folder, **options) else 1  # type: ignore[assignment]
    return cli.main(["train"])


def forked() -> ForkServerContext:
    """Makes processes that are forked from one that has loaded torch: to load it takes each of them seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.several"])
    return context


def placed(rank: int, size: int, port: int, log: str, *words: str) -> None:
    """`main` in a process that torchrun, say, would have started; what it prints goes to the file `log`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    torch.set_num_threads(1)
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(main(*words))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
