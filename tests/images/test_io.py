"""Reading and writing: unusable files and folders are clear errors that leave nothing behind."""

from __future__ import annotations

import builtins
import errno
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather import images
from fairweather.errors import BadFolder, BadImage, MissingExtra


@pytest.fixture
def jpeg(photo: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(photo).save(path, quality=90)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        images.read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".heic", ".txt"])
def test_text_named_like_a_picture(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text("Dear diary, today it was foggy.\n" * 20)
    assert "not a picture" in refused(tmp_path / f"a{suffix}")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert "empty (0 bytes)" in refused(tmp_path / "a.jpg")


def test_missing_file_folder_and_device(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "a.jpg")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refused(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif", ".bmp", ".ppm", ".heic"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
def test_truncated_file_of_every_format(suffix: str, share: float, photo: np.ndarray, tmp_path: Path) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    images.write(tmp_path / f"a{suffix}", photo)
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
def test_truncated_file_of_sixteen_bits(
    suffix: str, share: float, rng: np.random.Generator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images.write(tmp_path / f"a{suffix}", rng.integers(0, 65536, (90, 80, 3), dtype=np.uint16))
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / f"a{suffix}")
    assert capfd.readouterr().err == ""


def test_sixteen_bit_png_with_one_byte_changed(rng: np.random.Generator, tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", rng.integers(0, 65536, (90, 80, 3), dtype=np.uint16))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png")


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(50_000, 50_000))
    began = time.perf_counter()
    message = refused(tmp_path / "a.png")
    assert time.perf_counter() - began < 1
    assert "50,000 x 50,000" in message
    assert "--max-pixels 2500000000" in message


def test_max_pixels_is_a_limit_and_no_other_one_applies(
    jpeg: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    pixels = 96 * 128
    assert "--max-pixels 12288" in refused(jpeg, max_pixels=pixels - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own, global guard
    assert images.read(jpeg, max_pixels=pixels).pixels.shape == (96, 128, 3)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".avif"])
def test_animations_are_refused(suffix: str, photo: np.ndarray, tmp_path: Path) -> None:
    frames = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    message = refused(tmp_path / f"a{suffix}")
    assert "GIF is not supported" in message if suffix == ".gif" else "animation of 2 frames" in message


def test_first_page_of_a_tiff_is_read_aloud(
    photo: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(images.read(tmp_path / "a.tif").pixels, photo)
    assert "holds 2 pictures" in caplog.text


@pytest.mark.parametrize("name", ["float.tif", "long.tif", "deep.ppm", "deep.pgm"])
def test_other_depths_are_refused_not_cut(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "float.tif":
        Image.fromarray(np.ones((5, 5), np.float32)).save(path)
    elif name == "long.tif":
        Image.fromarray(np.ones((5, 5), np.int32)).save(path)
    else:
        deep: Any = np.full((5, 5, 3) if name.endswith("ppm") else (5, 5), 40000, np.uint16)
        assert cv2.imwrite(str(path), deep)
    assert "unsupported sample format" in refused(path)


def test_heic_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(MissingExtra, match=r"fairweather\[photo\]"):
        images.read(tmp_path / "a.heic")
    with pytest.raises(MissingExtra):
        images.write(tmp_path / "b.heic", photo)
    assert [path.name for path in tmp_path.iterdir()] == ["a.heic"]


def test_memory_errors_are_not_called_damage(jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(cv2, "imdecode", exhausted)
    with pytest.raises(MemoryError):
        images.read(jpeg)


def test_a_format_that_cannot_hold_the_picture(tmp_path: Path) -> None:
    wide = np.zeros((2, 17_000, 3), np.uint8)
    with pytest.raises(BadImage, match=r"a\.webp: 17000 x 2 pixels cannot be written as WEBP"):
        images.write(tmp_path / "a.webp", wide)
    assert list(tmp_path.iterdir()) == []


# writing


def test_atomic_with_a_long_name(tmp_path: Path) -> None:
    images.write(tmp_path / ("n" * 240 + ".png"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(BadFolder, match="too long"):
        images.write(tmp_path / ("n" * 300 + ".png"), np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_is_a_bad_folder(
    code: int, jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = images.read(jpeg)
    target = tmp_path / "b.jpg"
    target.write_bytes(b"old")

    def failing(self: Path, data: bytes) -> int:
        with builtins.open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(BadFolder, match=r"b\.jpg cannot be written .*-o") as caught:
        images.write(target, photo)
    assert ("disk is full" in str(caught.value)) == (code == errno.ENOSPC)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jpg", "photo.jpg"]


def test_a_real_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    """A limit on file size is the nearest thing to a full disk that needs no privileges."""
    code = f"""
import resource, numpy as np
from fairweather import images
from fairweather.errors import BadFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    images.write({str(tmp_path / "a.png")!r}, np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
except BadFolder as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert "a.png cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(BadFolder, match="there is no folder"):
        images.write(tmp_path / "none" / "a.png", black)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(BadFolder, match="is a folder"):
        images.write(tmp_path / "a.png", black)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadFolder, match="permission denied"):
        images.write(closed / "a.png", black)
    assert list(closed.iterdir()) == []


def test_a_place_where_no_file_can_be_made(photo: np.ndarray) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    with pytest.raises(BadFolder, match=r"^/proc/a\.png cannot be written .*choose another folder"):
        images.write("/proc/a.png", photo)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_the_border(dtype: type[np.unsignedinteger[Any]]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    floats = images.to_float(values)
    assert floats.dtype == np.float32
    assert floats[0] == 0.0
    assert abs(floats[-1] - 1.0) < 1e-6
    assert np.array_equal(images.from_float(floats, dtype), values)


def test_from_float_rounds_and_clips() -> None:
    given = np.array([-0.2, 0.4 / 255, 0.6 / 255, 1.0, 1.7, np.inf], np.float32)
    assert images.from_float(given, np.uint8).tolist() == [0, 0, 1, 255, 255, 255]
    assert images.from_float(given, np.float32).max() == 1.0


def test_replaced_refuses_another_shape(photo: np.ndarray) -> None:
    held = images.Photo(photo)
    assert held.replaced(photo // 2).pixels.mean() < photo.mean()
    for wrong in (photo[:-1], photo.astype(np.uint16), photo[..., 0]):
        with pytest.raises(BadImage, match="cannot replace"):
            held.replaced(wrong)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_write_refuses_what_is_no_picture(wrong: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="is not a picture"):
        images.write(tmp_path / "a.png", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".ppm"])
def test_alpha_is_flattened_on_white(suffix: str, tmp_path: Path) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:32, :, 3] = 255
    rgba[32:, 32:, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    images.write(tmp_path / f"b{suffix}", images.read(tmp_path / "a.png"))
    with Image.open(tmp_path / f"b{suffix}") as flat:
        assert flat.mode == "RGB"
        got = np.asarray(flat).astype(int)
    for place, value in (((8, 8), 0), ((56, 8), 255), ((56, 56), 127)):
        assert np.abs(got[place] - value).max() <= 1


def test_sixteen_bits_are_rounded_where_eight_must_do(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(65536, dtype=np.uint16).reshape(256, 256, 1), 3, axis=2)
    images.write(tmp_path / "a.ppm", ramp)
    got = images.read(tmp_path / "a.ppm").pixels
    assert np.array_equal(got, np.rint(ramp * (255 / 65535)).astype(np.uint8))


def test_unknown_suffix_is_written_as_it_was_read(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "scan.dat", "PNG")
    images.write(tmp_path / "again.dat", images.read(tmp_path / "scan.dat"))
    with Image.open(tmp_path / "again.dat") as again:
        assert again.format == "PNG"
    with pytest.raises(BadImage, match=r"again\.dat has no known suffix"):
        images.write(tmp_path / "again.dat", photo)
