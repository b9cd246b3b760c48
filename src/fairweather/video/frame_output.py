"""A video as a folder of pictures: which files are its frames, and whether all of them are there.

A folder cannot appear at once as a file can, so a run that is killed leaves some frames under their final names. While
a run writes, a hidden list stands in the folder (`.%05d.png.unfinished`) and names each frame before it is written; it
goes with the last frame. Where the list is there, the frames on it are an interrupted run's: the next run removes
these, and nothing else, and does all of them again (what is smoothed over time needs the frames before). The list is
locked while its run lives; the system lifts the lock of a process that is killed.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fairweather.errors import BadFolder, BadSettings
from fairweather.outputs import make_folder

HEADER = b"fairweather: frames of an unfinished video\n"
_NUMBER = re.compile(r"%(0?\d*)d")


class FrameOutput:
    """The frames of one video, which one run writes."""

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        """Claim the folder, and remove what an interrupted run left.

        Args:
            target: a folder, or a pattern in one (frames/%05d.png).
            overwrite: whether frames that are there may be replaced.

        Raises:
            BadFolder: the folder cannot be written, or another run is writing there.
        """
        check_pattern(target)
        self._overwrite = overwrite
        self.folder = make_folder(folder_of(target))
        path = list_of(target)
        unfinished = listed(target)
        try:
            self._file: BinaryIO = open(path, "xb" if unfinished is None else "r+b")  # noqa: SIM115
            _lock(self._file, target)
            for name in unfinished or ():
                with suppress(FileNotFoundError):
                    (self.folder / name).unlink()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(HEADER)
            self._file.flush()
        except OSError as error:
            raise BadFolder(f"{path}: cannot be written ({error.strerror}); choose another folder with -o") from error
        self._path, self._claimed = path, False

    def claim(self, name: str) -> None:
        """Note that the next frame is this run's. Raises BadFolder where a file of that name has appeared."""
        if not self._overwrite and (self.folder / name).exists():
            raise BadFolder(f"{self.folder / name}: is there already; choose another folder with -o, or --overwrite")
        try:
            self._claimed = True
            self._file.write(os.fsencode(name) + b"\n")
            self._file.flush()
        except OSError as error:
            raise BadFolder(f"{self._path}: cannot be written ({error.strerror}); make room on the disk") from error

    def finish(self) -> None:
        """All frames are there: remove the list."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the list; where it is still there, the frames stay an interrupted run's."""
        self._file.close()
        if not self._claimed:
            self._path.unlink(missing_ok=True)


def check_pattern(target: Path) -> None:
    """Raises BadSettings for a pattern that does not number the frames."""
    if "%" in target.name and not (len(_NUMBER.findall(target.name)) == 1 == target.name.count("%")):
        raise BadSettings(f"{target}: needs one number in its name, as in frames/%05d.png")


def folder_of(target: Path) -> Path:
    """The folder that the frames go to."""
    return target.parent if "%" in target.name else target


def list_of(target: Path) -> Path:
    """The hidden list of an unfinished run."""
    return folder_of(target) / f".{target.name}.unfinished"


def listed(target: Path) -> list[str] | None:
    """The names of the frames that an interrupted run has written; None where there was none. The last may be half
    written, and so may its name."""
    try:
        head, *names = list_of(target).read_bytes().split(b"\n")
    except OSError:
        return None
    if head + b"\n" != HEADER:
        return None
    # One frame is one name in this folder: whatever else the file holds is not ours to remove.
    return [os.fsdecode(name) for name in names[:-1] if name not in (b"", b".", b"..") and b"/" not in name]


def existing(target: Path, names: list[str] | None) -> list[Path]:
    """The files that stand where frames would go, in their order.

    Args:
        target: a folder or pattern.
        names: the frames' names, of a folder of frames that keep theirs.
    """
    folder = folder_of(target)
    if "%" not in target.name:
        return [folder / name for name in names or () if (folder / name).exists()]
    number = _NUMBER.search(target.name)
    if number is None:
        return []
    before, after = target.name[: number.start()], target.name[number.end() :]
    found: dict[int, Path] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            digits = name[len(before) : len(name) - len(after)]
            if name.startswith(before) and name.endswith(after) and digits.strip().isdecimal():
                index = int(digits)
                if target.name % index == name and index > 0:
                    found[index] = folder / name
    return [found[index] for index in sorted(found)]


def _lock(file: BinaryIO, target: Path) -> None:
    """Raises BadFolder while another process holds the lock."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: a file that is open cannot be removed there by another
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise BadFolder(f"{target}: another run is writing there; wait for it, or choose another -o") from error
        # Some network file systems have no locks; two runs at once are the user's business there.
