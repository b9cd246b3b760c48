"""Checkpoints: complete or recognized as damaged, nothing in them runs code; a full disk is one line with a remedy."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairweather import cli
from fairweather.commands import train as command
from fairweather.errors import BadFolder
from fairweather.training import checkpoint
from fairweather.training.run_log import TrainingLog
from tests.training.toy import no_export, small_run


def save(folder: Path, **parts: Any) -> None:
    state: dict[str, Any] = {"step": 1, "seconds": 0.0, "engine": {}, "random": checkpoint.random_states()}
    checkpoint.save_checkpoint(folder, {**state, **parts})


def two(folder: Path) -> tuple[Path, bytes]:
    """Write checkpoints of steps 3 and 4; return the newest one's file and bytes."""
    small = dict.fromkeys(("torch", "cuda", "python", "numpy"))
    for step in (3, 4):
        engine = {str(size): torch.randn(size) for size in (7, 40, 7)}
        save(folder, step=step, engine=engine, random=small)
    path = folder / "latest.pt"
    return path, path.read_bytes()


def test_a_failed_write_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, engine={"weights": torch.arange(4.0)})

    def half(_: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(BadFolder, match=r"latest\.pt: .*No space left.*\(step 1\) is the last good one.*--resume"):
        save(tmp_path, step=2)
    kept = checkpoint.load_checkpoint(tmp_path)
    assert kept["step"] == 1
    assert torch.equal(kept["engine"]["weights"], torch.arange(4.0))
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pt"]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    save(tmp_path, engine={"evil": Evil()})
    with pytest.raises(BadFolder, match=r"cannot be read \(Weights only load failed"):
        checkpoint.load_checkpoint(tmp_path)


def test_the_newest_and_the_previous_one_are_kept(tmp_path: Path) -> None:
    path, _ = two(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 4
    path.unlink()
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


def test_any_damage_is_recognized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, whole = two(tmp_path)
    for at in range(0, len(whole), 53):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert checkpoint.load_checkpoint(tmp_path)["step"] == 3, f"bit {at % 8} of byte {at}"
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert checkpoint.load_checkpoint(tmp_path)["step"] == 3, f"cut off at {length}"
    assert "latest.pt is damaged" in caplog.messages[-1]
    assert "previous.pt, after step 3" in caplog.messages[-1]
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(BadFolder, match=r"latest\.pt.*previous\.pt.*restore either from a copy.*--out"):
        checkpoint.load_checkpoint(tmp_path)
    path.write_bytes(whole)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 4


def test_a_damaged_one_never_replaces_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = two(tmp_path)
    path.write_bytes(whole[:-20])
    monkeypatch.setattr(checkpoint, "_written", set())  # as in another process
    save(tmp_path, step=5)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 5
    path.unlink()
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", pickle.dumps({"format": 1}, protocol=2)[:-3]])
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest.pt").write_bytes(content)
    with pytest.raises(BadFolder, match=r"latest\.pt"):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"format": 1}, "another version.*format 1"),
        *(({name: None}, f"`{name}` is missing or invalid") for name in ("step", "seconds", "engine", "random")),
        ({"step": True}, "`step`"),
        ({"random": {}}, "random states lack torch, cuda, python, numpy"),
    ],
    ids=str,
)
def test_complete_files_that_are_no_checkpoints(
    tmp_path: Path, parts: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.save
    if not isinstance(parts, dict):
        monkeypatch.setattr(torch, "save", lambda _, file: write(parts, file))
    save(tmp_path, **(parts if isinstance(parts, dict) else {}))
    with pytest.raises(BadFolder, match=rf"latest\.pt.*{words}"):
        checkpoint.load_checkpoint(tmp_path)


def test_random_states_round_trip(tmp_path: Path) -> None:
    save(tmp_path)
    first = torch.rand(3), random.random(), np.random.rand()
    states = checkpoint.load_checkpoint(tmp_path)["random"]
    checkpoint.set_random_states(states)
    second = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    for name, value in (("torch", torch.zeros(0, dtype=torch.uint8)), ("python", (3, [], None)), ("numpy", [])):
        with pytest.raises(BadFolder, match="random state"):
            checkpoint.set_random_states({**states, name: value})
    checkpoint.set_random_states(states)


def test_torchs_error_on_a_full_disk_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, file: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("unexpected pos 544640 vs 544528")  # torch's zip writer on closing

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadFolder, match=r"latest\.pt: .*No space left on device.*no checkpoint.*--out"):
        save(tmp_path)
    assert not list(tmp_path.iterdir())


class Full:
    """A file that accepts a number of bytes; further writes, flushing and closing fail."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        return self.flush() or len(data)

    def flush(self) -> None:
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    close = flush


def checkpoints(patched: pytest.MonkeyPatch) -> None:
    """torch's zip writer, on a disk that fills during the third checkpoint."""
    count, real = 0, checkpoint._Summing.write

    def write(self: Any, data: Any) -> int:
        nonlocal count
        if self.sum == 0:
            count += 1
        if count == 3 and self.file.tell() > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    patched.setattr(checkpoint._Summing, "write", write)


def stats(patched: pytest.MonkeyPatch) -> None:
    entered = TrainingLog.__init__

    def __init__(self: TrainingLog, *arguments: Any, **named: Any) -> None:  # noqa: N807
        entered(self, *arguments, **named)
        self._file.close()
        self._file = Full(300)  # type: ignore[assignment]

    patched.setattr(TrainingLog, "__init__", __init__)


def sheets(patched: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write_bytes(self: Path, data: bytes) -> int:
        if self.suffix == ".jpg":
            with builtins.open(self, "wb") as file:
                file.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    patched.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize(
    ("fill", "name"),
    [(checkpoints, "checkpoints/latest.pt"), (stats, "stats.jsonl"), (sheets, "samples/step-0000003.jpg")],
)
def test_a_disk_that_fills(
    fill: Callable[[pytest.MonkeyPatch], None],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_export(monkeypatch)
    out = tmp_path / "run"
    options: dict[str, Any] = {"steps": 6, "checkpoint_steps": 2, "sample_steps": 3}
    monkeypatch.setattr(command, "parse", lambda *_: lambda: small_run("supervised", out, **options) and 0)
    with monkeypatch.context() as patched:
        fill(patched)
        assert cli.main(["train"]) == 1, "an error of ours"
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith(f"fairweather: error: {out / name}")
    assert "No space left" in last or "disk is full" in last
    assert f"{out / 'checkpoints' / 'latest.pt'} (step 2) is the last good one" in last
    assert "--resume" in last
    assert not list(out.rglob(".*")), "no half checkpoint or sheet"
    assert checkpoint.load_checkpoint(out / "checkpoints")["step"] == 2
    small_run("supervised", out, resume=True, **options)
    assert checkpoint.load_checkpoint(out / "checkpoints")["step"] == 6


def test_the_first_checkpoint_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadFolder, match=r"latest\.pt: .*contains no checkpoint.*--out"):
        small_run("supervised", tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_other_errors_keep_their_message(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"^something else$"), checkpoint.disk_errors(tmp_path, tmp_path / "a"):
        raise BadFolder("something else")
    with pytest.raises(PermissionError), checkpoint.disk_errors(tmp_path, tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")
