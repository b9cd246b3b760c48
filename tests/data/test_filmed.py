"""Sources of a mixture as clips: each kind of weather, one camera for both sides, the same clip each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadFolder, BadSettings
from fairweather.weather.haze import HazeSettings
from tests.data.conftest import scene, write_photo

QUIET = Augment(crop=32, tone=0, noise_share=0, jpeg_share=0, scale=(0.5, 0.8))
KINDS: dict[str, dict[str, Any]] = {
    "pairs": {"kind": "pairs", "path": "pairs"},
    "rehazed": {"kind": "rehazed", "path": "pairs"},
    "hazed": {"kind": "synthetic", "path": "photos"},
    "fog": {"kind": "synthetic", "path": "photos", "fog": "pairs"},
    "rain": {"kind": "synthetic", "path": "photos", "weather": "rain"},
    "clear": {"kind": "clear", "path": "photos"},
}


def mixture(root: Path, *names: str, frames: int | None = 5, **changes: Any) -> Mixture:
    sources = tuple(SourceSettings(**{**KINDS[name], **changes}) for name in names)
    return Mixture(MixtureSettings(sources=sources, augment=QUIET, frames=frames, samples=8), root)


@pytest.fixture
def root(pairs_folder: Path, clear_folder: Path) -> Path:
    return pairs_folder.parent


def frames_of(strip: torch.Tensor) -> np.ndarray:
    return np.stack([frame.permute(1, 2, 0).numpy() for frame in strip.split(32, 1)])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_strips_and_the_same_ones_again(root: Path, name: str) -> None:
    data, other = mixture(root, name), mixture(root, name)
    samples = [data.sample(3, 0, index) for index in range(4)]
    for index, sample in reversed(list(enumerate(samples))):
        again = other.sample(3, 0, index)
        for side in ("degraded", "clear"):
            assert sample[side].shape == (3, 5 * 32, 32)
            assert sample[side].dtype == torch.float32
            assert torch.equal(sample[side], again[side])
            assert sample[side].min() >= 0
            assert sample[side].max() <= 1
        assert sample["moves"].shape == (5, 2, 3)
        assert torch.equal(sample["moves"], again["moves"])
    assert len({sample["clear"].numpy().tobytes() for sample in samples}) == 4
    moves = [np.abs(np.diff(frames_of(sample["clear"]), axis=0)).mean() for sample in samples]
    assert max(moves) > 1e-3, "the camera moves"
    changed = [(sample["degraded"] - sample["clear"]).abs().mean() for sample in samples]
    assert (max(changed) == 0) if name == "clear" else (max(changed) > 0.01)


def test_both_sides_of_a_pair_are_filmed_by_one_camera(root: Path) -> None:
    """The degraded photos of these pairs are half as bright as the clear ones, wherever one looks."""
    for index in range(4):
        sample = mixture(root, "pairs").sample(1, 0, index)
        assert (sample["degraded"] - sample["clear"] / 2).abs().max() < 3 / 255


def test_a_camera_that_stands_films_a_photo(root: Path) -> None:
    clear = frames_of(mixture(root, "clear", speed=0.0).sample(0, 0, 0)["clear"])
    assert np.abs(clear - clear[0]).max() < 0.02


def test_haze_hangs_in_the_scene(root: Path) -> None:
    """From frame to frame the haze moves as the picture does: shares of airlight differ little between them."""
    settings = HazeSettings(noise=0, patchy=0, linear=0)
    sample = mixture(root, "hazed", haze=settings, speed=0.0).sample(0, 0, 1)
    change = frames_of(sample["degraded"] - sample["clear"])
    assert np.abs(change).mean() > 0.02
    assert np.abs(np.diff(change, axis=0)).max() < 0.05


def test_frames_of_films_follow_each_other(tmp_path: Path) -> None:
    """The red of a frame is its number: a clip counts upwards and stays in its film."""
    for film, first in (("one", 0), ("two", 100)):
        for number in range(7):
            write_photo(tmp_path / "photos" / film / f"{number:03}.png", scene(first + 10 * number))
    data = mixture(tmp_path, "clear", moving=True, speed=0.0)
    assert len(data.sources[0].starts) == 2 * 3
    for index in range(6):
        red = frames_of(data.sample(0, 0, index)["clear"])[..., 0].mean((1, 2)) * 255
        assert np.allclose(np.diff(red), 10, atol=0.5)
    assert mixture(tmp_path, "hazed", moving=True).sample(0, 0, 0)["degraded"].shape == (3, 160, 32)
    with pytest.raises(BadFolder, match=r"no 8 frames in a row.*data\.frames"):
        mixture(tmp_path, "clear", frames=8, moving=True)


def test_held_back_pairs_stay_out(root: Path) -> None:
    sources = (SourceSettings("pairs", "pairs"),)
    data = Mixture(MixtureSettings(sources=sources, augment=QUIET, frames=3, hold_back=0.25), root)
    (held,) = data.holdout().values()
    assert len(held) == 4
    assert not {pair.clear for pair in held} & {pair.clear for pair in data.sources[0].source.pairs}


def test_batches_on_a_device_are_refused(root: Path) -> None:
    with pytest.raises(BadSettings, match="does not support clips"):
        GPUBatches(mixture(root, "pairs"), "cpu", 2**30)


def test_a_speed_below_zero_is_refused() -> None:
    with pytest.raises(BadSettings, match="speed"):
        SourceSettings("clear", "photos", speed=-1)
