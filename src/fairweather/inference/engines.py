"""Engines: what runs a network.

An engine is a callable from one float32 array to one float32 array, so a test can use a lambda:

    N x 3 x h x w in [0, 1], sides multiples of the card's `multiple_of`  ->  N x C x ..., C = 3 (image) or 7 (maps)

Exported networks take N = 1. A library is imported when its engine is opened, not before.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, FairweatherError, MissingExtra, UnknownName
from fairweather.files import atomic
from fairweather.model_folder import StateSpec

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]
Engine: TypeAlias = Callable[[Floats], Floats]
RunNetwork: TypeAlias = Callable[..., list[Floats]]
"""All inputs of a network, in its order -> all its outputs."""
Precision = Literal["auto", "f32", "bf16", "int8"]

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""ONNX Runtime's execution providers, in the order in which "onnxruntime" prefers them."""
_log = logging.getLogger("fairweather")


def open_engine(
    name: str, folder: Path, card: model_folder.Card, *, threads: int | None = None, precision: str = "auto"
) -> Engine:
    """Open the network of a model folder and log which engine runs it.

    Args:
        name: one of ENGINE_NAMES, or "auto" for the fastest one here, measured once (see `choose_engine`).
            "onnxruntime" takes the first available provider, "onnxruntime-cpu" the named one; "torch-compiled"
            compiles the network for each new image size, which takes up to a minute.
        folder: the model folder.
        card: its card.
        threads: number of threads; None leaves it to the engine.
        precision: "f32" computes in float32; "bf16" may round inside the network (OpenVINO only); "int8" runs the
            network written by `fairweather quantize` (OpenVINO and ONNX Runtime); "auto" is bf16 where the processor
            supports it, about three times as fast, and f32 elsewhere and for recurrent networks.

    Returns:
        The engine; a `RecurrentEngine` for a card with a `state`.

    Raises:
        UnknownName: there is no such engine.
        MissingExtra: its library is not installed.
        BadSettings: the engine does not support the precision, or the model has no int8 network.
        BadCard: the network cannot be read.
    """
    if name not in (*ENGINE_NAMES, "auto"):
        raise UnknownName("engine", name, (*ENGINE_NAMES, "auto"))
    if precision not in get_args(Precision):
        raise BadSettings(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}")
    if threads is not None and threads < 1:
        raise BadSettings(f"threads must be at least 1, not {threads}: omit it for the engine's default")
    if precision == "int8" and name.startswith("torch"):
        raise BadSettings(f"engine {name} does not support precision int8: use openvino or onnxruntime")
    if precision == "int8" and card.quantized is None:
        raise BadSettings(
            f"precision int8: model {card.name} has no {model_folder.INT8}: create it with fairweather quantize "
            f"{folder} --method static --data PHOTOS -o DIR, or omit the precision"
        )

    def open_(engine: str) -> Engine:
        library, _, provider = engine.partition("-")
        if library == "onnxruntime":
            return _open_onnxruntime(folder, card, threads, precision, provider)
        return ENGINES[engine](folder, card, threads, precision)

    choice = choose_engine(card, threads, precision, open_) if name == "auto" else EngineChoice(name, "requested")
    if precision == "bf16" and choice.name != "openvino":
        raise BadSettings(f"engine {choice.name} does not support precision bf16: use openvino, or omit the precision")
    engine = choice.engine or open_(choice.name)
    _log.info("engine: %s (%s), model %s", choice.name, choice.reason, card.name)
    return engine


class RecurrentEngine:
    """An engine of a network with recurrent state.

    Called with an image alone it is an engine like any other and treats the image as the first frame of a video;
    `step` continues from a state and returns the next one. The engine itself stores no state.
    """

    def __init__(self, run: RunNetwork, spec: StateSpec) -> None:
        self._run = run
        self.spec = spec

    def __call__(self, picture: Floats) -> Floats:
        return self.step(picture)[0]

    def step(self, picture: Floats, state: Floats | None = None) -> tuple[Floats, Floats]:
        """Process one frame.

        Args:
            picture: 1 x 3 x h x w in [0, 1].
            state: 1 x channels x h/stride x w/stride, as returned for the previous frame; None for the first frame.

        Returns:
            The network's output and the new state.

        Raises:
            BadSettings: the state does not fit the frame's size.
        """
        shape = (1, self.spec.channels, picture.shape[2] // self.spec.stride, picture.shape[3] // self.spec.stride)
        if state is None:
            state = np.zeros(shape, np.float32)
        elif state.shape != shape:
            raise BadSettings(
                f"the state has shape {' x '.join(map(str, state.shape))}, this frame needs "
                f"{' x '.join(map(str, shape))}: start again with state None when the frame size or the model changes"
            )
        output, after = self._run(picture, state)
        return output, after


def load_generator(folder: Path, card: model_folder.Card) -> nn.Module:
    """Load the PyTorch generator of a model folder, on the CPU and in eval mode.

    Raises:
        BadCard: the arguments or the weights do not fit the generator.
    """
    import torch

    from fairweather.generators import GENERATORS, check_generator_arguments

    path = folder / model_folder.CARD
    try:
        check_generator_arguments(card.generator, card.arguments, where=f"{path}: arguments")
        with torch.random.fork_rng(devices=[]):  # initialisation must not advance the caller's random state
            generator: nn.Module = GENERATORS[card.generator](**card.arguments)
    except BadSettings as error:
        raise BadCard(f"{error}: restore the file, or export the model again") from None
    weights = {key: torch.from_numpy(value) for key, value in model_folder.read_weights(folder).items()}
    try:
        generator.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise BadCard(
            f"{folder / model_folder.WEIGHTS} does not fit generator {card.generator} of {path} "
            f"({_last_line(error)}): export the model again"
        ) from None
    return generator.eval()


@cache
def openvino_core() -> Any:
    """The only OpenVINO core of this process, never released.

    OpenVINO's CPU plugin (2026.4) sets the thread's signal stack. When two cores are released, it restores one that it
    has freed, and the next signal, such as Ctrl-C, causes a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _open_openvino(folder: Path, card: model_folder.Card, threads: int | None, precision: str) -> Engine:
    try:
        core = openvino_core()
    except ImportError:
        raise MissingExtra("openvino", None, "the openvino engine") from None  # part of the default install: no extra
    # Height and width stay dynamic: measured on AMD EPYC, a model reshaped to one size runs within noise of the same
    # speed and costs 30-80 ms of compilation per size; OpenVINO caches its kernels per shape itself.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    # Layers left in float by quantization need float32; a recurrent state adds up small steps that bf16 rounds away.
    if precision == "int8" or (precision == "auto" and getattr(card, "state", None) is not None):
        precision_hint = "f32"
    else:
        precision_hint = precision
    if precision_hint != "auto":
        config["INFERENCE_PRECISION_HINT"] = precision_hint
    path = folder / _onnx_file(precision)
    try:
        compiled = core.compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise BadCard(f"{path}: OpenVINO cannot read it ({_last_line(error)}): export the model again") from None
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(*inputs: Floats) -> list[Floats]:
        with lock:  # a request has one set of buffers
            outputs = request.infer([*map(np.ascontiguousarray, inputs)], share_inputs=True, share_outputs=False)
        return [np.asarray(outputs[index], np.float32) for index in range(len(inputs))]

    return _as_engine(run, card)


def _open_onnxruntime(
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
    available = [short for short, full in PROVIDERS.items() if full in onnxruntime.get_available_providers()]
    if provider and provider not in available:
        raise BadSettings(
            f"engine onnxruntime-{provider}: the installed ONNX Runtime has {', '.join(available) or 'no known'} "
            "providers: use onnxruntime, or install the build for that device"
        )
    selected = [provider] if provider else available
    if selected[:1] == ["directml"]:  # DirectML supports neither
        options.enable_mem_pattern = False
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    path = folder / _onnx_file(precision)
    # "f32" is exact: CUDA's convolutions would otherwise round to 10 bits of mantissa (TF32)
    exact = {"use_tf32": 0} if precision == "f32" else {}
    providers = [(PROVIDERS[short], exact if short == "cuda" else {}) for short in dict.fromkeys([*selected, "cpu"])]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise BadCard(f"{path}: ONNX Runtime cannot read it ({_last_line(error)}): export the model again") from None
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Floats) -> list[Floats]:
        outputs = session.run(None, dict(zip(names, map(np.ascontiguousarray, inputs), strict=True)))
        return [np.asarray(one, np.float32) for one in outputs]

    return _as_engine(run, card)


def _open_torch(
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
            raise BadSettings("engine torch-compiled: no C++ compiler found: install one, or use torch")
        network = cast("nn.Module", torch.compile(network))

    def run(*inputs: Floats) -> list[Floats]:
        # "f32" is exact: cuDNN's convolutions would otherwise round to 10 bits of mantissa (TF32)
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=precision != "f32"):
            output = network(*(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in inputs))
            outputs = [output] if isinstance(output, torch.Tensor) else output
            return [np.asarray(one.float().cpu().numpy(), np.float32) for one in outputs]

    return _as_engine(run, card)


def _as_engine(run: RunNetwork, card: Any) -> Engine:
    spec: StateSpec | None = getattr(card, "state", None)
    return RecurrentEngine(run, spec) if spec is not None else lambda picture: run(picture)[0]


def _onnx_file(precision: str) -> str:
    return model_folder.INT8 if precision == "int8" else model_folder.ONNX


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


ENGINES: dict[str, Callable[[Path, model_folder.Card, int | None, str], Engine]] = {
    "openvino": _open_openvino,
    "onnxruntime": _open_onnxruntime,
    "torch": _open_torch,
    "torch-compiled": partial(_open_torch, compiled=True),
}
ENGINE_NAMES = (*ENGINES, *(f"onnxruntime-{provider}" for provider in PROVIDERS))

# The benchmark behind "auto". OpenVINO and ONNX Runtime are candidates; PyTorch is used only where nothing else is
# installed, because importing it takes longer than it could save on a photo. The result is cached on disk.

BENCHMARK_SWITCH = "FAIRWEATHER_ENGINE_MEASURE"
"""Environment variable; 0 turns the benchmark off."""
ENGINE_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
"""Engine -> the package it needs, in order of preference without a benchmark."""
CANDIDATES = ("openvino", "onnxruntime")
BENCHMARK_SECONDS = 0.8
"""Time limit of the benchmark, not counting the opening of the preferred engine."""
BENCHMARK_RUNS = 3
BENCHMARK_SIDE = 256
"""Approximate side of the test image in pixels, for networks that do not work on a reduced photo."""
ENGINE_TOLERANCE = 1 / 255
"""Maximum difference between the outputs of interchangeable engines."""
ENGINE_MARGIN = 0.9
"""Another engine replaces the preferred one when it takes less than this share of its time."""


class EngineChoice(NamedTuple):
    """The engine to use, why, and the opened engine if the benchmark opened it."""

    name: str
    reason: str
    engine: Engine | None = None


def choose_engine(card: Any, threads: int | None, precision: str, open_: Callable[[str], Engine]) -> EngineChoice:
    """Choose the fastest installed engine for a model, measured once on this machine.

    Args:
        card: the model's card.
        threads: number of threads, part of the cache key.
        precision: as in `open_engine`, part of the cache key.
        open_: opens an engine by name.

    Raises:
        MissingExtra: no engine is installed.
    """
    installed = [name for name in ENGINE_PACKAGES if _installed(name)]
    if not installed:
        raise MissingExtra("onnxruntime", "onnxruntime", "restoring without OpenVINO")
    first = installed[0]
    missing = list(ENGINE_PACKAGES)[: list(ENGINE_PACKAGES).index(first)]
    reason = f"auto: {' and '.join(missing)} not installed" if missing else "auto: the default on a CPU"
    names = [name for name in installed if name in CANDIDATES]
    comparable = first in CANDIDATES and len(names) > 1 and isinstance(card, model_folder.Card) and precision != "bf16"
    if not comparable or os.environ.get(BENCHMARK_SWITCH, "1") == "0":
        return EngineChoice(first, reason)
    path, key = benchmark_cache_file(), benchmark_key(card, threads, precision, names)
    cached = _read_benchmark_cache(path)
    if cached.get(key) in names:
        return EngineChoice(str(cached[key]), f"auto: measured before, see {path}")
    start = time.perf_counter()
    choice = _fastest(names, _benchmark_picture(card), open_)
    _log.info("engine: benchmark took %.1f s; %s=0 turns it off", time.perf_counter() - start, BENCHMARK_SWITCH)
    _write_benchmark_cache(path, {**cached, key: choice.name})
    return choice


def benchmark_key(card: model_folder.Card, threads: int | None, precision: str, names: Sequence[str]) -> str:
    """Everything the benchmark's result depends on, as one line."""
    versions = [f"{name} {_version(name)}" for name in names]
    file = model_folder.INT8 if precision == "int8" else model_folder.ONNX
    model = card.checksums.get(file, card.name)[:16]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "; ".join([processor_name(), f"{cores} cores", *versions, f"model {model}", f"threads {threads}", precision])


def benchmark_cache_file() -> Path:
    """The path of engines.json in the user's cache folder."""
    import platformdirs

    folder = platformdirs.user_cache_path("fairweather", appauthor=False)
    if not folder.is_absolute():  # a user without a home directory
        folder = Path(tempfile.gettempdir(), "fairweather")
    return folder / "engines.json"


def processor_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _fastest(names: Sequence[str], picture: Floats, open_: Callable[[str], Engine]) -> EngineChoice:
    """The first of `names` unless another gives the same output in clearly less time."""
    first = open_(names[0])
    start = time.perf_counter()
    expected, seconds = _timed(first, picture, start)
    best = EngineChoice(names[0], f"auto: measured, {seconds * 1000:.1f} ms", first)
    limit = ENGINE_MARGIN * seconds
    for name in names[1:]:
        if time.perf_counter() - start > BENCHMARK_SECONDS / 2:
            break  # another engine's runs would take as long as the first one's
        try:
            engine = open_(name)
            output, seconds = _timed(engine, picture, start)
        except (FairweatherError, RuntimeError, ImportError) as error:
            _log.info("engine: %s fails here (%s)", name, str(error).strip().splitlines()[-1:])
            continue
        if output.shape != expected.shape or not np.abs(output - expected).max() <= ENGINE_TOLERANCE:
            _log.info("engine: %s is not used: its output differs from %s's", name, names[0])
        elif seconds < limit:
            best, limit = EngineChoice(name, f"auto: measured, {seconds * 1000:.1f} ms", engine), seconds
    return best


def _timed(engine: Engine, picture: Floats, start: float) -> tuple[Floats, float]:
    """The output, and the median seconds of up to BENCHMARK_RUNS further runs within BENCHMARK_SECONDS of `start`."""
    before = time.perf_counter()
    output = engine(picture)
    times = [time.perf_counter() - before]  # the cold run counts only if there is no time for another
    while len(times) <= BENCHMARK_RUNS and time.perf_counter() - start < BENCHMARK_SECONDS:
        before = time.perf_counter()
        engine(picture)
        times.append(time.perf_counter() - before)
    return output, statistics.median(times[1:] or times)


def _benchmark_picture(card: model_folder.Card) -> Floats:
    """A fixed smooth image, 1 x 3 x S x S."""
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
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and others install the same module
        return "unknown"


def _read_benchmark_cache(path: Path) -> Mapping[str, str]:
    try:
        cached = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.info("engine: cannot read %s (%s): measuring again", path, error)
        return {}
    if isinstance(cached, dict) and all(isinstance(value, str) for value in cached.values()):
        return cached
    _log.info("engine: %s has unexpected contents: measuring again", path)
    return {}


def _write_benchmark_cache(path: Path, results: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except (OSError, FairweatherError) as error:
        _log.info("engine: cannot cache the benchmark's result (%s)", error)
