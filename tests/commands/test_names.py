"""Names that are too long, and names that are not UTF-8."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from fairweather import cli
from tests.commands.test_outputs import LONG, Line, prepared, put

INPUTS: dict[str, Line] = {
    "restore": ["restore", f"{LONG}.png"],
    "restore a folder": ["restore", LONG],
    "restore a video": ["restore", f"{LONG}.mp4"],
    "restore frames": ["restore", LONG, "--video"],
    "restore by a model": ["restore", "frames/1.png", "--model", f"./{LONG}"],
    "evaluate": ["evaluate", "--model", "model", "--data", LONG],
    "evaluate a model": ["evaluate", "--model", f"./{LONG}", "--data", "set"],
    "unpaired": ["evaluate", "--model", "model", "--unpaired", LONG],
    "export": ["export", f"./{LONG}", "-o", "out"],
    "export photos": ["export", "model", "-o", "out", "--photos", LONG],
    "quantize": ["quantize", f"./{LONG}", "--method", "dynamic", "-o", "out"],
    "quantize data": ["quantize", "model", "--method", "static", "--data", LONG, "-o", "out"],
    "synthesize": ["synthesize", "haze", LONG, "-o", "out"],
    "synthesize by a model": ["synthesize", "haze", "frames", "--model", f"./{LONG}", "-o", "out"],
    "check-data": ["check-data", LONG],
    "check-data against": ["check-data", "set", "--against", LONG],
    "plot": ["plot", LONG],
    "train": ["train", "supervised", "--data", LONG, "--out", "new"],
    "train unpaired": ["train", "cyclegan", "--degraded", LONG, "--clear", "set/clear", "--out", "new"],
    "train with a config": ["train", "supervised", "--data", "set", "--config", f"{LONG}.toml"],
    "train from a start": ["train", "supervised", "--data", "set", "--start", f"./{LONG}", "--out", "new"],
    "resume": ["train", "--resume", "--out", LONG],
    "info": ["info", f"./{LONG}"],
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_whose_name_is_too_long_is_one_line(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path, tiny_model)
    assert cli.main(INPUTS[name]) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") + error.count("not restored: ") == 1, error
    assert LONG in error


ODD = os.fsdecode(b"caf\xe9.png")
"""A name in Latin-1."""
NAMED: dict[str, Line] = {
    "restore": ["restore", "odd/clear", "-o", "out", "--weather", "none"],
    "restore one": ["restore", f"odd/clear/{ODD}", "-o", f"out/{ODD}", "--weather", "none"],
    "evaluate": ["evaluate", "--model", "model", "--data", "odd", "-o", "out", "--sheet", "all", "--photos"],
    "unpaired": ["evaluate", "--model", "model", "--unpaired", "odd/hazy", "-o", "out", "--photos"],
    "unpaired without": ["evaluate", "--model", "model", "--unpaired", "odd/hazy"],
    "video": ["restore", os.fsdecode(b"vid\xe9o.mp4"), "-o", os.fsdecode(b"n\xe9w.mkv"), "--weather", "none"],
    "frames": ["restore", os.fsdecode(b"vid\xe9o.mp4"), "-o", os.fsdecode(b"out/\xe9%d.png"), "--weather", "none"],
    "synthesize": ["synthesize", "haze", f"odd/clear/{ODD}", "-o", f"out/{ODD}"],
    "check-data": ["check-data", "odd", "--json", "found.json"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take UTF-8 alone")
@pytest.mark.parametrize("name", NAMED)
def test_names_that_are_not_utf8(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path, tiny_model)
    for side in ("hazy", "clear"):
        shutil.move(put(tmp_path / "odd" / side / "a.png"), tmp_path / "odd" / side / ODD)
    (tmp_path / "odd" / "hazy" / os.fsdecode(b"broken\xe9.png")).write_bytes(b"no picture")
    (tmp_path / "odd" / "clear" / os.fsdecode(b"broken\xe9.png")).write_bytes(b"no picture")
    (tmp_path / "a.mp4").rename(os.fsdecode(b"vid\xe9o.mp4"))
    broken = {"restore": 3, "restore one": 0, "synthesize": 0, "video": 0, "frames": 0}.get(name, 3)
    assert cli.main(NAMED[name]) == broken
    captured = capsys.readouterr()
    captured.out.encode()  # all of it can be printed
    if broken:
        assert "broken\\udce9" in captured.out + captured.err.encode(errors="backslashreplace").decode()
    for table in (tmp_path / "out").glob("*.csv"):
        assert "caf\\udce9" in table.read_text(encoding="utf-8")
