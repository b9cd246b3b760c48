from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fairweather.errors import BadSettings, UnknownName
from fairweather.losses import Perceptual, perceptual

SHALLOW = ("relu1_2",)
# Indices of the convolutions in torchvision's vgg19().features, and their channels (configuration E of the paper).
PLACES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 16, 24, generator=generator), torch.rand(2, 3, 16, 24, generator=generator)


def vgg_file(path: Path, *, count: int = 2, zipped: bool = True) -> dict[str, torch.Tensor]:
    """A file like torchvision's, with the first `count` convolutions and part of the classifier."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, torch.Tensor] = {"classifier.6.bias": torch.zeros(1000)}
    for place, into, out in list(zip(PLACES, CHANNELS, CHANNELS[1:], strict=False))[:count]:
        state[f"features.{place}.weight"] = torch.randn(out, into, 3, 3, generator=generator) / 10
        state[f"features.{place}.bias"] = torch.randn(out, generator=generator) / 10
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return state


def test_the_network_is_vgg19() -> None:
    network, places = perceptual.vgg19(15)
    convolutions = {place: layer for place, layer in enumerate(network) if isinstance(layer, nn.Conv2d)}
    assert tuple(convolutions) == PLACES
    assert tuple(layer.out_channels for layer in convolutions.values()) == CHANNELS[1:]
    assert sum(p.numel() for p in network.parameters()) == 20_024_384  # all of VGG-19 but its classifier
    assert sorted(network.state_dict()) == sorted(f"{at}.{kind}" for at in PLACES for kind in ("weight", "bias"))
    assert [place for place, layer in enumerate(network) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 18, 27]
    assert (places["relu3_3"], places["relu4_3"], places["relu5_4"]) == (15, 24, 35)


@pytest.mark.parametrize("zipped", [True, False])  # torchvision's file has the older format
def test_a_cached_file_is_used(
    zipped: bool, empty_cache: Path, pair: tuple[torch.Tensor, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    state = vgg_file(empty_cache / "vgg19-dcbb9e9d.pth", zipped=zipped)
    with caplog.at_level(logging.INFO, "fairweather"):
        loss = Perceptual(("relu1_1", "relu1_2"))
    assert loss.origin == "imagenet"
    assert loss.words == "imagenet VGG-19 features after relu1_1, relu1_2"
    assert not caplog.records

    def features(photo: torch.Tensor) -> list[torch.Tensor]:
        x = (photo - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        first = functional.conv2d(x, state["features.0.weight"], state["features.0.bias"], padding=1).clamp_min(0)
        second = functional.conv2d(first, state["features.2.weight"], state["features.2.bias"], padding=1).clamp_min(0)
        return [first, second]

    one, two = (features(photo) for photo in pair)
    squares = [((a - b) ** 2).mean() for a, b in zip(one, two, strict=True)]
    assert loss(*pair).item() == pytest.approx((squares[0] + squares[1]).item() / 2, rel=1e-4)
    absolute = Perceptual(SHALLOW, distance="l1")(*pair)
    assert absolute.item() == pytest.approx((one[1] - two[1]).abs().mean().item(), rel=1e-4)


def test_the_given_file_takes_precedence_over_the_cache(empty_cache: Path, tmp_path: Path) -> None:
    vgg_file(empty_cache / "vgg19-dcbb9e9d.pth")
    state = vgg_file(tmp_path / "mine.pth")
    state["features.0.weight"] += 1
    torch.save(state, tmp_path / "mine.pth")
    mine, cached = Perceptual(SHALLOW, str(tmp_path / "mine.pth")), Perceptual(SHALLOW)
    assert torch.equal(mine.network[0].weight, state["features.0.weight"])
    assert not torch.equal(cached.network[0].weight, state["features.0.weight"])


class Exploit:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


@pytest.mark.parametrize("damage", ["missing", "cut off", "another network", "too shallow", "code"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_wrong_file_is_named(
    damage: str, cached: bool, empty_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (empty_cache if cached else tmp_path) / "vgg19-dcbb9e9d.pth"
    state = vgg_file(path, count=1 if damage == "too shallow" else 2)
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:999])
    elif damage == "another network":
        torch.save({**state, "features.2.weight": torch.zeros(64, 64, 1, 1)}, path)
    elif damage == "code":
        torch.save({**state, "features.0.weight": Exploit()}, path)
    if damage == "missing" and cached:
        assert Perceptual(SHALLOW).origin == "random"
        return
    with pytest.raises(BadSettings, match=r"vgg19-dcbb9e9d\.pth"):
        Perceptual(SHALLOW, None if cached else str(path))
    assert "this ran" not in capsys.readouterr().out


def test_without_weights_a_fixed_random_network_is_logged_and_used(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "fairweather"):
        one = Perceptual(("relu2_2",))
    assert [record.message.count("random network") for record in caplog.records] == [1]
    assert "torch/hub/checkpoints" in caplog.text
    assert one.origin == "random"
    torch.rand(3)
    deeper = Perceptual(("relu2_1", "relu3_1"))
    torch.set_rng_state(before)
    assert torch.equal(one.network[5].weight, deeper.network[5].weight)
    # He initialization preserves the mean square.
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * one.deviation + one.mean
    (features,) = one.features(noise)
    assert 0.5 < features.square().mean() < 4  # max-pooling increases it a little


def test_the_global_random_generator_is_not_used() -> None:
    torch.manual_seed(8)
    expected = torch.rand(4)
    torch.manual_seed(8)
    Perceptual(SHALLOW)
    assert torch.equal(torch.rand(4), expected)


def test_full_precision_under_autocast(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = Perceptual(("relu2_2",))
    expected = loss(*pair).item()
    weights = [convolution.weight.clone() for convolution in loss.network if isinstance(convolution, nn.Conv2d)]
    nn.Sequential(loss).to(torch.bfloat16).half().to(memory_format=torch.channels_last)
    for before, layer in zip(weights, [x for x in loss.network if isinstance(x, nn.Conv2d)], strict=True):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*pair)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    rounded = [photo.bfloat16() for photo in pair]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(*rounded).item() == pytest.approx(loss(*(r.float() for r in rounded)).item(), rel=1e-6)


def test_its_weights_are_not_trained_or_stored(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss = Perceptual(SHALLOW)
    owner = nn.Sequential(nn.Conv2d(3, 3, 1), loss)
    assert not list(loss.parameters())
    owner.train()
    assert owner[0].training
    assert not any(module.training for module in loss.modules())
    assert sum(value.numel() for value in loss.state_dict().values()) < 10
    output, target = (photo.clone().requires_grad_() for photo in pair)
    loss(output, target).backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(buffer.requires_grad for buffer in loss.buffers())
    assert torch.equal(copy.deepcopy(loss)(*pair), loss(*pair))


def test_resuming_with_other_weights_is_refused(empty_cache: Path, tmp_path: Path) -> None:
    random = Perceptual(SHALLOW)
    vgg_file(tmp_path / "one.pth")
    one = Perceptual(SHALLOW, tmp_path / "one.pth")
    state = vgg_file(tmp_path / "two.pth")
    torch.save({**state, "features.2.bias": state["features.2.bias"] + 1e-6}, tmp_path / "two.pth")
    two = Perceptual(SHALLOW, tmp_path / "two.pth")
    for owner in (random, one, two):
        kept = nn.Sequential(owner).state_dict()
        nn.Sequential(copy.deepcopy(owner)).load_state_dict(kept)
        for other in {random, one, two} - {owner}:
            with pytest.raises(BadSettings, match="found now differ"):
                nn.Sequential(other).load_state_dict(kept)


def test_equal_pictures_are_the_minimum(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    loss = Perceptual(("relu2_2",))
    best, nearer, farther = (loss(a + s * (b - a), a).item() for s in (0, 0.1, 1))
    assert 0 == best < nearer < farther


@pytest.mark.parametrize("made", [lambda: Perceptual(("relu3_5",)), lambda: Perceptual(SHALLOW, distance="l3")])  # type: ignore[arg-type]
def test_unknown_names(made: Any) -> None:
    with pytest.raises(UnknownName, match=r"relu3_4|l1"):
        made()


def test_invalid_arguments() -> None:
    with pytest.raises(BadSettings, match="at least one layer"):
        Perceptual(())
    loss = Perceptual(("relu2_1",))
    with pytest.raises(BadSettings, match="one shape"):
        loss(torch.zeros(2, 3, 12, 12), torch.zeros(1, 3, 12, 12))
    with pytest.raises(BadSettings, match="at least 2 x 2"):
        loss(torch.zeros(1, 3, 1, 12), torch.zeros(1, 3, 1, 12))
