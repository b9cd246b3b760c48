"""Learning rates as a function of how much of the run is done, by steps or by the clock."""

from __future__ import annotations

import math

from fairweather.recipes import Player


def rate(player: Player, progress: float) -> float:
    """The player's learning rate after `progress` (0 to 1) of the run."""
    progress = min(max(progress, 0.0), 1.0)
    return player.lr * _warm(player, progress) * _shape(player, progress)


def _warm(player: Player, progress: float) -> float:
    if progress >= player.warmup:
        return 1.0
    # Not from zero itself: the first step must move.
    return max(progress / player.warmup, 1e-2)


def _shape(player: Player, progress: float) -> float:
    if player.schedule == "constant":
        return 1.0
    if player.schedule == "linear":
        return 1.0 if progress <= player.hold else (1.0 - progress) / (1.0 - player.hold)
    done = max(0.0, (progress - player.warmup) / (1.0 - player.warmup)) if player.warmup < 1 else 0.0
    return 0.5 * (1.0 + math.cos(math.pi * done))
