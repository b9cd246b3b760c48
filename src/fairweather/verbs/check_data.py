"""`fairweather check-data`: what is wrong with a folder of training data."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fairweather.data.audit import Audit, Finding

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
EXAMPLES = 5


def check_data(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    /,
    *,
    against: Annotated[Path | None, tyro.conf.arg(metavar="DIR2")] = None,
    fast: bool = False,
    crop: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    all: bool = False,
    json: File = None,
) -> int:
    """Look for what spoils training: broken files, pairs that do not fit or are shifted, copies, frames, odd kinds.

    The exit code is 1 where there are errors: what training refuses, or what makes a score worthless.

    Args:
        folder: pairs, a folder of sets of pairs, or photos. With train and test in it, these are compared.
        against: test data that should share no picture with DIR.
        fast: names, sizes and kinds alone; no photo is decoded.
        crop: side of the training crops in pixels; smaller photos are named.
        all: name every file, not the first five of each kind.
        json: a file to write all findings to.
    """
    from fairweather.data.audit import audit
    from fairweather.files import atomic
    from fairweather.outputs import check_place, refuse_inputs
    from fairweather.pairs import pictures

    if json is not None:
        check_place(json, "--json")
        if json.exists():
            photos = [photo for one in (folder, against) if one is not None for photo in pictures(one)]
            refuse_inputs([json], photos, "--json")
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("photos", total=None)
        found = audit(
            folder,
            against=against,
            fast=fast,
            crop=crop,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in report(found, None if all else EXAMPLES):
        print(line)
    if json is not None:
        with atomic(json) as path:
            path.write_text(json_format.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if found.count("error") else 0


def report(found: Audit, examples: int | None) -> list[str]:
    """The lines to print: a block a kind, the worst first, and the count at the end."""
    from fairweather.data.audit import KINDS

    lines = [_looked_at(found), ""]
    for name, kind in KINDS.items():
        same = [finding for finding in found.findings if finding.kind == name]
        if not same:
            continue
        lines.append(f"{kind.severity}: {kind.title} ({len(same)})")
        lines += [f"    {_line(finding, found.folder, examples)}" for finding in same[:examples]]
        if len(same) > len(same[:examples]):
            lines.append(f"    ... and {len(same) - len(same[:examples])} more (--all, --json)")
        lines += [f"    -> {kind.remedy}", ""]
    counts = ", ".join(_many(found.count(severity), severity) for severity in ("error", "warning", "note"))
    return [*lines, counts]


def _looked_at(found: Audit) -> str:
    pairs = sum(found.sets.values())
    parts = [_many(found.photos, "photo")]
    if found.sets:
        parts.append(f"{_many(pairs, 'pair')} in {_many(len(found.sets), 'set')}")
        parts.append(f"{found.alone} in no pair")
    return f"{found.folder}: {', '.join(parts)}"


def _line(finding: Finding, folder: Path, examples: int | None) -> str:
    names = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in finding.files]
    most = None if examples is None else max(2, examples)
    words = ", ".join(f"{name}" for name in names[:most])
    if len(names) > len(names[:most]):
        words += f" and {len(names) - len(names[:most])} more"
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    return f"{words}: {finding.what}{remedy}" if finding.what else words


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
