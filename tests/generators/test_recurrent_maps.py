from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairweather.generators import RecurrentMaps, ScatteringMaps
from fairweather.generators.recurrent_maps import warp_state
from fairweather.generators.scattering_maps import apply_maps, reduced_size, resize

SMALL: dict[str, Any] = {"size": 64, "widths": (8, 8, 12, 12)}
RECURRENT: dict[str, Any] = {**SMALL, "heads": 4, "states": 2}


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """As if trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return network.eval()


def clip(length: int, height: int = 70, width: int = 90) -> Tensor:
    """A moving picture with noise: 1 x T x 3 x H x W."""
    generator = torch.Generator().manual_seed(4)
    picture = torch.rand(1, 3, 12, 12, generator=generator)
    picture = nn.functional.interpolate(picture, (height, width + length), mode="bicubic").clamp(0, 1)
    frames = torch.stack([picture[..., at : at + width] for at in range(length)], 1)
    return (frames + 0.03 * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def test_state_at_the_defaults() -> None:
    network = RecurrentMaps()
    assert (network.maps_module.state_channels, network.maps_module.state_stride) == (8 * 4 * (5 + 1), 4)


def test_growing_from_scattering_maps_keeps_its_photos() -> None:
    source = shaken(ScatteringMaps(**SMALL))
    network = RecurrentMaps(**RECURRENT)
    network.grow(source.state_dict())
    frames = clip(5)
    for training in (True, False):  # also in training, since batch norm keeps its statistics
        network.train(training)
        with torch.no_grad():
            expected = source(frames[0])
            assert (network.clip(frames)[:, 0] - expected[:1]).abs().max() < 1e-5
            assert (network(frames[0]) - expected).abs().max() < 1e-5
            shaken(network.maps_module.memory).train(training)
            assert (network(frames[0]) - expected).abs().max() < 1e-5, "whatever the state space has learned"
            assert (network.clip(frames)[0] - expected).abs().max() > 1e-3, "the past has an effect"
    assert (expected - frames[0]).abs().mean() > 0.01


def test_the_whole_state_space_is_trained_from_the_first_step() -> None:
    network = RecurrentMaps(**RECURRENT)
    network.grow(shaken(ScatteringMaps(**SMALL)).state_dict())
    (network.clip(clip(4)) - 0.3).square().mean().backward()
    for name, parameter in network.maps_module.memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_growing_loads_its_own_weights_and_no_others() -> None:
    network, other = (shaken(RecurrentMaps(**RECURRENT), seed) for seed in (1, 2))
    other.grow(network.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())
    for weights in (ScatteringMaps(**{**SMALL, "widths": (8, 8, 8, 8)}).state_dict(), {"a": torch.zeros(1)}):
        with pytest.raises(RuntimeError):
            other.grow(weights)


@pytest.mark.parametrize("size", [(70, 90), (33, 41), (160, 130)])
def test_a_clip_is_its_frames_one_by_one(size: tuple[int, int]) -> None:
    network = shaken(RecurrentMaps(**RECURRENT))
    frames, module, state = clip(7, *size), network.maps_module, None
    with torch.no_grad():
        together = network.clip(frames)
        for at, frame in enumerate(frames.unbind(1)):
            reduced = resize(frame, *reduced_size(*size, network.size, module.multiple_of))
            if state is None:
                state = torch.zeros(1, module.state_channels, reduced.shape[2] // 4, reduced.shape[3] // 4)
            maps, state = module(reduced, state)
            alone = apply_maps(frame, reduced, maps, network.radius, network.eps)
            assert (together[:, at] - alone).abs().max() < 1e-5, at
        assert (together[:, 0] - network(frames[:, 0])).abs().max() < 1e-5, "a photo is a clip of one frame"
        assert (together[:, 6] - network(frames[:, 6])).abs().max() > 1e-3, "the past has an effect"


def test_clips_of_a_batch_are_independent() -> None:
    network = shaken(RecurrentMaps(**RECURRENT))
    one, other = clip(4), clip(4).flip(1).flip(3)
    with torch.no_grad():
        both = network.clip(torch.cat([one, other]))
        assert (both[:1] - network.clip(one)).abs().max() < 1e-5
        assert (both[1:] - network.clip(other)).abs().max() < 1e-5


def test_the_state_is_warped_by_the_camera_s_motion() -> None:
    """By two cells to the left, where the frame before is two cells to the right; zeros enter at the edge."""
    state = torch.rand(1, 5, 6, 8)
    warped = warp_state(state, torch.tensor([[[1.0, 0.0, 2 * 2 / 8], [0.0, 1.0, 0.0]]]))
    assert torch.allclose(warped[..., :-2], state[..., 2:], atol=1e-5)
    assert warped[..., -2:].abs().max() == 0
    network = shaken(RecurrentMaps(**RECURRENT))
    frames, moves = clip(4), torch.eye(3)[:2].repeat(1, 4, 1, 1)
    with torch.no_grad():
        plain = network.clip(frames)
        assert (network.clip(frames, moves=moves) - plain).abs().max() < 1e-5, "without motion it is the scan"
        moves[:, 1:, 0, 2] = 2 / 90  # the picture moves left by one of 90 pixels per frame
        moved = network.clip(frames, moves=moves)
    assert (moved[:, 0] - plain[:, 0]).abs().max() < 1e-6
    assert (moved[:, 3] - plain[:, 3]).abs().max() > 1e-4
