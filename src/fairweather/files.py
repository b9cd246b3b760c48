"""Outputs on disk: written atomically through unique temporary names, and never over an input.

A temporary file or folder is in its target's folder, hidden, created exclusively, with a random part in its name:
`.holiday.1c9f0e-4711-8a3b5c7d.part.mp4`. The name also holds the machine and the process, so that the next process that
writes there can remove the files of a killed one.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from fairweather.errors import BadFolder

DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file exceeds the size limit of the file system",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
}
"""Error number -> what is wrong with the disk, rather than with the program or one file."""
_NOT_PERMITTED = (errno.EACCES, errno.EPERM)
_CANNOT_WRITE = {
    **DISK,
    **dict.fromkeys(_NOT_PERMITTED, "permission denied"),
    errno.ENAMETOOLONG: "the name is too long",
}
_CANNOT_CREATE = {
    **_CANNOT_WRITE,
    errno.EEXIST: "a file of that name exists",
    errno.ENOTDIR: "a part of that path is a file",
}
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<process>\d+)-[0-9a-f]{8}\.(part(\.\w+)?|(?P<old>old))", re.DOTALL
)
_DAY = 24 * 3600
_swept: set[str] = set()
_sweeping = threading.Lock()


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary file that becomes `path` on success and is removed on failure.

    Args:
        path: the file; an existing one is replaced. It gets the mode of any new file (the umask).

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
    """Yield a temporary file as `atomic` does; the caller renames it, or it is removed at the end."""
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise BadFolder(f"{path}: there is no folder {path.parent} to write into: create it or choose another (-o)")
    if os.path.isdir(path):
        raise BadFolder(f"{path} is a folder: choose another name for the file")
    if not os.access(path.parent, os.W_OK):
        raise _cannot_write(path, errno.EACCES)
    _sweep_once(path.parent)
    suffix = path.suffix if re.fullmatch(r"\.\w{1,12}", path.suffix) else ""
    made = path.with_name(f"{_prefix(path.stem[:40])}.part{suffix}")
    created = False
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long fails here, before the work
        _touch(made)
        created = True
        yield made
    except OSError as error:
        about_made = not created or str(error.filename) == str(made)
        if not about_made and (
            error.errno not in _CANNOT_WRITE or (error.errno in _NOT_PERMITTED and error.filename is not None)
        ):
            raise  # it is about another file
        raise _cannot_write(path, error.errno, error.strerror or str(error)) from error
    finally:
        if created:
            made.unlink(missing_ok=True)


def keep(made: Path, name: Path) -> Path:
    """Rename a temporary file without replacing any file.

    Args:
        made: from `temporary`.
        name: the preferred name.

    Returns:
        The new name: `name`, or STEM-2.SUFFIX, STEM-3.SUFFIX, ... where that exists.
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
    """Yield a temporary folder that replaces `folder` on success and is removed on failure.

    The name always belongs to a complete folder, the old one or the new one, if the file system can exchange two
    names; otherwise `recover` restores the old one after a kill.

    Args:
        folder: the folder; its parents are created.

    Yields:
        An empty folder in the same parent.

    Raises:
        BadFolder: the disk or permissions do not allow writing.
    """
    target = Path(os.path.realpath(folder))  # a link stays a link
    made = target.with_name(f"{_prefix(target.name[:40])}.part")
    created = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        made.mkdir()
        created = True
        yield made
        _apply_umask(made)
        _replace_folder(made, target)
    except OSError as error:
        raise _cannot_write(folder, error.errno, error.strerror or str(error)) from error
    finally:
        if created:
            shutil.rmtree(made, ignore_errors=True)


def make_folder(folder: str | os.PathLike[str], flag: str = "-o") -> Path:
    """Create a folder and its parents where they are missing.

    Args:
        folder: the folder.
        flag: the option that names it, for the message.

    Raises:
        BadFolder: it cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        reason = _CANNOT_CREATE.get(error.errno or 0, error.strerror)
        raise BadFolder(f"{folder} cannot be created ({reason}): choose another folder with {flag}") from error
    return Path(folder)


def recover(folder: str | os.PathLike[str]) -> bool:
    """Restore a folder whose replacement was killed between the two renames.

    Returns:
        Whether the folder was missing and is restored.
    """
    path = Path(os.path.realpath(folder))
    if os.path.lexists(path):
        return False
    for entry, found in _temporaries(path.parent):
        if found["old"] and found["name"] == path.name and _is_abandoned(entry, found):
            with suppress(OSError):
                os.rename(entry, path)
                return True
    return False


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files and folders that killed processes left in a folder.

    Those of running processes stay. Processes of other machines (on a network file system) cannot be checked: their
    files are removed after a day.

    Returns:
        The removed files and folders.
    """
    removed = []
    for entry, found in _temporaries(Path(folder)):
        if not _is_abandoned(entry, found):
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
        except OSError:  # another process was faster, or permissions do not allow it
            continue
    return removed


def check_place(output: str | os.PathLike[str], flag: str = "-o") -> None:
    """Check, before any work, that an output's path is valid.

    Raises:
        BadFolder: a part of it is a file, or a name is too long.
    """
    try:
        os.lstat(output)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            reason = _CANNOT_CREATE[error.errno]
            raise BadFolder(f"{os.fspath(output)} cannot be created ({reason}): choose another with {flag}") from error


def refuse_inputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]], flag: str = "-o"
) -> None:
    """Check that no output is an input: the same file, under any name, through any link.

    Raises:
        BadFolder: one is.
    """
    existing = {key: path for path in outputs if (key := _identity(path)) is not None}
    for path in inputs if existing else ():
        if (output := existing.get(_identity(path) or (-1, -1))) is not None:
            raise _overwrites(output, path, flag)


def refuse_within(folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], flag: str = "-o") -> None:
    """Check that a folder that will be replaced is not an input and contains none.

    Raises:
        BadFolder: it is, or contains one.
    """
    place = os.path.realpath(folder)
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(place):
            raise _overwrites(folder, path, flag)


def refuse_other_than_model(folder: str | os.PathLike[str], flag: str = "-o") -> None:
    """Check that a folder that a model folder will replace is a model folder, empty or missing.

    Raises:
        BadFolder: it contains anything else, or is a file.
    """
    if os.path.isdir(folder):
        if os.listdir(folder) and not os.path.isfile(os.path.join(folder, "card.json")):
            raise BadFolder(
                f"{os.fspath(folder)} is neither empty nor a model folder: choose another with {flag}, or empty it"
            )
    elif os.path.lexists(folder):
        raise BadFolder(f"{os.fspath(folder)} is a file: choose another with {flag}")


def _cannot_write(path: str | os.PathLike[str], number: int | None, message: str = "") -> BadFolder:
    remedy = "choose another folder (-o)"
    if number in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free some space, or {remedy}"
    elif number == errno.ENAMETOOLONG:
        remedy = "choose a shorter one"
    return BadFolder(f"{os.fspath(path)} cannot be written ({_CANNOT_WRITE.get(number or 0, message)}): {remedy}")


def _overwrites(output: str | os.PathLike[str], path: str | os.PathLike[str], flag: str) -> BadFolder:
    return BadFolder(
        f"{os.fspath(output)} would be written over the input {os.fspath(path)}: choose another with {flag}"
    )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # what does not exist cannot be overwritten
        return None
    return found.st_dev, found.st_ino


def _prefix(name: str) -> str:
    return f".{name or '_'}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _sweep_once(folder: Path) -> None:
    """Sweep on the first write into a folder: a scan for every file would be slow in large folders."""
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


def _is_abandoned(path: Path, found: re.Match[str]) -> bool:
    """Whether no process is writing to it."""
    if found["machine"] == _machine() and os.name == "posix":
        return not _is_running(int(found["process"]))
    try:
        newest = max(os.lstat(one).st_mtime for one in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:
        return False
    return time.time() - newest > _DAY


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, OverflowError):
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True
    return state not in ("Z", "X")  # ended, but not yet waited for


@cache
def _machine() -> str:
    """An identifier of this machine since its start, or of this container: the scope of process numbers."""
    identity = platform.node()
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            identity += os.readlink(source) if source.endswith("pid") else Path(source).read_text()
    return hashlib.sha256(identity.encode()).hexdigest()[:6]


def _apply_umask(folder: Path) -> None:
    """Extend the modes of all files to the umask: some libraries write files that only the owner can read."""
    usual = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and (mode := stat.S_IMODE(path.stat().st_mode)) | usual != mode:
            path.chmod(mode | usual)


def _replace_folder(made: Path, target: Path) -> None:
    """Rename a folder; afterwards `made` does not exist, or is the folder that had the name before."""
    for _ in range(100):  # other processes may replace it too: the last one wins
        try:
            os.rename(made, target)  # it does not exist, or is empty
            return
        except OSError as error:
            in_the_way = target.is_dir() if os.name != "posix" else error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not in_the_way:
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
    raise BadFolder(f"{target}: other processes keep replacing it: choose another folder")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False if the system or the file system does not support it."""
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
