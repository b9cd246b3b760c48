"""Inference: from a photo and a model folder to the restored photo, without any training code."""

from fairweather.inference.restorer import AutoRestorer, Restorer, load

__all__ = ["AutoRestorer", "Restorer", "load"]
