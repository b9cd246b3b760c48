"""`fairweather restore`: photos in, clear photos out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from fairweather.restoring import folder


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
    ],
    /,
    *,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="OUT", aliases=["-o"], help_behavior_hint="(default: restored)")
    ] = None,
    model: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "dehaze",
    strength: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0,
    engine: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto",
    overwrite: bool = False,
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = 200_000_000,
) -> int:
    """Take the weather out of photos. The exit code is the number of photos that failed (100 at most).

    A model that was exported to degrade puts its weather into clear photos instead. Inputs are never written over.
    What is there already is skipped, so that an interrupted call can be repeated.

    Args:
        inputs: photos, folders (searched through, their structure kept) or quoted patterns.
        out: a folder, or a picture if there is one input; degraded/ by default where the model degrades.
        model: a shipped model (`fairweather models` lists them), or the path of a model folder or run folder.
        strength: from 0 (the photo as it was) to 1 (all that the model does).
        engine: what runs the network; auto takes openvino, else onnxruntime, else torch.
        overwrite: restore what is there already once more.
        max_pixels: refuse larger photos before decoding them.
    """
    if not inputs:
        print("fairweather restore: name the photos, folders or patterns (see --help)", file=sys.stderr)
        return 2
    from fairweather import cards
    from fairweather.errors import BadSettings
    from fairweather.restoring import folder, load  # here: they bring OpenCV, and --help should not wait for it

    if not 0 <= strength <= 1:  # before anything is opened; NaN is refused too
        raise BadSettings(f"--strength must be from 0 (untouched) to 1, not {strength:g}")
    card = cards.read_card(cards.find(model), verify=False)
    degrades = card.direction == "degrade"
    jobs = folder.plan(inputs, Path("degraded") if degrades and out is None else out)
    restorer = load(model, engine=engine)
    report = folder.run(
        jobs,
        lambda pixels: restorer(pixels, strength),
        strength=strength,
        overwrite=overwrite,
        max_pixels=max_pixels,
    )
    for _, message in report.failed:
        print(f"not {'done' if degrades else 'restored'}: {message}", file=sys.stderr)
    print(_summary(report, jobs, f"given {card.weather}" if degrades else "restored"))
    return min(len(report.failed), 100)


def _summary(report: folder.Report, jobs: list[folder.Job], done: str) -> str:
    """One line: what was done, how fast, and where it is."""
    where = jobs[0].destination if len(jobs) == 1 else _common(jobs)
    parts = [f"{report.done} of {len(jobs)} photos {done} in {report.seconds:.1f} s"]
    if report.skipped:
        parts.append(f"{report.skipped} were there already (--overwrite does them again)")
    if report.failed:
        parts.append(f"{len(report.failed)} failed")
    there = report.done or report.skipped  # else nothing is where it was to go
    return ", ".join(parts) + (f": {where}" if there else "")


def _common(jobs: list[folder.Job]) -> Path:
    return Path(os.path.commonpath([job.destination.parent for job in jobs]))
