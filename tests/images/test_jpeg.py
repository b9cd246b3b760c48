"""Damaged JPEGs are found, whatever their kind; whole ones are never rejected."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairweather import images
from fairweather.errors import BadImage
from fairweather.images.jpeg import find_damage, has_end
from tests.conftest import ROOT

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fine": {"subsampling": 0, "quality": 95},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 5},
    "restart rows": {"restart_marker_rows": 1},
}


def encode(pixels: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def town() -> np.ndarray:
    return images.read(ROOT / "examples" / "old_town.jpg").pixels


def damage(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "middle zeroed": data[:middle] + bytes(2048) + data[middle + 2048 :],
        "cut and closed": data[: len(data) // 3] + b"\xff\xd9",
        "cut": data[: int(0.99 * len(data))],
        "cut in its header": data[: len(data) // 100],
    }[how]


@pytest.mark.parametrize("how", ["middle zeroed", "cut and closed", "cut", "cut in its header"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_jpeg_is_rejected(kind: str, mode: str, how: str, town: np.ndarray, tmp_path: Path) -> None:
    data = encode(town, mode, **KINDS[kind])
    (tmp_path / "whole.jpg").write_bytes(data)
    images.check(tmp_path / "whole.jpg")
    (tmp_path / "a.jpg").write_bytes(damage(data, how))
    with pytest.raises(BadImage, match=r"a\.jpg .*get a complete copy"):
        images.check(tmp_path / "a.jpg")


def test_a_few_bytes_that_claim_many_megapixels_are_rejected(tmp_path: Path) -> None:
    data = bytearray(encode(np.zeros((16, 16, 3), np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (4000).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(BadImage, match="ends before the picture is complete"):
        images.check(tmp_path / "a.jpg")


def test_the_thumbnails_end_marker_is_not_the_photos(town: np.ndarray) -> None:
    data = encode(town, exif=b"Exif\0\0II*\0" + encode(town[:32, :32]))
    assert has_end(data)
    assert not has_end(data[: len(data) // 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("look", ["grey", "white", "grey below", "noise"])
def test_a_whole_jpeg_is_never_rejected(look: str, kind: str, rng: np.random.Generator) -> None:
    """Flat pictures are compressed to runs of zeros, and neutral grey is what damage looks like."""
    for height, width in ((1, 1), (65, 50), (300, 200)):
        pixels = np.full((height, width, 3), 255 if look == "white" else 128, np.uint8)
        if look in ("noise", "grey below"):
            part = pixels[: height if look == "noise" else height // 2]
            part[:] = rng.integers(0, 256, part.shape)
        for mode in ("RGB", "L", "CMYK"):
            data = encode(pixels, mode, **KINDS[kind])
            for whole in (data, data[:-2] + bytes(100) + data[-2:], data + bytes(300)):  # padded; with a trailer
                assert find_damage(whole, np.asarray(Image.open(io.BytesIO(whole)))) is None
