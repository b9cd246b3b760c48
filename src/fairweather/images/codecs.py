"""Bytes of a picture file <-> stored channels: `decode`, `encode` and `probe`, which reads the header alone.

Pillow handles most formats. OpenCV decodes 16-bit PNG and TIFF, of which Pillow cuts RGB to 8 bits, and ordinary colour
JPEGs: the same pixels (both use libjpeg-turbo) in half the time. TIFFs are encoded here: Pillow has no 16-bit RGB.
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
from numpy.typing import NDArray
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

from fairweather.errors import MissingExtra
from fairweather.images.formats import Kind
from fairweather.images.jpeg import find_damage, has_end
from fairweather.images.metadata import ORIENTATION, exif_of_tiff, reset_orientation, tiff_tags_of_exif

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""Channels as a file stores them: H x W (grey), or H x W x 2, 3, 4 in the order of the mode's letters."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PROFILE_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
_MAX_PILLOW_TIFF = 80_000_000
"""Pixels above which OpenCV reads TIFFs: Pillow's limit for them is global to the process."""
_STRIP_PIXELS = 1 << 20
_MAX_JPEG_SEGMENT = 65533
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 256, 257, 258, 262, 277, 339
"""Tags of TIFF."""
_log = logging.getLogger("fairweather")


class SizeError(ValueError):
    """A picture whose header claims more pixels than allowed."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"claims {width:,} x {height:,} pixels")
        self.pixels = width * height


@dataclass(frozen=True)
class Header:
    """What the header of a picture file declares."""

    format: str
    """JPEG, PNG, WEBP, TIFF, AVIF, BMP, PPM or HEIF, by its first bytes."""
    width: int
    """Upright, i.e. after the rotation by EXIF orientation."""
    height: int
    grey: bool
    alpha: bool
    """Transparency of any kind, including that of a palette or of a single colour."""
    palette: bool
    inks: bool
    """CMYK."""
    deep: bool
    """16 bits per channel."""
    frames: int
    """Pages, or frames of an animation."""
    turned: bool = False
    """Stored rotated or mirrored."""
    progressive: bool = False
    """A JPEG with several scans, all of which stay in memory during decoding."""
    lossless: bool = False
    """Lossless WebP."""
    length: int = 0
    """Size of the file in bytes."""


def sniff(data: bytes) -> str:
    """Detect the format from the first bytes: also "GIF", which is not supported, or "" if it is unknown."""
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


def probe(file: IO[bytes], format: str) -> Header:
    """Read the header of an open file.

    Raises:
        MissingExtra: HEIC without pillow-heif.
        Exception: of any type, raised by Pillow for a damaged header.
    """
    file.seek(0)
    start = file.read(26)
    file.seek(0)
    picture = _open(file, format)
    width, height = picture.size
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        orientation = picture.getexif().get(ORIENTATION, 1)
        (width,), (height,) = _tag(picture, _WIDTH), _tag(picture, _HEIGHT)  # `size` may be that of the upright picture
    else:
        orientation = reset_orientation(picture.info.get("exif") or b"")[0]
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return Header(
        format=format,
        width=width,
        height=height,
        grey=picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;"),
        alpha=picture.has_transparency_data,
        palette=picture.mode in ("P", "PA"),
        inks=picture.mode == "CMYK",
        deep=start[24] == 16 if format == "PNG" else format == "TIFF" and max(_tag(picture, _BITS)) > 8,
        frames=getattr(picture, "n_frames", 1),
        turned=orientation in range(2, 9),
        progressive=bool(picture.info.get("progressive")),
        lossless=format == "WEBP" and start[12:16] == b"VP8L",
        length=file.seek(0, io.SEEK_END),
    )


def decode(data: bytes, format: str, name: str, max_pixels: int) -> tuple[Stored, Kind]:
    """Decode a file.

    Args:
        data: the file.
        format: its format, from `sniff`.
        name: its name, for warnings.
        max_pixels: limit of the claimed size, checked before anything is decoded.

    Returns:
        The stored channels, upright, and the kind of file.

    Raises:
        SizeError: above `max_pixels`.
        MissingExtra: HEIC without pillow-heif.
        Exception: of any type, for a damaged file or an unsupported variant.
    """
    picture = _open(io.BytesIO(data), format)
    width, height = picture.size
    if width * height > max_pixels:
        raise SizeError(width, height)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and format not in ("TIFF", "HEIF"):
        raise ValueError(f"an animation of {frames} frames is not supported")
    if frames > 1:
        _log.warning("%s holds %d pictures; only the first is read", name, frames)
    bits = data.find(b"pixi") + 9 if format in ("AVIF", "HEIF") else 0
    if 9 <= bits < len(data) and data[bits] > 8:
        _log.warning("%s has %d bits per channel; it is read with 8", name, data[bits])
    kind = _kind(picture, data)
    exif = picture.info.get("exif") or b""
    orientation = picture.getexif().get(ORIENTATION, 1) if format == "TIFF" else reset_orientation(exif)[0]
    if orientation in (5, 6, 7, 8) and kind.dpi:
        kind = replace(kind, dpi=kind.dpi[::-1])
    if format == "PNG" and data[24] == 16:
        stored = _decode_deep_png(data, picture)
    elif format == "TIFF" and (max(_tag(picture, _BITS)) > 8 or width * height > _MAX_PILLOW_TIFF):
        stored = _decode_tiff(data, picture)
    elif format == "JPEG" and picture.mode == "RGB" and has_end(data):
        stored = _decode_with_opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, picture.size)
    else:
        stored = _decode_with_pillow(data, picture)
        if format == "TIFF":  # Pillow rotates TIFFs itself, and then removes the tag
            orientation = picture.getexif().get(ORIENTATION, 1)
    if format == "JPEG" and (damage := find_damage(data, stored)):
        raise ValueError(damage)
    mode = "CMYK" if picture.mode == "CMYK" else _MODES[1 if stored.ndim == 2 else stored.shape[2]]
    return _upright(stored, orientation), replace(kind, mode=mode)


def encode(stored: Stored, mode: str, format: str, kind: Kind) -> bytes:
    """Encode a file, in memory: a full disk is then a plain write error, not an encoder's.

    Args:
        stored: the channels.
        mode: their names: L, LA, RGB, RGBA or CMYK, one that `format` can hold.
        format: a value of `FORMATS`.
        kind: what else to write; what the format cannot hold is dropped.

    Raises:
        MissingExtra: HEIC without pillow-heif.
        ValueError, OSError: the encoder fails, e.g. for a picture that is too wide for the format.
    """
    # A profile is valid only for the colour space that it was made for.
    same_space = kind.mode in _PROFILE_SPACES and _PROFILE_SPACES[kind.mode] == _PROFILE_SPACES[mode]
    icc = kind.icc if same_space else b""
    extras: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if kind.dpi and format in ("JPEG", "PNG", "BMP"):
        extras["dpi"] = kind.dpi
    if kind.exif and format in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
        extras["exif"] = (b"Exif\0\0" if format == "JPEG" else b"") + kind.exif
    if format == "TIFF":
        return _encode_tiff(stored, mode, kind, icc)
    if format == "PNG" and stored.dtype == np.uint16:
        return _encode_deep_png(stored, mode, kind, icc)
    if format == "PNG":
        image, transparency = _palette(stored, mode) if kind.palette else (None, {})
        return _save(image or _image(stored, mode), "PNG", compress_level=3, **extras, **transparency)
    image = _image(stored, mode)
    if format == "JPEG":
        return _encode_jpeg(image, kind, extras)
    if format == "WEBP":
        quality: dict[str, Any] = {"lossless": True} if kind.lossless else {"quality": 95, "method": 2}
        return _save(image, "WEBP", exact=True, **quality, **extras)
    if format == "AVIF":
        return _encode_avif(image, extras)
    if format == "HEIF":
        heif, file = _pillow_heif().from_pillow(image), io.BytesIO()
        heif.save(file, quality=-1 if mode == "RGBA" else 90, chroma=444, **extras)
        return file.getvalue()
    return _save(image, format, **({"dpi": kind.dpi} if format == "BMP" and kind.dpi else {}))


def _pillow_heif() -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingExtra("pillow-heif", "photo", "HEIC") from error
    return pillow_heif


def _open(file: IO[bytes], format: str) -> ImageFile.ImageFile:
    """Open a picture without decoding its pixels."""
    # Image.open has a size limit that is global to the process; the classes have none.
    classes: dict[str, Any] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
    }
    opener = _pillow_heif().HeifImageFile if format == "HEIF" else classes[format]
    picture: ImageFile.ImageFile = opener(file)
    return picture


def _tag(picture: Any, tag: int, default: int = 1) -> tuple[int, ...]:
    value = picture.tag_v2.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _kind(picture: ImageFile.ImageFile, data: bytes) -> Kind:
    info, format = picture.info, picture.format
    exif = exif_of_tiff(picture.getexif()) if format == "TIFF" else info.get("exif") or b""
    dpi = info.get("dpi")
    if dpi is not None:
        dpi = (float(dpi[0]), float(dpi[1]))
    kind = Kind(
        format=format or "",
        palette=picture.mode == "P",
        exif=reset_orientation(exif)[1],
        icc=info.get("icc_profile") or b"",
        dpi=dpi if dpi and all(0.5 <= x < 65535 for x in dpi) else None,
        lossless=format == "WEBP" and _is_lossless(data),
        compressed=format == "TIFF" and info.get("compression") != "raw",
    )
    if not isinstance(picture, JpegImagePlugin.JpegImageFile):
        return kind
    used = [component[3] for component in picture.layer]
    if picture.mode != "RGB" or len(set(used)) == 1:
        used = used[:1]
    elif used[1] == used[2]:
        used = used[:2]
    tables = picture.quantization
    return replace(
        kind,
        tables=tuple(tuple(tables[i]) for i in used) if all(i in tables for i in used) else (),
        subsampling=max(JpegImagePlugin.get_sampling(picture), 0),  # -1: not three channels, or unknown to Pillow
        progressive=bool(info.get("progressive")),
        plain_rgb=picture.mode == "RGB"
        and (info.get("adobe_transform") == 0 or [component[0] for component in picture.layer] == [82, 71, 66]),
    )


def _decode_with_pillow(data: bytes, picture: ImageFile.ImageFile) -> Stored:
    mode = picture.mode
    if (
        mode in ("I", "F")
        or mode.startswith("I;")
        or (picture.format == "PPM" and mode == "RGB" and _is_deep_ppm(data))
    ):
        raise ValueError("unsupported sample format: only 8 bits, and 16 bits in PNG and TIFF, are supported")
    picture.load()
    transparent = picture.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        mode = "LA" if transparent else "L"
    elif mode != "CMYK":
        mode = "RGBA" if transparent else "RGB"
    return _pixels(picture if picture.mode == mode else picture.convert(mode))


def _pixels(picture: Image.Image) -> Stored:
    """Copy Pillow's pixels strip by strip: all at once would need three times their memory."""
    width, height = picture.size
    channels = len(picture.getbands())
    stored = np.empty((height, width, channels) if channels > 1 else (height, width), np.uint8)
    for top, bottom in _strips(height, width):
        stored[top:bottom] = np.asarray(picture.crop((0, top, width, bottom)))
    return stored


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the row after the last of strips of about a megapixel."""
    rows = max(1, _STRIP_PIXELS // max(1, width))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _decode_with_opencv(data: bytes, flags: int, size: tuple[int, int]) -> Any:
    opencv_log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4.9 to 4.12 have no `cv2.utils.logging`
    level = opencv_log.getLogLevel()
    opencv_log.setLogLevel(0)  # its errors would be printed across a progress bar, and are raised here anyway
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        opencv_log.setLogLevel(level)
    if stored is None or stored.shape[1::-1] != size or stored.dtype not in (np.uint8, np.uint16):
        raise ValueError("damaged, or an unsupported variant")
    if stored.ndim == 3 and stored.shape[2] >= 3:
        code = cv2.COLOR_BGR2RGB if stored.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        for top, bottom in _strips(*stored.shape[:2]):  # OpenCV copies its input even in place
            cv2.cvtColor(stored[top:bottom], code, dst=stored[top:bottom])
    return stored


def _decode_deep_png(data: bytes, picture: ImageFile.ImageFile) -> Stored:
    _open(io.BytesIO(data), "PNG").verify()  # checksums, which OpenCV ignores
    stored = _decode_with_opencv(data, cv2.IMREAD_UNCHANGED, picture.size)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[data[25]]
    if channels in (1, 2) and stored.ndim == 3:  # OpenCV returns grey and alpha as four channels
        stored = stored[..., 0] if channels == 1 else stored[..., (0, 3)]
    transparent = picture.info.get("transparency")  # one grey value or colour
    if channels in (1, 3) and transparent is not None:
        stored = stored[..., :3] if channels == 3 else stored
        opaque = stored != transparent if channels == 1 else (stored != np.array(transparent)).any(axis=2)
        stored = np.dstack([stored, opaque * np.uint16(65535)])
    return np.ascontiguousarray(stored)


def _decode_tiff(data: bytes, picture: ImageFile.ImageFile) -> Stored:
    (photometric,), (samples,) = _tag(picture, _PHOTOMETRIC), _tag(picture, _SAMPLES)
    integers = set(_tag(picture, _SAMPLE_FORMAT)) == {1} and set(_tag(picture, _BITS)) <= {8, 16}
    if not integers or (photometric, samples) not in ((1, 1), (2, 3), (2, 4)):
        raise ValueError("unsupported sample format: only RGB and grey with 8 or 16 bits are supported")
    big = 43 in data[2:4]
    if big and _tag(picture, ORIENTATION) != (1,):
        raise ValueError("a BigTIFF with an orientation is not supported")
    upright = data if big else reset_orientation(data)[1]  # OpenCV would rotate it, whatever the flags
    (width,), (height,) = _tag(picture, _WIDTH), _tag(picture, _HEIGHT)
    return _decode_with_opencv(upright, cv2.IMREAD_UNCHANGED, (width, height))  # type: ignore[no-any-return]


def _upright(stored: Any, orientation: int) -> Stored:
    """Rotate or mirror a picture by its EXIF orientation, 2 to 8 (EXIF 2.32, tag 0x0112); ignore other values."""
    if orientation in (5, 7):
        stored = cv2.transpose(stored)
    if orientation in (2, 4, 7):
        stored = cv2.flip(stored, {2: 1, 4: 0, 7: -1}[orientation])
    if orientation in (3, 6, 8):
        turn = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}[orientation]
        stored = cv2.rotate(stored, turn)
    return stored  # type: ignore[no-any-return]


def _is_lossless(webp: bytes) -> bool:
    place = 12
    while place + 8 <= len(webp) and webp[place : place + 4] not in (b"VP8 ", b"VP8L"):
        place += 8 + (int.from_bytes(webp[place + 4 : place + 8], "little") + 1) // 2 * 2
    return webp[place : place + 4] == b"VP8L"


def _is_deep_ppm(ppm: bytes) -> bool:
    numbers = re.sub(rb"#[^\n]*\n", b" ", ppm[:4096]).split(maxsplit=4)
    return int(numbers[3]) > 255


def _image(stored: Stored, mode: str) -> Image.Image:
    height, width = stored.shape[:2]
    rows: Any = np.ascontiguousarray(stored)
    if mode == "RGB":  # Pillow copies RGB twice: in strips only one copy is large
        image = Image.new(mode, (width, height))
        for top, bottom in _strips(height, width):
            image.paste(Image.frombuffer(mode, (width, bottom - top), rows[top:bottom], "raw", mode, 0, 1), (0, top))
        return image
    return Image.frombuffer(mode, (width, height), rows, "raw", mode, 0, 1)


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _encode_jpeg(image: Image.Image, kind: Kind, extras: dict[str, Any]) -> bytes:
    if len(extras.get("exif", b"")) > _MAX_JPEG_SEGMENT:
        _log.warning("EXIF of %d bytes does not fit into a JPEG and is dropped", len(extras["exif"]))
        extras = {key: value for key, value in extras.items() if key != "exif"}
    if not kind.tables:
        return _save(image, "JPEG", quality=95, subsampling=0, **extras)
    extras["qtables"] = [list(table) for table in kind.tables]
    extras["subsampling"] = kind.subsampling if image.mode == "RGB" else 0
    if kind.plain_rgb and image.mode == "RGB":
        extras["keep_rgb"] = True
    if kind.progressive:
        try:
            return _save(image, "JPEG", progressive=True, **extras)
        except OSError:  # Pillow's buffer is too small for noise at the highest quality
            _log.debug("written as a baseline JPEG: too large for a progressive one")
    return _save(image, "JPEG", **extras)


def _encode_avif(image: Image.Image, extras: dict[str, Any]) -> bytes:
    extras |= {"quality": 90, "speed": 8, "subsampling": "4:0:0" if image.mode == "L" else "4:4:4"}
    if image.mode == "RGBA":
        try:
            return _save(image, "AVIF", advanced={"alpha:lossless": "1"}, **extras)
        except ValueError:  # only libaom has that option
            extras["quality"] = 100
    return _save(image, "AVIF", **extras)


def _palette(stored: Stored, mode: str) -> tuple[Image.Image | None, dict[str, Any]]:
    """Return the picture with a palette, and its transparency; (None, {}) if it has more than 256 colours."""
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


def _encode_deep_png(stored: Any, mode: str, kind: Kind, icc: bytes) -> bytes:
    if mode == "LA":
        # No encoder writes it, but an 8-bit RGBA file has the same bytes per pixel: only its header differs.
        quads = np.ascontiguousarray(stored.astype(">u2")).view(np.uint8)
        png = _save(_image(quads, "RGBA"), "PNG", compress_level=3)
        png = png[:8] + _chunk(b"IHDR", png[16:24] + bytes([16, 4]) + png[26:29]) + png[33:]
    else:
        if mode != "L":
            stored = cv2.cvtColor(stored, cv2.COLOR_RGB2BGR if mode == "RGB" else cv2.COLOR_RGBA2BGRA)
        done, encoded = cv2.imencode(".png", stored)
        if not done:
            raise ValueError("OpenCV could not encode it")
        png = encoded.tobytes()
    chunks = _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)) if icc else b""
    if kind.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in kind.dpi), 1))
    if kind.exif:
        chunks += _chunk(b"eXIf", kind.exif)
    return png[:33] + chunks + png[33:]


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _encode_tiff(stored: Any, mode: str, kind: Kind, icc: bytes) -> bytes:
    """TIFF 6.0, little-endian, strips of about 256 KiB; deflate with a predictor, unless the source was raw."""
    height, width = stored.shape[:2]
    samples = 1 if stored.ndim == 2 else stored.shape[2]
    deflate = kind.compressed or kind.format != "TIFF"
    rows = max(1, 2**18 // (stored[0].size * stored.itemsize))
    strips = [_tiff_strip(stored[top : top + rows], deflate) for top in range(0, height, rows)]
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tiff_tags_of_exif(kind.exif).items():
        ifd[tag] = value
    ifd[_WIDTH], ifd[_HEIGHT], ifd[_BITS] = width, height, (8 * stored.itemsize,) * samples
    ifd[259], ifd[_PHOTOMETRIC] = (8 if deflate else 1), {"L": 1, "LA": 1, "RGB": 2, "RGBA": 2, "CMYK": 5}[mode]
    ifd[_SAMPLES], ifd[278], ifd[284] = samples, rows, 1
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
        left = rows[:, :-1]
        rows = rows.copy()
        rows[:, 1:] -= left  # wraps around, as the predictor requires (TIFF 6.0, section 14)
    data: bytes = rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes()
    return zlib.compress(data, 3) if deflate else data
