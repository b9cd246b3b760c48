"""Several processes: together they are one with a larger batch, stay in step, resume, and end together."""

from __future__ import annotations

import copy
import json
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
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.errors import BadSettings
from fairweather.images.io import write
from fairweather.training import Run, checkpoint, distributed
from fairweather.training.dataloader import BatchLoader
from tests.conftest import ROOT
from tests.training import several
from tests.training.toy import Toy, assert_same_state, leaves, no_export, small_run

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
PATIENCE = 300
"""Seconds until a process counts as hanging; a quiet machine needs a few."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WITHOUT_BATCH_NORM: dict[str, Any] = {"generator": "resnet6", "generator_arguments": {"width": 4, "blocks": 1}}


def together(recipe: str, out: Path, *, size: int = 2, **said: Any) -> tuple[list[int | None], list[str]]:
    """Exit codes and output of `size` processes that train."""
    context = several.forked()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [out.with_name(f"{out.name}-{rank}.log") for rank in range(size)]
    words = (recipe, str(out), json.dumps(said))
    started = [
        context.Process(target=several.placed, args=(rank, size, port, str(logs[rank]), *words)) for rank in range(size)
    ]
    for process in started:
        process.start()
    until = time.monotonic() + PATIENCE
    for process in started:
        process.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
    assert not hanging, f"processes {hanging} hang"
    return [process.exitcode for process in started], [log.read_text() for log in logs]


def states(out: Path, size: int = 2) -> list[dict[str, Any]]:
    """What the processes of a finished run have left."""
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(size)]


def shared(state: dict[str, Any]) -> dict[str, Tensor]:
    """All of a process's tensors that must be the same in all: weights, statistics, moments, average."""
    engine = {key: value for key, value in state["engine"].items() if key not in ("histories", "history_generator")}
    return {name: leaf for name, leaf in leaves(engine).items() if isinstance(leaf, Tensor)}


def terms(out: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl without their times."""
    return [{key: value for key, value in line.items() if key != "time"} for line in Run(out).stats()]


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
    """Where no photo's result depends on the others of its batch and nothing is drawn: the sums are the same but for
    their order. What float32 makes of that is about 3e-6 of the way after eight steps."""
    no_export(monkeypatch)
    said = {**WITHOUT_BATCH_NORM, "settings": settings}
    one = small_run(recipe, tmp_path / "one", batch=2, **said)
    start = checkpoint.load_checkpoint(
        small_run(recipe, tmp_path / "start", batch=2, steps=1, **said).folder / "checkpoints"
    )
    alone = checkpoint.load_checkpoint(one.folder / "checkpoints")["engine"]
    codes, logs = together(recipe, tmp_path / "two", batch=1, **said)
    assert codes == [0, 0], logs
    both = [process["engine"] for process in states(tmp_path / "two")]
    assert apart(alone, both[0], start["engine"]) < 1e-4
    codes, logs = together(recipe, tmp_path / "apart", batch=1, apart=True, **said)
    assert codes == [0, 0], logs
    separate = [process["engine"] for process in states(tmp_path / "apart")]
    assert apart(alone, separate[0], start["engine"]) > 0.2, "the comparison must notice gradients left apart"


@pytest.mark.parametrize(
    ("recipe", "size", "said"),
    [
        ("pix2pix", 3, {}),  # batch norm in both networks, dropout
        ("cyclegan", 2, {}),  # a pool that is full
        ("supervised", 2, {"settings": {"ema": 0.9, "ssim": 0.1, "adversarial": 0.1}}),  # an average, batch norm
        ("hazeheal", 2, {}),  # spectral norm, frozen features that no process sends
        ("supervised", 2, {"steps": None, "minutes": 0.01}),  # learning rates by the clock, and an end by it
    ],
)
def test_processes_stay_in_step(recipe: str, size: int, said: dict[str, Any], tmp_path: Path) -> None:
    codes, logs = together(recipe, tmp_path / "run", size=size, **said)
    assert codes == [0] * size, logs
    first, *others = states(tmp_path / "run", size)
    for other in others:
        assert first["step"] == other["step"]
        assert shared(first).keys() == shared(other).keys()
        for name, value in shared(first).items():
            assert torch.equal(value, shared(other)[name]), name
        assert not torch.equal(first["draw"], other["draw"]), "dropout is each process's own"
    if recipe == "cyclegan":
        pools = [process["engine"]["histories"]["clear"]["photos"] for process in (first, *others)]
        assert [len(photos) for photos in pools] == [2, 2]
        assert not torch.equal(pools[0][0], pools[1][0]), "each process shows its own fakes"
    assert all(not log for log in logs[1:]), "the main process speaks"


@pytest.mark.parametrize(("recipe", "signal", "rank"), [("cyclegan", "SIGINT", 1), ("pix2pix", "SIGTERM", 0)])
def test_stopped_and_resumed_equals_uninterrupted(recipe: str, signal: str, rank: int, tmp_path: Path) -> None:
    """A signal to any process stops all after the same step, with a checkpoint of all."""
    codes, logs = together(recipe, tmp_path / "whole")
    assert codes == [0, 0], logs
    trouble = {"what": signal, "rank": rank, "step": 5}
    codes, logs = together(recipe, tmp_path / "part", trouble=trouble)
    assert codes == [130, 130], logs
    part = checkpoint.load_checkpoint(tmp_path / "part" / "checkpoints")
    assert part["step"] == 5
    assert len(part["others"]) == 1
    codes, logs = together(recipe, tmp_path / "part", resume=True)
    assert codes == [0, 0], logs
    assert_same_state(*(checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")))
    assert terms(tmp_path / "part") == terms(tmp_path / "whole")
    assert [line["step"] for line in terms(tmp_path / "part")] == list(range(1, 9))
    with pytest.raises(BadSettings, match=r"run\.devices is 1 .* started with 2"):
        small_run(recipe, tmp_path / "part", data=str(tmp_path), devices=1, resume=True)
    with pytest.raises(BadSettings, match=r"run\.devices is 3, but 2 processes"):
        checkpoint.process_checkpoint(part, 0, 3)


@pytest.mark.parametrize(
    ("said", "codes", "words", "others"),
    [
        ({"trouble": {"what": "nan", "rank": 1, "step": 3}}, [1, 1], "is nan in step 3", ""),
        ({"data": "/nowhere/to/be/found"}, [1, 1], "/nowhere/to/be/found", ""),
        ({"trouble": {"what": "error", "rank": 1, "step": 3}}, [1, 1], "before the run did", "photo.png: not a"),
        ({"trouble": {"what": "SIGKILL", "rank": 0, "step": 3}}, [-9, 1], "", ""),
        ({"trouble": {"what": "SIGKILL", "rank": 1, "step": 3}}, [1, -9], "before the run did", ""),
    ],
)
def test_what_fails_in_one_fails_in_all(
    said: dict[str, Any], codes: list[int], words: str, others: str, tmp_path: Path
) -> None:
    """No process waits for one that has ended; errors that all find alike are reported by the main one."""
    found, logs = together("supervised", tmp_path / "run", **said)
    assert found == codes, logs
    assert words in logs[0]
    assert logs[0].count("fairweather: error:") == (1 if words else 0)
    assert others in logs[1]
    assert logs[1].count("fairweather: error:") == (1 if others else 0)
    assert not any("Traceback" in log for log in logs)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which is when every process that holds its output has ended."""
    started = [sys.executable, *words]
    environment = {**os.environ, **ONE_THREAD}
    return subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_torchrun(tmp_path: Path) -> None:
    """As many processes as it starts; and the same run, bit for bit, as with processes started otherwise."""
    words = ("-m", "tests.training.several", "pix2pix", str(tmp_path / "run"), '{"steps": 3}')
    done = command("-m", "torch.distributed.run", "--nproc-per-node", "2", *words)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").settings()["settings"]["run"]["devices"] == 2
    codes, logs = together("pix2pix", tmp_path / "placed", steps=3)
    assert codes == [0, 0], logs
    assert_same_state(*(checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("run", "placed")))


def test_an_error_in_a_process_that_was_started_here(tmp_path: Path) -> None:
    said = {"devices": 2, "trouble": {"what": "error", "rank": 1, "step": 3}}
    done = command("-m", "tests.training.several", "supervised", str(tmp_path / "run"), json.dumps(said))
    assert done.returncode == 1
    assert "photo.png: not a picture" in done.stderr
    assert "before the run did" in done.stderr
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_the_command_line_from_photos_to_a_model(tmp_path: Path, photo: np.ndarray) -> None:
    """`fairweather train --devices 2`, started anew for its memory settings and once more for the second process."""
    for side in ("hazy", "clear"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for scene in range(4):
            write(tmp_path / "pairs" / side / f"{scene}.png", photo[:, scene:])
    words = f"train supervised --data {tmp_path / 'pairs'} --out {tmp_path / 'run'} --devices 2 --steps 2 --batch 2"
    small = "--crop 32 --generator unet --generator.levels 2 --generator.width 4 --hold-back 0.25 --log-steps 1"
    script = Path(sys.executable).with_name("fairweather")
    done = command(*([str(script)] if script.exists() else ["-m", "fairweather"]), *words.split(), *small.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the model is in") == 1
    assert [line["step"] for line in Run(tmp_path / "run").stats()] == [1, 2]
    card = json.loads((tmp_path / "run" / "model" / "card.json").read_text())
    assert card["training"]["devices"] == 2
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1


LIGHT = """
import os, time
from fairweather.training import distributed as launch
if launch.world_size() is None:
    launch.start_processes(3)
launch.GRACE = 0.1
launch.watch_processes()
os.write(1, os.environ["LOCAL_RANK"].encode() + b"\\n")  # in one piece: three processes share the pipe
time.sleep(2)
if launch.is_main() is {main}:
    os._exit(3)
time.sleep(300)
"""


@pytest.mark.parametrize(("main", "code"), [(True, 3), (False, 1)])
def test_no_process_outlives_one_that_has_ended(main: bool, code: int) -> None:
    """Though none of them hears of it in a collective operation: `command` returns when all have ended."""
    done = command("-c", LIGHT.format(main=main))
    assert sorted(done.stdout.split()) == ["0", "1", "2"]
    assert done.returncode == code
    assert ("before the run did" in done.stderr) is not main


def test_processes_share_out_the_samples() -> None:
    """Step by step what one process with the whole batch sees, over the end of an epoch too."""

    def seen(batch: int, rank: int, size: int) -> list[Tensor]:
        batches = iter(BatchLoader(Toy(crop=4), seed=0, batch=batch, position=6, rank=rank, size=size))
        return [next(batches).clear for _ in range(3)]

    whole = seen(6, 0, 1)
    for step, parts in enumerate(zip(*(seen(2, rank, 3) for rank in range(3)), strict=True)):
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole[step])


def test_frozen_features_are_not_exchanged() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Identity())
    network[1].register_buffer("frozen", torch.zeros(3), persistent=False)
    assert [buffer.numel() for buffer in distributed.synced_buffers(network)] == [2, 2, 1]


def test_what_has_no_mean_is_taken_from_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Singular vectors with the other sign are as good: their mean is nothing, and norms would no longer be 1."""
    network = PatchGAN(6, width=4, norm="batch", spectral=True)
    networks = [network, copy.deepcopy(network)]
    floats = [{name: b for name, b in one.named_buffers() if b.is_floating_point()} for one in networks]
    for name, buffer in floats[1].items():
        buffer.mul_(-1) if name.endswith("vectors") else buffer.add_(2)
    main, other = ({name: buffer.clone() for name, buffer in one.items()} for one in floats)
    buckets: list[Tensor] = []

    def bring_together(networks: list[nn.Module]) -> None:
        for rank, one in enumerate(networks):
            process = object.__new__(distributed.ProcessGroup)
            process.size, process.rank = 2, rank
            process.mean_buffers(one)

    monkeypatch.setattr(distributed.ProcessGroup, "_mean", lambda _, bucket: buckets.append(bucket.clone()))
    bring_together(copy.deepcopy(networks))
    monkeypatch.setattr(
        distributed.ProcessGroup, "_mean", lambda _, bucket: bucket.copy_((buckets[0] + buckets[1]) / 2)
    )
    bring_together(networks)
    assert sum(name.endswith("vectors") for name in main) == 5
    for one in floats:
        for name, buffer in one.items():
            wanted = main[name] if name.endswith("vectors") else (main[name] + other[name]) / 2
            assert torch.equal(buffer, wanted), name


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str, **options: Any) -> None:
        with pytest.raises(BadSettings, match=words):
            small_run("supervised", tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    refused("devices is 0", devices=0)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    refused("notebook", devices=2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused(r"run\.devices is 2 \(the arguments\), but 3 processes were started", devices=2)


def test_alone_nothing_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is as fast as before there could be more."""
    no_export(monkeypatch)
    for name in ("all_reduce", "broadcast", "gather_object", "all_gather_object", "new_group", "barrier"):
        monkeypatch.setattr(torch.distributed, name, None)
    assert "others" not in checkpoint.load_checkpoint(small_run("cyclegan", tmp_path).folder / "checkpoints")
