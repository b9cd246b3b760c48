"""Recipes: whole training algorithms by name, each one page."""

from __future__ import annotations

from fairweather.recipes.base import Batch, Build, Learn, Player, Recipe
from fairweather.recipes.cyclegan import CycleGAN, CycleGANSettings
from fairweather.recipes.pix2pix import Pix2Pix, Pix2PixSettings
from fairweather.recipes.supervised import Supervised, SupervisedSettings

RECIPES: dict[str, type[Recipe]] = {
    "cyclegan": CycleGAN,
    "pix2pix": Pix2Pix,
    "supervised": Supervised,
}

__all__ = [
    "RECIPES",
    "Batch",
    "Build",
    "CycleGAN",
    "CycleGANSettings",
    "Learn",
    "Pix2Pix",
    "Pix2PixSettings",
    "Player",
    "Recipe",
    "Supervised",
    "SupervisedSettings",
]
