"""`fairweather restore`: photos, videos and folders of frames; what it writes, prints and returns."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images, model_folder
from fairweather.errors import BadFolder
from fairweather.inference import batch, engines, memory
from fairweather.inference.restorer import AutoRestorer
from fairweather.inference.weather_detection import Weather
from fairweather.video.writer import HEADER, FrameOutput, existing, list_of, listed
from tests.video.conftest import frames_of, make, packets_of, pictures

RUN = (sys.executable, "-m", "fairweather", "restore")


def restore(*arguments: object) -> int:
    return cli.main(["restore", *map(str, arguments)])


def by_model(model: Path, *arguments: object) -> int:
    return restore("--model", model, *arguments)


def unchanged(*arguments: object) -> int:
    return restore(*arguments, "--weather", "none")


# The call chain: docs/architecture.md lists it.


class Chain:
    """An engine that records the fairweather functions on the stack, those of the thread that submitted it included."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.functions: list[tuple[str, str]] = []
        self.submitting: list[tuple[str, str]] = []
        submit = batch.ThreadPoolExecutor.submit

        def recording_submit(pool: Any, *arguments: Any) -> Any:
            self.submitting = self.stack()
            return submit(pool, *arguments)

        monkeypatch.setattr(batch.ThreadPoolExecutor, "submit", recording_submit)
        monkeypatch.setitem(engines.ENGINES, "openvino", lambda folder, card, *_: self.engine(card))

    def engine(self, card: Any) -> Any:
        def run(picture: np.ndarray) -> np.ndarray:
            main = threading.current_thread() is threading.main_thread()
            self.functions = [*([] if main else self.submitting), *self.stack()]
            if card.name == "weather":
                return np.array([[9.0, -9.0]], np.float32)  # haze
            if card.output == "image":
                return picture
            return np.full((1, 7, picture.shape[2] // 2, picture.shape[3] // 2), 0.5, np.float32)

        return run

    @staticmethod
    def stack() -> list[tuple[str, str]]:
        source = os.path.join("src", "fairweather") + os.sep
        found = [frame for frame in traceback.extract_stack() if source in frame.filename]
        return [(frame.filename.rpartition(source)[2], frame.name) for frame in found]


@pytest.mark.parametrize("model", ["dehaze", "derain", None])
def test_at_most_eight_functions_lead_from_main_to_the_network(
    model: str | None, tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(monkeypatch)
    Image.fromarray(photo).save(tmp_path / "x.jpg")
    choice = ["--model", model] if model else []
    assert restore(tmp_path / "x.jpg", "-o", tmp_path / "y.jpg", "--engine", "openvino", *choice) == 0
    names = [name for _, name in chain.functions]
    assert names[:4] == ["main", "restore", "run", "_run_photos"]
    assert len(set(chain.functions)) == len(names) <= 8, chain.functions
    others = ("video", "cluster", "temporal")
    assert not [file for file, _ in chain.functions if any(other in file for other in others)]


def test_a_photo_imports_no_code_for_videos_or_clusters(tiny_model: Path, tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "x.jpg")
    code = (
        "import sys; from fairweather import cli\n"
        f"cli.main(['restore', {str(tmp_path / 'x.jpg')!r}, '-o', {str(tmp_path / 'y.jpg')!r}, "
        f"'--model', {str(tiny_model)!r}])\n"
        "print([name for name in sys.modules if name.startswith('fairweather.') and "
        "any(word in name for word in ('video', 'cluster', 'temporal', 'web'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# Errors.


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name the photos"),
        (("photos", "--engine", "steam"), 2, "steam"),
        (("photos", "--strength", "much"), 2, "much"),
        (("photos", "--strength", "1.5"), 1, "--strength must be from 0"),
        (("photos", "--strength", "nan"), 1, "--strength must be from 0"),
        (("photos", "--model", "dehazed"), 1, "dehazed"),
        (("photos", "--model", "dehaze", "--weather", "haze"), 1, "exclude each other"),
        (("gone.jpg",), 1, "gone.jpg: no such file"),
        (("photos/a.jpg", "-o", "photos"), 1, "written over the input"),
        (("photos", "-o", "file"), 1, "file"),
        (("photos", "--memory", "plenty"), 1, "--memory: invalid size 'plenty'"),
        (("photos", "--memory", "10MB", "--model", "dehaze"), 1, "--memory 10MB is too small"),
        (("clip.mp4", "--start", "soon"), 1, "--start: a time is given"),
        (("clip.mp4", "--start", "3", "--end", "2"), 1, "is not after"),
        (("clip.mp4", "--fps", "fast"), 1, "--fps must be a number"),
        (("clip.mp4", "--codec", "betamax", "--weather", "haze"), 1, "no such encoder"),
        (("clip.mp4", "-o", "x.wmv"), 1, "unsupported video format"),
        (("text.jpg", "--model", "dehaze", "-o", "clear.jpg"), 3, "text.jpg: not a picture"),
        (("photos/a.jpg", "--model", "dehaze", "--max-pixels", "100"), 3, "--max-pixels"),
    ],
)
def test_errors_name_the_remedy_and_leave_nothing(
    arguments: tuple[str, ...], code: int, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(here / "clip.mp4", count=2)
    (here / "text.jpg").write_text("Dear diary, today it was foggy.\n")
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    assert restore(*arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("fairweather: error: ") == (code == 1)
    assert "clear.jpg" not in captured.out, "the place of results is printed only if there are any"
    assert sorted(here.rglob("*")) == before


def test_a_video_that_exceeds_the_memory_is_rejected_with_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "clip.mp4", count=2, size=(1600, 1200))
    enough_for_a_photo = memory.resident_memory() + memory.BASE_ALLOWANCE_AUTO + 250_000_000
    assert restore(source, "-o", tmp_path / "out", "--weather", "haze", "--memory", enough_for_a_photo) == 1
    assert f"{source} (frames of 1600 x 1200) needs 500MB in addition to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Photos.


@pytest.fixture
def here(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two photos in photos/, one of them in a folder below."""
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "photos" / "a.jpg", quality=90)
    Image.fromarray(photo[::-1]).save(tmp_path / "photos" / "trip" / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_goes_to_restored_with_its_structure(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (here / "photos" / "a.jpg").read_bytes()
    assert by_model(tiny_model, "photos") == 0
    made = {path.relative_to(here / "restored").as_posix() for path in (here / "restored").rglob("*.*")}
    assert made == {"a.jpg", "trip/b.png"}
    assert (here / "photos" / "a.jpg").read_bytes() == before
    captured = capsys.readouterr()
    assert "2 of 2 photos restored" in captured.out
    assert "engine: openvino" in captured.err
    assert "Traceback" not in captured.err


def test_one_photo_to_one_file_and_strength(tiny_model: Path, here: Path, photo: np.ndarray) -> None:
    photos = {}
    for strength in ("0", "0.5", "1"):
        out = here / f"{strength}.png"
        assert by_model(tiny_model, "photos/trip/b.png", "-o", out, "--strength", strength, "--no-guard") == 0
        photos[strength] = images.read(out).pixels.astype(float)
    assert (here / "0.png").read_bytes() == (here / "photos" / "trip" / "b.png").read_bytes()
    half = (photos["0"] + photos["1"]) / 2
    assert np.abs(photos["0.5"] - half).max() <= 1
    assert np.abs(photos["1"] - photos["0"]).mean() > 1


def bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_bad_files_are_counted_named_and_the_rest_is_done(
    tiny_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = here / "photos"
    (photos / "text.jpg").write_text("Dear diary, today it was foggy.\n" * 50)
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:1500])
    (photos / "empty.png").touch()
    bomb(photos / "bomb.png")
    assert by_model(tiny_model, "photos") == 3
    captured = capsys.readouterr()
    bad = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
    assert len(bad) == 4
    for name in ("text.jpg", "cut.jpg", "empty.png", "bomb.png"):
        assert sum(name in line for line in bad) == 1
        assert not (here / "restored" / name).exists()
    assert "2 of 6 photos restored" in captured.out
    assert "4 failed" in captured.out
    assert (here / "restored" / "a.jpg").exists()
    assert (here / "restored" / "trip" / "b.png").exists()


def test_odd_kinds_work(tiny_model: Path, here: Path, photo: np.ndarray) -> None:
    """1 x 1, CMYK, 16 bit, and a phone's photo that lies on its side."""
    odd = here / "odd"
    odd.mkdir()
    Image.new("RGB", (1, 1), (120, 130, 140)).save(odd / "dot.png")
    Image.fromarray(photo).convert("CMYK").save(odd / "print.jpg")
    images.write(odd / "deep.png", photo.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(odd / "phone.jpg", exif=exif)
    assert by_model(tiny_model, "odd", "-o", "out") == 0
    assert Image.open(here / "out" / "dot.png").size == (1, 1)
    assert Image.open(here / "out" / "print.jpg").mode == "CMYK"
    assert images.read(here / "out" / "deep.png").pixels.dtype == np.uint16
    assert Image.open(here / "out" / "phone.jpg").size == (photo.shape[0], photo.shape[1])


@pytest.fixture
def greys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos that are dark (clear), bright (hazy), middling (rainy) and white (both)."""
    (tmp_path / "in").mkdir()
    for name, value in {"dark.jpg": 20, "bright.png": 180, "grey.png": 100, "white.png": 240}.items():
        Image.fromarray(np.full((30, 40, 3), value, np.uint8)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Stand-ins for the detector and the models; the test decides which models are installed."""

    def look(photo: np.ndarray) -> Weather:
        level = photo.mean()
        return Weather(1.0 if level > 150 else 0.04, 0.7 if 50 < level < 150 or level > 200 else 0.1)

    names = {"dehaze", "derain"}

    def load(name: str, **_: Any) -> Any:
        if name == "auto":
            return AutoRestorer(lambda open_model: look, load)
        change = {"dehaze": -50, "derain": 8}[name]
        return lambda photo, strength, guard: (photo.astype(int) + round(change * strength)).astype(photo.dtype)

    monkeypatch.setattr(batch, "load", load)
    monkeypatch.setattr(model_folder, "shipped", lambda: dict.fromkeys(names, tmp_path))
    return names


def made(greys: Path) -> dict[str, int]:
    return {path.name: int(images.read(path).pixels[0, 0, 0]) for path in (greys / "restored").iterdir()}


def lines(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("in/")}


@pytest.mark.usefixtures("installed")
def test_each_photo_gets_what_it_needs_and_a_line(greys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "in"]) == 0
    assert made(greys) == {"dark.jpg": 20, "bright.png": 130, "grey.png": 102, "white.png": 192}
    assert (greys / "restored" / "dark.jpg").read_bytes() == (greys / "in" / "dark.jpg").read_bytes()
    captured = capsys.readouterr()
    assert lines(captured.err) == {
        "in/dark.jpg: no weather (90 % sure): unchanged",
        "in/bright.png: haze (90 % sure)",
        "in/grey.png: rain (70 % sure): removing 25 % of the rain (--weather rain removes all)",
        "in/white.png: haze and rain (70 % sure): removing 25 % of the rain (--weather both removes all)",
    }
    assert "3 of 4 photos restored" in captured.out
    assert "1 unchanged" in captured.out


def test_without_a_model_for_rain_photos_are_left_and_told(
    greys: Path, installed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed.discard("derain")
    assert cli.main(["restore", "in"]) == 0
    assert made(greys) == {"dark.jpg": 20, "bright.png": 130, "grey.png": 100, "white.png": 190}
    assert {
        "in/grey.png: rain (70 % sure), no model for rain is installed: unchanged",
        "in/white.png: haze and rain (70 % sure), no model for rain is installed",
    } <= lines(capsys.readouterr().err)
    assert cli.main(["restore", "in", "--weather", "both", "-o", "again"]) == 1
    captured = capsys.readouterr().err
    assert "weather both needs the model derain" in captured
    assert "--model" in captured
    assert not (greys / "again").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("weather", "value"), [("haze", 130), ("rain", 188), ("both", 138), ("none", 180)])
def test_what_is_asked_for_is_done_without_looking(
    weather: str, value: int, greys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["restore", "in/bright.png", "--weather", weather]) == 0
    assert made(greys) == {"bright.png": value}
    assert not lines(capsys.readouterr().err)


# Videos.


def test_a_clip_by_a_named_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=6, size=(160, 96), audio="aac")
    assert restore(source, "-o", tmp_path / "out.mp4", "--model", "dehaze-fast") == 0
    assert "1 of 1 videos restored" in capsys.readouterr().out
    times, shown = frames_of(tmp_path / "out.mp4")
    assert times == frames_of(source)[0]
    assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(source, "audio")
    assert np.abs(shown[0].astype(int) - frames_of(source)[1][0]).mean() > 1, "the model does something"
    assert restore(source, "-o", tmp_path / "out.mp4", "--model", "dehaze-fast") == 0
    assert "1 skipped" in capsys.readouterr().out


def test_photos_and_films_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    make(tmp_path / "in" / "deep" / "clip.mkv", count=4)
    cv2.imwrite(str(tmp_path / "in" / "photo.png"), next(pictures(1))[..., ::-1])
    (tmp_path / "in" / "broken.mp4").write_bytes(b"x" * 64)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--weather", "haze") == 3
    captured = capsys.readouterr()
    assert "broken.mp4 cannot be read as a video" in captured.err
    assert "1 of 1 photos and 1 of 2 videos restored" in captured.out
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["deep/clip.mkv", "photo.png"]


def test_auto_says_what_it_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=4, size=(160, 96))
    assert restore(source, "-o", tmp_path / "out.mp4") == 0
    assert "from 8 frames" in capsys.readouterr().err
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 4


def test_a_folder_as_a_film(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(4)):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), picture[..., ::-1])
    assert restore(tmp_path / "frames", "-o", tmp_path / "film.mp4", "--weather", "haze", "--fps", "10") == 0
    assert [float(at) for at in frames_of(tmp_path / "film.mp4")[0]] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert restore(tmp_path / "frames", "-o", tmp_path / "out", "--weather", "haze", "--video") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{number}.png" for number in range(4)]


def test_pipes(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", count=8)
    command = [*RUN, "-", "-o", "-", "--weather", "haze"]
    done = subprocess.run(command, input=source.read_bytes(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (tmp_path / "out.mkv").write_bytes(done.stdout)
    assert frames_of(tmp_path / "out.mkv")[0] == frames_of(source)[0]
    assert b"1 of 1 videos restored" in done.stderr


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    return make(tmp_path / "in.mp4", count=700)


def begun(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A run that has written something."""
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while time.monotonic() < until and running.poll() is None:
        if list(folder.glob(".*part*")):
            time.sleep(0.7)
            return running
        time.sleep(0.05)
    raise AssertionError(running.communicate(timeout=10))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_leaves_a_film_that_plays(long_clip: Path, tmp_path: Path) -> None:
    running = begun([*RUN, str(long_clip), "-o", str(tmp_path / "out.mp4"), "--weather", "haze"], tmp_path)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"out.part.mp4" in error
    times, shown = frames_of(tmp_path / "out.part.mp4")
    assert 0 < len(shown) < 700
    assert times == frames_of(long_clip)[0][: len(times)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.part.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_run_leaves_no_half_film(long_clip: Path, tmp_path: Path) -> None:
    command = [*RUN, str(long_clip), "-o", str(tmp_path / "out.mp4"), "--weather", "haze"]
    running = begun(command, tmp_path)
    running.kill()
    running.communicate(timeout=60)
    assert not (tmp_path / "out.mp4").exists()
    assert restore(long_clip, "-o", tmp_path / "out.mp4", "--weather", "haze", "--end", "0.5") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"], "what was left is swept"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of a process")
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for seconds in (2, 8):
        source = make(tmp_path / f"{seconds}.mp4", count=25 * seconds)
        code = (
            "import sys; from pathlib import Path; from fairweather import cli;"
            f"code = cli.main(['restore', {str(source)!r}, '-o', {str(tmp_path / f'out{seconds}.mp4')!r}, "
            "'--model', 'dehaze-fast']);"
            "lines = Path('/proc/self/status').read_text().splitlines();"
            "print([line for line in lines if line.startswith('VmHWM')][0].split()[1], file=sys.stderr); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
        peaks.append(int(done.stderr.strip().splitlines()[-1]))
    assert peaks[1] < 1.05 * peaks[0], "peak KiB of videos of 2 s and 8 s"


def test_a_file_that_is_called_like_a_part_is_left_alone(tmp_path: Path) -> None:
    source = make(tmp_path / "x.mp4", count=4)
    (tmp_path / "y.part.mp4").write_bytes(b"somebody's")
    assert restore(source, "-o", tmp_path / "y.mp4", "--weather", "haze", "--preview", "side") == 0
    assert (tmp_path / "y.part.mp4").read_bytes() == b"somebody's"
    assert len(frames_of(tmp_path / "y.mp4")[1]) == 4
    before = source.rename(tmp_path / "holiday.part.mp4").read_bytes()
    assert restore(tmp_path / "holiday.part.mp4", "-o", tmp_path / "holiday.mp4", "--weather", "haze") == 0
    assert (tmp_path / "holiday.part.mp4").read_bytes() == before
    names = ["holiday.mp4", "holiday.part.mp4", "y.mp4", "y.part.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_two_runs_to_one_film(tmp_path: Path) -> None:
    sources = [make(tmp_path / f"{name}.mp4", count=count) for name, count in (("a", 30), ("b", 31))]
    command = [*RUN, "--weather", "haze", "--overwrite", "-o", str(tmp_path / "out.mp4")]
    both = [subprocess.Popen([*command, str(source)], stderr=subprocess.PIPE, text=True) for source in sources]
    errors = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], errors
    assert "Traceback" not in "".join(errors)
    assert len(frames_of(tmp_path / "out.mp4")[1]) in (30, 31)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "out.mp4"]


def test_without_pyav_photos_are_done_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "clip.mp4", count=2)
    cv2.imwrite(str(tmp_path / "in" / "photo.png"), next(pictures(1))[..., ::-1])
    monkeypatch.setitem(sys.modules, "av", None)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--weather", "haze") == 3
    assert "fairweather[video]" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.png"]


# Folders of frames.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_where_a_frame_would_go_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make(tmp_path / "in.mp4", count=4), tmp_path / "out"
    out.mkdir()
    (out / "00003.png").write_bytes(b"somebody's")
    assert unchanged(source, "-o", out / "%05d.png") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{out / '00003.png'} exists and would be replaced" in error
    assert "--overwrite" in error
    assert names(out) == ["00003.png"]
    assert (out / "00003.png").read_bytes() == b"somebody's"
    assert unchanged(source, "-o", out / "%05d.png", "--overwrite") == 0
    assert names(out) == [f"{number:05d}.png" for number in range(1, 5)]
    assert cv2.imread(str(out / "00003.png")) is not None


def test_frames_that_are_there_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make(tmp_path / "in.mp4", count=4), tmp_path / "out"
    assert unchanged(source, "-o", out / "%05d.png") == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 4, "the list of an unfinished run is gone"
    capsys.readouterr()
    assert unchanged(source, "-o", out / "%05d.png") == 0
    assert "1 skipped" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_of_frames_is_skipped_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(3)):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), picture)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_bytes(b"somebody's")
    assert unchanged(tmp_path / "frames", "--video", "-o", tmp_path / "out") == 1
    assert f"{tmp_path / 'out' / '1.png'} exists and would be replaced" in capsys.readouterr().err
    assert (tmp_path / "out" / "1.png").read_bytes() == b"somebody's"
    assert unchanged(tmp_path / "frames", "--video", "-o", tmp_path / "out", "--overwrite") == 0
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    assert unchanged(tmp_path / "frames", "--video", "-o", tmp_path / "out") == 0
    assert "1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["%s.png", "%d-%d.png", "%.png", "100%.png", "%x.png"])
def test_a_pattern_has_one_number(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=2)
    assert unchanged(source, "-o", tmp_path / pattern) == 1
    assert "one number in its name" in capsys.readouterr().err
    assert names(tmp_path) == ["in.mp4"]


def interrupted(source: Path, out: Path, by: signal.Signals) -> int:
    """Start to write frames, and stop when a few are there; gives how many there are then."""
    running = subprocess.Popen(
        [*RUN, str(source), "-o", str(out / "%05d.png"), "--weather", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and running.poll() is None and len(list(out.glob("0*.png"))) < 20:
        time.sleep(0.01)
    running.send_signal(by)
    _, error = running.communicate(timeout=60)
    assert running.returncode == (130 if by == signal.SIGINT else -by), error
    return len(list(out.glob("0*.png")))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_the_next_run_after_an_interrupted_one_ends_with_all_frames(
    by: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make(tmp_path / "in.mp4", count=900), tmp_path / "out"
    assert 20 <= interrupted(source, out, by) < 900
    assert listed(out / "%05d.png") is not None
    (out / "notes.txt").write_text("somebody's")
    assert unchanged(source, "-o", out / "%05d.png", "--end", "20") == 0
    assert "1 of 1 videos restored" in capsys.readouterr().out
    assert names(out) == [*(f"{number:05d}.png" for number in range(1, 501)), "notes.txt"]


def test_what_an_interrupted_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "%03d.png"
    first = FrameOutput(target)
    for name in ("001.png", "002.png"):
        first.claim(name)
        (tmp_path / name).write_bytes(b"1")
    first.close()
    (tmp_path / "003.png").write_bytes(b"somebody's")
    assert listed(target) == ["001.png", "002.png"]
    assert [path.name for path in existing(target, None)] == ["001.png", "002.png", "003.png"]
    second = FrameOutput(target)
    assert [path.name for path in existing(target, None)] == ["003.png"]
    with pytest.raises(BadFolder, match=r"003\.png exists"):
        second.claim("003.png")
    second.finish()
    assert names(tmp_path) == ["003.png"]


def test_a_list_that_was_tampered_with_removes_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.png").write_bytes(b"1")
    target = tmp_path / "out" / "%d.png"
    list_of(target).write_bytes(HEADER + b"../mine.png\n..\n" + os.fsencode(tmp_path / "mine.png") + b"\nhalf")
    FrameOutput(target).finish()
    assert (tmp_path / "mine.png").exists()
    list_of(target).write_bytes(b"somebody's file of that name")
    with pytest.raises(BadFolder, match="cannot be written"):
        FrameOutput(target)
    assert list_of(target).read_bytes() == b"somebody's file of that name"


def test_two_runs_do_not_write_to_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make(tmp_path / "in.mp4", count=2), tmp_path / "out" / "%d.png"
    first = FrameOutput(target)
    first.claim("1.png")
    (tmp_path / "out" / "1.png").write_bytes(b"1")
    assert unchanged(source, "-o", target) == 1
    assert "another run is writing there" in capsys.readouterr().err
    assert (tmp_path / "out" / "1.png").read_bytes() == b"1"
    first.close()
    with open(list_of(target), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is lifted
    assert unchanged(source, "-o", target) == 0
    assert names(tmp_path / "out") == ["1.png", "2.png"]
    assert np.ptp(cv2.imread(str(tmp_path / "out" / "1.png"))) > 0
