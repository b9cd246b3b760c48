"""A run that is cut short: Ctrl-C, SIGKILL, an error in the middle; nothing half done is left."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairweather import images
from fairweather.errors import BadCard
from fairweather.restoring import folder, stopping
from fairweather.restoring.folder import plan, run
from tests.restoring.places import negative, put


def test_a_photo_under_way_stops_between_two_steps(here: Path) -> None:
    """An error about the model ends the run: another photo, in the middle of its restoring, is not waited for."""
    put(here / "a.png", here / "b.png")
    put(here / "b.png", value=1)
    steps, begun = [], threading.Event()

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == 1:
            assert begun.wait(10)
            raise BadCard("weights are gone")
        begun.set()
        for step in range(200):
            stopping.check()
            steps.append(step)
            time.sleep(0.05)
        return pixels

    with pytest.raises(BadCard, match="weights are gone"):
        run(plan(["b.png", "a.png"]), restore)
    assert len(steps) < 100
    assert not Path("restored/a.png").exists()


def test_interruption_waits_for_what_is_being_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(here / f"{i}.png" for i in range(8)))
    begun, ended, write = [], [], folder.write

    def slow_write(path: Path, photo: Any) -> None:
        begun.append(path)
        time.sleep(0.1)
        write(path, photo)
        ended.append(path)

    calls = itertools.count(1)

    def restore(pixels: np.ndarray) -> np.ndarray:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return pixels

    monkeypatch.setattr(folder, "write", slow_write)
    with pytest.raises(KeyboardInterrupt):
        run(plan(["*.png"]), restore)
    assert sorted(ended) == sorted(begun)
    assert sorted(os.listdir("restored")) == sorted(path.name for path in ended)


def test_ctrl_c_leaves_no_half_file(here: Path) -> None:
    """A real SIGINT in a process of its own, in the middle of many photos."""
    Path("in").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    for i in range(200):
        picture.save(f"in/{i:03}.png", compress_level=0)
    code = """
import time
from fairweather.restoring.folder import plan, run
jobs = plan(["in"], "out")
print("ready", flush=True)
run(jobs, lambda pixels: time.sleep(0.02) or pixels)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (os.path.isdir("out") and len(os.listdir("out")) >= 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    left = sorted(os.listdir("out"))
    assert 5 <= len(left) < 200
    assert not [name for name in left if name.startswith(".")]
    for name in left[-4:]:
        images.read(Path("out", name))


def test_a_killed_run_leaves_no_half_file_and_the_next_one_finishes(here: Path) -> None:
    """SIGKILL while files are being written: what they were written to is hidden, and the next run sweeps it away."""
    put(*(here / "in" / f"{i:02}.png" for i in range(30)))
    code = """
import time
from fairweather import files, images
from fairweather.restoring import folder

def slow(path, photo):
    with files.atomic(path) as temporary:
        temporary.write_bytes(b"half of it")
        time.sleep(0.1)
        images.write(temporary, photo)

folder.write = slow
folder.run(folder.plan(["in"], "out"), lambda pixels: 255 - pixels)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    names: list[str] = []
    while time.monotonic() < deadline and not (sum(name[0] != "." for name in names) >= 5 and min(names)[0] == "."):
        time.sleep(0.005)
        names = os.listdir("out") if os.path.isdir("out") else []
    process.kill()
    process.wait()
    names = os.listdir("out")
    there = [name for name in names if not name.startswith(".")]
    assert 5 <= len(there) < 30
    assert [name for name in names if name.startswith(".")], "it was not killed in the middle of a file"
    for name in there:
        assert (images.read(Path("out", name)).pixels == 215).all()
    report = run(plan(["in"], "out"), negative)
    assert (report.done, report.skipped) == (30 - len(there), len(there))
    assert sorted(os.listdir("out")) == sorted(os.listdir("in"))
