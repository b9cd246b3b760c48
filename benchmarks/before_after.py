"""Draw the README's picture: example photos (left) and their restored versions (right).

python benchmarks/before_after.py [PHOTO ...] [-o docs/before-after.jpg]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from measuring import EXAMPLES
from PIL import Image

import fairweather
from fairweather import images

WIDTH, GAP = 480, 6


def before_after(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional] = (
        EXAMPLES / "lighthouse.jpg",
        EXAMPLES / "mountain_river.jpg",
        EXAMPLES / "shutters.jpg",
    ),
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("docs/before-after.jpg"),
    model: str = "auto",
) -> None:
    """Write a picture with one row per photo: the input and the restored photo."""
    restorer = fairweather.load(model)
    rows = []
    for path in photos:
        pixels = images.read(path).pixels
        row = [Image.fromarray(side) for side in (pixels, restorer(pixels))]
        height = round(WIDTH * pixels.shape[0] / pixels.shape[1])
        rows.append([np.asarray(side.resize((WIDTH, height), Image.Resampling.LANCZOS)) for side in row])
    sheet = np.full((sum(row[0].shape[0] + GAP for row in rows) - GAP, 2 * WIDTH + GAP, 3), 255, np.uint8)
    top = 0
    for left, right in rows:
        sheet[top : top + len(left), :WIDTH] = left
        sheet[top : top + len(right), WIDTH + GAP :] = right
        top += len(left) + GAP
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out, quality=88)


if __name__ == "__main__":
    tyro.cli(before_after)
