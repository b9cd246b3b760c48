"""Test doubles for recipes: a generator that adds a value, an `update` that records, small recipes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from fairweather.recipes import RECIPES, Batch, Recipe


class Tint(nn.Module):
    """Adds a trainable value to every pixel and records its inputs."""

    multiple_of = 1

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.1))
        self.given: list[Tensor] = []

    def forward(self, photo: Tensor) -> Tensor:
        self.given.append(photo)
        return photo + self.amount


class RecordingUpdate:
    """An `update` that changes nothing and records losses and gradients."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.losses: dict[str, Tensor] = {}
        self.gradients: dict[str, list[float]] = {}
        self.from_history: dict[str, tuple[Tensor, int]] = {}

    def __call__(self, group: str, loss: Tensor) -> None:
        assert group in self.recipe.optimizer_groups()
        parameters = list(self.recipe.optimizer_groups()[group].parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert all(gradient is not None for gradient in gradients), f"{group} has parameters without a gradient"
        self.losses[group] = loss.detach()
        self.gradients[group] = [gradient.sum().item() for gradient in gradients]

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        self.from_history[name] = (fakes, size)
        return fakes.detach() * 0 + 0.25


def made(recipe: str, **settings: Any) -> Recipe:
    torch.manual_seed(0)
    kind = RECIPES[recipe]
    names = {field.name for field in fields(kind.settings_type)}
    small: dict[str, Any] = {"width": 4, "layers": ("relu1_2", "relu2_1")}
    return kind(Tint, kind.settings_type(**{key: small[key] for key in small if key in names} | settings))


def batch(n: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(n, 3, 32, 32, generator=generator), torch.rand(n, 3, 32, 32, generator=generator))
