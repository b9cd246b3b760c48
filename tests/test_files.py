"""Temporary names nobody has, results that are whole or not there, and what is swept."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fairweather import files
from fairweather.errors import BadFolder


@pytest.fixture(autouse=True)
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(process: int, name: str, end: str, machine: str | None = None) -> str:
    return f".{name}.{machine or files._machine()}-{process}-0123abcd{end}"


def test_a_temporary_name_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.atomic(tmp_path / "y.mp4") as first, files.atomic(tmp_path / "y.mp4") as second:
        assert first != second
        assert {path.name[0] for path in (first, second)} == {"."}
        assert {path.suffix for path in (first, second)} == {".mp4"}
        assert first.read_bytes() == b"", "it is taken from the start"
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "01234567")
    with files.atomic(tmp_path / "z.mp4") as taken:
        taken.write_bytes(b"first")
        with pytest.raises(BadFolder, match=r"z\.mp4"), files.atomic(tmp_path / "z.mp4"):
            raise AssertionError("the same name, twice")
        assert taken.read_bytes() == b"first", "the one that failed removes nothing of the other"
    assert sorted(os.listdir(tmp_path)) == ["y.mp4", "z.mp4"]


def test_what_is_kept_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "y.part.mp4").write_bytes(b"precious")
    for number in (2, 3):
        with files.temporary(tmp_path / "y.mp4") as made:
            made.write_bytes(b"%d" % number)
            kept = files.keep(made, tmp_path / "y.part.mp4")
        assert kept.name == f"y.part-{number}.mp4"
        assert kept.read_bytes() == b"%d" % number
    assert (tmp_path / "y.part.mp4").read_bytes() == b"precious"
    assert len(os.listdir(tmp_path)) == 3


def test_a_name_that_is_too_long_is_known_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match="too long"), files.atomic(tmp_path / ("n" * 300)):
        raise AssertionError("all the work is done for nothing")


def test_a_folder_is_there_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for content in ("old", "new"):
        with files.atomic_folder(target) as made:
            assert made.parent == target.parent
            (made / "a").write_text(content)
            if content == "new":
                assert (target / "a").read_text() == "old"
                (made / "b").mkdir()
                (made / "b" / "c").write_text("below")
        assert (target / "a").read_text() == content

    def fail() -> None:
        with files.atomic_folder(target) as made:
            (made / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (target / "a").read_text() == "new"
    assert os.listdir(target.parent) == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with files.atomic_folder(tmp_path / "link") as made:
        (made / "a").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


@pytest.mark.parametrize("exchange", [True, False])
def test_many_writers_to_one_folder(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    wrong: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with files.atomic_folder(tmp_path / "model") as made:
                    for name in "ab":
                        (made / name).write_text(str(number))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert os.listdir(tmp_path) == ["model"]
    assert len({(tmp_path / "model" / name).read_text() for name in "ab"}) == 1


def test_files_are_for_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.atomic_folder(tmp_path / "model") as made:
            descriptor = os.open(made / "weights", os.O_CREAT | os.O_WRONLY, 0o600)
            os.close(descriptor)
        with files.atomic(tmp_path / "file") as file:
            file.write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750


def test_sweeping_takes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    gone = [tmp_path / left_by(dead(), "a", end) for end in (".part.jpg", ".part")]
    aged = tmp_path / left_by(1, "c", ".part.png", "ffffff")
    elsewhere = tmp_path / left_by(1, "d", ".part.png", "ffffff")
    running = tmp_path / left_by(os.getpid(), "e", ".part.jpg")
    running_folder = tmp_path / left_by(os.getpid(), "f", ".part")
    users = [tmp_path / name for name in (".hidden", ".a.part.jpg", "y.part.mp4", ".photo.12.part", "a.jpg")]
    for path in (gone[0], aged, elsewhere, running, *users):
        path.write_bytes(b"x")
    for path in (gone[1], running_folder):
        path.mkdir()
        (path / "weights").write_bytes(b"x")
    for path in (aged, running, running_folder / "weights", running_folder):
        os.utime(path, (0, 0))
    kept = {elsewhere, running, running_folder, *users}
    assert set(files.sweep(tmp_path)) == {*gone, aged}
    assert set(tmp_path.iterdir()) == kept
    assert files.sweep(tmp_path / "not there") == []


def test_a_folder_of_another_machine_that_is_still_written_to_stays(tmp_path: Path) -> None:
    folder = tmp_path / left_by(1, "m", ".part", "ffffff")
    folder.mkdir()
    (folder / "weights").write_bytes(b"x")
    os.utime(folder, (0, 0))
    assert files.sweep(tmp_path) == []
    os.utime(folder / "weights", (0, 0))
    os.utime(folder, (0, 0))
    assert files.sweep(tmp_path) == [folder]


def test_a_killed_child_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    path = tmp_path / left_by(process.pid, "a", ".part.jpg")
    path.touch()
    if Path("/proc/self/stat").exists():
        assert files.sweep(tmp_path) == [path]
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("by", ["recover", "sweep", "write"])
def test_a_folder_that_was_moved_aside_comes_back(by: str, tmp_path: Path) -> None:
    aside = tmp_path / left_by(dead(), "my.model", ".old")
    aside.mkdir()
    (aside / "a").write_text("old")
    target = tmp_path / "my.model"
    if by == "recover":
        assert files.recover(target)
        assert not files.recover(target), "it is there"
        assert not files.recover(tmp_path / "other")
    elif by == "sweep":
        assert files.sweep(tmp_path) == []
    else:
        with files.atomic(tmp_path / "file") as file:
            file.touch()
    assert (target / "a").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name[0] == "."]


def test_a_folder_that_a_running_process_moved_aside_is_its_own(tmp_path: Path) -> None:
    aside = tmp_path / left_by(os.getpid(), "model", ".old")
    aside.mkdir()
    assert not files.recover(tmp_path / "model")
    assert files.sweep(tmp_path) == []
    done = tmp_path / left_by(dead(), "model", ".old")
    done.mkdir()
    (tmp_path / "model").mkdir()
    assert files.sweep(tmp_path) == [done], "the new one is there: the old one goes"


def test_a_disk_that_is_full_leaves_the_old_folder(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "model") as made:
        (made / "a").write_text("old")
    full = pytest.raises(BadFolder, match=r"model cannot be written \(No space left")
    with full, files.atomic_folder(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]
