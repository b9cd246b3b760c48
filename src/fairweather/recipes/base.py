"""The contract of a recipe: batches, groups of parameters with one optimizer each, and the step that updates them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn

from fairweather.generators import padded

Schedule = Literal["constant", "linear", "cosine"]
Build = Callable[[], nn.Module]
"""Builds a new generator; a recipe that needs two calls it twice."""

# Bounds of the recipes' settings; they are checked by fairweather.validation.
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Rate = Annotated[float, Meta(ge=0, le=10)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
GradientNorm = Annotated[float, Meta(gt=0, le=1e6)]
Width = Annotated[int, Meta(ge=1, le=1024)]
Decibel = Annotated[float, Meta(ge=0, le=200)]
Layers = Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)]


@dataclass(frozen=True)
class Batch:
    """Samples of the two domains."""

    degraded: Tensor
    """N x 3 x H x W in [0,1]."""
    clear: Tensor
    """The same shape; the same scenes in the same order for a recipe that trains on pairs."""
    moves: Tensor | None = None
    """For clips, N x T x 2 x 3: each frame's affine map into the frame before (`fairweather.data.video_clips`)."""


@dataclass(frozen=True)
class OptimizerGroup:
    """Modules that one optimizer updates, with its settings and its learning-rate schedule."""

    modules: tuple[nn.Module, ...]
    lr: float
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """`muon` (fairweather.training.optimization) takes AdamW's learning rates and weight decays."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    """`constant`; `linear`: constant, then linear decay to zero; `cosine`: half a cosine to zero."""
    warmup: float = 0.0
    """Share of the run with a linear warm-up from zero."""
    hold: float = 0.0
    """Share of the run before the `linear` decay starts."""
    clip: float | None = None
    """Maximum norm of the gradient over all parameters of the group."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trainable parameter, once."""
        seen: set[int] = set()
        for module in self.modules:
            for parameter in module.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


class Update(Protocol):
    """The interface of the training engine for a recipe's step."""

    def __call__(self, name: str, loss: Tensor) -> None:
        """Take one optimizer step on `loss`.

        Args:
            name: a key of `Recipe.optimizer_groups()`. Parameters of other groups get no gradient.
            loss: scalar.
        """

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        """Return `fakes` (detached), about half of them swapped for earlier ones (Shrivastava et al., CVPR 2017).

        Args:
            name: which history.
            fakes: N x C x H x W.
            size: capacity of the history in samples; 0 returns the fakes unchanged.
        """


class Recipe(nn.Module, ABC):
    """A whole training algorithm: networks, optimizer groups and one step.

    A recipe is independent of devices, precision, distribution and checkpoints. The constructor takes `build`, which
    builds a generator, and the recipe's settings (a frozen dataclass), so that any recipe trains any generator.
    """

    settings_type: ClassVar[type[Any]]
    """The frozen dataclass of the recipe's own settings."""
    paired: ClassVar[bool]
    """Whether `degraded[i]` and `clear[i]` must show the same scene."""
    batch: ClassVar[int]
    """Default batch size."""
    uses_clips: ClassVar[bool] = False
    """Whether it trains on clips (`data.frames`) rather than on photos."""
    paper_crops: ClassVar[bool] = False
    """Whether photos are augmented as in the GAN papers by default (286 x 286, crop, mirror)."""
    crop: ClassVar[int] = 256
    """Default side of the training crops in pixels."""
    epochs: ClassVar[int]
    """Default length."""
    generator: ClassVar[str]
    """Default generator."""
    arguments: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the default generator that differ from its own defaults."""
    weather: ClassVar[str] = "haze"
    """Default weather on the model's card."""
    ema: float = 0.0
    """Decay of the moving average of the exported weights; 0 exports the last weights."""

    @abstractmethod
    def __init__(self, build: Build, settings: Any = None) -> None:
        """Build the networks; `settings` is a `settings_type`, by default the paper's."""
        super().__init__()

    @abstractmethod
    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        """The groups by name; called once, before training."""

    @abstractmethod
    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Compute the losses of a batch and update every group with the sum of its terms.

        Returns:
            Every term of those sums, weighted, for the log.
        """

    @abstractmethod
    def restorer_network(self) -> nn.Module:
        """The generator that maps degraded to clear, which is exported to the model folder."""

    def preview(self, network: nn.Module, degraded: Tensor) -> Tensor:
        """The output of a network that this recipe trains, for a sample sheet."""
        return padded(network, degraded)

    def directions(self) -> dict[str, nn.Module]:
        """The generators that can be exported: `restore`, and `degrade` for recipes that train one."""
        return {"restore": self.restorer_network()}

    def notes(self) -> dict[str, str]:
        """Facts for the model's card that depend on this machine rather than on the settings."""
        return {}


def sum_terms(terms: dict[str, Tensor]) -> Tensor:
    """The sum of weighted terms: the loss."""
    return torch.stack([term.float() for term in terms.values()]).sum()
