"""What a network costs to run: milliseconds in each precision, side by side, and megabytes."""

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
from typing import Any

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
from fairweather.inference import haze_maps
from fairweather.inference.engines import ENGINES, load_generator, processor_name
from fairweather.inference.restorer import Restorer

COST_SIZE = (1080, 1920)
SMALLER_SIZE = (512, 512)
COST_SECONDS = 6.0
"""Seconds a run may take at SIZE; else SMALLER is what is measured."""
INT8_WORDS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""What Linux calls the instructions that multiply and add int8 at once."""


def network_cost(
    folder: Path,
    card: model_folder.Card,
    *,
    engine: str = "openvino",
    runs: int = 5,
    size: tuple[int, int] = COST_SIZE,
    precisions: Sequence[str] = ("f32", "int8"),
) -> dict[str, Any]:
    """{"engine", "photo": width x height, "ms": by precision, "speedup", "megabytes", "processor", "instructions",
    "load"}, the last the machine's load average, by which to tell how much the milliseconds are worth.

    The network alone, on what it is fed of a photo of that size (reduced where it sees a reduced one); medians of runs
    in turn, after one to warm up.
    """
    networks = {precision: ENGINES[engine](folder, card, None, precision) for precision in precisions}
    fed = fed_for(card, *SMALLER_SIZE)
    networks["f32"](fed)
    start = time.perf_counter()
    networks["f32"](fed)
    larger = fed_for(card, *size)
    if (time.perf_counter() - start) * larger.size / fed.size > COST_SECONDS:
        size = SMALLER_SIZE
    else:
        fed = larger
    times: dict[str, list[float]] = {precision: [] for precision in networks}
    for run in range(runs + 1):
        for precision, network in networks.items():
            start = time.perf_counter()
            network(fed)
            if run:
                times[precision].append(time.perf_counter() - start)
    ms = {precision: round(1000 * statistics.median(taken), 3) for precision, taken in times.items()}
    return {
        "engine": engine,
        "photo": f"{size[1]} x {size[0]}",
        "ms": ms,
        "speedup": round(ms["f32"] / ms["int8"], 2),
        "megabytes": {
            name: round((folder / name).stat().st_size / 1e6, 3) for name in (model_folder.ONNX, model_folder.INT8)
        },
        "processor": processor_name(),
        "instructions": _instructions(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def fed_for(card: model_folder.Card, height: int, width: int) -> NDArray[np.float32]:
    """What the network of this card is fed of a photo of that size: 1 x 3 x h x w, noise."""
    photo = np.random.default_rng(0).random((height, width, 3), np.float32)
    if card.maps is not None:
        return haze_maps.reduce_photo(photo, card.maps, card.multiple_of)
    reduced = haze_maps.reduce_to_pixels(photo, card.most_pixels)
    photo = photo if reduced is None else reduced
    rows, columns = (-side % card.multiple_of for side in photo.shape[:2])
    photo = np.pad(photo, ((0, rows), (0, columns), (0, 0)), mode="reflect")
    return np.ascontiguousarray(photo.transpose(2, 0, 1)[None])


def why_not_faster(cost: dict[str, Any], floats: Sequence[str], layers: int, method: str, wanted: float = 1.8) -> str:
    """Words for the card where int8 is less than `wanted` times as fast as f32, as far as is known; else none."""
    if cost["speedup"] >= wanted:
        return ""
    reasons = []
    if method == "dynamic":
        reasons.append("weights alone are int8, and what is computed is computed in float")
    elif not cost["instructions"]:
        reasons.append(f"this processor ({cost['processor']}) has no instructions that multiply and add int8 at once")
    if floats:
        reasons.append(f"{len(floats)} of {layers} layers stay in float")
    reasons.append("what lies between the convolutions (norms, resizing, activations) is float")
    return f"{cost['speedup']:.2f} x as fast as f32: {'; '.join(reasons)}"


def _instructions() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [word for word in INT8_WORDS if word in words]


# Which layers lose too much in int8 and stay in float: found by measuring, worst first, as few as the bar asks for.

MeasureLoss = Callable[[Collection[str]], dict[str, Similarity]]
"""Layers in int8 -> engine -> how the network with those alone in int8 compares with the float one."""
SEARCH_SLACK = 0.2
"""By so much of itself the bar is harder in the search: it is done on few photos, and others decide."""
_log = logging.getLogger("fairweather")


def search_float_layers(
    layers: Sequence[str], measure: MeasureLoss, bar: SimilarityBar, decide: MeasureLoss | None = None
) -> dict[str, str]:
    """Layer -> why it stays in float; empty where all can be int8, all layers where nothing helps.

    All at once are tried first. Where that misses the bar, each layer is measured alone in int8, and the worst are made
    float, their number doubled until the bar is reached and then halved back to the fewest that reach it. `decide`
    measures in place of `measure` where it is about the bar: on more photos, as that is asked less often.
    """
    decide = decide or measure

    def reached(chosen: Collection[str]) -> bool:
        return all(bar.missed(found, SEARCH_SLACK) is None for found in decide(chosen).values())

    if reached(layers):
        return {}
    _log.info("all layers in int8 lose too much: measuring each of %d alone", len(layers))
    alone = {layer: measure([layer]) for layer in layers}
    # What changes the picture most alone; truths are too few here to rank single layers by them.
    order = sorted(layers, key=lambda layer: min(found.psnr for found in alone[layer].values()))

    def without(count: int) -> list[str]:
        left = set(order[:count])
        return [layer for layer in layers if layer not in left]

    most = 1
    while most < len(order) and not reached(without(most)):
        most *= 2
    least, most = most // 2, min(most, len(order))
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if reached(without(middle)) else (middle, most)
    return {layer: _why(alone[layer]) for layer in order[:most]}


def _why(found: dict[str, Similarity]) -> str:
    engine, worst = min(found.items(), key=lambda one: one[1].psnr)
    return f"alone in int8 the pictures agree to {worst.psnr:.1f} dB ({engine})"


# A model folder with model.int8.onnx beside the float network, kept only if its pictures are the float model's.
#
# What the card says of it, under "quantized":
#
#     method         dynamic (weights), static (calibrated) or qat (fine-tuned)
#     calibration    data, photos: what ranges were measured on; qat: steps, the one kept (0: none was
#                    better than calibration alone) and how many photos it trained on
#     layers         how many could be int8
#     float_layers   layer -> why it stays in float: it is one of the network's ends, or as measured
#     data           what parity was measured on, and whether there were truths
#     bar            what was asked for
#     parity         artefact ("openvino f32", "openvino int8", ...) -> dB alike, worst pixel, change to the truth, photos
#     passed         whether the bar was reached; if not, `failures` says by what, and it was forced
#     cost           milliseconds, megabytes, the processor; `slow` says why int8 is no faster where it is not

QUANTIZE_METHODS = tuple(parity.MAX_DROP)
SEARCHED_ON, SEARCHED_SIDE = 8, 256
"""Photos on which layers are measured one by one in the search for those that stay in float, and how much of their
middle is looked at. They are calibrated on, too; whether the bar is reached is asked on all of those."""


def quantize_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str,
    data: str | os.PathLike[str] | None = None,
    force: bool = False,
    steps: int = 200,
    timed_at: tuple[int, int] = COST_SIZE,
) -> model_folder.Card:
    """Write `out`: the model with model.int8.onnx beside its float network, and give its card.

    `model`: a shipped name, a model folder, or a run folder. `data`: a folder of pairs or of photos, to calibrate on
    and to compare on (other photos, where there are others); dynamic needs none, and is then compared on invented ones.
    `steps` of fine-tuning, for qat. `timed_at`: height and width of the photo that milliseconds are measured at.
    The folder appears whole or not at all; a model folder that is there is replaced, any other is not.
    Raises ParityFailed where the bar is missed, unless `force`: then the card says so. Raises UnknownName (method),
    BadSettings, BadFolder, BadCard, BadImage, MissingExtra.
    """
    if method not in QUANTIZE_METHODS:
        raise UnknownName("method", method, QUANTIZE_METHODS)
    if data is None and method != "dynamic":
        raise BadSettings(
            f"--method {method} measures what flows through the network on photos: name a folder of photos, or of "
            "pairs, such as the model is made for (--data DIR; about 30 are enough)"
        )
    folder, out = model_folder.find(model), Path(out)
    card = dataclasses.replace(model_folder.read_card(folder), quantized=None)
    if card.state is not None:
        raise BadSettings(
            f"model {card.name} has a memory, and ranges are measured on single photos, which do not show what flows "
            "through it after many frames: it stays in float"
        )
    check_place(out)
    recover(out)
    refuse_within(out, [folder, *model_folder.shipped().values(), *(() if data is None else (data,))])
    refuse_other_than_model(out)
    generator = load_generator(folder, card)
    found = None if data is None else sample_photos.find_samples(Path(data))
    if found is None:
        measured = searched = sample_photos.synthetic_samples(parity.parity_pictures((), card))
    else:
        measured = sample_photos.read_samples(found.measuring)
        searched = sample_photos.read_samples(found.calibrating, SEARCHED_SIDE)
    with atomic_folder(out) as building:
        for name in model_folder.SUMMED:
            shutil.copyfile(folder / name, building / name)
        making = Quantization(building, card, generator, method, found)
        record = making.make(searched, steps)
        record |= making.judged(measured, force)
        record["cost"] = network_cost(building, card, size=timed_at)
        floats = list(record["float_layers"])
        if slow := why_not_faster(record["cost"], floats, record["layers"], method):
            record["cost"]["slow"] = slow
        card = model_folder.write_card(building, dataclasses.replace(card, quantized=record))
    return card


class Quantization:
    """One int8 network on its way: the float model's folder so far, what it is compared with, and how it is made."""

    def __init__(
        self, building: Path, card: model_folder.Card, generator: nn.Module, method: str, found: SampleSet | None
    ) -> None:
        self.building, self.card, self.generator = building, card, generator
        self.method, self.found = method, found
        self.bar: SimilarityBar = parity.similarity_bar(card, method, paired=found is not None and found.paired)
        self.source = int8.prepare_graph(onnx.load(building / model_folder.ONNX))
        self.layers = list(int8.quantizable_layers(self.source))
        self.ranges: int8.ActivationRanges = {}

    def make(self, searched: Sequence[CalibrationSample], steps: int) -> dict[str, Any]:
        """Write model.int8.onnx and give the first part of the record."""
        if not self.layers:
            raise BadSettings(
                f"model {self.card.name} has no convolution that could be int8: there is nothing to quantize"
            )
        record: dict[str, Any] = {"method": self.method, "layers": len(self.layers)}
        if self.method != "dynamic":
            assert self.found is not None
            calibrated = sample_photos.read_samples(self.found.calibrating)
            self.ranges = int8.measured_ranges(self.source, self._fed(calibrated))
            record["calibration"] = {"data": self.found.folder, "photos": len(calibrated)}
        ends = int8.outer_layers(self.source)
        inner = [layer for layer in self.layers if layer not in ends]
        lossy = self._lossy(inner, searched)
        if len(lossy) == len(inner):
            _log.warning("no choice of layers reaches the bar: all of them are made int8")
            lossy = {}
        floats = ends | lossy
        chosen = [layer for layer in self.layers if layer not in floats]
        if self.method == "qat":
            record["calibration"] |= self._fine_tune(list(floats), steps)
        onnx.save(self._quantized(chosen), self.building / model_folder.INT8)
        if floats:
            _log.info("%d of %d layers stay in float: %s", len(floats), len(self.layers), ", ".join(floats))
        return record | {"float_layers": floats}

    def judged(self, measured: Sequence[CalibrationSample], force: bool) -> dict[str, Any]:
        """The second part: every artefact against the float model. Raises ParityFailed unless it is forced."""
        found = parity.compare_engines(self.generator, self.building, self.card, measured)
        for artefact, said in found.items():
            _log.info("parity: %s: %s", artefact, said)
        failures = parity.parity_failures(found, self.bar)
        failures += [
            f"layer {layer}: its weights in {model_folder.INT8} are not the network's, rounded"
            for layer in int8.changed_layers(onnx.load(self.building / model_folder.INT8), self.source)
        ]
        if failures and not force:
            raise ParityFailed(
                f"{self.card.name} by {self.method} is not the float model: {'; '.join(failures)}: give more or fitter "
                "photos (--data), fine-tune (--method qat), or keep it all the same (--force), which its card will say"
            )
        real = self.found is not None
        record: dict[str, Any] = {
            "data": self.found.folder if self.found is not None else "invented pictures",
            "pairs": real and measured[0].clear is not None,
            "bar": {key: value for key, value in dataclasses.asdict(self.bar).items() if value is not None},
            "parity": {artefact: said.as_dict() for artefact, said in found.items()},
            "passed": not failures,
        }
        return record | ({"failures": failures} if failures else {})

    def _lossy(self, layers: Sequence[str], searched: Sequence[CalibrationSample]) -> dict[str, str]:
        expected = parity.restore_by_generator(self.generator, self.card, [one.degraded for one in searched])
        with tempfile.TemporaryDirectory(dir=self.building) as folder:  # goes with it after a kill

            def on(count: int) -> MeasureLoss:
                asked, wanted = (
                    sample_photos.spread_evenly(searched, count),
                    sample_photos.spread_evenly(expected, count),
                )

                def measure(chosen: Collection[str]) -> dict[str, Similarity]:
                    onnx.save(self._quantized(chosen), Path(folder) / model_folder.INT8)
                    given = (self.generator, folder, self.card, asked)
                    return parity.compare_engines(*given, precisions=["int8"], expected=wanted)

                return measure

            return search_float_layers(layers, on(SEARCHED_ON), self.bar, on(len(searched)))

    def _quantized(self, chosen: Collection[str]) -> onnx.ModelProto:
        if self.method == "dynamic":
            return int8.quantize_weights(self.source, chosen)
        return int8.quantize_static(self.source, self.ranges, chosen)

    def _fed(self, photos: Sequence[CalibrationSample]) -> list[NDArray[np.float32]]:
        """What the network is fed of these photos; it is not run: some answer of the right shape is enough."""
        fed = []

        def watched(picture: NDArray[np.float32]) -> NDArray[np.float32]:
            fed.append(picture.copy())
            height, width = picture.shape[2:]
            return picture if self.card.output == "image" else np.ones((1, 7, height, width), np.float32)

        parity.model_pictures(Restorer(self.card, watched), photos)
        return fed

    def _fine_tune(self, floats: Sequence[str], steps: int) -> dict[str, int]:
        from fairweather.deploy import qat

        assert self.found is not None
        tuned = qat.fine_tune(self.generator, self.found.training, floats=floats, steps=steps)
        path = self.building / "tuned.onnx"
        write_onnx(tuned.network, path, self.card.multiple_of)
        self.source = int8.prepare_graph(onnx.load(path))
        path.unlink()
        fed = self._fed(sample_photos.read_samples(self.found.calibrating))
        # learned where it was learned; what else int8 has to hold (sums, outputs) is measured on the tuned network
        self.ranges = int8.measured_ranges(self.source, fed) | int8.fed_to(self.source, tuned.learned)
        return {"steps": steps, "kept_step": tuned.kept, "trained_on": len(self.found.training)}
