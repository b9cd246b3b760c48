from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators import ConvUNet
from tests.generators.grid import grid
from tests.generators.mixed import check_bf16_in_channels_last
from tests.generators.reach import field_by_gradients


def small(**settings: Any) -> ConvUNet:
    torch.manual_seed(0)
    return ConvUNet(**{"widths": (8, 12, 16), "encoder": (1, 1, 1), "decoder": (1, 1), **settings})


def photo(count: int = 1, side: int = 32, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_size_and_declarations() -> None:
    network = ConvUNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_146_220
    assert [stage[0].first.out_channels for stage in network.encoder] == [32, 64, 128, 192]
    assert network.stem.in_channels == 12
    assert (network.multiple_of, network.receptive_field) == (16, 383)
    assert (small(shuffle=1).multiple_of, small(shuffle=4).multiple_of) == (4, 16)


@pytest.mark.parametrize(
    ("shuffle", "encoder", "decoder"),
    [
        (1, (1,), ()),
        (2, (2,), ()),
        (2, (1, 1), (1,)),
        (2, (1, 2, 1), (1, 0)),
        (3, (1, 0, 2), (0, 1)),
        (4, (0, 1), (2,)),
    ],
)
def test_receptive_field_is_what_gradients_show(
    shuffle: int, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    """Over every phase of a pixel within a cell of `multiple_of`, and not a pixel wider than needed."""
    network = ConvUNet(shuffle=shuffle, widths=(2,) * len(encoder), encoder=encoder, decoder=decoder)
    assert network.receptive_field == field_by_gradients(network, 0.05)


def test_plain_layers_alone() -> None:
    """What folds, quantizes and runs in tiles: no norms, no pooling, no means."""
    kinds = {type(module) for module in ConvUNet().modules() if not list(module.children())}
    assert kinds == {nn.Conv2d}


def test_the_first_answer_is_near_the_photo() -> None:
    network = small()
    changed = (network(photo()) - photo()).abs().mean()
    assert 0 < changed < 0.15
    network.head.weight.data.zero_()
    assert torch.equal(network.eval()(photo()), photo())


def test_signals_keep_their_size() -> None:
    """From the finest scale to the coarsest, which has no norm to rescue it."""
    network, found = ConvUNet(widths=(16, 24, 32, 48)), []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.detach().std())))
    network(photo(side=64))
    assert max(found) / min(found) < 3


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_its_skip(level: int) -> None:
    """With all below a scale silenced, it reaches the output through its skip alone."""
    network = small()
    network.up[level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(photo()).square().mean().backward()
    here, below = network.encoder[level][0].first, network.encoder[level + 1][0].first
    assert here.weight.grad.abs().sum() > 0
    assert below.weight.grad.abs().sum() == 0


def test_a_flat_photo_is_left_flat_but_for_a_grid_of_cells() -> None:
    """Shuffled pixels can make a grid of cells; at its start it is faint beside what is changed."""
    flat = torch.full((1, 3, 160, 160), 0.4)
    with torch.no_grad():
        assert grid(small().eval()(flat)) < 0.05


def test_white_and_black_are_cut_and_still_learned_from() -> None:
    network = small()
    network.head.bias.data.fill_(40.0)
    assert torch.equal(network.eval()(photo()), torch.ones_like(photo()))
    restored = network.train()(photo())
    assert restored.max() <= 1 + 1e-6
    restored.mean().backward()
    assert network.head.bias.grad.abs().amin() > 0


def test_it_learns_one_pair_by_heart() -> None:
    network = small()
    clear = F.interpolate(photo(side=8), scale_factor=4.0, mode="bilinear")
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


def test_bf16_in_channels_last() -> None:
    check_bf16_in_channels_last(small(), photo(2))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"widths": (8, 8)}, "2 widths take 2"),
        ({"widths": ()}, "0 widths"),
        ({"decoder": (1,)}, "got 3 and 1"),
        ({"shuffle": 0}, "shuffle"),
        ({"widths": (8, 0, 8)}, "widths"),
        ({"encoder": (1, -1, 1)}, "blocks"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(BadSettings, match=word):
        small(**settings)
