"""The bytes of a picture file -> its stored channels, upright, and its kind. Used by `images.read`.

Pillow reads most of it. OpenCV takes over where Pillow silently cuts 16 bits to 8 (RGB PNG and TIFF), and
for ordinary colour JPEGs: the same values (both are libjpeg-turbo) in about half the time.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


# Stored channels and a kind -> the bytes of a picture file. Used by `images.write`; choices: see `formats`.
#
# Everything is encoded in memory: a full disk is then a plain write error, not an encoder's riddle.
# Pillow writes most formats. 16-bit PNGs come from OpenCV, with the chunks for colour, density and EXIF set in;
# TIFFs are laid out here, because Pillow has no 16-bit RGB.

_PROFILE_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
_JPEG_SEGMENT = 65533


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
        return _encoding_deep_png(stored, mode, kind, beside.get("icc_profile", b""))
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


def _encoding_deep_png(stored: Any, mode: str, kind: Kind, icc: bytes) -> bytes:
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
    for tag, value in _encoding_told(kind.exif).items():
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


def _encoding_told(exif: bytes) -> dict[int, Any]:
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


# What a picture file says of itself before anything is decoded: size, channels, depth. Used by `images.header`.


@dataclass(frozen=True)
class Header:
    """A picture's header, as `images.read` goes by it."""

    format: str
    """JPEG, PNG, WEBP, TIFF, AVIF, BMP, PPM or HEIF, as the first bytes tell."""
    width: int
    """Upright: after the turn that EXIF asks for."""
    height: int
    grey: bool
    alpha: bool
    """Transparency of any kind, that of a palette or of a single colour too."""
    palette: bool
    inks: bool
    """CMYK."""
    deep: bool
    """16 bits a channel."""
    frames: int
    """Pictures in the file: pages, or frames of an animation."""
    turned: bool = False
    """Stored lying on its side or mirrored: EXIF asks for a turn."""
    progressive: bool = False
    """A JPEG in several scans, all of which are held while it is decoded."""
    lossless: bool = False
    """A WebP without loss."""
    length: int = 0
    """Bytes of the file."""


def probe(file: IO[bytes], format: str) -> Header:
    """The header of an open file; raises what Pillow raises on damage."""
    file.seek(0)
    start = file.read(26)
    file.seek(0)
    picture = opened(file, format)
    exif = picture.info.get("exif") or b""
    told = picture.getexif().get(ORIENTATION, 1) if format == "TIFF" else settle(exif)[0]
    width, height = picture.size if told not in (5, 6, 7, 8) else picture.size[::-1]
    return Header(
        format=format,
        width=width,
        height=height,
        grey=picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;"),
        alpha=picture.has_transparency_data,
        palette=picture.mode in ("P", "PA"),
        inks=picture.mode == "CMYK",
        deep=start[24] == 16 if format == "PNG" else format == "TIFF" and _bits(picture) > 8,
        frames=getattr(picture, "n_frames", 1),
        turned=told in range(2, 9),
        progressive=bool(picture.info.get("progressive")),
        lossless=format == "WEBP" and start[12:16] == b"VP8L",
        length=file.seek(0, io.SEEK_END),
    )


def _bits(picture: object) -> int:
    bits = picture.tag_v2.get(258, 1)  # type: ignore[attr-defined]
    return max(bits) if isinstance(bits, tuple) else int(bits)
