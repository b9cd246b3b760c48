"""Measured limits of the machine: MACs per second in convolutions and matrix products, and copy bandwidth.

    python benchmarks/limits.py

A 3 x 3 convolution of 64 to 64 channels on 128 x 128 and a product of two 1024 x 1024 matrices, by OpenVINO in
float32, bfloat16 and int8 (quantized activations and weights, as in static quantization), and a plain copy of 64 MB.
Without hardware support a precision is no faster than float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS, SIDE, MATRIX = 64, 128, 1024
PRECISIONS = ("f32", "bf16", "int8")
RUNS = 15
Floats = NDArray[np.float32]


def measure(runs: int = RUNS) -> dict[str, float]:
    """MACs per second by "convolution f32", "product int8", ...; bytes per second, read and written, by "copy"."""
    found = {}
    for precision in PRECISIONS:
        convolution, product = _convolution(precision), _product(precision)
        found[f"convolution {precision}"] = CHANNELS * CHANNELS * 9 * SIDE * SIDE / median(convolution, runs)
        found[f"product {precision}"] = MATRIX**3 / median(product, runs)
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    found["copy"] = 2 * source.nbytes / median(lambda: np.copyto(target, source), runs)
    return found


def median(work: Callable[[], Any], runs: int) -> float:
    """Median seconds after two warm-up runs."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _convolution(precision: str) -> Callable[[], Any]:
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    picture = op.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    sides = [_quantized(picture, precision), _quantized(op.constant(weights), precision)]
    answer = op.convolution(*sides, [1, 1], [1, 1], [1, 1], [1, 1])
    return _compiled(answer, picture, precision, rng.uniform(-1, 1, (1, CHANNELS, SIDE, SIDE)).astype(np.float32))


def _product(precision: str) -> Callable[[], Any]:
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    matrix = rng.uniform(-1, 1, (MATRIX, MATRIX)).astype(np.float32)
    left = op.parameter([MATRIX, MATRIX], np.float32)
    answer = op.matmul(_quantized(left, precision), _quantized(op.constant(matrix), precision), False, True)
    return _compiled(answer, left, precision, matrix)


def _quantized(values: Any, precision: str) -> Any:
    """For int8, quantize to 256 levels in [-1, 1], so that OpenVINO multiplies integers."""
    from openvino import opset13 as op

    if precision != "int8":
        return values
    low, high = (op.constant(np.array(bound, np.float32)) for bound in (-1.0, 127 / 128))
    return op.fake_quantize(values, low, high, low, high, 256)


def _compiled(answer: Any, parameter: Any, precision: str, values: Floats) -> Callable[[], Any]:
    import openvino

    from fairweather.inference.engines import openvino_core

    hint = "bf16" if precision == "bf16" else "f32"  # the float part of an int8 network
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino_core().compile_model(openvino.Model([answer], [parameter], "limit"), "CPU", config)
    request = compiled.create_infer_request()
    return lambda: request.infer([values], share_inputs=True, share_outputs=True)


def markdown(found: dict[str, float]) -> str:
    lines = ["| the machine's limit | " + " | ".join(PRECISIONS) + " |", "|---|" + "--:|" * len(PRECISIONS)]
    for kind, what in (("convolution", "3 x 3 convolution, 10^9 MACs/s"), ("product", "matrix product, 10^9 MACs/s")):
        lines.append(f"| {what} | " + " | ".join(f"{found[f'{kind} {p}'] / 1e9:.0f}" for p in PRECISIONS) + " |")
    return "\n".join([*lines, "", f"A plain copy moves {found['copy'] / 1e9:.1f} GB/s (read and written together)."])


if __name__ == "__main__":
    print(markdown(measure()))
