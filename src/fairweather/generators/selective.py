"""A memory over time for feature maps: the selective state space of Mamba, as a parallel scan and as a recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = (0.02, 0.5)
"""Range in which the first step sizes lie, log-uniformly over channels: a memory of 2 to 50 frames. Gu & Dao (section
3.6) begin with 0.001 to 0.1, for sequences of thousands; in a training clip of 8 frames that would hold next to
nothing."""


def scan(decay: Tensor, inflow: Tensor, first: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inflow_t for all t at once: B x T x ... twice, and h_{-1}, B x ... -> B x T x ...

    An associative scan by doubling (Hillis & Steele, "Data Parallel Algorithms", CACM 1986): log2(T) rounds of whole
    tensors instead of T small steps. Autograd runs through it.
    """
    inflow = torch.cat([inflow[:, :1] + decay[:, :1] * first[:, None], inflow[:, 1:]], 1)
    reach = 1
    while reach < inflow.shape[1]:
        # After this round h_t sums up what came in over the last 2 * reach steps.
        inflow = torch.cat([inflow[:, :reach], inflow[:, reach:] + decay[:, reach:] * inflow[:, :-reach]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return inflow


class SelectiveMemory(nn.Module):
    """Mamba's block over time (Gu & Dao, "Mamba", arXiv:2312.00752, algorithm 2 and figure 3), causal, a residual.

    `forward` takes a clip, B x T x C x h x w, and a state -> the same clip with what its past adds to each frame, and
    the state behind it; every place of h x w is a sequence of its own. `step` does the same with one frame,
    B x C x h x w, at a cost that does not depend on how many came before. Both give the same numbers.

    Inside: RMS norm over channels; one projection to a signal and a gate of `width` channels; a causal convolution over
    `taps` frames; from what comes out of it the step size, B and C of a state space with `states` numbers a channel,
    h_t = exp(D A) h_{t-1} + D B u_t, y_t = C h_t + S u_t; y times the gate's SiLU, projected back.

    The state is one picture: B x state_channels x h x w, zeros before the first frame. It holds the numbers of the
    state space, then the signal of the last taps - 1 frames.
    """

    def __init__(self, *, channels: int, width: int, states: int, taps: int) -> None:
        super().__init__()
        if min(channels, width, states, taps) < 1:
            raise ValueError(f"channels, width, states and taps are {channels}, {width}, {states}, {taps}: from 1 up")
        self.width, self.states, self.taps = width, states, taps
        self.rank = max(1, math.ceil(width / 16))
        self.norm = nn.Parameter(torch.ones(channels))
        self.inwards = nn.Conv2d(channels, 2 * width, 1, bias=False)
        self.past = nn.Parameter(torch.empty(width, taps).uniform_(-(taps**-0.5), taps**-0.5))
        self.past_bias = nn.Parameter(torch.zeros(width))
        self.select = nn.Conv2d(width, self.rank + 2 * states, 1, bias=False)
        self.pace = nn.Conv2d(self.rank, width, 1)
        self.decay = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))
        self.outwards = nn.Conv2d(width, channels, 1, bias=False)
        assert self.pace.bias is not None
        nn.init.uniform_(self.pace.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():  # softplus(bias) is the first step size
            steps = torch.empty(width).uniform_(math.log(STEP[0]), math.log(STEP[1])).exp()
            self.pace.bias.copy_(steps.expm1().log())
        # What the past adds is little at first.
        nn.init.normal_(self.outwards.weight, std=1e-3)

    @property
    def state_channels(self) -> int:
        """Channels of the state: `states` numbers and `taps - 1` signals for each of `width` channels."""
        return self.width * (self.states + self.taps - 1)

    def start(self, like: Tensor) -> Tensor:
        """The state before the first frame: zeros, for frames like this one, B x ... x h x w."""
        return like.new_zeros(like.shape[0], self.state_channels, *like.shape[-2:])

    def forward(self, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        count, length = clip.shape[:2]
        held, recent = self._parts(state)
        signal, gate = self._projected(clip.flatten(0, 1))
        signal = torch.unflatten(signal, 0, (count, length))
        line = torch.cat([recent.transpose(1, 2), signal], 1)  # B x (taps - 1 + T) x width x h x w
        used = self._mixed([line[:, at : at + length].flatten(0, 1) for at in range(self.taps)])
        decay, inflow, outflow = self._selected(used)
        decay, inflow = (torch.unflatten(one, 0, (count, length)) for one in (decay, inflow))
        history = scan(decay, inflow, held)
        added = self._answer(history.flatten(0, 1), outflow, used, gate)
        return clip + torch.unflatten(added, 0, (count, length)), self._joined(
            history[:, -1], line[:, length:].transpose(1, 2)
        )

    def step(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        held, recent = self._parts(state)
        signal, gate = self._projected(frame)
        line = torch.cat([recent, signal[:, :, None]], 2)  # B x width x taps x h x w
        used = self._mixed(list(line.unbind(2)))
        decay, inflow, outflow = self._selected(used)
        held = decay * held + inflow
        return frame + self._answer(held, outflow, used, gate), self._joined(held, line[:, :, 1:])

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state space's numbers, B x width x states x h x w, and the last signals, B x width x (taps - 1) x ..."""
        held, recent = torch.split(state, [self.width * self.states, self.width * (self.taps - 1)], 1)
        parts = torch.unflatten(recent, 1, (self.width, self.taps - 1))
        return torch.unflatten(held, 1, (self.width, self.states)), parts

    def _joined(self, held: Tensor, recent: Tensor) -> Tensor:
        return torch.cat([held.flatten(1, 2), recent.flatten(1, 2)], 1)

    def _projected(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        normed = frames * torch.rsqrt(frames.square().mean(1, keepdim=True) + 1e-6) * _over_places(self.norm)
        signal, gate = self.inwards(normed).chunk(2, 1)
        return signal, gate

    def _mixed(self, window: Sequence[Tensor]) -> Tensor:
        """The causal convolution: signals of the last `taps` frames, N x width x h x w, oldest first -> the same."""
        weighed = [signal * _over_places(self.past[:, at]) for at, signal in enumerate(window)]
        return F.silu(sum(weighed, start=_over_places(self.past_bias)))

    def _selected(self, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """exp(D A) and D B u, N x width x states x h x w each, and C, N x 1 x states x h x w."""
        pace, into, out = torch.split(self.select(used), [self.rank, self.states, self.states], 1)
        step = F.softplus(self.pace(pace))
        decay = torch.exp(step[:, :, None] * -torch.exp(self.decay)[:, :, None, None])
        return decay, (step * used)[:, :, None] * into[:, None], out[:, None]

    def _answer(self, held: Tensor, outflow: Tensor, used: Tensor, gate: Tensor) -> Tensor:
        answer = (held * outflow).sum(2) + _over_places(self.skip) * used
        added: Tensor = self.outwards(answer * F.silu(gate))
        return added


def _over_places(values: Tensor) -> Tensor:
    """C -> C x 1 x 1."""
    return values[:, None, None]
