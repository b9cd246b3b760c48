"""The bytes of a picture file -> its stored channels, upright, and its kind. Used by `images.read`.

Pillow reads most of it. OpenCV takes over where Pillow silently cuts 16 bits to 8 (RGB PNG and TIFF), and
for ordinary colour JPEGs: the same values (both are libjpeg-turbo) in about half the time.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

import cv2
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fairweather.images.formats import ORIENTATION, TOLD_DIRECTORIES, TOLD_TAGS, Kind, Stored, pillow_heif, settle

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Pillow refuses TIFFs above a limit of its own, which is global to the process; OpenCV reads them from here on.
_LARGE_TIFF = 80_000_000
_STRIP_PIXELS = 1 << 20
_log = logging.getLogger("fairweather")


class SizeError(ValueError):
    """A picture whose header claims more pixels than allowed."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"claims {width:,} x {height:,} pixels")
        self.pixels = width * height


def sniff(data: bytes) -> str:
    """The format that the first bytes tell ("GIF" too, which is not read); "" when they tell none."""
    for start, name in ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"), (b"GIF8", "GIF")):
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if re.match(rb"P[1-6]\s", data):
        return "PPM"
    brands = data[8:40] if data[4:8] == b"ftyp" else b""
    if re.search(b"avi[fs]", brands):
        return "AVIF"
    return "HEIF" if re.search(b"hei[cxms]|hev[cxms]|mif1|msf1", brands) else ""


def decode(data: bytes, format: str, name: str, max_pixels: int) -> tuple[Stored, Kind]:
    """Stored channels, upright, and kind. `name` is for warnings only.

    The claimed size is checked before anything is decoded: SizeError. MissingExtra for HEIC without pillow-heif.
    Any other exception is the decoder's way of saying that the file is damaged or of an unknown variant.
    """
    header = opened(io.BytesIO(data), format)
    width, height = header.size
    if width * height > max_pixels:
        raise SizeError(width, height)
    frames = getattr(header, "n_frames", 1)
    if frames > 1 and format not in ("TIFF", "HEIF"):
        raise ValueError(f"it is an animation of {frames} frames, and only still pictures are supported")
    if frames > 1:
        _log.warning("%s holds %d pictures; only the first is read", name, frames)
    bits = data.find(b"pixi") + 9 if format in ("AVIF", "HEIF") else 0
    if 9 <= bits < len(data) and data[bits] > 8:
        _log.warning("%s has %d bits a channel; they are read as 8", name, data[bits])
    kind = _kind(header, data)
    told = header.getexif().get(ORIENTATION, 1) if format == "TIFF" else settle(header.info.get("exif") or b"")[0]
    if told in (5, 6, 7, 8) and kind.dpi:
        kind = replace(kind, dpi=kind.dpi[::-1])
    if format == "PNG" and data[24] == 16:
        stored = _deep_png(data, header)
    elif format == "TIFF" and (max(_tag(header, 258, 1)) > 8 or width * height > _LARGE_TIFF):
        stored = _deep_tiff(data, header)
    elif format == "JPEG" and header.mode == "RGB" and _complete(data):
        stored = _by_opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, header.size)
    else:
        stored = _by_pillow(data, header)
        if format == "TIFF":  # Pillow turns these itself, and then removes the tag
            told = header.getexif().get(ORIENTATION, 1)
    mode = "CMYK" if header.mode == "CMYK" else _MODES[1 if stored.ndim == 2 else stored.shape[2]]
    return _upright(stored, told), replace(kind, mode=mode)


def _upright(stored: Any, orientation: int) -> Stored:
    """The picture turned as orientation 2 to 8 asks (EXIF 2.32, tag 0x0112); any other value leaves it alone."""
    if orientation in (5, 7):
        stored = cv2.transpose(stored)
    if orientation in (2, 4, 7):
        stored = cv2.flip(stored, {2: 1, 4: 0, 7: -1}[orientation])
    if orientation in (3, 6, 8):
        turn = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}[orientation]
        stored = cv2.rotate(stored, turn)
    return stored  # type: ignore[no-any-return]


def opened(file: IO[bytes], format: str) -> ImageFile.ImageFile:
    """A picture's header; its pixels are not decoded."""
    # The classes themselves, not Image.open: that one has a size limit of its own, global to the process.
    classes: dict[str, Any] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
    }
    opener = pillow_heif().HeifImageFile if format == "HEIF" else classes[format]
    header: ImageFile.ImageFile = opener(file)
    return header


def _tag(header: Any, tag: int, default: int) -> tuple[int, ...]:
    value = header.tag_v2.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _kind(header: ImageFile.ImageFile, data: bytes) -> Kind:
    info, format = header.info, header.format
    exif = _told(header.getexif()) if format == "TIFF" else info.get("exif") or b""
    dpi = info.get("dpi")
    if dpi is not None:
        dpi = (float(dpi[0]), float(dpi[1]))
    kind = Kind(
        format=format or "",
        palette=header.mode == "P",
        exif=settle(exif)[1],
        icc=info.get("icc_profile") or b"",
        dpi=dpi if dpi and all(0.5 <= x < 65535 for x in dpi) else None,
        lossless=format == "WEBP" and _without_loss(data),
        compressed=format == "TIFF" and info.get("compression") != "raw",
    )
    if not isinstance(header, JpegImagePlugin.JpegImageFile):
        return kind
    used = [component[3] for component in header.layer]
    if header.mode != "RGB" or len(set(used)) == 1:
        used = used[:1]
    elif used[1] == used[2]:
        used = used[:2]
    tables = header.quantization
    return replace(
        kind,
        tables=tuple(tuple(tables[i]) for i in used) if all(i in tables for i in used) else (),
        subsampling=max(JpegImagePlugin.get_sampling(header), 0),  # -1: not three channels, or not known to Pillow
        progressive=bool(info.get("progressive")),
        plain_rgb=header.mode == "RGB"
        and (info.get("adobe_transform") == 0 or [component[0] for component in header.layer] == [82, 71, 66]),
    )


def _told(exif: Image.Exif) -> bytes:
    """The part of a TIFF's tags that tells of the photo, as an EXIF stream of its own."""
    told = Image.Exif()
    for tag in TOLD_TAGS:
        if tag in exif:
            told[tag] = exif[tag]
    for directory in TOLD_DIRECTORIES:
        if inside := exif.get_ifd(directory):
            told[directory] = dict(inside)
    try:
        return told.tobytes() if len(told) else b""
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error) as error:
        _log.warning("EXIF that cannot be carried over is left out (%s)", error)
        return b""


def _by_pillow(data: bytes, header: ImageFile.ImageFile) -> Stored:
    mode = header.mode
    if mode in ("I", "F") or mode.startswith("I;") or (header.format == "PPM" and mode == "RGB" and _deep_ppm(data)):
        raise ValueError("its samples are neither 8 nor 16 bits of a PNG or TIFF; convert it to one of these")
    header.load()
    clear = header.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        mode = "LA" if clear else "L"
    elif mode != "CMYK":
        mode = "RGBA" if clear else "RGB"
    return _laid_out(header if header.mode == mode else header.convert(mode))


def _laid_out(picture: Image.Image) -> Stored:
    """Pillow's pixels as an array, strip by strip: all at once would hold them three times over."""
    width, height = picture.size
    channels = len(picture.getbands())
    stored = np.empty((height, width, channels) if channels > 1 else (height, width), np.uint8)
    for top, bottom in strips(height, width):
        stored[top:bottom] = np.asarray(picture.crop((0, top, width, bottom)))
    return stored


def strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row, and the one behind the last, of strips of about a megapixel that together are the picture."""
    rows = max(1, _STRIP_PIXELS // max(1, width))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _by_opencv(data: bytes, flags: int, size: tuple[int, int]) -> Any:
    # Its complaints would go to stderr, across a progress bar; what fails ends as an exception anyway.
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if stored is None or stored.shape[1::-1] != size or stored.dtype not in (np.uint8, np.uint16):
        raise ValueError("it is damaged, or of a variant that is not supported")
    if stored.ndim == 3 and stored.shape[2] >= 3:
        code = cv2.COLOR_BGR2RGB if stored.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        for top, bottom in strips(*stored.shape[:2]):  # in place, OpenCV copies what it is given
            cv2.cvtColor(stored[top:bottom], code, dst=stored[top:bottom])
    return stored


def _deep_png(data: bytes, header: ImageFile.ImageFile) -> Stored:
    opened(io.BytesIO(data), "PNG").verify()  # each chunk's checksum: OpenCV alone lets damage through
    stored = _by_opencv(data, cv2.IMREAD_UNCHANGED, header.size)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[data[25]]
    if channels in (1, 2) and stored.ndim == 3:  # OpenCV gives grey and alpha as four channels
        stored = stored[..., 0] if channels == 1 else stored[..., (0, 3)]
    hole = header.info.get("transparency")  # the one grey or colour that stands for "nothing here"
    if channels in (1, 3) and hole is not None:
        stored = stored[..., :3] if channels == 3 else stored
        seen = stored != hole if channels == 1 else (stored != np.array(hole)).any(axis=2)
        stored = np.dstack([stored, seen * np.uint16(65535)])
    return np.ascontiguousarray(stored)


def _deep_tiff(data: bytes, header: ImageFile.ImageFile) -> Stored:
    (ink,), (samples,) = _tag(header, 262, 1), _tag(header, 277, 1)
    whole = all(form == 1 for form in _tag(header, 339, 1)) and set(_tag(header, 258, 1)) <= {8, 16}
    if not whole or (ink, samples) not in ((1, 1), (2, 3), (2, 4)):
        raise ValueError("its samples are not plain RGB or grey of 8 or 16 bits; convert it to that")
    big = 43 in data[2:4]
    if big and _tag(header, ORIENTATION, 1) != (1,):
        raise ValueError("it is a turned BigTIFF, which is not supported; save it upright")
    settled = data if big else settle(data)[1]  # OpenCV would turn it, whatever the flags
    (width,), (height,) = _tag(header, 256, 0), _tag(header, 257, 0)  # as stored: `size` is that of the turned picture
    return _by_opencv(settled, cv2.IMREAD_UNCHANGED, (width, height))  # type: ignore[no-any-return]


def _complete(jpeg: bytes) -> bool:
    """Whether the scan has an end. OpenCV 4 fills with grey what a truncated file lacks; Pillow refuses it."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        if jpeg[place + 1] == 0xDA:
            return jpeg.find(b"\xff\xd9", place) > 0
        place += 1 if jpeg[place + 1] == 0xFF else 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return False


def _without_loss(webp: bytes) -> bool:
    place = 12
    while place + 8 <= len(webp) and webp[place : place + 4] not in (b"VP8 ", b"VP8L"):
        place += 8 + (int.from_bytes(webp[place + 4 : place + 8], "little") + 1) // 2 * 2
    return webp[place : place + 4] == b"VP8L"


def _deep_ppm(ppm: bytes) -> bool:
    numbers = re.sub(rb"#[^\n]*\n", b" ", ppm[:4096]).split(maxsplit=4)
    return int(numbers[3]) > 255
