"""A folder of many photos, some of them broken: are the cores busy, is memory flat, is a kill harmless?

    python benchmarks/folder.py [--count 500] [--broken 20] [--model dehaze] [--memory 2GB] [--keep DIR]

Makes the folder (mosaics of examples/, 0.1 to 3 megapixels: JPEG, PNG of 8 and 16 bits, WebP, grey, alpha, palettes,
turned by EXIF, JPEGs called .png; among them truncated ones, texts, empty files, GIFs, headers of 10 gigapixels)
and runs `fairweather restore` on it in a process of its own, twice:

1. to the end: photos done, failures named, the share of the cores that the process had (its user and system time over
   wall time and cores, start included), resident memory over time;
2. with SIGKILL when a third is there, then once more: every file that is there after the kill is whole, the second run
   does the rest, nothing temporary is left, and the results are those of the first run.

The exit code is the number of checks that failed. Times are of this machine, as busy as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from speed import EXAMPLES, cores, mosaic, processor

from fairweather import images
from fairweather.errors import BadImage

SMALLEST, LARGEST = 0.1e6, 3e6
BUSY = 0.85
FLAT = 1.25
"""Memory in the last third of a run over that in the middle third: above, it grows."""
BREAKS = ("truncated", "text", "empty", "gif", "claims")


@dataclass
class Watched:
    """One run, as the operating system saw it."""

    code: int
    said: str
    seconds: float
    cpu: float
    peak: float
    """MiB."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, MiB resident)."""

    @property
    def busy(self) -> float:
        return self.cpu / (self.seconds * cores())

    def level(self, first: float, last: float) -> float:
        """The median of memory between two shares of the run, MiB; 0 where it was too short to tell."""
        return statistics.median(
            [mib for when, mib in self.memory if first * self.seconds <= when <= last * self.seconds] or [0]
        )


def make(folder: Path, count: int, broken: int, seed: int = 0) -> list[str]:
    """Fill a folder; gives the names of the broken ones, in order. The same photos for the same numbers."""
    rng = np.random.default_rng(seed)
    canvas = mosaic(sorted(EXAMPLES.glob("*.jpg")), 4000, 3000)
    wrong = {round(k * count / max(1, broken)): BREAKS[k % len(BREAKS)] for k in range(broken)}
    for number in range(count):
        pixels = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
        aspect = rng.uniform(0.6, 1.8)
        height = int(min(2900, (pixels / aspect) ** 0.5))
        width = int(min(3900, height * aspect))
        top, left = int(rng.integers(0, 3000 - height)), int(rng.integers(0, 4000 - width))
        path = _save(np.ascontiguousarray(canvas[top : top + height, left : left + width]), folder, number)
        if number in wrong:
            _break(path, wrong[number])
            wrong[number] = path.relative_to(folder).as_posix()
    return sorted(wrong.values())


def _save(pixels: np.ndarray, folder: Path, number: int) -> Path:
    """One of twelve kinds, each in a folder of ten."""
    place = folder / f"{number // 50:02}"
    place.mkdir(exist_ok=True)
    photo = Image.fromarray(pixels)
    kind = number % 12
    suffix = {4: ".png", 5: ".png", 6: ".webp", 7: ".png", 8: ".png", 9: ".png", 11: ".tif"}.get(kind, ".jpg")
    path = place / f"{number:04}{suffix}"
    if kind == 3:
        photo.convert("L").save(path, quality=90)
    elif kind == 4:
        photo.save(path)
    elif kind == 5:
        images.write(path, pixels.astype(np.uint16) * 257)
    elif kind == 6:
        photo.save(path, quality=90)
    elif kind == 7:
        photo.putalpha(Image.fromarray(pixels[..., 1]))
        photo.save(path)
    elif kind == 8:
        photo.quantize(64).save(path)
    elif kind == 9:
        photo.save(path, "JPEG", quality=90)  # called a PNG
    elif kind == 10:
        exif = Image.Exif()
        exif[0x0112] = number // 12 % 8 + 1
        photo.save(path, quality=92, exif=exif)
    elif kind == 11:
        photo.save(path, compression="tiff_lzw")
    else:
        photo.save(path, quality=92, subsampling=2, progressive=kind == 2)
    return path


def _break(path: Path, how: str) -> None:
    data = path.read_bytes()
    claims = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(claims)) + b"IHDR" + claims + struct.pack(">I", zlib.crc32(b"IHDR" + claims))
    path.write_bytes(
        {
            "truncated": data[: len(data) // 3],
            "text": b"Dear diary, today it was foggy.\n" * 40,
            "empty": b"",
            "gif": b"GIF89a" + data[6:],
            "claims": b"\x89PNG\r\n\x1a\n" + chunk,
        }[how]
    )


def watch(words: Sequence[str], stop: Path | None = None, after: int = 0) -> Watched:
    """Run `fairweather` to its end, or until `after` files are in `stop`, when it is killed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, "-m", "fairweather", *words], stdout=told, stderr=told)
        memory: list[tuple[float, float]] = []
        peak = 0.0
        while True:
            # WNOWAIT leaves it to be waited for: its use of the processor comes with that
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            with contextlib.suppress(OSError):
                if resident := of_status(process.pid, "VmRSS"):  # none is told of a process that has ended
                    memory.append((time.perf_counter() - began, resident))
                peak = max(peak, of_status(process.pid, "VmHWM"))
            if stop is not None and len(written(stop)) >= after:
                process.kill()
                stop = None
            time.sleep(0.05)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        said = told.read()
    return Watched(process.returncode, said, seconds, used.ru_utime + used.ru_stime, peak, memory)


def of_status(process: int, name: str) -> float:
    """A line of /proc/PROCESS/status in MiB. The peak is taken from there: ru_maxrss begins with what the parent held
    when it started the process."""
    with Path(f"/proc/{process}/status").open() as lines:
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def written(folder: Path) -> list[Path]:
    """The results in a folder, without what is hidden."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".*") if path.is_file())


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """Which of them are not whole pictures."""
    bad = []
    for path in paths:
        try:
            images.read(path)
        except BadImage:
            bad.append(path)
    return bad


class Checks:
    """Says what holds and what does not, and counts the latter."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, fine: bool, words: str) -> None:
        self.failed += not fine
        print(f"{'yes' if fine else 'NO '}  {words}", flush=True)


def compare(count: int, broken: Sequence[str], words: Sequence[str], place: Path, check: Checks) -> None:
    """Both runs, and what is to be said of them."""
    whole, killed, source = place / "whole", place / "killed", place / "in"
    told = watch(["restore", str(source), "-o", str(whole), *words])
    expected = count - len(broken)
    print(f"{expected} photos in {told.seconds:.1f} s, {expected / told.seconds:.2f} a second; {told.cpu:.1f} s of CPU")
    print("memory: " + ", ".join(f"{told.level(k / 10, (k + 1) / 10):.0f}" for k in range(10)) + " MiB, tenth by tenth")
    named = [name for name in broken if any(str(source / name) in line for line in told.said.splitlines())]
    check(len(written(whole)) == expected, f"{len(written(whole))} of {expected} photos are done")
    check(not unreadable(written(whole)), "every result can be read")
    check(
        named == list(broken) and told.code == (3 if broken else 0), f"{len(named)} of {len(broken)} broken are named"
    )
    check(told.busy > BUSY, f"the {cores()} cores were {told.busy:.0%} busy with it (more than {BUSY:.0%})")
    middle, end = told.level(1 / 3, 2 / 3), told.level(2 / 3, 1)
    check(end <= FLAT * middle, f"memory is flat: {middle:.0f} MiB, then {end:.0f}, {told.peak:.0f} at the most")

    first = watch(["restore", str(source), "-o", str(killed), *words], killed, max(1, expected // 3))
    there = written(killed)
    print(f"killed with {len(there)} photos there and {len(hidden(killed))} begun")
    check(first.code == -signal.SIGKILL and 0 < len(there) < expected, "it was killed in the middle")
    check(not unreadable(there), "no half file is left under a photo's name")
    second = watch(["restore", str(source), "-o", str(killed), *words])
    check(f"{len(there)} skipped because" in second.said, "the second run skips what is there")
    same = [path.relative_to(killed) for path in written(killed)] == [
        path.relative_to(whole) for path in written(whole)
    ]
    check(same and len(written(killed)) == expected, "and does the rest")
    check(not hidden(killed), "nothing temporary is left")
    differs = [path for path in written(killed) if path.read_bytes() != (whole / path.relative_to(killed)).read_bytes()]
    check(not differs, "all results are the first run's, byte for byte")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--model", default="dehaze", metavar="NAME|PATH")
    parser.add_argument("--memory", metavar="SIZE", help="handed on to restore")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it")
    options = parser.parse_args(arguments)
    print(f"{processor()}, {cores()} cores; {options.count} photos, model {options.model}")
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"The machine was busy when this began (load average {busy:.1f}): the share of the cores is too small.")
    check = Checks()
    with contextlib.ExitStack() as stack:
        place = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (place / "in").mkdir(parents=True)
        broken = make(place / "in", options.count, options.broken)
        words = ["--model", options.model, *(["--memory", options.memory] if options.memory else [])]
        compare(options.count, broken, words, place, check)
    return check.failed


if __name__ == "__main__":
    sys.exit(main())
