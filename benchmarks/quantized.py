"""Cost and gain of int8: milliseconds, megabytes and dB of each model with each quantization method.

    python benchmarks/quantized.py --out DIR [--model dehaze ...|PATH ...] [--method dynamic static qat]
                                   [--data ../shared/data] [--steps 200] [--photos N] [--size 1920x1080] [--runs 9]

Each line is `fairweather quantize` on the training photos of the model's weather (below `train/` of --data), then
measured on its test sets by OpenVINO: PSNR in dB (protocol rgb, guards on, full size) of the float model in float32,
and the change with int8. Models in DIR are not quantized again. Milliseconds are of the network alone on a photo of
--size, medians of --runs runs with all precisions in turn, in OpenVINO; without bf16 in hardware OpenVINO computes in
float32. A model that misses the limit is kept with --force and marked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measuring import DATA, warn_if_busy

from fairweather import model_folder
from fairweather.deploy import quantization, sample_photos
from fairweather.deploy.quantization import QUANTIZE_METHODS, quantize_model
from fairweather.errors import FairweatherError
from fairweather.evaluation import PROTOCOLS, score_set
from fairweather.evaluation.scores import restore_pairs
from fairweather.inference import load
from fairweather.pairs import find_sets

MODELS = ("dehaze-fast", "dehaze", "derain-fast", "derain")
TRAIN = {"haze": ("sots_outdoor", "sots_indoor", "o_haze", "nh_haze"), "rain": ("rain100",)}
TEST = {"haze": ("sots_outdoor", "sots_indoor", "i_haze", "nh_haze2"), "rain": ("rain100",)}
PRECISIONS = ("f32", "bf16", "int8")


@dataclass(frozen=True)
class Line:
    """One model quantized with one method."""

    model: str
    method: str
    floats: str
    """Number of float layers, and of all layers."""
    passed: bool
    ms: Mapping[str, float]
    megabytes: tuple[float, float]
    """File sizes of the float and the int8 network."""
    decibels: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)
    """Test set -> number of photos, PSNR of the float model, PSNR of int8."""


def linked(data: Path, names: Sequence[str], target: Path) -> Path:
    """A folder with links to some folders of `data`, for the --data of one command."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = target / name
        if not link.exists():
            link.symlink_to((data / name).resolve(), target_is_directory=True)
    return target


def measure(model: str, method: str, options: argparse.Namespace) -> Line:
    """Quantize unless the result exists, and measure."""
    float_folder = model_folder.find(model)
    card = model_folder.read_card(float_folder)
    folder = options.out / f"{card.name}-{method}"
    if not (folder / model_folder.CARD).is_file():
        data = linked(options.data / "train", TRAIN[card.weather], options.out / " + ".join(TRAIN[card.weather]))
        quantize_model(model, folder, method=method, data=data, steps=options.steps, force=True)
    card = model_folder.read_card(folder)
    record = card.quantized
    assert record is not None, f"{folder} has no int8 network"
    size = quantization.network_cost(folder, card, size=options.size, runs=options.runs, precisions=PRECISIONS)
    restorers = [load(folder, engine="openvino", precision=precision) for precision in ("f32", "int8")]
    found = {}
    for set_name, pairs in sets(options.data / "test", TEST[card.weather]).items():
        asked = sample_photos.spread_evenly(pairs, options.photos or len(pairs))
        before, after = (score_set(set_name, asked, restore_pairs(one), PROTOCOLS["rgb"]) for one in restorers)
        if not (before.failed or after.failed):
            found[set_name] = (len(asked), before.scores[0].value, after.scores[0].value)
    megabytes = size["megabytes"]
    return Line(
        model=card.name,
        method=method,
        floats=f"{len(record['float_layers'])} of {record['layers']}",
        passed=record["passed"],
        ms=size["ms"],
        megabytes=(megabytes[model_folder.ONNX], megabytes[model_folder.INT8]),
        decibels=found,
    )


def sets(data: Path, names: Sequence[str]) -> dict[str, list]:  # type: ignore[type-arg]
    return {name: pairs for one in names for name, pairs in find_sets(data / one).items()}


def markdown(lines: Sequence[Line]) -> str:
    """The table; changes of PSNR beyond the limit are bold."""
    heads = ["model", "method", "layers in float", *(f"{name} ms" for name in PRECISIONS), "x f32", "x bf16"]
    heads += ["float MB", "int8 MB", "PSNR float -> int8, dB"]
    rows = ["| " + " | ".join(heads) + " |", "|---|---" + "|--:" * (len(heads) - 3) + "|---|"]
    for line in lines:
        ms = line.ms
        changes = [
            f"{name} ({n}) {before:.2f} {_change(after - before, line.method)}"
            for name, (n, before, after) in line.decibels.items()
        ]
        cells = [line.model, line.method + ("" if line.passed else " (below the bar, forced)"), line.floats]
        cells += [f"{ms[name]:.1f}" for name in PRECISIONS]
        cells += [f"{ms['f32'] / ms['int8']:.2f}", f"{ms['bf16'] / ms['int8']:.2f}"]
        cells += [*(f"{size:.2f}" for size in line.megabytes), ", ".join(changes)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _change(change: float, method: str) -> str:
    from fairweather.deploy.parity import MAX_DROP

    return f"{change:+.2f}" if -change <= MAX_DROP[method] else f"**{change:+.2f}**"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="NAME|PATH")
    parser.add_argument("--method", nargs="+", choices=QUANTIZE_METHODS, default=list(QUANTIZE_METHODS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--photos", type=int, default=0, help="maximum number of photos of each test set (default: all)"
    )
    parser.add_argument("--size", type=_size, default=quantization.COST_SIZE, metavar="WIDTHxHEIGHT")
    parser.add_argument("--runs", type=int, default=9)
    return parser


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return height, width


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    warn_if_busy()
    lines = []
    for model in options.model:
        for method in options.method:
            try:
                lines.append(measure(model, method, options))
            except FairweatherError as error:
                print(f"quantized.py: {model} by {method}: {error}", file=sys.stderr)
    if lines:
        print(markdown(lines))
    return 0 if len(lines) == len(options.model) * len(options.method) else 1


if __name__ == "__main__":
    sys.exit(main())
