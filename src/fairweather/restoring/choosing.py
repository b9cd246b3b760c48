"""What "auto" takes: the installed engine that is fastest with a model on this machine, measured once and kept.

OpenVINO and ONNX Runtime are candidates. PyTorch is not: importing it takes longer than it could save on a photo, and
it is the slowest of the three on a CPU; it is taken where it is all that is installed. The measurement is a few runs of
both on one small picture, about a second at most; the answer is kept in `engines.json` in the user's cache folder and
asked for again when the processor, the number of cores, an engine's version, the model, the threads or the precision
are others. FAIRWEATHER_ENGINE_MEASURE=0 switches it off: then the first that is installed is taken, OpenVINO.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import FairweatherError, MissingExtra
from fairweather.files import atomic

Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Open = Callable[[str], Engine]

SWITCH = "FAIRWEATHER_ENGINE_MEASURE"
PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
"""Engine -> the package that it needs, in the order in which they are taken where nothing is measured."""
CANDIDATES = ("openvino", "onnxruntime")
SECONDS = 0.8
"""What measuring may take beside opening the engine that is taken anyway; what has been found by then decides."""
RUNS = 3
SIDE = 256
"""About the side of the picture that is measured on; a network of reduced photos gets its own size."""
SAME = 1 / 255
"""Engines whose answers are further apart than this somewhere are not exchanged for each other."""
MARGIN = 0.9
"""Another engine than the first is taken where it needs less than this share of the first one's time."""
_log = logging.getLogger("fairweather")


class Choice(NamedTuple):
    name: str
    why: str
    engine: Engine | None = None
    """Opened already, if it was measured."""


def choose(card: Any, threads: int | None, precision: str, open_: Open) -> Choice:
    """The engine for a model; `open_` opens one by its name. Raises MissingExtra where there is none."""
    first, why = first_installed()
    rivals = [name for name in CANDIDATES if name != first and _installed(name)]
    measured = first in CANDIDATES and rivals and isinstance(card, cards.Card) and precision != "bf16"
    if not measured or os.environ.get(SWITCH, "1") == "0":
        return Choice(first, why)
    assert isinstance(card, cards.Card)
    path, names = cache_file(), [first, *rivals]
    key = identity(card, threads, precision, names)
    kept = _kept(path)
    if kept.get(key) in names:
        return Choice(str(kept[key]), f"auto: measured before, see {path}")
    start = time.perf_counter()
    choice = _fastest(names, _picture(card), open_)
    _log.info("engine: measured in %.1f s; %s=0 switches that off", time.perf_counter() - start, SWITCH)
    _keep(path, {**kept, key: choice.name})
    return choice


def first_installed() -> tuple[str, str]:
    """The first engine of PACKAGES that is installed, and why it is this one. Raises MissingExtra."""
    missing: list[str] = []
    for name in PACKAGES:
        if _installed(name):
            return name, "auto: " + (f"{' and '.join(missing)} not installed" if missing else "the default on a CPU")
        missing.append(name)
    raise MissingExtra("onnxruntime", "onnxruntime", "restoring without OpenVINO")


def identity(card: cards.Card, threads: int | None, precision: str, names: Sequence[str]) -> str:
    """All that the answer depends on, as one line."""
    versions = [f"{name} {_version(name)}" for name in names]
    file = cards.INT8 if precision == "int8" else cards.ONNX
    model = card.checksums.get(file, card.name)[:16]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "; ".join([processor(), f"{cores} cores", *versions, f"model {model}", f"threads {threads}", precision])


def cache_file() -> Path:
    """engines.json in the user's cache folder: XDG_CACHE_HOME, or the system's place for such things."""
    places = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    home = os.path.expanduser("~")  # which stays "~" for a user whom the system does not know
    folder = Path(base) if base else Path(home if home != "~" else tempfile.gettempdir())
    return (folder if base else folder / places.get(sys.platform, ".cache")) / "fairweather" / "engines.json"


def _fastest(names: Sequence[str], picture: NDArray[np.float32], open_: Open) -> Choice:
    """The first of `names` unless another gives the same answer in clearly less time."""
    first = open_(names[0])
    start = time.perf_counter()
    expected, taken = _timed(first, picture, start)
    best = Choice(names[0], f"auto: measured, {taken * 1000:.1f} ms", first)
    least = MARGIN * taken
    for name in names[1:]:
        if time.perf_counter() - start > SECONDS / 2:
            break  # the first one's runs alone took that long, and another one's would again
        try:
            engine = open_(name)
            answer, taken = _timed(engine, picture, start)
        except (FairweatherError, RuntimeError, ImportError) as error:
            _log.info("engine: %s is no choice here (%s)", name, str(error).strip().splitlines()[-1:])
            continue
        if answer.shape != expected.shape or not np.abs(answer - expected).max() <= SAME:
            _log.info("engine: %s is no choice here: its answer differs from %s's", name, names[0])
        elif taken < least:
            best, least = Choice(name, f"auto: measured, {taken * 1000:.1f} ms", engine), taken
    return best


def _timed(engine: Engine, picture: NDArray[np.float32], start: float) -> tuple[NDArray[np.float32], float]:
    """An answer, and the median seconds of up to RUNS further ones, as long as SECONDS from `start` are not over."""
    before = time.perf_counter()
    answer = engine(picture)
    times = [time.perf_counter() - before]  # cold: counts only where there is time for no other
    while len(times) <= RUNS and time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        engine(picture)
        times.append(time.perf_counter() - before)
    return answer, statistics.median(times[1:] or times)


def _picture(card: cards.Card) -> NDArray[np.float32]:
    """1 x 3 x S x S, the same each time: smooth, as photos are."""
    side = card.maps.size if card.maps else SIDE
    side = max(1, round(side / card.multiple_of)) * card.multiple_of
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / np.float32(side)
    waves = [0.5 + 0.4 * np.sin(5 * x + k) * np.cos(7 * y - k) for k in range(3)]
    return np.ascontiguousarray(np.stack(waves)[None], np.float32)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


def _version(name: str) -> str:
    try:
        return metadata.version(PACKAGES[name])
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and others bring the same module
        return "unknown"


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _kept(path: Path) -> Mapping[str, str]:
    """What was measured before; nothing where there is no such file, or one that cannot be understood."""
    try:
        kept = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.info("engine: %s cannot be read (%s): measured anew", path, error)
        return {}
    if isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values()):
        return kept
    _log.info("engine: %s is not what was written there: measured anew", path)
    return {}


def _keep(path: Path, kept: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    except (OSError, FairweatherError) as error:
        _log.info("engine: what was measured cannot be kept (%s)", error)
