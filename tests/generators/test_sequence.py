"""The generator with a memory: it begins as the swift that it grew from, and a clip is its frames one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fairweather.generators import RecurrentMaps, ScatteringMaps
from fairweather.generators.recurrent_maps import carried

SMALL: dict[str, Any] = {"size": 64, "widths": (8, 8, 12, 12)}
MEMORY: dict[str, Any] = {"heads": 4, "states": 2}


def lively(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return network.eval()


def clip(length: int, height: int = 70, width: int = 90) -> Tensor:
    """A picture that moves, with noise: 1 x T x 3 x H x W."""
    generator = torch.Generator().manual_seed(4)
    picture = torch.rand(1, 3, 12, 12, generator=generator)
    picture = torch.nn.functional.interpolate(picture, (height, width + length), mode="bicubic").clamp(0, 1)
    frames = torch.stack([picture[..., at : at + width] for at in range(length)], 1)
    return (frames + 0.03 * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def test_parameters_at_the_defaults() -> None:
    with torch.device("meta"):
        network = RecurrentMaps()
    assert sum(p.numel() for p in network.parameters()) == 2_034_178
    assert (network.maps_module.state_channels, network.maps_module.state_stride) == (8 * 4 * (5 + 1), 4)


def test_photos_are_those_of_the_swift_that_it_grew_from() -> None:
    swift = lively(ScatteringMaps(**SMALL))
    network = RecurrentMaps(**SMALL, **MEMORY)
    network.grow(swift.state_dict())
    frames = clip(5)
    for mode in (True, False):  # in training too: batch norm keeps its statistics
        network.train(mode)
        with torch.no_grad():
            assert (network.clip(frames)[:, 0] - swift(frames[:, 0])).abs().max() < 1e-5
            assert (network(frames[0]) - swift(frames[0])).abs().max() < 1e-5
            lively(network.maps_module.memory).train(mode)
            assert (network(frames[0]) - swift(frames[0])).abs().max() < 1e-5, "whatever the memory has learned"
            assert (network.clip(frames)[0] - swift(frames[0])).abs().max() > 1e-3, "the past counts"
    assert (swift(frames[0]) - frames[0]).abs().mean() > 0.01


def test_all_of_the_memory_learns_from_the_first_step_on() -> None:
    network = RecurrentMaps(**SMALL, **MEMORY)
    network.grow(lively(ScatteringMaps(**SMALL)).state_dict())
    (network.clip(clip(4)) - 0.3).square().mean().backward()
    for name, parameter in network.maps_module.memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_growing_takes_its_own_weights_too() -> None:
    network, other = (lively(RecurrentMaps(**SMALL, **MEMORY), seed) for seed in (1, 2))
    other.grow(network.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(RuntimeError):
        other.grow(ScatteringMaps(**{**SMALL, "widths": (8, 8, 8, 8)}).state_dict())
    with pytest.raises(RuntimeError):
        other.grow({"a": torch.zeros(1)})


@pytest.mark.parametrize("size", [(70, 90), (33, 41), (160, 130)])
def test_a_clip_is_its_frames_with_the_state_handed_on(size: tuple[int, int]) -> None:
    from fairweather.generators.scattering_maps import apply_maps, reduced_size, resize

    network = lively(RecurrentMaps(**SMALL, **MEMORY))
    frames = clip(7, *size)
    module, state = network.maps_module, None
    with torch.no_grad():
        together = network.clip(frames)
        for at, frame in enumerate(frames.unbind(1)):
            reduced = resize(frame, *reduced_size(*size, network.size, module.multiple_of))
            if state is None:
                state = torch.zeros(1, module.state_channels, reduced.shape[2] // 4, reduced.shape[3] // 4)
            maps, state = module(reduced, state)
            alone = apply_maps(frame, reduced, maps, network.radius, network.eps)
            assert (together[:, at] - alone).abs().max() < 1e-5, at
        first = network(frames[:, 0])
        assert (together[:, 0] - first).abs().max() < 1e-5, "a photo is a clip of one frame"
        assert (together[:, 6] - network(frames[:, 6])).abs().max() > 1e-3, "the past counts"


def test_clips_of_a_batch_do_not_meet() -> None:
    network = lively(RecurrentMaps(**SMALL, **MEMORY))
    one, other = clip(4), clip(4).flip(1).flip(3)
    with torch.no_grad():
        both = network.clip(torch.cat([one, other]))
        assert (both[:1] - network.clip(one)).abs().max() < 1e-5
        assert (both[1:] - network.clip(other)).abs().max() < 1e-5


def test_a_state_that_stays_in_its_place_is_the_scan() -> None:
    network = lively(RecurrentMaps(**SMALL, **MEMORY))
    frames = torch.cat([clip(6), clip(6).flip(1)])
    still = torch.eye(3)[:2].repeat(2, 6, 1, 1)
    with torch.no_grad():
        assert (network.clip(frames, moves=still) - network.clip(frames)).abs().max() < 1e-5


def test_a_state_goes_along_with_the_camera() -> None:
    """Two cells to the right in the frame before is where this frame's place was: there is the state, and what came in
    at the edge has none."""
    state = torch.rand(1, 5, 6, 8)
    move = torch.tensor([[[1.0, 0.0, 2 * 2 / 8], [0.0, 1.0, 0.0]]])
    moved = carried(state, move)
    assert torch.allclose(moved[..., :-2], state[..., 2:], atol=1e-5)
    assert moved[..., -2:].abs().max() == 0
    network = lively(RecurrentMaps(**SMALL, **MEMORY))
    frames, moves = clip(4), torch.eye(3)[:2].repeat(1, 4, 1, 1)
    moves[:, 1:, 0, 2] = 2 / 90  # the picture goes left by a pixel of 90 a frame
    with torch.no_grad():
        assert (network.clip(frames, moves=moves)[:, 0] - network.clip(frames)[:, 0]).abs().max() < 1e-6
        assert (network.clip(frames, moves=moves)[:, 3] - network.clip(frames)[:, 3]).abs().max() > 1e-4
