"""Photos on disk and in memory: read and write them, and cross the border between integers and [0,1].

What a file is besides its pixels (format, depth, grey or CMYK or palette, EXIF, colour profile, a JPEG's
quantization) travels with the photo, so that what is written is of the same kind as what was read; `formats`
lists the choices. EXIF orientation is applied on reading and reset. Written files appear complete or not at all.
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
from fairweather.images.decoding import SizeError, decode, sniff
from fairweather.images.encoding import encode
from fairweather.images.formats import ALPHA, DEEP, FORMATS, GREY, INK, Kind, Stored
from fairweather.images.headers import Header, probe

MAX_PIXELS = 200_000_000
"""A header that claims more is refused before anything is decoded (a guard against decompression bombs)."""

SUFFIXES: frozenset[str] = frozenset(FORMATS)
"""Lower-case suffixes of the pictures that are read and written."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture, upright, and what it takes to write it back as the same kind of file."""

    pixels: NDArray[Any]
    """H x W x 3, uint8 or uint16, RGB; grey photos have three equal channels."""
    alpha: NDArray[Any] | None = None
    """H x W, of the same dtype; never changed by restoring."""
    kind: Kind = field(default_factory=Kind)
    inks: NDArray[Any] | None = None
    """H x W x 4 uint8: the plates of a CMYK file; black generation follows them on writing."""

    def replaced(self, pixels: NDArray[Any]) -> Photo:
        """The same kind of photo with other pixels, of the same shape and dtype; else BadImage."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise BadImage(
                f"pixels of {pixels.shape} {pixels.dtype} cannot replace those of {self.pixels.shape} "
                f"{self.pixels.dtype}; give the same shape and dtype"
            )
        return replace(self, pixels=pixels)


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Photo:
    """The photo in a file: JPEG, PNG, WebP, TIFF, AVIF, BMP, PPM, and HEIC with the `photo` extra.

    The first bytes decide on the format, not the suffix. Raises BadImage, which names the file and the remedy,
    for whatever is missing, damaged, truncated, animated or larger than `max_pixels`; MissingExtra for HEIC.
    """
    path = Path(path)
    data, format = contents(path)
    try:
        stored, kind = decode(data, format, str(path), max_pixels)
    except SizeError as error:
        raise BadImage(
            f"{path}: {error}, above the limit of {max_pixels:,}; "
            f"if you trust the file, raise the limit with --max-pixels {error.pixels}"
        ) from None
    except (FairweatherError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types on damage: OSError, SyntaxError, struct.error, cv2.error
        raise BadImage(
            f"{path}: cannot be decoded as {format} ({_line(error)}); get a whole copy, or save it anew elsewhere"
        ) from error
    return _photo(stored, kind)


def contents(path: Path) -> tuple[bytes, str]:
    """A picture file's bytes, not decoded, and the format that the first of them tell.

    Raises BadImage for what is missing, empty or no picture that can be read.
    """
    with _opened(path) as file:
        data = file.read()
    return data, _format(path, data)


def header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """What a picture file says of itself; nothing is decoded, so that damage behind the header goes unseen.

    Raises BadImage as `read` does, MissingExtra for HEIC.
    """
    path = Path(path)
    with _opened(path) as file:
        format = _format(path, file.read(64))
        try:
            found = probe(file, format)
        except (FairweatherError, MemoryError):
            raise
        except Exception as error:  # as in `read`
            raise BadImage(
                f"{path}: its {format} header is damaged ({_line(error)}); get a whole copy, or save it anew elsewhere"
            ) from error
    if found.width * found.height > max_pixels:
        raise BadImage(
            f"{path}: claims {found.width:,} x {found.height:,} pixels, above the limit of {max_pixels:,}; "
            "make it smaller"
        )
    return found


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.is_dir():
            raise BadImage(f"{path}: is a folder, not a picture; give a picture's file")
        if path.exists() and not path.is_file():
            raise BadImage(f"{path}: is not a regular file; give a picture's file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise BadImage(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from error


def _format(path: Path, data: bytes) -> str:
    """The format that a file's first bytes tell."""
    if not data:
        raise BadImage(f"{path}: the file is empty (0 bytes); get it again from where it came")
    format = sniff(data)
    if format in ("", "GIF"):
        what = "GIF is not supported" if format else "not a picture: its first bytes are those of no known format"
        raise BadImage(f"{path}: {what}; give it as JPEG, PNG, WebP, TIFF, AVIF or HEIC")
    return format


def write(path: str | os.PathLike[str], photo: Photo | NDArray[Any]) -> None:
    """Write a photo (or an array: H x W x 3 or H x W, uint8 or uint16) as the format that the suffix names.

    An unknown suffix is written as the format that the photo was read as. What the format cannot hold is
    converted: alpha is flattened on white, 16 bits are rounded to 8, CMYK becomes RGB.
    Raises BadImage (no format, or one that cannot hold this picture), BadFolder (the file cannot be written;
    nothing is left behind), MissingExtra.
    """
    path = Path(path)
    if not isinstance(photo, Photo):
        photo = _from_array(photo)
    format = FORMATS.get(path.suffix.lower(), photo.kind.format)
    if not format:
        raise BadImage(f"{path}: the suffix names no format; use one of {', '.join(sorted(SUFFIXES))}")
    stored, mode = _stored(photo, format)
    try:
        data = encode(stored, mode, format, photo.kind)
    except (FairweatherError, MemoryError):
        raise
    except Exception as error:
        height, width = photo.pixels.shape[:2]
        raise BadImage(
            f"{path}: {width} x {height} pixels cannot be written as {format} ({_line(error)}); choose another suffix"
        ) from error
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def to_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """uint8 or uint16 of any shape -> float32 in [0,1]; floats pass through as float32."""
    if pixels.dtype not in (np.uint8, np.uint16):
        return pixels.astype(np.float32, copy=False)
    scaled: NDArray[np.float32] = np.multiply(pixels, np.float32(1 / np.iinfo(pixels.dtype).max), dtype=np.float32)
    return scaled


def from_float(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Floats of any shape, clipped to [0,1] -> uint8 or uint16, rounded to nearest; to floats: clipped only."""
    dtype = np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16):
        clipped: NDArray[Any] = np.clip(array, 0, 1).astype(dtype, copy=False)
        return clipped
    scaled: NDArray[np.float32] = np.multiply(array, np.float32(np.iinfo(dtype).max), dtype=np.float32)
    np.clip(scaled, 0, np.iinfo(dtype).max, out=scaled)
    rounded: NDArray[Any] = np.rint(scaled, out=scaled).astype(dtype)
    return rounded


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _photo(stored: Any, kind: Kind) -> Photo:
    if kind.mode == "CMYK":
        return Photo(_mixed(stored), None, kind, stored)
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
            f"an array of {array.shape} {array.dtype} is not a picture; "
            "give H x W x 3 or H x W of uint8 or uint16 (from_float converts)"
        )
    return _photo(np.ascontiguousarray(array), Kind(mode="L" if array.ndim == 2 else "RGB"))


def _stored(photo: Photo, format: str) -> tuple[Stored, str]:
    """The channels that the file will hold, as near to the photo's kind as the format allows, and their mode."""
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
        return _separated(pixels, photo.inks), "CMYK"
    if photo.kind.mode in ("L", "LA") and format in GREY:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        two = alpha is not None and not (format == "TIFF" and pixels.dtype == np.uint16)
        if two:
            return cv2.merge([grey, alpha]), "LA"
        if alpha is None:
            return grey, "L"
        pixels = cv2.merge([grey] * 3)
    if alpha is None:
        return pixels, "RGB"
    both = np.empty((*alpha.shape, 4), pixels.dtype)
    both[..., :3], both[..., 3] = pixels, alpha
    return both, "RGBA"


def _eight_bits(deep: NDArray[Any]) -> NDArray[Any]:
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _mixed(inks: Any) -> Any:
    """CMYK plates -> RGB as Pillow and browsers mix them, without a profile: (1 - ink) (1 - black)."""
    left = 255 - inks
    return cv2.multiply(left[..., :3].copy(), cv2.merge([left[..., 3]] * 3), scale=1 / 255)


def _separated(pixels: Any, inks: Any) -> Any:
    """RGB -> CMYK plates, with the source's black where the colour allows it, and its very inks where nothing changed.

    Any split of a dark tone into black and colour mixes to the same RGB, but not on paper.
    """
    left = np.maximum(255 - inks[..., 3], pixels.max(axis=2)).astype(np.float32)
    colour = np.rint(pixels * (255 / np.maximum(left, 1))[..., None])
    plates = 255 - np.dstack([colour, left]).astype(np.uint8)
    kept = (pixels == _mixed(inks)).all(axis=2)
    return np.where(kept[..., None], inks, plates)
