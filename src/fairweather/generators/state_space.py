"""A selective state space over time for feature maps, as a parallel scan and as a recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings

REACH = (2.0, 54.0)
"""Shortest and longest initial time constant of a head's state spaces, in frames; those between are evenly spaced on a
logarithmic scale. Gu & Dao (section 3.6) start with up to 1,000, for longer sequences."""
LEAST = 1e-3
"""Minimum weight of a frame, which avoids a division by zero."""


def scan(decay: Tensor, inflow: Tensor, first: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inflow_t for all t, by an associative scan in log2(T) rounds.

    Hillis & Steele, "Data Parallel Algorithms", CACM 1986.

    Args:
        decay: B x T x ..., broadcastable to `inflow`.
        inflow: B x T x ...
        first: h_{-1}, B x ...

    Returns:
        h, B x T x ...
    """
    inflow = torch.cat([inflow[:, :1] + decay[:, :1] * first[:, None], inflow[:, 1:]], 1)
    reach = 1
    while reach < inflow.shape[1]:
        # After this round h_t includes the inflow of the last 2 * reach steps.
        inflow = torch.cat([inflow[:, :reach], inflow[:, reach:] + decay[:, reach:] * inflow[:, :-reach]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return inflow


class SelectiveStateSpace(nn.Module):
    """A causal, residual selective state space over time (Mamba: Gu & Dao, arXiv:2312.00752; step sizes per head as in
    Mamba-2: Dao & Gu, arXiv:2405.21060, section 7). Our addition: its states are weighted means.

    `forward` runs a clip, B x T x C x h x w, with every cell of h x w as a sequence; `step` runs one frame, with the
    same result. The state is B x state_channels x h x w, zeros before the first frame.

    The signal u is a linear projection of the features in `heads` parts. Step size D and weight b of a frame are
    computed from its features for each head. Each of a head's `states` time constants has a state space
        s_t = d_t s_{t-1} + (1 - d_t) b_t [u_t, 1],  d_t = exp(-D_t / reach)
    (zero-order hold, Mamba's eq. 4). Its last component accumulates the weights (the normalizer of linear attention:
    Katharopoulos et al., ICML 2020, eq. 12), so that the others divided by it are a weighted mean m of past and
    present. The block adds
        W sum_n c_n (m_n - u),
    with c a softmax, over the means and the present, computed from the features and the distances |m_n - u| (the
    selective C). First frames and static scenes are therefore unchanged, whatever the weights. At initialization W is
    the identity and all c and b are equal, so that the block smooths.
    """

    def __init__(self, *, channels: int, heads: int, states: int) -> None:
        super().__init__()
        if min(channels, heads, states) < 1 or channels % heads:
            raise BadSettings(
                f"channels, heads and states must be at least 1, and channels a multiple of heads: got {channels}, "
                f"{heads}, {states}"
            )
        self.heads, self.states, self.each = heads, states, channels // heads
        self.inwards = nn.Conv2d(channels, channels, 1, bias=False)
        self.outwards = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.Parameter(torch.ones(channels))
        self.select = nn.Conv2d(channels, 2 * heads, 1)
        self.choose = nn.Conv2d(channels + heads * states, heads * (states + 1), 1)
        self.reach = nn.Parameter(torch.empty(heads, states))
        for layer in (self.inwards, self.outwards):
            nn.init.dirac_(layer.weight)
        for layer in (self.select, self.choose):
            nn.init.normal_(layer.weight, std=1e-2)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            first, last = (torch.tensor(frames).log() for frames in REACH)
            self.reach.copy_(torch.lerp(first, last, torch.linspace(0, 1, states)).expand_as(self.reach))
            assert self.select.bias is not None
            self.select.bias.fill_(1.0).expm1_().log_()  # softplus of it is 1

    @property
    def state_channels(self) -> int:
        """Channels of the state: for each head and time constant, sums of the head's channels and of the weights."""
        return self.heads * self.states * (self.each + 1)

    def start(self, like: Tensor) -> Tensor:
        """The state before the first frame, zeros, for frames of the shape of `like`, B x ... x h x w."""
        return like.new_zeros(like.shape[0], self.state_channels, *like.shape[-2:])

    def forward(self, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A clip, B x T x C x h x w, and the state before it -> the residual clip and the state after it."""
        length = clip.shape[:2]
        frames = clip.flatten(0, 1)
        signal, normed, decay, inflow = self._project(frames)
        states = scan(torch.unflatten(decay, 0, length), torch.unflatten(inflow, 0, length), self._split(state))
        changed = frames + self._change(states.flatten(0, 1), signal, normed)
        return torch.unflatten(changed, 0, length), states[:, -1].flatten(1, 3)

    def step(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A frame, B x C x h x w, and the state before it -> the residual frame and the next state."""
        signal, normed, decay, inflow = self._project(frame)
        states = decay * self._split(state) + inflow
        return frame + self._change(states, signal, normed), states.flatten(1, 3)

    def _split(self, state: Tensor) -> Tensor:
        """B x state_channels x h x w -> B x heads x states x (each + 1) x h x w."""
        return torch.unflatten(state, 1, (self.heads, self.states, self.each + 1))

    def _project(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The signal, N x heads x 1 x each x h x w; normed features; the decay, N x heads x states x 1 x h x w; and
        the inflow, N x heads x states x (each + 1) x h x w."""
        signal = torch.unflatten(self.inwards(frames), 1, (self.heads, 1, self.each))
        normed = frames * torch.rsqrt(frames.square().mean(1, keepdim=True) + 1e-6) * self.norm[:, None, None]
        pace, weight = F.softplus(self.select(normed)).chunk(2, 1)
        decay = torch.exp(-pace[:, :, None, None] * torch.exp(-self.reach)[:, :, None, None, None])
        counted = torch.cat([signal, torch.ones_like(signal[:, :, :, :1])], 3)
        return signal, normed, decay, (1 - decay) * ((weight + LEAST)[:, :, None, None] * counted)

    def _change(self, states: Tensor, signal: Tensor, normed: Tensor) -> Tensor:
        sums, count = torch.split(states, [self.each, 1], 3)
        off = sums / count - signal
        far = torch.sqrt(off.square().mean(3) + 1e-6).flatten(1, 2)
        far = far * torch.rsqrt(signal.square().mean((1, 2, 3)) + 1e-6)[:, None]
        chosen = torch.unflatten(self.choose(torch.cat([normed, far], 1)), 1, (self.heads, self.states + 1))
        share = torch.softmax(chosen, 2)[:, :, : self.states, None]
        change: Tensor = self.outwards((share * off).sum(2).flatten(1, 2))
        return change
