"""Rain: streaks, veil, drops and recorded streaks, the ranges of the settings, and reproducibility."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from fairweather.errors import BadSettings
from fairweather.weather.rain import (
    RainSettings,
    added,
    drops_on_lens,
    rain,
    recorded_streaks,
    screened,
    streak_layers,
    streaks_of_pair,
    veiled,
)

DRY = {"veil": 0.0, "drops": 0.0}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def clear() -> Tensor:
    """Four smooth pictures, neither black nor white anywhere."""
    coarse = torch.rand(4, 3, 5, 6, generator=seeded(1))
    return 0.1 + 0.7 * torch.nn.functional.interpolate(coarse, (72, 96), mode="bilinear")


def test_rain_depends_on_the_seed_alone(clear: Tensor) -> None:
    settings = RainSettings(strength=(0.8, 1.0), coverage=(0.5, 0.8), veil=1, drops=1)
    global_state, before = torch.get_rng_state(), clear.clone()
    first, again, other = (rain(clear, seeded(seed), settings) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), global_state), "the global generator was used"
    assert torch.equal(clear, before), "the input was changed"
    rainy, record = first
    assert (rainy.shape, rainy.dtype) == (clear.shape, clear.dtype)
    assert 0 <= rainy.min() <= rainy.max() <= 1
    planes = {"streaks", "transmission", "drops"}
    assert all(value.shape == ((4, 1, 72, 96) if name in planes else (4,)) for name, value in record.items())
    assert {*record} - planes == {*("angle", "length", "width", "strength", "airlight", "screened", "recorded")}


def test_pictures_of_a_batch_are_drawn_one_by_one() -> None:
    grey = torch.full((3, 3, 64, 64), 0.4)
    rainy, record = rain(grey, seeded(), RainSettings(**DRY))
    for name in ("angle", "length", "width", "strength"):
        assert len(record[name].unique()) == 3, name
    differences = [(rainy[a] - rainy[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(differences) > 0.02


def test_the_record_makes_the_picture(clear: Tensor) -> None:
    """I = T (J + S) + (1 - T) A, or with a screen, from what was recorded and nothing else."""
    settings = RainSettings(drops=0, veil=1, tint=0, screen=0.5)
    rainy, record = rain(clear, seeded(3), settings)
    assert 0 < record["screened"].sum() < 4
    for index in range(4):
        streaks, transmission = record["streaks"][index], record["transmission"][index]
        blend = screened if record["screened"][index] else added
        expected = veiled(blend(clear[index], streaks), transmission, record["airlight"][index])
        torch.testing.assert_close(rainy[index], expected, rtol=0, atol=1e-6)
        assert streaks.max() > 0.02
        assert transmission.min() < 0.9


def test_blends() -> None:
    clear, streaks = torch.tensor([0.0, 0.5, 0.9]), torch.tensor([0.4, 0.4, 0.4])
    torch.testing.assert_close(added(clear, streaks), torch.tensor([0.4, 0.9, 1.0]))
    torch.testing.assert_close(screened(clear, streaks), torch.tensor([0.4, 0.7, 0.94]))
    torch.testing.assert_close(veiled(torch.tensor(0.2), torch.tensor(0.25), torch.tensor(0.8)), torch.tensor(0.65))


def test_streaks_slant_as_recorded() -> None:
    settings = RainSettings(
        layers=(1, 1), angle=45, spread=0, length=(30, 30), width=(5, 5), coverage=(0.1, 0.1), gusts=(0, 0)
    )
    slants = []
    for seed in range(8):
        streaks, record = streak_layers(1, 160, 160, seeded(seed), settings, like=torch.zeros(()))
        slants.append(record["angle"].item())
        assert measured_slant(streaks[0, 0].numpy()) == pytest.approx(slants[-1], abs=4)
    assert min(slants) < -20 < 20 < max(slants)


def measured_slant(layer: np.ndarray) -> float:
    """Degrees from the vertical, by the structure tensor; positive where streaks move right on their way down."""
    along_x, along_y = np.gradient(layer, axis=1), np.gradient(layer, axis=0)
    across = 0.5 * math.atan2(2 * (along_x * along_y).mean(), (along_x**2 - along_y**2).mean())
    return -math.degrees(across)


def test_one_streak_is_as_long_and_wide_as_recorded() -> None:
    settings = RainSettings(
        layers=(1, 1), angle=0, spread=0, length=(40, 40), width=(3, 3), coverage=(5e-3, 5e-3), gusts=(0, 0)
    )
    for seed in range(100):
        streaks, _ = streak_layers(1, 128, 128, seeded(seed), settings, like=torch.zeros(()))
        peak = streaks.max()
        if peak == 0:
            continue
        place = streaks[0, 0].flatten().argmax().item()
        rows, columns = streaks[0, 0, :, place % 128] > peak / 2, streaks[0, 0, place // 128] > peak / 2
        # Distances are those of the layer, whose nearness is drawn from 0.8 to 1.2.
        assert 0.78 * 40 <= rows.sum() <= 1.25 * 40
        assert 1 <= columns.sum() <= 5
        return
    pytest.fail("no seed drew a streak")


@pytest.mark.parametrize("coverage", [0.05, 0.2, 0.5])
def test_streaks_cover_their_share(coverage: float) -> None:
    settings = RainSettings(
        layers=(1, 1), coverage=(coverage, coverage), length=(30, 30), width=(2, 2), strength=(1, 1), gusts=(0, 0)
    )
    streaks, _ = streak_layers(6, 160, 160, seeded(), settings, like=torch.zeros(()))
    # A streak fades towards its sides and ends; a tenth of the brightness is about where the eye loses it.
    covered = (streaks > 0.2).float().mean().item()
    assert 0.6 * coverage < covered < 1.7 * coverage


def test_layers_strength_and_scale() -> None:
    def streaks(**settings: Any) -> tuple[float, dict[str, Tensor]]:
        layer, record = streak_layers(4, 96, 96, seeded(), RainSettings(**settings), like=torch.zeros(()))
        return layer.mean().item(), record

    assert streaks(layers=(1, 1))[0] < streaks(layers=(3, 3))[0]
    assert streaks(strength=(0.1, 0.1))[0] < 0.5 * streaks(strength=(0.5, 0.5))[0]
    for name in ("length", "width"):
        torch.testing.assert_close(streaks(scale=3)[1][name], 3 * streaks()[1][name])


def test_a_share_is_left_clear(clear: Tensor) -> None:
    rainy, record = rain(clear, seeded(), RainSettings(clear=1, veil=1, drops=1))
    assert torch.equal(rainy, clear)
    assert record["streaks"].max() == 0
    many = clear[:1, :, :16, :16].expand(60, -1, -1, -1)
    rainy, _ = rain(many, seeded(), RainSettings(clear=0.5, veil=1))
    untouched = (rainy == many).all(dim=3).all(dim=2).all(dim=1).sum().item()
    assert 18 <= untouched <= 42


def test_the_veil_follows_depth(clear: Tensor) -> None:
    depth = torch.linspace(0, 1, 96).expand(4, 1, 72, 96)
    _, record = rain(clear, seeded(), RainSettings(veil=1, density=(1.5, 1.5)), depth=depth)
    torch.testing.assert_close(record["transmission"], (-1.5 * depth).exp())
    _, record = rain(clear, seeded(), RainSettings(veil=0), depth=depth)
    assert (record["transmission"] == 1).all()


def test_drops_show_the_scene_upside_down_inside_and_nothing_outside() -> None:
    scene = torch.zeros(1, 3, 120, 120)
    scene[:, :, :60] = 0.9
    settings = RainSettings(radius=(14, 14), most_drops=1)
    for seed in range(60):
        wet, covered = drops_on_lens(scene, seeded(seed), settings)
        assert torch.equal(wet[:, :, covered[0, 0] == 0], scene[:, :, covered[0, 0] == 0])
        whole = (covered[0, 0] == 1).nonzero()
        if len(whole) == 0 or not 50 < whole[:, 0].float().mean() < 70 or whole[:, 0].max() - whole[:, 0].min() < 12:
            continue
        top, bottom = wet[0, 0, whole[0, 0], whole[0, 1]], wet[0, 0, whole[-1, 0], whole[-1, 1]]
        assert top < 0.3 < 0.5 < bottom
        return
    pytest.fail("no seed laid a drop on the horizon")


def test_recorded_streaks_come_from_the_bank() -> None:
    bank = torch.stack([torch.full((1, 40, 50), 0.2), torch.full((1, 40, 50), 0.4)])
    windows = recorded_streaks(bank, 40, 30, 30, seeded())
    assert windows.shape == (40, 1, 30, 30)
    levels = windows.amax((1, 2, 3))
    torch.testing.assert_close(windows.amin((1, 2, 3)), levels)
    assert 0.099 < levels.min() < 0.2
    assert 0.25 < levels.max() < 0.501
    # A photo larger than the layers: enlarged, not mirrored or left bare.
    slope = torch.linspace(0.1, 0.7, 50).expand(1, 1, 40, 50)
    (window,) = recorded_streaks(slope, 1, 100, 200, seeded())
    steps = window[0, 50].diff()
    assert (steps >= -1e-6).all() or (steps <= 1e-6).all()


def test_recorded_share(clear: Tensor) -> None:
    bank = torch.full((1, 1, 80, 100), 0.3)
    _, record = rain(clear, seeded(), RainSettings(recorded=1, **DRY), layers=bank)
    assert record["recorded"].all()
    spread = record["streaks"].amax((1, 2, 3)) - record["streaks"].amin((1, 2, 3))
    assert spread.max() < 1e-6
    _, record = rain(clear, seeded(), RainSettings(recorded=0, **DRY), layers=bank)
    assert not record["recorded"].any()
    assert not rain(clear, seeded(), RainSettings(recorded=1, **DRY))[1]["recorded"].any(), "there is no bank"


def test_streaks_of_a_pair_survive_a_channel_at_white() -> None:
    clear = torch.tensor([1.0, 0.9, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    streaks = torch.zeros(1, 1, 4, 4)
    streaks[..., 1] = 0.35
    torch.testing.assert_close(streaks_of_pair(added(clear, streaks), clear), streaks)
    assert streaks_of_pair(clear * 0.5, clear).max() == 0


def test_any_size() -> None:
    for size in ((1, 1), (1, 9), (7, 2)):
        for layers in (None, torch.rand(2, 1, 5, 6, generator=seeded())):
            rainy, _ = rain(torch.full((2, 3, *size), 0.5), seeded(), RainSettings(veil=1, drops=1), layers=layers)
            assert rainy.shape == (2, 3, *size)
            assert rainy.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"length": (20, 10)}, {"coverage": (0.1, 1.0)}, {"width": (0, 2)}, {"screen": 1.5}, {"layers": (0, 2)}),
        *({"layers": (3, 2)}, {"scale": 0}, {"scale": math.nan}, {"strength": (0.5, 1.2)}, {"angle": 91}),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadSettings, match=f"rain.{next(iter(wrong))}"):
        RainSettings(**wrong)


def test_computed_rain_is_as_strong_as_real_pairs(shared_data: Path) -> None:
    """Mean brightness and cover of computed streaks span those of Rain100's light and heavy layers."""
    real = []
    for kind in ("light", "heavy"):
        for file in sorted((shared_data / "train/rain100" / kind).glob("*.jpg"))[:6]:
            rainy, clear = (
                torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)[None] / 255
                for path in (file, file.parent.parent / "clear" / file.name)
            )
            real.append((streaks_of_pair(rainy, clear) > 0.05).float().mean().item())
    streaks, _ = streak_layers(24, 160, 160, seeded(), RainSettings(), like=torch.zeros(()))
    made = (streaks > 0.05).float().mean((1, 2, 3))
    assert made.quantile(0.05) < np.median(real[:6]) < made.quantile(0.6)
    assert made.quantile(0.4) < np.median(real[6:]) < made.max()
