"""The state space: scan and recurrence are equal, gradients are right, memory does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.errors import BadSettings
from fairweather.generators.state_space import LEAST, REACH, SelectiveStateSpace, scan


def block(*, channels: int = 6, heads: int = 2, states: int = 3) -> SelectiveStateSpace:
    """With weights as if trained."""
    torch.manual_seed(0)
    made = SelectiveStateSpace(channels=channels, heads=heads, states=states)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return made


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state_after_noise(space: SelectiveStateSpace, *size: int) -> Tensor:
    """2 x state_channels x h x w."""
    with torch.no_grad():
        frames = noise(2, 5, space.norm.numel(), *size, seed=7).to(space.norm.dtype)
        return space(frames, space.start(frames))[1]


def by_steps(space: SelectiveStateSpace, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    frames = []
    for frame in clip.unbind(1):
        frame, state = space.step(frame, state)
        frames.append(frame)
    return torch.stack(frames, 1), state


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13, 64])
def test_the_scan_is_the_recurrence(length: int) -> None:
    decay, inflow, first = torch.rand(2, length, 4, 3), noise(2, length, 4, 3), noise(2, 4, 3, seed=2)
    state, expected = first, []
    for at in range(length):
        state = decay[:, at] * state + inflow[:, at]
        expected.append(state)
    assert (scan(decay, inflow, first) - torch.stack(expected, 1)).abs().max() < 1e-5
    narrow = scan(decay[..., :1], inflow, first)
    assert torch.equal(narrow, scan(decay[..., :1].expand_as(decay), inflow, first)), "decay is broadcast"


@pytest.mark.parametrize(("length", "heads"), [(1, 2), (7, 1), (33, 3), (1000, 2)])
def test_a_clip_is_its_frames_one_by_one(length: int, heads: int) -> None:
    space, clip = block(heads=heads), noise(2, length, 6, 3, 2)
    state = state_after_noise(space, 3, 2)
    with torch.no_grad():
        together, after = space(clip, state)
        alone, last = by_steps(space, clip, state)
    assert (together - alone).abs().max() < 1e-5
    assert (after - last).abs().max() < 1e-5
    assert (together - clip).abs().mean() > 0.05


def test_it_is_the_formula_of_its_docstring() -> None:
    """In float64 NumPy, for one cell, with every sum written out."""
    space = block().double()
    clip = noise(1, 9, 6, 1, 1).double()
    weights = {name: value.detach().numpy() for name, value in space.named_parameters()}
    matrix = {name: weights[f"{name}.weight"][:, :, 0, 0] for name in ("inwards", "outwards", "select", "choose")}
    heads, states, each = 2, 3, 3
    past: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for at, x in enumerate(clip[0, :, :, 0, 0].numpy()):
        normed = x / np.sqrt((x**2).mean() + 1e-6) * weights["norm"]
        u = (matrix["inwards"] @ x).reshape(heads, each)
        pace, weight = np.split(np.log1p(np.exp(matrix["select"] @ normed + weights["select.bias"])), 2)
        past.append((u, pace, weight + LEAST))
        means = np.zeros((heads, states, each))
        for head in range(heads):
            for state in range(states):
                total = count = 0.0
                for then in range(at + 1):
                    since = sum(past[later][1][head] for later in range(then + 1, at + 1))
                    reach = np.exp(weights["reach"][head, state])
                    left = np.exp(-since / reach) * (1 - np.exp(-past[then][1][head] / reach)) * past[then][2][head]
                    total, count = total + left * past[then][0][head], count + left
                means[head, state] = total / count
        off = means - u[:, None]
        far = np.sqrt((off**2).mean(2) + 1e-6).ravel() / np.sqrt((u**2).mean() + 1e-6)
        logits = (matrix["choose"] @ np.concatenate([normed, far]) + weights["choose.bias"]).reshape(heads, states + 1)
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = x + matrix["outwards"] @ (share[:, :states, None] * off).sum(1).ravel()
        found = space(clip, space.start(clip))[0][0, at, :, 0, 0].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_static_scene_is_unchanged() -> None:
    space, still = block(), noise(1, 1, 6, 3, 2).expand(1, 12, 6, 3, 2)
    with torch.no_grad():
        assert (space(still, space.start(still))[0] - still).abs().max() < 1e-5


def test_a_new_block_smooths() -> None:
    space, clip = SelectiveStateSpace(channels=6, heads=2, states=4), 3 + 0.3 * noise(1, 60, 6, 8, 8)
    with torch.no_grad():
        smoothed, state = space(clip, space.start(clip))
        assert (smoothed[:, 30:] - 3).std() < 0.5 * (clip[:, 30:] - 3).std()
        later = space(clip + 2, state)[0]
    assert (later[:, 0] - 3.4).abs().mean() < 0.3, "a fifth of a new value at once"
    assert (later[:, -1] - 5).abs().mean() < 0.7
    assert space.reach.exp()[1, [0, -1]].tolist() == pytest.approx(list(REACH))


def test_cells_are_independent_and_causal_with_long_memory() -> None:
    space, clip = block(), noise(1, 40, 6, 4, 3)
    other = clip.clone()
    other[:, 5, :, 2, 1] += 1
    with torch.no_grad():
        difference = space(clip, space.start(clip))[0] - space(other, space.start(clip))[0]
    changed = difference.abs().amax((0, 2)) > 1e-7
    assert not changed[:5].any()
    assert changed[5:30, 2, 1].all()
    assert difference[:, 25].abs().max() > 1e-5
    changed[:, 2, 1] = False
    assert not changed.any()


def test_gradients() -> None:
    space = block(channels=4, heads=2, states=2).double()
    clip = noise(1, 4, 4, 2, 1).double().requires_grad_()
    state = state_after_noise(space, 2, 1)[:1].requires_grad_()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in space.named_parameters()), strict=True)

    def run(clip: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(space, dict(zip(names, values, strict=True)), (clip, state))

    assert torch.autograd.gradcheck(run, (clip, state, *values), fast_mode=True)


def test_steps_keep_no_history() -> None:
    """300 states of 0.4 MB, kept by mistake, would be 120 MB."""
    space = block(channels=16, heads=4, states=4)
    frames = [noise(1, 16, 36, 36, seed=seed) for seed in range(4)]
    state, resident = space.start(frames[0]), {}
    with torch.no_grad():
        for at in range(1, 401):
            output, state = space.step(frames[at % 4], state)
            if at in (100, 400):
                resident[at] = _resident()
    assert resident[400] - resident[100] < 20 * 2**20
    assert state.shape == (1, 4 * 4 * (4 + 1), 36, 36)
    assert output.isfinite().all()
    assert state.abs().max() < 50


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_divide_channels(heads: int) -> None:
    with pytest.raises(BadSettings, match="heads"):
        SelectiveStateSpace(channels=4, heads=heads, states=2)


def _resident() -> int:
    """Resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("this system has no /proc/self/statm")
