"""JPEG: tables, subsampling, progressive, grey, RGB and CMYK come back as they were."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fairweather import images
from tests.images.samples import inks, rewritten


@pytest.mark.parametrize("quality", [30, 75, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_keeps_its_quantization(
    quality: int, subsampling: int, progressive: bool, photo: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path, quality=quality, subsampling=subsampling, progressive=progressive)
    with Image.open(path) as first, Image.open(rewritten(path)) as again:
        assert isinstance(first, JpegImagePlugin.JpegImageFile)
        assert isinstance(again, JpegImagePlugin.JpegImageFile)
        effective = [[list(im.quantization[component[3]]) for component in im.layer] for im in (first, again)]
        assert effective[0] == effective[1]
        assert JpegImagePlugin.get_sampling(again) == subsampling
        assert bool(again.info.get("progressive")) == progressive
        if quality < 100:  # at 100 the tables are all ones, and one table does
            assert again.quantization == first.quantization


def test_jpeg_with_uncommon_tables(photo: np.ndarray, tmp_path: Path) -> None:
    tables = [[1 + (k * i) % 37 for i in range(64)] for k in (1, 2, 3)]
    Image.fromarray(photo).save(tmp_path / "a.jpg", qtables=tables, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as first, Image.open(rewritten(tmp_path / "a.jpg")) as again:
        assert len(first.quantization) == 3  # type: ignore[attr-defined]
        assert again.quantization == first.quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_pixels_are_those_of_pillow(subsampling: int, photo: np.ndarray, tmp_path: Path) -> None:
    odd = np.ascontiguousarray(photo[:95, :127])
    Image.fromarray(odd).save(tmp_path / "a.jpg", quality=80, subsampling=subsampling)
    with Image.open(tmp_path / "a.jpg") as first:
        assert np.array_equal(images.read(tmp_path / "a.jpg").pixels, np.asarray(first))


def test_jpeg_that_stores_rgb(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=95, keep_rgb=True)
    with Image.open(tmp_path / "a.jpg") as first:
        assert np.array_equal(images.read(tmp_path / "a.jpg").pixels, np.asarray(first))
    with Image.open(rewritten(tmp_path / "a.jpg")) as again:
        assert [component[0] for component in again.layer] == [82, 71, 66]  # type: ignore[attr-defined]
        assert np.abs(np.asarray(again).astype(int) - photo).mean() < 2


def test_noise_at_the_finest_quality(rng: np.random.Generator, tmp_path: Path) -> None:
    noise = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    _, data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_PROGRESSIVE, 1,
                                           cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])  # fmt: skip
    (tmp_path / "a.jpg").write_bytes(data.tobytes())
    assert np.array_equal(images.read(rewritten(tmp_path / "a.jpg")).pixels.shape, noise.shape)


def test_grey_jpeg_stays_grey(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).convert("L").save(tmp_path / "a.jpg", quality=60)
    read = images.read(tmp_path / "a.jpg")
    assert np.array_equal(read.pixels[..., 0], read.pixels[..., 2])
    with Image.open(tmp_path / "a.jpg") as first, Image.open(rewritten(tmp_path / "a.jpg")) as again:
        assert again.mode == "L"
        assert again.quantization == first.quantization  # type: ignore[attr-defined]
    # a colour cast that a network adds is weighed back to luma (ITU-R BT.601)
    images.write(tmp_path / "b.jpg", read.replaced(np.full_like(read.pixels, (250, 100, 40))))
    luma = images.read(tmp_path / "b.jpg").pixels
    assert np.abs(luma.astype(int) - round(0.299 * 250 + 0.587 * 100 + 0.114 * 40)).max() <= 1


def test_cmyk_jpeg_stays_cmyk(photo: np.ndarray, alpha: np.ndarray, tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(alpha, (0, 0), 8)
    source = inks(photo, smooth)
    source.save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()[:200]
    with Image.open(tmp_path / "a.jpg") as first, Image.open(rewritten(tmp_path / "a.jpg")) as again:
        assert again.mode == "CMYK"
        assert again.quantization == first.quantization  # type: ignore[attr-defined]
        assert np.abs(images.read(tmp_path / "a.jpg").pixels.astype(int) - np.asarray(first.convert("RGB"))).max() <= 1
        # inverted plates, or plates in another order, would be off by tens
        assert np.abs(np.asarray(again).astype(int) - np.asarray(first)).mean() < 0.5


def test_cmyk_pixels_survive_theinks(rng: np.random.Generator, tmp_path: Path) -> None:
    """Any other RGB that a network asks for is what the written plates mix to."""
    plates = Image.frombytes("CMYK", (40, 30), rng.integers(0, 256, 4800, dtype=np.uint8).tobytes())
    plates.save(tmp_path / "a.tif")
    read = images.read(tmp_path / "a.tif")
    asked = rng.integers(0, 256, read.pixels.shape, dtype=np.uint8)
    asked[:3] = 0
    asked[3:6] = 255
    images.write(tmp_path / "b.tif", read.replaced(asked))
    assert np.abs(images.read(tmp_path / "b.tif").pixels.astype(int) - asked).max() <= 1
    images.write(tmp_path / "c.png", read)
    with Image.open(tmp_path / "c.png") as plain:
        assert plain.mode == "RGB"
        assert np.array_equal(np.asarray(plain), read.pixels)


def test_black_ink_stays_where_the_colour_allows_it(rng: np.random.Generator, tmp_path: Path) -> None:
    plates = rng.integers(0, 200, (30, 40, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (40, 30), plates.tobytes()).save(tmp_path / "a.tif")
    read = images.read(tmp_path / "a.tif")
    images.write(tmp_path / "darker.tif", read.replaced(read.pixels - read.pixels // 8))
    images.write(tmp_path / "white.tif", read.replaced(np.full_like(read.pixels, 255)))
    with Image.open(tmp_path / "darker.tif") as darker, Image.open(tmp_path / "white.tif") as white:
        assert np.array_equal(np.asarray(darker)[..., 3], plates[..., 3])
        assert not np.asarray(white).any()
