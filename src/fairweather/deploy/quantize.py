"""A model folder with model.int8.onnx beside the float network, kept only if its pictures are the float model's.

What the card says of it, under "quantized":

    method         dynamic (weights), static (calibrated) or qat (fine-tuned)
    calibration    data, photos: what ranges were measured on; qat: steps, the one kept (0: none was
                   better than calibration alone) and how many photos it trained on
    layers         how many could be int8
    float_layers   layer -> why it stays in float: it is one of the network's ends, or as measured
    data           what parity was measured on, and whether there were truths
    bar            what was asked for
    parity         artefact ("openvino f32", "openvino int8", ...) -> dB alike, worst pixel, change to the truth, photos
    passed         whether the bar was reached; if not, `failures` says by what, and it was forced
    cost           milliseconds, megabytes, the processor; `slow` says why int8 is no faster where it is not
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from fairweather import cards
from fairweather.deploy import cost, fallback, int8, likeness, parity, rewriting, samples
from fairweather.deploy.export import write_onnx
from fairweather.deploy.likeness import Bar, Likeness
from fairweather.deploy.samples import Sample, Samples
from fairweather.errors import BadSettings, ParityFailed, UnknownName
from fairweather.files import atomic_folder, recover
from fairweather.outputs import check_place, refuse_other_than_model, refuse_within
from fairweather.restoring.engines import rebuilt
from fairweather.restoring.restorer import Restorer

METHODS = tuple(likeness.DROP)
SEARCHED_ON, SEARCHED_SIDE = 8, 256
"""Photos on which layers are measured one by one in the search for those that stay in float, and how much of their
middle is looked at. They are calibrated on, too; whether the bar is reached is asked on all of those."""
_log = logging.getLogger("fairweather")


def quantize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str,
    data: str | os.PathLike[str] | None = None,
    force: bool = False,
    steps: int = 200,
    timed_at: tuple[int, int] = cost.SIZE,
) -> cards.Card:
    """Write `out`: the model with model.int8.onnx beside its float network, and give its card.

    `model`: a shipped name, a model folder, or a run folder. `data`: a folder of pairs or of photos, to calibrate on
    and to compare on (other photos, where there are others); dynamic needs none, and is then compared on invented ones.
    `steps` of fine-tuning, for qat. `timed_at`: height and width of the photo that milliseconds are measured at.
    The folder appears whole or not at all; a model folder that is there is replaced, any other is not.
    Raises ParityFailed where the bar is missed, unless `force`: then the card says so. Raises UnknownName (method),
    BadSettings, BadFolder, BadCard, BadImage, MissingExtra.
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if data is None and method != "dynamic":
        raise BadSettings(
            f"--method {method} measures what flows through the network on photos: name a folder of photos, or of "
            "pairs, such as the model is made for (--data DIR; about 30 are enough)"
        )
    folder, out = cards.find(model), Path(out)
    card = dataclasses.replace(cards.read_card(folder), quantized=None)
    if card.state is not None:
        raise BadSettings(
            f"model {card.name} has a memory, and ranges are measured on single photos, which do not show what flows "
            "through it after many frames: it stays in float"
        )
    check_place(out)
    recover(out)
    refuse_within(out, [folder, *cards.shipped().values(), *(() if data is None else (data,))])
    refuse_other_than_model(out)
    generator = rebuilt(folder, card)
    found = None if data is None else samples.find(Path(data))
    if found is None:
        measured = searched = samples.invented(parity.pictures((), card))
    else:
        measured = samples.read(found.measuring)
        searched = samples.read(found.calibrating, SEARCHED_SIDE)
    with atomic_folder(out) as building:
        for name in cards.SUMMED:
            shutil.copyfile(folder / name, building / name)
        making = Making(building, card, generator, method, found)
        record = making.make(searched, steps)
        record |= making.judged(measured, force)
        record["cost"] = cost.network_cost(building, card, size=timed_at)
        floats = list(record["float_layers"])
        if slow := cost.why_not_faster(record["cost"], floats, record["layers"], method):
            record["cost"]["slow"] = slow
        card = cards.write_card(building, dataclasses.replace(card, quantized=record))
    return card


class Making:
    """One int8 network on its way: the float model's folder so far, what it is compared with, and how it is made."""

    def __init__(
        self, building: Path, card: cards.Card, generator: nn.Module, method: str, found: Samples | None
    ) -> None:
        self.building, self.card, self.generator = building, card, generator
        self.method, self.found = method, found
        self.bar: Bar = likeness.bar(card, method, paired=found is not None and found.paired)
        self.source = rewriting.prepared(onnx.load(building / cards.ONNX))
        self.layers = list(int8.layers(self.source))
        self.ranges: int8.Ranges = {}

    def make(self, searched: Sequence[Sample], steps: int) -> dict[str, Any]:
        """Write model.int8.onnx and give the first part of the record."""
        if not self.layers:
            raise BadSettings(
                f"model {self.card.name} has no convolution that could be int8: there is nothing to quantize"
            )
        record: dict[str, Any] = {"method": self.method, "layers": len(self.layers)}
        if self.method != "dynamic":
            assert self.found is not None
            calibrated = samples.read(self.found.calibrating)
            self.ranges = int8.measured_ranges(self.source, self._fed(calibrated))
            record["calibration"] = {"data": self.found.folder, "photos": len(calibrated)}
        ends = int8.ends(self.source)
        inner = [layer for layer in self.layers if layer not in ends]
        lossy = self._lossy(inner, searched)
        if len(lossy) == len(inner):
            _log.warning("no choice of layers reaches the bar: all of them are made int8")
            lossy = {}
        floats = ends | lossy
        chosen = [layer for layer in self.layers if layer not in floats]
        if self.method == "qat":
            record["calibration"] |= self._fine_tune(list(floats), steps)
        onnx.save(self._quantized(chosen), self.building / cards.INT8)
        if floats:
            _log.info("%d of %d layers stay in float: %s", len(floats), len(self.layers), ", ".join(floats))
        return record | {"float_layers": floats}

    def judged(self, measured: Sequence[Sample], force: bool) -> dict[str, Any]:
        """The second part: every artefact against the float model. Raises ParityFailed unless it is forced."""
        found = parity.compared(self.generator, self.building, self.card, measured)
        for artefact, said in found.items():
            _log.info("parity: %s: %s", artefact, said)
        failures = parity.failures(found, self.bar)
        failures += [
            f"layer {layer}: its weights in {cards.INT8} are not the network's, rounded"
            for layer in int8.strayed(onnx.load(self.building / cards.INT8), self.source)
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

    def _lossy(self, layers: Sequence[str], searched: Sequence[Sample]) -> dict[str, str]:
        expected = parity.by_generator(self.generator, self.card, [one.degraded for one in searched])
        with tempfile.TemporaryDirectory(dir=self.building) as folder:  # goes with it after a kill

            def on(count: int) -> fallback.Measure:
                asked, wanted = samples.spread(searched, count), samples.spread(expected, count)

                def measure(chosen: Collection[str]) -> dict[str, Likeness]:
                    onnx.save(self._quantized(chosen), Path(folder) / cards.INT8)
                    given = (self.generator, folder, self.card, asked)
                    return parity.compared(*given, precisions=["int8"], expected=wanted)

                return measure

            return fallback.search(layers, on(SEARCHED_ON), self.bar, on(len(searched)))

    def _quantized(self, chosen: Collection[str]) -> onnx.ModelProto:
        if self.method == "dynamic":
            return int8.weights_only(self.source, chosen)
        return int8.static(self.source, self.ranges, chosen)

    def _fed(self, photos: Sequence[Sample]) -> list[NDArray[np.float32]]:
        """What the network is fed of these photos; it is not run: some answer of the right shape is enough."""
        fed = []

        def watched(picture: NDArray[np.float32]) -> NDArray[np.float32]:
            fed.append(picture.copy())
            height, width = picture.shape[2:]
            return picture if self.card.output == "image" else np.ones((1, 7, height, width), np.float32)

        likeness.pictures_of(Restorer(self.card, watched), photos)
        return fed

    def _fine_tune(self, floats: Sequence[str], steps: int) -> dict[str, int]:
        from fairweather.deploy import qat

        assert self.found is not None
        tuned = qat.fine_tune(self.generator, self.found.training, floats=floats, steps=steps)
        path = self.building / "tuned.onnx"
        write_onnx(tuned.network, path, self.card.multiple_of)
        self.source = rewriting.prepared(onnx.load(path))
        path.unlink()
        fed = self._fed(samples.read(self.found.calibrating))
        # learned where it was learned; what else int8 has to hold (sums, outputs) is measured on the tuned network
        self.ranges = int8.measured_ranges(self.source, fed) | int8.fed_to(self.source, tuned.learned)
        return {"steps": steps, "kept_step": tuned.kept, "trained_on": len(self.found.training)}
