"""Where a picture is wrong: the error of every pixel as a colour, on one scale for all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fairweather.errors import BadSettings
from fairweather.evaluation.metrics import eight_bit
from fairweather.evaluation.scores import PhotoScore, Produce, SetScores, load_pair, psnr_gain, worst_first
from fairweather.files import atomic, make_folder

ERROR_SCALE = 0.25
"""The error that gets the brightest colour, and all above it: a quarter of the range from black to white. Fixed, so
that maps of other photos and of other models can be compared."""
ERROR_COLOURS = cv2.COLORMAP_INFERNO
"""Smith and van der Walt's inferno: equal steps look equal, brightness alone tells them apart (in grey and to
colour-blind people too), and black is no error."""


def pixel_error(output: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float32]:
    """H x W x 3 and H x W x 3 in [0,1] -> H x W: the root of the mean square over R, G and B.

    The mean square of this map is the picture's mean square error, which PSNR is the logarithm of.
    """
    difference = output.clip(0, 1).astype(np.float32) - target.clip(0, 1).astype(np.float32)
    error: NDArray[np.float32] = np.sqrt(np.square(difference).mean(axis=2))
    return error


def coloured(error: NDArray[Any]) -> NDArray[np.uint8]:
    """H x W errors -> H x W x 3 RGB: 0 is black, SCALE and more the brightest yellow."""
    levels = np.floor(np.clip(error / ERROR_SCALE, 0, 1) * 255 + 0.5).astype(np.uint8)
    picture: NDArray[np.uint8] = cv2.applyColorMap(levels, ERROR_COLOURS)[..., ::-1]
    return np.ascontiguousarray(picture)


def error_map(output: NDArray[Any], target: NDArray[Any], longest: int) -> NDArray[np.uint8]:
    """The coloured map with at most `longest` pixels a side: errors are averaged, not colours."""
    error = pixel_error(output, target)
    height, width = error.shape
    ratio = longest / max(height, width)
    if ratio < 1:
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        error = cv2.resize(error, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return coloured(error)


def colour_bar(width: int, height: int) -> NDArray[np.uint8]:
    """The scale itself, from 0 on the left to SCALE on the right."""
    return coloured(np.tile(np.linspace(0, ERROR_SCALE, width), (height, 1)))


# The contact sheet: degraded | restored | clear, for the best, the median and the worst photo of a set.

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


# One photo a page: degraded | restored | clear | where the restored one is wrong.

PAGE_SIDE = 560
"""Longest side of a picture on the page, in pixels."""
PAGE_MIN_WIDTH = 380
"""A column is as wide as the picture, and this at least, for its caption."""
_BAR = (240, 12)

Count = int | Literal["all"]


def checked_count(count: Count) -> int | None:
    """How many pages a set gets at most; None for all. Raises BadSettings below 1."""
    if count == "all":
        return None
    if count < 1:
        raise BadSettings(f"sheet is {count}: give how many photos of each set to show, 1 at least, or all")
    return count


def write_pages(folder: Path, result: SetScores, produce: Produce, most: int | None) -> dict[str, Path]:
    """Photo's name -> its page, a JPEG, for the `most` worst photos of a set; file names begin with the rank.

    The photos are restored once more, so that nothing had to be kept.
    """
    worst = worst_first(result)
    digits = len(str(len(worst)))
    pages: dict[str, Path] = {}
    for rank, photo in enumerate(worst[:most], start=1):
        make_folder(folder, "--out")
        path = folder / f"{rank:0{digits}d}-{photo.pair.name.replace('/', '-')[-120:]}.jpg"
        title = f"{short(photo.pair.name)}: worst {rank} of {len(worst)} in {result.data}"
        paste_up(path, f"{title}, protocol {result.protocol.name}{_gains(photo)}", _rows(photo, result, produce))
        pages[photo.pair.name] = path
    return pages


def _rows(photo: PhotoScore, result: SetScores, produce: Produce) -> list[Image.Image]:
    degraded, clear = load_pair(photo.pair)
    output = produce(photo.pair, degraded)
    clear = result.protocol.aligned(output, clear)
    cells = [cell(picture, PAGE_SIDE) for picture in (degraded, output, clear)]
    cells.append(Image.fromarray(error_map(output, clear, PAGE_SIDE)))
    captions = [f"degraded  {caption(photo.input)}", f"restored  {caption(photo.scores)}", "clear", "error of restored"]
    column = max(PAGE_MIN_WIDTH, *(one.width for one in cells))
    return [row(cells, captions, column), _legend(column)]


def _legend(column: int) -> Image.Image:
    """The error's scale, below the map that it belongs to."""
    image = Image.new("RGB", (4 * (column + GAP) + GAP, LINE + _BAR[1] + GAP), PAPER)
    draw, left = ImageDraw.Draw(image), GAP + 3 * (column + GAP)
    image.paste(Image.fromarray(colour_bar(*_BAR)), (left, 4))
    words = (
        ("0", "la", 0),
        (f"{ERROR_SCALE / 2:g}", "ma", _BAR[0] / 2),
        (f"{ERROR_SCALE:g} and more", "la", _BAR[0] - 26),
    )
    for text, anchor, at in words:
        draw.text((left + at, 4 + _BAR[1] + 2), text, fill=INK, font=font(11), anchor=anchor)
    told = f"error at each pixel: root mean square over R, G, B of pictures in 0..1; black 0, yellow {ERROR_SCALE:g} and more"
    draw.text((left - 3 * GAP, 6), f"{told}; the same on every page", fill=INK, font=font(13), anchor="ra")
    return image


def _gains(photo: PhotoScore) -> str:
    words = []
    for metric, form in (("psnr", "{:+.2f} dB"), ("ssim", "SSIM {:+.3f}")):
        if (better := psnr_gain(photo, metric)) is not None:
            words.append(form.format(better))
    return f": {', '.join(words)} against the degraded photo" if words else ""
