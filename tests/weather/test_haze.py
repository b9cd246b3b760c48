"""The scattering model: its equation, its inverse, the ranges of its settings, night, and reproducibility."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fairweather.errors import BadSettings
from fairweather.weather import haze as physics
from fairweather.weather.haze import HazeSettings

STILL = HazeSettings(density=(1.0, 1.0), airlight=(0.8, 0.8), tint=0.0, patchy=0.0, linear=0.0, noise=0.0)


@pytest.fixture
def clear() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(3, 3, 9, 12, generator=generator)
    return torch.nn.functional.interpolate(coarse, (72, 96), mode="bicubic").clamp(0, 1)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_compose_is_the_scattering_model(clear: torch.Tensor) -> None:
    transmission = torch.rand(3, 1, 72, 96, generator=drawn())
    airlight = torch.tensor([[0.9, 0.8, 0.7]]).expand(3, 3)
    hazy = physics.compose(clear, transmission, airlight)
    i, y, x = 1, 30, 40
    for channel, light in enumerate((0.9, 0.8, 0.7)):
        t = transmission[i, 0, y, x]
        assert hazy[i, channel, y, x] == pytest.approx(float(clear[i, channel, y, x] * t + light * (1 - t)), abs=1e-6)


def test_composing_in_linear_light_is_brighter_with_the_same_ends(clear: torch.Tensor) -> None:
    codes = torch.linspace(0, 1, 256)
    assert torch.allclose(physics.to_srgb(physics.to_linear(codes)), codes, atol=1e-5)
    assert physics.to_linear(torch.tensor(0.5)).item() == pytest.approx(0.21404, abs=1e-4)
    airlight = torch.full((3, 3), 0.8)
    flat, linear = (
        {t: physics.compose(clear, torch.full((3, 1, 72, 96), t), airlight, linear=on) for t in (0.0, 0.5, 1.0)}
        for on in (False, True)
    )
    assert all(torch.allclose(flat[t], linear[t], atol=2e-3) for t in (0.0, 1.0))
    assert (linear[0.5] - flat[0.5]).mean() > 0.01


def test_haze_depends_on_the_seed_and_its_record(clear: torch.Tensor) -> None:
    first, again, other = (physics.haze(clear, drawn(seed))[0] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == clear.shape
    assert 0 <= first.min() <= first.max() <= 1
    hazy, record = physics.haze(clear, drawn(3), HazeSettings(noise=0.0, linear=0.0, patchy=0.0))
    assert (record["transmission"].shape, record["airlight"].shape) == ((3, 1, 72, 96), (3, 3))
    expected = physics.compose(clear, record["transmission"], record["airlight"]).clamp(0, 1)
    assert torch.allclose(hazy, expected, atol=1e-6)
    hazy, record = physics.haze(clear, drawn(), HazeSettings(clear=1.0, linear=0.0))
    assert torch.allclose(hazy, clear, atol=1e-6)
    assert (record["transmission"] == 1).all()


def test_density_and_airlight_keep_to_their_ranges(clear: torch.Tensor) -> None:
    settings = HazeSettings(density=(1.0, 1.5), airlight=(0.8, 0.9), tint=0.0, patchy=0.0)
    for seed in range(5):
        _, record = physics.haze(clear, drawn(seed), settings)
        # The farthest point of each invented depth lies at 1, so its optical depth is the density itself.
        thickest = -record["transmission"].amin((1, 2, 3)).log()
        assert ((thickest > 0.999) & (thickest < 1.501)).all()
        assert ((record["airlight"] >= 0.8) & (record["airlight"] <= 0.9)).all()
        assert torch.equal(record["airlight"][:, 0], record["airlight"][:, 2])


def test_shares_are_of_pictures_not_of_batches() -> None:
    clear = torch.full((64, 3, 16, 16), 0.3)
    depth = torch.ones(64, 1, 16, 16)  # flat, so that patches are all that varies within a picture
    _, record = physics.haze(clear, drawn(), replace(STILL, patchy=0.5), depth)
    assert 16 < int((record["transmission"].std((1, 2, 3)) > 1e-4).sum()) < 48
    hazy, _ = physics.haze(clear, drawn(), replace(STILL, linear=0.5), depth)
    assert len(hazy[:, 0, 0, 0].unique()) == 2
    assert 16 < int((hazy[:, 0, 0, 0] > hazy[:, 0, 0, 0].mean()).sum()) < 48
    _, record = physics.haze(clear, drawn(), replace(STILL, airlight=(0.7, 0.7), blue=0.5), depth)
    blue = record["airlight"][:, 2] - record["airlight"][:, 0]
    assert 16 < int((blue > 0).sum()) < 48
    assert 0.2 < blue.max() <= 0.3
    hazy, record = physics.haze(clear, drawn(), replace(STILL, dark=0.5, gamma=(2.0, 2.0)), torch.zeros_like(depth))
    assert hazy.unique().tolist() == pytest.approx([0.09, 0.3])
    assert 16 < int((hazy[:, 0, 0, 0] < 0.2).sum()) < 48
    assert torch.equal(record["clear"], clear)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"density": (0.0, 2.0)}, "haze.density is 0.0 to 2.0: give a smallest and a largest value above 0"),
        ({"density": (2.0, 1.0)}, "haze.density is 2.0 to 1.0"),
        ({"density": (1.0, float("inf"))}, "haze.density is 1.0 to inf"),
        ({"airlight": (0.8, 1.2)}, "haze.airlight is 0.8 to 1.2: give a smallest and a largest value from 0 to 1"),
        ({"noise": -0.1}, "haze.noise is -0.1: give a number from 0"),
        ({"patchy": 1.5}, "haze.patchy is 1.5: give a number from 0 to 1"),
        ({"near": (0.2, 1.2)}, "haze.near"),
        ({"bend": (0.0, 1.0)}, "haze.bend"),
        ({"warm": (0.5, 0.1)}, "haze.warm"),
        ({"gamma": (3.0, 1.5)}, "haze.gamma"),
        ({"patches": (-0.1, 1.5)}, "haze.patches"),
        ({"night": float("nan")}, "haze.night is nan"),
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        HazeSettings(**setting)


def test_a_pair_reveals_its_transmission_and_airlight(clear: torch.Tensor) -> None:
    depth = physics.invented_depth(3, 72, 96, drawn(1), guide=clear)
    truth = (-1.2 * depth).exp()
    hazy = physics.compose(clear, truth, torch.full((3, 3), 0.87))
    transmission, airlight = physics.transmission_of_pair(hazy, clear)
    assert torch.allclose(airlight, torch.full((3, 3), 0.87), atol=0.011)
    assert (transmission - truth).abs().median() < 0.01
    given, _ = physics.transmission_of_pair(hazy, clear, airlight=torch.full((3, 3), 0.87))
    assert (given - truth).abs().median() < 0.002


def test_rehaze_keeps_the_scene(clear: torch.Tensor) -> None:
    depth = physics.invented_depth(3, 72, 96, drawn(1), guide=clear)
    truth = (-1.2 * depth).exp()
    _, record = physics.rehaze(clear, truth, drawn(5), HazeSettings(patchy=0.0))
    powers = record["transmission"].log() / truth.clamp(max=0.98).log()
    far = depth > 0.5
    for one, where in zip(powers, far, strict=True):
        assert one[where].std() < 0.02
        assert 0.39 < one[where].mean() < 2.01


def test_guided_filter_keeps_edges_that_the_guide_has() -> None:
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 1
    noisy = step + 0.2 * torch.randn(step.shape, generator=drawn())
    filtered = physics.guided_filter(step, noisy, 8, 1e-4)
    assert (filtered - step)[..., 20:44].abs().mean() < 0.05
    blurred = torch.nn.functional.avg_pool2d(noisy, 17, 1, 8, count_include_pad=False)
    assert (filtered - step).abs().mean() < 0.3 * (blurred - step).abs().mean()


def test_any_size() -> None:
    for size in ((1, 1), (3, 50), (33, 7)):
        hazy, _ = physics.haze(torch.rand(2, 3, *size, generator=drawn()), drawn())
        assert hazy.shape == (2, 3, *size)
        assert hazy.isfinite().all()


def test_real_pairs_are_explained_by_their_transmission(shared_data) -> None:  # type: ignore[no-untyped-def]
    from fairweather.images.io import read, to_float

    folder = shared_data / "train" / "sots_outdoor"
    hazy, clear = (
        torch.from_numpy(to_float(read(next((folder / side).glob("0008*"))).pixels)).permute(2, 0, 1)[None]
        for side in ("hazy", "clear")
    )
    transmission, airlight = physics.transmission_of_pair(hazy, clear)
    again = physics.compose(clear, transmission, airlight)
    assert (again - hazy).abs().mean() < 0.005
    assert (clear - hazy).abs().mean() > 0.05


def test_seeds_give_the_pictures_of_earlier_versions(clear: torch.Tensor) -> None:
    """Shipped models were trained on them: a setting that is off must not draw."""
    hazy, _ = physics.haze(clear, drawn(11), HazeSettings(blue=0.5, clear=0.1, patchy=0.9))
    assert hazy.mean((1, 2, 3)).tolist() == pytest.approx([0.73108, 0.55300, 0.86160], abs=2e-4)
    hazy, _ = physics.rehaze(clear, torch.full((3, 1, 72, 96), 0.4), drawn(11), HazeSettings(patchy=0.9))
    assert hazy.mean((1, 2, 3)).tolist() == pytest.approx([0.59428, 0.75415, 0.77047], abs=2e-4)


def test_settings_at_their_neutral_values_change_nothing(clear: torch.Tensor) -> None:
    plain, _ = physics.haze(clear, drawn(2), STILL, torch.rand(3, 1, 72, 96, generator=drawn()))
    darkened = {"dark": 1.0, "gamma": (1.0, 1.0), "night": 1e-12, "grain": 1e-12}
    settings = replace(STILL, **darkened, warm=(-1e-9, 1e-9), bend=(1.0, 1.0 + 1e-9))
    idle, record = physics.haze(clear, drawn(2), settings, torch.rand(3, 1, 72, 96, generator=drawn()))
    assert torch.allclose(plain, idle, atol=1e-5)
    assert torch.equal(record["clear"], clear)


def test_transmission_falls_with_depth_down_to_the_airlight(clear: torch.Tensor) -> None:
    depth = torch.linspace(0, 1, 96).expand(3, 1, 72, 96)
    settings = replace(STILL, density=(8.0, 8.0), near=(0.1, 0.1), bend=(0.5, 2.0))
    hazy, record = physics.haze(clear, drawn(), settings, depth)
    t = record["transmission"]
    assert (t.diff(dim=3) <= 0).all()
    assert t[..., 0] == pytest.approx(torch.full((3, 1, 72), 0.449), abs=0.001)  # exp(-0.8): the nearest at 0.1
    far = t == physics.MIN_TRANSMISSION
    assert far[..., -1].all()
    assert (hazy - 0.8).abs()[far.expand_as(hazy)].max() <= physics.MIN_TRANSMISSION
    assert torch.equal(record["clear"], clear)


def test_even_density_is_uniform() -> None:
    clear, depth = torch.full((2000, 3, 1, 1), 0.2), torch.ones(2000, 1, 1, 1)
    for even, mean in ((True, 1.2), (False, 1.2 / torch.tensor(3.0).log().item())):
        _, record = physics.haze(clear, drawn(), replace(STILL, density=(0.6, 1.8), even=even), depth)
        beta = -record["transmission"].log()
        assert beta.mean() == pytest.approx(mean, abs=0.02)
        assert beta.min() >= 0.599
        assert beta.max() <= 1.801


def test_warm_air_is_dust_and_tints_the_scene() -> None:
    clear = torch.full((8, 3, 4, 4), 0.6)
    dust = replace(STILL, airlight=(0.84, 0.84), warm=(1.0, 1.0))
    _, record = physics.haze(clear, drawn(), dust)
    assert record["airlight"][0].tolist() == pytest.approx([0.84, 0.62, 0.34], abs=0.002)
    dyed, _ = physics.haze(clear, drawn(), replace(dust, cast=(1.0, 1.0)), torch.zeros(8, 1, 4, 4))
    assert dyed[0, :, 0, 0].tolist() == pytest.approx([0.6, 0.6 * 0.738, 0.6 * 0.405], abs=1e-3)
    _, record = physics.haze(clear, drawn(), replace(dust, warm=(-0.5, -0.5)))
    red, _, blue = record["airlight"][0].tolist()
    assert red < blue == pytest.approx(0.84)


def test_noise_under_the_haze_fades_with_it() -> None:
    clear, depth = torch.full((4, 3, 32, 64), 0.5), torch.zeros(4, 1, 32, 64)
    depth[..., 32:] = 1
    hazy, _ = physics.haze(clear, drawn(), replace(STILL, density=(2.0, 2.0), grain=1.0), depth)
    near, far = hazy[..., :32].std((1, 2, 3)), hazy[..., 32:].std((1, 2, 3))
    assert (near > 1.5 / 255).all()
    assert far / near == pytest.approx(torch.full((4,), 0.135), abs=0.02)


def test_patches_reach_from_clear_to_dense() -> None:
    clear, flat = torch.full((16, 3, 32, 32), 0.3), torch.ones(16, 1, 32, 32)
    _, record = physics.haze(clear, drawn(), replace(STILL, patchy=1.0, patches=(0.0, 3.0)), flat)
    t = record["transmission"]
    assert t.amax((1, 2, 3)) == pytest.approx(torch.ones(16), abs=1e-5)
    assert t.amin((1, 2, 3)) == pytest.approx(torch.full((16,), 0.0498), abs=1e-4)


def test_glow_keeps_the_light_and_falls_off_from_the_lamp() -> None:
    lamp = torch.zeros(2, 3, 65, 97)
    lamp[:, :, 32, 48] = 5.0
    spread, shape = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.6]).view(2, 1, 1, 1)
    seen = physics.glow(lamp, spread, shape)
    assert (seen.sum((2, 3)) <= 5.0 + 1e-3).all()
    assert (seen.sum((2, 3)) > 4.0).all()
    row = seen[:, 0, 32, 48:]
    assert (row.diff(dim=1) <= 1e-6).all()
    assert seen[:, 0, 32, 48 + 9] == pytest.approx(seen[:, 0, 32, 48 - 9], rel=1e-3)
    # light that leaves on the right does not come in on the left
    edge = torch.zeros(1, 3, 33, 33)
    edge[..., 16, 32] = 1.0
    assert physics.glow(edge, torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1))[..., 0].max() < 1e-4


def test_lamps_glow_in_the_fog_of_a_dark_night(clear: torch.Tensor) -> None:
    batch = clear.repeat(4, 1, 1, 1)
    night = replace(STILL, night=1.0, airlight=(0.1, 0.1), density=(1.5, 1.5))
    _, record = physics.haze(batch, drawn(3), night)
    truth = record["clear"]
    assert (truth.mean((1, 2, 3)) < 0.6 * batch.mean((1, 2, 3))).all()
    assert 0 <= truth.min() <= truth.max() <= 1
    light, lamps = physics.nightfall(batch, torch.ones(12, 1, 72, 96), drawn(3))
    lit = lamps.amax(1, keepdim=True) > 0.5
    assert (lit.sum((1, 2, 3)) > 0).all()
    assert lit.float().mean() < 0.1
    assert (lamps[lit.expand_as(lamps)].mean() > 5 * light.mean()).item()
    # around a lamp the fog is brighter than away from it
    dim = torch.full((1, 3, 65, 65), 0.02)
    one, t = torch.zeros_like(dim), torch.full((1, 1, 65, 65), 0.3)
    one[..., 32, 32] = 30.0
    seen = physics.night_haze(dim, one, t, torch.full((1, 3), 0.1), drawn())
    dark = physics.night_haze(dim, torch.zeros_like(dim), t, torch.full((1, 3), 0.1), drawn())
    assert seen[0, 0, 32, 36] > seen[0, 0, 32, 60] > dark[0, 0, 32, 60] - 1e-4
    assert seen[0, 0, 32, 32] > seen[0, 0, 32, 36]


def test_a_night_without_haze_equals_its_clear_side(clear: torch.Tensor) -> None:
    t, airlight = torch.ones(3, 1, 72, 96), torch.full((3, 3), 0.2)
    light, lamps = physics.nightfall(clear, t, drawn(1))
    seen = physics.night_haze(light, lamps, t, airlight, drawn(2))
    assert torch.allclose(seen, physics.to_srgb((light + lamps).clamp(0, 1)), atol=1e-3)
