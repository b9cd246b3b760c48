"""Random draws for a batch, one number per picture, and checks of the ranges that they come from."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from fairweather.errors import BadSettings

Range = tuple[float, float]
"""Smallest and largest value."""


def uniform(count: int, limits: Range, generator: Generator, like: Tensor) -> Tensor:
    """N x 1 x 1 x 1, with the device and type of `like`."""
    draw = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device).to(like)
    return limits[0] + (limits[1] - limits[0]) * draw


def log_uniform(
    count: int, limits: Range, generator: Generator, like: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """N x 1 x 1 x 1; `dtype` is the precision of the logarithms, which the last bit of a seed's draws depends on."""
    low, high = torch.tensor(limits, dtype=dtype).log().tolist()
    return uniform(count, (low, high), generator, like).exp()


def happens(count: int, share: float, generator: Generator, like: Tensor) -> Tensor:
    """N x 1 x 1 x 1 booleans, true with probability `share`."""
    return uniform(count, (0.0, 1.0), generator, like) < share


def random_like(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise of the shape, device and type of `like`."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def check_range(name: str, limits: Range, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> None:
    """Raise BadSettings unless low <= limits[0] <= limits[1] <= high, all finite; `above` excludes `low` itself."""
    first, last = limits
    if not (low <= first <= last <= high and math.isfinite(first) and math.isfinite(last)) or (above and first == low):
        bounds = f"{'above' if above else 'from'} {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
        raise BadSettings(f"{name} is {first} to {last}: give a smallest and a largest value {bounds}")


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> None:
    """Raise BadSettings unless low <= value <= high and it is finite; `above` excludes `low` itself."""
    if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
        bounds = f"{'above' if above else 'from'} {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
        raise BadSettings(f"{name} is {value}: give a number {bounds}")
