"""Photo by photo, worst first: a table to read and photos.csv to go on with."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairweather.evaluation.protocols import METRICS
from fairweather.evaluation.sets import PhotoScore, SetScores, rounded
from fairweather.evaluation.sheet import short
from fairweather.files import atomic

if TYPE_CHECKING:
    from rich.table import Table

NAME = "photos.csv"
FEW = 3
WIDE = 21
"""Characters of a name in the table; in the file they are all there."""
COLUMNS = (
    *("set", "rank", "photo", "protocol"),
    *(f"{kind}{metric}" for metric in METRICS for kind in ("input_", "", "gain_")),
    *("degraded", "clear", "page", "failed"),
)
"""`rank` 1 is the worst of its set; `page` is the comparison's file, below the folder of photos.csv."""


def worst_first(result: SetScores) -> list[PhotoScore]:
    """The photos of a set from the lowest PSNR to the highest."""
    return sorted(result.photos, key=lambda photo: photo.scores["psnr"])


def gain(photo: PhotoScore, metric: str) -> float | None:
    """By how much the restorer brought the photo nearer to the truth; None where input and output both equal it."""
    before, after = photo.input[metric], photo.scores[metric]
    return None if before == after == float("inf") else after - before


def write_photos(path: Path, results: Sequence[SetScores], pages: Mapping[tuple[str, str], str] | None = None) -> None:
    """One line a photo, each set's worst first, then those that could not be scored, with the reason.

    pages: (set, photo) -> the file of its comparison.
    """
    with (
        atomic(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for result in results:
            common = {"set": result.data, "protocol": result.protocol.name}
            for rank, photo in enumerate(worst_first(result), start=1):
                name = photo.pair.name
                row = {**common, "rank": rank, "photo": name, "page": (pages or {}).get((result.data, name), "")}
                for metric in METRICS:
                    better = gain(photo, metric)
                    row[f"input_{metric}"] = rounded(photo.input[metric])
                    row[metric] = rounded(photo.scores[metric])
                    row[f"gain_{metric}"] = "" if better is None else rounded(better)
                writer.writerow({**row, "degraded": photo.pair.degraded, "clear": photo.pair.clear})
            for name, reason in result.failed.items():
                writer.writerow({**common, "photo": name, "failed": reason})


def pages_of(path: Path) -> list[Path]:
    """The comparisons that an earlier photos.csv lists and that are there; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            named = [row.get("page") or "" for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    home = path.parent.resolve()
    found = [home / name for name in named if name.endswith(".jpg")]
    return [page for page in found if page.resolve().parent.parent == home and page.is_file()]


def photo_table(results: Sequence[SetScores], most: int | None = FEW) -> Table:
    """The `most` worst photos of each set (None: all of them) as a rich table that fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cut = most is not None and any(len(result.photos) > most for result in results)
    caption = f"the worst {most} of a set (all: --photos); gain: against the input" if cut else "worst first"
    grid = Table(caption=caption, box=SIMPLE_HEAD)
    grid.add_column("photo", no_wrap=True)
    for heading in ("PSNR dB", "input", "gain", "SSIM", "input", "gain"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        if len(results) > 1:
            grid.add_row(Text(short(result.data, WIDE), style="bold"))
        for photo in worst_first(result)[:most]:
            cells: list[Any] = []
            for metric, places in (("psnr", 2), ("ssim", 3)):
                better = gain(photo, metric)
                better = None if better is None else round(better, places) + 0.0  # never "-0.00"
                words = "" if better is None else f"{better:+.{places}f}"
                style = "red" if better is not None and better < 0 else ""
                cells += [f"{photo.scores[metric]:.{places}f}", f"{photo.input[metric]:.{places}f}", Text(words, style)]
            grid.add_row(Text((" " if len(results) > 1 else "") + short(photo.pair.name, WIDE)), *cells)
        grid.add_section()
    return grid
