"""runs/ship/depth.py: what its loss ignores, how it resumes, its rank correlation, its labels of sky and its cache."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fairweather import images
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_depth", ROOT / "runs" / "ship" / "depth.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(ROOT / "runs" / "ship"))  # it imports depth_samples from its own folder
    module = sys.modules["ship_depth"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def labels(script: ModuleType) -> ModuleType:
    return sys.modules["depth_samples"]


class Grey(nn.Module):
    """Log depth is brightness, and there is no sky."""

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        grey = nn.functional.avg_pool2d(photo.mean(1, keepdim=True), 2)
        return torch.cat([grey, grey * 0 - 20], 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Every folder that the script reads, with the names of a few scenes."""
    root, rng = tmp_path / "data", np.random.default_rng(0)

    def save(path: Path, picture: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write(path, picture)

    ramp = np.linspace(200, 40, 48 * 64).reshape(48, 64).astype(np.uint8)
    for number in (1, 2, 90, 98, 101, 110, 130):
        save(root / "nyu" / "clear" / f"{number:04}.png", rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        save(root / "nyu" / "depth" / f"{number:04}.png", ramp)
    for number in range(4):
        clear = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
        hazy = (clear * 0.6 + 255 * 0.4 * ramp[..., None] / 255).astype(np.uint8)
        save(root / "sots_outdoor" / "clear" / f"{number:04}.png", clear)
        save(root / "sots_outdoor" / "hazy" / f"{number:04}_0.9_0.2.png", hazy)
        save(root / "clear" / f"photo_{number}.png", rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for name in ("Art", "Teddy"):
        save(root / "depth" / f"{name}.png", rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        save(root / "depth" / f"{name}_disparity.png", ramp)
    return root


def maps(seed: int) -> torch.Tensor:
    return torch.randn(3, 1, 24, 32, generator=torch.Generator().manual_seed(seed))


def test_the_loss_ignores_the_scale_of_depth(script: ModuleType) -> None:
    output, target, weight = maps(0), maps(1), torch.ones(3, 1, 24, 32)
    straight = torch.zeros(3, dtype=torch.bool)
    loss = script.depth_loss(output, target, weight, straight)
    shifts = torch.tensor([5.0, -3, 0.1]).view(3, 1, 1, 1)
    torch.testing.assert_close(script.depth_loss(output + shifts, target - 2 * shifts, weight, straight), loss)
    assert script.depth_loss(output * 2, target, weight, straight) > loss * 1.2
    assert script.depth_loss(target + shifts, target, weight, straight) < 1e-5


def test_the_loss_ignores_scale_and_shift_of_bent_examples(script: ModuleType) -> None:
    output, target, weight = maps(0), maps(1), torch.ones(3, 1, 24, 32)
    bent = torch.ones(3, dtype=torch.bool)
    loss = script.depth_loss(output, target, weight, bent)
    torch.testing.assert_close(
        script.depth_loss(output * 3 + 1, target * 0.5 - 4, weight, bent), loss, rtol=5e-3, atol=0
    )
    assert script.depth_loss(target * 7, target, weight, bent) < 5e-3
    assert script.depth_loss(-target, target, weight, bent) > 0.5


def test_the_loss_ignores_what_is_unknown(script: ModuleType) -> None:
    output, target, weight = maps(0), maps(1), torch.ones(3, 1, 24, 32)
    weight[:, :, :, 20:] = 0
    weight[2] = 0  # a photo of which nothing is known
    straight = torch.zeros(3, dtype=torch.bool)
    loss = script.depth_loss(output, target, weight, straight)
    output[:, :, :, 20:] += 9
    output[2] -= 9
    torch.testing.assert_close(script.depth_loss(output, target, weight, straight), loss)
    nothing = script.depth_loss(output.requires_grad_(), target, weight * 0, straight)
    nothing.backward()
    assert nothing == 0


def test_the_loss_of_sky_counts_known_pixels_alone(script: ModuleType) -> None:
    sky = torch.tensor([[[[0, 1, 2, 2]]]], dtype=torch.uint8)
    logit = torch.tensor([[[[-9.0, 9, -9, 9]]]])
    assert script.sky_loss(logit, sky) < 0.001
    assert script.sky_loss(-logit, sky) > 5
    assert script.sky_loss(logit, torch.full_like(sky, 2)) == 0


def test_rank_correlation_shares_the_ranks_of_equal_values(script: ModuleType) -> None:
    first = np.array([1.0, 2, 3, 4, 5])
    assert script.spearman(first, np.exp(first)) == pytest.approx(1)
    assert script.spearman(first, -first) == pytest.approx(-1)
    assert script.spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 30, 40])) == pytest.approx(0.9486833)


def test_held_back_rooms_are_apart_from_the_others(labels: ModuleType, data: Path) -> None:
    train, held = labels.nyu_scenes(data / "nyu" / "clear")
    assert [path.stem for path in held] == ["0101", "0110"]
    assert [path.stem for path in train] == ["0001", "0002", "0090", "0130"]  # 98 is too near to 101


def test_sky_is_found_above_the_ground_and_not_where_there_is_none(labels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    ground = rng.integers(20, 120, (200, 300, 3), dtype=np.uint8)
    assert (labels.sky_of(ground) == labels.GROUND).all()
    assert (labels.sky_of(ground, sure=True) == labels.UNKNOWN).all()
    open_air = ground.copy()
    open_air[:90] = (110, 150, 220)
    for sure in (False, True):
        found = labels.sky_of(open_air, sure=sure)
        assert (found[:80] == labels.SKY).mean() > 0.98
        assert (found[110:] == labels.GROUND).mean() > 0.98
    upside_down = open_air[::-1].copy()
    assert not (labels.sky_of(upside_down) == labels.SKY).any()


def test_a_batch_depends_on_its_step_alone(labels: ModuleType, data: Path) -> None:
    train, held = labels.gathered(data)
    assert len(held["sots"]) == 1
    assert len(held["stereo"]) == 1
    samples = labels.Samples(train, seed=3)
    first, again, other = samples.batch(5, 6), samples.batch(5, 6), samples.batch(6, 6)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert first.photo.shape[2:] in [torch.Size(size) for size in labels.CROPS]
    small = samples.batch(5, 2, labels.SMALL_CROPS)
    assert small.photo.shape[2:] in [torch.Size(size) for size in labels.SMALL_CROPS]
    assert first.log_depth.shape[2] * 2 == first.photo.shape[2]
    assert not (first.photo.shape == other.photo.shape and torch.equal(first.photo, other.photo))


def test_what_is_stored_is_what_was_gathered(labels: ModuleType, data: Path, tmp_path: Path) -> None:
    gathered = labels.gathered(data)
    labels.stored(data, tmp_path / "examples.npz")
    for before, after in zip(gathered, labels.stored(Path("/nowhere"), tmp_path / "examples.npz"), strict=True):
        assert {kind: len(found) for kind, found in before.items() if found} == {
            kind: len(found) for kind, found in after.items()
        }
        for kind in after:
            for one, two in zip(before[kind], after[kind], strict=True):
                assert (one.name, one.bent) == (two.name, two.bent)
                for array, other in zip(one[1:5], two[1:5], strict=True):
                    np.testing.assert_array_equal(array, other)


def test_an_interrupted_training_ends_with_the_same_weights(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "COOL_DOWN", 1e-9)  # so that the rate does not depend on where the run ends

    def run(out: Path, steps: int) -> dict[str, torch.Tensor]:
        script.train(argparse.Namespace(data=data, out=out, steps=steps, small=2, batch=2, seed=1, rate=1e-3, every=1))
        return load_file(out / script.WEIGHTS)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    resumed = run(tmp_path / "parts", 3)
    assert "resumed after step 1" in capsys.readouterr().out
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_the_cache_writes_what_is_missing(script: ModuleType, data: Path, tmp_path: Path) -> None:
    photos, out = sorted((data / "clear").iterdir())[:2], tmp_path / "depths"
    assert script.cache(Grey(), data, out, photos) == 2
    first, second = (out / "clear" / f"photo_{number}.png.png" for number in range(2))
    written = images.read(first).pixels
    assert written.dtype == np.uint16
    assert written.shape == (48, 64, 3)
    assert sorted(path.name for path in (out / "clear").iterdir()) == [first.name, second.name]  # nothing half-written
    first.unlink()
    kept = second.stat().st_mtime_ns
    assert script.cache(Grey(), data, out, photos) == 1
    np.testing.assert_array_equal(images.read(first).pixels, written)
    assert second.stat().st_mtime_ns == kept
    assert script.cache(Grey(), data, out, photos, again=True) == 2


def test_a_cache_that_fails_leaves_no_half_map(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = sorted((data / "clear").iterdir())[:1], tmp_path / "depths"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.cache(Grey(), data, out, photos)
    monkeypatch.undo()
    assert not list((out / "clear").iterdir())
    assert script.cache(Grey(), data, out, photos) == 1


def test_every_kind_of_clear_photo_gets_a_map(script: ModuleType, labels: ModuleType, data: Path) -> None:
    assert [name for name, _ in labels.kinds_of(data)] == ["clear", "sots_outdoor/clear"]
    assert [(name, len(photos)) for name, photos in script.by_origin(data)] == [("photo", 4), ("sots_outdoor", 4)]


def test_the_sheet_shows_photo_and_map(script: ModuleType, data: Path, tmp_path: Path) -> None:
    photos = sorted((data / "clear").iterdir())
    script.cache(Grey(), data, tmp_path / "depths", photos)
    script.sheet(data, tmp_path / "depths", photos, tmp_path / "sheet.jpg")
    assert images.read(tmp_path / "sheet.jpg").pixels.shape == (300, 1600, 3)


def test_evaluation_ranks_depth_and_outlines_sky(script: ModuleType, labels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    photo = np.repeat(rng.integers(0, 256, (64, 64, 1), dtype=np.uint8), 3, axis=2)
    weight, sky = np.full((64, 64), 255, np.uint8), np.zeros((64, 64), np.uint8)
    sky[:20] = labels.SKY
    ordered = labels.Example("one", photo, photo[..., 0].astype(np.float16), weight, sky, False)
    found = script.evaluated(Grey(), {"nyu": [ordered], "sky": [ordered], "stereo": [ordered]})
    assert found["nyu"][0] > 0.8
    assert found["sky (IoU)"][0] < 0.3
    assert set(found) == {"nyu", "sky (IoU)", "stereo, street"}
    assert "nyu" in script.table(found)
