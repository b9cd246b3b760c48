"""The server's own folder: every file that it writes lies below it, and it is gone when the server is.

A killed server leaves its folder behind; the next one finds that nobody holds the lock in it any more, and removes it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fairweather.errors import BadFolder

PREFIX = "fairweather-serve-"
LOCK = "lock"


class Folders:
    """A folder in the system's place for temporary files (or in `parent`), readable by nobody else."""

    def __init__(self, parent: Path | None = None) -> None:
        try:
            place = Path(tempfile.gettempdir() if parent is None else parent)
            self.swept = _sweep(place)
            self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
            self._lock = (self.root / LOCK).open("w")
        except OSError as error:
            raise BadFolder(
                f"{error.filename or 'the folder for temporary files'}: cannot be written ({error.strerror}); "
                "name another one with TMPDIR"
            ) from error
        _locked(self._lock)
        self._count, self._guard = 0, threading.Lock()

    def new(self) -> Path:
        """A new folder below, for one request or one photo."""
        with self._guard:
            self._count += 1
            folder = self.root / f"{self._count:08d}"
        folder.mkdir()
        return folder

    @contextmanager
    def passing(self) -> Iterator[Path]:
        """A new folder that is removed in the end, with all that was written to it."""
        folder = self.new()
        try:
            yield folder
        finally:
            remove(folder)

    def close(self) -> None:
        """Remove everything."""
        self._lock.close()
        remove(self.root)


def remove(folder: Path) -> None:
    """A folder and what is in it, whatever is still written to it."""
    shutil.rmtree(folder, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of the files in a folder; of one that is in several (`os.link`), its share."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                told = path.stat()
                total += told.st_size // max(1, told.st_nlink)
    return total


def _sweep(place: Path) -> list[Path]:
    """Remove what killed servers left in a folder; gives what was removed."""
    removed = []
    for folder in place.glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                dead = _locked(lock)
        except OSError:  # not ours, or gone in the meantime
            continue
        if dead:
            remove(folder)
            removed.append(folder)
    return removed


def _locked(file: IO[str]) -> bool:
    """Whether the lock was free, and is held now until the file is closed; False where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is swept, its own cleaning does
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
