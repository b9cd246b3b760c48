"""The contact sheet: degraded | restored | clear, for the best, the median and the worst photo of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fairweather.evaluation.metrics import eight_bit
from fairweather.evaluation.sets import PhotoScore, Produce, SetScores, load_pair
from fairweather.images import atomic

CELL = 480
"""Longest side of a picture on the sheet, in pixels."""
_LINE, _GAP, _TITLE = 22, 6, 30
_PAPER, _INK = (250, 250, 248), (30, 30, 30)


def contact_sheet(path: Path, result: SetScores, produce: Produce) -> None:
    """Write the sheet of one set as a JPEG. The three photos are restored once more, so that nothing had to be kept."""
    rows = [_row(label, photo, result, produce) for label, photo in chosen(result)]
    title = f"{result.data}, {len(result.photos)} photos, protocol {result.protocol.name}"
    means = ", ".join(f"{s.metric.upper()} {_digits(s.metric, s.value)}" for s in result.scores)
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, _TITLE + sum(row.height for row in rows)), _PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 6), f"{title}: {means}", fill=_INK, font=_font(15))
    top = _TITLE
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with atomic(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=92, subsampling=0)


def chosen(result: SetScores) -> list[tuple[str, PhotoScore]]:
    """Best, median and worst by PSNR, fewer where the set has fewer photos."""
    ranked = result.ranked()
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    picked: dict[int, str] = {}
    for label in ("best", "worst", "median"):  # in a set of two, the second is the worst rather than the median
        picked.setdefault(places[label], label)
    return [(picked[place], ranked[place]) for place in sorted(picked)]


def _row(label: str, photo: PhotoScore, result: SetScores, produce: Produce) -> Image.Image:
    degraded, clear = load_pair(photo.pair)
    output = produce(photo.pair, degraded)
    cells = [_cell(p) for p in (degraded, output, result.protocol.aligned(output, clear))]
    captions = [
        f"{label}: {_short(photo.pair.name)}, degraded  {_caption(photo.input)}",
        f"restored  {_caption(photo.scores)}",
        "clear",
    ]
    row = Image.new("RGB", (3 * (CELL + _GAP) + _GAP, max(c.height for c in cells) + _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(row)
    for place, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        left = _GAP + place * (CELL + _GAP)
        draw.text((left, 3), caption, fill=_INK, font=_font(13))
        row.paste(cell, (left, _LINE))
    return row


def _cell(picture: NDArray[Any]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(eight_bit(picture)))
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def _caption(scores: dict[str, float]) -> str:
    return "  ".join(f"{metric.upper()} {_digits(metric, value)}" for metric, value in scores.items())


def _digits(metric: str, value: float) -> str:
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}"


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
