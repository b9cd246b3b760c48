"""One photo a page: degraded | restored | clear | where the restored one is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from fairweather.errors import BadSettings
from fairweather.evaluation.error_map import SCALE, colour_bar, error_map
from fairweather.evaluation.photos import gain, worst_first
from fairweather.evaluation.sets import PhotoScore, Produce, SetScores, load_pair
from fairweather.evaluation.sheet import GAP, INK, LINE, PAPER, caption, cell, font, paste_up, row, short
from fairweather.outputs import make_folder

SIDE = 560
"""Longest side of a picture on the page, in pixels."""
NARROW = 380
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
    cells = [cell(picture, SIDE) for picture in (degraded, output, clear)]
    cells.append(Image.fromarray(error_map(output, clear, SIDE)))
    captions = [f"degraded  {caption(photo.input)}", f"restored  {caption(photo.scores)}", "clear", "error of restored"]
    column = max(NARROW, *(one.width for one in cells))
    return [row(cells, captions, column), _legend(column)]


def _legend(column: int) -> Image.Image:
    """The error's scale, below the map that it belongs to."""
    image = Image.new("RGB", (4 * (column + GAP) + GAP, LINE + _BAR[1] + GAP), PAPER)
    draw, left = ImageDraw.Draw(image), GAP + 3 * (column + GAP)
    image.paste(Image.fromarray(colour_bar(*_BAR)), (left, 4))
    words = (("0", "la", 0), (f"{SCALE / 2:g}", "ma", _BAR[0] / 2), (f"{SCALE:g} and more", "la", _BAR[0] - 26))
    for text, anchor, at in words:
        draw.text((left + at, 4 + _BAR[1] + 2), text, fill=INK, font=font(11), anchor=anchor)
    told = f"error at each pixel: root mean square over R, G, B of pictures in 0..1; black 0, yellow {SCALE:g} and more"
    draw.text((left - 3 * GAP, 6), f"{told}; the same on every page", fill=INK, font=font(13), anchor="ra")
    return image


def _gains(photo: PhotoScore) -> str:
    words = []
    for metric, form in (("psnr", "{:+.2f} dB"), ("ssim", "SSIM {:+.3f}")):
        if (better := gain(photo, metric)) is not None:
            words.append(form.format(better))
    return f": {', '.join(words)} against the degraded photo" if words else ""
