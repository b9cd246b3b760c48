"""Does an exported model give the pictures that its source gives? Asked of every engine before a model is kept."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairweather import cards
from fairweather.deploy.likeness import Bar, Likeness, compare, pictures_of
from fairweather.deploy.samples import Sample
from fairweather.errors import BadSettings, ParityFailed
from fairweather.images import to_float
from fairweather.restoring.engines import ENGINES as ENGINE
from fairweather.restoring.engines import open_engine
from fairweather.restoring.restorer import Restorer
from fairweather.restoring.stepping import step

TOLERANCE = 1e-4
"""Largest difference allowed anywhere in the final pictures, in [0,1]: a fortieth of an 8-bit step."""
ENGINES = ("onnxruntime", "openvino", "torch")
FRAMES = 6
"""Length of the clip on which a network with a memory is compared."""
EXPORTED = ("openvino", "onnxruntime")
"""Those that run the exported files."""

_log = logging.getLogger("fairweather")


def check(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    pictures: Sequence[NDArray[Any]],
    *,
    engines: Sequence[str] = ENGINES,
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
    card = cards.read_card(folder)
    photos = [picture if picture.dtype == np.float32 else to_float(picture) for picture in pictures]
    expected = by_generator(generator, card, photos)
    worst: dict[str, float] = {}
    for name in engines:
        restorer = Restorer(card, open_engine(name, folder, card, precision="f32"))
        for photo, reference in zip(photos, expected, strict=True):
            difference = float(np.abs(restorer(photo, guard=False) - reference).max())
            if not difference <= TOLERANCE:  # a NaN fails too
                raise ParityFailed(
                    f"{folder}: {name} differs from the generator by {difference:.2e} on a picture of "
                    f"{photo.shape[1]} x {photo.shape[0]} pixels ({TOLERANCE:.0e} is allowed): export the model again; "
                    "where that does not help, the network holds something that the engine computes otherwise"
                )
            worst[name] = max(worst.get(name, 0.0), difference)
        if card.state is not None:
            worst[name] = max(worst[name], _over_time(generator, restorer, photos[0], f"{folder}: {name}"))
    _log.info("parity: %s", ", ".join(f"{name} within {difference:.1e}" for name, difference in worst.items()))
    return worst


def _over_time(generator: nn.Module, restorer: Restorer, photo: NDArray[np.float32], said: str) -> float:
    """The largest difference from the generator over a clip that pans over a photo. Raises ParityFailed."""
    clip = [np.ascontiguousarray(np.roll(photo, 2 * at, 1)) for at in range(FRAMES)]
    model = copy.deepcopy(generator).to("cpu", torch.float32).eval()
    with torch.no_grad():
        expected = model.clip(torch.from_numpy(np.stack(clip).transpose(0, 3, 1, 2))[None])[0]  # type: ignore[operator]
    worst, state = 0.0, None
    for at, (frame, reference) in enumerate(zip(clip, expected.numpy().transpose(0, 2, 3, 1), strict=True)):
        seen, state = step(restorer, frame, state)
        difference = float(np.abs(restorer.applied(frame, seen, guard=False) - reference).max())
        if not difference <= TOLERANCE:
            raise ParityFailed(
                f"{said} differs from the generator by {difference:.2e} in frame {at} of a clip ({TOLERANCE:.0e} is "
                "allowed): export the model again; where that does not help, its state is computed otherwise"
            )
        worst = max(worst, difference)
    return worst


def compared(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    card: cards.Card,
    samples: Sequence[Sample],
    *,
    precisions: Sequence[str] = ("f32", "int8"),
    engines: Sequence[str] = EXPORTED,
    expected: Sequence[NDArray[np.float32]] | None = None,
) -> dict[str, Likeness]:
    """Artefact ("openvino int8", ...) -> how its pictures of `samples` compare with the generator's. Nothing is refused
    here: see `failures`. The card's files need no checksums yet. `expected`: the generator's pictures, where known."""
    if expected is None:
        expected = by_generator(generator, card, [sample.degraded for sample in samples])
    found = {}
    for precision in precisions:
        for name in engines:
            restorer = Restorer(card, ENGINE[name](Path(folder), card, None, precision))
            found[f"{name} {precision}"] = compare(expected, pictures_of(restorer, samples), samples)
    return found


def failures(found: Mapping[str, Likeness], bar: Bar) -> list[str]:
    """Which artefacts are refused, and why: float32 beyond TOLERANCE anywhere, int8 below its bar."""
    said = []
    for artefact, one in found.items():
        missed = bar.missed(one)
        if artefact.endswith(" f32"):
            missed = None if one.worst <= TOLERANCE else f"it differs by {one.worst:.1e} ({TOLERANCE:.0e} is allowed)"
        if missed is not None:
            said.append(f"{artefact}: {missed}")
    return said


def by_generator(
    generator: nn.Module, card: cards.Card, photos: Sequence[NDArray[np.float32]]
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


def pictures(photos: Sequence[NDArray[Any]], card: cards.Card) -> list[NDArray[Any]]:
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
