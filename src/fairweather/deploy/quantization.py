"""Quantization of a model folder: model.int8.onnx next to the float network, written only if its pictures match.

The card's `quantized` records:

    method         dynamic (weights), static (calibrated) or qat (fine-tuned)
    calibration    data, photos: what ranges were measured on; for qat also steps, the step that was kept (0: none
                   improved on calibration alone) and the number of photos trained on
    layers         number of layers that can be int8
    float_layers   layer -> why it stays in float
    data, pairs    what the comparison was measured on, and whether with ground truth
    bar            the required similarity
    parity         engine and precision ("openvino int8", ...) -> similarity to the float model
    passed         whether the bar was reached; if not, `failures` lists the reasons
    cost           milliseconds, megabytes, processor; `slow` explains a small speed-up
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from fairweather import model_folder
from fairweather.deploy import int8, parity, sample_photos
from fairweather.deploy.onnx_export import write_onnx
from fairweather.deploy.parity import Similarity, SimilarityBar
from fairweather.deploy.sample_photos import CalibrationSample, SampleSet
from fairweather.errors import BadSettings, ParityFailed, UnknownName
from fairweather.files import atomic_folder, check_place, recover, refuse_other_than_model, refuse_within
from fairweather.images import to_float
from fairweather.inference import haze_maps
from fairweather.inference.engines import ENGINES, load_generator, processor_name
from fairweather.inference.restorer import Restorer

QUANTIZE_METHODS = tuple(parity.MAX_DROP)
SEARCH_PHOTOS, SEARCH_SIDE = 8, 256
"""Number of photos on which single layers are measured, and the side of the crop that is used of each."""
SEARCH_SLACK = 0.2
"""Share by which the bar is higher during the search, which uses few photos."""
COST_SIZE = (1080, 1920)
SMALLER_SIZE = (512, 512)
COST_SECONDS = 6.0
"""Networks that take longer at COST_SIZE are timed at SMALLER_SIZE."""
EXPECTED_SPEEDUP = 1.8
"""A smaller speed-up over float32 is explained on the card."""
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""Names in /proc/cpuinfo of instructions that multiply and add int8 in one step."""
_log = logging.getLogger("fairweather")


def quantize_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: Literal["dynamic", "static", "qat"],
    data: str | os.PathLike[str] | None = None,
    force: bool = False,
    steps: int = 200,
    timed_at: tuple[int, int] = COST_SIZE,
) -> model_folder.Card:
    """Write a copy of a model with an int8 network next to its float network.

    The folder is written atomically. Layers that lose too much quality in int8 stay in float.

    Args:
        model: name of a shipped model, or path of a model folder or run folder.
        out: the model folder to write; an existing model folder is replaced.
        method: dynamic (int8 weights, float computation), static (calibrated) or qat (fine-tuned, then static).
        data: folder of pairs or of degraded photos, split into calibration and measurement; dynamic needs none and is
            then measured on synthetic pictures.
        force: write a network even below the bar, and record that on the card.
        steps: number of fine-tuning steps (qat).
        timed_at: height and width of the photo for the timing.

    Returns:
        The card of the new folder.

    Raises:
        ParityFailed: the bar is missed, without `force`.
        UnknownName: `method` is unknown.
        BadSettings: data is missing, or the network is recurrent or has no convolutions.
        BadFolder, BadCard, BadImage, MissingExtra: the model, the photos, the folder or torchao cannot be used.
    """
    if method not in QUANTIZE_METHODS:
        raise UnknownName("method", method, QUANTIZE_METHODS)
    if data is None and method != "dynamic":
        raise BadSettings(
            f"--method {method} needs photos for calibration: give --data DIR, a folder of about 30 photos or pairs "
            "of the kind that the model is for"
        )
    folder, out = model_folder.find(model), Path(out)
    card = dataclasses.replace(model_folder.read_card(folder), quantized=None)
    if card.state is not None:
        raise BadSettings(
            f"model {card.name} is recurrent, and calibration on single photos does not show the ranges after many "
            "frames: use it in float"
        )
    check_place(out)
    recover(out)
    refuse_within(out, [folder, *model_folder.shipped().values(), *(() if data is None else (data,))])
    refuse_other_than_model(out)
    found = None if data is None else sample_photos.find_samples(Path(data))
    if found is None:
        pictures = parity.parity_pictures((), card)
        measured = searched = [CalibrationSample(p if p.dtype == np.float32 else to_float(p)) for p in pictures]
    else:
        measured = sample_photos.read_samples(found.measuring)
        searched = sample_photos.read_samples(found.calibrating, SEARCH_SIDE)
    with atomic_folder(out) as building:
        for name in model_folder.SUMMED:
            shutil.copyfile(folder / name, building / name)
        quantizer = Quantizer(building, card, load_generator(folder, card), method, found)
        record = quantizer.write(searched, steps)
        record |= quantizer.compare(measured, force)
        record["cost"] = network_cost(building, card, size=timed_at)
        if slow := _why_slow(record):
            record["cost"]["slow"] = slow
        return model_folder.write_card(building, dataclasses.replace(card, quantized=record))


class Quantizer:
    """Writes one int8 network into a model folder under construction, and compares it with the float model."""

    def __init__(
        self, building: Path, card: model_folder.Card, generator: nn.Module, method: str, found: SampleSet | None
    ) -> None:
        self.building, self.card, self.generator = building, card, generator
        self.method, self.found = method, found
        self.bar = parity.similarity_bar(card, method, paired=found is not None and found.paired)
        self.source = int8.prepare_graph(onnx.load(building / model_folder.ONNX))
        self.layers = list(int8.quantizable_layers(self.source))
        self.ranges: int8.ActivationRanges = {}
        if not self.layers:
            raise BadSettings(f"model {card.name} has no convolution that can be quantized: use it in float")

    def write(self, searched: Sequence[CalibrationSample], steps: int) -> dict[str, Any]:
        """Write model.int8.onnx and return the first part of the record."""
        record: dict[str, Any] = {"method": self.method, "layers": len(self.layers)}
        if self.found is not None and self.method != "dynamic":
            calibrating = sample_photos.read_samples(self.found.calibrating)
            inputs = self._inputs(calibrating)
            self.ranges = int8.measured_ranges(self.source, inputs)
            record["calibration"] = {"data": self.found.folder, "photos": len(calibrating)}
        floats = int8.outer_layers(self.source)
        inner = [layer for layer in self.layers if layer not in floats]
        lossy = self._search(inner, searched)
        if len(lossy) == len(inner):
            _log.warning("no selection of float layers reaches the bar: quantizing all layers")
        else:
            floats |= lossy
        if self.found is not None and self.method == "qat":
            from fairweather.deploy import qat

            tuned = qat.fine_tune(self.generator, self.found.training, floats=list(floats), steps=steps)
            path = self.building / "tuned.onnx"
            write_onnx(tuned.network, path, self.card.multiple_of)
            self.source = int8.prepare_graph(onnx.load(path))
            path.unlink()
            # Ranges of layer inputs were learned; those of other tensors are measured on the tuned network.
            learned = int8.input_ranges(self.source, tuned.ranges)
            self.ranges = int8.measured_ranges(self.source, inputs) | learned
            trained = len(self.found.training)
            record["calibration"] |= {"steps": steps, "kept_step": tuned.kept, "trained_on": trained}
        network = self._quantized([layer for layer in self.layers if layer not in floats])
        onnx.save(network, self.building / model_folder.INT8)
        if floats:
            _log.info("%d of %d layers stay in float: %s", len(floats), len(self.layers), ", ".join(floats))
        return record | {"float_layers": floats}

    def compare(self, measured: Sequence[CalibrationSample], force: bool) -> dict[str, Any]:
        """Return the second part of the record. Raises ParityFailed for a network below the bar, without `force`."""
        found = parity.compare_engines(self.generator, self.building, self.card, measured)
        for network, similarity in found.items():
            _log.info("parity: %s: %s", network, similarity)
        failures = parity.parity_failures(found, self.bar)
        failures += [
            f"layer {layer}: its weights in {model_folder.INT8} are not the rounded weights of the network"
            for layer in int8.changed_layers(onnx.load(self.building / model_folder.INT8), self.source)
        ]
        if failures and not force:
            raise ParityFailed(
                f"{self.card.name} quantized by {self.method} does not match the float model: {'; '.join(failures)}: "
                "give more or more suitable photos (--data), fine-tune (--method qat), or write it anyway (--force)"
            )
        record: dict[str, Any] = {
            "data": "synthetic pictures" if self.found is None else self.found.folder,
            "pairs": self.found is not None and self.found.paired,
            "bar": {key: value for key, value in dataclasses.asdict(self.bar).items() if value is not None},
            "parity": {network: similarity.as_dict() for network, similarity in found.items()},
            "passed": not failures,
        }
        return record | ({"failures": failures} if failures else {})

    def _quantized(self, chosen: Collection[str]) -> onnx.ModelProto:
        if self.method == "dynamic":
            return int8.quantize_weights(self.source, chosen)
        return int8.quantize_static(self.source, self.ranges, chosen)

    def _search(self, layers: Sequence[str], samples: Sequence[CalibrationSample]) -> dict[str, str]:
        expected = parity.restore_by_generator(self.generator, self.card, [one.degraded for one in samples])
        with tempfile.TemporaryDirectory(dir=self.building) as folder:  # removed with `building` after a kill

            def measure(chosen: Collection[str], photos: int) -> dict[str, Similarity]:
                onnx.save(self._quantized(chosen), Path(folder) / model_folder.INT8)
                some = sample_photos.spread_evenly(samples, photos)
                pictures = sample_photos.spread_evenly(expected, photos)
                return parity.compare_engines(
                    self.generator, folder, self.card, some, precisions=["int8"], expected=pictures
                )

            return search_float_layers(
                layers,
                lambda chosen: measure(chosen, SEARCH_PHOTOS),
                self.bar,
                decide=lambda chosen: measure(chosen, len(samples)),
            )

    def _inputs(self, photos: Sequence[CalibrationSample]) -> list[NDArray[np.float32]]:
        """The network's inputs for these photos, recorded from a dummy engine."""
        inputs = []

        def record(picture: NDArray[np.float32]) -> NDArray[np.float32]:
            inputs.append(picture.copy())
            return picture if self.card.output == "image" else np.ones((1, 7, *picture.shape[2:]), np.float32)

        parity.restore_unguarded(Restorer(self.card, record), photos)
        return inputs


MeasureLoss = Callable[[Collection[str]], dict[str, Similarity]]
"""Layers in int8 -> engine -> similarity of the network with only those layers in int8 to the float network."""


def search_float_layers(
    layers: Sequence[str], measure: MeasureLoss, bar: SimilarityBar, decide: MeasureLoss | None = None
) -> dict[str, str]:
    """Search for the fewest layers that must stay in float for the network to reach the bar.

    If the network with all layers in int8 misses the bar, each layer is measured alone in int8. The worst become float:
    their number is doubled until the bar is reached, and then reduced by bisection.

    Args:
        layers: the candidates.
        measure: for single layers.
        bar: the bar; it is raised by SEARCH_SLACK.
        decide: measure for the comparison with the bar, on more photos; default: `measure`.

    Returns:
        Layer -> why it stays in float: empty if all can be int8, all layers if nothing reaches the bar.
    """
    decide = decide or measure

    def reached(count: int) -> bool:
        """Whether the bar is reached with the `count` worst layers in float."""
        floats = set(order[:count])
        found = decide([layer for layer in layers if layer not in floats])
        return all(bar.missed(similarity, SEARCH_SLACK) is None for similarity in found.values())

    order: list[str] = []
    if reached(0):
        return {}
    _log.info("all layers in int8 lose too much: measuring each of %d alone", len(layers))
    alone: dict[str, tuple[float, str]] = {}
    for layer in layers:  # by PSNR to the float network: too few ground truths to rank single layers by
        engine, worst = min(measure([layer]).items(), key=lambda one: one[1].psnr)
        alone[layer] = worst.psnr, engine
    order = sorted(layers, key=lambda layer: alone[layer][0])
    most = 1
    while most < len(order) and not reached(most):
        most *= 2
    least, most = most // 2, min(most, len(order))
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if reached(middle) else (middle, most)
    return {
        layer: "PSNR of {:.1f} dB ({}) with this layer alone in int8".format(*alone[layer]) for layer in order[:most]
    }


def network_cost(
    folder: Path,
    card: model_folder.Card,
    *,
    engine: str = "openvino",
    runs: int = 5,
    size: tuple[int, int] = COST_SIZE,
    precisions: Sequence[str] = ("f32", "int8"),
) -> dict[str, Any]:
    """Measure the speed and size of a network in each precision.

    Only the network is timed, on its input for a photo of `size` (height, width): medians of `runs` interleaved runs
    after a warm-up.

    Returns:
        engine; photo ("width x height"); ms by precision; speedup of int8 over f32; megabytes by file; processor;
        instructions for int8; load, the load average during the measurement.
    """
    networks = {precision: ENGINES[engine](folder, card, None, precision) for precision in precisions}
    picture = network_input(card, *SMALLER_SIZE)
    networks["f32"](picture)
    start = time.perf_counter()
    networks["f32"](picture)
    larger = network_input(card, *size)
    if (time.perf_counter() - start) * larger.size / picture.size > COST_SECONDS:
        size = SMALLER_SIZE
    else:
        picture = larger
    times: dict[str, list[float]] = {precision: [] for precision in networks}
    for run in range(runs + 1):
        for precision, network in networks.items():
            start = time.perf_counter()
            network(picture)
            if run:
                times[precision].append(time.perf_counter() - start)
    ms = {precision: round(1000 * statistics.median(taken), 3) for precision, taken in times.items()}
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return {
        "engine": engine,
        "photo": f"{size[1]} x {size[0]}",
        "ms": ms,
        "speedup": round(ms["f32"] / ms["int8"], 2),
        "megabytes": {
            name: round((folder / name).stat().st_size / 1e6, 3) for name in (model_folder.ONNX, model_folder.INT8)
        },
        "processor": processor_name(),
        "instructions": [word for word in INT8_INSTRUCTIONS if word in words],
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def network_input(card: model_folder.Card, height: int, width: int) -> NDArray[np.float32]:
    """The network's input, 1 x 3 x h x w, for a photo of noise of that size."""
    photo = np.random.default_rng(0).random((height, width, 3), np.float32)
    if card.maps is not None:
        return haze_maps.reduce_photo(photo, card.maps, card.multiple_of)
    reduced = haze_maps.reduce_to_pixels(photo, card.most_pixels)
    photo = photo if reduced is None else reduced
    rows, columns = (-side % card.multiple_of for side in photo.shape[:2])
    photo = np.pad(photo, ((0, rows), (0, columns), (0, 0)), mode="reflect")
    return np.ascontiguousarray(photo.transpose(2, 0, 1)[None])


def _why_slow(record: dict[str, Any]) -> str:
    """Known reasons for a speed-up below EXPECTED_SPEEDUP; empty for a larger one."""
    cost = record["cost"]
    if cost["speedup"] >= EXPECTED_SPEEDUP:
        return ""
    reasons = []
    if record["method"] == "dynamic":
        reasons.append("only weights are int8, computation is in float")
    elif not cost["instructions"]:
        reasons.append(f"this processor ({cost['processor']}) has no int8 multiply-add instructions")
    if record["float_layers"]:
        reasons.append(f"{len(record['float_layers'])} of {record['layers']} layers stay in float")
    reasons.append("operations between the convolutions (norms, resizing, activations) are float")
    return f"{cost['speedup']:.2f} x as fast as f32: {'; '.join(reasons)}"
