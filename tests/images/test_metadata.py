"""Orientation, EXIF, colour profile and density are read and written."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from fairweather import images
from fairweather.images.metadata import reset_orientation

WITH_EXIF = [".jpg", ".png", ".webp", ".tif", ".avif", ".heic"]
TURNS: dict[int, Any] = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def camera(orientation: int | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[271], exif[272], exif[306] = "Fogmaker", "Mist 3", "2024:05:06 07:08:09"
    if orientation is not None:
        exif[274] = orientation
    exif[34665] = {33434: 0.008, 37500: b"maker's note, opaque", 36867: "2024:05:06 07:08:09"}
    exif[34853] = {1: "N", 2: (48.0, 12.0, 3.5)}
    return exif


def save(picture: Image.Image, path: Path, **options: Any) -> None:
    if path.suffix == ".heic":
        pytest.importorskip("pillow_heif").from_pillow(picture).save(path, quality=95, **options)
    else:
        picture.save(path, **({"quality": 95} if path.suffix in (".jpg", ".webp", ".avif") else {}), **options)


@pytest.fixture
def marked() -> Image.Image:
    """64 x 48 whose four corners are red, green, blue and white: no turn maps it to itself."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32], pixels[24:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", sorted(TURNS))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_every_orientation_reads_upright(suffix: str, orientation: int, marked: Image.Image, tmp_path: Path) -> None:
    # The tag says how to turn the stored picture, so it is stored turned back.
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = marked if TURNS[back] is None else marked.transpose(TURNS[back])
    path = tmp_path / f"a{suffix}"
    save(stored, path, exif=camera(orientation).tobytes())
    photo = images.read(path)
    assert photo.pixels.shape == (48, 64, 3)
    header = images.header(path)
    assert (header.width, header.height, header.turned) == (64, 48, orientation > 1)
    assert np.abs(photo.pixels.astype(int) - np.asarray(marked)).mean() < 6
    images.write(tmp_path / f"b{suffix}", photo)
    with Image.open(tmp_path / f"b{suffix}") as again:
        assert again.getexif().get(274, 1) == 1
        assert again.getexif()[271] == "Fogmaker"
        assert np.abs(np.asarray(again).astype(int) - np.asarray(marked)).mean() < 6


@pytest.mark.parametrize("orientation", sorted(TURNS))
@pytest.mark.parametrize("kind", ["deep png", "deep tiff", "grey", "cmyk", "alpha", "palette"])
def test_other_ways_of_decoding_turn_too(kind: str, orientation: int, tmp_path: Path) -> None:
    upright = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10
    back = {6: 8, 8: 6}.get(orientation, orientation)
    turned = Image.fromarray(upright)
    stored = np.asarray(turned if TURNS[back] is None else turned.transpose(TURNS[back]))
    exif = camera(orientation).tobytes()
    path = tmp_path / ("a.tif" if kind in ("deep tiff", "cmyk") else "a.png")
    if kind == "deep tiff":
        images.write(path, np.repeat(stored[..., None].astype(np.uint16) * 257, 3, axis=2))
        data = path.read_bytes()  # the writer writes no orientation: add it to the directory
        path.write_bytes(_with_orientation(data, orientation))
    elif kind == "deep png":
        ok, encoded = cv2.imencode(".png", stored.astype(np.uint16) * 257)
        assert ok
        body = b"eXIf" + exif[6:]
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", __import__("zlib").crc32(body))
        path.write_bytes(encoded.tobytes()[:33] + chunk + encoded.tobytes()[33:])
    else:
        mode = {"grey": "L", "cmyk": "CMYK", "alpha": "LA", "palette": "P"}[kind]
        source = Image.fromarray(stored)
        if mode == "P":
            source.putpalette([value for value in range(256) for _ in range(3)])
        elif mode == "LA":
            source = Image.merge("LA", [source, source])
        elif mode == "CMYK":
            empty = Image.new("L", source.size)
            source = Image.merge("CMYK", [empty, empty, empty, source.point(lambda v: 255 - v)])
        source.save(path, exif=exif)
    photo = images.read(path)
    got = photo.pixels[..., 0] // 257 if photo.pixels.dtype == np.uint16 else photo.pixels[..., 0]
    assert np.array_equal(got, upright)
    assert (images.header(path).width, images.header(path).height) == upright.shape[::-1]
    if kind == "alpha":
        assert photo.alpha is not None
        assert np.array_equal(photo.alpha, upright)


def _with_orientation(tiff: bytes, orientation: int) -> bytes:
    """The same TIFF with tag 274 in a new directory at its end."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = [tiff[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    tiff += b"\0" * (len(tiff) % 2)
    directory = struct.pack("<H", count + 1) + b"".join(entries) + b"\0\0\0\0"
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory


@pytest.mark.parametrize("target", WITH_EXIF)
@pytest.mark.parametrize("source", WITH_EXIF)
def test_exif_is_carried_over(source: str, target: str, marked: Image.Image, tmp_path: Path) -> None:
    if ".heic" in (source, target):
        heif = pytest.importorskip("pillow_heif")
        heif.register_heif_opener()
    save(marked, tmp_path / f"a{source}", exif=camera(1).tobytes())
    images.write(tmp_path / f"b{target}", images.read(tmp_path / f"a{source}"))
    with Image.open(tmp_path / f"b{target}") as again:
        exif = again.getexif()
        assert (exif[271], exif[272], exif[306]) == ("Fogmaker", "Mist 3", "2024:05:06 07:08:09")
        inner = exif.get_ifd(34665)
        assert inner[37500] == b"maker's note, opaque"
        assert float(inner[33434]) == pytest.approx(0.008)
        assert [float(x) for x in exif.get_ifd(34853)[2]] == [48.0, 12.0, 3.5]


def test_sixteen_bit_files_carry_everything(tmp_path: Path, rng: np.random.Generator) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    kind = images.Kind("PNG", "RGB", exif=reset_orientation(camera(1).tobytes())[1], icc=profile, dpi=(300.0, 300.0))
    for name in ("a.png", "a.tif"):
        images.write(tmp_path / name, images.Photo(pixels, None, kind))
        again = images.read(tmp_path / name)
        assert np.array_equal(again.pixels, pixels)
        assert again.kind.icc == profile
        assert again.kind.dpi == pytest.approx((300, 300), abs=0.02)
        with Image.open(tmp_path / name) as file:
            assert file.getexif()[271] == "Fogmaker"


@pytest.mark.parametrize("suffix", WITH_EXIF)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_profile_is_carried_over_untouched(suffix: str, mode: str, marked: Image.Image, tmp_path: Path) -> None:
    if mode == "L" and suffix == ".webp":
        pytest.skip("WebP holds no grey")
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[-9:] = b"not sRGB!"
    save(marked.convert(mode), tmp_path / f"a{suffix}", icc_profile=bytes(profile))
    photo = images.read(tmp_path / f"a{suffix}")
    images.write(tmp_path / f"b{suffix}", photo)
    assert photo.kind.icc == bytes(profile)
    assert images.read(tmp_path / f"b{suffix}").kind.icc == bytes(profile)


def test_a_large_profile_spans_segments(marked: Image.Image, tmp_path: Path, rng: np.random.Generator) -> None:
    profile = rng.bytes(200_000)
    marked.save(tmp_path / "a.jpg", icc_profile=profile)
    images.write(tmp_path / "b.jpg", images.read(tmp_path / "a.jpg"))
    with Image.open(tmp_path / "b.jpg") as again:
        assert again.info["icc_profile"] == profile


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_density_is_carried_over(suffix: str, marked: Image.Image, tmp_path: Path) -> None:
    exif = camera(6).tobytes() if suffix != ".bmp" else b""
    save(marked, tmp_path / f"a{suffix}", dpi=(150, 300), **({"exif": exif} if exif else {}))
    images.write(tmp_path / f"b{suffix}", images.read(tmp_path / f"a{suffix}"))
    with Image.open(tmp_path / f"b{suffix}") as again:
        turned = (150, 300) if suffix == ".bmp" else (300, 150)  # its sides are swapped
        assert tuple(map(float, again.info["dpi"])) == pytest.approx(turned, abs=0.1)


# The bytes of EXIF


@pytest.mark.parametrize("order", ["<", ">"])
def test_reset_orientation_changes_two_fields_alone(order: str) -> None:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entries = struct.pack(order + "HHIHH", 274, 3, 1, 6, 0) + struct.pack(order + "HHI4s", 271, 2, 4, b"Fog\0")
    thumbnail = b"the old picture, sideways"
    exif = head + struct.pack(order + "H", 2) + entries + struct.pack(order + "I", 38) + thumbnail
    orientation, changed_exif = reset_orientation(b"Exif\0\0" + exif)
    assert orientation == 6
    assert len(changed_exif) == len(exif)
    changed = {i for i, (a, b) in enumerate(zip(exif, changed_exif, strict=True)) if a != b}
    assert changed == {18 if order == "<" else 19, 34 if order == "<" else 37}
    assert reset_orientation(changed_exif) == (1, changed_exif)


@pytest.mark.parametrize("damaged", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"XX*\0\x08\0\0\0\0\0"])
def test_reset_orientation_drops_damaged_exif(damaged: bytes) -> None:
    assert reset_orientation(damaged) == (1, b"")


def test_damaged_exif_does_not_stop_a_photo(marked: Image.Image, tmp_path: Path) -> None:
    for i, exif in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x40\0" + b"\x12\x01" * 9, b"Exif\0\0MM\0*")
    ):
        for suffix in (".jpg", ".webp", ".png"):
            save(marked, tmp_path / f"{i}{suffix}", exif=exif)
            photo = images.read(tmp_path / f"{i}{suffix}")
            assert photo.pixels.shape[2] == 3
            images.write(tmp_path / "out.tif", photo)
            images.write(tmp_path / "out.jpg", photo)


def test_exif_too_long_for_a_jpeg_is_dropped_with_a_warning(
    marked: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = camera(1)
    exif[34665] = {37500: bytes(70_000)}
    marked.save(tmp_path / "a.png", exif=exif.tobytes())
    images.write(tmp_path / "a.jpg", images.read(tmp_path / "a.png"))
    assert images.read(tmp_path / "a.jpg").kind.exif == b""
    assert "does not fit into a JPEG" in caplog.text
