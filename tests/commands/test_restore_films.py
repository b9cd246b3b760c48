"""`fairweather restore` with films among its inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather import cli
from tests.video.conftest import frames_of, make, packets_of, pictures

RUN = (sys.executable, "-m", "fairweather", "restore")


def restore(*arguments: object) -> int:
    return cli.main(["restore", *map(str, arguments)])


def test_a_clip_by_a_named_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=6, size=(160, 96), audio="aac")
    assert restore(source, "-o", tmp_path / "out.mp4", "--model", "dehaze-fast") == 0
    assert "1 of 1 films restored" in capsys.readouterr().out
    times, shown = frames_of(tmp_path / "out.mp4")
    assert times == frames_of(source)[0]
    assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(source, "audio")
    assert np.abs(shown[0].astype(int) - frames_of(source)[1][0]).mean() > 1, "the model does something"
    assert restore(source, "-o", tmp_path / "out.mp4", "--model", "dehaze-fast") == 0
    assert "there already" in capsys.readouterr().out


def test_photos_and_films_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    make(tmp_path / "in" / "deep" / "clip.mkv", count=4)
    cv2.imwrite(str(tmp_path / "in" / "photo.png"), next(pictures(1))[..., ::-1])
    (tmp_path / "in" / "broken.mp4").write_bytes(b"x" * 64)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--weather", "haze") == 1
    captured = capsys.readouterr()
    assert "broken.mp4: cannot be read as a video" in captured.err
    assert "1 of 1 photos restored" in captured.out
    assert "1 of 2 films restored" in captured.out
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["deep/clip.mkv", "photo.png"]


def test_a_film_without_weather_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=4)
    assert restore(source, "-o", tmp_path / "out", "--weather", "none") == 0
    assert (tmp_path / "out" / "in.mp4").read_bytes() == source.read_bytes()
    assert restore(source, "-o", tmp_path / "out.mp4", "--strength", 0) == 0
    assert (tmp_path / "out.mp4").read_bytes() == source.read_bytes()
    capsys.readouterr()


def test_auto_says_what_it_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=4, size=(160, 96))
    assert restore(source, "-o", tmp_path / "out.mp4") == 0
    assert "in 8 frames" in capsys.readouterr().err
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 4


def test_a_folder_as_a_film(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(4)):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), picture[..., ::-1])
    assert restore(tmp_path / "frames", "-o", tmp_path / "film.mp4", "--weather", "haze", "--fps", "10") == 0
    assert [float(at) for at in frames_of(tmp_path / "film.mp4")[0]] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert restore(tmp_path / "frames", "-o", tmp_path / "out", "--weather", "haze", "--film") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{number}.png" for number in range(4)]


def test_pipes(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", count=8)
    command = [*RUN, "-", "-o", "-", "--weather", "haze"]
    done = subprocess.run(command, input=source.read_bytes(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (tmp_path / "out.mkv").write_bytes(done.stdout)
    assert frames_of(tmp_path / "out.mkv")[0] == frames_of(source)[0]
    assert b"1 of 1 films restored" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", "soon"), "--start: a time is given"),
        (("--start", "3", "--end", "2"), "is not after"),
        (("--fps", "fast"), "--fps is a number"),
        (("--codec", "betamax"), "no such encoder"),
        (("-o", "x.wmv"), "videos are written as"),
    ],
)
def test_mistakes_are_said(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "in.mp4", count=4)
    out = () if "-o" in arguments else ("-o", tmp_path / "out.mp4")
    assert restore(source, *out, "--weather", "haze", *arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("fairweather: error") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_without_pyav_photos_are_done_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "clip.mp4", count=2)
    cv2.imwrite(str(tmp_path / "in" / "photo.png"), next(pictures(1))[..., ::-1])
    monkeypatch.setitem(sys.modules, "av", None)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--weather", "haze") == 1
    assert "fairweather[video]" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.png"]


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
    for seconds in (3, 15):
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
    assert peaks[1] < 1.05 * peaks[0], "peak KiB of a film of 3 s and of one of 15 s"


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


def test_two_films_of_which_one_is_called_like_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name, count in (("a.mkv", 4), ("a.part.mkv", 6)):
        make(tmp_path / "in" / name, count=count)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--weather", "haze") == 0
    assert "2 of 2 films restored" in capsys.readouterr().out
    assert [len(frames_of(tmp_path / "out" / name)[1]) for name in ("a.mkv", "a.part.mkv")] == [4, 6]


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
