"""The folder of mixed and broken photos: what is in it, and what is said of runs over it."""

from __future__ import annotations

import signal
from pathlib import Path

import folder
import pytest

from fairweather import images


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SMALLEST", 2000)
    monkeypatch.setattr(folder, "LARGEST", 9000)


def test_the_folder_has_every_kind_and_the_broken_are_broken(small: None, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    broken = folder.make(tmp_path / "a", 36, 5)
    assert broken == folder.make(tmp_path / "b", 36, 5)
    files = sorted(path.relative_to(tmp_path / "a") for path in folder.written(tmp_path / "a"))
    assert len(files) == 36
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)
    assert [
        path.relative_to(tmp_path / "a").as_posix() for path in folder.unreadable(folder.written(tmp_path / "a"))
    ] == broken
    photos = [images.read(tmp_path / "a" / path) for path in files if path.as_posix() not in broken]
    assert {photo.kind.format for photo in photos} == {"JPEG", "PNG", "WEBP", "TIFF"}
    assert {photo.kind.mode for photo in photos} == {"L", "RGB", "RGBA"}
    assert any(photo.pixels.dtype == "uint16" for photo in photos)
    assert any(photo.kind.palette for photo in photos)
    assert len({photo.pixels.shape for photo in photos}) == len(photos)


def test_a_process_is_watched_and_killed(tmp_path: Path) -> None:
    told = folder.watch(["models"])  # long enough to be looked at more than once
    assert told.code == 0
    assert "dehaze" in told.said
    assert told.cpu > 0
    assert 0 < told.busy < 1.5
    assert 3 < told.peak < 1000
    assert told.level(0, 1) > 0
    (tmp_path / "there.png").write_bytes(b"")
    assert folder.watch(["restore", str(tmp_path / "absent")], tmp_path, 1).code == -signal.SIGKILL


def test_all_checks_but_that_of_the_cores_hold(
    small: None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At this size starting takes most of the time; how busy the cores are is for the full run to say."""
    words = ["--count", "24", "--broken", "5", "--model", str(tiny_model), "--keep", str(tmp_path)]
    failed = folder.main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NO ")]
    assert failed == len(lines)
    assert all("cores were" in line or "memory is constant" in line for line in lines), lines
