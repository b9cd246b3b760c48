"""Engines: what runs a network. An engine is any callable from one float32 array to one float32 array,

    N x 3 x h x w in [0,1], sides multiples of the card's `multiple_of`  ->  N x C x ..., C = 3 (image) or 7 (maps)

so a test's engine is a lambda. The exported networks take N = 1. The libraries are imported when their engine is
asked for, not before. A network with a memory (a card with `state`) gets an engine that takes each picture for the
first of its clip, and whose `step` goes on from a state (`fairweather.restoring.stepping`).
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import BadCard, BadSettings, MissingExtra, UnknownName
from fairweather.restoring.choosing import choose
from fairweather.restoring.stepping import engine_of

if TYPE_CHECKING:
    from torch import nn

Engine: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

PRECISIONS = ("auto", "f32", "bf16", "int8")
_log = logging.getLogger("fairweather")


def open_engine(
    name: str, folder: Path, card: cards.Card, *, threads: int | None = None, precision: str = "auto"
) -> Engine:
    """An engine for a model folder.

    `name` is one of NAMES, or "auto": the fastest here, measured once (`fairweather.restoring.choosing`); a log line
    says which and why. "onnxruntime" takes the first of PROVIDERS that is present, "onnxruntime-cpu" the one named.
    "torch-compiled" compiles the network for each new size of picture, which takes up to a minute.
    `threads` of None leaves the number to the engine. `precision`: "f32" computes in float32; "bf16" may round inside
    the network (OpenVINO only); "int8" takes the network that `fairweather quantize` put beside the other (OpenVINO and
    ONNX Runtime); "auto" is bf16 where the processor has it in hardware, about three times as fast, never int8, and f32
    where the network has a memory.
    Raises UnknownName, MissingExtra, BadSettings, and BadCard where the network cannot be read.
    """
    if name not in (*NAMES, "auto"):
        raise UnknownName("engine", name, (*NAMES, "auto"))
    if precision not in PRECISIONS:
        raise BadSettings(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if threads is not None and threads < 1:
        raise BadSettings(f"threads must be at least 1, not {threads}; leave it out for the engine's own choice")
    if precision == "int8":
        _check_quantized(name, folder, card)
    why, engine = "asked for", None
    if name == "auto":
        name, why, engine = choose(card, threads, precision, lambda one: _open(one, folder, card, threads, precision))
    if precision == "bf16" and name != "openvino":
        raise BadSettings(f"precision bf16 is for the openvino engine, not {name}: leave it out")
    engine = engine or _open(name, folder, card, threads, precision)
    _log.info("engine: %s (%s), model %s", name, why, card.name)
    return engine


def _open(name: str, folder: Path, card: cards.Card, threads: int | None, precision: str) -> Engine:
    library, _, provider = name.partition("-")
    if library == "onnxruntime":
        return _onnxruntime(folder, card, threads, precision, provider)
    return ENGINES[name](folder, card, threads, precision)


def _check_quantized(engine: str, folder: Path, card: cards.Card) -> None:
    """Raises BadSettings unless this engine can run this model in int8."""
    if engine.startswith("torch"):
        raise BadSettings(f"precision int8 is for the openvino and onnxruntime engines, not {engine}: leave it out")
    if card.quantized is None:
        raise BadSettings(
            f"precision int8: model {card.name} has no {cards.INT8}; make it one that has, with fairweather quantize "
            f"{folder} --method static --data PHOTOS -o DIR, or leave the precision out"
        )


def rebuilt(folder: Path, card: cards.Card) -> nn.Module:
    """The PyTorch generator of a model folder, with its weights, on the CPU, in eval mode. Raises BadCard."""
    import torch

    from fairweather.generators import GENERATORS

    path = folder / cards.CARD
    try:
        with torch.random.fork_rng(devices=[]):  # fresh weights draw numbers that the caller's own draws must not miss
            generator: nn.Module = GENERATORS[card.generator](**card.arguments)
    except (TypeError, ValueError) as error:
        raise BadCard(f"{path}: generator {card.generator} does not take these arguments ({error})") from None
    weights = {key: torch.from_numpy(value) for key, value in cards.read_weights(folder).items()}
    try:
        generator.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise BadCard(f"{folder / cards.WEIGHTS} does not fit generator {card.generator} of {path}: {error}") from None
    return generator.eval()


def _openvino(folder: Path, card: cards.Card, threads: int | None, precision: str) -> Engine:
    try:
        import openvino
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
    path = folder / _network(precision)
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise BadCard(f"{path} cannot be read by OpenVINO ({_last_line(error)}): export the model again") from None
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(*inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with lock:  # one request has one set of buffers
            answer = request.infer([*map(np.ascontiguousarray, inputs)], share_inputs=True, share_outputs=False)
        return [np.asarray(answer[at], np.float32) for at in range(len(inputs))]

    return engine_of(run, card)


def _onnxruntime(folder: Path, card: cards.Card, threads: int | None, precision: str, provider: str = "") -> Engine:
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
    path = folder / _network(precision)
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

    return engine_of(run, card)


def _torch(folder: Path, card: cards.Card, threads: int | None, precision: str, compiled: bool = False) -> Engine:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", "the torch engine") from None
    from fairweather.generators import exported

    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    network = exported(rebuilt(folder, card)).to(device).eval()
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

    return engine_of(run, card)


def _compiled(folder: Path, card: cards.Card, threads: int | None, precision: str) -> Engine:
    return _torch(folder, card, threads, precision, compiled=True)


def _network(precision: str) -> str:
    return cards.INT8 if precision == "int8" else cards.ONNX


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


ENGINES: dict[str, Callable[[Path, cards.Card, int | None, str], Engine]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "torch-compiled": _compiled,
}
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""ONNX Runtime's, in the order in which "onnxruntime" takes them where they are present."""
NAMES = (*ENGINES, *(f"onnxruntime-{provider}" for provider in PROVIDERS))
