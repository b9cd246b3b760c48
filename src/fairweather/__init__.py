"""fairweather removes haze and rain from photos and videos.

    import fairweather
    restorer = fairweather.load("dehaze")      # or the path of a model folder
    clear = restorer(photo)                    # H x W x 3 uint8, uint16 or float32 in [0,1]; the same out

`fairweather.train("pix2pix", data="my_pairs/")` writes such a model folder; it needs the `train` extra.

The names below are the public interface. Each is imported on first access, so that `import fairweather` is fast
and imports neither PyTorch nor an inference engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairweather.errors import (
        BadCard,
        BadFolder,
        BadImage,
        BadSettings,
        FairweatherError,
        MissingExtra,
        ParityFailed,
        UnknownName,
    )
    from fairweather.inference import Restorer, load
    from fairweather.training import train

__version__ = "0.1.0"

__all__ = [
    "BadCard",
    "BadFolder",
    "BadImage",
    "BadSettings",
    "FairweatherError",
    "MissingExtra",
    "ParityFailed",
    "Restorer",
    "UnknownName",
    "load",
    "train",
]

_HOMES = {"Restorer": "fairweather.inference", "load": "fairweather.inference", "train": "fairweather.training"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fairweather' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "fairweather.errors")), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
