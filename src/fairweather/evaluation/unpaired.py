"""Photos without a truth: what a restorer changed in each, as a table, changes.csv, and sheets to look at."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fairweather.errors import BadFolder, BadSettings, FairweatherError, MissingExtra
from fairweather.evaluation.pages import Count, checked_count
from fairweather.evaluation.report import made_folder
from fairweather.evaluation.sheet import cell, paste_up, row, short
from fairweather.evaluation.unreferenced import Change, change
from fairweather.files import atomic
from fairweather.images import read, to_float
from fairweather.pairs import pictures

if TYPE_CHECKING:
    from rich.table import Table

NAME = "changes.csv"
SIDE = 640
"""Longest side of a picture on a sheet, in pixels."""
ROWS = 4
"""Photos on a sheet."""

MEASURES: dict[str, tuple[str, str, Callable[[float], float]]] = {
    "contrast": ("local contrast", "x {:.2f}", lambda value: -value),
    "saturated": ("saturated pixels", "{:+.2f} pp", lambda value: value),
    "cast": ("colour cast", "{:.1f}", lambda value: value),
    "noise": ("noise", "{:+.2f}", lambda value: value),
    "density": ("haze density", "{:+.3f}", lambda value: value),
}
"""Field of `Change` -> its name for people, how it is written, and a key by which the highest is the worst."""


@dataclass(frozen=True)
class Unpaired:
    """A folder of photos: what became of each, and which could not be restored, with the reason."""

    data: str
    photos: dict[str, Change]
    """By the photo's path below the folder, without its suffix."""
    failed: dict[str, str] = field(default_factory=dict)

    def mean(self, measure: str) -> float:
        """The mean of one of MEASURES over the photos."""
        values = [getattr(one, measure) for one in self.photos.values()]
        return float(sum(values) / len(values))

    def worst(self, measure: str) -> tuple[str, float]:
        """The photo that fared worst by one of MEASURES, and its value."""
        key = MEASURES[measure][2]
        name = max(self.photos, key=lambda name: key(getattr(self.photos[name], measure)))
        return name, getattr(self.photos[name], measure)


def evaluate_unpaired(
    restorer: Callable[[Any], Any],
    folder: str | Path,
    out: str | Path | None = None,
    *,
    sheet: Count = "all",
    progress: Callable[[str, Path], None] | None = None,
) -> Unpaired:
    """Restore every photo in a folder, as `restore` would, and measure what changed.

    restorer: H x W x 3 pixels as they are in the file -> the same; ``fairweather.load(...)`` or any function.
    out: a folder (made when missing) for ``changes.csv`` and sheets of ROWS photos each: as it came | restored.
    sheet: how many photos, in the order of their names, the sheets show. Sheets of an earlier evaluation go.
    progress: called after each photo with the folder's name and the photo's path.

    A photo that fails is in ``failed``; the rest is measured. Raises BadFolder (no photos, or an ``out`` that cannot be
    written) and BadSettings (a ``sheet`` below 1), before any work.
    """
    most, paths = checked_count(sheet), pictures(folder)
    if not paths:
        raise BadFolder(f"{folder} holds no pictures; give a folder of photos")
    place = None if out is None else made_folder(Path(out), paths)
    data = Path(folder).resolve().name
    result, rows = Unpaired(data, {}), list[tuple[str, Image.Image, Image.Image]]()
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in result.photos:  # a.jpg beside a.png
            name = path.relative_to(folder).as_posix()
        try:
            pixels = read(path).pixels
            restored = restorer(pixels)
            before, after = to_float(pixels), to_float(restored)
            result.photos[name] = change(before, after)
            if place is not None and (most is None or len(rows) < most):
                rows.append((name, cell(before, SIDE), cell(after, SIDE)))
        except (MissingExtra, BadSettings):
            raise
        except (FairweatherError, OSError) as error:
            result.failed[name] = f"{path}: {error}"
        if progress is not None:
            progress(data, path)
    if place is not None:
        write_changes(place / NAME, result)
        _write_sheets(place, result, rows)
    return result


def write_changes(path: Path, result: Unpaired) -> None:
    """One line a photo: its name and its `Change`; then the photos that failed, with the reason."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, ["photo", *Change.__dataclass_fields__, "failed"], restval="")
        writer.writeheader()
        for name, one in result.photos.items():
            writer.writerow({"photo": name, **one.as_dict()})
        for name, reason in result.failed.items():
            writer.writerow({"photo": name, "failed": reason})


def table(result: Unpaired, title: str = "") -> Table:
    """Mean and worst of each measure, as a rich table that fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    caption = f"{len(result.photos)} photos of {result.data}, each a change from the photo as it came"
    grid = Table(title=title or None, caption=caption, box=SIMPLE_HEAD)
    grid.add_column("change of", no_wrap=True)
    for heading in ("mean", "worst"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("in", no_wrap=True)
    for measure, (words, form, _) in MEASURES.items():
        if result.photos:
            name, value = result.worst(measure)
            grid.add_row(words, form.format(result.mean(measure)), form.format(value), Text(short(name)))
    return grid


def all_photos(result: Unpaired) -> Table:
    """Every photo's measures, as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD)
    grid.add_column("photo", no_wrap=True)
    for measure in MEASURES:
        grid.add_column(measure, justify="right", no_wrap=True)
    for name, one in result.photos.items():
        cells = [form.format(getattr(one, measure)) for measure, (_, form, _) in MEASURES.items()]
        grid.add_row(Text(short(name, 21)), *cells)
    return grid


def _write_sheets(folder: Path, result: Unpaired, rows: Sequence[tuple[str, Image.Image, Image.Image]]) -> None:
    stem = result.data or "photos"
    for old in folder.glob("*-[0-9][0-9]*.jpg"):
        if old.stem.rpartition("-")[0] == stem and old.stem.rpartition("-")[2].isdigit():
            old.unlink()
    pages = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    for number, page in enumerate(pages, start=1):
        title = f"{result.data}, sheet {number} of {len(pages)}: as it came, and restored"
        lines = [row(pair, [short(name, 40), _caption(result.photos[name])], SIDE) for name, *pair in page]
        paste_up(folder / f"{stem}-{number:02d}.jpg", title, lines)


def _caption(one: Change) -> str:
    words = {"contrast": "contrast", "saturated": "saturated", "cast": "cast", "noise": "noise", "density": "haze"}
    return "   ".join(f"{word} {MEASURES[key][1].format(getattr(one, key))}" for key, word in words.items())
