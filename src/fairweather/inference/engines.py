"""Networks with a memory, frame by frame: state in, state out, and nothing kept in between."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, FairweatherError, MissingExtra, UnknownName
from fairweather.files import atomic
from fairweather.model_folder import StateSpec

if TYPE_CHECKING:
    from torch import nn

    from fairweather.inference.restorer import HazeMaps, Restorer

Floats = NDArray[np.float32]
RunNetwork = Callable[..., list[Floats]]
"""A network's inputs, in its own order -> all its outputs."""


class RecurrentEngine:
    """An engine of a network with a memory. Called with a picture alone it is an engine like any other, for which each
    picture is the first of its clip; `step` goes on from a state."""

    def __init__(self, run: RunNetwork, spec: StateSpec) -> None:
        self._run = run
        self.spec = spec

    def __call__(self, picture: Floats) -> Floats:
        return self.step(picture)[0]

    def step(self, picture: Floats, state: Floats | None = None) -> tuple[Floats, Floats]:
        """1 x 3 x h x w in [0, 1], and the state behind the frame before (None: there is none) -> the answer, and the
        state behind this one, 1 x channels x h/stride x w/stride. Raises BadSettings for a state of another size."""
        shape = (1, self.spec.channels, picture.shape[2] // self.spec.stride, picture.shape[3] // self.spec.stride)
        if state is None:
            state = np.zeros(shape, np.float32)
        elif state.shape != shape:
            raise BadSettings(
                f"a state of {' x '.join(map(str, state.shape))} does not belong to this frame, whose own is "
                f"{' x '.join(map(str, shape))}: begin anew (state None) where frames change their size or model"
            )
        answer, after = self._run(picture, state)
        return answer, after


def wrap_engine(run: RunNetwork, card: Any) -> Callable[[Floats], Floats]:
    """The engine of a card (or what is like one) whose network is run by `run`."""
    spec: StateSpec | None = getattr(card, "state", None)
    return RecurrentEngine(run, spec) if spec is not None else lambda picture: run(picture)[0]


def recurrent_step(restorer: Restorer, frame: NDArray[Any], state: Floats | None = None) -> tuple[HazeMaps, Floats]:
    """What a restorer whose model has a memory sees in the next frame of a clip, and the state behind it.

    frame: H x W x 3 uint8, uint16 or float32 in [0, 1]. state: what the call for the frame before gave; None for the
    first frame, and after a cut. `restorer.apply_maps(frame, seen)` is the restored frame, at any strength. The restorer
    keeps nothing of it, so that one restorer may be in the middle of several clips.
    Raises BadSettings (a model without a memory, a state of another size), and BadImage as a call of the restorer does.
    """
    from fairweather.inference.restorer import Restorer

    engine = restorer.engine
    if not isinstance(engine, RecurrentEngine):
        raise BadSettings(
            f"model {restorer.card.name} has no memory: take one whose card has a state, or frame by frame"
        )
    behind: list[Floats] = []

    def run(picture: Floats) -> Floats:
        answer, after = engine.step(picture, state)
        behind.append(after)
        return answer

    seen = Restorer(restorer.card, run, memory=1).predict_maps(frame)  # with all that it checks on the way
    return seen, behind[-1]


# What "auto" takes: the installed engine that is fastest with a model on this machine, measured once and kept.
#
# OpenVINO and ONNX Runtime are candidates. PyTorch is not: importing it takes longer than it could save on a photo, and
# it is the slowest of the three on a CPU; it is taken where it is all that is installed. The measurement is a few runs of
# both on one small picture, about a second at most; the answer is kept in `engines.json` in the user's cache folder and
# asked for again when the processor, the number of cores, an engine's version, the model, the threads or the precision
# are others. FAIRWEATHER_ENGINE_MEASURE=0 switches it off: then the first that is installed is taken, OpenVINO.

_Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]
OpenEngine = Callable[[str], _Engine]

BENCHMARK_SWITCH = "FAIRWEATHER_ENGINE_MEASURE"
ENGINE_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
"""Engine -> the package that it needs, in the order in which they are taken where nothing is measured."""
CANDIDATES = ("openvino", "onnxruntime")
BENCHMARK_SECONDS = 0.8
"""What measuring may take beside opening the engine that is taken anyway; what has been found by then decides."""
BENCHMARK_RUNS = 3
BENCHMARK_SIDE = 256
"""About the side of the picture that is measured on; a network of reduced photos gets its own size."""
ENGINE_TOLERANCE = 1 / 255
"""Engines whose answers are further apart than this somewhere are not exchanged for each other."""
ENGINE_MARGIN = 0.9
"""Another engine than the first is taken where it needs less than this share of the first one's time."""
_log = logging.getLogger("fairweather")


class EngineChoice(NamedTuple):
    name: str
    why: str
    engine: _Engine | None = None
    """Opened already, if it was measured."""


def choose_engine(card: Any, threads: int | None, precision: str, open_: OpenEngine) -> EngineChoice:
    """The engine for a model; `open_` opens one by its name. Raises MissingExtra where there is none."""
    first, why = first_installed()
    rivals = [name for name in CANDIDATES if name != first and _installed(name)]
    measured = first in CANDIDATES and rivals and isinstance(card, model_folder.Card) and precision != "bf16"
    if not measured or os.environ.get(BENCHMARK_SWITCH, "1") == "0":
        return EngineChoice(first, why)
    assert isinstance(card, model_folder.Card)
    path, names = benchmark_cache_file(), [first, *rivals]
    key = benchmark_key(card, threads, precision, names)
    kept = _read_benchmark_cache(path)
    if kept.get(key) in names:
        return EngineChoice(str(kept[key]), f"auto: measured before, see {path}")
    start = time.perf_counter()
    choice = _fastest(names, _benchmark_picture(card), open_)
    _log.info("engine: measured in %.1f s; %s=0 switches that off", time.perf_counter() - start, BENCHMARK_SWITCH)
    _write_benchmark_cache(path, {**kept, key: choice.name})
    return choice


def first_installed() -> tuple[str, str]:
    """The first engine of PACKAGES that is installed, and why it is this one. Raises MissingExtra."""
    missing: list[str] = []
    for name in ENGINE_PACKAGES:
        if _installed(name):
            return name, "auto: " + (f"{' and '.join(missing)} not installed" if missing else "the default on a CPU")
        missing.append(name)
    raise MissingExtra("onnxruntime", "onnxruntime", "restoring without OpenVINO")


def benchmark_key(card: model_folder.Card, threads: int | None, precision: str, names: Sequence[str]) -> str:
    """All that the answer depends on, as one line."""
    versions = [f"{name} {_version(name)}" for name in names]
    file = model_folder.INT8 if precision == "int8" else model_folder.ONNX
    model = card.checksums.get(file, card.name)[:16]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "; ".join([processor_name(), f"{cores} cores", *versions, f"model {model}", f"threads {threads}", precision])


def benchmark_cache_file() -> Path:
    """engines.json in the user's cache folder: XDG_CACHE_HOME, or the system's place for such things."""
    places = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    home = os.path.expanduser("~")  # which stays "~" for a user whom the system does not know
    folder = Path(base) if base else Path(home if home != "~" else tempfile.gettempdir())
    return (folder if base else folder / places.get(sys.platform, ".cache")) / "fairweather" / "engines.json"


def _fastest(names: Sequence[str], picture: NDArray[np.float32], open_: OpenEngine) -> EngineChoice:
    """The first of `names` unless another gives the same answer in clearly less time."""
    first = open_(names[0])
    start = time.perf_counter()
    expected, taken = _timed(first, picture, start)
    best = EngineChoice(names[0], f"auto: measured, {taken * 1000:.1f} ms", first)
    least = ENGINE_MARGIN * taken
    for name in names[1:]:
        if time.perf_counter() - start > BENCHMARK_SECONDS / 2:
            break  # the first one's runs alone took that long, and another one's would again
        try:
            engine = open_(name)
            answer, taken = _timed(engine, picture, start)
        except (FairweatherError, RuntimeError, ImportError) as error:
            _log.info("engine: %s is no choice here (%s)", name, str(error).strip().splitlines()[-1:])
            continue
        if answer.shape != expected.shape or not np.abs(answer - expected).max() <= ENGINE_TOLERANCE:
            _log.info("engine: %s is no choice here: its answer differs from %s's", name, names[0])
        elif taken < least:
            best, least = EngineChoice(name, f"auto: measured, {taken * 1000:.1f} ms", engine), taken
    return best


def _timed(engine: _Engine, picture: NDArray[np.float32], start: float) -> tuple[NDArray[np.float32], float]:
    """An answer, and the median seconds of up to RUNS further ones, as long as SECONDS from `start` are not over."""
    before = time.perf_counter()
    answer = engine(picture)
    times = [time.perf_counter() - before]  # cold: counts only where there is time for no other
    while len(times) <= BENCHMARK_RUNS and time.perf_counter() - start < BENCHMARK_SECONDS:
        before = time.perf_counter()
        engine(picture)
        times.append(time.perf_counter() - before)
    return answer, statistics.median(times[1:] or times)


def _benchmark_picture(card: model_folder.Card) -> NDArray[np.float32]:
    """1 x 3 x S x S, the same each time: smooth, as photos are."""
    side = card.maps.size if card.maps else BENCHMARK_SIDE
    side = max(1, round(side / card.multiple_of)) * card.multiple_of
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / np.float32(side)
    waves = [0.5 + 0.4 * np.sin(5 * x + k) * np.cos(7 * y - k) for k in range(3)]
    return np.ascontiguousarray(np.stack(waves)[None], np.float32)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(ENGINE_PACKAGES[name]) is not None


def _version(name: str) -> str:
    try:
        return metadata.version(ENGINE_PACKAGES[name])
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and others bring the same module
        return "unknown"


def processor_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read_benchmark_cache(path: Path) -> Mapping[str, str]:
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


def _write_benchmark_cache(path: Path, kept: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    except (OSError, FairweatherError) as error:
        _log.info("engine: what was measured cannot be kept (%s)", error)


# Engines: what runs a network. An engine is any callable from one float32 array to one float32 array,
#
#     N x 3 x h x w in [0,1], sides multiples of the card's `multiple_of`  ->  N x C x ..., C = 3 (image) or 7 (maps)
#
# so a test's engine is a lambda. The exported networks take N = 1. The libraries are imported when their engine is
# asked for, not before. A network with a memory (a card with `state`) gets an engine that takes each picture for the
# first of its clip, and whose `step` goes on from a state (`fairweather.inference.engines`).

Engine: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

PRECISIONS = ("auto", "f32", "bf16", "int8")


def open_engine(
    name: str, folder: Path, card: model_folder.Card, *, threads: int | None = None, precision: str = "auto"
) -> Engine:
    """An engine for a model folder.

    `name` is one of NAMES, or "auto": the fastest here, measured once (`fairweather.inference.engines`); a log line
    says which and why. "onnxruntime" takes the first of PROVIDERS that is present, "onnxruntime-cpu" the one named.
    "torch-compiled" compiles the network for each new size of picture, which takes up to a minute.
    `threads` of None leaves the number to the engine. `precision`: "f32" computes in float32; "bf16" may round inside
    the network (OpenVINO only); "int8" takes the network that `fairweather quantize` put beside the other (OpenVINO and
    ONNX Runtime); "auto" is bf16 where the processor has it in hardware, about three times as fast, never int8, and f32
    where the network has a memory.
    Raises UnknownName, MissingExtra, BadSettings, and BadCard where the network cannot be read.
    """
    if name not in (*ENGINE_NAMES, "auto"):
        raise UnknownName("engine", name, (*ENGINE_NAMES, "auto"))
    if precision not in PRECISIONS:
        raise BadSettings(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if threads is not None and threads < 1:
        raise BadSettings(f"threads must be at least 1, not {threads}; leave it out for the engine's own choice")
    if precision == "int8":
        _check_quantized(name, folder, card)
    why, engine = "asked for", None
    if name == "auto":
        name, why, engine = choose_engine(
            card, threads, precision, lambda one: _open(one, folder, card, threads, precision)
        )
    if precision == "bf16" and name != "openvino":
        raise BadSettings(f"precision bf16 is for the openvino engine, not {name}: leave it out")
    engine = engine or _open(name, folder, card, threads, precision)
    _log.info("engine: %s (%s), model %s", name, why, card.name)
    return engine


def _open(name: str, folder: Path, card: model_folder.Card, threads: int | None, precision: str) -> Engine:
    library, _, provider = name.partition("-")
    if library == "onnxruntime":
        return _onnxruntime(folder, card, threads, precision, provider)
    return ENGINES[name](folder, card, threads, precision)


def _check_quantized(engine: str, folder: Path, card: model_folder.Card) -> None:
    """Raises BadSettings unless this engine can run this model in int8."""
    if engine.startswith("torch"):
        raise BadSettings(f"precision int8 is for the openvino and onnxruntime engines, not {engine}: leave it out")
    if card.quantized is None:
        raise BadSettings(
            f"precision int8: model {card.name} has no {model_folder.INT8}; make it one that has, with fairweather quantize "
            f"{folder} --method static --data PHOTOS -o DIR, or leave the precision out"
        )


def load_generator(folder: Path, card: model_folder.Card) -> nn.Module:
    """The PyTorch generator of a model folder, with its weights, on the CPU, in eval mode. Raises BadCard."""
    import torch

    from fairweather.generators import GENERATORS, check_generator_arguments

    path = folder / model_folder.CARD
    try:
        check_generator_arguments(card.generator, card.arguments, where=f"{path}: arguments")
        with torch.random.fork_rng(devices=[]):  # fresh weights draw numbers that the caller's own draws must not miss
            generator: nn.Module = GENERATORS[card.generator](**card.arguments)
    except BadSettings as error:
        raise BadCard(f"{error}; restore the file, or export the model again") from None
    weights = {key: torch.from_numpy(value) for key, value in model_folder.read_weights(folder).items()}
    try:
        generator.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise BadCard(
            f"{folder / model_folder.WEIGHTS} does not fit generator {card.generator} of {path}: {error}"
        ) from None
    return generator.eval()


@cache
def openvino_core() -> Any:
    """The only OpenVINO core of this process, never released.

    OpenVINO's CPU plugin (2026.4) sets the thread's signal stack. When two cores are released, it restores one that it
    has freed, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _openvino(folder: Path, card: model_folder.Card, threads: int | None, precision: str) -> Engine:
    try:
        core = openvino_core()
    except ImportError:
        # no extra: the default install brings it, and where that is not what there is, its own name is the remedy
        raise MissingExtra("openvino", None, "the openvino engine") from None
    # Free height and width stay free: measured on AMD EPYC, a model reshaped to one size runs within noise of the
    # same speed and costs 30-80 ms of compilation a size; OpenVINO keeps its kernels per shape itself.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    # What is left in float in a quantized network was left so because it needs it; and a memory adds up small steps,
    # which bf16 rounds away one by one.
    whole = precision == "int8" or (precision == "auto" and getattr(card, "state", None) is not None)
    if whole or precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = "f32" if whole else precision
    path = folder / _onnx_file(precision)
    try:
        compiled = core.compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise BadCard(f"{path} cannot be read by OpenVINO ({_last_line(error)}): export the model again") from None
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(*inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with lock:  # one request has one set of buffers
            answer = request.infer([*map(np.ascontiguousarray, inputs)], share_inputs=True, share_outputs=False)
        return [np.asarray(answer[at], np.float32) for at in range(len(inputs))]

    return wrap_engine(run, card)


def _onnxruntime(
    folder: Path, card: model_folder.Card, threads: int | None, precision: str, provider: str = ""
) -> Engine:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "onnxruntime", "the onnxruntime engine") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    present = [short for short, full in PROVIDERS.items() if full in onnxruntime.get_available_providers()]
    if provider and provider not in present:
        raise BadSettings(
            f"engine onnxruntime-{provider}: the ONNX Runtime that is installed has {', '.join(present) or 'no'} "
            "providers that are known here; take onnxruntime, or install the build for that device"
        )
    taken = [provider] if provider else present
    if taken[:1] == ["directml"]:  # it allows neither
        options.enable_mem_pattern = False
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    path = folder / _onnx_file(precision)
    # "f32" means it: CUDA's convolutions would otherwise round to 10 bits of mantissa (TF32)
    exact = {"use_tf32": 0} if precision == "f32" else {}
    providers = [(PROVIDERS[short], exact if short == "cuda" else {}) for short in dict.fromkeys([*taken, "cpu"])]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises classes of its own, derived from Exception alone
        raise BadCard(f"{path} cannot be read by ONNX Runtime ({_last_line(error)}): export the model again") from None
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        answer = session.run(None, dict(zip(names, map(np.ascontiguousarray, inputs), strict=True)))
        return [np.asarray(one, np.float32) for one in answer]

    return wrap_engine(run, card)


def _torch(
    folder: Path, card: model_folder.Card, threads: int | None, precision: str, compiled: bool = False
) -> Engine:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", "the torch engine") from None
    from fairweather.generators import exported

    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    network = exported(load_generator(folder, card)).to(device).eval()
    if compiled:
        if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
            raise BadSettings("engine torch-compiled needs a C++ compiler and finds none: install one, or take torch")
        network = cast("nn.Module", torch.compile(network))

    def run(*inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        # "f32" means it: cuDNN's convolutions would otherwise round to 10 bits of mantissa (TF32)
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=precision != "f32"):
            answer = network(*(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in inputs))
            answers = [answer] if isinstance(answer, torch.Tensor) else answer
            return [np.asarray(one.float().cpu().numpy(), np.float32) for one in answers]

    return wrap_engine(run, card)


def _torch_compiled(folder: Path, card: model_folder.Card, threads: int | None, precision: str) -> Engine:
    return _torch(folder, card, threads, precision, compiled=True)


def _onnx_file(precision: str) -> str:
    return model_folder.INT8 if precision == "int8" else model_folder.ONNX


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


ENGINES: dict[str, Callable[[Path, model_folder.Card, int | None, str], Engine]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "torch-compiled": _torch_compiled,
}
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""ONNX Runtime's, in the order in which "onnxruntime" takes them where they are present."""
ENGINE_NAMES = (*ENGINES, *(f"onnxruntime-{provider}" for provider in PROVIDERS))
