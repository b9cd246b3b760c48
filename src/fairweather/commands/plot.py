"""`fairweather plot RUN...`: loss curves of runs as an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro


def plot(
    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
    ],
    /,
    *,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", aliases=["-o"], help_behavior_hint="(default: RUN/losses.png)")
    ] = None,
) -> int:
    """Plot the losses and validation PSNR of runs over their steps. Runs may be in progress or killed.

    Args:
        runs: Run folders of `fairweather train`.
        out: The image to write: PNG, SVG, PDF or JPEG by its suffix.
    """
    if not runs:
        print("fairweather plot: no run folder: name one or more (see --help)", file=sys.stderr)
        return 2
    from fairweather.files import check_place, refuse_inputs
    from fairweather.training.curves import draw_curves, read_curves

    path = out or runs[0] / "losses.png"
    check_place(path)
    refuse_inputs([path], [run / name for run in runs for name in ("stats.jsonl", "run.json")])
    draw_curves([read_curves(run) for run in runs], path)
    print(f"the curves are in {path}")
    return 0
