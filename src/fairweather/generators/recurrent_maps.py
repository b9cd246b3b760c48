"""RecurrentMaps: ScatteringMaps for video, with a state space over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.generators.scattering_maps import ScatteringMapsNetwork, apply_maps, reduced_size, resize
from fairweather.generators.state_space import SelectiveStateSpace


class RecurrentMaps(nn.Module):
    """Our design: `scattering_maps` with a selective state space over time (Mamba: Gu & Dao, arXiv:2312.00752, 2023).

    N x 3 x H x W in [0, 1] -> the same, any H and W, each a clip of one frame. 2,034,178 parameters.

    The decoder's features of `scattering_maps` pass through `SelectiveStateSpace`, which relates each cell to its past.
    The state between two frames is one picture of `state_channels` at a quarter of the reduced frame's sides, so that
    the cost of a frame does not depend on its number.

    `clip` runs whole clips. `maps_module` is the part that is exported: a reduced frame and the state before it -> its
    maps and the next state. Batch norm keeps its initial statistics in training: the frames of a few clips are too
    similar to estimate others.

    The arguments size, widths, blocks, radius, eps and offset are those of `ScatteringMaps`.

    Args:
        heads: heads of the state space; divides the first width.
        states: time constants per head.
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
        widths: Sequence[int] = (40, 80, 128, 160),
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
            widths=widths, blocks=blocks, offset=offset, heads=heads, states=states
        )

    def forward(self, photo: Tensor) -> Tensor:
        return self.clip(photo[:, None])[:, 0]

    def clip(self, frames: Tensor, state: Tensor | None = None, moves: Tensor | None = None) -> Tensor:
        """Restore whole clips, B x T x 3 x H x W in [0, 1]; `state` and `moves` as in `RecurrentMapsNetwork.clip`."""
        count, length, _, height, width = frames.shape
        flat = frames.flatten(0, 1)
        reduced = resize(flat, *reduced_size(height, width, self.size, self.maps_module.multiple_of))
        maps, _ = self.maps_module.clip(torch.unflatten(reduced, 0, (count, length)), state, moves)
        restored = apply_maps(flat, reduced, maps.flatten(0, 1), self.radius, self.eps)
        return torch.unflatten(restored, 0, (count, length))

    def grow(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a `recurrent_maps` or a `scattering_maps`.

        With the latter, outputs for photos and first frames are the same until other weights than the state space's are
        trained. Raises RuntimeError if the weights do not fit.
        """
        kept = {key: value for key, value in weights.items() if not key.endswith(".num_batches_tracked")}
        if any(key.startswith("maps_module.memory.") for key in kept):
            self.load_state_dict(kept)
            return
        own = {key: value for key, value in self.state_dict().items() if key.startswith("maps_module.memory.")}
        self.load_state_dict({**kept, **own})


class RecurrentMapsNetwork(ScatteringMapsNetwork):
    """The network: a reduced frame, N x 3 x h x w, sides multiples of 32, and the state before it,
    N x state_channels x h/4 x w/4 -> its maps, N x 7 x h/2 x w/2 of t, A (3), O (3), and the next state."""

    state_stride: ClassVar[int] = 4

    def __init__(self, *, widths: Sequence[int], blocks: int, offset: float, heads: int, states: int) -> None:
        super().__init__(widths=widths, blocks=blocks, offset=offset, mirror=False)
        _fix_statistics(self)
        self.memory = SelectiveStateSpace(channels=widths[0], heads=heads, states=states)

    @property
    def state_channels(self) -> int:
        """Channels of the state between two frames."""
        return self.memory.state_channels

    def forward(self, reduced: Tensor, state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """With a state: the maps and the next state. Without: the maps of a first frame."""
        features = self.features(reduced)
        remembered, after = self.memory.step(features, self.memory.start(features) if state is None else state)
        maps = self.heads(remembered)
        return maps if state is None else (maps, after)

    def clip(self, reduced: Tensor, state: Tensor | None = None, moves: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps of all frames of clips, and the state after the last.

        Args:
            reduced: B x T x 3 x h x w.
            state: the state before the first frame; None = zeros.
            moves: the camera's motion, B x T x 2 x 3: an affine map from coordinates in a frame to those in the frame
                before, -1 to 1 between the frame's edges. The state is warped before each frame, which needs the
                recurrence; without moves the parallel scan is used.

        Returns:
            The maps, B x T x 7 x h/2 x w/2, and the state, B x state_channels x h/4 x w/4.
        """
        length = reduced.shape[:2]
        features = torch.unflatten(self.features(reduced.flatten(0, 1)), 0, length)
        state = self.memory.start(features) if state is None else state
        if moves is None:
            remembered, state = self.memory(features, state)
        else:
            frames = []
            for at, frame in enumerate(features.unbind(1)):
                frame, state = self.memory.step(frame, warp_state(state, moves[:, at]))
                frames.append(frame)
            remembered = torch.stack(frames, 1)
        return torch.unflatten(self.heads(remembered.flatten(0, 1)), 0, length), state


def warp_state(state: Tensor, move: Tensor) -> Tensor:
    """Warp a state, B x C x h x w, by a motion, B x 2 x 3; zeros where it comes from outside the frame."""
    grid = F.affine_grid(move, list(state.shape), align_corners=False)
    return F.grid_sample(state, grid.to(state), mode="bilinear", padding_mode="zeros", align_corners=False)


class FixedBatchNorm(nn.Module):
    """Batch norm that uses its running statistics in training too; scale and shift are learned."""

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


def _fix_statistics(module: nn.Module) -> None:
    """Replace every batch norm in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FixedBatchNorm(child.num_features, child.eps))
        else:
            _fix_statistics(child)
