"""What every recipe shares: optimizer_groups, batches, and the two calls that a step makes on the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fairweather.generators import padded

Schedule = Literal["constant", "linear", "cosine"]
Build = Callable[[], nn.Module]
"""Makes one fresh generator; a recipe that needs two calls it twice."""


@dataclass(frozen=True)
class Batch:
    """Photos of the two domains, `N x 3 x H x W` in [0,1]; a pair shares its index where the recipe asks for pairs."""

    degraded: Tensor
    clear: Tensor
    moves: Tensor | None = None
    """Of clips, N x T x 2 x 3: where each place of a frame was in the frame before (`fairweather.data.video_clips`)."""


@dataclass(frozen=True)
class OptimizerGroup:
    """Modules that one optimizer moves, and how."""

    modules: tuple[nn.Module, ...]
    lr: float
    """The highest learning rate of the schedule."""
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """`muon` (fairweather.training.optimization) takes AdamW's learning rates and decays."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    """`constant`; `linear`: constant, then linear decay to zero; `cosine`: half a cosine down to zero."""
    warmup: float = 0.0
    """Share of the run in which the rate climbs linearly from zero."""
    hold: float = 0.0
    """`linear`: share of the run before the decay starts."""
    clip: float | None = None
    """Largest norm of the gradient of all the group's parameters together."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trainable parameter, each once."""
        seen: set[int] = set()
        for module in self.modules:
            for parameter in module.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


class Update(Protocol):
    """What a step may ask of the engine."""

    def __call__(self, group: str, loss: Tensor) -> None:
        """Move `group` (a name from `optimizer_groups()`) one step down `loss`; nobody else's gradients are touched."""

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        """`fakes` (detached), about half of them swapped for earlier ones from the history pool `name` of `size`."""


class Recipe(nn.Module, ABC):
    """A whole training algorithm: networks, optimizer_groups and one step.

    It never sees the device, the precision, distribution or checkpointing. Its constructor takes `build`, which makes
    a generator, and its settings (a frozen dataclass), so that recipes and generators multiply.
    """

    settings_type: ClassVar[type[Any]]
    """The frozen dataclass of the recipe's own settings."""
    paired: ClassVar[bool]
    """Whether `degraded[i]` and `clear[i]` must show the same scene."""
    batch: ClassVar[int]
    """Batch size where the run names none."""
    uses_clips: ClassVar[bool] = False
    """Whether it learns from clips (`data.frames`) and not from photos."""
    paper_crops: ClassVar[bool] = False
    """Whether photos are cut as the GAN papers do (286 x 286, crop, mirror) where the run says nothing else."""
    crop: ClassVar[int] = 256
    """Side of the training crops in pixels where the run names none."""
    epochs: ClassVar[int]
    """Length where the run names none."""
    generator: ClassVar[str]
    """Name of the generator where the run names none."""
    arguments: ClassVar[Mapping[str, Any]] = {}
    """Arguments of that generator which differ from its own defaults."""
    weather: ClassVar[str] = "haze"
    """What the degraded photos suffer from where the run says nothing else; goes onto the card."""
    ema: float = 0.0
    """Decay of the moving average of what ships; 0 ships the last weights."""

    @abstractmethod
    def __init__(self, build: Build, settings: Any = None) -> None:
        """`settings` is a `settings_type`; None means the paper's."""
        super().__init__()

    @abstractmethod
    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        """Name -> group. Asked for once, before training."""

    @abstractmethod
    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """One step. Every group learns the plain sum of its terms; all terms come back, weighed, for the log."""

    @abstractmethod
    def restorer_network(self) -> nn.Module:
        """The generator that becomes the model folder: degraded -> clear."""

    def preview(self, network: nn.Module, degraded: Tensor) -> Tensor:
        """What a sample sheet shows of a network that this recipe trains: its answer to a batch's degraded side."""
        return padded(network, degraded)

    def directions(self) -> dict[str, nn.Module]:
        """The generators that can become a model folder, by which way they go: `restore`, and `degrade` if there is."""
        return {"restore": self.restorer_network()}

    def notes(self) -> dict[str, str]:
        """What else a model's card must say of its training: what depended on this machine rather than on settings."""
        return {}


def sum_terms(terms: dict[str, Tensor]) -> Tensor:
    """The sum of weighed terms: the loss. A term is logged only by being in here."""
    return torch.stack([term.float() for term in terms.values()]).sum()
