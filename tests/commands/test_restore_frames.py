"""Videos as folders of pictures: what is there already, and what an interrupted run leaves."""

from __future__ import annotations

import fcntl
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
from fairweather.errors import BadFolder
from fairweather.video.writer import HEADER, FrameOutput, existing, list_of, listed
from tests.video.conftest import make, pictures

RUN = (sys.executable, "-m", "fairweather", "restore")


def restore(*arguments: object) -> int:
    return cli.main(["restore", *map(str, arguments), "--weather", "none"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_where_a_frame_would_go_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make(tmp_path / "in.mp4", count=4), tmp_path / "out"
    out.mkdir()
    (out / "00003.png").write_bytes(b"somebody's")
    assert restore(source, "-o", out / "%05d.png") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{out / '00003.png'} is there already" in error
    assert "--overwrite" in error
    assert names(out) == ["00003.png"]
    assert (out / "00003.png").read_bytes() == b"somebody's"
    assert restore(source, "-o", out / "%05d.png", "--overwrite") == 0
    assert names(out) == [f"{number:05d}.png" for number in range(1, 5)]
    assert cv2.imread(str(out / "00003.png")) is not None


def test_frames_that_are_there_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make(tmp_path / "in.mp4", count=4), tmp_path / "out"
    assert restore(source, "-o", out / "%05d.png") == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 4, "the list of an unfinished run is gone"
    capsys.readouterr()
    assert restore(source, "-o", out / "%05d.png") == 0
    assert "1 were there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_of_frames_is_skipped_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(3)):
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), picture)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_bytes(b"somebody's")
    assert restore(tmp_path / "frames", "--film", "-o", tmp_path / "out") == 1
    assert f"{tmp_path / 'out' / '1.png'} is there already" in capsys.readouterr().err
    assert (tmp_path / "out" / "1.png").read_bytes() == b"somebody's"
    assert restore(tmp_path / "frames", "--film", "-o", tmp_path / "out", "--overwrite") == 0
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    assert restore(tmp_path / "frames", "--film", "-o", tmp_path / "out") == 0
    assert "1 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["%s.png", "%d-%d.png", "%.png", "100%.png", "%x.png"])
def test_a_pattern_has_one_number(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "in.mp4", count=2)
    assert restore(source, "-o", tmp_path / pattern) == 1
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
    assert restore(source, "-o", out / "%05d.png", "--end", "20") == 0
    assert "1 of 1 films restored" in capsys.readouterr().out
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
    with pytest.raises(BadFolder, match=r"003.png: exists"):
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
    assert restore(source, "-o", target) == 1
    assert "another run is writing there" in capsys.readouterr().err
    assert (tmp_path / "out" / "1.png").read_bytes() == b"1"
    first.close()
    with open(list_of(target), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is lifted
    assert restore(source, "-o", target) == 0
    assert names(tmp_path / "out") == ["1.png", "2.png"]
    assert np.ptp(cv2.imread(str(tmp_path / "out" / "1.png"))) > 0
