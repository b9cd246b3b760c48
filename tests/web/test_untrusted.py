"""Clips that mean harm, or are strange: each ends in a refusal that says why, or in a good result, and reads nothing
else."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video.conftest import av, frames_of, make
from tests.web.conftest import sailing
from tests.web.test_api import told
from tests.web.test_films import CLIPS, FAST, ended, film, sent

TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while begin + 8 <= end:
        length, name = struct.unpack(">I4s", data[begin : begin + 8])
        yield name, begin, begin + length
        begin += length


def box(data: bytes, *path: bytes) -> tuple[int, int]:
    """Where a box begins and ends."""
    begin, end = -8, len(data)
    for wanted in path:
        begin, end = next((at, to) for name, at, to in boxes(data, begin + 8, end) if name == wanted)
    return begin, end


def announcing(path: Path, count: int) -> bytes:
    """An MP4 of three frames that says it has so many more."""
    data = bytearray(make(path, count=3, codec="mpeg4").read_bytes())
    struct.pack_into(">II", data, box(data, *TABLES, b"stsz")[0] + 12, 10, count)
    struct.pack_into(">II", data, box(data, *TABLES, b"stts")[0] + 12, 1, count)
    struct.pack_into(">I", data, box(data, *TABLES, b"stsc")[0] + 20, count)
    return bytes(data)


def fragments(path: Path, count: int) -> bytes:
    """The same, said by its last fragment."""
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        stream = out.add_stream("mpeg4", rate=25, options={"g": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in sailing(6, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.rindex(b"trun") + 4, 0, count)
    return bytes(data)


def compressed(path: Path, count: int) -> bytes:
    """An old QuickTime's table of contents, which could hide it; here it hides nothing."""
    return make(path, count=3).read_bytes() + struct.pack(">I4sI4s", 16, b"moov", 8, b"cmov")


@pytest.mark.parametrize("made", [announcing, fragments, compressed])
def test_few_bytes_do_not_fill_the_memory(client: Any, tmp_path: Path, made: Callable[[Path, int], bytes]) -> None:
    body = made(tmp_path / "made.mp4", 3_000_000)
    assert len(body) < 10_000
    began = time.monotonic()
    assert "far more" in told(client.post(CLIPS, params=FAST, content=body), 422, "bad_clip")
    assert time.monotonic() - began < 1


def test_uncompressed_sound_is_no_harm(tmp_path: Path) -> None:
    from fairweather.web import uploads
    from fairweather.web.limits import Limits

    path = make(tmp_path / "a.mov", count=60, audio="pcm_s16le")  # counts 100,000 pieces
    assert uploads.plausible_counts(path, "mov", Limits(length=3))
    assert not uploads.plausible_counts(path, "mov", Limits(length=0.1))


def changing(path: Path, *sizes: tuple[int, int]) -> Path:
    """A WebM whose frames become others in size: four of each."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuv420p"
        for number, (width, height) in enumerate(sizes):
            encoder = stream.codec_context
            if number:
                encoder = av.CodecContext.create("libvpx", "w")
                encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
                encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            pictures = [
                av.VideoFrame.from_ndarray(np.ascontiguousarray(one), "rgb24") for one in sailing(4, height, width)
            ]
            for at, picture in enumerate([*pictures, None]):
                if picture is not None:
                    picture.pts, picture.time_base = 4 * number + at, Fraction(1, 25)
                for packet in encoder.encode(picture):
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    out.mux(packet)
    return path


def test_frames_that_change_their_size_on_the_way(client: Any, tmp_path: Path) -> None:
    place = sent(client, changing(tmp_path / "call.webm", (160, 120), (320, 240), (80, 60)), **FAST)
    assert ended(client, place)["frames"] == 12
    (tmp_path / "clear.webm").write_bytes(client.get(f"{place}/result").content)
    pictures = frames_of(tmp_path / "clear.webm")[1]
    assert [one.shape for one in pictures] == 12 * [(120, 160, 3)]
    assert np.abs(pictures[3].astype(int) - pictures[4]).mean() < 40  # the same scene
    client.delete(place)
    place = sent(client, changing(tmp_path / "bomb.webm", (64, 48), (1600, 1200)), **FAST)
    error = ended(client, place, "failed")["error"]
    assert (error["status"], error["kind"]) == (422, "bad_clip")
    assert "bomb.webm: its frames become much larger" in error["message"]
    client.delete(place)


def referring(path: Path, other: Path) -> Path:
    """A MOV whose frames are those of another file beside it, by an alias in its data reference."""
    data = other.read_bytes()
    places = [(b"moov",), (b"moov", b"trak"), *(TABLES[:3], TABLES[:4]), (*TABLES[:4], b"dinf")]
    begin, end = box(data, *TABLES[:4], b"dinf", b"dref")
    name = other.name.encode()
    alias = bytes(10) + b"\1/" + bytes(26 + 12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">hh", 2, len(name) + 1) + b"/" + name
    alias += bytes(len(name) + 1 & 1) + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    made = bytearray(data[:begin] + dref + data[end:])
    for inside in places:
        at, to = box(data, *inside)
        struct.pack_into(">I", made, at, to - at + len(dref) - (end - begin))
    at, to = box(made, b"moov")
    path.write_bytes(data[: box(data, b"ftyp")[1]] + made[at:to])
    return path


def test_a_reference_to_another_file_is_not_followed(client: Any, tmp_path: Path) -> None:
    from fairweather.errors import BadImage
    from fairweather.video.reader import VideoReader

    secret = film(tmp_path / "secret.mov", 4)
    path = referring(tmp_path / "outside.mov", secret)
    with av.open(str(path), options={"enable_drefs": "1"}) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert np.array_equal(pictures, frames_of(secret)[1])  # were it allowed, FFmpeg would
    with pytest.raises(BadImage, match=r"outside\.mov"):
        VideoReader(str(path), only="mov")
    told(client.post(CLIPS, params=FAST, content=path.read_bytes()), 422, "bad_clip")


def test_sound_that_unpacks_to_far_more_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.errors import BadImage
    from fairweather.video import reader

    path = film(tmp_path / "a.mkv", 12, audio="aac")
    monkeypatch.setattr(reader, "_MAX_OTHER_BYTES", 1000 - path.stat().st_size)
    assert len([*reader.VideoReader(str(path)).items()]) > 12
    with pytest.raises(BadImage, match="far more than the file"):
        list(reader.VideoReader(str(path), only="matroska").items())
