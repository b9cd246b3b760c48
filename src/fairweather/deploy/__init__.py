"""From a trained generator to a model folder that restoring can open; every export is compared with its source."""

from fairweather.deploy.export import export, reexport

__all__ = ["export", "reexport"]
