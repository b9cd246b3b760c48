"""The memory over time: its scan is its recurrence, its gradients are right, and it does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.generators.selective import STEP, SelectiveMemory, scan


def memory(*, channels: int = 5, width: int = 6, states: int = 3, taps: int = 4, seed: int = 0) -> SelectiveMemory:
    """With weights that make the past count: at its start it adds next to nothing."""
    torch.manual_seed(seed)
    block = SelectiveMemory(channels=channels, width=width, states=states, taps=taps)
    with torch.no_grad():
        for parameter in (block.outwards.weight, block.select.weight, block.inwards.weight):
            parameter.normal_(std=0.4)
        block.norm.uniform_(0.5, 1.5)
        block.past_bias.normal_(std=0.3)
    return block


def by_step(block: SelectiveMemory, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    frames = []
    for frame in clip.unbind(1):
        answer, state = block.step(frame, state)
        frames.append(answer)
    return torch.stack(frames, 1), state


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13, 64])
def test_the_scan_is_the_recurrence_by_definition(length: int) -> None:
    decay, inflow, first = torch.rand(2, length, 4, 3), noise(2, length, 4, 3), noise(2, 4, 3, seed=2)
    held, expected = first, []
    for at in range(length):
        held = decay[:, at] * held + inflow[:, at]
        expected.append(held)
    assert (scan(decay, inflow, first) - torch.stack(expected, 1)).abs().max() < 1e-5


@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 4), (7, 1), (16, 2), (33, 4), (400, 3)])
def test_a_clip_at_once_is_frame_by_frame(length: int, taps: int) -> None:
    block = memory(taps=taps)
    clip = noise(2, length, 5, 3, 2)
    state = noise(2, block.state_channels, 3, 2, seed=3)
    with torch.no_grad():
        together, behind = block(clip, state)
        alone, last = by_step(block, clip, state)
    assert (together - alone).abs().max() < 1e-5
    assert (behind - last).abs().max() < 1e-5
    assert (together - clip).abs().mean() > 0.05, "a memory that adds nothing proves little"


def test_it_is_mamba_as_the_paper_has_it() -> None:
    """Algorithm 2 of arXiv:2312.00752 in float64 NumPy, written from the paper: one place, one frame after another."""
    block = memory().double()
    clip = noise(1, 9, 5, 1, 1).double()
    weights = {name: value.detach().numpy() for name, value in block.named_parameters()}

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    signals, held, expected = [np.zeros(6)] * 3, np.zeros((6, 3)), []
    for x in clip[0, :, :, 0, 0].numpy():
        normed = x / np.sqrt((x**2).mean() + 1e-6) * weights["norm"]
        signal, gate = np.split(weights["inwards.weight"][:, :, 0, 0] @ normed, 2)
        signals = [*signals, signal][-4:]
        u = silu(sum(weights["past"][:, k] * signals[k] for k in range(4)) + weights["past_bias"])
        low, b, c = np.split(weights["select.weight"][:, :, 0, 0] @ u, [1, 4])
        delta = np.log1p(np.exp(weights["pace.weight"][:, :, 0, 0] @ low + weights["pace.bias"]))
        a = -np.exp(weights["decay"])
        held = np.exp(delta[:, None] * a) * held + delta[:, None] * b[None] * u[:, None]
        y = held @ c + weights["skip"] * u
        expected.append(x + weights["outwards.weight"][:, :, 0, 0] @ (y * silu(gate)))
    found, _ = block(clip, block.start(clip))
    np.testing.assert_allclose(found[0, :, :, 0, 0].detach().numpy(), np.stack(expected), rtol=0, atol=1e-10)


def test_it_is_causal_and_each_place_is_its_own() -> None:
    block = memory()
    clip = noise(1, 8, 5, 4, 3)
    other = clip.clone()
    other[:, 5, :, 2, 1] += 1
    with torch.no_grad():
        before, _ = block(clip, block.start(clip))
        after, _ = block(other, block.start(clip))
    changed = (before - after).abs().amax((0, 2)) > 1e-7
    assert not changed[:5].any(), "the future says nothing of the past"
    assert changed[5:, 2, 1].all(), "what was seen is remembered"
    changed[:, 2, 1] = False
    assert not changed.any()


def test_what_was_seen_longer_ago_than_the_taps_still_counts() -> None:
    block = memory(taps=2)
    clip = noise(1, 40, 5, 1, 1)
    other = clip.clone()
    other[:, 0] += 1
    with torch.no_grad():
        difference = (block(clip, block.start(clip))[0] - block(other, block.start(clip))[0]).abs().amax((0, 2, 3, 4))
    assert difference[20] > 1e-5
    assert difference[39] < difference[2], "and fades"


def test_gradients_of_the_scan() -> None:
    decay = torch.rand(2, 5, 3, dtype=torch.float64).requires_grad_()
    inflow, first = noise(2, 5, 3).double().requires_grad_(), noise(2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(scan, (decay, inflow, first))


def test_gradients_of_the_memory() -> None:
    block = memory(channels=2, width=2, states=2, taps=2).double()
    clip = noise(1, 4, 2, 2, 1).double().requires_grad_()
    state = noise(1, block.state_channels, 2, 1).double().requires_grad_()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in block.named_parameters()), strict=True)

    def run(clip: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (clip, state))

    assert torch.autograd.gradcheck(run, (clip, state, *values))


def test_the_scan_learns_what_the_recurrence_would() -> None:
    block = memory()
    clip, state = noise(2, 12, 5, 2, 2), noise(2, block.state_channels, 2, 2)
    goal = noise(2, 12, 5, 2, 2, seed=5)
    gradients = []
    for run in (block, lambda clip, state: by_step(block, clip, state)):
        block.zero_grad()
        answer, behind = run(clip, state)
        ((answer - goal).square().mean() + behind.square().mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in block.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_thousand_frames_take_no_more_memory_than_a_hundred() -> None:
    """Each frame leaves one state of 0.5 MB behind: 900 of them, kept by mistake, would be 450 MB."""
    block = memory(channels=8, width=16, states=4, taps=3)
    frames = [noise(1, 8, 36, 36, seed=seed) for seed in range(4)]
    state, taken = block.start(frames[0]), {}
    with torch.no_grad():
        for at in range(1, 1001):
            answer, state = block.step(frames[at % 4], state)
            if at in (100, 1000):
                taken[at] = _resident()
    assert taken[1000] - taken[100] < 20 * 2**20
    assert state.shape == (1, 16 * (4 + 2), 36, 36)
    assert answer.isfinite().all()
    assert state.abs().max() < 100


def test_a_thousand_frames_at_once_are_the_same() -> None:
    block = memory()
    clip = noise(1, 1000, 5, 1, 2)
    with torch.no_grad():
        together, behind = block(clip, block.start(clip))
        alone, last = by_step(block, clip, block.start(clip))
    assert (together - alone).abs().max() < 1e-5
    assert (behind - last).abs().max() < 1e-5


def test_it_begins_with_a_memory_of_a_few_frames() -> None:
    block = SelectiveMemory(channels=4, width=64, states=2, taps=2)
    steps = torch.nn.functional.softplus(block.pace.bias)
    assert steps.min() >= STEP[0] * 0.99
    assert steps.max() <= STEP[1] * 1.01
    assert block.decay.exp()[0].tolist() == pytest.approx([1, 2])


def test_sizes_from_one_up() -> None:
    with pytest.raises(ValueError, match="taps"):
        SelectiveMemory(channels=4, width=4, states=2, taps=0)


def _resident() -> int:
    """Bytes of this process in memory."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("this system does not say what a process takes")
