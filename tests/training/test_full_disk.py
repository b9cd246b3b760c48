"""A training whose disk fills ends in one line: the file, the last good checkpoint, the remedy; --resume continues."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairweather import cli
from fairweather.commands import train as verb
from fairweather.errors import BadFolder
from fairweather.training import checkpoint
from fairweather.training.run_log import TrainingLog
from tests.training.toy import no_export, small_run


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)


class Full:
    """A file of which some bytes are written, then no more, on closing it neither."""

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
    """The real zip writer of torch, with a disk behind it that takes half of the third checkpoint."""
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
    out = tmp_path / "run"
    options: dict[str, Any] = {"steps": 6, "checkpoint_steps": 2, "sample_steps": 3}
    monkeypatch.setattr(verb, "parse", lambda *_: lambda: small_run("supervised", out, **options) and 0)
    with monkeypatch.context() as patched:
        fill(patched)
        assert cli.main(["train"]) == 1, "an error of ours"
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith(f"fairweather: error: {out / name}: ")
    assert "No space left" in last or "disk is full" in last
    assert f"{out / 'state' / 'latest.pt'} (step 2) is the last good one" in last
    assert "--resume" in last
    assert not list(out.rglob(".*")), "no half checkpoint or sheet"
    assert checkpoint.load_checkpoint(out / "checkpoints")["step"] == 2
    small_run("supervised", out, resume=True, **options)
    assert checkpoint.load_checkpoint(out / "checkpoints")["step"] == 6


def test_the_first_checkpoint_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadFolder, match=r"latest\.pt: .*holds no checkpoint.*--out"):
        small_run("supervised", tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_other_errors_keep_their_words(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match=r"^something else$"), checkpoint.disk_errors(tmp_path, tmp_path / "a"):
        raise BadFolder("something else")
    with pytest.raises(PermissionError), checkpoint.disk_errors(tmp_path, tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")
