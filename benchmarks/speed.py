"""Speed and memory of the models in each engine, compared with other networks and with the limits of the machine.

    python benchmarks/speed.py [--model NAME|PATH ...] [--size 4000x3000 ...] [--photo PATH] [--runs 5]
                               [--engine openvino openvino-int8 ...] [--others gUNet-T ...] [--slow]

Each line of the table is a separate process: it loads the system, restores the photo from file to file twice to warm
up, then
--runs times. Times are medians of the warm runs, with their share of the total:

decode    file -> pixels (EXIF orientation applied)
prepare   pixels -> network input (reduced, or padded and converted)
network   the engine alone; for the dark channel prior everything
apply     network output -> pixels at full size, with guards
encode    pixels -> file, with the source's quantization

"memory ms" is prepare, network and apply, for a decoded photo; "bare ms" is the same without the guards. "first" is
the first photo including imports and loading the model. "peak" is the peak memory of the process. "of limit" is the
network's MACs per second (known if torch is among the engines) as a share of the maximum that `limits.py` measured in
the same run; "of copy" is the bandwidth of apply as a share of a plain copy's. Other networks (`opponents.py`) run in
PyTorch, eager, on the whole photo. gUNet-T and ResNet-9 are measured once, cold, above one megapixel (marked 1x), and
above three only with --slow: they take minutes and many gigabytes. The photo is a mosaic of examples/ (or of --photo).
`speed_table.py` has the targets.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from measuring import EXAMPLES, cores, mosaic, peak, processor, warn_if_busy  # noqa: E402
from speed_table import STAGES, bars_markdown, markdown, pixels  # noqa: E402

if TYPE_CHECKING:  # the parent stays small: a child's peak memory starts from it
    import numpy as np
    from numpy.typing import NDArray

    from fairweather.inference import Restorer

SIZES = ("512x512", "1920x1080", "4000x3000")
PRIOR = "dark channel prior"
OTHERS = ("gUNet-T", "ResNet-9", "AOD-Net")
"""The names in opponents.py, without importing it."""
SLOW = ("gUNet-T", "ResNet-9")
ONCE_ABOVE, SLOW_ABOVE = 1_000_000, 3_000_000
"""Pixels above which slow systems are measured once, and only with --slow."""
ENGINES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
"""Engine -> required package."""
WARM_UP = 2
Times = dict[str, float]


class Stopwatch:
    """Seconds by stage, summed over repeated entries."""

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
    """Time a restorer: before the engine is "prepare", after it "apply"."""
    engine = restorer.engine

    def run(photo: NDArray[Any], watch: Stopwatch) -> NDArray[Any]:
        left = time.perf_counter()  # end of the last engine call, or the start
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
        assert calls, "this restorer runs no network: there is nothing to time"
        return result

    return run


def timed_prior() -> Run:
    """Time the dark channel prior on 8-bit pixels."""
    import dark_channel

    from fairweather.images.io import from_float, to_float

    def run(photo: NDArray[Any], watch: Stopwatch) -> NDArray[Any]:
        with watch.stage("prepare"):
            picture = to_float(photo)
        with watch.stage("network"):
            clear = dark_channel.restore(picture)
        with watch.stage("apply"):
            return from_float(clear, photo.dtype)

    return run


def timed_network(name: str) -> Run:
    """Time another network on 8-bit pixels, in PyTorch on the whole photo."""
    import numpy as np
    import torch
    from opponents import OPPONENTS

    from fairweather.generators import padded
    from fairweather.images.io import from_float, to_float

    torch.manual_seed(0)
    network = OPPONENTS[name]().eval()

    def run(photo: NDArray[Any], watch: Stopwatch) -> NDArray[Any]:
        with watch.stage("prepare"):
            picture = torch.from_numpy(np.ascontiguousarray(to_float(photo).transpose(2, 0, 1)[None]))
        with watch.stage("network"), torch.inference_mode():
            clear = padded(network, picture)
        with watch.stage("apply"):
            return from_float(clear[0].clamp(0, 1).permute(1, 2, 0).numpy(), photo.dtype)

    return run


def work_of(restorer: Restorer, folder: Path, photo: NDArray[Any]) -> int:
    """MACs of a model for one photo over all tiles, counted on the PyTorch network."""
    import torch
    from opponents import macs

    from fairweather.generators import exported
    from fairweather.inference.engines import load_generator

    network, engine, total = exported(load_generator(folder, restorer.card)).eval(), restorer.engine, 0

    def counted(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal total
        total += macs(network, torch.from_numpy(picture))
        return engine(picture)

    restorer.engine = counted
    try:
        restorer(photo, guard=False)
    finally:
        restorer.engine = engine
    return total


def file_to_file(run: Run, source: Path, target: Path) -> Times:
    """Restore one photo from file to file; returns seconds by stage."""
    from fairweather.images.io import read, write

    watch = Stopwatch()
    with watch.stage("decode"):
        photo = read(source)
    pixels = run(photo.pixels, watch)
    with watch.stage("encode"):
        write(target, photo.replaced(pixels))
    return watch.times


def measure(system: str, source: Path, runs: int, engine: str, once: bool = False) -> dict[str, Any]:
    """In the child process: load, warm up, run.

    Returns {"system", "engine", "once", "times": medians by stage in s, "total", "first", "bare": s or None,
    "peak": bytes, "macs": of a model's network, only with the engine torch}.
    """
    restorer, name = None, system
    if system == PRIOR:
        run, engine = timed_prior(), "OpenCV"
    elif system in OTHERS:
        run, engine = timed_network(system), "torch"
    else:
        from fairweather.inference import load

        runtime, _, precision = engine.partition("-")
        restorer = load(system, engine=runtime, precision=precision or "auto")
        name, run = restorer.card.name, timed_restorer(restorer)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "restored.jpg"
        taken = [file_to_file(run, source, target)]
        first = time.perf_counter() - STARTED
        if not once:
            for _ in range(WARM_UP - 1):
                file_to_file(run, source, target)
            taken = [file_to_file(run, source, target) for _ in range(runs)]
    found: dict[str, Any] = {
        "system": name,
        "engine": engine,
        "once": once,
        "times": {stage: statistics.median(times[stage] for times in taken) for stage in STAGES},
        "total": statistics.median(sum(times.values()) for times in taken),
        "first": first,
        "bare": None,
    }
    if restorer is not None:
        found["bare"] = unguarded(restorer, source, runs)
    found["peak"] = peak()
    if restorer is not None and engine == "torch":
        from fairweather import model_folder
        from fairweather.images.io import read

        found["macs"] = work_of(restorer, model_folder.find(system), read(source).pixels)
    return found


def unguarded(restorer: Restorer, source: Path, runs: int) -> float:
    """Median seconds of a warm call without guards."""
    from fairweather.images.io import read

    photo = read(source).pixels
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        restorer(photo, guard=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def make(target: Path, sources: Sequence[Path], width: int, height: int) -> None:
    """Write the mosaic as a JPEG, quality 92, 4:2:0."""
    from PIL import Image

    Image.fromarray(mosaic(sources, width, height)).save(target, quality=92, subsampling=2)


def child(*arguments: str) -> str:
    """Run this file in a separate process and return its output."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"speed.py: {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def shipped() -> list[str]:
    """Names of the shipped models, without importing fairweather."""
    folder = Path(__file__).resolve().parent.parent / "src" / "fairweather" / "models"
    return sorted(path.parent.name for path in folder.glob("*/card.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--size", nargs="*", default=list(SIZES), metavar="WIDTHxHEIGHT")
    parser.add_argument("--photo", type=Path, help="build the mosaic from this photo instead of examples/")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--engine", nargs="*", default=[], help="openvino, openvino-int8, onnxruntime, torch; by default all installed"
    )
    parser.add_argument("--others", nargs="*", default=list(OTHERS), choices=OTHERS, help="other networks")
    parser.add_argument("--slow", action="store_true", help="also measure slow networks on large photos")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limits", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "PHOTO"), help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        engine = (options.engine or ["auto"])[0]
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), options.runs, engine, options.once)))
        return 0
    if options.limits:
        import limits

        print(json.dumps(limits.measure(max(3, options.runs))))
        return 0
    sources = [options.photo] if options.photo else sorted(EXAMPLES.glob("*.jpg"))
    if options.make:
        make(Path(options.make), sources, *map(int, options.size[0].split("x")))
        return 0
    engines = options.engine or [name for name, package in ENGINES.items() if importlib.util.find_spec(package)]
    others = options.others if importlib.util.find_spec("torch") else []
    print(f"{processor()}, {cores()} cores; medians of {options.runs} warm runs\n")
    warn_if_busy()
    most = json.loads(child("--limits", "--runs", str(options.runs)).splitlines()[-1])
    rows, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            path = str(Path(folder) / f"{size}.jpg")
            child("--make", path, "--size", size, *(["--photo", str(options.photo)] if options.photo else []))
            print(f"{size} photo: {Path(path).stat().st_size / 1e6:.1f} MB", file=sys.stderr)
            systems = [(model, engine) for model in options.model or shipped() for engine in engines]
            for system, engine in [*systems, *((name, "torch") for name in others), (PRIOR, "auto")]:
                if system in SLOW and pixels(size) > SLOW_ABOVE and not options.slow:
                    left_out.append(f"{system} at {size}")
                    continue
                once = ["--once"] if system in SLOW and pixels(size) > ONCE_ABOVE else []
                print(f"{size}: {system}, {engine}", file=sys.stderr)
                asked = ("--measure", system, path, "--runs", str(options.runs), "--engine", engine, *once)
                rows.append((size, json.loads(child(*asked).splitlines()[-1])))
    print(markdown(rows, most))
    if left_out:
        print(f"\nLeft out ({', '.join(left_out)}): --slow measures them once.")
    from limits import markdown as limits_markdown

    print(f"\n{limits_markdown(most)}\n\n{bars_markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
