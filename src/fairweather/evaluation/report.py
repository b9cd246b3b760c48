"""Evaluate a restorer on a set or a folder of sets: a table, ``scores.json``, ``photos.csv``, sheets to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairweather.errors import BadFolder, BadSettings
from fairweather.evaluation.pages import Count, checked_count, write_pages
from fairweather.evaluation.photos import NAME, pages_of, write_photos
from fairweather.evaluation.protocols import METRICS, Protocol, find_protocol
from fairweather.evaluation.sets import Restore, SetScores, restored, rounded, score_set
from fairweather.evaluation.sheet import contact_sheet
from fairweather.files import atomic
from fairweather.outputs import make_folder
from fairweather.pairs import Pair, find_sets

if TYPE_CHECKING:
    from rich.table import Table

_WITNESSES = ("fairweather", "numpy", "opencv-python-headless", "pillow", "scikit-image", "openvino", "onnxruntime")


def evaluate(
    restorer: Restore,
    data: str | Path | Mapping[str, Sequence[Pair]],
    protocol: str | Protocol = "rgb",
    out: str | Path | None = None,
    *,
    system: str | None = None,
    sheet: Count | None = None,
    progress: Callable[[str, Pair], None] | None = None,
) -> list[SetScores]:
    """Restore and measure every pair of every set in ``data``; one SetScores a set, in order of their names.

    restorer: H x W x 3 float32 in [0,1] -> the same; ``fairweather.load(...)`` or any function.
    data: a set (a folder with, say, hazy and clear), a folder of sets, or sets as ``find_sets`` gives them.
    out: a folder (made when missing) for ``scores.json``, ``photos.csv`` and a contact sheet for each set.
    sheet: how many photos of each set, worst first (or "all"), get a page in ``out``/SET/: degraded, restored, clear,
        and where the restored one is wrong. Pages that an earlier evaluation left in ``out`` go.
    system: what is being scored, for the record; by default the name on the restorer's card, or the function's.
    progress: called after each photo with the set's name and the pair.

    A photo that fails is in ``failed`` of its set; the rest is scored. Raises UnknownName for a protocol that there is
    not, BadFolder for data without pairs or with unmatched photos, or an ``out`` that cannot be written: each before
    any work; BadSettings for a ``sheet`` below 1 or without ``out``; MissingExtra without scikit-image.
    """
    most = None if sheet is None else checked_count(sheet)
    if sheet is not None and out is None:
        raise BadSettings("sheet: pages need a folder to be written to; give one (--out)")
    rule = find_protocol(protocol) if isinstance(protocol, str) else protocol
    sets = data if isinstance(data, Mapping) else find_sets(data)
    photos = [photo for pairs in sets.values() for pair in pairs for photo in (pair.degraded, pair.clear)]
    folder = None if out is None else made_folder(Path(out), photos)
    results = []
    for name, pairs in sets.items():
        tell = None if progress is None else _named(progress, name)
        results.append(score_set(name, pairs, restored(restorer), rule, progress=tell))
    if folder is not None:
        write_scores(folder / "scores.json", results, system or _system(restorer))
        for page in pages_of(folder / NAME):
            page.unlink()
            with suppress(OSError):  # the folder goes with the last of its pages
                page.parent.rmdir()
        pages: dict[tuple[str, str], str] = {}
        for result in results:
            place = folder / result.data.replace("/", "-")
            if result.photos:
                contact_sheet(place.with_name(f"{place.name}.jpg"), result, restored(restorer))
            if sheet is not None:
                for name, page in write_pages(place, result, restored(restorer), most).items():
                    pages[result.data, name] = page.relative_to(folder).as_posix()
        write_photos(folder / NAME, results, pages)
    return results


def write_scores(path: Path, results: Sequence[SetScores], system: str) -> None:
    """One JSON file: protocol, versions, the means of each set, and every photo's own numbers."""
    protocols = {result.protocol.name: result.protocol for result in results}
    document = {
        "system": system,
        "protocols": {p.name: {"description": p.description, "source": p.source} for p in protocols.values()},
        "versions": _versions(),
        "sets": [_set_record(result) for result in results],
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def table(results: Sequence[SetScores], title: str = "") -> Table:
    """The means as a rich table that fits 80 columns: one row a set, the input's own scores beside the restorer's."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text  # a name may hold [brackets], which rich would take for its own markup

    protocols = sorted({result.protocol.name for result in results})
    caption = f"mean over n photos ± standard deviation; protocol {', '.join(protocols)}; worse: photos below the input"
    grid = Table(title=title or None, caption=caption, box=SIMPLE_HEAD)
    failures = any(result.failed for result in results)
    for heading in ("data", "n", "PSNR dB", "input", "SSIM", "input", "worse", *(("failed",) if failures else ())):
        grid.add_column(heading, justify="left" if heading == "data" else "right", no_wrap=True)
    for result in results:
        cells: list[Any] = [
            Text(result.data),
            str(len(result.photos)),
            "",
            "",
            "",
            "",
            "",
            str(len(result.failed) or ""),
        ]
        if result.photos:
            decibel, structure = result.scores
            spread = "" if decibel.spread is None else f" ± {decibel.spread:.2f}"
            cells[2:4] = [f"{decibel.value:.2f}{spread}", f"{decibel.input:.2f}"]
            cells[4:7] = [f"{structure.value:.3f}", f"{structure.input:.3f}", str(decibel.worse)]
        grid.add_row(*cells[: len(grid.columns)])
    return grid


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
    for name in _WITNESSES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _system(restorer: Restore) -> str:
    card = getattr(restorer, "card", None)
    return str(getattr(card, "name", None) or getattr(restorer, "__name__", type(restorer).__name__))


def _named(progress: Callable[[str, Pair], None], name: str) -> Callable[[Pair], None]:
    return lambda pair: progress(name, pair)


def made_folder(folder: Path, inputs: Iterable[Path] = ()) -> Path:
    """The folder, made where it is missing. Raises BadFolder where it cannot be made or written, and where inputs lie
    in it: sheets of an earlier evaluation are removed there, and a photo may bear the name of one."""
    place = os.path.realpath(folder)
    for path in inputs:
        if os.path.realpath(path.parent) == place:
            raise BadFolder(f"{folder} holds the input {path}; choose another folder with --out")
    make_folder(folder, "--out")
    if not os.access(folder, os.W_OK):
        raise BadFolder(f"{folder} cannot be written; give a folder that can")
    return folder
