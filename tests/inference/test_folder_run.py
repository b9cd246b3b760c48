"""The run over many photos: overlap, failures, full disks, Ctrl-C."""

from __future__ import annotations

import errno
import os
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
from fairweather.errors import BadCard, BadFolder, BadImage
from fairweather.inference import batch
from fairweather.inference.batch import Job, plan_batch, run_batch
from tests.inference.places import InMemory, negative, put


def test_a_run_restores_and_reports(here: Path) -> None:
    put(here / "in" / "a.png", here / "in" / "s" / "b.png")
    report = run_batch(plan_batch(["in"], "out"), negative)
    assert (report.done, report.skipped, report.failed, report.pixels) == (2, 0, [], 2 * 48)
    assert report.seconds > 0
    for name in ("a.png", "s/b.png"):
        assert (images.read(here / "out" / name).pixels == 215).all()


def test_what_exists_is_skipped_unless_overwritten(here: Path) -> None:
    put(here / "a.png", here / "b.png")
    put(here / "restored" / "a.png", value=7)
    jobs = plan_batch(["a.png", "b.png"])
    report = run_batch(jobs, negative)
    assert (report.done, report.skipped) == (1, 1)
    assert (images.read("restored/a.png").pixels == 7).all()
    report = run_batch(jobs, negative, overwrite=True)
    assert (report.done, report.skipped) == (2, 0)
    assert (images.read("restored/a.png").pixels == 215).all()


def test_bad_files_are_reported_and_the_rest_is_done(here: Path) -> None:
    put(*(here / "in" / f"{i:02}.png" for i in range(12)))
    bad = {"03.png": b"", "07.png": b"not a picture", "11.png": Path("in/00.png").read_bytes()[:45]}
    for name, data in bad.items():
        (here / "in" / name).write_bytes(data)
    report = run_batch(plan_batch(["in"], "out"), negative)
    assert report.done == 9
    assert sorted(path.name for path, _ in report.failed) == sorted(bad)
    for path, message in report.failed:
        assert str(path) in message
    assert sorted(os.listdir("out")) == sorted({f"{i:02}.png" for i in range(12)} - set(bad))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_max_pixels_reaches_the_reader(strength: float, here: Path) -> None:
    put(here / "a.png")
    report = run_batch([Job(Path("a.png"), Path("out/a.bmp"))], negative, strength=strength, max_pixels=47)
    assert [message for _, message in report.failed if "--max-pixels 48" in message]
    assert not Path("out/a.bmp").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("engine said no"), "engine said no"),
        (BadImage("odd"), "odd"),
    ],
)
def test_a_photo_that_the_network_refuses_is_one_failure(error: Exception, told: str, here: Path) -> None:
    put(here / "a.png", here / "c.png")
    put(here / "b.png", value=1)

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == 1:
            raise error
        return pixels

    report = run_batch(plan_batch(["*.png"]), restore)
    assert report.done == 2
    ((path, message),) = report.failed
    assert path == Path("b.png")
    assert told in message
    assert "b.png" in message


def test_a_network_of_the_wrong_size_is_told(here: Path) -> None:
    put(here / "a.png")
    report = run_batch(plan_batch(["a.png"]), lambda pixels: pixels[:-1])
    assert "cannot replace" in report.failed[0][1]


def test_an_error_about_the_model_ends_the_run(here: Path) -> None:
    put(*(here / f"{i}.png" for i in range(5)))

    def restore(pixels: np.ndarray) -> np.ndarray:
        raise BadCard("weights are gone")

    with pytest.raises(BadCard, match="weights are gone"):
        run_batch(plan_batch(["*.png"]), restore)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_full_disk_ends_the_run_with_one_error(strength: float, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(here / "in" / f"{i}.png" for i in range(30)))
    replace, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadFolder, match=r"disk is full.*\[stopped; \d of 30 photos are done\]"):
        run_batch(plan_batch(["in"], "out"), negative, strength=strength)
    assert len(calls) < 12
    assert len(list((here / "out").iterdir())) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full(here: Path, rng: np.random.Generator) -> None:
    (here / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        (here / "in").mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(f"in/{i}.png")
        with pytest.raises(BadFolder, match="disk is full"):
            run_batch(plan_batch(["in"], "disk"), negative)
        for path in Path("disk").iterdir():
            assert not path.name.startswith(".")
            images.read(path)
    finally:
        subprocess.run(["umount", "disk"], check=True)


def test_strength_zero_copies_byte_for_byte(here: Path) -> None:
    Path("a.jpg").write_bytes(b"\xff\xd8\xff whatever this is")
    put(here / "b.png")

    def never(pixels: np.ndarray) -> np.ndarray:
        raise AssertionError

    report = run_batch(plan_batch(["a.jpg", "b.png"]), never, strength=0)
    assert report.done == 2
    for name in ("a.jpg", "b.png"):
        assert Path("restored", name).read_bytes() == Path(name).read_bytes()
    assert run_batch([Job(Path("b.png"), Path("c.bmp"))], never, strength=0).done == 1
    with Image.open("c.bmp") as other:
        assert other.format == "BMP"


def test_strength_zero_of_what_has_gone(here: Path) -> None:
    put(here / "a.png", here / "b.png")
    jobs = plan_batch(["*.png"])
    Path("a.png").unlink()
    report = run_batch(jobs, negative, strength=0)
    assert report.done == 1
    assert "a.png" in report.failed[0][1]
    assert os.listdir("restored") == ["b.png"]


def test_an_unknown_suffix_keeps_its_format(here: Path) -> None:
    put(here / "scan.dat")
    assert run_batch(plan_batch(["scan.dat"]), negative).done == 1
    with Image.open("restored/scan.dat") as again:
        assert again.format == "PNG"


def test_reading_restoring_and_writing_overlap(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One photo is read, one restored and one written at the same time: each waits for the other two."""
    put(*(here / f"{i}.png" for i in range(3)))
    read, write = batch.read, batch.write
    written, restored = threading.Event(), threading.Event()
    together = threading.Barrier(3)

    def meeting_read(path: Path, **k: Any) -> Any:
        if path.name == "2.png":
            assert written.wait(10)
            assert restored.wait(10)
            together.wait(10)
        return read(path, **k)

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == 41:
            restored.set()
            together.wait(10)
        return pixels

    def meeting_write(path: Path, photo: Any) -> None:
        if path.name == "0.png":
            written.set()
            together.wait(10)
        write(path, photo)

    put(here / "1.png", value=41)
    monkeypatch.setattr(batch, "read", meeting_read)
    monkeypatch.setattr(batch, "write", meeting_write)
    monkeypatch.setattr(batch, "_max_in_flight", lambda: 3)
    report = run_batch(plan_batch(["*.png"]), restore)
    assert (report.done, report.failed) == (3, [])


def test_lines_come_in_the_order_of_the_photos(here: Path) -> None:
    """The first photo is the last one done; what is said of a photo is said in the thread that restored it."""
    put(*(here / f"{i}.png" for i in range(4)))
    put(here / "0.png", value=1)
    ended, last = [], threading.local()

    def restore(pixels: np.ndarray) -> np.ndarray:
        last.seen = int(pixels[0, 0, 0])
        if last.seen == 1:
            deadline = time.monotonic() + 10
            while len(ended) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        ended.append(last.seen)
        return pixels

    lines: list[tuple[str, str, int]] = []
    report = run_batch(
        plan_batch(["*.png"]),
        restore,
        said=lambda job: str(last.seen),
        tell=lambda job, line: lines.append((job.source.name, line, threading.get_ident())),
    )
    assert report.done == 4
    assert ended == [40, 40, 40, 1]
    here_thread = threading.get_ident()
    assert lines == [(f"{i}.png", "1" if i == 0 else "40", here_thread) for i in range(4)]


@pytest.mark.parametrize("slow", ["restore", "write"])
def test_few_photos_are_in_memory_at_once(slow: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(here / f"{i:02}.png" for i in range(24)))
    held = InMemory(monkeypatch, 0.02 if slow == "write" else 0)

    def restore(pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.02 if slow == "restore" else 0)
        return pixels

    monkeypatch.setattr(batch, "_max_in_flight", lambda: 3)
    assert run_batch(plan_batch(["*.png"]), restore).done == 24
    assert 2 <= held.most <= 3


def test_the_bar_is_drawn_on_a_terminal_only(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(here / "a.png", here / "b.png")
    run_batch(plan_batch(["*.png"]), negative)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_batch(plan_batch(["*.png"]), negative, overwrite=True, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    run_batch(plan_batch(["*.png"]), negative, overwrite=True)
    drawn = capsys.readouterr().err
    assert "2/2" in drawn
    assert "photos/s" in drawn


def test_real_photos_survive_a_run(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "real" / "hazy_photos"
    jobs = plan_batch([source], tmp_path)[:3]
    assert run_batch(jobs, negative).failed == []
    for job in jobs:
        before, after = images.read(job.source), images.read(job.destination)
        assert after.kind == before.kind
        assert np.abs(after.pixels.astype(int) - negative(before.pixels)).mean() < 6


def test_what_is_no_picture_is_not_copied_at_strength_zero(here: Path) -> None:
    put(here / "in" / "a.png")
    (here / "in" / "empty.jpg").touch()
    (here / "in" / "text.jpg").write_text("Dear diary, today it was foggy.\n")
    report = run_batch(plan_batch(["in"], "out"), negative, strength=0)
    assert (report.done, [path.name for path, _ in report.failed]) == (1, ["empty.jpg", "text.jpg"])
    assert os.listdir("out") == ["a.png"]


def test_what_is_to_stay_is_copied_byte_for_byte(here: Path) -> None:
    put(here / "in" / "dark.png", value=10)
    put(here / "in" / "light.png", value=200)
    told = []
    report = run_batch(
        plan_batch(["in"]),
        lambda pixels: None if pixels.mean() < 100 else negative(pixels),
        tell=lambda job, line: told.append(job.source.name),
    )
    assert (report.done, report.unchanged, report.pixels) == (2, 1, 48)
    assert (here / "restored" / "dark.png").read_bytes() == (here / "in" / "dark.png").read_bytes()
    assert images.read(here / "restored" / "light.png").pixels[0, 0, 0] == 55
    assert told == ["dark.png", "light.png"]
