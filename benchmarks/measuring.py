"""What the benchmarks share: paths, a description of the machine, peak memory, mosaics of photos, and trainings.

Imports nothing large at module level: import time and memory are part of what some benchmarks measure.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
"""Real photos, if they are next to the checkout."""


def cores() -> int:
    """Number of cores available to this process, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    from fairweather.inference.engines import processor_name

    return processor_name()


def warn_if_busy() -> None:
    """Print a line if other programs make the times too long."""
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"The machine was busy at the start (load average {load:.1f}), so times are too long.\n")


def peak() -> int:
    """Peak memory of this process in bytes. On Linux from /proc: `ru_maxrss` starts from the parent's memory."""
    if sys.platform == "linux":
        with Path("/proc/self/status").open() as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def mosaic(sources: Sequence[Path], width: int, height: int) -> NDArray[np.uint8]:
    """A picture of height x width x 3 from photos in rows, mirrored every second time.

    Photos keep their size, so that at 12 megapixels the JPEG takes as long to decode as a phone's.
    """
    import numpy as np

    from fairweather.images.io import read

    photos = [read(path).pixels for path in sources]
    canvas = np.zeros((height, width, 3), np.uint8)
    top = count = 0
    while top < height:
        left = 0
        while left < width:
            photo = photos[count % len(photos)]
            photo = photo[:, ::-1] if count // len(photos) % 2 else photo
            part = photo[: height - top, : width - left]
            canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
            left, count = left + part.shape[1], count + 1
        top += min(photo.shape[0] for photo in photos)  # rows overlap if heights differ, so that nothing stays black
    return canvas


def run_training(command: Sequence[str], log: Path, **environment: str) -> None:
    """Run a training with its output in `log`, and append its CPU seconds to the file with the suffix .seconds.

    Raises RuntimeError with the last line of the log if it fails.
    """
    from fairweather.training.allocator import MALLOC

    with open(log, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **MALLOC, **environment}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    with open(log.with_suffix(".seconds"), "a", encoding="utf-8") as seconds:
        print(used.ru_utime + used.ru_stime, file=seconds)  # one line per resumption
    if process.returncode:
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        raise RuntimeError(f"{log.stem}: training ended with code {process.returncode}: {lines[-1] if lines else ''}")


def cpu_minutes(seconds: Path) -> float:
    """Minutes of CPU time of a run over its resumptions, which other programs do not affect."""
    return sum(map(float, seconds.read_text(encoding="utf-8").split())) / 60
