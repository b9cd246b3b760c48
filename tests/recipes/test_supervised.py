"""The second phase of the recipe that trains what ships: when the discriminator is heard, and how loud."""

from __future__ import annotations

import pytest
import torch

from fairweather.recipes import Supervised
from tests.recipes.standins import Teacher, batch, made


def test_a_judge_is_heard_once_it_has_learned() -> None:
    recipe = made("supervised", adversarial=0.5, discriminator_warmup=2)
    assert isinstance(recipe, Supervised)
    said, found = [], []
    for _ in range(5):
        said.append(recipe.adversarial_ramp())
        found.append(recipe.step(batch(), Teacher(recipe)))
    assert said == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert ["adversarial" in terms for terms in found] == [False, False, True, True, True]
    assert all("discriminator" in terms for terms in found)
    # Nobody moves here, and so the discriminator says the same of the same photos, but for its spectral norms.
    assert float(found[3]["adversarial"].detach()) == pytest.approx(
        2 * float(found[2]["adversarial"].detach()), rel=1e-3
    )


def test_until_then_it_is_plain_regression() -> None:
    asked = {}
    for adversarial in (0.0, 100.0):
        recipe = made("supervised", adversarial=adversarial, discriminator_warmup=1)
        steps = []
        for _ in range(2):
            teacher = Teacher(recipe)
            recipe.step(batch(), teacher)
            steps.append(teacher.gradients["generator"])
        asked[adversarial] = steps
    assert asked[0.0][0] == asked[100.0][0]
    assert asked[0.0][1] != asked[100.0][1]


def test_it_may_be_heard_at_once_and_never_too_loud() -> None:
    recipe = made("supervised", adversarial=0.5, discriminator_warmup=0)
    assert isinstance(recipe, Supervised)
    assert recipe.adversarial_ramp() == 1.0
    late = made("supervised", adversarial=0.5, discriminator_warmup=3)
    assert isinstance(late, Supervised)
    late.discriminator_steps.fill_(1e6)
    assert late.adversarial_ramp() == 1.0


def test_how_far_it_is_travels_with_the_networks() -> None:
    recipe, other = (made("supervised", adversarial=0.5, discriminator_warmup=2) for _ in range(2))
    for _ in range(3):
        recipe.step(batch(), Teacher(recipe))
    other.load_state_dict(recipe.state_dict())
    assert isinstance(other, Supervised)
    assert other.adversarial_ramp() == 1.0
    assert "discriminator_steps" not in made("supervised").state_dict(), "runs of the first phase have no such state"


def test_the_judge_does_not_wait_for_a_warmup() -> None:
    optimizer_groups = made("supervised", adversarial=0.5, warmup=0.2).optimizer_groups()
    assert (optimizer_groups["generator"].warmup, optimizer_groups["discriminator"].warmup) == (0.2, 0.0)


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
