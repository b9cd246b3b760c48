"""From a photo and a model folder to the restored photo; knows nothing of training."""

from fairweather.inference.restorer import AutoRestorer, Restorer, load

__all__ = ["AutoRestorer", "Restorer", "load"]
