"""Data loaders, batches made on the device, and compiled networks."""

from __future__ import annotations

import json
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fairweather
from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadSettings
from fairweather.training import checkpoint, optimization, trainer
from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader
from tests.data.conftest import write_photo
from tests.training.toy import SMALL, Toy, assert_same_state, no_export, small_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    for number in range(5):
        write_photo(tmp_path / "photos" / "clear" / f"{number}.png", np.roll(photo, 20 * number, axis=1))
    return tmp_path / "photos"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.toml"
    path.write_text(
        """
        [recipe]
        name = "supervised"
        [data]
        crop = 32
        samples = 7
        [[data.sources]]
        kind = "synthetic"
        path = "clear"
        [[data.sources]]
        kind = "clear"
        path = "clear"
        """
    )
    return path


def run(out: Path, photos: Path, config: Path, **more: Any) -> Any:
    given = {"threads": 1, "precision": "fp32", "device": "cpu", "sample_steps": 0, "tensorboard": False, "steps": 4}
    return fairweather.train(config=config, data=photos, out=out, **{**given, **SMALL["supervised"], **more})


def settings_of(out: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((out / "run.json").read_text())["settings"]
    return tree


def test_a_run_on_the_device_resumes_exactly(tmp_path: Path, photos: Path, config: Path) -> None:
    whole = run(tmp_path / "whole", photos, config, on_device=True)
    assert settings_of(whole.folder)["data"]["on_device"] is True
    part = tmp_path / "part"
    made = GPUBatches.batch

    def batch(self: GPUBatches, seed: int, keys: list[tuple[int, int]]) -> Any:
        if keys[0][1] == 4:  # the third batch of two
            raise KeyboardInterrupt
        return made(self, seed, keys)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GPUBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            run(part, photos, config, on_device=True, checkpoint_steps=1)
    assert checkpoint.load_checkpoint(part / "checkpoints")["step"] == 2
    # what was said once need not be said again
    run(part, photos, config, resume=True)
    assert_same_state(
        checkpoint.load_checkpoint(whole.folder / "checkpoints"), checkpoint.load_checkpoint(part / "checkpoints")
    )


def test_the_default_on_a_cpu_is_the_data_loader(tmp_path: Path, photos: Path, config: Path) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the loader was to make these batches")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GPUBatches, "batch", never)
        loaded = run(tmp_path / "loaded", photos, config, workers=0)
    assert settings_of(loaded.folder)["data"]["on_device"] is False
    with pytest.raises(BadSettings, match="on_device"):
        run(tmp_path / "loaded", photos, config, workers=0, resume=True, on_device=True)


def test_only_mixtures_can_be_on_the_device(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"data\.on_device is for mixtures"):
        small_run("supervised", tmp_path / "own", on_device=True)
    with pytest.raises(BadSettings, match=r"data\.on_device is for mixtures only: list data\.sources"):
        fairweather.train("supervised", data=tmp_path, out=tmp_path / "pairs", on_device=True)


def test_photos_that_do_not_fit_are_refused_or_loaded(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error if on_device is true; by default the data loader is used, with a warning."""
    from fairweather.training.config import DataConfig
    from fairweather.training.dataloader import gpu_batches

    data = Mixture(MixtureSettings((SourceSettings("clear", "clear"),), augment=Augment(crop=32)), photos)
    with pytest.raises(BadSettings, match="more than"):
        gpu_batches(DataConfig(on_device=True, memory_gib=1e-6), data, CPU)
    assert gpu_batches(DataConfig(on_device=None), data, CPU) is None
    assert gpu_batches(DataConfig(on_device=False), data, CUDA) is None
    assert gpu_batches(DataConfig(on_device=None, memory_gib=1e-6), data, CUDA) is None
    assert "batches are prepared on the CPU" in caplog.text


def test_loaders_give_the_same_samples_to_every_process(photos: Path) -> None:
    data = Mixture(MixtureSettings((SourceSettings("clear", "clear"),), augment=Augment(crop=32)), photos)
    on_gpu = GPUBatches(data, "cpu", 2**24)
    loaded = list(islice(BatchLoader(data, seed=3, batch=4, position=2), 3))
    made = list(islice(DeviceBatchLoader(on_gpu, seed=3, batch=4, position=2), 3))
    for one, two in zip(loaded, made, strict=True):
        assert (one.clear - two.clear).abs().max() < 3 / 255  # tone may enlarge what rounding leaves
    halves = [
        list(islice(DeviceBatchLoader(on_gpu, seed=3, batch=2, position=2, rank=rank, size=2), 3)) for rank in (0, 1)
    ]
    for whole, even, odd in zip(made, *halves, strict=True):
        assert torch.allclose(whole.clear, torch.stack([even.clear, odd.clear], 1).flatten(0, 1), atol=1e-5)


def test_batches_made_in_a_thread_are_the_same(photos: Path) -> None:
    data = Mixture(MixtureSettings((SourceSettings("synthetic", "clear"),), augment=Augment(crop=32)), photos)
    on_gpu = GPUBatches(data, "cpu", 2**24)
    loaders = [iter(DeviceBatchLoader(on_gpu, seed=3, batch=4, ahead=ahead)) for ahead in (0, 2)]
    for one, two in islice(zip(*loaders, strict=True), 5):
        assert torch.equal(one.degraded, two.degraded)
        assert torch.equal(one.clear, two.clear)
    for loader in loaders:
        loader.close()  # type: ignore[attr-defined]
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_an_error_in_the_thread_is_raised(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Mixture(MixtureSettings((SourceSettings("clear", "clear"),), augment=Augment(crop=32)), photos)

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GPUBatches, "batch", broken)
    loader = iter(DeviceBatchLoader(GPUBatches(data, "cpu", 2**24), seed=3, batch=4, ahead=2))
    with pytest.raises(RuntimeError, match="out of memory"):
        next(loader)


def test_a_compiled_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that changes nothing: weights keep their names, and the exported network is not compiled."""
    plain = small_run("supervised", tmp_path / "plain", steps=3)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        calls.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(optimization, "COMPILER", {"backend": backend})
    compiled = small_run("supervised", tmp_path / "compiled", steps=3, compile=True)
    assert len(calls) == 1
    assert settings_of(compiled.folder)["run"]["compile"] is True
    assert_same_state(
        checkpoint.load_checkpoint(plain.folder / "checkpoints"),
        checkpoint.load_checkpoint(compiled.folder / "checkpoints"),
    )
    torch.compiler.reset()  # or the network of before would do
    averageless = {**SMALL["supervised"]["settings"], "ema": 0.0}
    small_run("supervised", tmp_path / "last", steps=2, compile=True, settings=averageless, sample_steps=1)
    assert len(calls) == 2  # the sheets' other sizes compiled nothing more


def test_a_compiler_error_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise OSError("no compiler found")

    monkeypatch.setattr(optimization, "COMPILER", {"backend": backend})
    with pytest.raises(BadSettings, match=r"run\.compile.*no compiler found.*omit it"):
        small_run("supervised", tmp_path / "run", steps=2, compile=True)


def test_the_log_names_the_device_of_the_batches(
    tmp_path: Path, photos: Path, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=trainer.log.name)
    run(tmp_path / "run", photos, config, on_device=True, steps=1)
    assert "batches are prepared on cpu" in caplog.text


def drawn(loader: BatchLoader, count: int) -> list[torch.Tensor]:
    return [batch.degraded for batch in islice(iter(loader), count)]


def test_a_loader_starts_at_a_position_and_crosses_epochs() -> None:
    keys: list[tuple[int, int]] = []
    toy = Toy(crop=4, length=5, on_sample=lambda epoch, index: keys.append((epoch, index)))
    whole = drawn(BatchLoader(toy, seed=3, batch=3), 5)
    assert keys[:7] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]
    part = drawn(BatchLoader(toy, seed=3, batch=3, position=9), 2)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], part, strict=True))
    assert not torch.equal(whole[0], drawn(BatchLoader(toy, seed=4, batch=3), 1)[0])


def test_workers_give_the_same_batches_and_leave_the_random_state() -> None:
    here = drawn(BatchLoader(Toy(crop=4), seed=0, batch=3), 4)
    before = torch.get_rng_state()
    there = drawn(BatchLoader(Toy(crop=4), seed=0, batch=3, workers=2), 4)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert torch.equal(before, torch.get_rng_state())
