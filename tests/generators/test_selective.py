"""The memory over time: its scan is its recurrence, its gradients are right, and it does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.generators.state_space import LEAST, REACH, SelectiveStateSpace, scan


def memory(*, channels: int = 6, heads: int = 2, states: int = 3, seed: int = 0) -> SelectiveStateSpace:
    """With weights as if it had learned."""
    torch.manual_seed(seed)
    block = SelectiveStateSpace(channels=channels, heads=heads, states=states)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return block


def memory_of(block: SelectiveStateSpace, *size: int) -> Tensor:
    """A state as some frames of noise leave it behind, 2 x state_channels x h x w."""
    with torch.no_grad():
        frames = noise(2, 5, block.norm.numel(), *size, seed=7).to(block.norm.dtype)
        return block(frames, block.start(frames))[1]


def by_step(block: SelectiveStateSpace, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
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
    narrow = scan(decay[..., :1], inflow, first)
    assert torch.equal(narrow, scan(decay[..., :1].expand_as(decay), inflow, first))


@pytest.mark.parametrize(("length", "heads"), [(1, 2), (2, 6), (7, 1), (16, 2), (33, 3), (400, 2)])
def test_a_clip_at_once_is_frame_by_frame(length: int, heads: int) -> None:
    block = memory(heads=heads)
    clip = noise(2, length, 6, 3, 2)
    state = memory_of(block, 3, 2)
    with torch.no_grad():
        together, behind = block(clip, state)
        alone, last = by_step(block, clip, state)
    assert (together - alone).abs().max() < 1e-5
    assert (behind - last).abs().max() < 1e-5
    assert (together - clip).abs().mean() > 0.05, "a memory that adds nothing proves little"


def test_it_is_what_its_description_says() -> None:
    """In float64 NumPy, written from the docstring: one place, one frame after another, every sum written out."""
    block = memory().double()
    clip = noise(1, 9, 6, 1, 1).double()
    weights = {name: value.detach().numpy() for name, value in block.named_parameters()}
    matrix = {name: weights[f"{name}.weight"][:, :, 0, 0] for name in ("inwards", "outwards", "select", "choose")}
    heads, states, each = 2, 3, 3
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for at, x in enumerate(clip[0, :, :, 0, 0].numpy()):
        normed = x / np.sqrt((x**2).mean() + 1e-6) * weights["norm"]
        u = (matrix["inwards"] @ x).reshape(heads, each)
        pace, weight = np.split(np.log1p(np.exp(matrix["select"] @ normed + weights["select.bias"])), 2)
        seen.append((u, pace, weight + LEAST))
        means = np.zeros((heads, states, each))
        for head in range(heads):
            for state in range(states):
                total = count = 0.0
                for then in range(at + 1):  # what is left of it: the product of all decays since
                    since = sum(seen[later][1][head] for later in range(then + 1, at + 1))
                    reach = np.exp(weights["reach"][head, state])
                    left = np.exp(-since / reach) * (1 - np.exp(-seen[then][1][head] / reach)) * seen[then][2][head]
                    total, count = total + left * seen[then][0][head], count + left
                means[head, state] = total / count
        off = means - u[:, None]
        far = np.sqrt((off**2).mean(2) + 1e-6).ravel() / np.sqrt((u**2).mean() + 1e-6)
        logits = (matrix["choose"] @ np.concatenate([normed, far]) + weights["choose.bias"]).reshape(heads, states + 1)
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = x + matrix["outwards"] @ (share[:, :states, None] * off).sum(1).ravel()
        found = block(clip, block.start(clip))[0][0, at, :, 0, 0].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_first_frame_and_a_scene_that_stays_are_left_as_they_are() -> None:
    block = memory()
    still = noise(1, 1, 6, 3, 2).expand(1, 12, 6, 3, 2)
    with torch.no_grad():
        assert (block(still, block.start(still))[0] - still).abs().max() < 1e-5


def test_a_new_one_smooths() -> None:
    """Noise about a value that stays becomes less, more so as frames go by; a new value is taken in."""
    block = SelectiveStateSpace(channels=6, heads=2, states=4)
    clip = 3 + 0.3 * noise(1, 60, 6, 8, 8)
    with torch.no_grad():
        answer, state = block(clip, block.start(clip))
        assert (answer[:, 30:] - 3).std() < 0.5 * (clip[:, 30:] - 3).std()
        later = block(clip + 2, state)[0]
    assert (later[:, 0] - 3.4).abs().mean() < 0.3, "a fifth of what it becomes at once"
    assert (later[:, -1] - 5).abs().mean() < 0.7


def test_it_is_causal_and_each_place_is_its_own() -> None:
    block = memory()
    clip = noise(1, 8, 6, 4, 3)
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


def test_what_was_seen_long_ago_still_counts() -> None:
    block = memory()
    clip = noise(1, 40, 6, 1, 1)
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
    block = memory(channels=4, heads=2, states=2).double()
    clip = noise(1, 4, 4, 2, 1).double().requires_grad_()
    state = memory_of(block, 2, 1)[:1].requires_grad_()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in block.named_parameters()), strict=True)

    def run(clip: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (clip, state))

    assert torch.autograd.gradcheck(run, (clip, state, *values))


def test_the_scan_learns_what_the_recurrence_would() -> None:
    block = memory()
    clip, state = noise(2, 12, 6, 2, 2), memory_of(block, 2, 2)
    goal = noise(2, 12, 6, 2, 2, seed=5)
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
    """Each frame leaves one state of 0.4 MB behind: 900 of them, kept by mistake, would be 370 MB."""
    block = memory(channels=16, heads=4, states=4)
    frames = [noise(1, 16, 36, 36, seed=seed) for seed in range(4)]
    state, taken = block.start(frames[0]), {}
    with torch.no_grad():
        for at in range(1, 1001):
            answer, state = block.step(frames[at % 4], state)
            if at in (100, 1000):
                taken[at] = _resident()
    assert taken[1000] - taken[100] < 20 * 2**20
    assert state.shape == (1, 4 * 4 * (4 + 1), 36, 36)
    assert answer.isfinite().all()
    assert state.abs().max() < 50


def test_a_thousand_frames_at_once_are_the_same() -> None:
    block = memory()
    clip = noise(1, 1000, 6, 1, 2)
    with torch.no_grad():
        together, behind = block(clip, block.start(clip))
        alone, last = by_step(block, clip, block.start(clip))
    assert (together - alone).abs().max() < 1e-5
    assert (behind - last).abs().max() < 1e-5


def test_it_begins_with_reaches_of_a_few_frames_to_seconds() -> None:
    block = SelectiveStateSpace(channels=4, heads=2, states=3)
    assert block.reach.exp()[1].tolist() == pytest.approx([REACH[0], (REACH[0] * REACH[1]) ** 0.5, REACH[1]])
    assert torch.nn.functional.softplus(block.select.bias).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_of_whole_channels(heads: int) -> None:
    with pytest.raises(ValueError, match="heads"):
        SelectiveStateSpace(channels=4, heads=heads, states=2)


def _resident() -> int:
    """Bytes of this process in memory."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("this system does not say what a process takes")
