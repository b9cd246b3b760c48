"""Several processes: together they are one with a larger batch, stay in step, resume, and end together."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.errors import BadSettings
from fairweather.images import write
from fairweather.training import launch, state
from fairweather.training.feed import Feed
from tests.conftest import ROOT
from tests.training import several
from tests.training.toy import Toy, assert_same_state, leaves, no_export, small_run

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
PATIENCE = 300
"""Seconds until a process counts as hanging; a quiet machine needs a few."""
WITHOUT_BATCH_NORM: dict[str, Any] = {"generator": "resnet6", "generator_arguments": {"width": 4, "blocks": 1}}


def together(recipe: str, out: Path, *, size: int = 2, **said: Any) -> tuple[list[int | None], list[str]]:
    """Exit codes and output of `size` processes that train; they are forked from one that has loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.several"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [out.with_name(f"{out.name}-{rank}.log") for rank in range(size)]
    words = (recipe, str(out), json.dumps(said))
    processes = [
        context.Process(target=several.placed, args=(rank, size, port, str(logs[rank]), *words)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hanging, f"processes {hanging} hang"
    return [process.exitcode for process in processes], [log.read_text() for log in logs]


def told(out: Path, size: int = 2) -> list[dict[str, Any]]:
    """What the processes of a finished run have left."""
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(size)]


def shared(told: dict[str, Any]) -> dict[str, Tensor]:
    """All of a process's tensors that must be the same in all: weights, statistics, moments, average."""
    engine = {key: value for key, value in told["engine"].items() if key not in ("pools", "pool_generator")}
    return {name: leaf for name, leaf in leaves(engine).items() if isinstance(leaf, Tensor)}


def apart(first: dict[str, Any], second: dict[str, Any], start: dict[str, Any]) -> float:
    """How far the convolutions of two runs are apart, relative to how far the first has moved from the start.

    Not the biases: instance norm takes them away again, so that their gradients are rounding and nothing else, of which
    Adam makes steps like any other.
    """

    def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
        weights = [name for name in a["recipe"] if a["recipe"][name].dim() == 4]
        return float(torch.cat([(a["recipe"][name] - b["recipe"][name]).flatten() for name in weights]).norm())

    return distance(first, second) / distance(first, start)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("cyclegan", {"width": 4, "pool": 0}),
        ("supervised", {"ema": 0.9, "ssim": 0.1}),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(
    recipe: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no photo's result depends on the others of its batch, and no process draws. The sums are the same but for
    their order, so that weights differ by float32's rounding, which Adam magnifies where a gradient is nearly zero."""
    no_export(monkeypatch)
    said = {**WITHOUT_BATCH_NORM, "settings": settings}
    one = small_run(recipe, tmp_path / "one", batch=2, **said)
    start = state.load(small_run(recipe, tmp_path / "start", batch=2, steps=1, **said).folder / "state")
    alone = state.load(one.folder / "state")["engine"]
    codes, logs = together(recipe, tmp_path / "two", batch=1, **said)
    assert codes == [0, 0], logs
    both = [process["engine"] for process in told(tmp_path / "two")]
    print(apart(alone, both[0], start["engine"]))
    assert apart(alone, both[0], start["engine"]) < 2e-2
    codes, logs = together(recipe, tmp_path / "apart", batch=1, apart=True, **said)
    assert codes == [0, 0], logs
    separate = [process["engine"] for process in told(tmp_path / "apart")]
    print(apart(alone, both[0], start["engine"]), apart(alone, separate[0], start["engine"]))
    assert apart(alone, separate[0], start["engine"]) > 0.2
