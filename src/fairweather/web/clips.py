"""Where clips come in: told from photos by their first bytes, and refused as long as nothing here restores them.

`restorer()` is the seam: it takes the room's video module late, so that a server without it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from fairweather.web.limits import Refused

MODULE = "fairweather.restoring.video"
FUNCTION = "restore_video"


def is_clip(start: bytes) -> bool:
    """Whether a file that begins so is a moving picture: MP4, MOV, Matroska, WebM, AVI, MPEG-TS or GIF."""
    brand = start[8:12]
    boxed = start[4:8] in (b"ftyp", b"moov", b"mdat") and brand not in _PICTURES
    return boxed or start[:4] in (b"\x1aE\xdf\xa3", b"GIF8") or (start[:4] == b"RIFF" and brand == b"AVI ")


_PICTURES = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def restorer() -> Callable[..., Any] | None:
    """What restores a clip from file to file, or None where this fairweather has nothing for it."""
    try:
        found: Callable[..., Any] | None = getattr(import_module(MODULE), FUNCTION, None)
    except ImportError:
        return None
    return found


def refusal(name: str) -> Refused:
    """What whoever sends a clip is told."""
    remedy = "restore it with `fairweather restore`" if restorer() else "take single frames out of it"
    return Refused(415, "clip", f"{name}: is a clip, and this server takes photos alone; {remedy}")
