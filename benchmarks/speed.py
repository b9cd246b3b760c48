"""How fast is it, and how much memory does it take? A JPEG end to end, file to file, beside the dark channel prior.

    python benchmarks/speed.py [--model NAME|PATH ...] [--size 4000x3000 ...] [--photo PATH] [--runs 5] [--engine auto]

Each line of the table is one process of its own: it loads the system, restores the photo twice to warm up and then
--runs times; times are medians of the warm runs, with their share of the whole:

decode    file -> pixels (EXIF orientation applied)
prepare   pixels -> what the network sees (reduced, or padded and converted)
network   the engine alone; for the dark channel prior all that it does
apply     the network's answer -> pixels at full size
encode    pixels -> file, with the source's quantization

"first" is the first photo with all that comes before it: imports, loading the model. "peak" is the most memory that
the operating system has seen the process hold (getrusage), for whichever run took most.
The photo is a mosaic of examples/ (or of --photo), the same on every machine.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:  # the parent imports nothing large: a child's peak would count from there
    import numpy as np
    from numpy.typing import NDArray

    from fairweather.restoring import Restorer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SIZES = ("512x512", "1920x1080", "4000x3000")
PRIOR = "dark channel prior"
STAGES = ("decode", "prepare", "network", "apply", "encode")
WARM_UP = 2
Times = dict[str, float]


class Stopwatch:
    """Seconds by stage; a stage that is entered again adds up."""

    def __init__(self) -> None:
        self.times: Times = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] += time.perf_counter() - start


Run = Callable[["NDArray[Any]", Stopwatch], "NDArray[Any]"]


def timed_restorer(restorer: Restorer) -> Run:
    """A restorer whose engine is watched: what lies before it is "prepare", what follows "apply"."""
    engine = restorer.engine

    def run(photo: NDArray[Any], watch: Stopwatch) -> NDArray[Any]:
        left = time.perf_counter()  # when the engine was last left; before its first call, the start
        calls = 0

        def watched(picture: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal left, calls
            watch.times["prepare"] += time.perf_counter() - left
            with watch.stage("network"):
                answer = engine(picture)
            left = time.perf_counter()
            calls += 1
            return answer

        restorer.engine = watched
        try:
            result = restorer(photo)
        finally:
            restorer.engine = engine
        watch.times["apply"] += time.perf_counter() - left
        assert calls, "a restorer that asks no network has nothing to be timed by"
        return result

    return run


def timed_prior() -> Run:
    """The dark channel prior on 8-bit pixels."""
    import dark_channel

    from fairweather.images import from_float, to_float

    def run(photo: NDArray[Any], watch: Stopwatch) -> NDArray[Any]:
        with watch.stage("prepare"):
            picture = to_float(photo)
        with watch.stage("network"):
            clear = dark_channel.restore(picture)
        with watch.stage("apply"):
            return from_float(clear, photo.dtype)

    return run


def file_to_file(run: Run, source: Path, target: Path) -> Times:
    """One photo, from its file to the restored file; seconds by stage."""
    from fairweather.images import read, write

    watch = Stopwatch()
    with watch.stage("decode"):
        photo = read(source)
    pixels = run(photo.pixels, watch)
    with watch.stage("encode"):
        write(target, photo.replaced(pixels))
    return watch.times


def measure(system: str, source: Path, runs: int, engine: str) -> dict[str, Any]:
    """In the child: load, warm up, run; {"system", "times": medians, "total": s, "first": s, "peak": bytes}."""
    name = PRIOR
    if system == PRIOR:
        run = timed_prior()
    else:
        from fairweather.restoring import load

        restorer = load(system, engine=engine)
        name, run = restorer.card.name, timed_restorer(restorer)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "restored.jpg"
        file_to_file(run, source, target)
        first = time.perf_counter() - STARTED
        for _ in range(WARM_UP - 1):
            file_to_file(run, source, target)
        taken = [file_to_file(run, source, target) for _ in range(runs)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "system": name,
        "times": {stage: statistics.median(times[stage] for times in taken) for stage in STAGES},
        "total": statistics.median(sum(times.values()) for times in taken),
        "first": first,
        "peak": peak if sys.platform == "darwin" else peak * 1024,
    }


def mosaic(sources: Sequence[Path], width: int, height: int) -> NDArray[np.uint8]:
    """height x width x 3: the photos side by side and row by row, every second time round mirrored.

    At their own size, so that at 12 megapixels the JPEG is about as large as a phone's and takes as long to decode.
    """
    import numpy as np

    from fairweather.images import read

    photos = [read(path).pixels for path in sources]
    canvas = np.zeros((height, width, 3), np.uint8)
    top = count = 0
    while top < height:
        left = tallest = 0
        while left < width:
            photo = photos[count % len(photos)]
            photo = photo[:, ::-1] if count // len(photos) % 2 else photo
            part = photo[: height - top, : width - left]
            canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
            left, tallest, count = left + part.shape[1], max(tallest, part.shape[0]), count + 1
        top += min(p.shape[0] for p in photos)  # rows overlap where heights differ, so that nothing stays black
    return canvas


def make(target: Path, sources: Sequence[Path], width: int, height: int) -> None:
    """The mosaic as a JPEG, quality 92, 4:2:0."""
    from PIL import Image

    Image.fromarray(mosaic(sources, width, height)).save(target, quality=92, subsampling=2)


def markdown(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One line for each (size, what was measured)."""
    lines = [
        "| system | photo | " + " | ".join(f"{stage} ms" for stage in STAGES) + " | whole s | first s | peak MiB |",
        "|---|--:|" + "--:|" * (len(STAGES) + 3),
    ]
    for size, found in rows:
        total = sum(found["times"].values())
        parts = [f"{found['times'][stage] * 1000:.0f} ({found['times'][stage] / total:.0%})" for stage in STAGES]
        ends = [f"{found['total']:.2f}", f"{found['first']:.2f}", f"{found['peak'] / 2**20:.0f}"]
        lines.append("| " + " | ".join([found["system"], size.replace("x", " x "), *parts, *ends]) + " |")
    return "\n".join(lines)


def child(*arguments: str) -> str:
    """Run this file in a process of its own and return what it prints."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"speed.py: {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def cores() -> int:
    """How many this process may use, which a container may hold below what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def shipped() -> list[str]:
    """Names of the models that ship, without importing what reads them."""
    folder = Path(__file__).resolve().parent.parent / "src" / "fairweather" / "models"
    return sorted(path.parent.name for path in folder.glob("*/card.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--size", nargs="*", default=list(SIZES), metavar="WIDTHxHEIGHT")
    parser.add_argument("--photo", type=Path, help="build the photo from this one rather than from examples/")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "PHOTO"), help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), options.runs, options.engine)))
        return 0
    sources = [options.photo] if options.photo else sorted(EXAMPLES.glob("*.jpg"))
    if options.make:
        make(Path(options.make), sources, *map(int, options.size[0].split("x")))
        return 0
    print(f"{processor()}, {cores()} cores; medians of {options.runs} warm runs; engine {options.engine}\n")
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"The machine was busy when this began (load average {busy:.1f}): times are too long.\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            path = str(Path(folder) / f"{size}.jpg")
            child("--make", path, "--size", size, *(["--photo", str(options.photo)] if options.photo else []))
            print(f"{size} photo: {Path(path).stat().st_size / 1e6:.1f} MB", file=sys.stderr)
            for system in [*(options.model or shipped()), PRIOR]:
                asked = ("--measure", system, path, "--runs", str(options.runs), "--engine", options.engine)
                rows.append((size, json.loads(child(*asked).splitlines()[-1])))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
