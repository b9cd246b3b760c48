"""Videos that were cut short are restored in part and reported, and a video file refers to no other file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from fairweather import cli
from fairweather.errors import BadImage
from fairweather.video.reader import VideoReader, announced_size, open_video, sniff_container
from tests.video.conftest import frames_of, make, tone


def remuxed(source: Path, target: Path, **options: str) -> Path:
    """The same streams in another container, or laid out in another way."""
    with av.open(str(source)) as file, av.open(str(target), "w", options=options) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        for packet in file.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return target


def fast_start(folder: Path) -> Path:
    return remuxed(make(folder / "slow.mp4", count=60, audio="aac"), folder / "in.mp4", movflags="faststart")


def fragmented(folder: Path) -> Path:
    whole = make(folder / "slow.mp4", count=60, audio="aac")
    return remuxed(whole, folder / "in.mp4", movflags="frag_keyframe+empty_moov")


def matroska(folder: Path) -> Path:
    return make(folder / "in.mkv", count=60, audio="aac")


def webm(folder: Path) -> Path:
    return make(folder / "in.webm", count=60, codec="libvpx-vp9")


def avi(folder: Path) -> Path:
    return make(folder / "in.avi", count=60, codec="mpeg4", time_base=Fraction(1, 25), size=(320, 240))


def cut(path: Path, share: float = 0.3) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("make_it", [fast_start, fragmented, matroska, webm, avi], ids=lambda one: one.__name__)
@pytest.mark.parametrize("target", ["out", "%03d.png", "in"])
def test_a_video_that_was_cut_is_restored_in_part(
    make_it: Callable[[Path], Path], target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    source = cut(make_it(tmp_path), 0.5 if make_it is avi else 0.3)  # its frames begin behind 6 KB of header
    suffix = {"in": source.suffix, "out": ".mkv" if source.suffix == ".mp4" else ".mp4"}.get(target, "")
    out = tmp_path / "out" / f"{target}{suffix}"  # "in" is copied: it stays as it is
    assert cli.main(["restore", str(source), "-o", str(out), "--weather", "none"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert f"{source}: the video is truncated or damaged: " in captured.err
    assert "1 incomplete" in captured.out
    count = len(frames_of(source)[0])
    assert 0 < count < 60
    if target == "%03d.png":
        assert len(list((tmp_path / "out").glob("*.png"))) == count
    else:
        assert len(frames_of(out)[0]) == count
    if make_it is fast_start:
        assert f"{count} of 60 frames are present" in captured.err
    elif make_it is not avi and target == "out":
        assert " of 2.4 s are present" in captured.err or " of 2.5 s are present" in captured.err
    assert not [path for path in (tmp_path / "out").iterdir() if path.name[0] == "."]


def test_others_are_restored_and_the_exit_code_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    cut(matroska(tmp_path / "in"))
    make(tmp_path / "in" / "whole.mp4", count=4)
    assert cli.main(["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weather", "none"]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["in.mkv", "whole.mp4"]
    assert "whole.mp4" not in capsys.readouterr().err


def test_what_is_missing_behind_the_part_asked_for_does_not_count(tmp_path: Path) -> None:
    for source in (cut(fast_start(tmp_path)), cut(matroska(tmp_path))):
        line = ["restore", str(source), "--weather", "none", "-o"]
        assert cli.main([*line, str(tmp_path / "out" / f"a{source.suffix}"), "--end", "0.2"]) == 0
        assert cli.main([*line, str(tmp_path / "out" / f"b{source.suffix}"), "--end", "2"]) == 3
        assert cli.main([*line, str(tmp_path / "out" / f"c{source.suffix}"), "--start", "0.2"]) == 3


def damaged(folder: Path) -> Path:
    """Bytes of one packet in the middle are zeros."""
    path = make(folder / "in.mp4", count=20, codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as file:
        entry = file.streams.video[0].index_entries[10]
        place, size = entry.pos, entry.size
    data = path.read_bytes()
    path.write_bytes(data[:place] + bytes(size) + data[place + size :])
    return path


def test_a_frame_that_cannot_be_decoded_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = damaged(tmp_path), tmp_path / "out.mkv"
    assert cli.main(["restore", str(source), "-o", str(out), "--weather", "none"]) == 3
    assert "damaged frames: 1" in capsys.readouterr().err
    assert len(frames_of(out)[0]) == 19


def variable_rate(folder: Path, suffix: str) -> Path:
    return make(folder / f"in{suffix}", times=[0, 900, 1000, 9000, 9100, 20000, 51200])


def edit_list(folder: Path, suffix: str) -> Path:
    """Begins 0.4 s late and in the middle of a group of pictures."""
    whole = make(folder / "whole.mp4", count=40)
    path = folder / f"in{suffix}"
    with av.open(str(whole)) as file, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 3000, packet.dts - 3000
                packet.stream = stream
                out.mux(packet)
    return path


def long_sound(folder: Path, suffix: str) -> Path:
    path = folder / f"in{suffix}"
    picture = make(folder / "picture.mp4", count=5)
    with av.open(str(picture)) as file, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        sound = out.add_stream("aac", rate=48000)
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
        tone(out, sound, Fraction(4))
    return path


def piped(folder: Path, suffix: str) -> Path:
    """Written to what cannot be wound back: no size and no length is filled in."""
    formats = {".mkv": "matroska", ".mp4": "mp4", ".avi": "avi", ".ts": "mpegts"}
    path = folder / f"in{suffix}"
    whole = make(folder / "whole.mp4", count=20, codec="mpeg4" if suffix == ".avi" else "libx264")

    class Pipe:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            return int(self._file.write(data))

    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == ".mp4" else {}
    with (
        open(path, "wb") as target,
        av.open(str(whole)) as file,
        av.open(Pipe(target), "w", format=formats[suffix], options=options) as out,
    ):
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return path


def plain(folder: Path, suffix: str) -> Path:
    codecs = {".webm": "libvpx-vp9", ".avi": "mpeg4", ".gif": "gif"}
    formats = {"pixel_format": "rgb8"} if suffix == ".gif" else {}
    return make(folder / f"in{suffix}", count=20, codec=codecs.get(suffix, "libx264"), **formats)  # type: ignore[arg-type]


def with_rubbish_behind(folder: Path, suffix: str) -> Path:
    path = plain(folder, suffix)
    path.write_bytes(path.read_bytes() + b"\xff\xd8 and a picture of a phone" * 20)
    return path


def padded(folder: Path, suffix: str) -> Path:
    path = plain(folder, suffix)
    path.write_bytes(path.read_bytes() + bytes(5000))
    return path


@pytest.mark.parametrize(
    ("make_it", "suffix"),
    [
        *((plain, suffix) for suffix in (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".gif")),
        *((one, suffix) for one in (variable_rate, edit_list, long_sound) for suffix in (".mp4", ".mkv", ".mov")),
        *((piped, suffix) for suffix in (".mp4", ".mkv", ".avi", ".ts")),
        *((one, suffix) for one in (with_rubbish_behind, padded) for suffix in (".mp4", ".mkv", ".avi")),
        (lambda folder, _: fast_start(folder), "fast"),
        (lambda folder, _: fragmented(folder), "fragmented"),
    ],
)
def test_a_whole_video_is_never_taken_for_a_cut_one(
    make_it: Callable[[Path, str], Path], suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_it(tmp_path, suffix)
    video = VideoReader(str(source))
    assert video.missing() is None, "before it is read"
    count = sum(hasattr(item, "pixels") for item in video.items())
    assert count == len(frames_of(source)[0])
    assert video.missing() is None
    video.close()


def test_a_stream_that_begins_in_the_middle_is_no_damage(tmp_path: Path) -> None:
    source = make(tmp_path / "in.ts", count=60, codec="mpeg2video", time_base=Fraction(1, 25))
    data = source.read_bytes()
    source.write_bytes(data[188 * 40 :])
    video = VideoReader(str(source))
    assert sum(hasattr(item, "pixels") for item in video.items()) > 20
    assert video.missing() is None
    video.close()


def test_what_containers_announce(tmp_path: Path) -> None:
    for source in (fast_start(tmp_path), matroska(tmp_path), avi(tmp_path)):
        size = source.stat().st_size
        assert announced_size(source) == size
        assert announced_size(cut(source)) == size
    (tmp_path / "text.mp4").write_text("no video")
    assert announced_size(tmp_path / "text.mp4") is None
    assert announced_size(tmp_path / "none.mp4") is None
    (tmp_path / "huge.mp4").write_bytes((1).to_bytes(4, "big") + b"mdat" + (2**40).to_bytes(8, "big"))
    assert announced_size(tmp_path / "huge.mp4") == 2**40


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile 'secret.mkv'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "hls address": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("script", PLAYLISTS)
def test_playlists_are_not_followed(script: str, suffix: str, tmp_path: Path) -> None:
    make(tmp_path / "secret.mkv", count=3)
    make(tmp_path / "secret.ts", count=3)
    path = tmp_path / f"video{suffix}"
    path.write_text(PLAYLISTS[script])
    with pytest.raises(BadImage, match=r"not a supported container|Invalid data"):
        open_video(path)


def test_containers_are_recognized_by_content(tmp_path: Path) -> None:
    codecs = {".avi": "mpeg4", ".webm": "libvpx-vp9"}
    wanted = {".mp4": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi", ".ts": None}
    for suffix, demuxer in wanted.items():
        path = make(tmp_path / f"a{suffix}", count=3, codec=codecs.get(suffix, "libx264"))
        assert sniff_container(path.read_bytes()[:64]) == demuxer
        renamed = path.rename(tmp_path / f"a{suffix}.mp4")
        open_video(renamed).close()
    assert sniff_container(b"GIF89a") == "gif"
    assert sniff_container(b"\0\0\0\x1cftypavif") is None
