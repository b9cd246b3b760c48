from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import MultipathUNet
from tests.generators.grid import grid, waves
from tests.generators.mixed import check_bf16_in_channels_last
from tests.generators.reach import field_by_gradients


def small(**settings: Any) -> MultipathUNet:
    torch.manual_seed(0)
    return MultipathUNet(**{"width": 4, "levels": 2, **settings})


def photo(count: int = 1, side: int = 32, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def lively(network: MultipathUNet, std: float = 0.1) -> MultipathUNet:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=std)
    return network


def test_size_and_declarations() -> None:
    with torch.device("meta"):
        network = MultipathUNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 13_078_563
    assert [fuse[0].out_channels for fuse in network.fusions] == [32, 64, 128, 256, 256]
    assert (network.multiple_of, network.receptive_field) == (16, 309)
    assert (small(norm="instance").multiple_of, small(norm="instance").receptive_field) == (8, None)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize(("levels", "paths"), [(1, [1]), (1, [2, 1]), (2, [1, 2, 3]), (3, [2])])
def test_receptive_field_is_what_gradients_show(levels: int, paths: list[int], upsampling: Any) -> None:
    """Over every phase of a pixel within a cell of `multiple_of`, and not a pixel wider than needed."""
    network = small(levels=levels, width=2, paths=paths, upsampling=upsampling).eval()
    assert network.receptive_field == field_by_gradients(network, 0.1)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_path_sees_as_far_as_its_dilation_says(index: int) -> None:
    """Spans of 3, 5 and 7 at full size; and no path is made from another's features, though the picture is."""
    network = small()
    path = network.paths[index]
    looking = [layer for layer in path.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (1, 1)]
    assert [layer.dilation for layer in looking] == [(index + 1, index + 1)] * 3
    given = photo().requires_grad_()
    path[0](given)[0, :, 16, 16].sum().backward()
    assert given.grad is not None
    seen = given.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == 3 + 2 * index

    for other in network.paths:
        if other is not path:
            for stage in other:
                stage.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    last: list[Tensor] = []
    path[-1].register_forward_hook(lambda _module, _inputs, output: last.append(output))
    assert network(photo()).isnan().all()
    assert last[0].isfinite().all()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_scale_fuses_every_path(index: int, level: int) -> None:
    network = lively(small()).eval()
    with torch.no_grad():
        before = network(photo())
        weight = network.fusions[level][0].weight  # out x (paths x channels)
        weight.chunk(3, dim=1)[index].mul_(-1)
        assert (network(photo()) - before).abs().amax() > 1e-5


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_its_skip(level: int) -> None:
    """With all below a scale silenced, its fusion reaches the output through its skip alone."""
    network = small()
    network.decoder[1 - level].up.register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(photo()).square().mean().backward()
    assert network.fusions[level + 1][0].weight.grad.abs().sum() == 0
    assert network.fusions[level][0].weight.grad.abs().sum() > 0


def test_dropout_only_where_asked_and_never_at_the_last_step() -> None:
    network = small(levels=3).train()
    assert torch.equal(network(photo()), network(photo()))
    network = small(levels=3, dropout=0.5).train()
    assert [step.join[-1].p for step in network.decoder] == [0.5, 0.5, 0.0]
    assert not torch.equal(network(photo()), network(photo()))


def test_a_residual_network_starts_near_the_photo() -> None:
    painted, changed = small().eval()(photo()), small(residual=True).eval()(photo())
    assert (changed - photo()).abs().mean() < 0.05 < (painted - photo()).abs().mean()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_it_learns_one_pair_by_heart(norm: str) -> None:
    network = small(norm=norm)
    clear = torch.nn.functional.interpolate(photo(side=8), scale_factor=4.0, mode="bilinear")
    degraded = clear.clone()
    degraded[..., ::5] = 0.9  # streaks
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(degraded) - clear).abs().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.5 * errors[0]


def test_one_photo_of_the_smallest_size_trains() -> None:
    network = small(norm="instance")
    network(photo(side=network.multiple_of)).mean().backward()
    assert all(path[-1][0].weight.grad.abs().sum() > 0 for path in network.paths)


def test_resizing_leaves_no_checkerboard() -> None:
    def painted(upsampling: str, given: Tensor) -> Tensor:
        with torch.no_grad():
            return lively(small(upsampling=upsampling), 0.2).eval()(given)

    flat = torch.full((1, 3, 160, 160), 0.4)
    assert grid(painted("resize", flat)) < 1e-6 < 1e-3 < grid(painted("transposed", flat))
    assert 5 * grid(painted("resize", waves())) < grid(painted("transposed", waves()))


def test_bf16_in_channels_last() -> None:
    check_bf16_in_channels_last(small(), photo(2))


def test_settings_out_of_range() -> None:
    with pytest.raises(BadSettings, match="levels"):
        MultipathUNet(levels=0)
    with pytest.raises(BadSettings, match="paths"):
        MultipathUNet(paths=[])
    with pytest.raises(BadSettings, match="paths"):
        MultipathUNet(paths=[1, 0])
    with pytest.raises(BadSettings, match="dropout"):
        MultipathUNet(dropout=1.0)
    with pytest.raises(UnknownName, match="batch"):
        MultipathUNet(norm="layer")  # type: ignore[arg-type]
