"""The contact sheet: degraded | restored | clear, for the best, the median and the worst photo of a set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fairweather.evaluation.metrics import eight_bit
from fairweather.evaluation.sets import PhotoScore, Produce, SetScores, load_pair
from fairweather.files import atomic

CELL = 480
"""Longest side of a picture on the sheet, in pixels."""
LINE, GAP, TITLE = 22, 6, 30
PAPER, INK = (250, 250, 248), (30, 30, 30)


def contact_sheet(path: Path, result: SetScores, produce: Produce) -> None:
    """Write the sheet of one set as a JPEG. The three photos are restored once more, so that nothing had to be kept."""
    title = f"{result.data}, {len(result.photos)} photos, protocol {result.protocol.name}"
    means = ", ".join(f"{s.metric.upper()} {digits(s.metric, s.value)}" for s in result.scores)
    paste_up(path, f"{title}: {means}", [_row(label, photo, result, produce) for label, photo in chosen(result)])


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
    cells = [cell(p, CELL) for p in (degraded, output, result.protocol.aligned(output, clear))]
    captions = [
        f"{label}: {short(photo.pair.name)}, degraded  {caption(photo.input)}",
        f"restored  {caption(photo.scores)}",
        "clear",
    ]
    return row(cells, captions, CELL)


def row(cells: Sequence[Image.Image], captions: Sequence[str], side: int) -> Image.Image:
    """Pictures of at most `side` pixels side by side, each below its caption."""
    size = (len(cells) * (side + GAP) + GAP, max(one.height for one in cells) + LINE + GAP)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for place, (one, words) in enumerate(zip(cells, captions, strict=True)):
        left = GAP + place * (side + GAP)
        draw.text((left, 3), words, fill=INK, font=font(13))
        image.paste(one, (left, LINE))
    return image


def paste_up(path: Path, title: str, rows: Sequence[Image.Image]) -> None:
    """Write rows below each other, and below a title, as a JPEG."""
    sheet = Image.new("RGB", (max(one.width for one in rows), TITLE + sum(one.height for one in rows)), PAPER)
    ImageDraw.Draw(sheet).text((GAP, 6), title, fill=INK, font=font(15))
    top = TITLE
    for one in rows:
        sheet.paste(one, (0, top))
        top += one.height
    with atomic(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=92, subsampling=0)


def cell(picture: NDArray[Any], side: int) -> Image.Image:
    """H x W x 3 in [0,1], reduced to at most `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(eight_bit(picture)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def caption(scores: dict[str, float]) -> str:
    """`PSNR 21.30 dB  SSIM 0.812`."""
    return "  ".join(f"{metric.upper()} {digits(metric, value)}" for metric, value in scores.items())


def digits(metric: str, value: float) -> str:
    """A metric's value as people write it."""
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"


def short(name: str, most: int = 28) -> str:
    """A name of at most `most` characters: the beginning and the end of a longer one."""
    end = (most - 2) // 2
    return name if len(name) <= most else f"{name[: most - 3 - end]}...{name[-end:]}"


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font of every sheet."""
    return ImageFont.load_default(size)
