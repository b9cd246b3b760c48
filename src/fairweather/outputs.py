"""Where results go: folders are created, and no output replaces an input."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from fairweather.errors import BadFolder

_REASONS = {
    errno.EEXIST: "there is a file of that name",
    errno.ENOTDIR: "a part of that path is a file",
    errno.ENAMETOOLONG: "the name is too long",
}


def make_folder(folder: str | os.PathLike[str], flag: str = "-o") -> Path:
    """Create a folder and those above it, where they are missing.

    Args:
        folder: the folder.
        flag: the option that names it, for the message.

    Raises:
        BadFolder: it cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror)
        raise BadFolder(f"{folder}: cannot be made ({reason}); choose another folder with {flag}") from error
    return Path(folder)


def check_place(output: str | os.PathLike[str], flag: str = "-o") -> None:
    """Check, before any work, that a path can be one: no part of it is a file, no name is too long.

    Raises:
        BadFolder: it cannot.
    """
    try:
        os.lstat(output)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            reason = _REASONS[error.errno]
            raise BadFolder(f"{os.fspath(output)}: cannot be made ({reason}); choose another with {flag}") from error


def refuse_inputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]], flag: str = "-o"
) -> None:
    """Check that no output is one of the inputs: the same file, under whatever name, links included.

    Raises:
        BadFolder: one is.
    """
    existing = {key: path for path in outputs if (key := _identity(path)) is not None}
    if not existing:
        return
    for path in inputs:
        if (output := existing.get(_identity(path) or (-1, -1))) is not None:
            raise BadFolder(
                f"{os.fspath(output)} would be written over the input {os.fspath(path)}; choose another with {flag}"
            )


def refuse_within(folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], flag: str = "-o") -> None:
    """Check that a folder whose contents are to be replaced is not an input, and that no input lies in it.

    Raises:
        BadFolder: it is, or one does.
    """
    place = os.path.realpath(folder)
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(place):
            raise BadFolder(
                f"{os.fspath(folder)} would be written over the input {os.fspath(path)}; choose another with {flag}"
            )


def refuse_other_than_model(folder: str | os.PathLike[str], flag: str = "-o") -> None:
    """Check that a folder that a model folder replaces is one, or empty: nothing else of the user's is removed.

    Raises:
        BadFolder: it holds something else, or is a file.
    """
    if os.path.isdir(folder):
        if not os.listdir(folder) or os.path.isfile(os.path.join(folder, "card.json")):
            return
    elif not os.path.lexists(folder):
        return
    else:
        raise BadFolder(f"{os.fspath(folder)} is a file: choose another with {flag}")
    raise BadFolder(f"{os.fspath(folder)} holds something that is no model: choose another with {flag}, or empty it")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # not there, or not to be reached: then it is not overwritten either
        return None
    return found.st_dev, found.st_ino
