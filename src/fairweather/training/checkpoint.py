"""Checkpoints: the newest one and the one before, each of them whole or noticed not to be, whenever the power goes."""

from __future__ import annotations

import logging
import os
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fairweather.errors import BadFolder, BadSettings
from fairweather.files import DISK, atomic, make_folder

log = logging.getLogger("fairweather")

CHECKPOINT_FORMAT = 1
CHECKPOINT_NAME = "latest.pt"
PREVIOUS_NAME = "previous.pt"
TRAILER = b"\ncrc32 "
"""Stands behind torch's zip, with eight hexadecimal digits: torch.load looks at no checksum, and those that the zip
itself holds leave out its own headers, so that a changed bit can give a tensor another place's bytes."""
# What this process has written itself, and so need not read again to know that it is whole.
_written: set[Path] = set()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `folder/latest.pt`; the one before becomes `previous.pt` once this one is whole, unless it is damaged.

    Raises BadFolder where it cannot; what is there then stays as it is.
    """
    make_folder(folder, "--out")
    path = folder / CHECKPOINT_NAME
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            summing = _Summing(file)
            torch.save({"format": CHECKPOINT_FORMAT, **state}, summing)  # type: ignore[arg-type]
            file.write(TRAILER + b"%08x" % summing.sum)
            file.flush()
            os.fsync(file.fileno())
            # Never a damaged file in the place of a good one. Between this and the next renaming there is no newest
            # one, and `load` takes the one before.
            if path.exists() and (path in _written or checkpoint_damage(path) is None):
                os.replace(path, folder / PREVIOUS_NAME)
        _written.add(path)
    except (OSError, RuntimeError, BadFolder) as error:
        # torch's own zip writer reports a full disk as a RuntimeError, raised while the true reason was on its way
        hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
        reason = error.__context__ if hidden else error
        while isinstance(reason, BadFolder) and isinstance(reason.__cause__, OSError):
            reason = reason.__cause__
        why = getattr(reason, "strerror", None) or reason
        raise BadFolder(f"{path}: the checkpoint cannot be written ({why}); {remedy(folder)}") from error


def remedy(folder: Path) -> str:
    """What to do after a failed write: which checkpoint is kept, and how to continue from it."""
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        if checkpoint_damage(path := folder / name) is None:
            step = "" if isinstance(state := _read(path), str) else f" (step {state.get('step')})"
            return f"{path}{step} is the last good one: free space, then continue with --resume"
    return f"{folder} holds no checkpoint: free space, then start the run again in another folder (--out)"


@contextmanager
def disk_errors(run: Path, target: Path) -> Iterator[None]:
    """Turn a failed write of a run's file into one line that names the file, the last good checkpoint and the remedy.

    Args:
        run: the run folder.
        target: the file or folder that is written, for errors that do not name one.

    Raises:
        BadFolder: the disk is full or does not work.
    """
    try:
        yield
    except (OSError, BadFolder) as error:
        cause = error.__cause__ if isinstance(error, BadFolder) else error
        if not isinstance(cause, OSError) or cause.errno not in DISK:
            raise
        raise BadFolder(f"{target}: cannot be written: {DISK[cause.errno]}; {remedy(run / 'state')}") from error


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest whole checkpoint, on the CPU; says so where that is not the newest one.

    Only tensors and plain values are read: nothing in the file can run code. Raises BadFolder where there is none.
    """
    path, before = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
    if not path.exists() and not before.exists():
        raise BadFolder(f"{path}: there is no checkpoint to resume from; start the run without --resume")
    state = _read(path)
    if isinstance(state, str):
        wrong, state = state, _read(before)
        if isinstance(state, str):
            raise BadFolder(
                f"{path}: the checkpoint cannot be read ({wrong}), nor can the one before it, {before.name} ({state}); "
                "put a copy of either back, or start the run again in another folder (--out)"
            )
        words = (path, wrong, before.name, state.get("step"))
        log.warning("%s is damaged (%s): going on from the one before it, %s, after step %s", *words)
        path = before
    if state.get("format") != CHECKPOINT_FORMAT:
        raise BadFolder(f"{path}: written by another version of fairweather (format {state.get('format')})")
    return state


def rank_state(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """What process `rank` of `size` goes on from. Raises BadSettings where another number of them wrote it."""
    others = state.pop("others", [])
    if len(others) + 1 != size:
        raise BadSettings(
            f"run.devices is {size}, but {len(others) + 1} processes wrote the checkpoint, each with a history of "
            "fakes and a random state of its own; resume with as many"
        )
    if rank == 0:
        return state
    mine = others[rank - 1]
    return {**state, "engine": {**state["engine"], **mine["engine"]}, "random": mine["random"]}


class _Summing:
    """A file that adds up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, 0

    def write(self, data: Any) -> int:
        self.sum = zlib.crc32(data, self.sum)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file; None where it is whole."""
    try:
        left = path.stat().st_size - len(TRAILER) - 8
        with open(path, "rb") as file:
            found = 0
            while left > 0 and (data := file.read(min(left, 2**20))):
                found, left = zlib.crc32(data, found), left - len(data)
            trailer = file.read()
    except OSError as error:
        return error.strerror or str(error)
    if not trailer.startswith(TRAILER):
        return "there is no checksum at its end: cut off, or written by an older fairweather"
    return None if trailer == TRAILER + b"%08x" % found else "its checksum is wrong"


def _read(path: Path) -> dict[str, Any] | str:
    """The checkpoint, or what is wrong with it."""
    if (wrong := checkpoint_damage(path)) is not None:
        return wrong
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a whole file may still be no checkpoint of ours
        return str(error).partition("\n")[0]
    return state


def seed_everything(seed: int) -> None:
    """Start every global random generator of this process from `seed`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states() -> dict[str, Any]:
    """The state of every global random generator that a network may draw from."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on drawing where `random_states` was taken."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
