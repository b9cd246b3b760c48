from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import MBConvUNet
from fairweather.generators.layers import initialise
from tests.generators.grid import grid, waves
from tests.generators.mixed import check_bf16_in_channels_last


def small(**settings: Any) -> MBConvUNet:
    torch.manual_seed(0)
    return MBConvUNet(**{"width": 8, "levels": 3, "expansion": 2, **settings})


def photo(count: int = 1, side: int = 64, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def of(kind: type[nn.Module] | tuple[type[nn.Module], ...], network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_size_and_declarations() -> None:
    with torch.device("meta"):
        network = MBConvUNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 18_662_856
    assert [scale.plain[0].out_channels for scale in network.encoder] == [48, 96, 192, 384, 384]
    assert (network.multiple_of, network.receptive_field) == (32, None)
    assert small(norm="instance").multiple_of == 16


def test_a_block_expands_looks_squeezes_and_projects() -> None:
    block = small(expansion=4, squeeze=0.5).encoder[1].bottleneck  # 16 channels
    expand, depthwise, project = block.expand[0], block.depthwise[0], block.project[0]
    assert (expand.kernel_size, expand.in_channels, expand.out_channels) == ((1, 1), 16, 64)
    assert (depthwise.kernel_size, depthwise.groups, depthwise.out_channels) == ((3, 3), 64, 64)
    assert (project.kernel_size, project.in_channels, project.out_channels) == ((1, 1), 64, 16)
    assert [layer.out_channels for layer in of(nn.Conv2d, block.excite)] == [8, 64]
    assert not of((nn.SiLU, nn.ReLU), block.project), "the bottleneck is linear"

    project.weight.data.zero_()
    features = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(block.eval()(features), features)


def test_swish_in_the_encoder_alone() -> None:
    network = small()
    assert of(nn.SiLU, network.encoder)
    assert not of((nn.ReLU, nn.LeakyReLU), network.encoder)
    assert not of(nn.SiLU, network.decoder)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("path", ["plain", "bottleneck"])
def test_every_scale_fuses_both_paths(level: int, path: str) -> None:
    """Its output moves with either of them."""
    network = small().eval()
    with torch.no_grad():
        before = network(photo())
        getattr(network.encoder[level], path).register_forward_hook(lambda _module, _inputs, output: output + 1)
        assert (network(photo()) - before).abs().amax() > 1e-4


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_its_skip(level: int) -> None:
    """With all below a scale silenced, it reaches the output through its skip alone."""
    network = small()
    network.decoder[1 - level].up.register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(photo()).square().mean().backward()
    assert network.encoder[level + 1].fuse[0].weight.grad.abs().sum() == 0
    assert network.encoder[level].fuse[0].weight.grad.abs().sum() > 0


def test_the_photo_itself_reaches_the_head() -> None:
    network = small().eval()
    network.last.register_forward_hook(lambda _module, _inputs, output: output * 0)
    assert not torch.equal(network(photo(seed=1)), network(photo(seed=2)))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_pixel_sees_the_whole_photo(norm: str) -> None:
    """Through the squeeze; hence no receptive field and no tiles."""
    seen = photo(side=128).requires_grad_()
    small(norm=norm).eval()(seen)[0, 0, 0, 0].backward()
    assert seen.grad is not None
    assert seen.grad[..., -8:, -8:].abs().amax() > 0


def test_signals_keep_their_size_without_norms() -> None:
    """On the way down by a factor of about two at most, where normal(0, 0.02) leaves nothing."""

    def sizes(network: MBConvUNet) -> list[float]:
        found: list[float] = []
        for scale in network.encoder:
            scale.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.std())))
        with torch.no_grad():
            network(photo())
        return found

    network = small(width=16, levels=5, norm="none")
    ours = sizes(network)
    assert max(ours) / min(ours) < 3
    assert all(0.2 < size < 2 for size in ours)
    initialise(network)
    assert sizes(network)[-1] < 1e-3


def test_the_first_answer_is_near_grey_or_the_photo() -> None:
    restored = small()(photo())
    assert (restored - 0.5).abs().mean() < 0.15
    changed = small(residual=True)(photo())
    assert (changed - photo()).abs().mean() < 0.15 < (restored - photo()).abs().mean()


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_it_learns_one_pair_by_heart(norm: str) -> None:
    network = small(levels=2, norm=norm)
    clear = torch.nn.functional.interpolate(photo(side=8), scale_factor=4.0, mode="bilinear")
    degraded = 0.4 * clear + 0.5
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(degraded) - clear).abs().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.4 * float((degraded - clear).abs().mean())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_one_photo_of_the_smallest_size_trains(norm: str) -> None:
    network = small(norm=norm)
    network(photo(side=network.multiple_of)).mean().backward()
    assert network.encoder[-1].plain[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_resizing_leaves_no_checkerboard(norm: str) -> None:
    """With weights as they start, but a head that can be heard."""

    def painted(upsampling: str, given: Tensor) -> Tensor:
        network = small(levels=2, upsampling=upsampling, norm=norm).eval()
        network.head.weight.data *= 3
        with torch.no_grad():
            return network(given)

    flat = torch.full((1, 3, 160, 160), 0.4)
    assert grid(painted("resize", flat)) < 1e-6 < 1e-3 < grid(painted("transposed", flat))
    assert 5 * grid(painted("resize", waves())) < grid(painted("transposed", waves()))
    assert grid(waves()) < 1e-4


def test_bf16_in_channels_last() -> None:
    check_bf16_in_channels_last(small(), photo(2))


def test_settings_out_of_range() -> None:
    with pytest.raises(BadSettings, match="width"):
        MBConvUNet(width=0)
    with pytest.raises(BadSettings, match="squeeze"):
        MBConvUNet(squeeze=0)
    with pytest.raises(UnknownName, match="none"):
        MBConvUNet(norm="layer")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="resize"):
        MBConvUNet(upsampling="bilinear")  # type: ignore[arg-type]
