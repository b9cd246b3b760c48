"""Where clips come in: told from photos by their first bytes, and refused, since the server takes photos alone.

This is the seam for them: what `Service.probe` refuses here would be handed to `fairweather.video.run`.
"""

from __future__ import annotations

from importlib.util import find_spec

from fairweather.web.limits import Refused

VIDEO = "fairweather.video"
"""The room that restores films, on the command line."""


def is_clip(start: bytes) -> bool:
    """Whether a file that begins so is a moving picture: MP4, MOV, Matroska, WebM, AVI or GIF."""
    brand = start[8:12]
    boxed = start[4:8] in (b"ftyp", b"moov", b"mdat") and brand not in _PICTURES
    return boxed or start[:4] in (b"\x1aE\xdf\xa3", b"GIF8") or (start[:4] == b"RIFF" and brand == b"AVI ")


_PICTURES = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def refusal(name: str) -> Refused:
    """What whoever sends a clip is told."""
    remedy = "fairweather restore takes it, on the command line" if find_spec(VIDEO) else "take single frames out of it"
    return Refused(415, "clip", f"{name}: is a clip, and this server takes photos alone; {remedy}")
