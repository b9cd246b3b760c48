"""The server's temporary folder, and the store of photos and videos in it, each with a token and a time to live.

All files that the server writes are in this folder, which is removed when the server ends. The folder of a killed
server is removed by the next one, which finds its lock free.
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
    """A private folder (mode 0700) in the system's temporary folder.

    Args:
        parent: the folder to create it in; None: the system's.

    Raises:
        BadFolder: it cannot be created.
    """

    def __init__(self, parent: Path | None = None) -> None:
        try:
            parent = Path(tempfile.gettempdir() if parent is None else parent)
            self.removed = _remove_abandoned(parent)
            self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = (self.root / LOCK).open("w")
        except OSError as error:
            raise BadFolder(
                f"{error.filename or 'the folder for temporary files'} is not writable ({error.strerror}): "
                "set TMPDIR to another folder"
            ) from error
        _try_lock(self._lock)
        self._count, self._guard = 0, threading.Lock()

    def new(self) -> Path:
        """Create a folder for one request, photo or video."""
        with self._guard:
            self._count += 1
            folder = self.root / f"{self._count:08d}"
        folder.mkdir()
        return folder

    @contextmanager
    def new_or_removed(self) -> Iterator[Path]:
        """Create a folder that is removed if the block raises."""
        folder = self.new()
        try:
            yield folder
        except BaseException:
            remove_tree(folder)
            raise

    def close(self) -> None:
        """Remove the folder and its contents."""
        self._lock.close()
        remove_tree(self.root)


def remove_tree(folder: Path) -> None:
    """Remove a folder, even if files are still being written to it."""
    shutil.rmtree(folder, ignore_errors=True)


def tree_size(folder: Path) -> int:
    """Bytes of the files in a folder; a file with several hard links counts in part for each."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                stat = path.stat()
                total += stat.st_size // max(1, stat.st_nlink)
    return total


def _remove_abandoned(parent: Path) -> list[Path]:
    """Remove the folders of killed servers, and return them."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                abandoned = _try_lock(lock)
        except OSError:  # not a server's, or removed meanwhile
            continue
        if abandoned:
            remove_tree(folder)
            removed.append(folder)
    return removed


def _try_lock(file: IO[str]) -> bool:
    """Lock a file until it is closed; False if another process has locked it, or without file locks (Windows)."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class StoredItem(Protocol):
    """A photo or a video in the store."""

    token: str
    """128 random bits; anyone who knows it may use the item."""
    folder: Path
    """The folder of all its files."""
    last_used: float
    """Time of the last access (`time.monotonic`)."""

    @property
    def busy(self) -> bool:
        """Whether it is being processed, so that it must not be removed."""
        ...

    def stop(self) -> None:
        """Stop its processing; its files are removed next."""
        ...


class TTLStore:
    """The stored photos and videos of a server, by token."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._items: dict[str, StoredItem] = {}
        self._lock = threading.Lock()

    def all(self) -> list[StoredItem]:
        """All items."""
        with self._lock:
            return list(self._items.values())

    def add(self, item: StoredItem) -> None:
        """Add an item, and remove others if that exceeds the size limit."""
        with self._lock:
            self._items[item.token] = item
        self.expire()

    def get(self, token: str) -> StoredItem | None:
        """Return the item of a token, which counts as an access."""
        with self._lock:
            item = self._items.get(token)
        if item is not None:
            item.last_used = time.monotonic()
        return item

    def remove(self, token: str) -> None:
        """Stop and remove an item with its files; unknown tokens are ignored."""
        with self._lock:
            item = self._items.pop(token, None)
        if item is not None:
            item.stop()
            remove_tree(item.folder)

    def expire(self) -> None:
        """Remove items past their time to live, and least recently used ones if the size limit is exceeded."""
        now, oldest = time.monotonic(), sorted(self.all(), key=lambda item: item.last_used)
        room = self.limits.disk - sum(tree_size(item.folder) for item in oldest)
        for item in oldest:
            newest = item is oldest[-1]  # stays, however large it is
            if not item.busy and (now - item.last_used > 60 * self.limits.keep or (room < 0 and not newest)):
                room += tree_size(item.folder)
                self.remove(item.token)

    def close(self) -> None:
        """Stop the processing of all items."""
        for item in self.all():
            item.stop()
