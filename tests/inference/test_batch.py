"""Batches: which input becomes which file, what is rejected before work starts, failures, full disks, interruptions."""

from __future__ import annotations

import errno
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
from fairweather.errors import BadCard, BadFolder, BadImage, BadSettings
from fairweather.inference import batch, cancellation
from fairweather.inference.batch import Job, plan, run
from fairweather.inference.restorer import RestoreOptions
from tests.inference.standins import NEGATIVE, FunctionRestorer, put

COPY = RestoreOptions(strength=0)


def pairs(jobs: list[Job]) -> set[tuple[str, str]]:
    return {(job.source, job.destination) for job in jobs}


@pytest.mark.parametrize(
    ("inputs", "out", "expected"),
    [
        (["a.png"], None, {"a.png": "restored/a.png"}),
        (["a.png"], "x/y.JPG", {"a.png": "x/y.JPG"}),
        (["a.png"], "y.v2", {"a.png": "y.v2/a.png"}),
        (["a.png"], "album.jpg", {"a.png": "album.jpg/a.png"}),  # a folder of that name exists
        (["a.png", "t/b.jpg"], "y.jpg", {"a.png": "y.jpg/a.png", "t/b.jpg": "y.jpg/b.jpg"}),
        (["t"], "out", {"t/b.jpg": "out/b.jpg", "t/u/c.png": "out/u/c.png"}),
        (["t/"], "out/", {"t/b.jpg": "out/b.jpg", "t/u/c.png": "out/u/c.png"}),
        (["t/n.txt", ".hidden.png"], "out", {"t/n.txt": "out/n.txt", ".hidden.png": "out/.hidden.png"}),
        (["t/*.jpg"], "out", {"t/b.jpg": "out/b.jpg"}),
        (["t/**/*.png"], "out", {"t/u/c.png": "out/u/c.png"}),
        (["t/*"], "out", {"t/b.jpg": "out/b.jpg", "t/u/c.png": "out/u/c.png"}),
        (["t/**"], "out", {"t/b.jpg": "out/b.jpg", "t/u/c.png": "out/u/c.png"}),
        (["?/b.*"], "out", {"t/b.jpg": "out/t/b.jpg"}),
        (["IMG[1].png"], "out", {"IMG[1].png": "out/IMG[1].png"}),
        (["a.png", "./a.png", "a.p*"], "out", {"a.png": "out/a.png"}),
    ],
)
def test_inputs_become_outputs(inputs: list[str], out: str | None, expected: dict[str, str], here: Path) -> None:
    put("a.png", "IMG[1].png", "t/b.jpg", "t/u/c.png", "t/.d.png", "t/.hidden/e.png", "t/n.txt", ".hidden.png")
    Path("album.jpg").mkdir()
    Path("t/gone.png").symlink_to("nowhere.png")
    assert pairs(plan(inputs, out)) == set(expected.items())
    assert not Path(out or "restored").exists() or out == "album.jpg"


@pytest.mark.parametrize("given", [".", "*", "**/*.png", "./**"])
def test_earlier_results_are_not_inputs(given: str, here: Path) -> None:
    put("a.png", "sub/b.png")
    first = plan([given])
    run(first, restorer=NEGATIVE)
    assert {Path(job.source).name for job in first} == {"a.png", "b.png"}
    assert plan([given]) == first
    assert run(plan([given]), restorer=NEGATIVE).skipped == 2
    assert pairs(plan(["restored"], "again")) > {("restored/a.png", "again/a.png")}


@pytest.mark.parametrize(
    ("inputs", "out", "error", "message"),
    [
        (["a.png"], ".", BadFolder, r"written over the input a\.png"),
        (["a.png"], "link", BadFolder, r"written over the input a\.png"),
        (["a.png"], "hard.png", BadFolder, r"written over the input a\.png"),
        (["x/a.png", "y/a.png"], "y", BadFolder, r"y/a\.png would be written over the input y/a\.png"),
        (["x", "y"], "out", BadFolder, r"x/a\.png and y/a\.png would both be written to out/a\.png"),
        (["none.png"], None, BadImage, r"none\.png: no such file"),
        (["empty"], None, BadFolder, "no pictures"),
        (["empty/*.png"], None, BadFolder, "no picture matches"),
        ([], None, BadSettings, "nothing to restore"),
        (["a.png"], "x/a.png/deeper", BadFolder, r"a part of that path is a file"),
        (["a.png"], "full", BadFolder, "is a folder and cannot be the output"),
    ],
)
def test_what_is_rejected(inputs: list[str], out: str | None, error: type, message: str, here: Path) -> None:
    put("a.png", "x/a.png", "y/a.png", "y/b.png")
    for folder in ("full/a.png", "empty"):
        Path(folder).mkdir(parents=True)
    Path("link").symlink_to(".")
    os.link("a.png", "hard.png")
    with pytest.raises(error, match=message):
        plan(inputs, out)
    assert not Path("out").exists()


def test_a_folder_without_write_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("a.png")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadFolder, match="cannot be written to"):
        plan(["a.png"], "out/deeper")


def test_a_run_restores_skips_and_overwrites(here: Path) -> None:
    put("in/a.png", "in/s/b.png")
    put("out/a.png", value=7)
    jobs = plan(["in"], "out")
    report = run(jobs, restorer=NEGATIVE)
    assert (report.photos, report.skipped, report.failed, report.pixels) == (1, 1, [], 48)
    assert report.seconds > 0
    assert (images.read("out/a.png").pixels == 7).all()
    assert run(jobs, RestoreOptions(overwrite=True), restorer=NEGATIVE).done == 2
    for name in ("a.png", "s/b.png"):
        assert (images.read(f"out/{name}").pixels == 215).all()


def test_the_summary_counts_everything() -> None:
    jobs = [Job("a", "out/a"), Job("b", "out/deep/b"), Job("c", "out/c", video=True)]
    report = batch.Report(photos=1, unchanged=1, failed=[("c", "")], seconds=2.0)
    assert report.summary(jobs) == "1 of 2 photos and 0 of 1 videos restored in 2.0 s, 1 unchanged, 1 failed: out"
    assert batch.Report(failed=[("a", "")]).summary(jobs[:1]) == "0 of 1 photos restored in 0.0 s, 1 failed"
    part = batch.Report(videos=1, frames=50, skipped=2, seconds=2.0, incomplete=[("c", "")])
    assert "(50 frames, 25.0 per second), 1 incomplete, 2 skipped because" in part.summary(jobs)


def test_bad_files_are_reported_and_the_others_are_done(here: Path) -> None:
    put(*(f"in/{i:02}.png" for i in range(12)))
    bad = {"03.png": b"", "07.png": b"not a picture", "11.png": Path("in/00.png").read_bytes()[:45]}
    for name, data in bad.items():
        Path("in", name).write_bytes(data)
    for options in (RestoreOptions(), COPY):
        report = run(plan(["in"], f"out{options.strength}"), options, restorer=NEGATIVE)
        assert [Path(path).name for path, message in report.failed if path in message] == [*bad]
        assert report.done == 9
    assert sorted(os.listdir("out1.0")) == sorted({f"{i:02}.png" for i in range(12)} - set(bad))


@pytest.mark.parametrize("options", [RestoreOptions(max_pixels=47), RestoreOptions(max_pixels=47, strength=0)])
def test_max_pixels_reaches_the_reader(options: RestoreOptions, here: Path) -> None:
    put("a.png")
    ((_, message),) = run([Job("a.png", "out/a.bmp")], options, restorer=NEGATIVE).failed
    assert "--max-pixels 48" in message
    assert not Path("out/a.bmp").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("engine said no"), "engine said no"),
        (BadImage("odd"), "odd"),
        (None, "cannot replace"),  # an output of another size
    ],
)
def test_an_error_about_one_photo_is_one_failure(error: Exception | None, words: str, here: Path) -> None:
    put("a.png", "c.png")
    put("b.png", value=1)

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] != 1:
            return pixels
        if error is None:
            return pixels[:-1]
        raise error

    report = run(plan(["*.png"]), restorer=FunctionRestorer(restore))
    assert report.done == 2
    ((path, message),) = report.failed
    assert path == "b.png"
    assert words in message
    assert "b.png" in message


def test_an_error_about_the_model_ends_the_run_and_cancels_other_photos(here: Path) -> None:
    put("a.png")
    put("b.png", value=1)
    steps, begun = [], threading.Event()

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == 1:
            assert begun.wait(10)
            raise BadCard("weights are gone")
        begun.set()
        for step in range(200):
            cancellation.check_cancelled()
            steps.append(step)
            time.sleep(0.05)
        return pixels

    with pytest.raises(BadCard, match="weights are gone"):
        run(plan(["b.png", "a.png"]), restorer=FunctionRestorer(restore))
    assert len(steps) < 100
    assert not Path("restored/a.png").exists()


@pytest.mark.parametrize("options", [RestoreOptions(), COPY])
def test_a_full_disk_ends_the_run(options: RestoreOptions, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(f"in/{i}.png" for i in range(30)))
    replace, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadFolder, match=r"disk is full.*\[stopped; \d of 30 photos are done\]"):
        run(plan(["in"], "out"), options, restorer=NEGATIVE)
    assert len(calls) < 15
    assert len(os.listdir("out")) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(here: Path, rng: np.random.Generator) -> None:
    Path("disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        Path("in").mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(f"in/{i}.png")
        with pytest.raises(BadFolder, match="disk is full"):
            run(plan(["in"], "disk"), restorer=NEGATIVE)
        for path in Path("disk").iterdir():
            assert not path.name.startswith(".")
            images.read(path)
    finally:
        subprocess.run(["umount", "disk"], check=True)


def test_copies_are_byte_for_byte_and_load_no_model(here: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save("a.jpg")
    put("b.png", "c.png")
    jobs = plan(["a.jpg", "b.png", "c.png"])
    Path("c.png").unlink()
    for options in (COPY, RestoreOptions(weather="none", overwrite=True)):
        report = run(jobs, options)
        assert (report.unchanged, [path for path, _ in report.failed]) == (2, ["c.png"])
        for name in ("a.jpg", "b.png"):
            assert Path("restored", name).read_bytes() == Path(name).read_bytes()
    assert run([Job("b.png", "d.bmp")], COPY).done == 1
    with Image.open("d.bmp") as other:
        assert other.format == "BMP"


def test_photos_without_weather_are_copied(here: Path) -> None:
    put("in/dark.png", value=10)
    put("in/light.png", "in/scan.dat", value=200)
    restorer = FunctionRestorer(lambda pixels: 255 - pixels, clear=lambda pixels: pixels.mean() < 100)
    report = run(plan(["in", "in/scan.dat"]), restorer=restorer)
    assert (report.photos, report.unchanged, report.pixels) == (2, 1, 96)
    assert Path("restored/dark.png").read_bytes() == Path("in/dark.png").read_bytes()
    assert images.read("restored/light.png").pixels[0, 0, 0] == 55
    with Image.open("restored/scan.dat") as again:
        assert again.format == "PNG", "an unknown suffix keeps its format"


def test_reading_restoring_and_writing_overlap(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One photo is read, one restored and one written at the same time: each waits for the other two."""
    put(*(f"{i}.png" for i in range(3)))
    put("1.png", value=41)
    read, write = batch.read, batch.write
    written, restored = threading.Event(), threading.Event()
    together = threading.Barrier(3)

    def meeting_read(path: str, **k: Any) -> Any:
        if path == "2.png":
            assert written.wait(10)
            assert restored.wait(10)
            together.wait(10)
        return read(path, **k)

    def restore(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == 41:
            restored.set()
            together.wait(10)
        return pixels

    def meeting_write(path: str, photo: Any) -> None:
        if path.endswith("0.png"):
            written.set()
            together.wait(10)
        write(path, photo)

    monkeypatch.setattr(batch, "read", meeting_read)
    monkeypatch.setattr(batch, "write", meeting_write)
    monkeypatch.setattr(batch, "_max_in_flight", lambda: 3)
    report = run(plan(["*.png"]), restorer=FunctionRestorer(restore))
    assert (report.done, report.failed) == (3, [])


def test_lines_come_in_the_order_of_the_photos_in_the_callers_thread(here: Path) -> None:
    """The first photo is the last one done."""
    put(*(f"{i}.png" for i in range(4)))
    put("0.png", value=1)
    ended = []

    def restore(pixels: np.ndarray) -> np.ndarray:
        deadline = time.monotonic() + 10
        while pixels[0, 0, 0] == 1 and len(ended) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.append(int(pixels[0, 0, 0]))
        return pixels

    lines: list[tuple[str, int]] = []
    run(
        plan(["*.png"]),
        restorer=FunctionRestorer(restore),
        log_line=lambda line: lines.append((line, threading.get_ident())),
    )
    assert ended == [40, 40, 40, 1]
    assert lines == [(f"{i}.png: haze (100 % sure)", threading.get_ident()) for i in range(4)]


def test_the_progress_bar_needs_a_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a.png", "b.png")
    run(plan(["*.png"]), restorer=NEGATIVE)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    again = RestoreOptions(overwrite=True)
    run(plan(["*.png"]), again, restorer=NEGATIVE, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    run(plan(["*.png"]), again, restorer=NEGATIVE)
    drawn = capsys.readouterr().err
    assert "2/2" in drawn
    assert "files/s" in drawn


def test_real_photos_survive_a_run(shared_data: Path, tmp_path: Path) -> None:
    jobs = plan([shared_data / "real" / "hazy_photos"], tmp_path)[:2]
    assert run(jobs, restorer=NEGATIVE).failed == []
    for job in jobs:
        before, after = images.read(job.source), images.read(job.destination)
        assert after.kind == before.kind
        assert np.abs(after.pixels.astype(int) - (255 - before.pixels)).mean() < 6


def test_interruption_finishes_what_is_being_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(f"{i}.png" for i in range(8)))
    begun, ended, write = [], [], batch.write

    def slow_write(path: str, photo: Any) -> None:
        begun.append(path)
        time.sleep(0.1)
        write(path, photo)
        ended.append(path)

    calls = iter(range(100))

    def restore(pixels: np.ndarray) -> np.ndarray:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return pixels

    monkeypatch.setattr(batch, "write", slow_write)
    with pytest.raises(KeyboardInterrupt):
        run(plan(["*.png"]), restorer=FunctionRestorer(restore))
    assert sorted(ended) == sorted(begun)
    assert sorted(os.listdir("restored")) == sorted(Path(path).name for path in ended)


STOPPED = """
import time
from fairweather import files, images
from fairweather.inference import batch
from tests.inference.standins import FunctionRestorer

def slow(path, photo):
    with files.atomic(path) as temporary:
        temporary.write_bytes(b"half of it")
        time.sleep(0.1)
        images.write(temporary, photo)

batch.write = slow
batch.run(batch.plan(["in"], "out"), restorer=FunctionRestorer(lambda pixels: 255 - pixels))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_leaves_no_half_file_and_the_next_run_finishes(by: signal.Signals, here: Path) -> None:
    """SIGKILL leaves hidden temporary files, which the next run removes; SIGINT leaves nothing."""
    put(*(f"in/{i:02}.png" for i in range(30)))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", STOPPED], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    names: list[str] = []
    while time.monotonic() < deadline and not (sum(name[0] != "." for name in names) >= 5 and min(names)[0] == "."):
        time.sleep(0.005)
        names = os.listdir("out") if os.path.isdir("out") else []
    process.send_signal(by)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert by == signal.SIGKILL or "KeyboardInterrupt" in errors
    names = os.listdir("out")
    done = [name for name in names if not name.startswith(".")]
    assert 5 <= len(done) < 30
    assert bool(set(names) - set(done)) == (by == signal.SIGKILL)
    for name in done:
        assert (images.read(f"out/{name}").pixels == 215).all()
    report = run(plan(["in"], "out"), restorer=NEGATIVE)
    assert (report.done, report.skipped) == (30 - len(done), len(done))
    assert sorted(os.listdir("out")) == sorted(os.listdir("in"))
