"""The unpaired recipes: translation crosses domains, and each term uses the right networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairweather.recipes import CycleGAN, CycleGANSettings
from tests.recipes.standins import RecordingUpdate, batch, made

CYCLES = ["claritygan", "cyclegan", "derain"]


def cycle(name: str, **settings: float) -> CycleGAN:
    recipe = made(name, **settings)
    assert isinstance(recipe, CycleGAN)
    return recipe


@pytest.mark.parametrize("name", CYCLES)
def test_the_cycle_crosses_domains(name: str) -> None:
    """Translation, cycle and identity use the right generators."""
    recipe = cycle(name)
    photos = batch(1)
    with torch.no_grad():
        recipe.restore.amount.fill_(0.25)
        recipe.degrade.amount.fill_(-0.5)
    terms = {name: term.detach() for name, term in recipe.step(photos, RecordingUpdate(recipe)).items()}
    restore, degrade = recipe.restore.given, recipe.degrade.given
    # restore sees the degraded photo, what degrade made of the clear one, and the clear one (identity)
    for seen, wanted in zip(restore, [photos.degraded, photos.clear - 0.5, photos.clear], strict=True):
        torch.testing.assert_close(seen, wanted)
    for seen, wanted in zip(degrade, [photos.clear, photos.degraded + 0.25, photos.degraded], strict=True):
        torch.testing.assert_close(seen, wanted)
    # there and back changes a photo by 0.25 - 0.5; identity by each generator's own amount
    expected = {"cycle_degraded": 2.5, "cycle_clear": 2.5, "identity_clear": 1.25, "identity_degraded": 2.5}
    for term, value in expected.items():
        assert float(terms[term]) == pytest.approx(value, rel=1e-4), term
    with torch.no_grad():
        expected_scores = {
            "adversarial_clear": recipe.discriminator_clear(photos.degraded + 0.25),
            "adversarial_degraded": recipe.discriminator_degraded(photos.clear - 0.5),
        }
    for term, scores in expected_scores.items():
        torch.testing.assert_close(terms[term], (scores - 1).square().mean())


@pytest.mark.parametrize("name", CYCLES)
def test_discriminators_use_the_history_and_half_their_loss(name: str) -> None:
    recipe = cycle(name, pool=7)
    update, photos = RecordingUpdate(recipe), batch(1)
    terms = recipe.step(photos, update)
    torch.testing.assert_close(update.from_history["clear"][0], photos.degraded + 0.1)
    torch.testing.assert_close(update.from_history["degraded"][0], photos.clear + 0.1)
    assert {size for _, size in update.from_history.values()} == {7}
    from_history = torch.full((1, 3, 32, 32), 0.25)
    for name, discriminator, real in (
        ("clear", recipe.discriminator_clear, photos.clear),
        ("degraded", recipe.discriminator_degraded, photos.degraded),
    ):
        expected = 0.5 * ((discriminator(real) - 1).square().mean() + discriminator(from_history).square().mean())
        torch.testing.assert_close(terms[f"discriminator_{name}"], expected)


@pytest.mark.parametrize("name", CYCLES)
def test_the_papers_settings_and_groups(name: str) -> None:
    papers = {"cycle": 10, "identity": 5, "pool": 50, "lr": 2e-4, "beta1": 0.5, "hold": 0.5, "width": 64}
    assert CycleGANSettings() == CycleGANSettings(**papers)
    recipe = cycle(name)
    assert {key: getattr(type(recipe).settings_type(), key) for key in papers} == papers
    groups = recipe.optimizer_groups()
    assert set(groups) == {"generators", "discriminators"}
    for group in groups.values():
        assert (group.optimizer, group.lr, group.betas) == ("adam", 2e-4, (0.5, 0.999))
        assert group.schedule == "linear"
    assert (recipe.batch, recipe.epochs, recipe.crop, recipe.paired) == (1, 200, 256, False)
    for discriminator in (recipe.discriminator_clear, recipe.discriminator_degraded):
        assert sum(isinstance(module, nn.InstanceNorm2d) for module in discriminator.modules()) == 3


def test_the_perceptual_term_compares_reconstructions_with_their_originals() -> None:
    """With the weight of the settings."""
    recipe, photos, update = cycle("claritygan", perceptual=3.0), batch(1), None
    with torch.no_grad():
        recipe.restore.amount.fill_(0.25)
        recipe.degrade.amount.fill_(-0.5)
    seen: list[tuple[Tensor, Tensor]] = []
    recipe.compare.register_forward_hook(lambda _, given, value: seen.append(given))
    update = RecordingUpdate(recipe)
    terms = recipe.step(photos, update)
    pairs = [(photos.degraded - 0.25, photos.degraded), (photos.clear - 0.25, photos.clear)]
    for (again, original), (wanted_again, wanted) in zip(seen, pairs, strict=True):
        torch.testing.assert_close(again, wanted_again)
        torch.testing.assert_close(original, wanted)
    for term, (again, original) in zip(("perceptual_degraded", "perceptual_clear"), pairs, strict=True):
        torch.testing.assert_close(terms[term], 3 * recipe.compare(again, original))
        assert terms[term] > 0.01


def test_the_perceptual_term_is_optimized() -> None:
    """Without it, the loss is smaller by exactly the logged terms, and the gradients differ."""
    losses, gradients, logged = {}, {}, {}
    for weight in (0.0, 1.0):
        recipe = cycle("claritygan", perceptual=weight)
        update = RecordingUpdate(recipe)
        logged[weight] = recipe.step(batch(1), update)
        losses[weight], gradients[weight] = update.losses["generators"], update.gradients["generators"]
    extra = logged[1.0].keys() - logged[0.0].keys()
    assert extra == {"perceptual_degraded", "perceptual_clear"}
    torch.testing.assert_close(losses[1.0] - losses[0.0], sum(logged[1.0][term].detach() for term in extra))
    assert all(abs(a - b) > 1e-3 for a, b in zip(gradients[0.0], gradients[1.0], strict=True))
