"""Comparison of an exported model's pictures with those of its generator, for float32 exports and for int8."""

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
from fairweather.inference.engines import ENGINES, open_engine
from fairweather.inference.restorer import Restorer
from fairweather.inference.temporal import recurrent_step

Pictures = Sequence[NDArray[np.float32]]

PARITY_TOLERANCE = 1e-4
"""Largest difference of any value in the final float32 pictures, in [0,1]: a fortieth of an 8-bit step."""
PARITY_ENGINES = ("onnxruntime", "openvino", "torch")
PARITY_FRAMES = 6
"""Length of the clip on which a recurrent network is compared."""
EXPORTED_ENGINES = ("openvino", "onnxruntime")
"""Engines that run the exported ONNX files."""
MAX_DROP = {"dynamic": 0.15, "static": 0.15, "qat": 0.1}
"""Quantization method -> largest drop of PSNR to the ground truth in dB, mean over the photos."""
MIN_SIMILARITY = 36.0
"""Minimum PSNR in dB between int8 and float pictures, regardless of the PSNR to the ground truth: below it, the int8
network is a different one, which may be closer to the ground truth by chance."""
UNSCORED_PSNR = 26.0
"""PSNR assumed for a model without scores: about that of a short training."""
IDENTICAL = 99.0
"""PSNR in dB that stands for equal pictures."""
_log = logging.getLogger("fairweather")


def check_parity(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    pictures: Sequence[NDArray[Any]],
    *,
    engines: Sequence[str] = PARITY_ENGINES,
) -> dict[str, float]:
    """Compare the restored pictures of each engine, in float32, with the generator's.

    The engine torch verifies that card and weights rebuild the generator.

    Args:
        generator: the source; it is not changed.
        folder: its exported model folder.
        pictures: H x W x 3 uint8, uint16 or float32, of at least three sizes, odd sides among them.
        engines: engines to compare.

    Returns:
        Engine -> largest difference of any value, in [0,1].

    Raises:
        ParityFailed: a difference exceeds PARITY_TOLERANCE.
        BadSettings: the pictures have too few sizes.
    """
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) < 3 or not any(side % 2 for size in sizes for side in size):
        raise BadSettings("parity needs pictures of at least three sizes, including odd sides: give other photos")
    folder = Path(folder)
    card = model_folder.read_card(folder)
    photos = [picture if picture.dtype == np.float32 else to_float(picture) for picture in pictures]
    expected = restore_by_generator(generator, card, photos)
    worst: dict[str, float] = {}
    for name in engines:
        restorer = Restorer(card, open_engine(name, folder, card, precision="f32"))
        differences = [
            _difference(restorer(photo, guard=False), reference, f"{folder}: {name}")
            for photo, reference in zip(photos, expected, strict=True)
        ]
        if card.state is not None:
            differences += _clip_differences(generator, restorer, photos[0], f"{folder}: {name}")
        worst[name] = max(differences)
    _log.info("parity: %s", ", ".join(f"{name} within {difference:.1e}" for name, difference in worst.items()))
    return worst


def _clip_differences(
    generator: nn.Module, restorer: Restorer, photo: NDArray[np.float32], source: str
) -> list[float]:
    """Differences in the frames of a clip that pans over a photo."""
    clip = [np.ascontiguousarray(np.roll(photo, 2 * at, 1)) for at in range(PARITY_FRAMES)]
    model: Any = copy.deepcopy(generator).to("cpu", torch.float32).eval()
    with torch.no_grad():
        expected = model.clip(torch.from_numpy(np.stack(clip).transpose(0, 3, 1, 2))[None])[0].numpy()
    differences, state = [], None
    for at, (frame, reference) in enumerate(zip(clip, expected.transpose(0, 2, 3, 1), strict=True)):
        maps, state = recurrent_step(restorer, frame, state)
        found = restorer.apply_maps(frame, maps, guard=False)
        differences.append(_difference(found, reference, source, f" in frame {at} of a clip"))
    return differences


def _difference(found: NDArray[Any], expected: NDArray[Any], source: str, place: str = "") -> float:
    difference = float(np.abs(found - expected).max())
    if not difference <= PARITY_TOLERANCE:  # also NaN
        height, width = expected.shape[:2]
        raise ParityFailed(
            f"{source} differs from the generator by {difference:.2e}{place} on a picture of {width} x {height} pixels "
            f"({PARITY_TOLERANCE:.0e} is allowed): export the model again; if that does not help, the network has an "
            "operation that this engine computes differently"
        )
    return difference


def compare_engines(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    card: model_folder.Card,
    samples: Sequence[CalibrationSample],
    *,
    precisions: Sequence[str] = ("f32", "int8"),
    expected: Pictures | None = None,
) -> dict[str, Similarity]:
    """Compare the exported networks with the generator; `parity_failures` evaluates the result.

    Args:
        generator: the float source.
        folder: folder with the ONNX files; their checksums are not compared.
        card: the model's card.
        samples: photos.
        precisions: networks to compare.
        expected: the generator's pictures of the samples, if known.

    Returns:
        Engine and precision, such as "openvino int8" -> similarity.
    """
    if expected is None:
        expected = restore_by_generator(generator, card, [sample.degraded for sample in samples])
    found = {}
    for precision in precisions:
        for name in EXPORTED_ENGINES:
            restorer = Restorer(card, ENGINES[name](Path(folder), card, None, precision))
            found[f"{name} {precision}"] = compare_pictures(expected, restore_unguarded(restorer, samples), samples)
    return found


def parity_failures(found: Mapping[str, Similarity], bar: SimilarityBar) -> list[str]:
    """Reasons to reject networks: float32 beyond PARITY_TOLERANCE, int8 below the bar."""
    reasons = []
    for network, similarity in found.items():
        if not network.endswith(" f32"):
            reason = bar.missed(similarity)
        elif similarity.worst <= PARITY_TOLERANCE:
            reason = None
        else:
            reason = f"it differs by {similarity.worst:.1e} ({PARITY_TOLERANCE:.0e} is allowed)"
        if reason is not None:
            reasons.append(f"{network}: {reason}")
    return reasons


def restore_by_generator(
    generator: nn.Module, card: model_folder.Card, photos: Pictures
) -> list[NDArray[np.float32]]:
    """Restored pictures, computed by PyTorch on the CPU in float32."""
    network = copy.deepcopy(generator).to("cpu", torch.float32).eval()

    def run(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(picture)).numpy())

    if card.output == "image":
        restorer = Restorer(card, run)
        return [restorer(photo, guard=False) for photo in photos]
    # The forward of a maps network reduces, predicts and applies, at any size.
    return [run(photo.transpose(2, 0, 1)[None].copy())[0].transpose(1, 2, 0).clip(0, 1) for photo in photos]


def restore_unguarded(restorer: Restorer, samples: Sequence[CalibrationSample]) -> list[NDArray[np.float32]]:
    """Restored pictures without guards, which would hide differences."""
    return [np.asarray(restorer(sample.degraded, guard=False), np.float32) for sample in samples]


def parity_pictures(photos: Sequence[NDArray[Any]], card: model_folder.Card) -> list[NDArray[Any]]:
    """Three pictures of different sizes, with odd sides, smaller and larger than the network's input.

    Cut from the middle of `photos`, repeated where a photo is too small; without photos: ramps, waves, edges and noise.
    """
    largest = max(card.multiple_of, 128)
    sizes = [(67, 101), (96, 128), (largest + 1, largest // 2 + 21)]
    if card.maps is not None:
        side = card.maps.size
        sizes = [(67, 101), (side + 45, side * 3 // 2 + 1), (side * 2, side * 2 + 91)]
    return [
        _cut(photos[index % len(photos)], height, width) if photos else _synthetic(height, width, index)
        for index, (height, width) in enumerate(sizes)
    ]


def _cut(photo: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    rows, columns = np.arange(height) % photo.shape[0], np.arange(width) % photo.shape[1]
    top, left = max(0, photo.shape[0] - height) // 2, max(0, photo.shape[1] - width) // 2
    cut: NDArray[Any] = photo[(rows + top)[:, None], columns + left]
    return cut


def _synthetic(height: int, width: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [0.55 + 0.3 * np.sin((3 + k) * x + seed) * np.cos(4 * y - k) + 0.15 * (y - 0.5) for k in range(3)]
    picture = np.stack(waves, axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] *= 0.4
    picture[(x + 0.7 * y) > 1.1] *= 0.8
    picture += random.normal(0, 0.02, picture.shape)
    return picture.clip(0, 1).astype(np.float32)


@dataclass(frozen=True)
class Similarity:
    """A network's pictures compared with the float model's."""

    psnr: float
    """PSNR between the two in dB, mean over the photos."""
    worst: float
    """Largest difference of any value, in [0,1]."""
    change: float | None
    """Change of PSNR to the ground truth in dB, mean over the photos; None without ground truth."""
    photos: int

    def as_dict(self) -> dict[str, Any]:
        """For the card, rounded."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        change = "" if self.change is None else f", PSNR to the ground truth {self.change:+.2f} dB"
        return f"{self.psnr:.1f} dB, largest difference {self.worst:.3f}{change} on {self.photos} photos"


def compare_pictures(expected: Pictures, found: Pictures, samples: Sequence[CalibrationSample]) -> Similarity:
    """Compare a network's pictures of `samples` with the float model's."""
    changes = [
        decibels(b, sample.clear) - decibels(a, sample.clear)
        for a, b, sample in zip(expected, found, samples, strict=True)
        if sample.clear is not None
    ]
    return Similarity(
        psnr=float(np.mean([decibels(a, b) for a, b in zip(expected, found, strict=True)])),
        worst=max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)),
        change=float(np.mean(changes)) if len(changes) == len(samples) else None,
        photos=len(samples),
    )


def decibels(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """PSNR of pictures in [0,1], at most IDENTICAL."""
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return IDENTICAL if error == 0 else min(IDENTICAL, -10 * math.log10(error))


@dataclass(frozen=True)
class SimilarityBar:
    """The minimum similarity of an int8 network to the float model."""

    psnr: float
    """Minimum PSNR in dB to the float model's pictures."""
    drop: float | None
    """Largest drop of PSNR to the ground truth in dB; None without ground truth."""

    def missed(self, found: Similarity, slack: float = 0.0) -> str | None:
        """Why a network is below the bar, or None; `slack` raises the bar by that share."""
        if self.drop is not None and not (found.change is not None and -found.change <= self.drop * (1 - slack)):
            return f"PSNR to the ground truth changes by {found.change:+.2f} dB ({-self.drop:+.2f} is allowed)"
        if not found.psnr >= self.psnr + 5 * slack:  # also NaN
            return f"PSNR to the float model is {found.psnr:.1f} dB ({self.psnr:.1f} is required)"
        return None


def similarity_bar(card: model_folder.Card, method: str, *, paired: bool) -> SimilarityBar:
    """The bar for a model quantized by `method`, with ground truth (`paired`) or without.

    Without ground truth the bar follows from the model's own PSNR. Quantization error is nearly independent of the
    model's error, so squared errors add, and an int8 network whose PSNR to the float model lies `similarity_margin`
    above the float model's PSNR loses just the allowed drop.
    """
    if paired:
        return SimilarityBar(MIN_SIMILARITY, MAX_DROP[method])
    scores = [s["value"] for s in card.scores if s["metric"].lower() == "psnr" and s["protocol"] == "rgb"]
    return SimilarityBar(
        max(MIN_SIMILARITY, max(scores, default=UNSCORED_PSNR) + similarity_margin(MAX_DROP[method])), None
    )


def similarity_margin(drop: float) -> float:
    """dB by which noise must be below an error so that their sum is `drop` dB worse than the error alone."""
    return -10 * math.log10(10 ** (drop / 10) - 1)
