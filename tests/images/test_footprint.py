"""The memory estimate of a photo against the operating system's peak, for every kind of file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather import images
from fairweather.images.formats import FORMATS
from fairweather.inference.memory import photo_footprint
from tests.conftest import ROOT

CHILD = """
import ctypes, json, sys
from pathlib import Path
from fairweather import images
from fairweather.inference.memory import photo_footprint as footprint
from fairweather.images.formats import FORMATS

ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 20)  # freed memory goes back to the system

def status(name):
    line, = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def peak(work):
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    before = status("VmRSS")
    result = work()
    return status("VmHWM") - before, result

found = {}
for given, target in json.loads(sys.argv[1]):
    bound = footprint(images.header(given), FORMATS[Path(target).suffix])
    reading, photo = peak(lambda: images.read(given))
    writing, _ = peak(lambda: images.write(target, photo))
    del photo
    found[Path(given).name + Path(target).suffix] = [reading, bound.reading, writing, bound.writing - bound.held]
print(json.dumps(found))
"""


def kinds(folder: Path) -> list[tuple[str, str]]:
    """Every kind of file with 2 megapixels, and what it is written as."""
    pixels = np.tile(images.read(ROOT / "examples" / "old_town.jpg").pixels, (4, 3, 1))[:1400, :1400]
    photo, deep = Image.fromarray(pixels), pixels.astype(np.uint16) * 257
    clear = photo.copy()
    clear.putalpha(128)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "plain.jpg", quality=92)
    photo.save(folder / "progressive.jpg", quality=92, subsampling=0, progressive=True)
    photo.save(folder / "turned.jpg", quality=92, exif=turned)
    photo.convert("L").save(folder / "grey.jpg", quality=92)
    photo.convert("CMYK").save(folder / "inks.jpg", quality=92)
    for name, picture in (("plain", photo), ("alpha", clear), ("grey", photo.convert("L"))):
        picture.save(folder / f"{name}.png", compress_level=1)
    cv2.imwrite(str(folder / "deep.png"), deep, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    cv2.imwrite(str(folder / "deep.tif"), deep)
    photo.save(folder / "plain.bmp")
    photo.save(folder / "plain.webp", quality=90, method=0)
    given = [path.name for path in sorted(folder.iterdir())]
    pairs = [(name, Path(name).suffix) for name in given] + [("deep.png", ".jpg"), ("alpha.png", ".jpg")]
    (folder / "out").mkdir()
    return [(str(folder / name), str(folder / "out" / f"{Path(name).stem}{suffix}")) for name, suffix in pairs]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_no_file_takes_more_than_its_footprint(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CHILD, json.dumps(kinds(tmp_path))]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 14
    for name, (reading, most_reading, writing, most_writing) in found.items():
        assert reading <= most_reading, f"reading {name}"
        assert writing <= most_writing, f"writing {name}"
        assert reading >= most_reading / 5, f"reading {name}: the bound is far from what is measured"


def test_it_grows_with_the_photo_and_its_depth(tmp_path: Path) -> None:
    sizes = {}
    for side in (100, 200):
        for name, dtype in (("a", np.uint8), ("deep", np.uint16)):
            images.write(tmp_path / f"{name}.png", np.zeros((side, side, 3), dtype))
            sizes[side, name] = photo_footprint(images.header(tmp_path / f"{name}.png"), FORMATS[".png"])
    for name in ("a", "deep"):
        assert sizes[200, name].held == 4 * sizes[100, name].held
        assert sizes[200, name].pixels == 4 * sizes[100, name].pixels
    assert sizes[200, "deep"].held == 2 * sizes[200, "a"].held == 2 * 3 * 200 * 200
    assert sizes[200, "deep"].reading > sizes[200, "a"].reading
