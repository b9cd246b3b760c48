"""Stored channels and a kind -> the bytes of a picture file. Used by `images.write`; choices: see `formats`.

Everything is encoded in memory: a full disk is then a plain write error, not an encoder's riddle.
Pillow writes most formats. 16-bit PNGs come from OpenCV, with the chunks for colour, density and EXIF set in;
TIFFs are laid out here, because Pillow has no 16-bit RGB.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from fairweather.images.decoding import strips
from fairweather.images.formats import TOLD_DIRECTORIES, TOLD_TAGS, Kind, Stored, pillow_heif

_PROFILE_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
_JPEG_SEGMENT = 65533
_log = logging.getLogger("fairweather")


def encode(stored: Stored, mode: str, format: str, kind: Kind) -> bytes:
    """The file's bytes. `mode` (L, LA, RGB, RGBA, CMYK) names the channels of `stored`; `format` can hold them.

    Raises MissingExtra for HEIC without pillow-heif; ValueError or OSError where the encoder refuses (too wide, ...).
    """
    # A profile is only true of the colour space that it was made for.
    same_space = kind.mode in _PROFILE_SPACES and _PROFILE_SPACES[kind.mode] == _PROFILE_SPACES[mode]
    beside: dict[str, Any] = {"icc_profile": kind.icc} if kind.icc and same_space else {}
    if kind.dpi and format in ("JPEG", "PNG", "BMP"):
        beside["dpi"] = kind.dpi
    if kind.exif and format in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
        beside["exif"] = (b"Exif\0\0" if format == "JPEG" else b"") + kind.exif
    if format == "TIFF":
        return _tiff(stored, mode, kind, beside.get("icc_profile", b""))
    if format == "PNG" and stored.dtype == np.uint16:
        return _deep_png(stored, mode, kind, beside.get("icc_profile", b""))
    if format == "PNG":
        image, transparency = _palette(stored, mode) if kind.palette else (None, {})
        return _saved(image or _image(stored, mode), "PNG", compress_level=3, **beside, **transparency)
    image = _image(stored, mode)
    if format == "JPEG":
        return _jpeg(image, kind, beside)
    if format == "WEBP" and kind.lossless:
        return _saved(image, "WEBP", lossless=True, exact=True, **beside)
    if format == "WEBP":
        return _saved(image, "WEBP", quality=95, method=2, exact=True, **beside)
    if format == "AVIF":
        return _avif(image, beside)
    if format == "HEIF":
        heif, file = pillow_heif().from_pillow(image), io.BytesIO()
        heif.save(file, quality=-1 if mode == "RGBA" else 90, chroma=444, **beside)
        return file.getvalue()
    return _saved(image, format, **({"dpi": kind.dpi} if format == "BMP" and kind.dpi else {}))


def _image(stored: Stored, mode: str) -> Image.Image:
    height, width = stored.shape[:2]
    lines: Any = np.ascontiguousarray(stored)
    if mode == "RGB":  # Pillow copies these, as bytes first: strip by strip it holds them only once more
        image = Image.new(mode, (width, height))
        for top, bottom in strips(height, width):
            image.paste(Image.frombuffer(mode, (width, bottom - top), lines[top:bottom], "raw", mode, 0, 1), (0, top))
        return image
    return Image.frombuffer(mode, (width, height), lines, "raw", mode, 0, 1)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _jpeg(image: Image.Image, kind: Kind, beside: dict[str, Any]) -> bytes:
    if len(beside.get("exif", b"")) > _JPEG_SEGMENT:
        _log.warning("EXIF of %d bytes does not fit into a JPEG and is left out", len(beside["exif"]))
        beside = {key: value for key, value in beside.items() if key != "exif"}
    if not kind.tables:
        return _saved(image, "JPEG", quality=95, subsampling=0, **beside)
    beside["qtables"] = [list(table) for table in kind.tables]
    beside["subsampling"] = kind.subsampling if image.mode == "RGB" else 0
    if kind.plain_rgb and image.mode == "RGB":
        beside["keep_rgb"] = True
    if kind.progressive:
        try:
            return _saved(image, "JPEG", progressive=True, **beside)
        except OSError:  # Pillow's buffer for a progressive file is a guess, too small for noise at the finest quality
            _log.debug("written as a baseline JPEG: too large for a progressive one")
    return _saved(image, "JPEG", **beside)


def _avif(image: Image.Image, beside: dict[str, Any]) -> bytes:
    beside |= {"quality": 90, "speed": 8, "subsampling": "4:0:0" if image.mode == "L" else "4:4:4"}
    if image.mode == "RGBA":
        try:
            return _saved(image, "AVIF", advanced={"alpha:lossless": "1"}, **beside)
        except ValueError:  # an encoder other than libaom, which alone knows that option
            beside["quality"] = 100
    return _saved(image, "AVIF", **beside)


def _palette(stored: Stored, mode: str) -> tuple[Image.Image | None, dict[str, Any]]:
    """The picture with a palette, and its transparency; (None, {}) when it has more than 256 colours."""
    colours = stored.reshape(stored.shape[0] * stored.shape[1], -1)
    if colours.shape[1] < 3 or len(np.unique(colours[:: max(1, len(colours) // 4096)], axis=0)) > 256:
        return None, {}
    padded = np.zeros((len(colours), 4), np.uint8)
    padded[:, : colours.shape[1]] = colours
    packed, indices = np.unique(padded.view(np.uint32).ravel(), return_inverse=True)
    if len(packed) > 256:
        return None, {}
    entries = packed.view(np.uint8).reshape(-1, 4)
    image = _image(indices.reshape(stored.shape[:2]).astype(np.uint8), "L")
    image.putpalette(entries[:, :3].tobytes())
    return image, {"transparency": entries[:, 3].tobytes()} if mode == "RGBA" else {}


def _deep_png(stored: Any, mode: str, kind: Kind, icc: bytes) -> bytes:
    if mode == "LA":
        # No encoder here writes it, but four bytes a pixel are four bytes a pixel: an 8-bit RGBA, renamed.
        quads = np.ascontiguousarray(stored.astype(">u2")).view(np.uint8)
        png = _saved(_image(quads, "RGBA"), "PNG", compress_level=3)
        png = png[:8] + _chunk(b"IHDR", png[16:24] + bytes([16, 4]) + png[26:29]) + png[33:]
    else:
        if mode != "L":
            stored = cv2.cvtColor(stored, cv2.COLOR_RGB2BGR if mode == "RGB" else cv2.COLOR_RGBA2BGRA)
        fine, encoded = cv2.imencode(".png", stored)
        if not fine:
            raise ValueError("OpenCV could not encode it")
        png = encoded.tobytes()
    extra = _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)) if icc else b""
    if kind.dpi:
        extra += _chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in kind.dpi), 1))
    if kind.exif:
        extra += _chunk(b"eXIf", kind.exif)
    return png[:33] + extra + png[33:]


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _tiff(stored: Any, mode: str, kind: Kind, icc: bytes) -> bytes:
    """TIFF 6.0, little-endian, strips of about 256 KiB; deflate with horizontal differencing unless it was raw."""
    height, width = stored.shape[:2]
    samples = 1 if stored.ndim == 2 else stored.shape[2]
    deflate = kind.compressed or kind.format != "TIFF"
    rows = max(1, 2**18 // (stored[0].size * stored.itemsize))
    strips = [_tiff_strip(stored[top : top + rows], deflate) for top in range(0, height, rows)]
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in _told(kind.exif).items():
        ifd[tag] = value
    ifd[256], ifd[257], ifd[258] = width, height, (8 * stored.itemsize,) * samples
    ifd[259], ifd[262] = (8 if deflate else 1), {"L": 1, "LA": 1, "RGB": 2, "RGBA": 2, "CMYK": 5}[mode]
    ifd[277], ifd[278], ifd[284] = samples, rows, 1
    lengths = [len(strip) for strip in strips]
    ifd[279] = tuple(lengths)
    ifd[273] = tuple(sum(lengths[:i]) for i in range(len(lengths)))  # `save` moves them behind the directory
    if deflate:
        ifd[317] = 2
    if mode.endswith("A"):
        ifd[338] = 2
    if kind.dpi:
        ifd[282], ifd[283], ifd[296] = *kind.dpi, 2
    if icc:
        ifd[34675] = icc
    file = io.BytesIO()
    ifd.save(file)
    file.writelines(strips)
    return file.getvalue()


def _tiff_strip(rows: Any, deflate: bool) -> bytes:
    if deflate:
        before = rows
        rows = rows.copy()
        rows[:, 1:] -= before[:, :-1]  # wraps around, as the predictor is defined (TIFF 6.0, section 14)
    data: bytes = rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes()
    return zlib.compress(data, 3) if deflate else data


def _told(exif: bytes) -> dict[int, Any]:
    """The tags of an EXIF stream that a TIFF carries in its own directory."""
    if not exif:
        return {}
    read = Image.Exif()
    try:
        read.load(exif)
        told = {tag: read[tag] for tag in TOLD_TAGS if tag in read}
        for directory in TOLD_DIRECTORIES:
            if inside := read.get_ifd(directory):
                told[directory] = dict(inside)
        trial = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in told.items():
            trial[tag] = value
        trial.tobytes()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, struct.error) as error:
        _log.warning("EXIF that a TIFF cannot carry is left out (%s)", error)
        return {}
    return told
