"""What every generator promises, whatever it is: the same assertions over every name in GENERATORS."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fairweather.errors import BadImage
from fairweather.generators import GENERATORS, exported, padded
from fairweather.inference.restorer import Restorer
from fairweather.model_folder import CARD, ONNX, WEIGHTS, Card, MapsSpec, read_card, read_weights, write_card
from tests.narrow import NARROW, narrow, shaken

every = pytest.mark.parametrize("name", GENERATORS)


def photos(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_every_generator_is_here() -> None:
    assert set(NARROW) == set(GENERATORS)


@every
def test_docstring_opens_with_paper_shape_and_the_true_count(name: str) -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in GENERATORS[name]().parameters())
    opening = " ".join((inspect.getdoc(GENERATORS[name]) or "").split("\n\n")[:2])
    assert re.search(r"\b(19|20)\d\d\b", opening), "the paper and its year"
    assert "N x 3 x H x W" in opening
    counts = re.findall(r"([\d,]+) parameters", opening)
    assert counts == [f"{parameters:,}"]


@every
def test_arguments_are_explicit_keywords_with_defaults(name: str) -> None:
    for argument in inspect.signature(GENERATORS[name]).parameters.values():
        assert argument.kind is inspect.Parameter.KEYWORD_ONLY, argument
        assert argument.default is not inspect.Parameter.empty, argument
    with pytest.raises(TypeError):
        GENERATORS[name](widht=3)


@every
def test_declarations(name: str) -> None:
    network = narrow(name)
    assert isinstance(network.multiple_of, int)
    assert network.multiple_of >= 1
    assert network.output in ("image", "maps")
    assert network.receptive_field is None or network.receptive_field >= 1
    if any(isinstance(module, nn.InstanceNorm2d) for module in network.modules()):
        assert network.receptive_field is None, "instance norm sees the whole photo"


@every
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (33, 1), (2, 3), (31, 45), (40, 64)])
def test_any_size_gives_the_same_size_within_the_range(name: str, size: tuple[int, int]) -> None:
    network = shaken(narrow(name)).eval()
    with torch.no_grad():
        restored = padded(network, photos(2, *size).round())
    assert restored.shape == (2, 3, *size)
    assert restored.dtype == torch.float32
    assert restored.min() >= 0
    assert restored.max() <= 1


@every
def test_padding_is_reflection_and_only_where_needed(name: str) -> None:
    network = narrow(name).eval()
    multiple = network.multiple_of
    with torch.no_grad():
        whole = photos(1, 4 * multiple, 2 * multiple)
        assert torch.equal(padded(network, whole), network(whole))
        part = whole[..., : 4 * multiple - multiple // 2, : 2 * multiple - multiple // 3]
        missing = [(0, 0), (0, 0), (0, multiple // 2), (0, multiple // 3)]
        grown = torch.from_numpy(np.pad(part.numpy(), missing, mode="reflect"))
        expected = network(grown)[..., : part.shape[2], : part.shape[3]]
        assert torch.equal(padded(network, part), expected)


@every
def test_gradient_reaches_every_parameter(name: str) -> None:
    network = narrow(name)
    target = photos(2, 64, 64, seed=1)
    restored = padded(network, photos(2, 64, 64))
    if hasattr(network, "clip"):  # how fast it forgets shows in a second frame alone
        restored = network.clip(photos(2, 64, 64)[None])[0]
    (restored - target).square().mean().backward()
    # A bias that instance norm follows is cancelled by it, in the papers' networks as well.
    cancelled = any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (cancelled and key.endswith("bias")) or parameter.grad.abs().sum() > 0, key


@every
def test_gradient_reaches_the_photo(name: str) -> None:
    """CycleGAN trains one generator through another."""
    photo = photos(1, 48, 40).requires_grad_()
    padded(narrow(name), photo).square().mean().backward()
    assert photo.grad is not None
    assert photo.grad.abs().amax() > 0


@every
def test_evaluation_is_deterministic_and_photo_by_photo(name: str) -> None:
    network = shaken(narrow(name), 0.05).eval()
    batch = photos(3, 40, 48)
    with torch.no_grad():
        together = padded(network, batch)
        assert torch.equal(padded(network, batch), together)
        alone = torch.cat([padded(network, photo[None]) for photo in batch])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().amax() > 1e-3, "the answer depends on the photo"


@every
def test_the_same_seed_makes_the_same_network(name: str) -> None:
    first, again, other = (narrow(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every
def test_steps_of_any_optimizer_see_parameters_once(name: str) -> None:
    network = narrow(name)
    keys = [key for key, _ in network.named_parameters(remove_duplicate=False)]
    assert len(keys) == len(list(network.parameters())), "no weights are shared under two names"


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


@every
def test_a_card_rebuilds_the_network(name: str, tmp_path: Path) -> None:
    network = shaken(narrow(name), 0.05).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / WEIGHTS)
    (tmp_path / ONNX).write_bytes(b"not looked at here")
    write_card(tmp_path, card_of(name, network))
    assert (tmp_path / CARD).is_file()

    card = read_card(tmp_path)
    rebuilt = GENERATORS[card.generator](**card.arguments).eval()
    rebuilt.load_state_dict({key: torch.from_numpy(array) for key, array in read_weights(tmp_path).items()})
    photo = photos(1, 37, 50)
    with torch.no_grad():
        assert torch.equal(padded(rebuilt, photo), padded(network, photo))
    assert (rebuilt.output, rebuilt.receptive_field) == (card.output, card.receptive_field)
    assert exported(rebuilt).multiple_of == card.multiple_of


@every
@pytest.mark.parametrize("size", [(250, 233), (61, 331), (317, 48)])
def test_tiles_give_the_whole(name: str, size: tuple[int, int]) -> None:
    """Where a network claims a receptive field, windows that overlap by it show no seam, and by less they do."""
    network = narrow(name).eval()
    if network.receptive_field is None:
        pytest.skip("sees every photo whole: see the next test")
    # So lively that each pixel depends on its whole field, and not so that rounding shows: plain_unet's signals keep
    # their size as it starts, the papers' normal(0, 0.02) lets them fade.
    gain = 2 if name == "conv_unet" else 8
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data *= gain
    card = card_of(name, network)
    photo = photos(1, *size)[0].permute(1, 2, 0).numpy()
    levels = (photo * 255).round().astype(np.uint8)

    def by(card: Card, tile: int | None, photo: np.ndarray = photo) -> np.ndarray:
        with torch.no_grad():
            restorer = Restorer(card, lambda picture: network(torch.from_numpy(picture)).numpy(), tile=tile)
            return restorer(photo, guard=False)  # what the network says itself

    whole = by(card, None)
    assert whole.std() > 0.02
    assert np.abs(by(card, 40) - whole).max() < 1e-4
    assert np.abs(by(card, 40, levels).astype(int) - by(card, None, levels)).max() <= 1
    assert np.abs(by(replace(card, receptive_field=3), 40) - whole).max() > 1e-3


@every
def test_what_sees_the_whole_is_refused_rather_than_tiled(name: str) -> None:
    """A network with statistics of the whole photo never sees a part of it; one of maps sees every photo reduced."""
    network = narrow(name).eval()
    card = card_of(name, network)
    if network.receptive_field is not None:
        pytest.skip("is worked in tiles: see the test before")
    seen: list[tuple[int, ...]] = []

    def run(picture: np.ndarray) -> np.ndarray:
        seen.append(picture.shape)
        with torch.no_grad():
            return exported(network)(torch.from_numpy(picture)).numpy()

    photo = photos(1, 250, 233)[0].permute(1, 2, 0).numpy()
    restorer = Restorer(card, run, memory=1 << 20)
    if network.output == "maps":
        assert restorer(photo).shape == photo.shape
        assert len(seen) == 1
        assert seen[0][2] * seen[0][3] <= 2 * network.size**2
    else:
        with pytest.raises(BadImage, match=r"233 x 250 pixels is too large.*statistics of the whole photo"):
            restorer(photo)
        assert not seen


@every
def test_every_engine_gives_the_pictures_of_the_generator(name: str, narrow_model: Callable[[str], Path]) -> None:
    """From the shipped folder, at a size that was not exported, against the generator as training runs it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from fairweather.inference.restorer import load

    network, folder = shaken(narrow(name), 0.05).eval(), narrow_model(name)
    photo = photos(1, 45, 75)
    with torch.no_grad():
        expected = padded(network, photo)[0].permute(1, 2, 0).numpy()
    pixels = photo[0].permute(1, 2, 0).numpy()
    for engine in ("onnxruntime", "openvino"):
        restored = load(folder, engine=engine, precision="f32")(pixels, guard=False)
        assert np.abs(restored - expected).max() < 1e-4, engine
    assert np.abs(expected - pixels).max() > 0.02, "a network that does nothing proves little"
    card = read_card(folder)
    assert (card.maps is not None) == (network.output == "maps")
    assert card.receptive_field == network.receptive_field
    assert card.bytes_per_pixel > 0
