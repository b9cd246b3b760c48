"""The adversarial phase of `supervised`: the discriminator's warm-up and ramp."""

from __future__ import annotations

import pytest
import torch

from fairweather.recipes import Supervised
from tests.recipes.standins import RecordingUpdate, batch, made


def test_the_adversarial_term_starts_after_the_warmup() -> None:
    recipe = made("supervised", adversarial=0.5, discriminator_warmup=2)
    assert isinstance(recipe, Supervised)
    ramp, found = [], []
    for _ in range(5):
        ramp.append(recipe.adversarial_ramp())
        found.append(recipe.step(batch(), RecordingUpdate(recipe)))
    assert ramp == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert ["adversarial" in terms for terms in found] == [False, False, True, True, True]
    assert all("discriminator" in terms for terms in found)
    # Nothing is updated, so the discriminator's scores stay the same but for its spectral norms.
    assert float(found[3]["adversarial"].detach()) == pytest.approx(
        2 * float(found[2]["adversarial"].detach()), rel=1e-3
    )


def test_the_warmup_is_plain_regression() -> None:
    gradients = {}
    for adversarial in (0.0, 100.0):
        recipe = made("supervised", adversarial=adversarial, discriminator_warmup=1)
        steps = []
        for _ in range(2):
            update = RecordingUpdate(recipe)
            recipe.step(batch(), update)
            steps.append(update.gradients["generator"])
        gradients[adversarial] = steps
    assert gradients[0.0][0] == gradients[100.0][0]
    assert gradients[0.0][1] != gradients[100.0][1]


def test_the_ramp_is_between_zero_and_one() -> None:
    recipe = made("supervised", adversarial=0.5, discriminator_warmup=0)
    assert isinstance(recipe, Supervised)
    assert recipe.adversarial_ramp() == 1.0
    late = made("supervised", adversarial=0.5, discriminator_warmup=3)
    assert isinstance(late, Supervised)
    late.discriminator_steps.fill_(1e6)
    assert late.adversarial_ramp() == 1.0


def test_the_ramp_is_in_the_checkpoint() -> None:
    recipe, other = (made("supervised", adversarial=0.5, discriminator_warmup=2) for _ in range(2))
    for _ in range(3):
        recipe.step(batch(), RecordingUpdate(recipe))
    other.load_state_dict(recipe.state_dict())
    assert isinstance(other, Supervised)
    assert other.adversarial_ramp() == 1.0
    assert "discriminator_steps" not in made("supervised").state_dict(), "no state without a discriminator"


def test_the_discriminator_has_no_learning_rate_warmup() -> None:
    groups = made("supervised", adversarial=0.5, warmup=0.2).optimizer_groups()
    assert (groups["generator"].warmup, groups["discriminator"].warmup) == (0.2, 0.0)


def test_its_width_is_a_setting() -> None:
    sizes = []
    for width in (4, 8):
        recipe = made("supervised", adversarial=0.5, width=width)
        assert isinstance(recipe, Supervised)
        assert recipe.discriminator is not None
        sizes.append(sum(p.numel() for p in recipe.discriminator.parameters()))
    assert 3 < sizes[1] / sizes[0] < 4.1
    with torch.device("meta"):
        assert made("supervised", adversarial=0.5).settings.width == 4
