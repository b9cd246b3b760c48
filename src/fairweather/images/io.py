"""Photos in files and in memory: read, write, check, and convert between integers and floats in [0, 1].

A photo keeps the properties of its file (`Kind`: format, profile, compression, ...), so that it is written as the same
kind of file. EXIF orientation is applied on reading and reset. Files are written atomically.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fairweather.errors import BadImage, FairweatherError
from fairweather.files import atomic
from fairweather.images.codecs import Header, SizeError, Stored, decode, encode, probe, sniff
from fairweather.images.formats import ALPHA, DEEP, FORMATS, GREY, INK, Kind

MAX_PIXELS = 200_000_000
"""Default limit of the pixels that a header declares, checked before decoding (against decompression bombs)."""

SUFFIXES: frozenset[str] = frozenset(FORMATS)
"""Lower-case suffixes of pictures that can be read and written."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright picture, and the kind of file that it was read from."""

    pixels: NDArray[Any]
    """H x W x 3, uint8 or uint16, RGB; grey photos have three equal channels."""
    alpha: NDArray[Any] | None = None
    """H x W of the same dtype; restoring never changes it."""
    kind: Kind = field(default_factory=Kind)
    inks: NDArray[Any] | None = None
    """H x W x 4 uint8: the planes of a CMYK file, from which black is generated on writing."""

    def replaced(self, pixels: NDArray[Any]) -> Photo:
        """Return the same photo with other pixels.

        Args:
            pixels: of the same shape and dtype.

        Raises:
            BadImage: they are not.
        """
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise BadImage(
                f"pixels of {pixels.shape} {pixels.dtype} cannot replace those of {self.pixels.shape} "
                f"{self.pixels.dtype}: give the same shape and dtype"
            )
        return replace(self, pixels=pixels)


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photo: JPEG, PNG, WebP, TIFF, AVIF, BMP, PPM, and HEIC with the `photo` extra.

    Args:
        path: the file; its first bytes determine the format, not its suffix.
        max_pixels: limit of width x height.

    Raises:
        BadImage: the file is missing, damaged, truncated, animated or too large.
        MissingExtra: HEIC without pillow-heif.
    """
    path = Path(path)
    data, format = contents(path)
    try:
        stored, kind = decode(data, format, str(path), max_pixels)
    except SizeError as error:
        raise BadImage(
            f"{path} {error}, above the limit of {max_pixels:,}: "
            f"if you trust the file, raise the limit with --max-pixels {error.pixels}"
        ) from None
    except (FairweatherError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types on damage: OSError, SyntaxError, struct.error, cv2.error
        raise BadImage(
            f"{path} cannot be decoded as {format} ({_line(error)}): "
            "get a complete copy, or save it with another program"
        ) from error
    return _to_photo(stored, kind)


def check(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode a photo and discard it, to raise what `read` would raise."""
    read(path, max_pixels=max_pixels)


def contents(path: Path) -> tuple[bytes, str]:
    """Return a picture file's bytes, not decoded, and its format.

    Raises:
        BadImage: the file is missing, empty or not a picture.
    """
    with _open(path) as file:
        data = file.read()
    return data, _format(path, data)


def header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read a picture's header. Nothing is decoded, so later damage is not found.

    Raises:
        BadImage: as `read`.
        MissingExtra: HEIC without pillow-heif.
    """
    path = Path(path)
    with _open(path) as file:
        format = _format(path, file.read(64))
        try:
            found = probe(file, format)
        except (FairweatherError, MemoryError):
            raise
        except Exception as error:  # as in `read`
            raise BadImage(
                f"{path} has a damaged {format} header ({_line(error)}): "
                "get a complete copy, or save it with another program"
            ) from error
    if found.width * found.height > max_pixels:
        raise BadImage(
            f"{path} claims {found.width:,} x {found.height:,} pixels, above the limit of {max_pixels:,}: "
            "make it smaller"
        )
    return found


def write(path: str | os.PathLike[str], photo: Photo | NDArray[Any]) -> None:
    """Write a photo to a file.

    What the format cannot hold is converted: alpha is flattened on white, 16 bits are rounded to 8, CMYK becomes RGB.

    Args:
        path: the file; its suffix determines the format, an unknown suffix stands for the format of the source.
        photo: a photo, or an array, H x W x 3 or H x W, uint8 or uint16.

    Raises:
        BadImage: no format, or one that cannot hold the picture.
        BadFolder: the file cannot be written; nothing is left behind.
        MissingExtra: HEIC without pillow-heif.
    """
    path = Path(path)
    if not isinstance(photo, Photo):
        photo = _from_array(photo)
    format = FORMATS.get(path.suffix.lower(), photo.kind.format)
    if not format:
        raise BadImage(f"{path} has no known suffix: use one of {', '.join(sorted(SUFFIXES))}")
    stored, mode = _to_channels(photo, format)
    try:
        data = encode(stored, mode, format, photo.kind)
    except (FairweatherError, MemoryError):
        raise
    except Exception as error:
        height, width = photo.pixels.shape[:2]
        raise BadImage(
            f"{path}: {width} x {height} pixels cannot be written as {format} ({_line(error)}): choose another suffix"
        ) from error
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def to_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Convert uint8 or uint16 of any shape to float32 in [0, 1]; floats are only cast."""
    if pixels.dtype not in (np.uint8, np.uint16):
        return pixels.astype(np.float32, copy=False)
    scaled: NDArray[np.float32] = np.multiply(pixels, np.float32(1 / np.iinfo(pixels.dtype).max), dtype=np.float32)
    return scaled


def from_float(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Clip floats of any shape to [0, 1] and round them to uint8 or uint16; other dtypes are only clipped and cast."""
    dtype = np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16):
        clipped: NDArray[Any] = np.clip(array, 0, 1).astype(dtype, copy=False)
        return clipped
    scaled: NDArray[np.float32] = np.multiply(array, np.float32(np.iinfo(dtype).max), dtype=np.float32)
    np.clip(scaled, 0, np.iinfo(dtype).max, out=scaled)
    rounded: NDArray[Any] = np.rint(scaled, out=scaled).astype(dtype)
    return rounded


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.is_dir():
            raise BadImage(f"{path} is a folder, not a picture: give the path of a picture")
        if path.exists() and not path.is_file():
            raise BadImage(f"{path} is not a regular file: give the path of a picture")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise BadImage(f"{path}: no such file: check the name") from None
    except OSError as error:
        raise BadImage(f"{path} cannot be read ({error.strerror}): check its permissions and the disk") from error


def _format(path: Path, data: bytes) -> str:
    """Return the format that a file's first bytes show."""
    if not data:
        raise BadImage(f"{path}: the file is empty (0 bytes): get a complete copy")
    format = sniff(data)
    if format in ("", "GIF"):
        what = "GIF is not supported" if format else "not a picture of a known format"
        raise BadImage(f"{path}: {what}: convert it to JPEG, PNG, WebP, TIFF, AVIF or HEIC")
    return format


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_photo(stored: Any, kind: Kind) -> Photo:
    if kind.mode == "CMYK":
        return Photo(_mix_inks(stored), None, kind, stored)
    if kind.mode == "L":
        return Photo(cv2.merge([stored] * 3), None, kind)
    if kind.mode == "LA":
        return Photo(cv2.merge([stored[..., 0]] * 3), stored[..., 1].copy(), kind)
    if kind.mode == "RGBA":
        return Photo(cv2.cvtColor(stored, cv2.COLOR_RGBA2RGB), stored[..., 3].copy(), kind)
    return Photo(stored, None, kind)


def _from_array(array: NDArray[Any]) -> Photo:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not fits or not array.size or array.dtype not in (np.uint8, np.uint16):
        raise BadImage(
            f"an array of {array.shape} {array.dtype} is not a picture: "
            "give H x W x 3 or H x W of uint8 or uint16 (from_float converts)"
        )
    return _to_photo(np.ascontiguousarray(array), Kind(mode="L" if array.ndim == 2 else "RGB"))


def _to_channels(photo: Photo, format: str) -> tuple[Stored, str]:
    """Return the channels to store, as close to the photo's kind as the format allows, and their mode."""
    pixels: Any = photo.pixels
    alpha: Any = photo.alpha
    if format not in DEEP and pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels)
        alpha = None if alpha is None else _eight_bits(alpha)
    if alpha is not None and format not in ALPHA:
        top = np.iinfo(pixels.dtype).max
        cover = (alpha.astype(np.float32) / top)[..., None]
        pixels, alpha = np.rint(pixels * cover + top * (1 - cover)).astype(pixels.dtype), None
    if photo.inks is not None and format in INK:
        return _separate_inks(pixels, photo.inks), "CMYK"
    if photo.kind.mode in ("L", "LA") and format in GREY:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        if alpha is None:
            return grey, "L"
        if format != "TIFF" or pixels.dtype == np.uint8:
            return cv2.merge([grey, alpha]), "LA"
        pixels = cv2.merge([grey] * 3)
    if alpha is None:
        return pixels, "RGB"
    both = np.empty((*alpha.shape, 4), pixels.dtype)
    both[..., :3], both[..., 3] = pixels, alpha
    return both, "RGBA"


def _eight_bits(deep: NDArray[Any]) -> NDArray[Any]:
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _mix_inks(inks: Any) -> Any:
    """CMYK -> RGB as Pillow and browsers mix it, without a profile: (1 - ink) (1 - black)."""
    left = 255 - inks
    return cv2.multiply(left[..., :3].copy(), cv2.merge([left[..., 3]] * 3), scale=1 / 255)


def _separate_inks(pixels: Any, inks: Any) -> Any:
    """RGB -> CMYK, with the source's black where the colour allows it, and the source's inks where nothing changed.

    Any split of a dark tone into black and colour has the same RGB, but not the same look on paper.
    """
    left = np.maximum(255 - inks[..., 3], pixels.max(axis=2)).astype(np.float32)
    colour = np.rint(pixels * (255 / np.maximum(left, 1))[..., None])
    planes = 255 - np.dstack([colour, left]).astype(np.uint8)
    unchanged = (pixels == _mix_inks(inks)).all(axis=2)
    return np.where(unchanged[..., None], inks, planes)
