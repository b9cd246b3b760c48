"""A folder of many photos, some of them broken: CPU utilisation, memory over time, and recovery after a kill.

    python benchmarks/folder.py [--count 500] [--broken 20] [--model dehaze] [--memory 2GB] [--keep DIR]

Makes the folder (mosaics of examples/, 0.1 to 3 megapixels: JPEG, PNG of 8 and 16 bits, WebP, grey, alpha, palettes,
EXIF orientation, JPEGs named .png; truncated files, text, empty files, GIFs, headers that claim 10 gigapixels) and
runs `fairweather restore` on it twice, each in a separate process:

1. to the end: photos restored, failures reported, CPU utilisation (including the start), resident memory over time;
2. with SIGKILL after a third, then again: files left by the kill are complete, the second run restores the rest, no
   temporary file remains, and the results equal those of the first run.

The exit code is the number of failed checks. Times depend on the load of the machine.
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
from measuring import EXAMPLES, cores, mosaic, processor
from PIL import Image

from fairweather import images
from fairweather.errors import BadImage

SMALLEST, LARGEST = 0.1e6, 3e6
BUSY = 0.85
FLAT = 1.25
"""Maximum ratio of memory in the last third of a run to the middle third."""
BREAKS = ("truncated", "text", "empty", "gif", "claims")


@dataclass
class Watched:
    """Measurements of one run."""

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
        """Median memory in MiB between two fractions of the run; 0 if there are no samples."""
        return statistics.median(
            [mib for when, mib in self.memory if first * self.seconds <= when <= last * self.seconds] or [0]
        )


def make(folder: Path, count: int, broken: int, seed: int = 0) -> list[str]:
    """Fill a folder deterministically; returns the sorted names of the broken files."""
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
    """Write a photo in one of twelve formats."""
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
        photo.save(path, "JPEG", quality=90)  # a JPEG named .png
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
    """Run `fairweather`; kill it once `after` files are in the folder `stop`."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, "-m", "fairweather", *words], stdout=told, stderr=told)
        memory: list[tuple[float, float]] = []
        peak = 0.0
        while True:
            # WNOWAIT keeps it waitable: wait4 returns its CPU time
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            with contextlib.suppress(OSError):
                if resident := of_status(process.pid, "VmRSS"):  # empty for an ended process
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
    """A line of /proc/PROCESS/status in MiB. ru_maxrss would start from the parent's memory."""
    with Path(f"/proc/{process}/status").open() as lines:
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def written(folder: Path) -> list[Path]:
    """The results in a folder, without hidden files."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".*") if path.is_file())


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """The files that are not complete pictures."""
    bad = []
    for path in paths:
        try:
            images.read(path)
        except BadImage:
            bad.append(path)
    return bad


class Checks:
    """Print checks and count the failed ones."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, fine: bool, words: str) -> None:
        self.failed += not fine
        print(f"{'yes' if fine else 'NO '}  {words}", flush=True)


def compare(count: int, broken: Sequence[str], words: Sequence[str], place: Path, check: Checks) -> None:
    """Run both and print the checks."""
    whole, killed, source = place / "whole", place / "killed", place / "in"
    told = watch(["restore", str(source), "-o", str(whole), *words])
    expected = count - len(broken)
    pace = expected / told.seconds
    print(f"{expected} photos in {told.seconds:.1f} s, {pace:.2f} per second; {told.cpu:.1f} s of CPU time")
    levels = ", ".join(f"{told.level(k / 10, (k + 1) / 10):.0f}" for k in range(10))
    print(f"memory over ten equal parts of the run: {levels} MiB")
    named = [name for name in broken if any(str(source / name) in line for line in told.said.splitlines())]
    check(len(written(whole)) == expected, f"{len(written(whole))} of {expected} photos are restored")
    check(not unreadable(written(whole)), "every result is readable")
    reported = named == list(broken) and told.code == (3 if broken else 0)
    check(reported, f"{len(named)} of {len(broken)} broken files are reported")
    check(told.busy > BUSY, f"the {cores()} cores were {told.busy:.0%} busy (target: more than {BUSY:.0%})")
    middle, end = told.level(1 / 3, 2 / 3), told.level(2 / 3, 1)
    check(end <= FLAT * middle, f"memory is constant: {middle:.0f} MiB, then {end:.0f}, {told.peak:.0f} peak")

    first = watch(["restore", str(source), "-o", str(killed), *words], killed, max(1, expected // 3))
    there = written(killed)
    print(f"killed with {len(there)} photos done and {len(hidden(killed))} in progress")
    check(first.code == -signal.SIGKILL and 0 < len(there) < expected, "the kill was in the middle")
    check(not unreadable(there), "no partial file has a photo's name")
    written_at = {path: path.stat().st_mtime_ns for path in there}
    watch(["restore", str(source), "-o", str(killed), *words])
    kept = all(path.stat().st_mtime_ns == at for path, at in written_at.items())
    check(kept, "the second run skips finished photos")
    same = [path.relative_to(killed) for path in written(killed)] == [
        path.relative_to(whole) for path in written(whole)
    ]
    check(same and len(written(killed)) == expected, "and restores the rest")
    check(not hidden(killed), "no temporary file remains")
    differs = [path for path in written(killed) if path.read_bytes() != (whole / path.relative_to(killed)).read_bytes()]
    check(not differs, "all results equal the first run's, byte for byte")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--model", default="dehaze", metavar="NAME|PATH")
    parser.add_argument("--memory", metavar="SIZE", help="passed on to restore")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="working folder, kept afterwards")
    options = parser.parse_args(arguments)
    print(f"{processor()}, {cores()} cores; {options.count} photos, model {options.model}")
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"The machine was busy at the start (load average {busy:.1f}), so the CPU utilisation is too low.")
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
