"""Our generator for video: `scattering_maps` with a memory, so that what it says of one frame rests on those before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.generators.scattering_maps import ScatteringMapsNetwork, apply_maps, reduced_size, resize
from fairweather.generators.state_space import SelectiveStateSpace

STRIDE = 4
"""Pixels of the reduced frame, along each side, that one place of the state stands for."""


class RecurrentMaps(nn.Module):
    """Ours: `scattering_maps` with a selective state space over time (Mamba: Gu & Dao, arXiv:2312.00752, 2023).

    N x 3 x H x W in [0, 1] -> the same, any H and W, each a clip of one frame. 2,034,178 parameters.

    The features that `scattering_maps` reads its maps from pass through `SelectiveMemory`: at each place of the reduced frame the
    past of that place moves them. What it keeps between two frames is one picture of `state_channels` at a
    quarter of the reduced frame's sides, so that a frame costs the same whether it is the tenth or the ten thousandth.

    `clip` takes whole clips, by the parallel scan or, along the camera's motion, frame by frame. `maps_module` is what
    is exported: a reduced frame and the state before it -> its maps and the state behind it; without a state it starts
    from none. Batch norm keeps the statistics that it began with: the frames of a few clips are too much alike to
    measure others.
    `grow` begins with the weights of a `scattering_maps`. Photos, and first frames, are that `scattering_maps`'s for as long as nothing but
    the memory learns; those behind a first frame are smoothed over time from the beginning.
    """

    output: ClassVar[str] = "maps"
    multiple_of: ClassVar[int] = 1
    receptive_field: ClassVar[int | None] = None
    adjustable: ClassVar[tuple[str, ...]] = ("size", "radius", "eps")
    grown_from: ClassVar[tuple[str, ...]] = ("scattering_maps",)

    def __init__(
        self,
        *,
        size: int = 192,
        widths: tuple[int, int, int, int] = (40, 80, 128, 160),
        blocks: int = 1,
        radius: int = 2,
        eps: float = 2e-4,
        offset: float = 0.25,
        heads: int = 8,
        states: int = 4,
    ) -> None:
        super().__init__()
        self.size, self.radius, self.eps = size, radius, eps
        self.maps_module = RecurrentMapsNetwork(
            widths=tuple(widths), blocks=blocks, offset=offset, heads=heads, states=states
        )

    def forward(self, photo: Tensor) -> Tensor:
        return self.clip(photo[:, None])[:, 0]

    def clip(self, frames: Tensor, state: Tensor | None = None, moves: Tensor | None = None) -> Tensor:
        """Whole clips, B x T x 3 x H x W in [0, 1] -> the same. `state`: what came before; None is nothing. `moves`: as
        `SequenceMaps.clip` takes them."""
        count, length, _, height, width = frames.shape
        flat = frames.flatten(0, 1)
        reduced = resize(flat, *reduced_size(height, width, self.size, self.maps_module.multiple_of))
        maps, _ = self.maps_module.clip(torch.unflatten(reduced, 0, (count, length)), state, moves)
        restored = apply_maps(flat, reduced, maps.flatten(0, 1), self.radius, self.eps)
        return torch.unflatten(restored, 0, (count, length))

    def grow(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a `recurrent_maps`, or those of a `scattering_maps`, whose photos it then gives. Raises RuntimeError, as
        load_state_dict does, where they are neither's."""
        kept = {key: value for key, value in weights.items() if not key.endswith(".num_batches_tracked")}
        if any(key.startswith("maps_module.memory.") for key in kept):
            self.load_state_dict(kept)
            return
        own = {key: value for key, value in self.state_dict().items() if key.startswith("maps_module.memory.")}
        self.load_state_dict({**kept, **own})


class RecurrentMapsNetwork(ScatteringMapsNetwork):
    """The network itself: a reduced frame, N x 3 x h x w with sides that are multiples of 32, and the state before it,
    N x state_channels x h/4 x w/4 -> its maps, N x 7 x h/2 x w/2 of t, A (3), O (3), and the state behind it."""

    state_stride: ClassVar[int] = STRIDE

    def __init__(self, *, widths: tuple[int, ...], blocks: int, offset: float, heads: int, states: int) -> None:
        super().__init__(widths=widths, blocks=blocks, offset=offset, mirror=False)
        _keep_statistics(self)
        self.memory = SelectiveStateSpace(channels=widths[0], heads=heads, states=states)

    @property
    def state_channels(self) -> int:
        """Channels of the state."""
        return self.memory.state_channels

    def forward(self, reduced: Tensor, state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """With a state: the maps and the next state. Without one: the maps of a picture that nothing came before."""
        features = self.features(reduced)
        remembered, after = self.memory.step(features, self.memory.start(features) if state is None else state)
        maps = self.heads(remembered)
        return maps if state is None else (maps, after)

    def clip(self, reduced: Tensor, state: Tensor | None = None, moves: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """B x T x 3 x h x w -> the maps of all frames, B x T x 7 x h/2 x w/2, and the state behind the last.

        By the parallel scan, each place's past at that place; with `moves`, B x T x 2 x 3, by the recurrence, the state
        carried along before each frame: its place in this frame -> its place in the one before, from -1 to 1 over the
        frame's edges. What comes in from outside has no past.
        """
        length = reduced.shape[:2]
        features = torch.unflatten(self.features(reduced.flatten(0, 1)), 0, length)
        state = self.memory.start(features) if state is None else state
        if moves is None:
            remembered, state = self.memory(features, state)
        else:
            answers = []
            for at, frame in enumerate(features.unbind(1)):
                answer, state = self.memory.step(frame, carried(state, moves[:, at]))
                answers.append(answer)
            remembered = torch.stack(answers, 1)
        return torch.unflatten(self.heads(remembered.flatten(0, 1)), 0, length), state


def carried(state: Tensor, move: Tensor) -> Tensor:
    """A state, B x C x h x w, where it is after a motion, B x 2 x 3 (see `SequenceMaps.clip`)."""
    grid = F.affine_grid(move, list(state.shape), align_corners=False)
    return F.grid_sample(state, grid.to(state), mode="bilinear", padding_mode="zeros", align_corners=False)


class KeptNorm(nn.Module):
    """Batch norm with the statistics that it was given, in training as well; scale and shift are learned."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _keep_statistics(module: nn.Module) -> None:
    """Replaces every batch norm inside."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, KeptNorm(child.num_features, child.eps))
        else:
            _keep_statistics(child)
