"""Pictures of an evaluation: contact sheets of a set, and pages of single photos with a map of the error."""

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
from fairweather.evaluation.scores import PhotoScore, Produce, SetScores, load_pair
from fairweather.files import atomic, make_folder

Count = int | Literal["all"]
"""How many photos to show."""

CELL = 480
"""Longest side of a picture on a contact sheet, in pixels."""
PAGE_SIDE = 560
"""Longest side of a picture on a page, in pixels."""
PAGE_MIN_WIDTH = 380
"""Minimum width of a page's column, for its caption."""
LINE, GAP, TITLE = 22, 6, 30
PAPER, INK = (250, 250, 248), (30, 30, 30)
_BAR = (240, 12)
"""Size of the colour scale."""
ERROR_SCALE = 0.25
"""The error with the brightest colour: a quarter of the range from black to white. It is fixed, so that maps of
different photos and models can be compared."""
ERROR_COLOURS = cv2.COLORMAP_INFERNO
"""Smith and van der Walt's inferno: perceptually uniform, increasing in brightness, and black for no error."""


def checked_count(count: Count) -> int | None:
    """Return a count as a number, or None for "all".

    Raises:
        BadSettings: it is below 1.
    """
    if count == "all":
        return None
    if count < 1:
        raise BadSettings(f"sheet is {count}: give the number of photos to show, at least 1, or all")
    return count


def contact_sheet(path: Path, result: SetScores, produce: Produce) -> None:
    """Write degraded | restored | clear for the best, median and worst photo of a set, as a JPEG.

    The photos are restored again, so that no outputs are kept in memory.
    """
    title = f"{result.data}, {len(result.photos)} photos, protocol {result.protocol.name}"
    means = ", ".join(f"{score.metric.upper()} {format_metric(score.metric, score.value)}" for score in result.scores)
    rows = []
    for label, photo in chosen(result):
        pictures = _pictures(photo, result, produce)
        captions = [
            f"{label}: {short(photo.pair.name)}, degraded  {caption(photo.input)}",
            f"restored  {caption(photo.scores)}",
            "clear",
        ]
        rows.append(row([cell(picture, CELL) for picture in pictures], captions, CELL))
    paste_up(path, f"{title}: {means}", rows)


def chosen(result: SetScores) -> list[tuple[str, PhotoScore]]:
    """Return the best, median and worst photo by PSNR with their labels; fewer if there are fewer photos."""
    best_first = result.worst_first()[::-1]
    labels: dict[int, str] = {}
    # Of two photos the second is the worst rather than the median.
    for label, place in (("best", 0), ("worst", len(best_first) - 1), ("median", len(best_first) // 2)):
        labels.setdefault(place, label)
    return [(labels[place], best_first[place]) for place in sorted(labels)]


def write_pages(folder: Path, result: SetScores, produce: Produce, most: int | None) -> dict[str, Path]:
    """Write a page for each of the worst photos of a set: degraded | restored | clear | error.

    Args:
        folder: the pages' folder; file names begin with the rank.
        result: the set.
        produce: restores the photos again, so that no outputs are kept in memory.
        most: the number of photos; None for all.

    Returns:
        Name of the photo -> its page, a JPEG.
    """
    worst = result.worst_first()
    digits = len(str(len(worst)))
    pages: dict[str, Path] = {}
    for rank, photo in enumerate(worst[:most], start=1):
        make_folder(folder, "--out")
        path = folder / f"{rank:0{digits}d}-{photo.pair.name.replace('/', '-')[-120:]}.jpg"
        title = f"{short(photo.pair.name)}: worst {rank} of {len(worst)} in {result.data}"
        title += f", protocol {result.protocol.name}{_gains(photo)}"
        degraded, output, clear = _pictures(photo, result, produce)
        cells = [cell(picture, PAGE_SIDE) for picture in (degraded, output, clear)]
        cells.append(Image.fromarray(error_map(output, clear, PAGE_SIDE)))
        captions = [
            *(f"degraded  {caption(photo.input)}", f"restored  {caption(photo.scores)}"),
            *("clear", "error of restored"),
        ]
        column = max(PAGE_MIN_WIDTH, *(one.width for one in cells))
        paste_up(path, title, [row(cells, captions, column), _legend(column)])
        pages[photo.pair.name] = path
    return pages


def _pictures(photo: PhotoScore, result: SetScores, produce: Produce) -> tuple[NDArray[Any], ...]:
    """The degraded, restored and clear photo."""
    degraded, clear = load_pair(photo.pair)
    output = produce(photo.pair, degraded)
    return degraded, output, result.protocol.aligned(output, clear)


def _gains(photo: PhotoScore) -> str:
    gains = [(form, photo.gain(metric)) for metric, form in (("psnr", "{:+.2f} dB"), ("ssim", "SSIM {:+.3f}"))]
    texts = [form.format(gain) for form, gain in gains if gain is not None]
    return f": {', '.join(texts)} over the degraded photo" if texts else ""


def error_map(output: NDArray[Any], target: NDArray[Any], longest: int) -> NDArray[np.uint8]:
    """Return the error in colours, reduced to at most `longest` pixels per side by averaging the errors.

    Args:
        output: H x W x 3 in [0, 1].
        target: the same.
        longest: limit of the sides.
    """
    error = pixel_error(output, target)
    height, width = error.shape
    ratio = longest / max(height, width)
    if ratio < 1:
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        error = cv2.resize(error, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return coloured(error)


def pixel_error(output: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float32]:
    """Return the root mean square error over R, G and B: two H x W x 3 in [0, 1] -> H x W.

    The mean square of this map is the mean square error of PSNR.
    """
    difference = output.clip(0, 1).astype(np.float32) - target.clip(0, 1).astype(np.float32)
    error: NDArray[np.float32] = np.sqrt(np.square(difference).mean(axis=2))
    return error


def coloured(error: NDArray[Any]) -> NDArray[np.uint8]:
    """Return H x W errors as H x W x 3 RGB: black for 0, the brightest yellow from `ERROR_SCALE`."""
    levels = np.floor(np.clip(error / ERROR_SCALE, 0, 1) * 255 + 0.5).astype(np.uint8)
    picture: NDArray[np.uint8] = cv2.applyColorMap(levels, ERROR_COLOURS)[..., ::-1]
    return np.ascontiguousarray(picture)


def colour_bar(width: int, height: int) -> NDArray[np.uint8]:
    """Return the colour scale, from 0 on the left to `ERROR_SCALE` on the right."""
    return coloured(np.tile(np.linspace(0, ERROR_SCALE, width), (height, 1)))


def _legend(column: int) -> Image.Image:
    """The colour scale, below the error map."""
    image = Image.new("RGB", (4 * (column + GAP) + GAP, LINE + _BAR[1] + GAP), PAPER)
    draw, left = ImageDraw.Draw(image), GAP + 3 * (column + GAP)
    image.paste(Image.fromarray(colour_bar(*_BAR)), (left, 4))
    labels = (
        ("0", "la", 0),
        (f"{ERROR_SCALE / 2:g}", "ma", _BAR[0] / 2),
        (f"{ERROR_SCALE:g} and more", "la", _BAR[0] - 26),
    )
    for text, anchor, at in labels:
        draw.text((left + at, 4 + _BAR[1] + 2), text, fill=INK, font=font(11), anchor=anchor)
    explanation = (
        f"error of each pixel: root mean square over R, G, B in 0..1; black 0, yellow {ERROR_SCALE:g} and more; "
        "the same on every page"
    )
    draw.text((left - 3 * GAP, 6), explanation, fill=INK, font=font(13), anchor="ra")
    return image


def row(cells: Sequence[Image.Image], captions: Sequence[str], side: int) -> Image.Image:
    """Return pictures next to each other, in columns of `side` pixels, each below its caption."""
    size = (len(cells) * (side + GAP) + GAP, max(one.height for one in cells) + LINE + GAP)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for place, (one, text) in enumerate(zip(cells, captions, strict=True)):
        left = GAP + place * (side + GAP)
        draw.text((left, 3), text, fill=INK, font=font(13))
        image.paste(one, (left, LINE))
    return image


def paste_up(path: Path, title: str, rows: Sequence[Image.Image]) -> None:
    """Write rows below each other and below a title, as a JPEG."""
    sheet = Image.new("RGB", (max(one.width for one in rows), TITLE + sum(one.height for one in rows)), PAPER)
    ImageDraw.Draw(sheet).text((GAP, 6), title, fill=INK, font=font(15))
    top = TITLE
    for one in rows:
        sheet.paste(one, (0, top))
        top += one.height
    with atomic(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=92, subsampling=0)


def cell(picture: NDArray[Any], side: int) -> Image.Image:
    """Return H x W x 3 in [0, 1] as a picture, reduced to at most `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(eight_bit(picture)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def caption(scores: dict[str, float]) -> str:
    """Return e.g. `PSNR 21.30 dB  SSIM 0.812`."""
    return "  ".join(f"{metric.upper()} {format_metric(metric, value)}" for metric, value in scores.items())


def format_metric(metric: str, value: float) -> str:
    """Return a metric's value with its usual digits and unit."""
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"


def short(name: str, most: int = 28) -> str:
    """Return a name of at most `most` characters, without the middle of a longer one."""
    end = (most - 2) // 2
    return name if len(name) <= most else f"{name[: most - 3 - end]}...{name[-end:]}"


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the font of all sheets."""
    return ImageFont.load_default(size)
