"""Photos in files and in memory: read, write, check, and convert between integers and floats in [0, 1]."""

from fairweather.images.codecs import Header
from fairweather.images.formats import FORMATS, Kind
from fairweather.images.io import (
    MAX_PIXELS,
    SUFFIXES,
    Photo,
    check,
    contents,
    from_float,
    header,
    read,
    to_float,
    write,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "Header",
    "Kind",
    "Photo",
    "check",
    "contents",
    "from_float",
    "header",
    "read",
    "to_float",
    "write",
]
