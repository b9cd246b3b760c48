"""`fairweather plot RUN...`: a run's loss curves as a picture."""

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
    """Draw the losses and the validation of a run over its steps, or of several runs over each other.

    Works on a run in progress and on one that was killed.

    Args:
        runs: run folders, as `fairweather train` leaves them.
        out: the picture to write, by its suffix PNG, SVG, PDF or JPEG; by default losses.png in the first run.
    """
    if not runs:
        print("fairweather plot: name a run folder, or several (see --help)", file=sys.stderr)
        return 2
    from fairweather.outputs import check_place, refuse_inputs
    from fairweather.training.curves import draw_curves, read_curves

    path = out or runs[0] / "losses.png"
    check_place(path)
    refuse_inputs([path], [run / name for run in runs for name in ("stats.jsonl", "run.json")])
    draw_curves([read_curves(run) for run in runs], path)
    print(f"the curves are in {path}")
    return 0
