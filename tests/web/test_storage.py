"""The server's folder, also after a kill, and the store's time to live and share of the disk."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairweather.errors import BadFolder

pytest.importorskip("starlette")

from fairweather.web.limits import Limits
from fairweather.web.storage import PREFIX, ServerFolders, TTLStore, tree_size

KILLED_SERVER = """
import sys, time
from pathlib import Path
from fairweather.web.storage import ServerFolders
folders = ServerFolders(Path(sys.argv[1]))
(folders.new() / "photo").write_bytes(b"1234")
print(folders.root, flush=True)
time.sleep(60)
"""


def test_folders_are_private_and_removed(tmp_path: Path) -> None:
    folders = ServerFolders(tmp_path)
    assert folders.root.parent == tmp_path
    assert stat.S_IMODE(folders.root.stat().st_mode) == 0o700
    with folders.new_or_removed() as one, folders.new_or_removed() as other:
        assert one != other
        (one / "a").write_bytes(b"12345")
        assert tree_size(one) == 5
    with pytest.raises(ZeroDivisionError), folders.new_or_removed() as failed:
        _ = 1 / 0
    assert one.exists()
    assert not failed.exists()
    folders.close()
    assert not list(tmp_path.iterdir())


def test_a_killed_servers_folder_is_removed_by_the_next_one(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / f"{PREFIX}unlocked").mkdir()  # no lock in it: its owner is unknown
    process = subprocess.Popen([sys.executable, "-c", KILLED_SERVER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    root = Path(process.stdout.readline().strip())
    second = ServerFolders(tmp_path)
    assert not second.removed
    assert (root / "00000001" / "photo").is_file()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    third = ServerFolders(tmp_path)
    assert third.removed == [root]
    assert not root.exists()
    assert second.root.is_dir()
    assert (tmp_path / f"{PREFIX}unlocked").is_dir()
    second.close()
    third.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match="TMPDIR"):
        ServerFolders(tmp_path / "missing")


@dataclass
class Item:
    folder: Path
    token: str
    busy: bool = False
    last_used: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True


def add(store: TTLStore, folder: Path, token: str, *, busy: bool = False) -> Item:
    (folder / token).mkdir()
    (folder / token / "file").write_bytes(bytes(1000))
    store.add(item := Item(folder / token, token, busy))
    return item


def test_items_unused_for_longest_are_removed_where_the_disk_is_full(tmp_path: Path) -> None:
    store = TTLStore(Limits(disk=2500))
    a, b, _ = (add(store, tmp_path, token, busy=token == "a") for token in "abc")
    assert [item.token for item in store.all()] == ["a", "c"]  # a is busy
    assert (b.stopped, b.folder.exists()) == (True, False)
    a.busy = False
    assert store.get("a") is a  # used later than c
    add(store, tmp_path, "d")
    assert [item.token for item in store.all()] == ["a", "d"]
    store.remove("a")
    store.remove("a")
    assert store.get("a") is None


def test_items_expire_unless_they_are_busy(tmp_path: Path) -> None:
    store = TTLStore(Limits(keep=1))
    old, busy = add(store, tmp_path, "old"), add(store, tmp_path, "busy", busy=True)
    old.last_used = busy.last_used = time.monotonic() - 61
    store.expire()
    assert store.all() == [busy]
    assert old.stopped
    store.close()
    assert busy.stopped
