"""Files and folders that appear whole or not at all: the only place that makes temporary names.

A temporary file or folder lies in its target's own folder, hidden, created exclusively, with a random part in its
name: `.holiday.1c9f0e-4711-8a3b5c7d.part.mp4`. The name holds the machine and the process, so that what a killed
process left can be told from what a running one still writes, and is removed by the next process that writes there.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from fairweather.errors import BadFolder

DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
}
"""Error number -> what is wrong with the disk; no fault of the program or of one file."""
_CANNOT_WRITE = {
    **{
        number: f"{what}; {'make room or ' if number in (errno.ENOSPC, errno.EDQUOT) else ''}choose another folder (-o)"
        for number, what in DISK.items()
    },
    errno.EACCES: "writing there is not permitted; choose another folder (-o)",
    errno.EPERM: "writing there is not permitted; choose another folder (-o)",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<process>\d+)-[0-9a-f]{8}\.(part(\.\w+)?|(?P<old>old))", re.DOTALL
)
_DAY = 24 * 3600
_swept: set[str] = set()
_sweeping = threading.Lock()


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty temporary file to write to; it becomes `path` on success and is removed on failure.

    Args:
        path: the file; what is there is replaced. Its mode is that of any new file (the umask).

    Yields:
        The temporary file, in the same folder and with the same suffix.

    Raises:
        BadFolder: the folder is missing, or the disk or permissions do not allow writing.
    """
    with temporary(path) as made:
        yield made
        os.replace(made, path)


@contextmanager
def temporary(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic`, but the caller renames the file, to `path` or by `keep`; otherwise it is removed at the end."""
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise BadFolder(f"{path}: there is no folder {path.parent} to write into; create it or choose another (-o)")
    if os.path.isdir(path):
        raise BadFolder(f"{path}: is a folder; choose another name for the file")
    if not os.access(path.parent, os.W_OK):
        raise BadFolder(f"{path}: cannot be written: {_CANNOT_WRITE[errno.EACCES]}")
    _sweep_once(path.parent)
    suffix = path.suffix if re.fullmatch(r"\.\w{1,12}", path.suffix) else ""
    made: Path | None = None
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long fails here, not after the work
        made = _created(lambda: path.with_name(f"{_prefix(path.stem[:40])}.part{suffix}"), _touch)
        yield made
    except OSError as error:
        reason = _CANNOT_WRITE.get(error.errno or 0)
        if made is None or str(error.filename) == str(made):  # whatever it is, it is about here
            reason = reason or f"{error.strerror}; choose another folder (-o)"
        elif error.filename is not None and error.errno in (errno.EACCES, errno.EPERM):
            reason = None
        if reason is None:
            raise
        raise BadFolder(f"{path}: cannot be written: {reason}") from error
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def keep(made: Path, name: Path) -> Path:
    """Rename a temporary file to `name`, or to a numbered one where that is taken: no file is ever replaced.

    Returns:
        The name it got: `name`, `STEM-2.SUFFIX`, `STEM-3.SUFFIX`, ...
    """
    number, free = 1, name
    while True:
        try:
            _touch(free)
        except FileExistsError:
            number += 1
            free = name.with_name(f"{name.stem}-{number}{name.suffix}")
            continue
        os.replace(made, free)
        return free


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to write into; it takes the place of `folder` on success and is removed on failure.

    At every moment a whole folder has the name, the old one or the new one, where the file system can exchange two
    names; where it cannot, `recover` puts the old one back after a kill.

    Args:
        folder: the folder; its parents are made, what is there is replaced.

    Yields:
        An empty folder in the same parent.

    Raises:
        BadFolder: the disk or permissions do not allow writing.
    """
    target = Path(os.path.realpath(folder))  # through a link, not in its place
    made: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        made = _created(lambda: target.with_name(f"{_prefix(target.name[:40])}.part"), os.mkdir)
        yield made
        _give_file_modes(made)
        _put(made, target)
    except OSError as error:
        raise BadFolder(
            f"{folder} cannot be written ({error.strerror or error}): choose another, or free space"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def recover(folder: str | os.PathLike[str]) -> bool:
    """Put a folder back whose replacement was killed between moving it aside and moving the new one in.

    Returns:
        Whether the folder was missing and is there again.
    """
    path = Path(os.path.realpath(folder))
    if os.path.lexists(path):
        return False
    for entry, found in _temporaries(path.parent):
        if found["old"] and found["name"] == path.name and _abandoned(entry, found):
            with suppress(OSError):
                os.rename(entry, path)
                return True
    return False


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files and folders that killed processes left in a folder.

    What a running process of this machine writes stays. Processes of other machines, which share the folder over a
    network, cannot be checked: what they left is removed when it is a day old.

    Returns:
        What was removed.
    """
    removed = []
    for entry, found in _temporaries(Path(folder)):
        if not _abandoned(entry, found):
            continue
        try:
            if found["old"] and not os.path.lexists(target := entry.with_name(found["name"])):
                os.rename(entry, target)
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
        except OSError:  # another process was quicker, or permissions do not allow it
            continue
    return removed


def _sweep_once(folder: Path) -> None:
    """Sweep on the first write into a folder: a scan for every file would make large folders slow."""
    place = os.path.realpath(folder)
    with _sweeping:
        if place in _swept:
            return
        _swept.add(place)
    sweep(folder)


def _temporaries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [(folder / name, found) for name in names if (found := _TEMPORARY.fullmatch(name))]


def _abandoned(path: Path, found: re.Match[str]) -> bool:
    """Whether no process writes to it any more."""
    if found["machine"] == _machine() and os.name == "posix":
        return not _runs(int(found["process"]))
    try:
        newest = max(os.lstat(one).st_mtime for one in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:
        return False
    return time.time() - newest > _DAY


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, OverflowError):
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True
    return state not in ("Z", "X")  # ended, and nobody has asked for its exit code yet


@cache
def _machine() -> str:
    """This machine since its start, or this container: where a process's number is unique."""
    words = platform.node()
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            words += os.readlink(source) if source.endswith("pid") else Path(source).read_text()
    return hashlib.sha256(words.encode()).hexdigest()[:6]


def _created(name: Callable[[], Path], make: Callable[[Path], None]) -> Path:
    """A new file or folder under the first of the names that nobody has."""
    for _ in range(9):
        with suppress(FileExistsError):
            make(path := name())
            return path
    make(path := name())
    return path


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _prefix(name: str) -> str:
    return f".{name or '_'}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _give_file_modes(folder: Path) -> None:
    """Let every file be read by whom the umask allows: some libraries write files that only the owner can read."""
    usual = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and (mode := stat.S_IMODE(path.stat().st_mode)) | usual != mode:
            path.chmod(mode | usual)


def _put(made: Path, target: Path) -> None:
    """Move a folder to a name; afterwards `made` is gone, or is the folder that had the name before."""
    for _ in range(100):  # another process may put its own there at any moment: the last one stays
        try:
            os.rename(made, target)  # there is nothing, or an empty folder
            return
        except OSError as error:
            if not target.is_dir() or (os.name == "posix" and error.errno not in (errno.ENOTEMPTY, errno.EEXIST)):
                raise
        if _exchange(made, target):
            return
        aside = target.with_name(f"{_prefix(target.name)}.old")
        try:
            os.rename(target, aside)
        except FileNotFoundError:
            continue
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                shutil.rmtree(aside, ignore_errors=True)
                continue
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return
    raise BadFolder(f"{target} is replaced by other processes all the time: choose another folder")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    at, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE on Linux; macOS has RENAME_SWAP, also 2
    names = os.fsencode(first), os.fsencode(second)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            return bool(library.renameat2(at, names[0], at, names[1], swap) == 0)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, swap) == 0)
    except (AttributeError, OSError, TypeError):  # Windows, or a C library without the call
        pass
    return False
