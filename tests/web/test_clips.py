"""What is a clip and what is not, said before any work on it; and that nothing but the file itself is read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.video.conftest import av, make, tone
from tests.web.conftest import EXAMPLES
from tests.web.test_api import told
from tests.web.test_films import CLIPS, FAST, film


def heard(path: Path) -> bytes:
    with av.open(str(path), "w") as out:
        tone(out, out.add_stream("aac", rate=48000), Fraction(1, 5))
    return path.read_bytes()


def frameless(path: Path) -> bytes:
    """An MP4 whose track has no frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    return path.read_bytes()


BODIES: dict[str, tuple[Callable[[Path], bytes], int, str, str]] = {
    "text": (lambda path: b"this is a text, not a clip", 415, "not_a_clip", "MP4, MOV"),
    "photo": (lambda path: (EXAMPLES / "lighthouse.jpg").read_bytes(), 415, "not_a_clip", "MP4, MOV"),
    "empty": (lambda path: b"", 422, "empty", "0 bytes"),
    "header": (lambda path: b"\0\0\0\x18ftypisom" + bytes(100), 422, "bad_clip", "whole copy"),
    "truncated": (lambda path: film(path, 6).read_bytes()[:-900], 422, "bad_clip", "truncated"),
    "matroska": (lambda path: film(path.with_suffix(".mkv")).read_bytes()[:4000], 422, "bad_clip", "truncated"),
    "avi": (lambda path: film(path.with_suffix(".avi"), codec="mpeg4").read_bytes()[:9000], 422, "bad_clip", "trunc"),
    "sound": (heard, 422, "bad_clip", "no video stream"),
    "frameless": (frameless, 422, "bad_clip", "no video stream"),
    "codec": (
        lambda path: film(path.with_suffix(".mkv"), 2).read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS1"),
        422,
        "bad_clip",
        "no video stream",
    ),
    "pixels": (
        lambda path: make(path, size=(2000, 1200), count=1).read_bytes(),
        413,
        "too_many_pixels",
        "2 megapix",
    ),
    "bytes": (lambda path: b"\0\0\0\x18ftypisom" + bytes(3_000_001), 413, "too_large", "3 MB"),
    "playlist": (lambda path: b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", 415, "not_a_clip", "MP4, MOV"),
    "concat": (lambda path: b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "not_a_clip", "MP4, MOV"),
}


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_clip(client: Any, service: Any, tmp_path: Path, body: str) -> None:
    made, status, kind, says = BODIES[body]
    before = set(service.folders.root.iterdir())
    answer = client.post(CLIPS, params={"name": "harbour.mp4", **FAST}, content=made(tmp_path / "made.mp4"))
    message = told(answer, status, kind)
    assert message.startswith("harbour.mp4: ")
    assert says in message
    assert str(service.folders.root) not in message
    assert service.turns.taken == 0
    assert set(service.folders.root.iterdir()) == before, "temporary files are left"


def test_what_goes_wrong_on_the_way_has_its_status(tmp_path: Path) -> None:
    from fairweather.web.limits import Limits
    from fairweather.web.uploads import clip_error

    for error, status in (
        (av.error.InvalidDataError(1, "nonsense"), 422),
        (OSError(errno.ENOSPC, "no space left"), 507),
        (MemoryError(), 503),
        (ZeroDivisionError(), 500),
    ):
        refusal = clip_error(error, tmp_path / "source", "harbour.mp4", Limits())
        assert refusal.status == status
        assert str(refusal).startswith("harbour.mp4: ")


def test_without_pyav_the_extra_is_named(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.web import uploads

    path = film(tmp_path / "a.mp4", 2)
    assert "/api/v1/clips" in told(client.post("/api/v1/restore", content=path.read_bytes()), 415, "clip")
    monkeypatch.setattr(uploads, "AV", "no_such_module")
    assert "fairweather[video]" in told(client.post(CLIPS, content=path.read_bytes()), 415, "unsupported")
    assert "fairweather[video]" in told(client.post("/api/v1/restore", content=path.read_bytes()), 415, "clip")
    assert "fairweather[video]" in told(client.post("/page/photos", content=path.read_bytes()), 415, "unsupported")


def test_nothing_but_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.errors import BadImage
    from fairweather.video.reader import VideoReader

    secret = film(tmp_path / "secret.mp4", 4)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n")
    (tmp_path / "cat.ffconcat").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("list.m3u8", "cat.ffconcat"):
        av.open(str(tmp_path / name)).close()  # FFmpeg alone follows it
        for only in (None, "mov", "matroska", "avi", "gif"):
            with pytest.raises(BadImage):
                VideoReader(str(tmp_path / name), only=only)
    opened, real = [], av.open
    monkeypatch.setattr(av, "open", lambda *given, **how: opened.append(how) or real(*given, **how))
    VideoReader(str(secret), only="mov").close()
    options = opened[0]["options"]
    assert (opened[0]["format"], options["protocol_whitelist"], options["enable_drefs"]) == ("mov", "file", "0")
