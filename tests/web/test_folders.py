"""The server's folder: its own, gone in the end, and swept by the next server where it was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fairweather.errors import BadFolder
from fairweather.web.storage import LOCK, PREFIX, ServerFolders, tree_size

HOLDS = """
import sys, time
from pathlib import Path
from fairweather.web.storage import Folders
folders = Folders(Path(sys.argv[1]))
(folders.new() / "photo").write_bytes(b"1234")
print(folders.root, flush=True)
time.sleep(60)
"""


def test_folders_are_new_private_and_passing(tmp_path: Path) -> None:
    folders = ServerFolders(tmp_path)
    assert folders.root.parent == tmp_path
    assert stat.S_IMODE(folders.root.stat().st_mode) == 0o700
    with folders.passing() as one, folders.passing() as other:
        assert one != other
        (one / "a").write_bytes(b"12345")
        assert tree_size(one) == 5
    assert [path.name for path in folders.root.iterdir()] == [LOCK]
    with pytest.raises(ZeroDivisionError), folders.passing() as one:
        _ = 1 / 0
    assert not one.exists()
    folders.close()
    assert not list(tmp_path.iterdir())


def test_a_killed_server_s_folder_is_swept_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / f"{PREFIX}not-ours").mkdir()  # no lock in it: nobody knows whose it is
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    root = Path(process.stdout.readline().strip())
    second = ServerFolders(tmp_path)
    assert not second.swept
    assert (root / "00000001" / "photo").is_file()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    third = ServerFolders(tmp_path)
    assert third.swept == [root]
    assert not root.exists()
    assert second.root.is_dir()
    assert (tmp_path / f"{PREFIX}not-ours").is_dir()
    second.close()
    third.close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match="TMPDIR"):
        ServerFolders(tmp_path / "missing")
