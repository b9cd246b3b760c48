from __future__ import annotations

import math

import pytest
import torch

from fairweather.losses import ADVERSARIAL

REALS, FAKES = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# From the papers' formulas, term by term.
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


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_values(name: str) -> None:
    assert ADVERSARIAL[name].generator(FAKES).item() == pytest.approx(GENERATOR[name], rel=1e-6)
    assert ADVERSARIAL[name].discriminator(REALS, FAKES).item() == pytest.approx(DISCRIMINATOR[name], rel=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_gradients_have_opposite_signs_and_stay_finite(name: str) -> None:
    losses = ADVERSARIAL[name]
    fakes, reals = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    (by_generator,) = torch.autograd.grad(losses.generator(fakes), fakes)
    assert (by_generator < 0).all()
    # At zero LSGAN's discriminator is satisfied with the fakes.
    to_reals, to_fakes = torch.autograd.grad(losses.discriminator(reals, fakes + 0.5), (reals, fakes))
    assert (to_reals < 0).all()
    assert (to_fakes > 0).all()
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = losses.generator(extreme) + losses.discriminator(extreme, extreme)
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()
