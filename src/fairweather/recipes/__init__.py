"""Recipes: whole training algorithms by name, one file each."""

from __future__ import annotations

from fairweather.recipes.base import Batch, Build, OptimizerGroup, Recipe, Update
from fairweather.recipes.claritygan import ClarityGAN, ClarityGANSettings
from fairweather.recipes.cyclegan import CycleGAN, CycleGANSettings
from fairweather.recipes.derain import Derain
from fairweather.recipes.hazeheal import HazeHeal, HazeHealSettings
from fairweather.recipes.pix2pix import Pix2Pix, Pix2PixSettings
from fairweather.recipes.supervised import Supervised, SupervisedSettings
from fairweather.recipes.supervised_video import SupervisedVideo, SupervisedVideoSettings

RECIPES: dict[str, type[Recipe]] = {
    "cyclegan": CycleGAN,
    "pix2pix": Pix2Pix,
    "claritygan": ClarityGAN,
    "hazeheal": HazeHeal,
    "derain": Derain,
    "supervised": Supervised,
    "supervised_video": SupervisedVideo,
}

__all__ = [
    "RECIPES",
    "Batch",
    "Build",
    "ClarityGAN",
    "ClarityGANSettings",
    "CycleGAN",
    "CycleGANSettings",
    "Derain",
    "HazeHeal",
    "HazeHealSettings",
    "OptimizerGroup",
    "Pix2Pix",
    "Pix2PixSettings",
    "Recipe",
    "Supervised",
    "SupervisedSettings",
    "SupervisedVideo",
    "SupervisedVideoSettings",
    "Update",
]
