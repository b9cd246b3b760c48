"""Evaluate a restorer on sets of pairs: tables, `scores.json`, `photos.csv`, contact sheets and pages."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairweather.errors import BadFolder, BadSettings
from fairweather.evaluation.metrics import METRICS, Protocol, find_protocol
from fairweather.evaluation.scores import Restore, SetScores, restore_pairs, rounded, score_set
from fairweather.evaluation.sheets import Count, checked_count, contact_sheet, short, write_pages
from fairweather.files import atomic, make_folder
from fairweather.pairs import Pair, find_sets

if TYPE_CHECKING:
    from rich.table import Table

PHOTOS_CSV = "photos.csv"
TABLE_ROWS = 3
TABLE_WIDTH = 21
"""Characters of a name in a table."""
COLUMNS = (
    *("set", "rank", "photo", "protocol"),
    *(f"{kind}{metric}" for metric in METRICS for kind in ("input_", "", "gain_")),
    *("degraded", "clear", "page", "failed"),
)
"""Columns of photos.csv: `rank` 1 is the worst photo of its set; `page` is relative to the folder of photos.csv."""
_PACKAGES = (*("fairweather", "numpy", "opencv-python-headless", "pillow", "scikit-image", "openvino", "onnxruntime"),)
"""Packages whose versions are recorded."""


def evaluate_model(
    restorer: Restore,
    data: str | Path | Mapping[str, Sequence[Pair]],
    protocol: str | Protocol = "rgb",
    out: str | Path | None = None,
    *,
    system: str | None = None,
    sheet: Count | None = None,
    progress: Callable[[str, Pair], None] | None = None,
) -> list[SetScores]:
    """Restore and measure every pair of every set.

    Args:
        restorer: H x W x 3 float32 in [0, 1] -> the same: `fairweather.load(...)` or any function.
        data: a set (a folder with e.g. hazy/ and clear/), a folder of sets, or sets as from `find_sets`.
        protocol: how photos are compared, see `PROTOCOLS`.
        out: a folder for `scores.json`, `photos.csv` and a contact sheet for each set; created if missing.
        system: what is evaluated, for `scores.json` (default: the name on the restorer's card, or the function's).
        sheet: how many photos of each set, worst first (or "all"), get a page in `out`/SET/: degraded, restored, clear,
            and a map of the error. Pages of an earlier evaluation in `out` are removed.
        progress: called after each photo with the name of the set and the pair.

    Returns:
        One SetScores for each set, sorted by name. A photo that fails is in its `failed`.

    Raises:
        UnknownName: there is no such protocol.
        BadFolder: there are no pairs, a photo has no partner, or `out` cannot be written.
        BadSettings: `sheet` is below 1, or given without `out`.
        MissingExtra: scikit-image is missing.
    """
    most = None if sheet is None else checked_count(sheet)
    if sheet is not None and out is None:
        raise BadSettings("sheet is given without a folder for the pages: add --out")
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    sets = data if isinstance(data, Mapping) else find_sets(data)
    photos = [photo for pairs in sets.values() for pair in pairs for photo in (pair.degraded, pair.clear)]
    folder = None if out is None else make_report_folder(Path(out), photos)
    produce = restore_pairs(restorer)
    results = []
    for name, pairs in sets.items():
        step = None if progress is None else lambda pair, name=name: progress(name, pair)
        results.append(score_set(name, pairs, produce, protocol, progress=step))
    if folder is None:
        return results
    write_scores(folder / "scores.json", results, system or _system_name(restorer))
    for page in pages_of(folder / PHOTOS_CSV):
        page.unlink()
        with suppress(OSError):  # the folder is removed with the last of its pages
            page.parent.rmdir()
    pages: dict[tuple[str, str], str] = {}
    for result in results:
        place = folder / result.data.replace("/", "-")
        if result.photos:
            contact_sheet(place.with_name(f"{place.name}.jpg"), result, produce)
        if sheet is not None:
            for name, page in write_pages(place, result, produce, most).items():
                pages[result.data, name] = page.relative_to(folder).as_posix()
    write_photos(folder / PHOTOS_CSV, results, pages)
    return results


def make_report_folder(folder: Path, inputs: Iterable[Path] = ()) -> Path:
    """Create the folder of a report.

    Raises:
        BadFolder: it cannot be created or written, or contains inputs, which might be removed as old sheets.
    """
    place = os.path.realpath(folder)
    for path in inputs:
        if os.path.realpath(path.parent) == place:
            raise BadFolder(f"{folder} contains the input {path}: choose another folder with --out")
    make_folder(folder, "--out")
    if not os.access(folder, os.W_OK):
        raise BadFolder(f"{folder} cannot be written (permission denied): choose another folder with --out")
    return folder


def write_scores(path: Path, results: Sequence[SetScores], system: str) -> None:
    """Write `scores.json`: protocol, versions, the scores of each set, and the metrics of every photo."""
    protocols = {result.protocol.name: result.protocol for result in results}
    document = {
        "system": system,
        "protocols": {p.name: {"description": p.description, "source": p.source} for p in protocols.values()},
        "versions": _versions(),
        "sets": [_set_record(result) for result in results],
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_photos(path: Path, results: Sequence[SetScores], pages: Mapping[tuple[str, str], str] | None = None) -> None:
    """Write `photos.csv`: one row for each photo, each set's worst first, then those that failed, with the reason.

    Args:
        path: the file.
        results: the sets.
        pages: (set, photo) -> the file of its page.
    """
    with csv_writer(path, COLUMNS) as writer:
        for result in results:
            common = {"set": result.data, "protocol": result.protocol.name}
            for rank, photo in enumerate(result.worst_first(), start=1):
                name = photo.pair.name
                row = {**common, "rank": rank, "photo": name, "page": (pages or {}).get((result.data, name), "")}
                for metric in METRICS:
                    gain = photo.gain(metric)
                    row[f"input_{metric}"] = rounded(photo.input[metric])
                    row[metric] = rounded(photo.scores[metric])
                    row[f"gain_{metric}"] = "" if gain is None else rounded(gain)
                writer.writerow({**row, "degraded": photo.pair.degraded, "clear": photo.pair.clear})
            for name, reason in result.failed.items():
                writer.writerow({**common, "photo": name, "failed": reason})


def pages_of(path: Path) -> list[Path]:
    """Return the existing pages that an earlier `photos.csv` lists; none if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            names = [row.get("page") or "" for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    home = path.parent.resolve()
    found = [home / name for name in names if name.endswith(".jpg")]
    return [page for page in found if page.resolve().parent.parent == home and page.is_file()]


@contextmanager
def csv_writer(path: Path, columns: Sequence[str]) -> Iterator[csv.DictWriter[str]]:
    """Yield a writer of a CSV file with a header; the file is written atomically."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        yield writer


def score_table(results: Sequence[SetScores], title: str = "") -> Table:
    """Return the scores as a table for 80 columns: a row for each set, with the scores of the degraded photos."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text  # rich would interpret [brackets] in a plain string

    protocols = sorted({result.protocol.name for result in results})
    caption = f"mean over n photos ± standard deviation; protocol {', '.join(protocols)}; worse: photos below the input"
    table = Table(title=title or None, caption=caption, box=SIMPLE_HEAD)
    failures = any(result.failed for result in results)
    for heading in ("data", "n", "PSNR dB", "input", "SSIM", "input", "worse", *(("failed",) if failures else ())):
        table.add_column(heading, justify="left" if heading == "data" else "right", no_wrap=True)
    for result in results:
        cells = [""] * 5
        if result.photos:
            psnr, ssim = result.scores
            spread = "" if psnr.spread is None else f" ± {psnr.spread:.2f}"
            cells = [f"{psnr.value:.2f}{spread}", f"{psnr.input:.2f}", f"{ssim.value:.3f}", f"{ssim.input:.3f}"]
            cells.append(str(psnr.worse))
        if failures:
            cells.append(str(len(result.failed) or ""))
        table.add_row(Text(result.data), str(len(result.photos)), *cells)
    return table


def photo_table(results: Sequence[SetScores], most: int | None = TABLE_ROWS) -> Table:
    """Return the worst photos of each set as a table for 80 columns.

    Args:
        results: the sets.
        most: photos of each set; None for all.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cut = most is not None and any(len(result.photos) > most for result in results)
    caption = f"the worst {most} of a set (all: --photos); gain: over the input" if cut else "worst first"
    table = Table(caption=caption, box=SIMPLE_HEAD)
    table.add_column("photo", no_wrap=True)
    for heading in ("PSNR dB", "input", "gain", "SSIM", "input", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        if len(results) > 1:
            table.add_row(Text(short(result.data, TABLE_WIDTH), style="bold"))
        for photo in result.worst_first()[:most]:
            cells: list[Any] = []
            for metric, places in (("psnr", 2), ("ssim", 3)):
                gain = photo.gain(metric)
                gain = None if gain is None else round(gain, places) + 0.0  # never "-0.00"
                text = "" if gain is None else f"{gain:+.{places}f}"
                style = "red" if gain is not None and gain < 0 else ""
                cells += [f"{photo.scores[metric]:.{places}f}", f"{photo.input[metric]:.{places}f}", Text(text, style)]
            table.add_row(Text((" " if len(results) > 1 else "") + short(photo.pair.name, TABLE_WIDTH)), *cells)
        table.add_section()
    return table


def _set_record(result: SetScores) -> dict[str, Any]:
    photos = [
        {
            "name": photo.pair.name,
            "degraded": str(photo.pair.degraded),
            "clear": str(photo.pair.clear),
            **{metric: rounded(photo.scores[metric]) for metric in METRICS},
            "input": {metric: rounded(photo.input[metric]) for metric in METRICS},
        }
        for photo in result.photos
    ]
    return {
        "data": result.data,
        "protocol": result.protocol.name,
        "n": len(result.photos),
        "scores": [score.as_dict() for score in result.scores],
        "photos": photos,
        "failed": result.failed,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _system_name(restorer: Restore) -> str:
    card = getattr(restorer, "card", None)
    return str(getattr(card, "name", None) or getattr(restorer, "__name__", type(restorer).__name__))
