"""Atomic outputs, temporary names, what is swept, and output checks."""

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

KILLED = """
import os, signal, sys
from fairweather import files
kill_at = int(sys.argv[2])
def killing(real):
    def call(*arguments):
        global kill_at
        kill_at -= 1
        if not kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
os.replace, os.rename = killing(os.replace), killing(os.rename)
if "exchange" not in sys.argv:
    files._exchange = lambda *_: False
writer = files.atomic if "file" in sys.argv else files.atomic_folder
with writer(sys.argv[1]) as made:
    (made if "file" in sys.argv else made / "content").write_text("new")
"""
"""A process that writes a file or folder and kills itself at its nth rename."""


@pytest.fixture(autouse=True)
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def leftover(process: int, name: str, end: str, machine: str | None = None) -> str:
    return f".{name}.{machine or files._machine()}-{process}-0123abcd{end}"


def write_folder(folder: Path, content: str) -> None:
    with files.atomic_folder(folder) as made:
        (made / "content").write_text(content)


def test_temporary_names_are_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.atomic(tmp_path / "y.mp4") as first, files.atomic(tmp_path / "y.mp4") as second:
        assert first != second
        assert all(path.name[0] == "." and path.suffix == ".mp4" for path in (first, second))
        assert first.read_bytes() == b"", "it is created at once"
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "01234567")
    with files.atomic(tmp_path / "z.mp4") as made:
        made.write_bytes(b"first")
        with pytest.raises(BadFolder, match=r"z\.mp4"), files.atomic(tmp_path / "z.mp4"):
            raise AssertionError("the same name twice")
        assert made.read_bytes() == b"first", "the second writer does not remove the first one's file"
    assert sorted(os.listdir(tmp_path)) == ["y.mp4", "z.mp4"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_output(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    write_folder(tmp_path / "folder", "old")

    def fail_in(writer: object) -> None:
        with writer as made:  # type: ignore[attr-defined]
            (made if made.is_file() else made / "content").write_text("new")
            raise error

    for writer in (files.atomic(tmp_path / "file"), files.atomic_folder(tmp_path / "folder")):
        with pytest.raises(error):
            fail_in(writer)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "content").read_text() == "old"


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", "old")
    full = pytest.raises(BadFolder, match=r"model cannot be written .the disk is full.: free some space")
    with full, files.atomic_folder(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "model" / "content").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize(
    ("kind", "replaced", "kill_at"),
    [
        *(("file", replaced, 1) for replaced in (False, True)),
        ("folder", False, 1),
        *(("folder", True, kill_at) for kill_at in (1, 2, 3)),
        ("exchange", True, 1),
    ],
)
def test_a_kill_at_a_rename(kind: str, replaced: bool, kill_at: int, tmp_path: Path) -> None:
    """A complete output has the name at every moment, and the next writer removes what is left."""
    target = tmp_path / "model"
    if replaced:
        target.write_text("old") if kind == "file" else write_folder(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(kill_at), kind])
    assert done.returncode == -9
    assert any(name[0] == "." for name in os.listdir(tmp_path))
    assert files.recover(target) == (kill_at == 3), "killed between the two renames"
    assert target.exists() == replaced
    if replaced:
        assert (target if kind == "file" else target / "content").read_text() == "old"
    if kind == "file":
        with files.atomic(target) as made:
            made.write_text("newer")
    else:
        write_folder(target, "newer")
    assert os.listdir(tmp_path) == ["model"]
    assert (target if kind == "file" else target / "content").read_text() == "newer"


def test_keep_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "y.part.mp4").write_bytes(b"precious")
    for number in (2, 3):
        with files.temporary(tmp_path / "y.mp4") as made:
            made.write_bytes(b"%d" % number)
            kept = files.keep(made, tmp_path / "y.part.mp4")
        assert kept.name == f"y.part-{number}.mp4"
        assert kept.read_bytes() == b"%d" % number
    assert (tmp_path / "y.part.mp4").read_bytes() == b"precious"
    assert len(os.listdir(tmp_path)) == 3


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    write_folder(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "content").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


@pytest.mark.parametrize("exchange", [True, False])
def test_many_writers_to_one_folder(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with files.atomic_folder(tmp_path / "deep" / "model") as made:
                    for name in "ab":
                        (made / name).write_text(str(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(tmp_path / "deep") == ["model"]
    assert len({(tmp_path / "deep" / "model" / name).read_text() for name in "ab"}) == 1


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.atomic_folder(tmp_path / "model") as made:
            os.close(os.open(made / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
        with files.atomic(tmp_path / "file") as file:
            file.write_bytes(b"x")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"model": 0o750, "weights": 0o640, "file": 0o640}


def test_sweep_removes_leftovers_of_dead_processes_alone(dead: int, tmp_path: Path) -> None:
    gone = [tmp_path / leftover(dead, "a", end) for end in (".part.jpg", ".part")]
    aged = tmp_path / leftover(1, "c", ".part.png", "ffffff")
    elsewhere = tmp_path / leftover(1, "d", ".part.png", "ffffff")
    elsewhere_folder = tmp_path / leftover(1, "m", ".part", "ffffff")
    running = tmp_path / leftover(os.getpid(), "e", ".part.jpg")
    running_folder = tmp_path / leftover(os.getpid(), "f", ".part")
    aside = tmp_path / leftover(os.getpid(), "moved", ".old")
    users = [tmp_path / name for name in (".hidden", ".a.part.jpg", "y.part.mp4", ".photo.12.part", "a.jpg")]
    for path in (gone[0], aged, elsewhere, running, *users):
        path.write_bytes(b"x")
    for path in (gone[1], running_folder, elsewhere_folder, aside):
        path.mkdir()
        (path / "weights").write_bytes(b"x")
    for path in (aged, running, running_folder / "weights", running_folder, elsewhere_folder):
        os.utime(path, (0, 0))
    assert set(files.sweep(tmp_path)) == {*gone, aged}
    assert set(tmp_path.iterdir()) == {elsewhere, elsewhere_folder, running, running_folder, aside, *users}
    assert not files.recover(tmp_path / "moved"), "a running process moved it"
    os.utime(elsewhere_folder / "weights", (0, 0))
    os.utime(elsewhere_folder, (0, 0))
    assert files.sweep(tmp_path) == [elsewhere_folder], "nothing in it has changed for a day"
    assert files.sweep(tmp_path / "not there") == []


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("only /proc shows zombies")
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    path = tmp_path / leftover(process.pid, "a", ".part.jpg")
    path.touch()
    assert files.sweep(tmp_path) == [path]
    process.wait()


@pytest.mark.parametrize("by", ["recover", "sweep", "write"])
def test_a_folder_that_was_moved_aside_is_restored(by: str, dead: int, tmp_path: Path) -> None:
    target = tmp_path / "my.model"
    write_folder(target, "old")
    target.rename(tmp_path / leftover(dead, "my.model", ".old"))
    if by == "recover":
        assert not files.recover(tmp_path / "other")
        assert files.recover(target)
        assert not files.recover(target), "it exists"
    elif by == "sweep":
        assert files.sweep(tmp_path) == []
    else:
        with files.atomic(tmp_path / "file") as file:
            file.touch()
    assert (target / "content").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name[0] == "."]
    replaced = tmp_path / leftover(dead, "my.model", ".old")
    replaced.mkdir()
    assert files.sweep(tmp_path) == [replaced], "the new folder exists, so the old one is removed"


def test_paths_that_are_impossible(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out", tmp_path / ("n" * 300)):
        with pytest.raises(BadFolder, match="--out"):
            files.check_place(path, "--out")
        with pytest.raises(BadFolder, match="--out"):
            files.make_folder(path, "--out")
    with pytest.raises(BadFolder, match=r"too long.: choose a shorter"), files.atomic(tmp_path / ("n" * 300)):
        raise AssertionError("it fails after the work")
    files.check_place(tmp_path / "new")
    assert files.make_folder(tmp_path / "deep" / "new").is_dir()


def test_outputs_that_are_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo, link = tmp_path / "in" / "a.jpg", tmp_path / "link.jpg"
    photo.touch()
    link.symlink_to(photo)
    files.refuse_inputs([tmp_path / "b.jpg", tmp_path / "missing"], [photo, tmp_path / "missing"])
    with pytest.raises(BadFolder, match=r"link\.jpg would be written over the input .*a\.jpg"):
        files.refuse_inputs([link], [photo])
    files.refuse_within(tmp_path / "out", [photo])
    with pytest.raises(BadFolder, match="in would be written over"):
        files.refuse_within(tmp_path / "in", [link])


def test_what_a_model_folder_may_replace(tmp_path: Path) -> None:
    for name, entry in (("empty", ""), ("model", "card.json"), ("photos", "a.jpg")):
        (tmp_path / name).mkdir()
        (tmp_path / name / entry).touch()
    for name in ("missing", "empty", "model"):
        files.refuse_other_than_model(tmp_path / name)
    with pytest.raises(BadFolder, match="nor a model folder"):
        files.refuse_other_than_model(tmp_path / "photos")
    with pytest.raises(BadFolder, match="is a file"):
        files.refuse_other_than_model(tmp_path / "photos" / "a.jpg")
