"""Muon: updates that are orthogonal, AdamW's for what is no matrix, and going on from its state."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fairweather.generators.conv_unet import ConvUNet
from fairweather.recipes import Batch
from fairweather.recipes.supervised import Supervised, SupervisedSettings
from fairweather.training.optimization import Muon, TrainingEngine, orthogonal


def gradients(module: nn.Module, steps: int) -> Iterator[None]:
    draw = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        yield


@pytest.mark.parametrize("shape", [(2, 24, 60), (2, 60, 24), (1, 32, 32)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-4
    before, after = torch.linalg.svd(matrices), orthogonal(matrices)
    values = torch.linalg.svdvals(after)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # The directions are those of the matrix: U diag(s) V' with other s.
    turned = before.U[..., :, : values.shape[1]].mT @ after @ before.Vh[..., : values.shape[1], :].mT
    off = turned - torch.diag_embed(torch.diagonal(turned, dim1=1, dim2=2))
    assert off.abs().max() < 1e-3


def test_a_convolution_moves_as_the_matrix_it_is() -> None:
    """PyTorch's own Muon knows matrices alone, and computes in bf16."""
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("this PyTorch has no Muon (2.9 does)")
    torch.manual_seed(0)
    convolution = nn.Conv2d(20, 32, 3, bias=False)
    matrix = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    start = matrix.detach().clone()
    ours = Muon(convolution.parameters(), lr=0.01, weight_decay=0.1)
    other = theirs([matrix], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in gradients(convolution, 3):
        assert convolution.weight.grad is not None
        matrix.grad = convolution.weight.grad.flatten(1).clone()
        ours.step()
        other.step()
    moved = (matrix - start).norm()
    assert (convolution.weight.flatten(1) - matrix).norm() < 0.05 * moved


def test_biases_and_heads_are_adamws() -> None:
    torch.manual_seed(0)
    head = nn.Conv2d(20, 7, 3)
    twin = copy.deepcopy(head)
    ours = Muon(head.parameters(), lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for _ in zip(gradients(head, 4), gradients(twin, 4), strict=True):
        ours.step()
        other.step()
    for one, two in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_frozen_parameters_stay() -> None:
    convolution = nn.Conv2d(16, 16, 3)
    weight = convolution.weight.detach().clone()
    optimizer = Muon(convolution.parameters(), lr=0.1)
    optimizer.step()
    assert torch.equal(convolution.weight, weight)


def engine() -> TrainingEngine:
    torch.manual_seed(5)
    recipe = Supervised(
        lambda: ConvUNet(widths=(16, 16), encoder=(0, 1), decoder=(0,)),
        SupervisedSettings(optimizer="muon", ssim=0.0, clip=None),
    )
    return TrainingEngine(recipe, device="cpu", precision="fp32", seed=1)


def batches(count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(9)
    clear: list[Tensor] = [torch.rand(2, 3, 16, 16, generator=draw) for _ in range(count)]
    return [Batch(0.5 * one + 0.4, one) for one in clear]


def test_a_run_learns_by_it_and_goes_on_from_its_state() -> None:
    whole, part = engine(), engine()
    assert type(whole.optimizers["generator"]) is Muon
    data = batches(24)
    losses = [float(whole.step(batch, 0.5)["charbonnier"]) for batch in data]
    assert losses[-1] < 0.7 * losses[0]
    for batch in data[:5]:
        part.step(batch, 0.5)
    later = engine()
    later.load_state(copy.deepcopy(part.state()))
    for batch in data[5:]:
        later.step(batch, 0.5)
    for one, two in zip(whole.recipe.parameters(), later.recipe.parameters(), strict=True):
        assert torch.equal(one, two)
