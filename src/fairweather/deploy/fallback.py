"""Which layers lose too much in int8 and stay in float: found by measuring, worst first, as few as the bar asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from fairweather.deploy.likeness import Bar, Likeness

Measure = Callable[[Collection[str]], dict[str, Likeness]]
"""Layers in int8 -> engine -> how the network with those alone in int8 compares with the float one."""
SLACK = 0.2
"""By so much of itself the bar is harder in the search: it is done on few photos, and others decide."""
_log = logging.getLogger("fairweather")


def search(layers: Sequence[str], measure: Measure, bar: Bar, decide: Measure | None = None) -> dict[str, str]:
    """Layer -> why it stays in float; empty where all can be int8, all layers where nothing helps.

    All at once are tried first. Where that misses the bar, each layer is measured alone in int8, and the worst are made
    float, their number doubled until the bar is reached and then halved back to the fewest that reach it. `decide`
    measures in place of `measure` where it is about the bar: on more photos, as that is asked less often.
    """
    decide = decide or measure

    def reached(chosen: Collection[str]) -> bool:
        return all(bar.missed(found, SLACK) is None for found in decide(chosen).values())

    if reached(layers):
        return {}
    _log.info("all layers in int8 lose too much: measuring each of %d alone", len(layers))
    alone = {layer: measure([layer]) for layer in layers}
    # What changes the picture most alone; truths are too few here to rank single layers by them.
    order = sorted(layers, key=lambda layer: min(found.psnr for found in alone[layer].values()))

    def without(count: int) -> list[str]:
        left = set(order[:count])
        return [layer for layer in layers if layer not in left]

    most = 1
    while most < len(order) and not reached(without(most)):
        most *= 2
    least, most = most // 2, min(most, len(order))
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if reached(without(middle)) else (middle, most)
    return {layer: _why(alone[layer]) for layer in order[:most]}


def _why(found: dict[str, Likeness]) -> str:
    engine, worst = min(found.items(), key=lambda one: one[1].psnr)
    return f"alone in int8 the pictures agree to {worst.psnr:.1f} dB ({engine})"
