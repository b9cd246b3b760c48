"""What goes through: every frame at its time, sound and subtitles as they were, depth, colour and rotation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.inference import cancellation
from fairweather.inference.batch import Job, run
from fairweather.inference.restorer import RestoreOptions
from fairweather.video import pipeline
from fairweather.video.encoding import choose_encoding
from fairweather.video.reader import open_video
from fairweather.video.writer import VideoWriter
from tests.video.conftest import Lift, av, frames_of, make, packets_of, pictures, restored

UNEVEN = [0, 512, 1024, 2048, 2100, 4096, 9000, 9512, 10000, 12800, 12900, 20000]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts", ".webm"])
def test_every_frame_at_its_time(suffix: str, tmp_path: Path) -> None:
    uneven = suffix not in (".avi",)  # AVI has no times of its own
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    times = UNEVEN if uneven else None
    source = make(tmp_path / f"in{suffix}", times=times, time_base=Fraction(1, 12800 if uneven else 25), codec=codec)
    film = restored(source, tmp_path / f"out{suffix}")
    before, after = frames_of(source)[0], frames_of(tmp_path / f"out{suffix}")[0]
    if suffix == ".avi":
        before, after = ([time - times[0] for time in times] for times in (before, after))
    assert after == before
    assert len(after) == 12
    gaps = np.diff([float(time) for time in before])
    assert np.allclose(film.steps[1:], np.minimum(gaps, 1), atol=1e-6)


def test_a_film_that_begins_late_still_does(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", times=[time + 25600 for time in UNEVEN])
    restored(source, tmp_path / "out.mkv")
    assert frames_of(tmp_path / "out.mkv")[0] == frames_of(source)[0]
    assert frames_of(source)[0][0] >= 2


def test_sound_is_copied_packet_by_packet(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=UNEVEN, audio="aac", tags=True)
    restored(source, tmp_path / "out.mp4")
    assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(source, "audio")
    assert frames_of(tmp_path / "out.mp4")[0] == frames_of(source)[0]
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.metadata["title"] == "Fog"
        assert file.streams.video[0].metadata["language"] == "deu"
        assert [one["metadata"]["title"] for one in file.chapters()] == ["one"]


def test_subtitles_are_copied(tmp_path: Path) -> None:
    written = tmp_path / "in.srt"
    written.write_text("1\n00:00:00,100 --> 00:00:00,900\nFog ahead.\n\n2\n00:00:01,000 --> 00:00:01,500\nRain.\n\n")
    plain = make(tmp_path / "plain.mkv", times=UNEVEN)
    source = tmp_path / "in.mkv"
    with av.open(str(plain)) as film, av.open(str(written)) as text, av.open(str(source), "w") as out:
        streams = [out.add_stream_from_template(film.streams.video[0]), out.add_stream_from_template(text.streams[0])]
        for file, stream in zip((film, text), streams, strict=True):
            for packet in file.demux():
                if packet.pts is not None:
                    packet.stream = stream
                    out.mux(packet)
    restored(source, tmp_path / "out.mkv")
    assert packets_of(tmp_path / "out.mkv", "subtitles") == packets_of(source, "subtitles")
    assert len(packets_of(source, "subtitles")) == 2


def test_what_a_container_cannot_hold_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make(tmp_path / "in.mkv", audio="libopus")
    restored(source, tmp_path / "out.gif")
    assert "audio stream (opus) is dropped" in caplog.text.replace("libopus", "opus")
    assert len(frames_of(tmp_path / "out.gif")[0]) == 12


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_kept_and_models_see_it_upright(rotation: int, tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", rotation=rotation)
    film = restored(source, tmp_path / "out.mp4")
    assert film.shapes[0] == ((48, 64, 3) if rotation == 180 else (64, 48, 3), "uint8")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        old, new = (next(file.decode(video=0)) for file in (before, after))
        assert new.rotation == old.rotation != 0
        assert (new.width, new.height) == (old.width, old.height)
        assert np.abs(new.to_ndarray(format="rgb24").astype(int) - old.to_ndarray(format="rgb24")).mean() < 4


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_ten_bits_in_ten_bits_out(codec: str, tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", codec=codec, pixel_format="yuv420p10le")
    film = restored(source, tmp_path / "out.mkv", Lift(1000))
    assert film.shapes[0] == ((48, 64, 3), "uint16")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mkv")) as after:
        assert after.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
        assert (
            after.streams.video[0].codec_context.codec.canonical_name
            == before.streams.video[0].codec_context.codec.canonical_name
        )
        old, new = (next(file.decode(video=0)).to_ndarray(format="rgb48le").astype(int) for file in (before, after))
    assert 500 < (new - old).mean() < 1500, "a change of less than one of 256 levels does not survive 8 bits so evenly"


@pytest.mark.parametrize("colour", [(1, 1, 1, 1), (5, 5, 6, 1), (1, 1, 1, 2), (9, 9, 14, 1)])
def test_colours_stay(colour: tuple[int, int, int, int], tmp_path: Path) -> None:
    """Whatever matrix and range the source has: tagged so, and undone on the way in as it is done on the way out."""
    source = make(tmp_path / "in.mp4", colour=colour, size=(128, 96))
    restored(source, tmp_path / "out.mp4")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        old, new = (next(file.decode(video=0)) for file in (before, after))
    tags = [(f.colorspace, f.color_primaries, f.color_trc, f.color_range) for f in (old, new)]
    assert tags[0] == tags[1] == colour
    planes = [frame.to_ndarray().astype(int) for frame in (old, new)]
    assert abs((planes[1] - planes[0]).mean()) < 0.3
    assert np.abs(planes[1] - planes[0]).mean() < 1.5


def test_restored_frames_are_what_the_film_gave(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv")
    restored(source, tmp_path / "out.mkv", Lift(25), codec="ffv1")
    for before, after in zip(frames_of(source)[1], frames_of(tmp_path / "out.mkv")[1], strict=True):
        assert 23 < (after.astype(int) - before).mean() < 27


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.2), (0.21, None), (0.1, 0.3)])
def test_a_part(start: float, end: float | None, tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", count=20, audio="aac")
    restored(source, tmp_path / "out.mp4", start=start, end=end)
    times, shown = frames_of(source)
    wanted = [
        number
        for number, time in enumerate(times)
        if time + Fraction(1, 25) > start and (end is None or time < Fraction(str(end)))
    ]
    part_times, part = frames_of(tmp_path / "out.mp4")
    assert len(part) == len(wanted)
    assert part_times[0] == 0
    assert abs(float(part_times[-1]) - (float(times[wanted[-1]]) - start)) < 0.041
    for index, number in enumerate(wanted):
        assert np.abs(part[index].astype(int) - shown[number]).mean() < 3
    sound = packets_of(tmp_path / "out.mp4", "audio")
    assert sound[0][0] < 0.05
    assert len(sound) < len(packets_of(source, "audio"))


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    with pytest.raises(BadImage, match="no frame in the selected part"):
        restored(source, tmp_path / "out.mp4", start=60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    with pytest.raises(BadSettings, match="not after"):
        RestoreOptions(start=2.0, end=1.0)


@pytest.mark.parametrize("view", ["side", "split"])
def test_previews(view: pipeline.PreviewLayout, tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    restored(source, tmp_path / "out.mp4", Lift(60), preview=view)
    picture = frames_of(tmp_path / "out.mp4")[1][0].astype(int)
    before = next(pictures(1)).astype(int)
    assert picture.shape == ((48, 128, 3) if view == "side" else (48, 64, 3))
    assert np.abs(picture[:, :30] - before[:, :30]).mean() < 4
    right = picture[:, 64 + 34 :] if view == "side" else picture[:, 34:]
    assert np.abs(right - np.clip(before[:, 34:] + 60, 0, 255)).mean() < 6


def test_other_containers_and_codecs(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=UNEVEN)
    for name in ("out.mkv", "out.webm", "out.mov", "out.gif", "out.webp"):
        restored(source, tmp_path / name)
        shown = frames_of(tmp_path / name) if name != "out.webp" else (UNEVEN, [])
        assert len(shown[0]) == len(UNEVEN)
    restored(source, tmp_path / "small.mp4", codec="hevc", quality=40.0)
    with av.open(str(tmp_path / "small.mp4")) as file:
        assert file.streams.video[0].codec_context.codec.canonical_name == "hevc"
    with pytest.raises(BadSettings, match="no such encoder"):
        restored(source, tmp_path / "x.mp4", codec="betamax")
    with pytest.raises(BadSettings, match="do not support"):
        restored(source, tmp_path / "x.webm", codec="h264")
    with pytest.raises(BadSettings, match="unsupported video format"):
        restored(source, tmp_path / "x.wmv")


def test_odd_sides(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", size=(63, 47), pixel_format="yuv444p")
    restored(source, tmp_path / "out.mkv")
    assert frames_of(tmp_path / "out.mkv")[1][0].shape == (47, 63, 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.mp4", b"no video at all", "cannot be read as a video"),
        ("empty.mp4", b"", "is empty"),
        ("gone.mp4", None, "no such file"),
    ],
)
def test_what_is_no_film(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage, match=words) as caught:
        restored(tmp_path / name, tmp_path / "out.mp4")
    assert name in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()


def test_sound_alone_is_no_film(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "in.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    (tmp_path / "in.wav").rename(tmp_path / "in.avi")
    with pytest.raises(BadImage, match="not a supported container"):
        restored(tmp_path / "in.avi", tmp_path / "out.avi")


def test_a_cut_off_file_gives_what_it_has(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", count=60)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    restored(source, tmp_path / "out.mkv")
    assert 10 < len(frames_of(tmp_path / "out.mkv")[0]) < 60


def test_one_bad_film_does_not_stop_the_others(tmp_path: Path) -> None:
    good = make(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"x" * 100)
    jobs = [
        Job(str(tmp_path / "bad.mp4"), str(tmp_path / "out" / "bad.mp4"), True),
        Job(str(good), str(tmp_path / "out" / "good.mp4"), True),
    ]
    report = run(jobs, restorer=Lift())
    assert (report.done, len(report.failed)) == (1, 1)
    assert "bad.mp4" in report.failed[0][1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]
    assert run(jobs[1:]).skipped == 1


def test_a_failing_model_leaves_nothing(tmp_path: Path) -> None:
    class Fails(Lift):
        def begin(self, frame, step):
            if len(self.steps) == 5:
                raise RuntimeError("no more")
            return super().begin(frame, step)

    source = make(tmp_path / "in.mp4")
    with pytest.raises(RuntimeError, match="no more"):
        restored(source, tmp_path / "out.mp4", Fails())
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_never_over_its_own_input(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    before = source.read_bytes()
    with pytest.raises(BadFolder, match="written over the input"):
        restored(source, source, overwrite=True)
    assert source.read_bytes() == before


def test_what_stays_as_it_is_is_copied(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    report = run([Job(str(source), str(tmp_path / "out.mp4"), True)], RestoreOptions(weather="none"))
    assert report.unchanged == 1
    assert (tmp_path / "out.mp4").read_bytes() == source.read_bytes()


def test_it_is_stopped_from_outside(tmp_path: Path) -> None:
    path, event = make(tmp_path / "a.mp4", count=60), threading.Event()

    class Stopping(Lift):
        def begin(self, frame: np.ndarray, step: float) -> Callable[[], np.ndarray]:
            if len(self.steps) == 10:
                event.set()
            return super().begin(frame, step)

    made, source = Stopping(), open_video(path)
    sink = VideoWriter(tmp_path / "b.mp4", "mp4", source, choose_encoding(source.track, "mp4"))
    with cancellation.cancel_scope(event), pytest.raises(cancellation.Cancelled):
        pipeline.process_video(source, sink, made)
    source.close()
    assert len(made.steps) < 16
    assert not [one for one in threading.enumerate() if one.name in ("read", "finish", "write")]


def test_it_is_stopped_where_no_frame_comes_any_more(tmp_path: Path) -> None:
    source, event = open_video(make(tmp_path / "a.mp4", count=3)), threading.Event()
    real = source.items

    def items() -> Iterator[Any]:
        yield from real()
        for _ in range(400):  # packets without an end
            cancellation.check_cancelled()
            time.sleep(0.01)

    source.items = items
    sink = VideoWriter(tmp_path / "b.mp4", "mp4", source, choose_encoding(source.track, "mp4"))
    timer, began = threading.Timer(0.2, event.set), time.monotonic()
    timer.start()
    with cancellation.cancel_scope(event), pytest.raises(cancellation.Cancelled):
        pipeline.process_video(source, sink, Lift())
    source.close()
    assert time.monotonic() - began < 2
