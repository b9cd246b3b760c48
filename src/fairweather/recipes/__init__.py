"""Recipes: whole training algorithms by name, each one page."""

from __future__ import annotations

from fairweather.recipes.base import Batch, Build, Learn, Player, Recipe
from fairweather.recipes.claritygan import ClarityGAN, ClarityGANSettings
from fairweather.recipes.clips import Clips, ClipsSettings
from fairweather.recipes.cyclegan import CycleGAN, CycleGANSettings
from fairweather.recipes.derain import Derain, DerainSettings
from fairweather.recipes.hazeheal import HazeHeal, HazeHealSettings
from fairweather.recipes.pix2pix import Pix2Pix, Pix2PixSettings
from fairweather.recipes.supervised import Supervised, SupervisedSettings

RECIPES: dict[str, type[Recipe]] = {
    "cyclegan": CycleGAN,
    "pix2pix": Pix2Pix,
    "claritygan": ClarityGAN,
    "hazeheal": HazeHeal,
    "derain": Derain,
    "supervised": Supervised,
    "clips": Clips,
}

__all__ = [
    "RECIPES",
    "Batch",
    "Build",
    "ClarityGAN",
    "ClarityGANSettings",
    "Clips",
    "ClipsSettings",
    "CycleGAN",
    "CycleGANSettings",
    "Derain",
    "DerainSettings",
    "HazeHeal",
    "HazeHealSettings",
    "Learn",
    "Pix2Pix",
    "Pix2PixSettings",
    "Player",
    "Recipe",
    "Supervised",
    "SupervisedSettings",
]
