"""The server's own folder: every file that it writes lies below it, and it is gone when the server is.

A killed server leaves its folder behind; the next one finds that nobody holds the lock in it any more, and removes it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from fairweather.errors import BadFolder
from fairweather.web.limits import Limits

PREFIX = "fairweather-serve-"
LOCK = "lock"


class ServerFolders:
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
            remove_tree(folder)

    def close(self) -> None:
        """Remove everything."""
        self._lock.close()
        remove_tree(self.root)


def remove_tree(folder: Path) -> None:
    """A folder and what is in it, whatever is still written to it."""
    shutil.rmtree(folder, ignore_errors=True)


def tree_size(folder: Path) -> int:
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
            remove_tree(folder)
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


# What is kept for a while: the page's photos, and clips with what became of them; each has a token and a folder.


class StoredItem(Protocol):
    """Something on the shelf."""

    token: str
    """What its owner asks for it with; 128 bits by chance."""
    folder: Path
    """Where all its files lie."""
    used: float
    """When it was last asked for (`time.monotonic`)."""

    @property
    def busy(self) -> bool:
        """Whether it is worked on, so that it has to stay."""
        ...

    def end(self) -> None:
        """Stop what is done with it; its files go next."""
        ...


class TTLStore:
    """All that one server keeps."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._kept: dict[str, StoredItem] = {}
        self._lock = threading.Lock()

    def all(self) -> list[StoredItem]:
        """What is there."""
        with self._lock:
            return list(self._kept.values())

    def add(self, kept: StoredItem) -> None:
        """Keep it, and let go of what there is no room for any more."""
        with self._lock:
            self._kept[kept.token] = kept
        self.tidy()

    def get(self, token: str) -> StoredItem | None:
        """What has this token, which counts as asked for now."""
        with self._lock:
            kept = self._kept.get(token)
        if kept is not None:
            kept.used = time.monotonic()
        return kept

    def drop(self, token: str) -> None:
        """Forget it at once, with its files; what is not here is gone already."""
        with self._lock:
            kept = self._kept.pop(token, None)
        if kept is not None:
            kept.end()
            remove_tree(kept.folder)

    def tidy(self) -> None:
        """Let go of what nobody asked for in time, and of what was used longest ago where the disk's share is full."""
        now, oldest = time.monotonic(), sorted(self.all(), key=lambda kept: kept.used)
        room = self.limits.disk - sum(tree_size(kept.folder) for kept in oldest)
        for kept in oldest:
            newest = kept is oldest[-1]  # stays, however large it is
            if not kept.busy and (now - kept.used > 60 * self.limits.keep or (room < 0 and not newest)):
                room += tree_size(kept.folder)
                self.drop(kept.token)

    def close(self) -> None:
        """Stop all that is done."""
        for kept in self.all():
            kept.end()
