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
from fairweather.training import checkpoint


def test_a_failed_write_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_checkpoint(tmp_path, {"step": 1, "weights": torch.arange(4.0)})

    def half(_: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(BadFolder, match=r"latest\.pt: .*No space left.*\(step 1\) is the last good one.*--resume"):
        checkpoint.save_checkpoint(tmp_path, {"step": 2})
    kept = checkpoint.load_checkpoint(tmp_path)
    assert kept["step"] == 1
    assert torch.equal(kept["weights"], torch.arange(4.0))
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    checkpoint.save_checkpoint(tmp_path, {"evil": Evil()})
    with pytest.raises(BadFolder, match=r"cannot be read \(Weights only load failed"):
        checkpoint.load_checkpoint(tmp_path)


def two(folder: Path) -> tuple[Path, bytes]:
    """Two checkpoints, of steps 3 and 4; the newest one's file and its bytes."""
    for step in (3, 4):
        checkpoint.save_checkpoint(
            folder, {"step": step, "weights": {str(size): torch.randn(size) for size in (7, 40, 7)}}
        )
    path = folder / "latest.pt"
    return path, path.read_bytes()


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    path, _ = two(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["previous.pt", "latest.pt"]
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 4
    path.unlink()
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


def test_a_damaged_checkpoint_is_noticed_wherever_the_damage_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = two(tmp_path)
    for at in range(0, len(whole), 53):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert checkpoint.load_checkpoint(tmp_path)["step"] == 3, f"bit {at % 8} of byte {at}"
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert checkpoint.load_checkpoint(tmp_path)["step"] == 3, f"cut off at {length}"
    assert "latest.pt is damaged" in caplog.messages[-1]
    assert "previous.pt, after step 3" in caplog.messages[-1]
    path.write_bytes(whole)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 4


def test_a_damaged_one_never_takes_the_place_of_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = two(tmp_path)
    path.write_bytes(whole[:-20])
    monkeypatch.setattr(checkpoint, "_written", set())  # as in another process
    checkpoint.save_checkpoint(tmp_path, {"step": 5})
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 5
    path.unlink()
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


def test_where_both_are_damaged_it_says_what_to_do(tmp_path: Path) -> None:
    path, whole = two(tmp_path)
    path.write_bytes(whole[:-1])
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(BadFolder, match=r"latest\.pt.*previous\.pt.*put a copy of either back.*--out"):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", pickle.dumps({"format": 1}, protocol=2)[:-3]])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest.pt").write_bytes(content)
    with pytest.raises(BadFolder, match=r"latest\.pt"):
        checkpoint.load_checkpoint(tmp_path)


def test_random_states_round_trip(tmp_path: Path) -> None:
    import random

    import numpy as np

    checkpoint.save_checkpoint(tmp_path, {"random": checkpoint.random_states()})
    first = torch.rand(3), random.random(), np.random.rand()
    checkpoint.set_random_states(checkpoint.load_checkpoint(tmp_path)["random"])
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
    with pytest.raises(BadFolder, match=r"latest\.pt: .*No space left on device.*no checkpoint.*--out"):
        checkpoint.save_checkpoint(tmp_path, {"step": 1})
    assert not list(tmp_path.iterdir())
