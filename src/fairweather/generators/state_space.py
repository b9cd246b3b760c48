"""A memory over time for feature maps: a selective state space, as a parallel scan and as a recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = (2.0, 54.0)
"""Frames after which the quickest and the slowest state space of a head forget, to begin with (a share of 1/e is left);
those between lie evenly on a logarithmic scale. Gu & Dao (section 3.6) begin with up to 1,000, for longer sequences."""
LEAST = 1e-3
"""A frame counts at least so much, so that a mean has something to be divided by."""


def scan(decay: Tensor, inflow: Tensor, first: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inflow_t for all t at once: B x T x ... twice, and h_{-1}, B x ... -> B x T x ...

    An associative scan by doubling (Hillis & Steele, "Data Parallel Algorithms", CACM 1986): log2(T) rounds of whole
    tensors instead of T small steps. Autograd runs through it. `decay` may have sides of 1 where `inflow` has more.
    """
    inflow = torch.cat([inflow[:, :1] + decay[:, :1] * first[:, None], inflow[:, 1:]], 1)
    reach = 1
    while reach < inflow.shape[1]:
        # After this round h_t sums up what came in over the last 2 * reach steps.
        inflow = torch.cat([inflow[:, :reach], inflow[:, reach:] + decay[:, reach:] * inflow[:, :-reach]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return inflow


class SelectiveStateSpace(nn.Module):
    """A selective state space over time (Mamba: Gu & Dao, arXiv:2312.00752; heads with a step size each as in Mamba-2:
    Dao & Gu, arXiv:2405.21060, section 7), causal, a residual. Ours: it remembers means.

    `forward` takes a clip, B x T x C x h x w, and a state -> the same clip with what its past adds to each frame, and
    the state behind it; every place of h x w is a sequence of its own. `step` does the same with one frame,
    B x C x h x w, at a cost that does not depend on how many came before. Both give the same numbers.

    Inside: the signal u, a linear view of the features, in `heads` parts; from the features the step size D and the
    weight b of this frame, for each head; for each of a head's `states` reaches a state space
        s_t = d_t s_{t-1} + (1 - d_t) b_t [u_t, 1],  d_t = exp(-D_t / reach)
    (zero-order hold, Mamba's eq. 4). Its last number says how much the others have taken in (the normaliser of linear
    attention: Katharopoulos et al., ICML 2020, eq. 12), so that s divided by it is a weighted mean of this place's past
    and present, m. What is added is
        W sum_n c_n (m_n - u),
    where c, from the features and from how far each mean is off, is a softmax over the means and over the present alone
    (the selective C). So a frame that nothing came before, and a scene in which nothing changes, stay as they are,
    whatever was learned; and a new one already smooths: W is the identity, and every c and b the same.

    The state is one picture: B x state_channels x h x w, zeros before the first frame.
    """

    def __init__(self, *, channels: int, heads: int, states: int) -> None:
        super().__init__()
        if min(channels, heads, states) < 1 or channels % heads:
            raise ValueError(
                f"channels, heads and states are {channels}, {heads}, {states}: from 1 up, heads of whole channels"
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
        """Channels of the state: for each head and reach the sums of its channels, and their count."""
        return self.heads * self.states * (self.each + 1)

    def start(self, like: Tensor) -> Tensor:
        """The state before the first frame: zeros, for frames like this one, B x ... x h x w."""
        return like.new_zeros(like.shape[0], self.state_channels, *like.shape[-2:])

    def forward(self, clip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        length = clip.shape[:2]
        frames = clip.flatten(0, 1)
        signal, normed, decay, inflow = self._seen(frames)
        held = scan(torch.unflatten(decay, 0, length), torch.unflatten(inflow, 0, length), self._spread(state))
        answer = frames + self._added(held.flatten(0, 1), signal, normed)
        return torch.unflatten(answer, 0, length), held[:, -1].flatten(1, 3)

    def step(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        signal, normed, decay, inflow = self._seen(frame)
        held = decay * self._spread(state) + inflow
        return frame + self._added(held, signal, normed), held.flatten(1, 3)

    def _spread(self, state: Tensor) -> Tensor:
        """B x state_channels x h x w -> B x heads x states x (each + 1) x h x w."""
        return torch.unflatten(state, 1, (self.heads, self.states, self.each + 1))

    def _seen(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The signal, N x heads x 1 x each x h x w; normed features; the decay, N x heads x states x 1 x h x w; and
        what comes in, N x heads x states x (each + 1) x h x w."""
        signal = torch.unflatten(self.inwards(frames), 1, (self.heads, 1, self.each))
        normed = frames * torch.rsqrt(frames.square().mean(1, keepdim=True) + 1e-6) * self.norm[:, None, None]
        pace, weight = F.softplus(self.select(normed)).chunk(2, 1)
        decay = torch.exp(-pace[:, :, None, None] * torch.exp(-self.reach)[:, :, None, None, None])
        counted = torch.cat([signal, torch.ones_like(signal[:, :, :, :1])], 3)
        return signal, normed, decay, (1 - decay) * ((weight + LEAST)[:, :, None, None] * counted)

    def _added(self, held: Tensor, signal: Tensor, normed: Tensor) -> Tensor:
        sums, count = torch.split(held, [self.each, 1], 3)
        off = sums / count - signal
        far = torch.sqrt(off.square().mean(3) + 1e-6).flatten(1, 2)
        far = far * torch.rsqrt(signal.square().mean((1, 2, 3)) + 1e-6)[:, None]
        chosen = torch.unflatten(self.choose(torch.cat([normed, far], 1)), 1, (self.heads, self.states + 1))
        share = torch.softmax(chosen, 2)[:, :, : self.states, None]
        added: Tensor = self.outwards((share * off).sum(2).flatten(1, 2))
        return added
