from __future__ import annotations

import math

import pytest
import torch

from fairweather.losses import ADVERSARIAL

REALS, FAKES = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# By hand from the papers' formulas, one term at a time.
GENERATOR = {
    "lsgan": (0.25 + 16) / 2,
    "bce": -(math.log(sigmoid(0.5)) + math.log(sigmoid(-3))) / 2,
    "hinge": 1.25,
}
DISCRIMINATOR = {
    "lsgan": (1 + 2.25) / 2 + (0.25 + 9) / 2,
    "bce": -(math.log(sigmoid(2)) + math.log(sigmoid(-0.5)) + math.log(1 - sigmoid(0.5)) + math.log(1 - sigmoid(-3)))
    / 2,
    "hinge": 1.5 / 2 + 1.5 / 2,
}


def test_names() -> None:
    assert set(ADVERSARIAL) == set(GENERATOR)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_values_by_hand(name: str) -> None:
    assert ADVERSARIAL[name].generator(FAKES).item() == pytest.approx(GENERATOR[name], rel=1e-6)
    assert ADVERSARIAL[name].discriminator(REALS, FAKES).item() == pytest.approx(DISCRIMINATOR[name], rel=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_two_sides_pull_apart(name: str) -> None:
    fakes, reals = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    (by_generator,) = torch.autograd.grad(ADVERSARIAL[name].generator(fakes), fakes)
    assert (by_generator < 0).all(), "descending the generator's loss must raise the scores of fakes"
    # At zero LSGAN's discriminator is content with the fakes, so look a little above.
    lifted = fakes + 0.5
    to_reals, to_fakes = torch.autograd.grad(ADVERSARIAL[name].discriminator(reals, lifted), (reals, lifted))
    assert (to_reals < 0).all()
    assert (to_fakes > 0).all()


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_extreme_logits_stay_finite(name: str) -> None:
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ADVERSARIAL[name].generator(extreme) + ADVERSARIAL[name].discriminator(extreme, extreme)
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()
