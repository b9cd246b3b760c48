"""Training on clips: initial weights of an image model, exact resuming, export of the recurrent network."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import fairweather
from fairweather.errors import BadSettings
from fairweather.pairs import Pair
from fairweather.training import checkpoint
from fairweather.training.config import NamedArguments
from fairweather.training.initial_weights import read_initial_weights
from tests.training.toy import assert_same_state, no_export, small_run

TINY: dict[str, Any] = {"size": 64, "widths": [4, 4, 4, 4]}
FRAMES = 4


class Strips:
    """A picture that stays under haze that flickers from frame to frame; with `same`, every epoch the same four."""

    def __init__(self, on_sample: Callable[[], None] | None = None, same: bool = False) -> None:
        self.on_sample, self.same = on_sample, same

    def __len__(self) -> int:
        return 4

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        if self.on_sample is not None:
            self.on_sample()
        generator = torch.Generator().manual_seed(1009 * seed + (0 if self.same else 31 * epoch) + index)
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        clear = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0]
        degraded = [(clear * t + 0.8 * (1 - t)) for t in (0.6 + 0.3 * torch.rand(FRAMES, generator=generator)).unbind()]
        return {"degraded": torch.cat(degraded, 1), "clear": clear.repeat(1, FRAMES, 1)}

    def holdout(self) -> dict[str, list[Pair]]:
        return {}


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny scattering_maps network after a few steps."""
    from fairweather.training import trainer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "export_model", lambda *_: None)
        out = tmp_path_factory.mktemp("runs") / "scattering_maps"
        words: dict[str, Any] = {"generator": "scattering_maps", "generator_arguments": TINY, "crop": 64}
        return small_run("supervised", out, steps=4, settings={"lr": 1e-2, "ema": 0.5}, **words).folder


def clips_run(out: Path, **options: Any) -> Any:
    quiet = {"tensorboard": False, "sample_steps": 0, "log_steps": 0, "workers": 0}
    fixed = {"crop": 64, "threads": 1, "precision": "fp32", "device": "cpu", "batch": 1}
    return fairweather.train(
        "supervised_video", **{"data": Strips(), "steps": 6, **quiet, **fixed, "out": out, **options}
    )


def test_it_starts_from_an_image_model_and_resumes_exactly(
    image_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_export(monkeypatch)
    words: dict[str, Any] = {"generator": "recurrent_maps", "generator_arguments": {"heads": 2}, "start": image_run}
    whole = clips_run(tmp_path / "whole", **words)
    told = whole.settings()["settings"]["generator"]
    assert {key: told[key] for key in ("name", "size", "widths", "heads")} == {
        "name": "recurrent_maps",
        **TINY,
        "heads": 2,
    }
    seen = 0

    def interrupt() -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        clips_run(tmp_path / "part", data=Strips(interrupt), **words)
    assert checkpoint.load_checkpoint(tmp_path / "part" / "checkpoints")["step"] == 3
    resumed = clips_run(tmp_path / "part", resume=True, **words)
    assert_same_state(
        checkpoint.load_checkpoint(whole.folder / "checkpoints"),
        checkpoint.load_checkpoint(resumed.folder / "checkpoints"),
    )


def test_it_starts_with_the_outputs_of_that_model(image_run: Path) -> None:
    from fairweather.generators import GENERATORS

    start = read_initial_weights(str(image_run))
    arguments = start.completed({"name": "recurrent_maps", "heads": 2})
    assert "mirror" not in arguments
    network = GENERATORS[arguments.pop("name")](**arguments)
    start.check(NamedArguments("recurrent_maps", arguments))
    start.load(network)
    old = GENERATORS["scattering_maps"](**TINY).eval()
    old.load_state_dict(start.weights)
    photo = torch.rand(1, 3, 70, 90)
    with torch.no_grad():
        assert (network(photo) - old(photo)).abs().max() < 1e-6
    with pytest.raises(BadSettings, match=r"widths=\[4, 4, 4, 4\], but generator\.widths is \[4, 4, 4, 8\]"):
        start.check(NamedArguments("recurrent_maps", {**arguments, "widths": [4, 4, 4, 8]}))
    with pytest.raises(BadSettings, match=r"is a scattering_maps, but generator\.name is 'unet'"):
        start.check(NamedArguments("unet", {}))


def test_only_the_recurrent_part_is_trained(image_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)
    settings = {"whole": False, "lr": 0.03, "ema": 0.0, "warmup": 0.0}
    words: dict[str, Any] = {"generator": "recurrent_maps", "generator_arguments": {"heads": 2}, "settings": settings}
    run = clips_run(tmp_path / "run", data=Strips(same=True), steps=80, start=str(image_run), **words)
    stats = run.stats()
    for term, share in (("charbonnier", 0.9), ("steadiness", 0.99)):
        first, last = (np.mean([line[term] for line in part]) for part in (stats[:4], stats[-4:]))
        assert last < share * first, (term, first, last)
    before, after = (
        read_initial_weights(str(image_run)).weights,
        checkpoint.load_checkpoint(run.folder / "checkpoints")["engine"]["recipe"],
    )
    for name, value in before.items():
        if "num_batches" not in name:
            assert torch.equal(after[f"restore.{name}"], value), "the rest of the network stays as it was"


def test_a_run_from_a_config_exports_a_recurrent_model(tmp_path: Path) -> None:
    """All the way: photos on disk, clips in haze and rain, two steps, export and parity, and a step from the folder."""
    from fairweather.inference.restorer import load
    from fairweather.inference.temporal import recurrent_step

    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        (tmp_path / "data" / "clear").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / "clear" / f"{number}.png"), cv2.resize(coarse, (160, 120)))
    (tmp_path / "run.toml").write_text(
        """
        [run]
        steps = 2
        batch = 2
        sample_steps = 2
        tensorboard = false
        [recipe]
        name = "supervised_video"
        [generator]
        name = "recurrent_maps"
        size = 64
        widths = [4, 4, 4, 4]
        heads = 2
        [data]
        frames = 3
        crop = 64
        [[data.sources]]
        kind = "synthetic"
        path = "clear"
        [[data.sources]]
        kind = "synthetic"
        weather = "rain"
        path = "clear"
        """
    )
    words: dict[str, Any] = {"config": tmp_path / "run.toml", "data": tmp_path / "data", "out": tmp_path / "run"}
    run = fairweather.train(**words, threads=1, workers=0)
    sheet = cv2.imread(str(next((run.folder / "samples").iterdir())))
    assert sheet.shape[:2] == (4 * 3 * 64, 3 * 64)
    restorer = load(run.folder, engine="onnxruntime")
    assert restorer.card.state is not None
    frame = np.full((90, 120, 3), 99, np.uint8)
    _, after = recurrent_step(restorer, frame)
    assert np.abs(after).max() > 0


@pytest.mark.parametrize(
    ("recipe", "data", "words"),
    [
        ("supervised_video", {}, r"supervised_video trains on clips.*data\.frames"),
        ("supervised", {"frames": 3}, r"data\.frames: supervised trains on photos: remove it, or use supervised_video"),
    ],
)
def test_recipes_for_photos_and_clips_refuse_the_other(recipe: str, data: dict[str, Any], words: str) -> None:
    from fairweather.recipes import RECIPES
    from fairweather.training.config import DataConfig
    from fairweather.training.dataloader import check_sources

    sources = [{"kind": "clear", "path": "clear"}]
    with pytest.raises(BadSettings, match=words):
        check_sources(DataConfig(folder="x", sources=sources, **data), RECIPES[recipe], recipe)
