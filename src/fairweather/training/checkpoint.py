"""Checkpoints: the newest and the previous one, each complete or recognized as damaged, even after a power failure."""

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

CHECKPOINT_FORMAT = 2
CHECKPOINT_NAME = "latest.pt"
PREVIOUS_NAME = "previous.pt"
TRAILER = b"\ncrc32 "
"""Follows torch's zip, with eight hexadecimal digits: torch.load verifies no checksum, and those inside the zip do not
cover its own headers, so a changed bit can give a tensor another one's bytes."""
_PARTS: dict[str, Any] = {"step": int, "seconds": (int, float), "engine": dict, "random": dict}
_RANDOM = ("torch", "cuda", "python", "numpy")
# Written by this process, so known to be complete without reading them again.
_written: set[Path] = set()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `folder/latest.pt`; when it is complete, the old one becomes `previous.pt`, unless that is damaged.

    Raises:
        BadFolder: the checkpoint cannot be written; existing ones are unchanged.
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
            # A damaged file never replaces a good one. Between this rename and the next there is no latest.pt, and
            # `load_checkpoint` reads previous.pt.
            if path.exists() and (path in _written or checkpoint_damage(path) is None):
                os.replace(path, folder / PREVIOUS_NAME)
        _written.add(path)
    except (OSError, RuntimeError, BadFolder) as error:
        # torch's zip writer reports a full disk as a RuntimeError, raised while handling the actual OSError.
        hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
        reason = error.__context__ if hidden else error
        while isinstance(reason, BadFolder) and isinstance(reason.__cause__, OSError):
            reason = reason.__cause__
        why = getattr(reason, "strerror", None) or reason
        raise BadFolder(f"{path}: the checkpoint cannot be written ({why}): {remedy(folder)}") from error


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the newest complete checkpoint, to the CPU; warn if it is the previous one.

    Only tensors and plain values are unpickled: nothing in the file can run code.

    Raises:
        BadFolder: there is no checkpoint, or none can be read.
    """
    path, previous = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
    if not path.exists() and not previous.exists():
        raise BadFolder(f"{path}: there is no checkpoint to resume from: start the run without --resume")
    state = _read(path)
    if isinstance(state, str):
        damage, state = state, _read(previous)
        if isinstance(state, str):
            raise BadFolder(
                f"{path}: the checkpoint cannot be read ({damage}), nor the previous one, {previous.name} ({state}): "
                "restore either from a copy, or start the run again in another folder (--out)"
            )
        words = (path, damage, previous.name, state["step"])
        log.warning("%s is damaged (%s): resuming from the previous one, %s, after step %s", *words)
    return state


def process_checkpoint(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """The part of a checkpoint for process `rank` of `size`. Raises BadSettings if another number of them wrote it."""
    others = state.pop("others", [])
    if len(others) + 1 != size:
        raise BadSettings(
            f"run.devices is {size}, but {len(others) + 1} processes wrote the checkpoint, each with its own sample "
            "histories and random state: resume with as many"
        )
    if rank == 0:
        return state
    own = others[rank - 1]
    return {**state, "engine": {**state["engine"], **own["engine"]}, "random": own["random"]}


def remedy(folder: Path) -> str:
    """What to do after a failed write: the last good checkpoint, and how to resume from it."""
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        if not isinstance(state := _read(folder / name), str):
            return f"{folder / name} (step {state['step']}) is the last good one: free space, then resume with --resume"
    return f"{folder} contains no checkpoint: free space, then start the run again in another folder (--out)"


@contextmanager
def disk_errors(run: Path, target: Path) -> Iterator[None]:
    """Turn a failed write of a run's file into an error that names the file, the last good checkpoint and the remedy.

    Args:
        run: the run folder.
        target: the file or folder that is written, for errors that do not name one.

    Raises:
        BadFolder: the disk is full or failing.
    """
    try:
        yield
    except (OSError, BadFolder) as error:
        cause = error.__cause__ if isinstance(error, BadFolder) else error
        if not isinstance(cause, OSError) or cause.errno not in DISK:
            raise
        raise BadFolder(f"{target} cannot be written ({DISK[cause.errno]}): {remedy(run / 'checkpoints')}") from error


def checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if it is complete."""
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
        return "it has no checksum at its end: the file is truncated, or from an older version"
    return None if trailer == TRAILER + b"%08x" % found else "its checksum is wrong"


def seed_everything(seed: int) -> None:
    """Seed every global random generator of this process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states() -> dict[str, Any]:
    """The state of every global random generator that a network may use."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned. Raises BadFolder if it is not a state."""
    try:
        torch.set_rng_state(states["torch"])
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(states["cuda"])
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BadFolder(f"the checkpoint contains an invalid random state ({error}): start the run again") from error


class _Summing:
    """A file wrapper that computes the checksum of the written data."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, 0

    def write(self, data: Any) -> int:
        self.sum = zlib.crc32(data, self.sum)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _read(path: Path) -> dict[str, Any] | str:
    """Return the checkpoint, or a description of what is wrong with it."""
    if (damage := checkpoint_damage(path)) is not None:
        return damage
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a complete file that is not a checkpoint
        return str(error).partition("\n")[0]
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}, not a checkpoint"
    if state.get("format") != CHECKPOINT_FORMAT:
        return f"another version of fairweather wrote it (format {state.get('format')!r}, here {CHECKPOINT_FORMAT})"
    for part, kind in _PARTS.items():
        if not isinstance(state.get(part), kind) or isinstance(state[part], bool):
            return f"its `{part}` is missing or invalid"
    if missing := [name for name in _RANDOM if name not in state["random"]]:
        return f"its random states lack {', '.join(missing)}"
    return state
