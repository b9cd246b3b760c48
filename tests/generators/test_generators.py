"""The contract of every generator in GENERATORS."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadImage
from fairweather.generators import GENERATORS, Generator, exported, padded
from fairweather.inference import load
from fairweather.inference.restorer import Restorer
from fairweather.model_folder import Card, MapsSpec, read_card
from tests.generators.probes import rand
from tests.narrow import NARROW, narrow, shaken

every = pytest.mark.parametrize("name", GENERATORS)
tiled = pytest.mark.parametrize("name", [name for name in GENERATORS if narrow(name).receptive_field is not None])
whole = pytest.mark.parametrize("name", [name for name in GENERATORS if narrow(name).receptive_field is None])


@every
def test_docstring_opens_with_paper_shape_and_parameter_count(name: str) -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in GENERATORS[name]().parameters())
    opening = " ".join((inspect.getdoc(GENERATORS[name]) or "").split("\n\n")[:2])
    assert re.search(r"\b(19|20)\d\d\b", opening), "the paper and its year"
    assert "N x 3 x H x W" in opening
    assert re.findall(r"([\d,]+) parameters", opening) == [f"{parameters:,}"]


@every
def test_arguments_and_attributes(name: str) -> None:
    for argument in inspect.signature(GENERATORS[name]).parameters.values():
        assert argument.kind is inspect.Parameter.KEYWORD_ONLY, argument
        assert argument.default is not inspect.Parameter.empty, argument
    with pytest.raises(TypeError):
        GENERATORS[name](widht=3)
    network = narrow(name)
    assert isinstance(network, Generator)
    assert network.multiple_of >= 1
    assert network.output in ("image", "maps")
    assert network.receptive_field is None or network.receptive_field >= 1
    if any(isinstance(module, nn.InstanceNorm2d) for module in network.modules()):
        assert network.receptive_field is None
    names = [key for key, _ in network.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(network.parameters())), "no tensor has two names"


@every
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (33, 2), (31, 45)])
def test_any_size_gives_the_same_size_in_range(name: str, size: tuple[int, int]) -> None:
    network = shaken(narrow(name)).eval()
    with torch.no_grad():
        restored = padded(network, rand(2, *size).round())
    assert restored.shape == (2, 3, *size)
    assert restored.dtype == torch.float32
    assert 0 <= restored.min() <= restored.max() <= 1


@every
def test_padding_is_by_reflection(name: str) -> None:
    network = narrow(name).eval()
    multiple = network.multiple_of
    photo = rand(1, 4 * multiple - multiple // 2, 2 * multiple - multiple // 3)
    missing = [(0, 0), (0, 0), (0, multiple // 2), (0, multiple // 3)]
    with torch.no_grad():
        expected = network(torch.from_numpy(np.pad(photo.numpy(), missing, mode="reflect")))
        assert torch.equal(padded(network, photo), expected[..., : photo.shape[2], : photo.shape[3]])


@every
def test_gradients_reach_photo_and_parameters(name: str) -> None:
    network, photo = narrow(name), rand(2, 64).requires_grad_()
    # The time constants of a recurrent network only affect later frames.
    restored = network.clip(photo[None])[0] if hasattr(network, "clip") else padded(network, photo)
    (restored - rand(2, 64, seed=2)).square().mean().backward()
    assert photo.grad is not None
    assert photo.grad.abs().amax() > 0
    # Instance norm cancels a bias before it.
    cancelled = any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (cancelled and key.endswith("bias")) or parameter.grad.abs().sum() > 0, key


@every
def test_a_pair_can_be_learned(name: str) -> None:
    network = narrow(name)
    clear = nn.functional.interpolate(rand(1, 8), scale_factor=8.0, mode="bilinear")
    degraded = 0.4 * clear + 0.5
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    errors = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (network(degraded) - clear).abs().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.7 * min(errors[0], float((degraded - clear).abs().mean()))


@every
def test_evaluation_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    network, batch = shaken(narrow(name), 0.05).eval(), rand(3, 40, 48)
    with torch.no_grad():
        together = padded(network, batch)
        assert torch.equal(padded(network, batch), together)
        alone = torch.cat([padded(network, photo[None]) for photo in batch])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().amax() > 1e-3, "the output depends on the photo"


@every
def test_the_seed_determines_the_weights(name: str) -> None:
    first, again, other = (narrow(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every
def test_bfloat16_in_channels_last(name: str) -> None:
    """Under autocast: a float32 picture close to the float32 network's, and finite gradients."""
    network = narrow(name).eval().to(memory_format=torch.channels_last)
    photo = rand(2, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(photo)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(photo)
        (network.train()(photo) - 0.3).abs().mean().backward()
    assert restored.dtype == torch.float32
    assert (restored - expected).abs().amax() < 0.03
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def card_of(name: str, network: nn.Module) -> Card:
    maps = None
    if network.output == "maps":
        maps = MapsSpec(size=network.size, radius=network.radius, eps=network.eps)
    return Card(
        name="narrow",
        weather="haze",
        generator=name,
        arguments=NARROW[name],
        output=network.output,
        multiple_of=exported(network).multiple_of,
        receptive_field=network.receptive_field,
        maps=maps,
        training={},
        scores=[],
        licence="MIT",
        terms="",
    )


def pixels(photo: Tensor) -> np.ndarray:
    return np.ascontiguousarray(photo[0].permute(1, 2, 0).numpy())


@tiled
@pytest.mark.parametrize("size", [(61, 231), (170, 48)])
def test_tiles_give_the_whole(name: str, size: tuple[int, int]) -> None:
    """Tiles that overlap by the receptive field show no seam; tiles that overlap by less do."""
    network = narrow(name).eval()
    # So large that each pixel depends on its whole field, and so small that rounding does not show.
    gain = 2 if name == "conv_unet" else 8
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data *= gain
    card, photo = card_of(name, network), pixels(rand(1, *size))
    levels = (photo * 255).round().astype(np.uint8)

    def by(card: Card, tile: int | None, photo: np.ndarray = photo) -> np.ndarray:
        with torch.no_grad():
            restorer = Restorer(card, lambda picture: network(torch.from_numpy(picture)).numpy(), tile=tile)
            return restorer(photo, guard=False)

    expected = by(card, None)
    assert expected.std() > 0.02
    assert np.abs(by(card, 40) - expected).max() < 1e-4
    assert np.abs(by(card, 40, levels).astype(int) - by(card, None, levels)).max() <= 1
    assert np.abs(by(replace(card, receptive_field=3), 40) - expected).max() > 1e-3


@whole
def test_networks_with_global_statistics_are_never_tiled(name: str) -> None:
    """Image networks reject a photo that does not fit in memory; maps networks get every photo reduced."""
    network = narrow(name).eval()
    shapes: list[tuple[int, ...]] = []

    def run(picture: np.ndarray) -> np.ndarray:
        shapes.append(picture.shape)
        with torch.no_grad():
            return exported(network)(torch.from_numpy(picture)).numpy()

    photo = pixels(rand(1, 250, 233))
    restorer = Restorer(card_of(name, network), run, memory=1 << 20)
    if network.output == "maps":
        assert restorer(photo).shape == photo.shape
        assert len(shapes) == 1
        assert shapes[0][2] * shapes[0][3] <= 2 * network.size**2
    else:
        with pytest.raises(BadImage, match="233 x 250"):
            restorer(photo)
        assert not shapes


@every
def test_exported_networks_match_in_every_engine(name: str, narrow_model: Callable[[str], Path]) -> None:
    """At a size that differs from the export's, against the generator as training runs it."""
    network, folder = shaken(narrow(name), 0.05).eval(), narrow_model(name)
    photo = rand(1, 45, 75)
    with torch.no_grad():
        expected = pixels(padded(network, photo))
    for engine in ("onnxruntime", "openvino"):
        restored = load(folder, engine=engine, precision="f32")(pixels(photo), guard=False)
        assert np.abs(restored - expected).max() < 1e-4, engine
    assert np.abs(expected - pixels(photo)).max() > 0.02
    card = read_card(folder)
    assert (card.maps is not None) == (network.output == "maps")
    assert card.receptive_field == network.receptive_field
    assert card.bytes_per_pixel > 0
