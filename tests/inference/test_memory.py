"""Memory: sizes, photos that wait or are rejected, memory for windows, and the peak of the process."""

from __future__ import annotations

import json
import mmap
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fairweather import images
from fairweather.errors import BadImage, BadSettings
from fairweather.inference import batch, memory
from fairweather.inference.batch import plan, run
from fairweather.inference.memory import MemoryBudget, format_size, parse_size
from tests.conftest import ROOT
from tests.inference.standins import NEGATIVE, FunctionRestorer, put


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        ("1.5 GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("64KiB", 65536),
        (".5GB", 500_000_000),
        ("800000000", 800_000_000),
        ("1TB", 10**12),
    ],
)
def test_sizes_as_they_are_said(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "two GB", "2XB", "-2GB", "2,5GB", "2GB!", "0", "0GB", "2iB", "nan", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match=r"--memory.*2GB"):
        parse_size(text)


@pytest.mark.parametrize("size", [123_456_789, 999_999_999, 1_000_000_001, 2_345_678_901])
def test_a_size_that_is_said_is_enough_when_given_again(size: int) -> None:
    assert size <= parse_size(format_size(size)) <= 1.15 * size + 1e7


class InMemory:
    """Counts the photos that have been read and not yet written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self._now = 0
        self._lock, self._read, self._write = threading.Lock(), batch.read, batch.write
        monkeypatch.setattr(batch, "read", self.read)
        monkeypatch.setattr(batch, "write", self.write)

    def read(self, *a: Any, **k: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        return self._read(*a, **k)

    def write(self, *a: Any) -> None:
        self._write(*a)
        with self._lock:
            self._now -= 1


def begun(room: int, monkeypatch: pytest.MonkeyPatch, *, strict: bool = True) -> MemoryBudget:
    """A budget that has `room` bytes for photos in a process of 100 MB."""
    monkeypatch.setattr(memory, "resident_memory", lambda: 100_000_000)
    made = MemoryBudget(100_000_000 + memory.BASE_ALLOWANCE + memory.MIN_WINDOW_MEMORY + room)
    made.begin()
    made.strict = strict
    return made


def need_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    made = begun(1 << 40, monkeypatch)
    assert made.admit(path, path)
    return made.reserved[str(path)]


def test_a_photo_waits_until_there_is_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "a.png", here / "b.png", here / "c.png")
    need = need_of(Path("a.png"), monkeypatch)
    made = begun(2 * need, monkeypatch)
    assert [made.admit(Path(name), Path(name)) for name in ("a.png", "b.png", "c.png")] == [True, True, False]
    assert made.windows() == memory.MIN_WINDOW_MEMORY
    made.release(Path("a.png"))
    assert made.admit(Path("c.png"), Path("c.png"))
    assert made.windows() == memory.MIN_WINDOW_MEMORY
    made.release(Path("b.png"))
    assert made.windows() == memory.MIN_WINDOW_MEMORY + need
    assert not made.admit(Path("b.png"), Path("b.png")), "all that is left was given away"
    made.release(Path("c.png"))
    assert made.admit(Path("b.png"), Path("b.png"))


def test_a_wide_network_has_room_for_its_windows_while_several_photos_are_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(here / "a.png", here / "b.png", here / "c.png")
    need = need_of(Path("a.png"), monkeypatch)
    made = begun(20 * need, monkeypatch)
    made.comfortable = memory.MIN_WINDOW_MEMORY + 7 * need
    made.reserved["others.png"] = 11 * need
    assert [made.admit(Path(name), Path(name)) for name in ("a.png", "b.png", "c.png")] == [True, True, False]
    assert made.windows() == made.comfortable
    made.comfortable = 0
    assert made.admit(Path("c.png"), Path("c.png"))
    alone = begun(need, monkeypatch)
    alone.comfortable = memory.MIN_WINDOW_MEMORY + 7 * need
    assert alone.admit(Path("a.png"), Path("a.png")), "one photo is not refused for the network's ease"


def test_a_photo_that_never_fits_is_refused_with_what_it_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "a.png")
    need = need_of(Path("a.png"), monkeypatch)
    made = begun(need - 1, monkeypatch)
    with pytest.raises(BadImage, match=r"a\.png: 8 x 6 pixels need about .*--memory .*: use --memory (\S+),") as told:
        made.admit(Path("a.png"), Path("a.png"))
    enough = parse_size(str(told.value).split("use --memory ")[1].split(",")[0])
    assert enough >= 100_000_000 + memory.BASE_ALLOWANCE + memory.MIN_WINDOW_MEMORY + need
    assert begun(need - 1, monkeypatch, strict=False).admit(Path("a.png"), Path("a.png")), "nobody set that limit"


@pytest.mark.parametrize("fitting", [1, 2, 3])
def test_no_more_photos_are_in_memory_than_fit(fitting: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(here / f"{i:02}.png" for i in range(12)))
    made = begun(fitting * need_of(Path("00.png"), monkeypatch), monkeypatch)
    held = InMemory(monkeypatch)
    assert run(plan(["*.png"]), restorer=NEGATIVE, budget=made).done == 12
    assert 1 <= held.most <= fitting
    assert not made.reserved


def test_room_is_free_again_after_failures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(here / f"{i}.png" for i in range(6)))
    Path("2.png").write_bytes(Path("2.png").read_bytes()[:50])
    made = begun(need_of(Path("0.png"), monkeypatch), monkeypatch)

    def restore(pixels: np.ndarray) -> np.ndarray:
        restore.calls += 1  # type: ignore[attr-defined]
        if restore.calls == 2:  # type: ignore[attr-defined]
            raise BadImage("odd")
        return pixels

    restore.calls = 0  # type: ignore[attr-defined]
    report = run(plan(["*.png"]), restorer=FunctionRestorer(restore), budget=made)
    assert (report.done, len(report.failed)) == (4, 2)
    assert not made.reserved


def test_one_photo_too_large_does_not_stop_the_others(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "a.png", here / "c.png")
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save("b.png")
    made = begun(need_of(Path("b.png"), monkeypatch) - 1, monkeypatch)
    report = run(plan(["*.png"]), restorer=NEGATIVE, budget=made)
    assert (report.done, [path for path, _ in report.failed]) == (2, ["b.png"])


CHILD = """
import json, sys
from pathlib import Path
from fairweather import cli
code = cli.main(sys.argv[1:])
# not ru_maxrss: it begins with what the parent held when it started this process
peak, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([code, int(peak.split()[1]) * 1024]))
"""


def test_what_is_held_beside_the_photos_waits_and_keeps_them_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = begun(400_000_000, monkeypatch)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (4000, 2000)).save(photo)
    assert made.hold(320_000_000)
    assert not made.hold(200_000_000)  # waits for the first
    assert not made.admit(photo, photo), "there is room for it, later"
    before = made.windows()
    made.free(320_000_000)
    assert made.windows() == before + 320_000_000
    assert made.admit(photo, photo)
    assert not made.hold(390_000_000)
    made.release(photo)
    with pytest.raises(BadSettings, match="--memory"):
        made.hold(500_000_000)
    assert made.held == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of a process")
def test_the_process_stays_below_its_budget(tmp_path: Path) -> None:
    """As the operating system counts. It can fail: the same photos without a budget take more."""
    example = images.read(ROOT / "examples" / "barn.jpg").pixels
    (tmp_path / "in").mkdir()
    for number in range(4):
        large = np.tile(example, (5, 5, 1))[:, number:]
        images.write(tmp_path / "in" / f"{number}.{'png' if number == 1 else 'jpg'}", large)
    del large
    peaks = {}
    for limit in ("420MB", "4TB"):
        words = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / limit), "--model", "dehaze", "--memory", limit]
        done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False)
        code, peaks[limit] = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
    assert peaks["420MB"] < 420_000_000
    assert peaks["420MB"] < peaks["4TB"], "without a budget more photos are in memory"
    for path in sorted((tmp_path / "420MB").iterdir()):
        bounded, free = (images.read(tmp_path / limit / path.name).pixels for limit in peaks)
        assert cv2.absdiff(bounded, free).max() <= 1


def test_resident_is_what_the_process_holds() -> None:
    before = memory.resident_memory()
    with mmap.mmap(-1, 60_000_000) as block:  # fresh pages, whatever earlier tests have left in the C library's hands
        block[:] = bytes(1) * len(block)
        held = memory.resident_memory() - before
    assert 50_000_000 < held < 150_000_000
    if sys.platform == "linux":
        assert memory.resident_memory() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * 1.01


def test_available_memory_is_plausible() -> None:
    assert 1 << 26 < memory.available_memory() < 1 << 50
