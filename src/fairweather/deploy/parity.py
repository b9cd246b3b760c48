"""Does an exported model give the pictures that its source gives? Asked of every engine before a model is kept."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairweather import model_folder
from fairweather.deploy.sample_photos import CalibrationSample
from fairweather.errors import BadSettings, ParityFailed
from fairweather.images.io import to_float
from fairweather.inference.engines import ENGINES as ENGINE
from fairweather.inference.engines import open_engine
from fairweather.inference.restorer import Restorer
from fairweather.inference.temporal import recurrent_step

PARITY_TOLERANCE = 1e-4
"""Largest difference allowed anywhere in the final pictures, in [0,1]: a fortieth of an 8-bit step."""
PARITY_ENGINES = ("onnxruntime", "openvino", "torch")
PARITY_FRAMES = 6
"""Length of the clip on which a network with a memory is compared."""
EXPORTED_NAME = ("openvino", "onnxruntime")
"""Those that run the exported files."""

_log = logging.getLogger("fairweather")


def check_parity(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    pictures: Sequence[NDArray[Any]],
    *,
    engines: Sequence[str] = PARITY_ENGINES,
) -> dict[str, float]:
    """Engine -> largest difference from the generator over `pictures` (H x W x 3 uint8, uint16 or float32).

    The final pictures are compared, as the restorer gives them in float32; the torch engine shows that card and
    weights rebuild the generator. The generator is not changed.
    Raises ParityFailed (names the engine, the size, the difference) and BadSettings (under three sizes, none odd).
    """
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) < 3 or not any(side % 2 for size in sizes for side in size):
        raise BadSettings(
            "parity is asked on pictures of at least three sizes, odd sides among them: give other photos"
        )
    folder = Path(folder)
    card = model_folder.read_card(folder)
    photos = [picture if picture.dtype == np.float32 else to_float(picture) for picture in pictures]
    expected = restore_by_generator(generator, card, photos)
    worst: dict[str, float] = {}
    for name in engines:
        restorer = Restorer(card, open_engine(name, folder, card, precision="f32"))
        for photo, reference in zip(photos, expected, strict=True):
            difference = float(np.abs(restorer(photo, guard=False) - reference).max())
            if not difference <= PARITY_TOLERANCE:  # a NaN fails too
                raise ParityFailed(
                    f"{folder}: {name} differs from the generator by {difference:.2e} on a picture of "
                    f"{photo.shape[1]} x {photo.shape[0]} pixels ({PARITY_TOLERANCE:.0e} is allowed): export the model again; "
                    "where that does not help, the network holds something that the engine computes otherwise"
                )
            worst[name] = max(worst.get(name, 0.0), difference)
        if card.state is not None:
            worst[name] = max(worst[name], _over_time(generator, restorer, photos[0], f"{folder}: {name}"))
    _log.info("parity: %s", ", ".join(f"{name} within {difference:.1e}" for name, difference in worst.items()))
    return worst


def _over_time(generator: nn.Module, restorer: Restorer, photo: NDArray[np.float32], said: str) -> float:
    """The largest difference from the generator over a clip that pans over a photo. Raises ParityFailed."""
    clip = [np.ascontiguousarray(np.roll(photo, 2 * at, 1)) for at in range(PARITY_FRAMES)]
    model = copy.deepcopy(generator).to("cpu", torch.float32).eval()
    with torch.no_grad():
        expected = model.clip(torch.from_numpy(np.stack(clip).transpose(0, 3, 1, 2))[None])[0]  # type: ignore[operator]
    worst, state = 0.0, None
    for at, (frame, reference) in enumerate(zip(clip, expected.numpy().transpose(0, 2, 3, 1), strict=True)):
        seen, state = recurrent_step(restorer, frame, state)
        difference = float(np.abs(restorer.apply_maps(frame, seen, guard=False) - reference).max())
        if not difference <= PARITY_TOLERANCE:
            raise ParityFailed(
                f"{said} differs from the generator by {difference:.2e} in frame {at} of a clip ({PARITY_TOLERANCE:.0e} is "
                "allowed): export the model again; where that does not help, its state is computed otherwise"
            )
        worst = max(worst, difference)
    return worst


def compare_engines(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    card: model_folder.Card,
    samples: Sequence[CalibrationSample],
    *,
    precisions: Sequence[str] = ("f32", "int8"),
    engines: Sequence[str] = EXPORTED_NAME,
    expected: Sequence[NDArray[np.float32]] | None = None,
) -> dict[str, Similarity]:
    """Artefact ("openvino int8", ...) -> how its pictures of `samples` compare with the generator's. Nothing is refused
    here: see `failures`. The card's files need no checksums yet. `expected`: the generator's pictures, where known."""
    if expected is None:
        expected = restore_by_generator(generator, card, [sample.degraded for sample in samples])
    found = {}
    for precision in precisions:
        for name in engines:
            restorer = Restorer(card, ENGINE[name](Path(folder), card, None, precision))
            found[f"{name} {precision}"] = compare_models(expected, model_pictures(restorer, samples), samples)
    return found


def parity_failures(found: Mapping[str, Similarity], bar: SimilarityBar) -> list[str]:
    """Which artefacts are refused, and why: float32 beyond TOLERANCE anywhere, int8 below its bar."""
    said = []
    for artefact, one in found.items():
        missed = bar.missed(one)
        if artefact.endswith(" f32"):
            missed = (
                None
                if one.worst <= PARITY_TOLERANCE
                else f"it differs by {one.worst:.1e} ({PARITY_TOLERANCE:.0e} is allowed)"
            )
        if missed is not None:
            said.append(f"{artefact}: {missed}")
    return said


def restore_by_generator(
    generator: nn.Module, card: model_folder.Card, photos: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """The final pictures by PyTorch on the CPU in float32: what `forward` gives, padded as the restorer pads."""
    network = copy.deepcopy(generator).to("cpu", torch.float32).eval()

    def run(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(picture)).numpy())

    if card.output == "image":
        restorer = Restorer(card, run)
        return [restorer(photo, guard=False) for photo in photos]
    # A maps network's forward reduces, predicts and applies by itself, at any size.
    return [run(photo.transpose(2, 0, 1)[None].copy())[0].transpose(1, 2, 0).clip(0, 1) for photo in photos]


def parity_pictures(photos: Sequence[NDArray[Any]], card: model_folder.Card) -> list[NDArray[Any]]:
    """Three pictures of different sizes, odd ones among them, on both sides of what the network reduces or pads to.

    Cut from the middle of `photos` where given, continued by repetition where a photo is too small; else invented:
    ramps, waves, edges and grain.
    """
    big = max(card.multiple_of, 128)
    sizes = [(67, 101), (96, 128), (big + 1, big // 2 + 21)]
    if card.maps is not None:
        side = card.maps.size
        sizes = [(67, 101), (side + 45, side * 3 // 2 + 1), (side * 2, side * 2 + 91)]
    return [
        _cut(photos[index % len(photos)], height, width) if photos else _invented(height, width, index)
        for index, (height, width) in enumerate(sizes)
    ]


def _cut(photo: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    rows, columns = np.arange(height) % photo.shape[0], np.arange(width) % photo.shape[1]
    top, left = max(0, photo.shape[0] - height) // 2, max(0, photo.shape[1] - width) // 2
    cut: NDArray[Any] = photo[(rows + top)[:, None], columns + left]
    return cut


def _invented(height: int, width: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [0.55 + 0.3 * np.sin((3 + k) * x + seed) * np.cos(4 * y - k) + 0.15 * (y - 0.5) for k in range(3)]
    picture = np.stack(waves, axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] *= 0.4
    picture[(x + 0.7 * y) > 1.1] *= 0.8
    picture += random.normal(0, 0.02, picture.shape)
    return picture.clip(0, 1).astype(np.float32)


# How like are an artefact's pictures to those of the float model, and is that enough to be kept?
#
# The bar for int8 is set in decibels to the truth: a model may lose `DROP` of them. Where no truth is at hand it follows
# from the model's own scores: what quantization adds is as good as independent of the model's own error, squared errors
# add, and so an artefact whose pictures lie `margin` above the model's PSNR from the float model's loses just that much.

MAX_DROP = {"dynamic": 0.15, "static": 0.15, "qat": 0.1}
"""dB that PSNR to the truth may fall, mean over the photos."""
MIN_SIMILARITY = 36.0
"""dB between the outputs without which an artefact is refused whatever its PSNR to the truth: it is another network
then, which may be nearer to these truths by chance."""
MIN_SIMILARITY_UNSCORED = 26.0
"""The PSNR that a model is taken to have whose card says none; about what laptop-sized training reaches."""
IDENTICAL = 99.0
"""dB that stand for equal pictures, whose PSNR is infinite."""


@dataclass(frozen=True)
class Similarity:
    """An artefact against its float model over some photos."""

    psnr: float
    """dB between their pictures, mean over photos."""
    worst: float
    """Largest difference of a value in any picture, in [0,1]."""
    change: float | None
    """dB that PSNR to the truth changes by, mean over photos; None where there are no truths."""
    photos: int

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        change = "" if self.change is None else f", {self.change:+.2f} dB to the truth"
        return f"{self.psnr:.1f} dB alike, worst pixel {self.worst:.3f}{change} on {self.photos} photos"


@dataclass(frozen=True)
class SimilarityBar:
    """What an int8 artefact has to reach."""

    psnr: float
    """dB between the outputs, at least."""
    drop: float | None
    """dB to the truth, at most; None where there are no truths."""

    def missed(self, found: Similarity, slack: float = 0.0) -> str | None:
        """What is not reached, in words, or None. With `slack` the bar is harder by that share of it."""
        if self.drop is not None and not (found.change is not None and -found.change <= self.drop * (1 - slack)):
            return f"PSNR to the truth changes by {found.change:+.2f} dB ({-self.drop:+.2f} is allowed)"
        if not found.psnr >= self.psnr + 5 * slack:  # a NaN fails too
            return f"its pictures agree to {found.psnr:.1f} dB ({self.psnr:.1f} are needed)"
        return None


def similarity_bar(card: model_folder.Card, method: str, *, paired: bool) -> SimilarityBar:
    """The bar for one model's int8 by a method of DROP."""
    if paired:
        return SimilarityBar(MIN_SIMILARITY, MAX_DROP[method])
    scores = [s["value"] for s in card.scores if str(s["metric"]).lower() == "psnr" and s["protocol"] == "rgb"]
    return SimilarityBar(
        max(MIN_SIMILARITY, max(scores, default=MIN_SIMILARITY_UNSCORED) + similarity_margin(MAX_DROP[method])), None
    )


def similarity_margin(drop: float) -> float:
    """dB by which a noise must lie below an error so that both together are `drop` dB worse than the error alone."""
    return -10 * math.log10(10 ** (drop / 10) - 1)


def model_pictures(restorer: Restorer, samples: Sequence[CalibrationSample]) -> list[NDArray[np.float32]]:
    """What the network says itself, unguarded: a guard would hide differences."""
    return [np.asarray(restorer(sample.degraded, guard=False), np.float32) for sample in samples]


def compare_models(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], samples: Sequence[CalibrationSample]
) -> Similarity:
    """The float model's pictures of `samples` against an artefact's."""
    truths = [sample.clear for sample in samples]
    changes = [
        decibels(b, truth) - decibels(a, truth)
        for a, b, truth in zip(expected, found, truths, strict=True)
        if truth is not None
    ]
    return Similarity(
        psnr=float(np.mean([decibels(a, b) for a, b in zip(expected, found, strict=True)])),
        worst=max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)),
        change=float(np.mean(changes)) if len(changes) == len(samples) else None,
        photos=len(samples),
    )


def decibels(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """PSNR for pictures in [0,1], at most SAME."""
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return IDENTICAL if error == 0 else min(IDENTICAL, -10 * math.log10(error))
