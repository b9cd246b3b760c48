"""What runs/ship/depth.py learns from: photos with depth up to scale, a label of sky, and how much of it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather import files, images
from fairweather.data.datasets import all_pairs, item_rng, photos_in, scene_of_pair, scene_of_photo, split_holdout
from fairweather.data.synthetic import DISPARITY, measured_transmission
from fairweather.pairs import Pair
from fairweather.weather.haze import transmission_of_pair

SIDE = 232
"""Short side of the photos in memory."""
SKY_SIDE = 150
"""Short side at which sky is found; the loss sees its labels at 80 to 112 px."""
CROPS = ((160, 224), (160, 224), (224, 160), (192, 192))
"""Heights and widths of the batches, drawn evenly."""
SMALL_CROPS = ((96, 128), (96, 128), (128, 96), (96, 96))
"""The same for the first part of a training: how a room or a street is laid out is learned three times as fast on
small pictures (progressive resizing, as in Tan & Le, EfficientNetV2, ICML 2021)."""
SHARES = {"nyu": 0.46, "sots": 0.32, "stereo": 0.04, "sky": 0.18}
RUN, EVERY = 20, 10
"""NYU's scenes are numbered as they were recorded: every tenth run of twenty is held back."""
APART = 4
"""Scenes next to a held-back run that are not trained on either: they can show the same room."""
HELD_STEREO = ("Moebius", "Teddy", "cologne")
HOLD_BACK = 0.12
NO_SKY = "imagenet"
"""Clear photos whose upper edge is rarely sky: animals and still lifes, whose backdrops would pass for it."""
OFFSET = 0.75
"""Share of the least optical depth that is subtracted in RESIDE's outdoor photos. Their depth was estimated by a
network (Liu et al., TPAMI 2016) and stays within a factor of two where a street runs from 3 m to 200 m; without the
offset it spans a factor of four to ten. The order of the pixels does not change."""
GROUND, SKY, UNKNOWN = 0, 1, 2


class Example(NamedTuple):
    """A photo and what is known of its depth."""

    name: str
    photo: NDArray[np.uint8]
    """H x W x 3."""
    log_depth: NDArray[np.float16]
    """H x W, up to a constant."""
    weight: NDArray[np.uint8]
    """H x W: 0 where depth is unknown."""
    sky: NDArray[np.uint8]
    """H x W: GROUND, SKY or UNKNOWN."""
    bent: bool
    """Whether log depth is known up to a constant and a factor only: Middlebury's disparities lack their offset."""


class Batch(NamedTuple):
    """Examples cut to one size; depth and sky at half of it."""

    photo: Tensor
    log_depth: Tensor
    weight: Tensor
    sky: Tensor
    bent: Tensor


def sky_of(photo: NDArray[np.uint8], *, sure: bool = False) -> NDArray[np.uint8]:
    """Labels of sky by classical means: H x W of GROUND, SKY and UNKNOWN, found at `SKY_SIDE`.

    Sky is smooth, bluish or bright, touches the upper edge and is not dark. GrabCut (Rother et al., SIGGRAPH 2004)
    finds its border from there. With `sure`, all is UNKNOWN unless the sky is large and blue or nearly white, as for
    photos that may show a ceiling or a studio's background.
    """
    full = photo.shape[1::-1]
    scale = SKY_SIDE / min(full)
    photo = cv2.resize(photo, (round(full[0] * scale), round(full[1] * scale)), interpolation=cv2.INTER_AREA)
    labels = _sky_labels(photo, sure)
    return cv2.resize(labels, full, interpolation=cv2.INTER_NEAREST)


def _sky_labels(photo: NDArray[np.uint8], sure: bool) -> NDArray[np.uint8]:
    height, width = photo.shape[:2]
    red, green, blue = (photo[..., channel].astype(np.int16) for channel in range(3))
    value, least = photo.max(axis=2).astype(np.int16), photo.min(axis=2).astype(np.int16)
    luma = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(luma, (5, 5))
    spread = np.sqrt(np.maximum(cv2.blur(luma * luma, (5, 5)) - mean * mean, 0))
    bluish = (blue >= green - 4) & (blue >= red + 4) & (value > 70)
    bright = (least > 150) & (value - least < 45) & (blue >= red - 12)
    candidate = ((bluish | bright) & (spread < 9)).astype(np.uint8)
    candidate = cv2.morphologyEx(candidate, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(candidate, connectivity=4)
    seed = np.zeros((height, width), bool)
    for component in range(1, count):
        top = (labels[:3] == component).any(axis=0).sum()
        if top >= 0.08 * width and stats[component, cv2.CC_STAT_AREA] >= 0.01 * height * width:
            seed |= labels == component
    ground = np.full((height, width), GROUND, np.uint8)
    if seed.mean() < 0.03:
        return np.full_like(ground, UNKNOWN) if sure or seed.any() else ground
    mask = np.where(seed, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[cv2.erode(seed.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0] = cv2.GC_FGD
    lowest = np.flatnonzero(seed.any(axis=1)).max()
    mask[min(height - 1, lowest + height // 12) :] = cv2.GC_BGD
    mask[(value < 60) | (spread > 40)] = cv2.GC_BGD
    bgr = np.ascontiguousarray(photo[..., ::-1])
    cv2.setRNGSeed(0)
    cv2.grabCut(bgr, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    found = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    if sure:
        tone = photo[found].mean(axis=0) if found.any() else np.zeros(3)
        certain = tone[2] > tone[0] + 14 or tone.min() > 215
        if not certain or found.mean() < 0.08 or found[:3].mean() < 0.4 or found[-3:].mean() > 0.02:
            return np.full_like(ground, UNKNOWN)
    labelled = np.where(found, SKY, GROUND).astype(np.uint8)
    band = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    labelled[band] = UNKNOWN
    # a patch of the same tone that grabCut left out may be sky behind branches
    labelled[(labelled == GROUND) & (candidate > 0) & (np.arange(height)[:, None] <= lowest)] = UNKNOWN
    return labelled


def reduced(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo with a short side of SIDE pixels."""
    scale = SIDE / min(photo.shape[:2])
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def example(
    name: str, photo: NDArray[np.uint8], depth: NDArray[np.float32], weight: NDArray[np.float32],
    sky: NDArray[np.uint8], *, bent: bool = False,
) -> Example:  # fmt: skip
    """An example from a reduced photo and maps of its size; sky has no depth."""
    weight = np.where((sky == GROUND) & np.isfinite(depth) & (depth > 0), weight, 0)
    log_depth = np.log(np.where(weight > 0, depth, 1)).astype(np.float16)
    return Example(name, photo, log_depth, (weight * 255).round().astype(np.uint8), sky, bent)


def nyu_scenes(folder: Path) -> tuple[list[Path], list[Path]]:
    """NYU's photos to train on, and those that are held back."""
    train, held = [], []
    for path in photos_in(folder):
        place = (int(path.stem) - 1) % (RUN * EVERY)
        start = RUN * (EVERY // 2)
        if start <= place < start + RUN:
            held.append(path)
        elif not start - APART <= place < start + RUN + APART:
            train.append(path)
    return train, held


def nyu_example(path: Path) -> Example:
    """An indoor photo with its depth in 25.5ths of a metre."""
    photo = reduced(images.read(path).pixels)
    levels = images.read(path.parent.parent / "depth" / path.name).pixels[..., 0]
    depth = cv2.resize(levels, photo.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    everywhere = np.ones(depth.shape, np.float32)
    return example(f"nyu/{path.stem}", photo, depth, everywhere, np.zeros(depth.shape, np.uint8))


def sots_example(pair: Pair) -> Example:
    """An outdoor pair: depth from its transmission, trusted where the photo differs from the airlight."""
    hazy, clear = (images.read(side).pixels for side in (pair.degraded, pair.clear))
    transmission = measured_transmission(hazy, clear).astype(np.float32) / 65535
    sides = [torch.from_numpy(images.to_float(side)).permute(2, 0, 1)[None] for side in (hazy, clear)]
    airlight = transmission_of_pair(*sides)[1][0].numpy()
    evidence = np.square(images.to_float(clear) - airlight).sum(axis=2)
    photo = reduced(clear)
    size = photo.shape[1::-1]
    depth = -np.log(cv2.resize(transmission, size, interpolation=cv2.INTER_AREA).clip(0.02, 0.999))
    evidence = cv2.resize(evidence.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    sky = sky_of(photo)
    known = sky == GROUND
    if known.any():
        depth = depth - OFFSET * np.percentile(depth[known], 1)
        depth = np.maximum(depth, np.percentile(depth[known], 1))
    return example(f"sots/{pair.name}", photo, depth, evidence / (evidence + np.float32(0.05)), sky)


def stereo_example(path: Path) -> Example:
    """A photo with disparity: Middlebury's are 8-bit and lack their offset, Cityscapes' are 16-bit."""
    photo = reduced(images.read(path).pixels)
    street = path.suffix == ".jpg"
    disparity = images.read(path.with_name(f"{path.stem}{DISPARITY}.png")).pixels[..., 0].astype(np.float32)
    disparity = cv2.resize(disparity, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    known = (disparity > 0).astype(np.float32)
    least = float(np.percentile(disparity[disparity > 0], 2))
    depth = 1 / np.maximum(disparity, max(1.0, least))
    sky = sky_of(photo) if street else np.zeros(depth.shape, np.uint8)
    return example(f"stereo/{path.stem}", photo, depth, known, sky, bent=not street)


def sky_example(path: Path) -> Example | None:
    """A clear photo whose sky is certain; nothing else is known of its depth."""
    photo = reduced(images.read(path).pixels)
    sky = sky_of(photo, sure=True)
    if (sky == UNKNOWN).all():
        return None
    unknown = np.zeros(photo.shape[:2], np.float32)
    return example(f"sky/{path.stem}", photo, unknown, unknown, sky)


def gathered(data: Path) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """The examples to train on and those held back, by kind. Takes some minutes; `stored` reads them back."""
    train: dict[str, list[Example]] = {}
    held: dict[str, list[Example]] = {}
    first, last = nyu_scenes(data / "nyu" / "clear")
    train["nyu"], held["nyu"] = [nyu_example(path) for path in first], [nyu_example(path) for path in last]
    pairs, apart = split_holdout(all_pairs(data / "sots_outdoor"), scene_of_pair, HOLD_BACK)
    train["sots"], held["sots"] = [sots_example(pair) for pair in pairs], [sots_example(pair) for pair in apart]
    stereo = [path for path in photos_in(data / "depth") if not path.stem.endswith(DISPARITY)]
    train["stereo"] = [stereo_example(path) for path in stereo if path.stem not in HELD_STEREO]
    held["stereo"] = [stereo_example(path) for path in stereo if path.stem in HELD_STEREO]
    clear = [path for path in photos_in(data / "clear") if not path.stem.startswith(NO_SKY)]
    for kind, paths in zip((train, held), split_holdout(clear, scene_of_photo, HOLD_BACK), strict=True):
        kind["sky"] = [found for path in paths if (found := sky_example(path)) is not None]
    return train, held


def stored(data: Path, file: Path) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """The examples in `file` (.npz), which is written by the first call."""
    if not file.exists():
        arrays = {}
        for part, kinds in zip(("train", "held"), gathered(data), strict=True):
            for kind, examples in kinds.items():
                for number, one in enumerate(examples):
                    key = f"{part}/{kind}/{number:05}/{one.name}"
                    maps = np.dstack([one.photo, one.weight, one.sky, np.full_like(one.sky, one.bent)])
                    arrays[f"{key}/maps"], arrays[f"{key}/log_depth"] = maps, one.log_depth
        with files.atomic(file) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
    found: dict[str, dict[str, list[Example]]] = {"train": {}, "held": {}}
    with np.load(file) as archive:
        for key in sorted(name.removesuffix("/maps") for name in archive.files if name.endswith("/maps")):
            part, kind, _, name = key.split("/", 3)
            maps = archive[f"{key}/maps"]
            parts = (np.ascontiguousarray(maps[..., :3]), archive[f"{key}/log_depth"], maps[..., 3], maps[..., 4])
            found[part].setdefault(kind, []).append(Example(name, *parts, bool(maps[0, 0, 5])))
    return found["train"], found["held"]


class Samples:
    """Batches of augmented crops; each depends on the seed and its step alone."""

    def __init__(self, examples: dict[str, Sequence[Example]], seed: int) -> None:
        self.examples = {kind: examples[kind] for kind in SHARES if examples.get(kind)}
        self.seed = seed

    def batch(self, step: int, count: int, crops: Sequence[tuple[int, int]] = CROPS) -> Batch:
        """`count` samples of one of the sizes `crops`, drawn from the kinds by their shares."""
        rng = item_rng(self.seed, step)
        height, width = crops[rng.integers(len(crops))]
        shares = np.array([SHARES[kind] for kind in self.examples])
        kinds = rng.choice(list(self.examples), count, p=shares / shares.sum())
        cut = [self._cut(kind, height, width, rng) for kind in kinds]
        photo, log_depth, weight, sky, bent = zip(*cut, strict=True)
        photos = torch.from_numpy(np.stack(photo)).permute(0, 3, 1, 2).float() / 255
        return Batch(
            recoloured(photos, rng),
            *(torch.from_numpy(np.stack(maps).astype(np.float32))[:, None] for maps in (log_depth, weight)),
            torch.from_numpy(np.stack(sky))[:, None],
            torch.tensor(bent),
        )

    def _cut(self, kind: str, height: int, width: int, rng: np.random.Generator) -> tuple[object, ...]:
        chosen = self.examples[kind][rng.integers(len(self.examples[kind]))]
        rows, columns = chosen.sky.shape
        largest = min(rows / height, columns / width)
        scale = largest * rng.uniform(0.62, 1.0) ** 0.7
        tall, wide = min(rows, round(height * scale)), min(columns, round(width * scale))
        top, left = rng.integers(rows - tall + 1), rng.integers(columns - wide + 1)
        box = (slice(top, top + tall), slice(left, left + wide))
        photo = cv2.resize(chosen.photo[box], (width, height), interpolation=cv2.INTER_LINEAR)
        half = (width // 2, height // 2)
        log_depth = cv2.resize(chosen.log_depth[box].astype(np.float32), half, interpolation=cv2.INTER_NEAREST)
        weight = cv2.resize(chosen.weight[box], half, interpolation=cv2.INTER_NEAREST).astype(np.float32) / 255
        sky = cv2.resize(chosen.sky[box], half, interpolation=cv2.INTER_NEAREST)
        maps = (photo, log_depth, weight, sky)
        if rng.random() < 0.5:
            maps = tuple(np.ascontiguousarray(one[:, ::-1]) for one in maps)
        return (*maps, chosen.bent)


def recoloured(photos: Tensor, rng: np.random.Generator) -> Tensor:
    """Photos under other light: gamma, gain and cast, contrast, saturation down to grey, and some noise."""
    count = len(photos)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    photos = photos.clamp_min(1e-4) ** draw(-0.45, 0.45).exp()
    photos = photos * draw(0.75, 1.2) * draw(0.9, 1.1, 3)
    mean = photos.mean((1, 2, 3), keepdim=True)
    photos = mean + (photos - mean) * draw(0.75, 1.25)
    grey = photos.mean(1, keepdim=True)
    photos = grey + (photos - grey) * draw(0.0, 1.4).clamp_max(1.15)
    noise = torch.from_numpy(rng.standard_normal(photos.shape, dtype=np.float32)) * draw(-0.03, 0.03).clamp_min(0)
    return (photos + noise).clamp(0, 1)


def kinds_of(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """The folders of clear photos that haze is synthesized over, by name."""
    for name in ("clear", "sots_outdoor/clear", "o_haze/clear", "nh_haze/clear", "rain100/clear"):
        if (data / name).is_dir():
            yield name, photos_in(data / name)
