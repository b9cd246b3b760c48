"""What a network costs to run: milliseconds in each precision, side by side, and megabytes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.restoring import apply
from fairweather.restoring.choosing import processor
from fairweather.restoring.engines import ENGINES

SIZE = (1080, 1920)
SMALLER = (512, 512)
PATIENCE = 6.0
"""Seconds a run may take at SIZE; else SMALLER is what is measured."""
INT8_WORDS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""What Linux calls the instructions that multiply and add int8 at once."""


def network_cost(
    folder: Path,
    card: cards.Card,
    *,
    engine: str = "openvino",
    runs: int = 5,
    size: tuple[int, int] = SIZE,
    precisions: Sequence[str] = ("f32", "int8"),
) -> dict[str, Any]:
    """{"engine", "photo": width x height, "ms": by precision, "speedup", "megabytes", "processor", "instructions",
    "load"}, the last the machine's load average, by which to tell how much the milliseconds are worth.

    The network alone, on what it is fed of a photo of that size (reduced where it sees a reduced one); medians of runs
    in turn, after one to warm up.
    """
    networks = {precision: ENGINES[engine](folder, card, None, precision) for precision in precisions}
    fed = fed_for(card, *SMALLER)
    networks["f32"](fed)
    start = time.perf_counter()
    networks["f32"](fed)
    larger = fed_for(card, *size)
    if (time.perf_counter() - start) * larger.size / fed.size > PATIENCE:
        size = SMALLER
    else:
        fed = larger
    times: dict[str, list[float]] = {precision: [] for precision in networks}
    for run in range(runs + 1):
        for precision, network in networks.items():
            start = time.perf_counter()
            network(fed)
            if run:
                times[precision].append(time.perf_counter() - start)
    ms = {precision: round(1000 * statistics.median(taken), 3) for precision, taken in times.items()}
    return {
        "engine": engine,
        "photo": f"{size[1]} x {size[0]}",
        "ms": ms,
        "speedup": round(ms["f32"] / ms["int8"], 2),
        "megabytes": {name: round((folder / name).stat().st_size / 1e6, 3) for name in (cards.ONNX, cards.INT8)},
        "processor": processor(),
        "instructions": _instructions(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def fed_for(card: cards.Card, height: int, width: int) -> NDArray[np.float32]:
    """What the network of this card is fed of a photo of that size: 1 x 3 x h x w, noise."""
    photo = np.random.default_rng(0).random((height, width, 3), np.float32)
    if card.maps is not None:
        return apply.reduce_photo(photo, card.maps, card.multiple_of)
    reduced = apply.reduced_to(photo, card.most_pixels)
    photo = photo if reduced is None else reduced
    rows, columns = (-side % card.multiple_of for side in photo.shape[:2])
    photo = np.pad(photo, ((0, rows), (0, columns), (0, 0)), mode="reflect")
    return np.ascontiguousarray(photo.transpose(2, 0, 1)[None])


def why_not_faster(cost: dict[str, Any], floats: Sequence[str], layers: int, method: str, wanted: float = 1.8) -> str:
    """Words for the card where int8 is less than `wanted` times as fast as f32, as far as is known; else none."""
    if cost["speedup"] >= wanted:
        return ""
    reasons = []
    if method == "dynamic":
        reasons.append("weights alone are int8, and what is computed is computed in float")
    elif not cost["instructions"]:
        reasons.append(f"this processor ({cost['processor']}) has no instructions that multiply and add int8 at once")
    if floats:
        reasons.append(f"{len(floats)} of {layers} layers stay in float")
    reasons.append("what lies between the convolutions (norms, resizing, activations) is float")
    return f"{cost['speedup']:.2f} x as fast as f32: {'; '.join(reasons)}"


def _instructions() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [word for word in INT8_WORDS if word in words]
