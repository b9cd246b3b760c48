"""A checkpoint is the old one or the new one, and nothing in it can run code."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fairweather.errors import BadFolder
from fairweather.training import state


def test_a_failed_write_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(tmp_path, {"step": 1, "weights": torch.arange(4.0)})

    def half(_: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(BadFolder, match=r"state\.pt.*disk is full.*one before it is kept"):
        state.save(tmp_path, {"step": 2})
    kept = state.load(tmp_path)
    assert kept["step"] == 1
    assert torch.equal(kept["weights"], torch.arange(4.0))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "state.pt")
    with pytest.raises(BadFolder, match="cannot be read"):
        state.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", pickle.dumps({"format": 1}, protocol=2)[:-3]])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(BadFolder, match=r"state\.pt"):
        state.load(tmp_path)


def test_random_states_round_trip(tmp_path: Path) -> None:
    import random

    import numpy as np

    state.save(tmp_path, {"random": state.random_states()})
    first = torch.rand(3), random.random(), np.random.rand()
    state.set_random_states(state.load(tmp_path)["random"])
    second = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, file: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos 544640 vs 544528")  # what torch's zip writer says on closing

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadFolder, match=r"state\.pt: .*No space left on device.*--resume"):
        state.save(tmp_path, {"step": 1})
    assert not list(tmp_path.iterdir())
