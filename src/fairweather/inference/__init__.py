"""From a photo and a model folder to the restored photo; knows nothing of training."""

from fairweather.inference.restorer import Restorer, load

__all__ = ["Restorer", "load"]
