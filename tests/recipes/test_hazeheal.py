"""HazeHeal: its objective, the order of its updates, and spectral norms in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.losses import dark_channel_mask, haze_aware, transmission_mask
from fairweather.recipes import Batch, HazeHeal, HazeHealSettings
from fairweather.training.optimization import TrainingEngine, learning_rate
from tests.recipes.standins import RecordingUpdate, batch, made


def hazeheal(**settings: Any) -> HazeHeal:
    recipe = made("hazeheal", **settings)
    assert isinstance(recipe, HazeHeal)
    return recipe


def test_settings_and_groups() -> None:
    s = HazeHealSettings()
    assert (s.reconstruction, s.inside, s.perceptual, s.mask) == (150, 0.3, 0.005, "dark_channel")
    assert (HazeHeal.batch, HazeHeal.crop, HazeHeal.epochs, HazeHeal.paired) == (4, 256, 200, True)
    for group in hazeheal().optimizer_groups().values():
        assert (group.optimizer, group.lr, group.betas) == ("adam", 2e-4, (0.5, 0.999))
        assert {learning_rate(group, progress) for progress in (0.0, 0.5, 1.0)} == {2e-4}
    (halved,) = {learning_rate(group, 0.75) for group in hazeheal(hold=0.5).optimizer_groups().values()}
    assert halved == pytest.approx(1e-4)


@pytest.mark.parametrize("mask", ["dark_channel", "transmission"])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_the_objective(mask: str, threshold: float | None) -> None:
    recipe, clear = hazeheal(mask=mask, threshold=threshold, patch=3), batch().clear
    t = torch.linspace(0.1, 0.9, 32).expand(2, 1, 32, 32)
    photos = Batch(clear * t + 0.9 * (1 - t), clear)
    update = RecordingUpdate(recipe)
    terms = {term: value.detach() for term, value in recipe.step(photos, update).items()}
    assert list(terms) == ["adversarial", "charbonnier", "haze_aware", "perceptual", "discriminator"]
    haze = {
        "dark_channel": dark_channel_mask(photos.degraded, patch=3, threshold=threshold),
        "transmission": transmission_mask(photos.degraded, photos.clear, threshold=threshold),
    }[mask]
    assert 0 < haze.mean() < 1
    restored = photos.degraded + 0.1
    torch.testing.assert_close(
        terms["charbonnier"] + terms["haze_aware"], 150 * haze_aware(restored, photos.clear, haze)
    )
    assert terms["haze_aware"] != pytest.approx(float(terms["charbonnier"]) * 3 / 7, rel=1e-3), "the mask has no effect"
    torch.testing.assert_close(terms["perceptual"], 0.005 * recipe.compare(restored, photos.clear))


def test_a_crop_without_haze_is_finite() -> None:
    recipe = hazeheal(threshold=0.9)
    dark = torch.zeros(1, 3, 32, 32)
    terms = recipe.step(Batch(dark, batch(1).clear), RecordingUpdate(recipe))
    assert terms["haze_aware"] == 0
    assert all(term.isfinite() for term in terms.values())


def test_both_updates_use_the_outputs_from_before() -> None:
    recipe, photos = hazeheal(), batch()
    order: list[str] = []
    seen: list[Tensor] = []
    recipe.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))

    class Ordered(RecordingUpdate):
        def __call__(self, group: str, loss: Tensor) -> None:
            order.append(group)
            super().__call__(group, loss)
            with torch.no_grad():
                recipe.restore.amount += 1  # what a step of the generator would do

    recipe.step(photos, Ordered(recipe))
    assert order == ["generator", "discriminator"]
    fake = torch.cat([photos.degraded, photos.degraded + 0.1], 1)
    for given, wanted in zip(seen, [fake, torch.cat([photos.degraded, photos.clear], 1), fake], strict=True):
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_spectral_norms_stay_at_one_while_training(precision: Any) -> None:
    """After 12 steps (the first are the wildest) and 20 further iterations every kernel has the norm 1 within 1e-3."""
    recipe = hazeheal(width=16, lr=1e-3, perceptual=0.0)
    engine = TrainingEngine(recipe, device="cpu", precision=precision)
    before = [layer.weight.detach().clone() for layer in kernels(recipe)]
    for _ in range(12):
        engine.step(batch(1), 0.0)
    with engine.autocast(), torch.no_grad():
        for _ in range(20):
            recipe.discriminator(torch.rand(1, 6, 24, 24))
    recipe.eval()
    assert len(kernels(recipe)) == 5, "every layer, first and last too"
    for layer, was in zip(kernels(recipe), before, strict=True):
        with engine.autocast():
            weight = layer.weight
        assert weight.dtype == torch.float32
        assert (weight - was).abs().max() > 0.001, "the weights did not change"
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) for module in recipe.discriminator.modules())
    slopes = {module.negative_slope for module in recipe.discriminator.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.2}


def kernels(recipe: HazeHeal) -> list[nn.Conv2d]:
    return [module for module in recipe.discriminator.modules() if isinstance(module, nn.Conv2d)]
