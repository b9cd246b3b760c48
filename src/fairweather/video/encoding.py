"""What there is to be said of a clip's picture track, and the encoder that writes another one like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from fairweather.errors import BadSettings

EXACT = 0x2000 | 0x40000
"""swscale's ACCURATE_RND and FULL_CHR_H_INT: without them a frame comes back about one level darker."""
SCALING = {False: EXACT | 0x2, True: EXACT | 0x4}
"""swscale's flags between YUV and RGB, by whether the frames are deep: bilinear (what is bilinear fails at 16 bits),
bicubic."""
CONTAINERS = {
    **{suffix: "mp4" for suffix in (".mp4", ".m4v")},
    **{".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".gif": "gif", ".webp": "webp"},
    **{suffix: "mpegts" for suffix in (".ts", ".m2ts", ".mts")},
}
"""Suffix -> the name of the container that is written. `.gif` and `.webp` are clips where they are animated."""
ENCODERS = {
    **{"h264": "libx264", "hevc": "libx265", "vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1"},
    **{"mpeg4": "mpeg4", "mpeg2video": "mpeg2video", "mjpeg": "mjpeg", "prores": "prores_ks", "ffv1": "ffv1"},
    **{"gif": "gif", "webp": "libwebp_anim", "rawvideo": "rawvideo", "apng": "apng"},
}
"""A clip's codec -> what encodes it here; all others become H.264."""
DEFAULT_CODECS = {"webm": "libvpx-vp9", "gif": "gif", "webp": "libwebp_anim", "avi": "mpeg4"}
"""Container -> the encoder that it takes where it cannot hold the source's; else H.264."""
FINEST, COARSEST = 16, 28
MEASURED_BPP, MEASURED_CRF = 0.1, 23.0


@dataclass(frozen=True)
class VideoTrack:
    """The pictures of a clip, as they are stored."""

    width: int
    height: int
    time_base: Fraction
    """Seconds in one unit of the frames' times."""
    rate: Fraction | None
    """Mean frames a second, as the file says."""
    codec: str
    pixel_format: str
    bit_rate: int | None = None
    """Bits a second of the pictures alone."""
    frames: int | None = None
    """How many there are, where the file says so or gives its length."""
    aspect: Fraction | None = None
    """Width to height of one pixel."""
    colour: tuple[int, int, int, int] = (2, 2, 2, 0)
    """FFmpeg's numbers of matrix, primaries, transfer curve and range (2, 2, 2, 0: not said)."""
    matrix: tuple[int, ...] | None = None
    """The display matrix that turns the stored picture upright, nine numbers."""
    rotation: int = 0
    """By how much it turns, in degrees counter-clockwise."""
    profile: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def deep(self) -> bool:
        """Whether a channel has more than 8 bits."""
        return _deep(self.pixel_format)

    @property
    def yuv(self) -> int:
        """The matrix between YUV and RGB, by FFmpeg's number; where the file does not say, by its size, as players."""
        said = self.colour[0]
        return said if said not in (0, 2) else (1 if self.height >= 720 or self.width >= 1280 else 5)


@dataclass(frozen=True)
class Encoding:
    """What the picture track of the result is written with."""

    encoder: str
    pixel_format: str
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int | None = None


def choose_encoding(
    track: VideoTrack, container: str, codec: str | None = None, quality: float | None = None
) -> Encoding:
    """The source's codec, quality and pixel format, as far as there is an encoder for them that the container takes.

    `codec`: an encoder by its FFmpeg name in its place; `quality`: the encoder's own number (CRF where it has one).
    Raises BadSettings for a codec that is not there, or that the container does not take.
    """
    import av

    takes = _taken(container)
    if codec is not None:
        try:
            name = av.Codec(ENCODERS.get(codec, codec), "w").name
        except (av.codec.codec.UnknownCodecError, ValueError) as error:
            known = ", ".join(sorted({"h264", "hevc", "vp9", "av1", "prores", "ffv1"}))
            raise BadSettings(f"--codec {codec}: there is no such encoder here; {known} are some that are") from error
        if not takes(name):
            raise BadSettings(f"--codec {codec}: a {container} file cannot hold it; write to .mkv, or leave it out")
    else:
        name = ENCODERS.get(track.codec, "libx264")
        if name == "mpeg4" and track.time_base.denominator > 65535:  # MPEG-4's own limit
            name = "libx264"
        if not takes(name):
            name = DEFAULT_CODECS.get(container, "libx264")
        if track.deep and not _deep(_pixel_format(name, track)) and takes("libsvtav1"):
            name = "libsvtav1"  # libvpx is often built for 8 bits alone
    pixel_format = _pixel_format(name, track)
    if name in ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "libvpx"):
        crf = quality if quality is not None else encoding_like_source(track)
        options = {"crf": f"{crf * _SCALE.get(name, 1.0):.4g}"}
        if name.startswith("libvpx"):
            options |= {"deadline": "good", "cpu-used": "4", "row-mt": "1"}
        if name == "libsvtav1":
            options |= {"preset": "8", "svtav1-params": "lp=0"}
        if name == "libx265":
            options |= {"x265-params": "log-level=error"}
        return Encoding(name, pixel_format, options, 0 if name.startswith("libvpx") else None)
    if name == "libwebp_anim":
        return Encoding(name, pixel_format, {"quality": f"{90 if quality is None else quality:g}"})
    if name in ("mjpeg", "mpeg4", "mpeg2video"):
        return Encoding(name, pixel_format, {"q": f"{3 if quality is None else quality:g}"}, track.bit_rate)
    if name == "prores_ks":
        return Encoding(name, pixel_format, {"profile": _prores(track)})
    return Encoding(name, pixel_format)


_SHOWN = ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4")
"""Encoders whose files are there to be played, by players that know the usual pixel formats alone."""
_SCALE = {"libvpx": 1.1, "libvpx-vp9": 1.4, "libsvtav1": 1.4}
"""CRF goes to 51 in H.264 and to 63 in the others: about the same quality at so many times the number."""


def encoding_like_source(track: VideoTrack) -> float:
    """The CRF of H.264 that spends about as many bits as the source did; 18, all but lossless, where it does not say.

    At CRF 23 usual film takes about 0.1 bits a pixel, and each 6 steps halve it (x264's own rule). Newer codecs do the
    same with fewer.
    """
    if not track.bit_rate or not track.rate:
        return 18.0
    bits = track.bit_rate / float(track.rate) / (track.width * track.height)
    bits *= {"hevc": 1.7, "vp9": 1.6, "av1": 2.0, "mpeg4": 0.7, "mpeg2video": 0.5, "mjpeg": 0.15}.get(track.codec, 1.0)
    crf = MEASURED_CRF - 6 * math.log2(bits / MEASURED_BPP)
    return round(min(COARSEST, max(FINEST, crf)), 1)


def container_of(path: str | Path) -> str:
    """The container that a file's suffix stands for, "matroska" for a pipe. Raises BadSettings for others."""
    if str(path) == "-":
        return "matroska"
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise BadSettings(
            f"{path}: clips are written as {', '.join(sorted(CONTAINERS))}, or as pictures (frames/%05d.png); name one"
        )
    return CONTAINERS[suffix]


def _taken(container: str) -> Callable[[str], bool]:
    import av

    codecs = {
        "gif": {"gif"},
        "webp": {"webp"},
        "webm": {"vp8", "vp9", "av1"},
        "mp4": {"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mjpeg"},
    }.get(container)

    def takes(encoder: str) -> bool:
        kind = av.Codec(encoder, "w").canonical_name
        if codecs is not None:
            return kind in codecs
        return kind not in ("gif", "webp", "apng") and (container == "matroska" or kind not in ("vp8", "rawvideo"))

    return takes


def _pixel_format(encoder: str, track: VideoTrack) -> str:
    """The source's pixel format, or of those that the encoder takes the one that keeps most of it."""
    import av

    takes = [format_.name for format_ in av.Codec(encoder, "w").video_formats or ()]
    if encoder == "gif":
        return "pal8"
    source = av.VideoFormat(track.pixel_format)
    usual = f"yuv420p{'10le' if track.deep else ''}"
    if (
        (source.is_rgb or source.has_palette)
        and usual in takes
        and encoder in _SHOWN
        and not track.width % 2
        and not track.height % 2
    ):
        return usual  # what plays everywhere
    if not takes or track.pixel_format in takes:
        wanted = track.pixel_format
    else:
        wanted = min(takes, key=lambda name: _loss(source, av.VideoFormat(name)))
    if wanted.startswith("yuv") and "444" not in wanted and (track.width % 2 or track.height % 2):
        # Halved colour needs even sides; a source that had them odd is rare, a folder of pictures is not.
        full = wanted.replace("420", "444").replace("422", "444")
        wanted = full if full in takes else wanted
    return wanted


def _deep(pixel_format: str) -> bool:
    import av

    return any(component.bits > 8 for component in av.VideoFormat(pixel_format).components)


def _loss(source: Any, other: Any) -> tuple[int, ...]:
    """What changing the pixel format costs, worst first: depth lost, colour lost, both gained for nothing."""
    bits, others = (max(part.bits for part in format_.components) for format_ in (source, other))
    shown, shows = (_colour_share(format_) for format_ in (source, other))
    alpha = sum(format_.name.startswith(("yuva", "rgba", "bgra", "argb")) for format_ in (other,))
    return (
        max(0, bits - others),
        max(0, shown - shows),
        int(other.is_rgb and not source.is_rgb),
        alpha,
        abs(bits - others),
        abs(shown - shows),
        int(other.name.startswith("yuvj")),
    )


def _colour_share(format_: Any) -> int:
    """Of 16 pixels, how many have a colour of their own; grey has none."""
    if len(format_.components) < 3:
        return 0
    if format_.is_rgb or format_.has_palette:
        return 16
    return int(format_.chroma_width(16) * format_.chroma_height(16) // 16)


def _prores(track: VideoTrack) -> str:
    names = ("Proxy", "LT", "Standard", "HQ", "4444", "XQ")
    given = (track.profile or "").replace(" ", "").lower()
    found = [number for number, name in enumerate(names) if name.lower() in given]
    return str(found[-1] if found else (4 if "444" in track.pixel_format else 3))
