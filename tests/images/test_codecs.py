"""Every format, mode and depth is read exactly and written as the same kind of file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from fairweather import images
from fairweather.images import codecs
from tests.images.samples import inks, rewritten


@pytest.fixture
def deep(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 65536, (41, 53, 4), dtype=np.uint16)


LOSSLESS = [(suffix, mode) for suffix in (".png", ".tif") for mode in ("L", "LA", "RGB", "RGBA")]
LOSSLESS += [(".tif", "CMYK"), (".bmp", "L"), (".bmp", "RGB"), (".ppm", "L"), (".ppm", "RGB")]


@pytest.mark.parametrize(("suffix", "mode"), LOSSLESS)
def test_lossless_eight_bits_round_trip(
    suffix: str, mode: str, photo: np.ndarray, alpha: np.ndarray, tmp_path: Path
) -> None:
    source = Image.fromarray(np.dstack([photo, alpha])).convert(mode) if mode != "CMYK" else inks(photo, alpha)
    source.save(tmp_path / f"a{suffix}")
    read = images.read(tmp_path / f"a{suffix}")
    if mode != "CMYK":
        assert np.array_equal(read.pixels, np.asarray(source.convert("RGB")))
    assert read.pixels.dtype == np.uint8
    assert (read.alpha is not None) == mode.endswith("A")
    if read.alpha is not None:
        assert np.array_equal(read.alpha, alpha)
    with Image.open(rewritten(tmp_path / f"a{suffix}")) as again:
        assert again.mode == mode
        assert np.array_equal(np.asarray(again), np.asarray(source))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_round_trip_exactly(suffix: str, channels: int, deep: np.ndarray, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(deep[..., :channels]) if channels > 1 else np.ascontiguousarray(deep[..., 0])
    path = tmp_path / f"a{suffix}"
    flipped = stored if channels == 1 else stored[..., [2, 1, 0, 3][:channels]]
    assert cv2.imwrite(str(path), flipped)
    photo = images.read(path)
    assert photo.pixels.dtype == np.uint16
    assert np.array_equal(photo.pixels, stored[..., :3] if channels > 1 else np.repeat(stored[..., None], 3, 2))
    again = cv2.imread(str(rewritten(path)), cv2.IMREAD_UNCHANGED)
    assert again is not None
    assert again.dtype == np.uint16
    assert np.array_equal(again, flipped)
    if channels == 4:
        assert photo.alpha is not None
        assert np.array_equal(photo.alpha, stored[..., 3])


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: what Pillow and OpenCV cannot write can still be read."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *extra]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def _rows(samples: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)


def test_sixteen_bit_grey_and_alpha_png_round_trip(deep: np.ndarray, tmp_path: Path) -> None:
    height, width = deep.shape[:2]
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, 16, 4, _rows(deep[..., :2])))
    photo = images.read(path)
    assert photo.alpha is not None
    assert np.array_equal(photo.pixels[..., 1], deep[..., 0])
    assert np.array_equal(photo.alpha, deep[..., 1])
    other = rewritten(path)
    data = other.read_bytes()
    assert (data[24], data[25]) == (16, 4)
    again = images.read(other)
    assert np.array_equal(again.pixels, photo.pixels)
    assert np.array_equal(again.alpha, photo.alpha)


def test_sixteen_bit_png_with_one_transparent_colour(deep: np.ndarray, tmp_path: Path) -> None:
    height, width = deep.shape[:2]
    rgb = deep[..., :3].copy()
    rgb[4, 7] = hole = (1000, 2000, 3000)
    (tmp_path / "a.png").write_bytes(png(width, height, 16, 2, _rows(rgb), (b"tRNS", struct.pack(">HHH", *hole))))
    photo = images.read(tmp_path / "a.png")
    assert np.array_equal(photo.pixels, rgb)
    assert photo.alpha is not None
    assert photo.alpha[4, 7] == 0
    assert (photo.alpha == 65535).sum() == height * width - 1


def test_sixteen_bit_grey_and_alpha_tiff_becomes_rgba(deep: np.ndarray, tmp_path: Path) -> None:
    height, width = deep.shape[:2]
    (tmp_path / "a.png").write_bytes(png(width, height, 16, 4, _rows(deep[..., :2])))
    images.write(tmp_path / "a.tif", images.read(tmp_path / "a.png"))
    again = images.read(tmp_path / "a.tif")
    assert again.alpha is not None
    assert np.array_equal(again.alpha, deep[..., 1])
    assert np.array_equal(again.pixels, np.repeat(deep[..., :1], 3, axis=2))


@pytest.mark.parametrize("raw", [True, False])
def test_tiff_stays_compressed_or_not(raw: bool, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.tif", compression=None if raw else "tiff_lzw")
    with Image.open(rewritten(tmp_path / "a.tif")) as again:
        assert again.info["compression"] == ("raw" if raw else "tiff_adobe_deflate")
        assert np.array_equal(np.asarray(again), photo)


def test_tall_tiff_of_many_strips(rng: np.random.Generator, tmp_path: Path) -> None:
    tall = rng.integers(0, 256, (3001, 97, 3), dtype=np.uint8)
    images.write(tmp_path / "a.tif", tall)
    with Image.open(tmp_path / "a.tif") as again:
        assert len(again.tag_v2[273]) > 3  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(again), tall)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_png_stays_one_while_its_colours_fit(transparent: bool, photo: np.ndarray, tmp_path: Path) -> None:
    source = Image.fromarray(photo).quantize(64)
    source.save(tmp_path / "a.png", **({"transparency": bytes(range(0, 128, 2))} if transparent else {}))
    mode = "RGBA" if transparent else "RGB"
    with Image.open(tmp_path / "a.png") as first, Image.open(rewritten(tmp_path / "a.png")) as again:
        assert again.mode == "P"
        assert np.array_equal(np.asarray(again.convert(mode)), np.asarray(first.convert(mode)))
    read = images.read(tmp_path / "a.png")
    images.write(tmp_path / "b.png", read.replaced(photo))
    with Image.open(tmp_path / "b.png") as more:
        assert more.mode == mode
        assert np.array_equal(np.asarray(more)[..., :3], photo)


def test_one_bit_becomes_grey(photo: np.ndarray, tmp_path: Path) -> None:
    source = Image.fromarray(photo).convert("1")
    source.save(tmp_path / "a.png")
    with Image.open(rewritten(tmp_path / "a.png")) as again:
        assert again.mode == "L"
        assert np.array_equal(np.asarray(again), np.asarray(source.convert("L")))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_colour_becomes_alpha(mode: str, photo: np.ndarray, tmp_path: Path) -> None:
    source = Image.fromarray(photo).convert(mode)
    hole: Any = source.getpixel((3, 5))
    source.save(tmp_path / "a.png", transparency=hole)
    read = images.read(tmp_path / "a.png")
    assert read.alpha is not None
    assert read.alpha[5, 3] == 0
    assert read.alpha.max() == 255


# WebP, AVIF, HEIC


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossless_webp_stays_lossless(mode: str, photo: np.ndarray, alpha: np.ndarray, tmp_path: Path) -> None:
    source = Image.fromarray(np.dstack([photo, alpha])).convert(mode)
    source.save(tmp_path / "a.webp", lossless=True, exact=True)
    with Image.open(rewritten(tmp_path / "a.webp")) as again:
        assert np.array_equal(np.asarray(again), np.asarray(source))


LOSSY = [(".webp", "RGB"), (".webp", "RGBA"), (".avif", "RGB"), (".avif", "RGBA"), (".avif", "L")]
LOSSY += [(".heic", "RGB"), (".heic", "RGBA"), (".heic", "L")]


@pytest.mark.parametrize(("suffix", "mode"), LOSSY)
def test_lossy_formats(suffix: str, mode: str, photo: np.ndarray, alpha: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    source = Image.fromarray(np.dstack([photo, alpha])).convert(mode)
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").from_pillow(source).save(path, quality=95)
    else:
        source.save(path, quality=95)
    read = images.read(path)
    assert np.abs(read.pixels.astype(int) - np.asarray(source.convert("RGB"))).mean() < 4
    assert (read.alpha is not None) == (mode == "RGBA")
    again = images.read(rewritten(path))
    assert again.kind.mode == mode
    assert again.kind.format == read.kind.format
    assert np.abs(again.pixels.astype(int) - read.pixels).mean() < 3
    if mode == "RGBA":
        assert np.array_equal(again.alpha, read.alpha)


# from one format to another


def test_a_picture_without_a_jpeg_behind_it_is_written_finely(photo: np.ndarray, tmp_path: Path) -> None:
    images.write(tmp_path / "a.jpg", photo)
    with Image.open(tmp_path / "a.jpg") as again:
        assert JpegImagePlugin.get_sampling(again) == 0
        reference = io.BytesIO()
        Image.fromarray(photo).save(reference, "JPEG", quality=95)
        assert again.quantization == Image.open(reference).quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_pictures_in_every_format(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    if images.FORMATS[suffix] == "HEIF":
        pytest.importorskip("pillow_heif")
    images.write(tmp_path / f"a{suffix}", np.full((*size, 3), 200, np.uint8))
    again = images.read(tmp_path / f"a{suffix}")
    assert again.pixels.shape == (*size, 3)
    assert np.abs(again.pixels.astype(int) - 200).max() <= 4
    other = rewritten(tmp_path / f"a{suffix}")
    assert images.read(other).pixels.shape == (*size, 3)


def test_profiles_follow_the_colour_space_only(photo: np.ndarray, alpha: np.ndarray, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    inks(photo, alpha).save(tmp_path / "a.jpg", icc_profile=profile)
    assert images.read(rewritten(tmp_path / "a.jpg")).kind.icc == profile
    images.write(tmp_path / "a.png", images.read(tmp_path / "a.jpg"))
    assert images.read(tmp_path / "a.png").kind.icc == b""


# JPEG: tables, subsampling and planes


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
        # inverted planes, or planes in another order, would be off by tens
        assert np.abs(np.asarray(again).astype(int) - np.asarray(first)).mean() < 0.5


def test_cmyk_planes_mix_to_the_given_rgb(rng: np.random.Generator, tmp_path: Path) -> None:
    """The written planes mix to any RGB that a network returns."""
    planes = Image.frombytes("CMYK", (40, 30), rng.integers(0, 256, 4800, dtype=np.uint8).tobytes())
    planes.save(tmp_path / "a.tif")
    read = images.read(tmp_path / "a.tif")
    wanted = rng.integers(0, 256, read.pixels.shape, dtype=np.uint8)
    wanted[:3] = 0
    wanted[3:6] = 255
    images.write(tmp_path / "b.tif", read.replaced(wanted))
    assert np.abs(images.read(tmp_path / "b.tif").pixels.astype(int) - wanted).max() <= 1
    images.write(tmp_path / "c.png", read)
    with Image.open(tmp_path / "c.png") as plain:
        assert plain.mode == "RGB"
        assert np.array_equal(np.asarray(plain), read.pixels)


def test_black_ink_stays_where_the_colour_allows_it(rng: np.random.Generator, tmp_path: Path) -> None:
    planes = rng.integers(0, 200, (30, 40, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (40, 30), planes.tobytes()).save(tmp_path / "a.tif")
    read = images.read(tmp_path / "a.tif")
    images.write(tmp_path / "darker.tif", read.replaced(read.pixels - read.pixels // 8))
    images.write(tmp_path / "white.tif", read.replaced(np.full_like(read.pixels, 255)))
    with Image.open(tmp_path / "darker.tif") as darker, Image.open(tmp_path / "white.tif") as white:
        assert np.array_equal(np.asarray(darker)[..., 3], planes[..., 3])
        assert not np.asarray(white).any()


def test_a_phone_photo_with_a_second_picture_inside(photo: np.ndarray, tmp_path: Path) -> None:
    first, second = Image.fromarray(photo), Image.fromarray(255 - photo)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    read = images.read(tmp_path / "a.jpg")
    assert np.abs(read.pixels.astype(int) - photo).mean() < 6
    images.write(tmp_path / "b.jpg", read)
    with Image.open(tmp_path / "b.jpg") as again:
        assert again.format == "JPEG"


def test_ycck_jpeg(photo: np.ndarray, tmp_path: Path) -> None:
    planes = inks(photo, photo[..., 0])
    planes.save(tmp_path / "a.jpg", quality=95)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2  # the same four planes, now declared as YCCK
    (tmp_path / "a.jpg").write_bytes(data)
    with Image.open(tmp_path / "a.jpg") as first:
        read = images.read(tmp_path / "a.jpg")
        assert np.abs(read.pixels.astype(int) - np.asarray(first.convert("RGB"))).max() <= 1
        images.write(tmp_path / "b.jpg", read)
        with Image.open(tmp_path / "b.jpg") as again:
            assert again.mode == "CMYK"
            assert np.abs(np.asarray(again).astype(int) - np.asarray(first)).mean() < 2


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".jpg"), ("L", ".jpg"), ("CMYK", ".jpg"), ("RGB", ".png"), ("RGBA", ".png"), ("L", ".tif")],
)
def test_strips_do_not_show(
    mode: str, suffix: str, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large pictures are copied in strips, which saves memory and changes nothing."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photo).convert(mode).save(path)
    whole = images.read(path)
    images.write(tmp_path / f"whole{suffix}", whole)
    monkeypatch.setattr(codecs, "_STRIP_PIXELS", 7 * photo.shape[1])
    in_strips = images.read(path)
    assert np.array_equal(in_strips.pixels, whole.pixels)
    assert (in_strips.alpha is None) == (whole.alpha is None)
    images.write(tmp_path / f"strips{suffix}", in_strips)
    assert (tmp_path / f"strips{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
