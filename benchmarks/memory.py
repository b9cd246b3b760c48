"""Peak memory of `restore --memory` on large photos, from file to file, as counted by the operating system.

    python benchmarks/memory.py [--memory 2GB] [--model dehaze dehaze-fast derain ...] [--photo 10000x10000.jpg ...]

For each model and photo (mosaics of examples/): peak memory of the process with and without the limit, and the maximum
difference between the two results in levels of 255. A difference of 1 is allowed, since tiles add floats in another
order. The exit code is the number of rows that exceed the limit or the difference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
from folder import watch
from measuring import EXAMPLES, mosaic
from PIL import Image

from fairweather.images.io import read
from fairweather.inference.memory import parse_size

MODELS = ("dehaze", "dehaze-fast", "derain", "derain-fast")
PHOTOS = ("10000x10000.jpg", "10000x10000.png", "30000x2000.jpg")


def make(path: Path) -> None:
    """Write a mosaic with the size and format of the file name."""
    width, height = map(int, path.stem.split("x"))
    photo = Image.fromarray(mosaic(sorted(EXAMPLES.glob("*.jpg")), width, height))
    photo.save(path, **({"compress_level": 1} if path.suffix == ".png" else {"quality": 92, "subsampling": 2}))


def difference(one: Path, other: Path) -> float:
    """Maximum difference of two 8-bit pictures."""
    return float(cv2.absdiff(read(one).pixels, read(other).pixels).max())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="2GB", metavar="SIZE")
    parser.add_argument("--model", nargs="*", default=list(MODELS), metavar="NAME|PATH")
    parser.add_argument("--photo", nargs="*", default=list(PHOTOS), metavar="WIDTHxHEIGHT.SUFFIX")
    options = parser.parse_args(arguments)
    allowed, failed = parse_size(options.memory) / 2**20, 0
    print(f"| model | photo | peak with {options.memory}, MiB | peak without, MiB | greatest difference |")
    print("|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as place:
        for name in options.photo:
            source = Path(place, name)
            make(source)
            for model in options.model:
                results = Path(place, f"bounded-{name}"), Path(place, f"free-{name}")
                words = ["restore", str(source), "--model", model, "--overwrite", "-o"]
                bounded = watch([*words, str(results[0]), "--memory", options.memory])
                free = watch([*words, str(results[1])])
                if bounded.code or free.code:
                    print(
                        f"| {model} | {name} | {(bounded if bounded.code else free).said.splitlines()[-1]} | | |",
                        flush=True,
                    )
                    failed += 1
                    continue
                most = difference(*results)
                failed += bounded.peak >= allowed or most > 1
                print(f"| {model} | {name} | {bounded.peak:.0f} | {free.peak:.0f} | {most:g} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
