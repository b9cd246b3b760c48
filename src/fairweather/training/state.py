"""Checkpoints: one file that is either the old one or the new one, whenever the power goes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairweather.errors import BadFolder
from fairweather.images import atomic

FORMAT = 1
NAME = "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `folder/state.pt`; the one before is kept until this one is whole. Raises BadFolder where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError, BadFolder) as error:
        # torch's own zip writer reports a full disk as a RuntimeError, raised while the true reason was on its way
        hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
        reason = error.__context__ if hidden else error
        raise BadFolder(
            f"{path}: the checkpoint could not be written ({getattr(reason, 'strerror', None) or reason}); the one "
            "before it is kept: make room or see to the folder, then go on with --resume"
        ) from error


def load(folder: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Only tensors and plain values are read: nothing in the file can run code."""
    path = folder / NAME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadFolder(f"{path}: there is no checkpoint to resume from; start the run without --resume") from None
    except Exception as error:  # what a cut-off file raises depends on where it was cut
        raise BadFolder(f"{path}: the checkpoint cannot be read ({error})") from error
    if state.get("format") != FORMAT:
        raise BadFolder(f"{path}: written by another version of fairweather (format {state.get('format')})")
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
