"""Trains models/weather, the recognizer behind `restore --weather auto`, and sets its two thresholds.

    python runs/ship/weather.py --data DATA [--out src/fairweather/models/weather] [--steps 400] [--seed 1]

command    python runs/ship/weather.py --data DATA
hardware   one core of an AMD EPYC (AVX-512, bf16)
time       about 8 minutes of processor time
data       DATA as for the models that it chooses between: sots_outdoor, sots_indoor,
           o_haze, nh_haze, rain100 (pairs) and clear, depth (photos)
expected   printed at the end, on scenes held back from DATA: how many clear photos are taken for weather, and how many
           hazy and rainy ones are seen; benchmarks/weather.py prints the table for the test photos

Fifteen of a hundred scenes of each folder are held back, by the same hash as for every other run, so that none of them
is among what the models of the other runs learned from their shares either. They choose the thresholds, nothing else.
Every draw comes from (seed, step, sample): the same versions, machine and threads give the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fairweather import cards, images
from fairweather.data import augment as aug
from fairweather.data.folders import all_pairs, photos_in, scene_of_pair, scene_of_photo, split
from fairweather.data.photos import Photos
from fairweather.data.rainy import streak_layer
from fairweather.data.source import stream, to_tensor, torch_generator
from fairweather.data.synthetic import DISPARITY
from fairweather.pairs import Pair
from fairweather.recognizer import WeatherNet
from fairweather.restoring.recognise import CARD, RecognizerCard, Threshold, views
from fairweather.weather.haze import HazeSettings, haze
from fairweather.weather.rain import RainSettings, added, recorded_streaks, screened, streak_layers

HOLD_BACK = 0.15
REGION = 320
"""Side of what a sample shows: reduced by two it is the view that haze is seen in, and it holds four windows."""
WINDOWS = 3
HAZY = ("sots_outdoor", "sots_indoor", "o_haze", "nh_haze")
FEW = 0.02
"""The most of the held-back photos without a weather that may be taken to have it."""
HAZE = HazeSettings(density=(0.5, 3.5), airlight=(0.6, 1.0), tint=0.04)
TONE = aug.Augment(exposure=(-0.6, 0.35), gamma=(0.75, 1.3), tone=0.5)
TERMS = (
    "Trained on research data (RESIDE/SOTS, O-HAZE, NH-HAZE, Rain100, BSDS500, ImageNet, CamVid, Middlebury): "
    "non-commercial research use."
)
KINDS = {
    "hazy": 0.23, "hazed": 0.14, "rainy": 0.09, "rained": 0.13, "hazy, rained": 0.05, "hazed, rained": 0.05,
    "clear": 0.31,
}  # fmt: skip
"""Shares of the samples: as recorded (hazy, rainy), made here (hazed, rained), both at once, neither."""


class Sources(NamedTuple):
    """Photos of one side of the split."""

    hazy: dict[str, list[Pair]]
    rainy: list[Pair]
    clear: dict[str, list[Path]]


class Sample(NamedTuple):
    """3 x 320 x 320, and for each weather 1, 0, or NaN where a person could not say either."""

    picture: Tensor
    haze: float
    rain: float


def sources(data: Path, hold_back: float = HOLD_BACK) -> tuple[Sources, Sources]:
    """What is learned from, and what is held back (whole scenes)."""
    sides: tuple[Sources, Sources] = (Sources({}, [], {}), Sources({}, [], {}))
    for name in (*HAZY, "rain100"):
        for side, pairs in zip(sides, split(all_pairs(data / name), scene_of_pair, hold_back), strict=True):
            side.clear[name] = sorted({pair.clear for pair in pairs})
            if name == "rain100":
                side.rainy.extend(pairs)
            else:
                side.hazy[name] = pairs
    for name in ("clear", "depth"):
        photos = [path for path in photos_in(data / name) if not path.stem.endswith(DISPARITY)]
        for side, paths in zip(sides, split(photos, scene_of_photo, hold_back), strict=True):
            side.clear[name] = paths
    return sides


class Samples:
    """Samples by (seed, step, index)."""

    def __init__(self, found: Sources, photos: Photos, seed: int, computed: int = 64) -> None:
        self.found, self.photos, self.seed = found, photos, seed
        layers = []
        for pair in found.rainy:
            layer = streak_layer(*photos.pair(pair.degraded, pair.clear))
            layers.append(cv2.resize(layer, _at_least(layer.shape, REGION))[:REGION, :REGION])
        self.recorded = torch.from_numpy(np.stack(layers))[:, None]
        generator = torch_generator(stream(seed, 1 << 32))
        made = [
            streak_layers(8, REGION, REGION, generator, RainSettings(strength=(0.2, 0.8)), like=torch.zeros(1))[0]
            for _ in range(computed // 8)
        ]
        self.computed = (torch.cat(made) * 255).byte()

    def batch(self, step: int, size: int) -> list[Sample]:
        return [self.sample(step, index) for index in range(size)]

    def sample(self, step: int, index: int) -> Sample:
        rng = stream(self.seed, step, index)
        shares = np.array(list(KINDS.values()))
        kind = str(rng.choice(list(KINDS), p=shares / shares.sum()))
        picture, hazy, rainy = self._taken(kind, rng)
        generator = torch_generator(rng)
        if "hazed" in kind:
            made, record = haze(picture[None], generator, HAZE)
            picture, veiled = made[0], 1 - float(record["transmission"].mean())
            hazy = 1.0 if veiled > 0.2 else math.nan
        if "rained" in kind:
            picture, rainy = self._rained(picture, generator, rng)
        picture, rainy = _spoiled(picture, rainy, rng)
        return Sample(picture, hazy, rainy)

    def _taken(self, kind: str, rng: np.random.Generator) -> tuple[Tensor, float, float]:
        """A region of a photo of the kind, before weather is made, and what is known of it."""
        if kind.startswith("hazy"):
            name = str(rng.choice(HAZY, p=[0.35, 0.25, 0.2, 0.2]))
            path, rain = _one(self.found.hazy[name], rng).degraded, 0.0
        elif kind == "rainy":
            path, rain = _one(self.found.rainy, rng).degraded, 1.0
        else:
            name = str(rng.choice(["clear", *HAZY, "rain100", "depth"], p=[0.6, 0.12, 0.04, 0.08, 0.08, 0.06, 0.02]))
            path, rain = _one(self.found.clear[name], rng), 0.0
        region, share = _region(self.photos.get(path), rng)
        region = aug.toned(region, aug.draw_tone(TONE, rng))
        # A part of a hazy photo may show what lies near and is clear.
        hazy = (1.0 if share > 0.4 else math.nan) if kind.startswith("hazy") else 0.0
        if kind == "clear" and rng.random() < 0.15:
            region = _hard(region, rng)
        return to_tensor(region), hazy, rain

    def _rained(self, picture: Tensor, generator: torch.Generator, rng: np.random.Generator) -> tuple[Tensor, float]:
        bank = self.recorded if rng.random() < 0.6 else self.computed
        layer = bank[int(rng.integers(len(bank)))][None].float() / 255
        streaks = recorded_streaks(layer, 1, REGION, REGION, generator)
        compose = screened if rng.random() < 0.5 else added
        rainy = compose(picture[None], streaks)[0]
        return rainy, 1.0 if float((rainy - picture).abs().mean()) > 0.01 else math.nan


def _region(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """REGION x REGION of a photo, mirrored or not, and the share of the photo that it shows: nearly all of it squeezed,
    as haze is looked for, or a square at about its own scale, as rain is."""
    height, width = photo.shape[:2]
    if rng.random() < 0.5:
        part = rng.uniform(0.8, 1.0, 2)
        tall, wide = round(height * part[0]), round(width * part[1])
    else:
        tall = wide = min(height, width, round(REGION / rng.uniform(0.7, 1.3)))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    cut = photo[top : top + tall, left : left + wide]
    smaller = min(tall, wide) >= REGION
    region = cv2.resize(cut, (REGION, REGION), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return (region[:, ::-1] if rng.random() < 0.5 else region), tall * wide / (height * width)


def _hard(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clear photos that a careless eye takes for weather: shaken, overexposed, lying on their side, half out of
    focus, in front of something white."""
    kind = rng.integers(5)
    if kind == 0:  # motion blur in any direction: smears like streaks, over everything
        long, angle = int(rng.integers(5, 16)), rng.uniform(0, math.pi)
        kernel = np.zeros((2 * long + 1, 2 * long + 1), np.float32)
        end = (round(long * math.cos(angle)), round(long * math.sin(angle)))
        cv2.line(kernel, (long - end[0], long - end[1]), (long + end[0], long + end[1]), 1.0)
        return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    if kind == 1:
        return np.minimum(picture * np.float32(rng.uniform(1.3, 2.2)), np.float32(1))
    if kind == 2:
        return np.ascontiguousarray(np.rot90(picture))
    soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(2, 8))
    if kind == 4:
        soft = np.minimum(soft * np.float32(0.2) + np.float32(rng.uniform(0.7, 0.9)), np.float32(1))
    mask = np.zeros(picture.shape[:2], np.float32)
    centre = (int(rng.integers(REGION)), int(rng.integers(REGION)))
    cv2.ellipse(mask, centre, tuple(int(a) for a in rng.integers(60, 160, 2)), int(rng.integers(180)), 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 6 if kind == 3 else 1)[..., None]
    return picture * mask + soft * (1 - mask)


def _spoiled(picture: Tensor, rain: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Blur, grey, noise and JPEG, whatever the weather. Streaks that a blur took away are not to be seen any more."""
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    blurred, greyed, noisy, packed = rng.random(4)
    if blurred < 0.15:
        sigma = rng.uniform(0.5, 2.0)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
        rain = math.nan if rain == 1 and sigma > 0.8 else rain
    if greyed < 0.06:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if noisy < 0.25:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.0, 0.04))
    pixels = np.clip(pixels, 0, 1)
    if packed < 0.4:
        pixels = aug.jpeg(pixels, int(rng.integers(40, 96)))
    return to_tensor(pixels), rain


def _at_least(shape: Sequence[int], side: int) -> tuple[int, int]:
    factor = max(1.0, side / min(shape))
    return math.ceil(shape[1] * factor), math.ceil(shape[0] * factor)


def _one(things: Sequence[Any], rng: np.random.Generator) -> Any:
    return things[int(rng.integers(len(things)))]


def learned(samples: Samples, steps: int, batch: int, seed: int) -> WeatherNet:
    """The network after `steps` steps: AdamW, one cycle, binary cross-entropy where a label is known."""
    torch.manual_seed(seed)
    network = WeatherNet(side=REGION // 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    began = time.process_time()
    for step in range(steps):
        drawn = samples.batch(step, batch)
        pictures = torch.stack([sample.picture for sample in drawn])
        order = torch.randperm(4)[:WINDOWS]
        windows = pictures.unfold(2, REGION // 2, REGION // 2).unfold(3, REGION // 2, REGION // 2)
        windows = windows.flatten(2, 3).transpose(1, 2)[:, order].contiguous()
        with torch.autocast("cpu", torch.bfloat16):
            seen = network.haze_logit(functional.avg_pool2d(pictures, 2)), network.rain_logit(windows)
        losses = []
        for logits, labels in zip(seen, ([s.haze for s in drawn], [s.rain for s in drawn]), strict=True):
            truth = torch.tensor(labels)
            known = ~truth.isnan()
            losses.append(functional.binary_cross_entropy_with_logits(logits[:, 0].float()[known], truth[known]))
        optimizer.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            told = " ".join(f"{name} {float(loss):.4f}" for name, loss in zip(("haze", "rain"), losses, strict=True))
            print(f"step {step}: {told}, {time.process_time() - began:.0f} s", flush=True)
    return network.eval()


class Judged(NamedTuple):
    """What the network says of a held-back photo, and what is known of it."""

    kind: str
    haze: bool
    rain: bool
    logits: tuple[float, float]


def judged(network: WeatherNet, held: Sources, photos: Photos, seed: int) -> list[Judged]:
    """Every held-back photo whole, as it is restored: as recorded, and clear ones with weather made over them."""
    rng = stream(seed, 2 << 32)
    bank = [streak_layer(*photos.pair(pair.degraded, pair.clear)) for pair in held.rainy]

    def all_of() -> Iterator[tuple[str, bool, bool, np.ndarray]]:
        for name, pairs in held.hazy.items():
            for pair in pairs:
                yield name, True, False, photos.get(pair.degraded)
        for pair in held.rainy:
            yield pair.name.partition("/")[0], False, True, photos.get(pair.degraded)
        for name, paths in held.clear.items():
            for path in paths:
                yield f"{name}, clear", False, False, photos.get(path)
        for number, path in enumerate(held.clear["clear"]):
            clear = to_tensor(images.to_float(photos.get(path)))[None]
            generator = torch_generator(rng)
            hazy = number % 3 != 1
            if hazy:
                clear, record = haze(clear, generator, HAZE)
                if 1 - float(record["transmission"].mean()) < 0.2:
                    continue
            if number % 3 != 0:
                layer = torch.from_numpy(_one(bank, rng)).float()[None, None] / 255
                clear = added(clear, recorded_streaks(layer, 1, *clear.shape[2:], generator))
            kind = ("hazed", "rained", "hazed, rained")[number % 3]
            yield kind, hazy, number % 3 != 0, images.from_float(clear[0].permute(1, 2, 0).numpy(), np.uint8)

    found = []
    for kind, hazy, rainy, photo in all_of():
        with torch.inference_mode():
            answer = network(torch.from_numpy(views(photo, network.side)))[0]
        found.append(Judged(kind, hazy, rainy, (float(answer[0]), float(answer[1]))))
    return found


def threshold(without: Sequence[float], having: Sequence[float]) -> Threshold:
    """Between the photos that lack a weather and those that have it: in the middle of the gap between all but FEW of
    the ones and all but FEW of the others, or where there is none, above all but FEW of those that lack it."""
    high, low = float(np.quantile(without, 1 - FEW)), float(np.quantile(having, FEW))
    logit = max(high, (high + low) / 2)
    truth = np.concatenate([np.zeros(len(without)), np.ones(len(having))])
    share = np.where(truth == 1, 0.5 / len(having), 0.5 / len(without))
    logits = np.concatenate([without, having]) - logit

    def surprise(width: float) -> float:
        return float((share * np.logaddexp(0, np.where(truth == 1, -1, 1) * logits / width)).sum())

    return Threshold(round(logit, 4), round(float(min(np.geomspace(0.25, 8, 41), key=surprise)), 4))


def report(found: Sequence[Judged], haze_at: Threshold, rain_at: Threshold) -> dict[str, dict[str, int]]:
    """Kind -> how many were decided to be what."""
    table: dict[str, dict[str, int]] = {}
    for one in found:
        seen = one.logits[0] > haze_at.logit, one.logits[1] > rain_at.logit
        decided = {(False, False): "none", (True, False): "haze", (False, True): "rain", (True, True): "both"}[seen]
        row = table.setdefault(one.kind, {"none": 0, "haze": 0, "rain": 0, "both": 0})
        row[decided] += 1
    return table


def ship(network: WeatherNet, out: Path, card: Callable[[dict[str, str]], RecognizerCard]) -> RecognizerCard:
    """Weights, ONNX with any number of views, and the card, once ONNX Runtime and OpenVINO agree with PyTorch."""
    from hashlib import sha256

    from safetensors.torch import save_file

    from fairweather.deploy.export import OPSET
    from fairweather.restoring.recognise import load_recognizer

    out.mkdir(parents=True, exist_ok=True)
    network = network.to(memory_format=torch.contiguous_format).eval()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out / cards.WEIGHTS)
    example, many = torch.rand(7, 3, network.side, network.side), torch.export.Dim("views", min=2, max=64)
    torch.onnx.export(
        network, (example,), out / cards.ONNX, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
        dynamic_shapes=({0: many},), input_names=["views"], output_names=["logits"],
    )  # fmt: skip
    written = card({name: sha256((out / name).read_bytes()).hexdigest() for name in cards.SUMMED})
    (out / CARD).write_text(json.dumps(dataclasses.asdict(written), indent=2) + "\n", encoding="utf-8")
    for engine in ("openvino", "onnxruntime", "torch"):
        run = load_recognizer(out, engine=engine).engine
        for count in (7, 13):
            given = torch.rand(count, 3, network.side, network.side)
            with torch.inference_mode():
                difference = float(np.abs(run(given.numpy()) - network(given).numpy()).max())
            # OpenVINO computes in bf16 where the processor has it.
            assert difference < (0.3 if engine == "openvino" else 1e-3), f"{engine} differs by {difference}"
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/fairweather/models/weather"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, held = sources(options.data)
    photos = Photos(memory=2 << 30)
    network = learned(Samples(train, photos, options.seed), options.steps, options.batch, options.seed)
    found = judged(network, held, photos, options.seed)
    rules = [
        threshold([one.logits[k] for one in found if not one[k + 1]], [one.logits[k] for one in found if one[k + 1]])
        for k in (0, 1)
    ]
    table = report(found, *rules)
    training = {
        "command": f"runs/ship/weather.py --steps {options.steps} --batch {options.batch} --seed {options.seed}",
        "data": [*train.clear],
        "held_back": HOLD_BACK,
        "processor_seconds": round(time.process_time()),
        "on_held_back_scenes": table,
    }
    ship(
        network,
        options.out,
        lambda sums: RecognizerCard(
            "weather", network.side, *rules, training, "CC-BY-NC-4.0", TERMS,
            "Sees whether a photo shows haze, rain, both or neither.", sums,
        ),
    )  # fmt: skip
    print(f"thresholds: haze {rules[0]}, rain {rules[1]}\nheld back (rows: what they are):")
    for kind, row in table.items():
        print(f"{kind:22} " + "  ".join(f"{name} {count:3}" for name, count in row.items()))


if __name__ == "__main__":
    main()
