"""The properties of a video track, and the choice of an encoder that writes a similar one."""

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
"""Whether frames have more than 8 bits -> swscale's flags between YUV and RGB: bilinear, which fails at 16 bits, or
bicubic."""
CONTAINERS = {
    **{suffix: "mp4" for suffix in (".mp4", ".m4v")},
    **{".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".gif": "gif", ".webp": "webp"},
    **{suffix: "mpegts" for suffix in (".ts", ".m2ts", ".mts")},
}
"""Suffix -> FFmpeg's muxer. `.gif` and `.webp` are videos if they are animated."""
ENCODERS = {
    **{"h264": "libx264", "hevc": "libx265", "vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1"},
    **{"mpeg4": "mpeg4", "mpeg2video": "mpeg2video", "mjpeg": "mjpeg", "prores": "prores_ks", "ffv1": "ffv1"},
    **{"gif": "gif", "webp": "libwebp_anim", "rawvideo": "rawvideo", "apng": "apng"},
}
"""Codec of the source -> encoder; all others become H.264."""
DEFAULT_CODECS = {"webm": "libvpx-vp9", "gif": "gif", "webp": "libwebp_anim", "avi": "mpeg4"}
"""Container -> encoder, where it cannot hold the source's codec; H.264 for others."""
FINEST, COARSEST = 16, 28
"""Range of CRF."""
MEASURED_BPP, MEASURED_CRF = 0.1, 23.0
"""Bits per pixel of typical video at a CRF of H.264."""
_PLAYER_ENCODERS = ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4")
"""Encoders for players that support only the usual pixel formats."""
_CRF_SCALE = {"libvpx": 1.1, "libvpx-vp9": 1.4, "libsvtav1": 1.4}
"""Factor from a CRF of H.264, which ends at 51, to about the same quality in others, which end at 63."""


@dataclass(frozen=True)
class VideoTrack:
    """The stored properties of a video track."""

    width: int
    height: int
    time_base: Fraction
    """Seconds per unit of the frames' times."""
    rate: Fraction | None
    """Mean frames per second, as declared."""
    codec: str
    pixel_format: str
    bit_rate: int | None = None
    """Bits per second of the video stream."""
    frames: int | None = None
    """Declared number of frames, or an estimate from the declared length."""
    aspect: Fraction | None = None
    """Width / height of a pixel."""
    colour: tuple[int, int, int, int] = (2, 2, 2, 0)
    """FFmpeg's numbers of matrix, primaries, transfer curve and range (2, 2, 2, 0: unspecified)."""
    matrix: tuple[int, ...] | None = None
    """The display matrix that rotates the stored frame upright, nine numbers."""
    rotation: int = 0
    """Degrees counter-clockwise of that rotation."""
    profile: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def deep(self) -> bool:
        """Whether a channel has more than 8 bits."""
        return _deep(self.pixel_format)

    @property
    def yuv(self) -> int:
        """FFmpeg's number of the matrix between YUV and RGB; if unspecified, by the size, as in players."""
        matrix = self.colour[0]
        return matrix if matrix not in (0, 2) else (1 if self.height >= 720 or self.width >= 1280 else 5)


@dataclass(frozen=True)
class Encoding:
    """How a video track is written."""

    encoder: str
    pixel_format: str
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int | None = None


def choose_encoding(
    track: VideoTrack, container: str, codec: str | None = None, quality: float | None = None
) -> Encoding:
    """Choose the source's codec, quality and pixel format, as far as an encoder and the container allow.

    Args:
        track: the source's video track.
        container: from `container_of`.
        codec: FFmpeg's name of a codec or encoder, instead of the source's codec.
        quality: the encoder's own number (CRF if it has one), instead of the source's quality.

    Raises:
        BadSettings: the codec has no encoder here, or the container does not support it.
    """
    import av

    holds = _holds(container)
    if codec is not None:
        try:
            name = av.Codec(ENCODERS.get(codec, codec), "w").name
        except (av.codec.codec.UnknownCodecError, ValueError) as error:
            known = ", ".join(sorted({"h264", "hevc", "vp9", "av1", "prores", "ffv1"}))
            raise BadSettings(f"--codec {codec}: FFmpeg has no such encoder here: use {known}") from error
        if not holds(name):
            raise BadSettings(f"--codec {codec}: {container} files do not support it: write to .mkv, or omit --codec")
    else:
        name = ENCODERS.get(track.codec, "libx264")
        if name == "mpeg4" and track.time_base.denominator > 65535:  # MPEG-4's own limit
            name = "libx264"
        if not holds(name):
            name = DEFAULT_CODECS.get(container, "libx264")
        if track.deep and not _deep(_pixel_format(name, track)) and holds("libsvtav1"):
            name = "libsvtav1"  # libvpx is often built for 8 bits only
    pixel_format = _pixel_format(name, track)
    if name in ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "libvpx"):
        crf = quality if quality is not None else encoding_like_source(track)
        options = {"crf": f"{crf * _CRF_SCALE.get(name, 1.0):.4g}"}
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


def encoding_like_source(track: VideoTrack) -> float:
    """Return the CRF of H.264 with about the bit rate of the source; 18, nearly lossless, if that is unknown.

    At CRF 23 typical video takes about 0.1 bits per pixel, and each 6 steps halve it (x264's rule). Newer codecs need
    fewer bits for the same quality.
    """
    if not track.bit_rate or not track.rate:
        return 18.0
    bits = track.bit_rate / float(track.rate) / (track.width * track.height)
    bits *= {"hevc": 1.7, "vp9": 1.6, "av1": 2.0, "mpeg4": 0.7, "mpeg2video": 0.5, "mjpeg": 0.15}.get(track.codec, 1.0)
    crf = MEASURED_CRF - 6 * math.log2(bits / MEASURED_BPP)
    return round(min(COARSEST, max(FINEST, crf)), 1)


def container_of(path: str | Path) -> str:
    """Return the container of a file by its suffix; "matroska" for "-", a pipe.

    Raises:
        BadSettings: the suffix is not that of a video.
    """
    if str(path) == "-":
        return "matroska"
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise BadSettings(
            f"{path}: unsupported video format: use {', '.join(sorted(CONTAINERS))}, or frames (frames/%05d.png)"
        )
    return CONTAINERS[suffix]


def _holds(container: str) -> Callable[[str], bool]:
    import av

    codecs = {
        "gif": {"gif"},
        "webp": {"webp"},
        "webm": {"vp8", "vp9", "av1"},
        "mp4": {"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mjpeg"},
    }.get(container)

    def holds(encoder: str) -> bool:
        kind = av.Codec(encoder, "w").canonical_name
        if codecs is not None:
            return kind in codecs
        return kind not in ("gif", "webp", "apng") and (container == "matroska" or kind not in ("vp8", "rawvideo"))

    return holds


def _pixel_format(encoder: str, track: VideoTrack) -> str:
    """Return the source's pixel format, or the encoder's format that preserves most of it."""
    import av

    takes = [format_.name for format_ in av.Codec(encoder, "w").video_formats or ()]
    if encoder == "gif":
        return "pal8"
    source = av.VideoFormat(track.pixel_format)
    usual = f"yuv420p{'10le' if track.deep else ''}"
    if (
        (source.is_rgb or source.has_palette)
        and usual in takes
        and encoder in _PLAYER_ENCODERS
        and not track.width % 2
        and not track.height % 2
    ):
        return usual  # plays everywhere
    if not takes or track.pixel_format in takes:
        wanted = track.pixel_format
    else:
        wanted = min(takes, key=lambda name: _loss(source, av.VideoFormat(name)))
    if wanted.startswith("yuv") and "444" not in wanted and (track.width % 2 or track.height % 2):
        # Subsampled chroma needs even sides, which a folder of frames may not have.
        full = wanted.replace("420", "444").replace("422", "444")
        wanted = full if full in takes else wanted
    return wanted


def _deep(pixel_format: str) -> bool:
    import av

    return any(component.bits > 8 for component in av.VideoFormat(pixel_format).components)


def _loss(source: Any, other: Any) -> tuple[int, ...]:
    """The cost of changing the pixel format, worst first: lost depth, lost chroma, then unneeded depth and chroma."""
    bits, other_bits = (max(part.bits for part in format_.components) for format_ in (source, other))
    chroma, other_chroma = (_chroma_samples(format_) for format_ in (source, other))
    return (
        max(0, bits - other_bits),
        max(0, chroma - other_chroma),
        int(other.is_rgb and not source.is_rgb),
        int(other.name.startswith(("yuva", "rgba", "bgra", "argb"))),
        abs(bits - other_bits),
        abs(chroma - other_chroma),
        int(other.name.startswith("yuvj")),
    )


def _chroma_samples(format_: Any) -> int:
    """Chroma samples per 16 pixels; 0 for grey."""
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
