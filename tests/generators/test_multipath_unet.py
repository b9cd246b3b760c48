from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import MultipathUNet
from tests.generators.probes import checkerboard, field_by_gradients, lively, rand


def small(**arguments: Any) -> MultipathUNet:
    torch.manual_seed(0)
    return MultipathUNet(**{"width": 4, "levels": 2, **arguments})


def test_shape() -> None:
    with torch.device("meta"):
        network = MultipathUNet()
    assert [fuse[0].out_channels for fuse in network.fusions] == [32, 64, 128, 256, 256]
    assert (network.multiple_of, network.receptive_field) == (16, 309)
    assert (small(norm="instance").multiple_of, small(norm="instance").receptive_field) == (8, None)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize(("levels", "paths"), [(1, [1]), (1, [2, 1]), (2, [1, 2, 3]), (3, [2])])
def test_receptive_field(levels: int, paths: list[int], upsampling: Any) -> None:
    network = small(levels=levels, width=2, paths=paths, upsampling=upsampling).eval()
    assert network.receptive_field == field_by_gradients(network, 0.1)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_paths_are_dilated_and_independent(index: int) -> None:
    network = small()
    path = network.paths[index]
    plain = [layer for layer in path.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (1, 1)]
    assert [layer.dilation for layer in plain] == [(index + 1, index + 1)] * 3
    for other in network.paths:
        if other is not path:
            for stage in other:
                stage.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    last: list[Tensor] = []
    path[-1].register_forward_hook(lambda _module, _inputs, output: last.append(output))
    assert network(rand()).isnan().all()
    assert last[0].isfinite().all()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_scale_fuses_every_path(index: int, level: int) -> None:
    network = lively(small(), 0.1).eval()
    with torch.no_grad():
        before = network(rand())
        network.fusions[level][0].weight.chunk(3, dim=1)[index].mul_(-1)
        assert (network(rand()) - before).abs().amax() > 1e-5


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_a_skip(level: int) -> None:
    network = small()
    network.decoder[1 - level].up.register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(rand()).square().mean().backward()
    assert network.fusions[level + 1][0].weight.grad.abs().sum() == 0
    assert network.fusions[level][0].weight.grad.abs().sum() > 0


def test_dropout_in_all_but_the_last_step() -> None:
    network = small(levels=3).train()
    assert torch.equal(network(rand()), network(rand()))
    network = small(levels=3, dropout=0.5).train()
    assert [step.join[-1].p for step in network.decoder] == [0.5, 0.5, 0.0]
    assert not torch.equal(network(rand()), network(rand()))


def test_a_residual_network_starts_near_the_photo() -> None:
    painted, changed = small().eval()(rand()), small(residual=True).eval()(rand())
    assert (changed - rand()).abs().mean() < 0.05 < (painted - rand()).abs().mean()


def test_one_photo_of_the_smallest_size_trains() -> None:
    network = small(norm="instance")
    network(rand(1, network.multiple_of)).mean().backward()
    assert all(path[-1][0].weight.grad.abs().sum() > 0 for path in network.paths)


def test_resizing_leaves_no_checkerboard() -> None:
    networks = [lively(small(upsampling=kind)) for kind in ("resize", "transposed")]
    assert checkerboard(networks[0]) < 1e-6 < 1e-3 < checkerboard(networks[1])


def test_arguments_out_of_range() -> None:
    for arguments, error in (
        ({"levels": 0}, BadSettings),
        ({"paths": []}, BadSettings),
        ({"paths": [1, 0]}, BadSettings),
        ({"dropout": 1.0}, BadSettings),
        ({"norm": "layer"}, UnknownName),
    ):
        with pytest.raises(error, match=r"levels|paths|dropout|batch"):
            MultipathUNet(**arguments)  # type: ignore[arg-type]
