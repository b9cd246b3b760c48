"""Where films come from: folders of frames, animations, pipes and live sources."""

from __future__ import annotations

import socket
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.video.pipeline import check_outputs, sampled_frames, video_destination
from fairweather.video.reader import Frame, is_live, is_video, open_video, parse_time
from tests.video.conftest import Lift, frames_of, make, pictures, restored


def frames_in(folder: Path, names: list[str], dtype: str = "uint8") -> Path:
    folder.mkdir()
    for name, picture in zip(names, pictures(len(names), dtype=dtype), strict=True):
        cv2.imwrite(str(folder / name), picture[..., ::-1])
    return folder


def test_a_folder_of_frames_becomes_a_clip_and_back(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(1, 13)]  # 2 before 10
    folder = frames_in(tmp_path / "frames", names)
    restored(folder, tmp_path / "film.mkv", codec="ffv1", fps=Fraction(30000, 1001))
    times, shown = frames_of(tmp_path / "film.mkv")
    assert [round(float(time) * 1000) for time in times] == [round(number * 1001 / 30) for number in range(12)]
    for picture, wanted in zip(shown, pictures(12), strict=True):
        assert np.abs(picture.astype(int) - wanted).max() <= 2
    restored(tmp_path / "film.mkv", tmp_path / "again" / "%03d.png")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        f"{number:03d}.png" for number in range(1, 13)
    ]
    first = cv2.imread(str(tmp_path / "again" / "001.png"))[..., ::-1]
    assert np.abs(first.astype(int) - next(pictures(1))).max() <= 2


def test_a_folder_of_frames_becomes_a_folder(tmp_path: Path) -> None:
    names = ["b2.jpg", "b10.png", "b1.png"]
    folder = frames_in(tmp_path / "frames", names)
    film = Lift(10)
    restored(folder, tmp_path / "out", film)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert [round(step, 3) for step in film.steps] == [0, 0.04, 0.04]
    for name in ("b1.png", "b10.png"):
        before, after = (cv2.imread(str(place / name)).astype(int) for place in (folder, tmp_path / "out"))
        assert np.abs(after - np.clip(before + 10, 0, 255)).max() == 0


def test_deep_frames_stay_deep(tmp_path: Path) -> None:
    folder = frames_in(tmp_path / "frames", ["1.png", "2.png"], "uint16")
    restored(folder, tmp_path / "out")
    after = cv2.imread(str(tmp_path / "out" / "2.png"), cv2.IMREAD_UNCHANGED)
    assert after.dtype == np.uint16
    assert np.array_equal(after[..., ::-1], list(pictures(2, dtype="uint16"))[1])


def test_a_frame_of_another_size_is_named(tmp_path: Path) -> None:
    folder = frames_in(tmp_path / "frames", ["1.png", "2.png"])
    cv2.imwrite(str(folder / "3.png"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(BadImage, match=r"3\.png.*20 x 20.*not the size"):
        restored(folder, tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(BadFolder, match="no pictures"):
        open_video(tmp_path / "none")


def animation(path: Path, durations: list[int]) -> Path:
    shown = [Image.fromarray(np.dstack([p, np.full(p.shape[:2], 255, np.uint8)])) for p in pictures(len(durations))]
    for picture in shown:
        picture.putpixel((0, 0), (0, 0, 0, 0))
    options = {"lossless": True} if path.suffix == ".webp" else {"disposal": 2}
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_their_times_and_what_is_clear_in_them(suffix: str, tmp_path: Path) -> None:
    durations = [100, 50, 200, 80]
    source = animation(tmp_path / f"in{suffix}", durations)
    assert is_video(source)
    restored(source, tmp_path / f"out{suffix}", Lift(20))
    with Image.open(tmp_path / f"out{suffix}") as after, Image.open(source) as before:
        assert after.n_frames == 4
        for number, duration in enumerate(durations):
            after.seek(number)
            before.seek(number)
            new, old = np.asarray(after.convert("RGBA")).astype(int), np.asarray(before.convert("RGBA")).astype(int)
            assert new[0, 0, 3] == 0
            assert (new[8:, 8:, 3] == 255).all()
            assert abs(after.info["duration"] - duration) <= (0 if number < 3 else duration)
            assert 14 < (new - old)[8:40, 8:56, :3].mean() < 24


def test_a_still_webp_is_a_photo(tmp_path: Path) -> None:
    Image.fromarray(next(pictures(1))).save(tmp_path / "still.webp")
    assert not is_video(tmp_path / "still.webp")
    assert is_video(tmp_path / "x.GIF")
    assert not is_video("holiday.jpg")
    (tmp_path / "broken.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02")
    with pytest.raises(BadImage, match=r"broken\.webp"):
        open_video(tmp_path / "broken.webp")


def test_an_address_is_read_as_it_sends(tmp_path: Path) -> None:
    clip = make(tmp_path / "in.ts", count=30).read_bytes()
    server = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        peer, _ = server.accept()
        with peer:
            for start in range(0, len(clip), 1880):
                peer.sendall(clip[start : start + 1880])

    sender = threading.Thread(target=send)
    sender.start()
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    assert is_live(address)
    restored(address, tmp_path / "out.mkv")
    sender.join()
    server.close()
    assert len(frames_of(tmp_path / "out.mkv")[0]) == 30


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BadImage, match=f"{port}.*check the address"):
        restored(f"tcp://127.0.0.1:{port}", tmp_path / "out.mkv")


def test_where_things_go(tmp_path: Path) -> None:
    assert video_destination("a/clip.mp4", Path("restored")) == "restored/clip.mp4"
    assert video_destination("clip.mp4", tmp_path) == str(tmp_path / "clip.mp4")
    assert video_destination("clip.mp4", Path("clear.mkv")) == "clear.mkv"
    assert video_destination("clip.mp4", Path("f/%05d.png")) == "f/%05d.png"
    assert video_destination("clip.mp4", Path("-")) == "-"
    assert video_destination(str(tmp_path), Path("x")) == "x"
    for given in ("-", "rtsp://camera/1", "/dev/video0"):
        with pytest.raises(BadSettings, match="needs a name"):
            video_destination(given, Path("restored"))
        assert video_destination(given, Path("x.mkv")) == "x.mkv"
    with pytest.raises(BadSettings, match="unsupported video format"):
        video_destination("clip.mp4", Path("x.wmv"))
    with pytest.raises(BadFolder, match="both be written to"):
        check_outputs([("a/x.mp4", str(tmp_path / "x.mp4")), ("b/x.mp4", str(tmp_path / "x.mp4"))])


@pytest.mark.parametrize(("given", "seconds"), [("12.5", 12.5), ("1:02.5", 62.5), ("1:00:01", 3601), ("0", 0)])
def test_times(given: str, seconds: float) -> None:
    assert parse_time(given) == seconds


@pytest.mark.parametrize("given", ["", "x", "-1", "1:2:3:4", "nan", "1:-2"])
def test_what_is_no_time(given: str) -> None:
    with pytest.raises(BadSettings, match="a time is given"):
        parse_time(given)


def test_looks_are_spread_over_the_film(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", count=100)
    seen = list(sampled_frames(str(source), open_video(source), 4))
    assert len(seen) == 4
    assert all(isinstance(frame, Frame) for frame in seen)
    live = open_video(source)
    live.live = True
    assert list(sampled_frames(str(source), live, 4)) == []
