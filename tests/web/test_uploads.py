"""Uploads that are slow, large, incomplete, of the wrong kind, or malicious: each is rejected with its reason, or
restored, and nothing but the file itself is read."""

from __future__ import annotations

import asyncio
import io
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.video.conftest import av, frames_of, make, tone
from tests.web.conftest import EXAMPLES, FAST, RESTORE, VIDEOS, add_video, hazy_frames, refusal, video, wait_for

LIGHTHOUSE = (EXAMPLES / "lighthouse.jpg").read_bytes()
TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def receive(folder: Path, next_message: Callable[[], Awaitable[Any]], **headers: str) -> tuple[Path, str]:
    from starlette.requests import Request

    from fairweather.web.limits import Limits
    from fairweather.web.uploads import receive_upload

    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": sent}
    limits = Limits(max_bytes=1000, timeout=0.2)
    return asyncio.run(receive_upload(Request(scope, next_message), folder, limits, "../harbour.jpg"))


class Body:
    """The messages of a body in chunks; then that the client has disconnected, unless it is complete."""

    def __init__(self, *chunks: bytes, complete: bool = True) -> None:
        self.chunks, self.complete = list(chunks), complete

    async def __call__(self) -> dict[str, Any]:
        if not self.chunks:
            return {"type": "http.disconnect"}
        more = {"body": self.chunks.pop(0), "more_body": bool(self.chunks) or not self.complete}
        return {"type": "http.request", **more}


@pytest.mark.usefixtures("web")
def test_bodies_that_are_complete_slow_incomplete_and_large(tmp_path: Path) -> None:
    from fairweather.web.limits import RequestRefused

    async def never() -> Any:
        await asyncio.sleep(30)

    path, name = receive(tmp_path, Body(b"a" * 600, b"b" * 400))
    assert (path.read_bytes(), name) == (b"a" * 600 + b"b" * 400, "harbour.jpg")
    for body, status, message in (
        (never, 408, "harbour.jpg: the upload took longer than 0.2 s"),
        (Body(b"abc", complete=False), 400, "harbour.jpg: the upload is incomplete"),
    ):
        with pytest.raises(RequestRefused, match=message) as error:
            receive(tmp_path, body)
        assert error.value.status == status
    for headers in ({}, {"content_length": "5000"}):
        large = Body(*[b"x" * 500] * 10)
        with pytest.raises(RequestRefused) as error:
            receive(tmp_path, large, **headers)
        assert error.value.status == 413
        assert not large.chunks, "the client would see no response"
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def bomb() -> bytes:
    """A PNG of a hundred bytes that declares 60000 x 60000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"this is a text, not a photo", 415, "not_a_photo", "JPEG, PNG"),
        (LIGHTHOUSE[:20_000], 422, "bad_photo", "get a complete copy"),
        (b"", 422, "empty", "0 bytes"),
        (b"\xff\xd8\xff\xe0 and nothing more", 422, "bad_photo", "header"),
        (bomb(), 413, "too_many_pixels", "60,000 x 60,000"),
        (b"\0\0\0\x18ftypisom" + bytes(100), 415, "video", "/api/v1/videos"),
        (gif(), 415, "video", "/api/v1/videos"),
        (b"\xff\xd8\xff" + bytes(3_000_001), 413, "too_large", "3 MB"),
    ],
    ids=["text", "truncated", "empty", "header", "bomb", "video", "gif", "large"],
)
@pytest.mark.parametrize("form", [False, True])
def test_what_is_not_a_photo(
    client: Any, service: Any, form: bool, body: bytes, status: int, kind: str, message: str
) -> None:
    before = set(service.folders.root.iterdir())
    if form:
        response = client.post(RESTORE, files={"photo": ("harbour.jpg", body)})
    else:
        response = client.post(RESTORE, params={"name": "harbour.jpg"}, content=body)
    text = refusal(response, status, kind)
    assert "harbour.jpg " in text
    assert message in text
    assert str(service.folders.root) not in text
    assert service.requests.active == 0
    assert set(service.folders.root.iterdir()) == before, "temporary files are left"


def test_bodies_without_a_length_and_forms_without_a_file(client: Any) -> None:
    refusal(client.post(RESTORE, content=(bytes(10_000) for _ in range(400))), 413, "too_large")
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        response = client.post(RESTORE, content=b"nonsense without an end", headers={"content-type": kind})
        refusal(response, 400, "bad_form")
    refusal(client.post(RESTORE, files={"other": ("a.jpg", b"x")}), 422, "no_file")
    refusal(client.post(RESTORE, data={"photo": "a text"}, files={"b": b""}), 422, "no_file")


def sound_only(path: Path) -> bytes:
    with av.open(str(path), "w") as out:
        tone(out, out.add_stream("aac", rate=48000), Fraction(1, 5))
    return path.read_bytes()


def without_frames(path: Path) -> bytes:
    """An MP4 whose track has no frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    return path.read_bytes()


def unknown_codec(path: Path) -> bytes:
    return video(path.with_suffix(".mkv"), 2).read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS1")


BAD_VIDEOS: dict[str, tuple[Callable[[Path], bytes], int, str, str]] = {
    "text": (lambda path: b"this is a text, not a video", 415, "not_a_video", "MP4, MOV"),
    "photo": (lambda path: LIGHTHOUSE, 415, "not_a_video", "MP4, MOV"),
    "avif": (lambda path: b"\0\0\0\x20ftypavif" + bytes(100), 415, "not_a_video", "MP4, MOV"),
    "empty": (lambda path: b"", 422, "empty", "0 bytes"),
    "header": (lambda path: b"\0\0\0\x18ftypisom" + bytes(100), 422, "bad_video", "complete copy"),
    "cut": (lambda path: video(path, 6).read_bytes()[:-900], 422, "bad_video", "complete copy"),
    "sound": (sound_only, 422, "bad_video", "harbour.mp4 "),
    "frames": (without_frames, 422, "bad_video", "harbour.mp4 "),
    "codec": (unknown_codec, 422, "bad_video", "harbour.mp4 "),
    "pixels": (lambda path: make(path, size=(2000, 1200), count=1).read_bytes(), 413, "too_many_pixels", "2 megapix"),
    "bytes": (lambda path: b"\0\0\0\x18ftypisom" + bytes(3_000_001), 413, "too_large", "3 MB"),
    "playlist": (lambda path: b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", 415, "not_a_video", "MP4, MOV"),
    "concat": (lambda path: b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "not_a_video", "MP4, MOV"),
}


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_what_is_not_a_video(client: Any, service: Any, tmp_path: Path, case: str) -> None:
    make_body, status, kind, message = BAD_VIDEOS[case]
    before = set(service.folders.root.iterdir())
    response = client.post(VIDEOS, params={"name": "harbour.mp4", **FAST}, content=make_body(tmp_path / "made.mp4"))
    text = refusal(response, status, kind)
    assert "harbour.mp4 " in text
    assert message in text
    assert str(service.folders.root) not in text
    assert service.requests.active == 0
    assert set(service.folders.root.iterdir()) == before, "temporary files are left"


def test_a_video_that_is_cut_short_is_restored_and_reported(client: Any, tmp_path: Path) -> None:
    path = video(tmp_path / "cut.mkv", 48)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    location = add_video(client, path, **FAST)
    status = wait_for(client, location)
    assert "are present" in status["missing"]
    assert 0 < status["frames"] < 48
    assert client.get(f"{location}/result").headers["x-fairweather-missing"] == status["missing"]
    client.delete(location)


def test_without_pyav_the_extra_is_named(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.web import uploads

    data = video(tmp_path / "a.mp4", 2).read_bytes()
    monkeypatch.setattr(uploads, "PYAV", "no_such_module")
    for path, kind in ((VIDEOS, "unsupported"), (RESTORE, "video"), ("/page/photos", "unsupported")):
        assert "fairweather[video]" in refusal(client.post(path, content=data), 415, kind)


def test_errors_of_pyav_have_their_status(tmp_path: Path) -> None:
    from fairweather.web.limits import Limits
    from fairweather.web.uploads import video_error

    for error, status in ((av.error.InvalidDataError(1, "nonsense"), 422), (ZeroDivisionError(), 500)):
        refused = video_error(error, tmp_path / "source", "harbour.mp4", Limits())
        assert refused.status == status
        assert str(refused).startswith("harbour.mp4")


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


def many_declared_frames(path: Path, count: int) -> bytes:
    """An MP4 of three frames that declares many more."""
    data = bytearray(make(path, count=3, codec="mpeg4").read_bytes())
    struct.pack_into(">II", data, box(data, *TABLES, b"stsz")[0] + 12, 10, count)
    struct.pack_into(">II", data, box(data, *TABLES, b"stts")[0] + 12, 1, count)
    struct.pack_into(">I", data, box(data, *TABLES, b"stsc")[0] + 20, count)
    return bytes(data)


def many_declared_in_a_fragment(path: Path, count: int) -> bytes:
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        stream = out.add_stream("mpeg4", rate=25, options={"g": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in hazy_frames(6, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.rindex(b"trun") + 4, 0, count)
    return bytes(data)


def compressed_header(path: Path, count: int) -> bytes:
    """An old QuickTime's compressed table of contents, which could declare as many."""
    return make(path, count=3).read_bytes() + struct.pack(">I4sI4s", 16, b"moov", 8, b"cmov")


@pytest.mark.parametrize("make_body", [many_declared_frames, many_declared_in_a_fragment, compressed_header])
def test_a_few_bytes_do_not_fill_the_memory(
    client: Any, tmp_path: Path, make_body: Callable[[Path, int], bytes]
) -> None:
    body = make_body(tmp_path / "made.mp4", 3_000_000)
    assert len(body) < 10_000
    began = time.monotonic()
    assert "far more" in refusal(client.post(VIDEOS, params=FAST, content=body), 422, "bad_video")
    assert time.monotonic() - began < 1


def test_uncompressed_sound_is_accepted(tmp_path: Path) -> None:
    from fairweather.web.limits import Limits, RequestRefused
    from fairweather.web.uploads import inspect_video

    path = make(tmp_path / "a.mov", count=60, audio="pcm_s16le")  # lists 100,000 samples
    assert inspect_video(path, "a.mov", Limits(max_video_seconds=3)).frames == 60
    with pytest.raises(RequestRefused, match="far more"):
        inspect_video(path, "a.mov", Limits(max_video_seconds=0.1))


def changing_size(path: Path, *sizes: tuple[int, int]) -> Path:
    """A WebM with four frames of each size."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuv420p"
        for number, (width, height) in enumerate(sizes):
            encoder = stream.codec_context
            if number:
                encoder = av.CodecContext.create("libvpx", "w")
                encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
                encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            frames = [
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                for pixels in hazy_frames(4, height, width)
            ]
            for at, frame in enumerate([*frames, None]):
                if frame is not None:
                    frame.pts, frame.time_base = 4 * number + at, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    out.mux(packet)
    return path


def test_frames_that_change_their_size(client: Any, tmp_path: Path) -> None:
    location = add_video(client, changing_size(tmp_path / "call.webm", (160, 120), (320, 240), (80, 60)), **FAST)
    assert wait_for(client, location)["frames"] == 12
    (tmp_path / "clear.webm").write_bytes(client.get(f"{location}/result").content)
    frames = frames_of(tmp_path / "clear.webm")[1]
    assert [frame.shape for frame in frames] == 12 * [(120, 160, 3)]
    assert np.abs(frames[3].astype(int) - frames[4]).mean() < 40  # the same scene
    client.delete(location)
    location = add_video(client, changing_size(tmp_path / "bomb.webm", (64, 48), (1600, 1200)), **FAST)
    error = wait_for(client, location, "failed")["error"]
    assert (error["status"], error["kind"]) == (422, "bad_video")
    assert error["message"].startswith("bomb.webm: ")
    client.delete(location)


def referring_to(other: Path, path: Path) -> Path:
    """A MOV whose frames are those of another file in its folder, by an alias in its data reference."""
    data = other.read_bytes()
    parents = [(b"moov",), (b"moov", b"trak"), *(TABLES[:3], TABLES[:4]), (*TABLES[:4], b"dinf")]
    begin, end = box(data, *TABLES[:4], b"dinf", b"dref")
    name = other.name.encode()
    alias = bytes(10) + b"\1/" + bytes(26 + 12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">hh", 2, len(name) + 1) + b"/" + name
    alias += bytes(len(name) + 1 & 1) + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    dref = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    made = bytearray(data[:begin] + dref + data[end:])
    for parent in parents:
        at, to = box(data, *parent)
        struct.pack_into(">I", made, at, to - at + len(dref) - (end - begin))
    at, to = box(made, b"moov")
    path.write_bytes(data[: box(data, b"ftyp")[1]] + made[at:to])
    return path


def test_a_reference_to_another_file_is_not_followed(client: Any, tmp_path: Path) -> None:
    secret = video(tmp_path / "secret.mov", 4)
    path = referring_to(secret, tmp_path / "outside.mov")
    with av.open(str(path), options={"enable_drefs": "1"}) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert np.array_equal(frames, frames_of(secret)[1])  # FFmpeg would, if it were allowed
    refusal(client.post(VIDEOS, params=FAST, content=path.read_bytes()), 422, "bad_video")
