"""`fairweather check-data`: find faults in a folder of training data."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fairweather.data.audit import Audit

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
EXAMPLES = 5


def check_data(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    /,
    *,
    against: Annotated[Path | None, tyro.conf.arg(metavar="DIR2", help_behavior_hint="")] = None,
    fast: bool = False,
    crop: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    all: bool = False,
    json: File = None,
) -> int:
    """Find faults in training data: broken files, pairs that do not match, copies, borders, unusual formats.

    The exit code is 3 if there are errors, i.e. data that training rejects or that makes scores meaningless.

    Args:
        folder: Folder of pairs, of sets of pairs, or of photos. Folders called train and test are compared.
        against: Test data that must not share pictures with DIR.
        fast: Check names, sizes and formats only, without decoding photos.
        crop: Side of the training crops in pixels; smaller photos are reported.
        all: List every file instead of the first five of each kind.
        json: Write all findings to this file.
    """
    from fairweather.data.audit import audit
    from fairweather.files import atomic, check_place, refuse_inputs
    from fairweather.pairs import pictures

    if json is not None:
        check_place(json, "--json")
        if json.exists():
            photos = [photo for one in (folder, against) if one is not None for photo in pictures(one)]
            refuse_inputs([json], photos, "--json")
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("photos", total=None)
        result = audit(
            folder,
            against=against,
            fast=fast,
            crop=crop,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in report(result, None if all else EXAMPLES):
        print(line)
    if json is not None:
        with atomic(json) as path:
            path.write_text(json_format.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 3 if result.count("error") else 0


def report(result: Audit, examples: int | None) -> list[str]:
    """Format an audit: a summary, a block of at most `examples` lines for each kind of finding, and the counts."""
    from fairweather.data.audit import FINDING_KINDS, SEVERITIES

    summary = [_count(result.photos, "photo")]
    if result.sets:
        pairs, sets = _count(sum(result.sets.values()), "pair"), _count(len(result.sets), "set")
        summary += [f"{pairs} in {sets}", f"{result.unpaired} in no pair"]
    lines = [f"{result.folder}: {', '.join(summary)}", ""]
    for name, kind in FINDING_KINDS.items():
        findings = [finding for finding in result.findings if finding.kind == name]
        if not findings:
            continue
        lines.append(f"{kind.severity}: {kind.title} ({len(findings)})")
        for finding in findings[:examples]:
            files = _files(finding.files, result.folder, examples)
            remedy = f" ({finding.remedy})" if finding.remedy else ""
            lines.append(f"    {files}: {finding.what}{remedy}" if finding.what else f"    {files}")
        if len(findings) > len(findings[:examples]):
            lines.append(f"    ... and {len(findings) - len(findings[:examples])} more (--all, --json)")
        lines += [f"    -> {kind.remedy}", ""]
    return [*lines, ", ".join(_count(result.count(severity), severity) for severity in SEVERITIES)]


def _files(files: tuple[Path, ...], folder: Path, examples: int | None) -> str:
    names = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in files]
    shown = names if examples is None else names[: max(2, examples)]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
