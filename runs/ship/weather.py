"""Trains models/weather, the recognizer behind `restore --weather auto`, and sets its two thresholds.

    python runs/ship/weather.py --data DATA [--out src/fairweather/models/weather] [--steps 700] [--seed 1]
                                  [--start FOLDER] [--only haze|rain] [--rate 4e-3] [--behind 0] [--again]

command    python runs/ship/weather.py --data DATA
hardware   one core of an AMD EPYC (AVX-512, bf16)
time       about 8 minutes of processor time
data       DATA as for the models that it chooses between: sots_outdoor, sots_indoor,
           o_haze, nh_haze, rain100 (pairs) and clear, depth (photos)
expected   printed at the end, on scenes held back from DATA: how many clear photos are taken for weather, and how many
           hazy and rainy ones are seen; benchmarks/weather.py prints the table for the test photos

--start goes on from the weights of another recognizer's folder, --only teaches one of its two parts. --behind is the
share of hazy samples whose foreground is made clear; docs/models.md says why the one that ships has none.
--again takes the weights that are in --out already and sets the thresholds alone.

Fifteen of a hundred scenes of each folder are held back, by the same hash as for every other run, so that none of them
is among what the models of the other runs learned from their shares either. They choose the thresholds, nothing else.
Every draw comes from (seed, step, sample): the same versions, machine and threads give the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from weather_samples import HAZE, HOLD_BACK, REGION, Samples, Sources, behind, one_of, sources, visible

from fairweather import cards, images
from fairweather.data.photos import Photos
from fairweather.data.rainy import streak_layer
from fairweather.data.source import stream, to_tensor, torch_generator
from fairweather.recognizer import WeatherNet
from fairweather.restoring.recognise import CARD, RecognizerCard, Threshold, views
from fairweather.training.engine import choose_precision
from fairweather.weather.haze import haze
from fairweather.weather.rain import added, recorded_streaks

FEW = (0.04, 0.06)
"""The most of the held-back photos without haze, and without rain, that may be taken to have it. A clear photo comes
back from `derain` nearly as it was, while missed rain stays in all its strength; `dehaze` may darken a pale sky, but
real fog behind a clear foreground hardly shows to this network, and below 0.04 most of it is missed."""
BOTH = ("haze", "rain")
PARTED = ", behind"
"""Kinds of held-back photos whose foreground was made clear: they are reported, and have no say in the thresholds."""
TERMS = (
    "Trained on research data (RESIDE/SOTS, O-HAZE, NH-HAZE, Rain100, BSDS500, ImageNet, CamVid, Middlebury): "
    "non-commercial research use."
)


def learned(network: WeatherNet, samples: Samples, options: argparse.Namespace) -> WeatherNet:
    """The network after so many steps: AdamW, one cycle, binary cross-entropy where a label is known. Of the parts for
    haze and for rain those learn that are to."""
    network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = [value for name, value in network.named_parameters() if name.startswith(options.only)]
    optimizer = torch.optim.AdamW(own, lr=options.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps, pct_start=0.2)
    bf16 = choose_precision("auto", "cpu") == "bf16"
    began = time.process_time()
    for step in range(options.steps):
        drawn = samples.batch(step, options.batch)
        pictures = torch.stack([sample.picture for sample in drawn])
        losses = {}
        for kind in options.only:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                if kind == "haze":
                    means, least = functional.avg_pool2d(pictures, 2), -functional.max_pool2d(-pictures, 2)
                    logits = network.haze_logit(means, least)
                else:
                    windows = pictures.unfold(2, REGION // 2, REGION // 2).unfold(3, REGION // 2, REGION // 2)
                    logits = network.rain_logit(windows.flatten(2, 3).transpose(1, 2).contiguous())
            truth = torch.tensor([getattr(sample, kind) for sample in drawn])
            known = ~truth.isnan()
            losses[kind] = functional.binary_cross_entropy_with_logits(logits[:, 0].float()[known], truth[known])
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == options.steps - 1:
            told = " ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
            print(f"step {step}: {told}, {time.process_time() - began:.0f} s", flush=True)
    return network.eval()


def begun(folder: Path) -> tuple[WeatherNet, dict[str, Any]]:
    """A network that is there already, and what its card says of its training."""
    network = WeatherNet(side=REGION // 2)
    network.load_state_dict(load_file(folder / cards.WEIGHTS))
    return network.eval(), json.loads((folder / CARD).read_text(encoding="utf-8"))["training"]


class Judged(NamedTuple):
    """What the network says of a held-back photo, and what is known of it."""

    kind: str
    haze: bool
    rain: bool
    logits: tuple[float, float]


def judged(network: WeatherNet, held: Sources, photos: Photos, seed: int) -> list[Judged]:
    """Every held-back photo whole, as it is restored: as recorded, and clear ones with weather made over them."""
    rng, apart = stream(seed, 2 << 32), stream(seed, 3 << 32)
    bank = [streak_layer(*photos.pair(pair.degraded, pair.clear)) for pair in held.rainy]

    def all_of() -> Iterator[tuple[str, bool, bool, np.ndarray]]:
        for name, pairs in held.hazy.items():
            for pair in pairs:
                yield name, True, False, photos.get(pair.degraded)
                hazy, clear = (images.to_float(photo) for photo in photos.pair(pair.degraded, pair.clear))
                parted = behind(hazy, clear, apart)
                if visible(parted, clear):
                    yield f"{name}{PARTED}", True, False, images.from_float(parted, np.uint8)
        for pair in held.rainy:
            yield f"rain100, {pair.degraded.parent.name}", False, True, photos.get(pair.degraded)
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
                layer = torch.from_numpy(one_of(bank, rng)).float()[None, None] / 255
                clear = added(clear, recorded_streaks(layer, 1, *clear.shape[2:], generator))
            kind = ("hazed", "rained", "hazed, rained")[number % 3]
            yield kind, hazy, number % 3 != 0, images.from_float(clear[0].permute(1, 2, 0).numpy(), np.uint8)

    found = []
    for kind, hazy, rainy, photo in all_of():
        with torch.inference_mode():
            answer = network(torch.from_numpy(views(photo, network.side)))[0]
        found.append(Judged(kind, hazy, rainy, (float(answer[0]), float(answer[1]))))
    return found


def threshold(without: Sequence[float], having: Sequence[float], few: float) -> Threshold:
    """Between the photos that lack a weather and those that have it: in the middle of the gap between all but `few` of
    the ones and all but `few` of the others, or where there is none, above all but `few` of those that lack it."""
    high, low = float(np.quantile(without, 1 - few)), float(np.quantile(having, few))
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

    from fairweather.deploy.export import OPSET
    from fairweather.restoring.recognise import load_recognizer

    out.mkdir(parents=True, exist_ok=True)
    network = network.to(memory_format=torch.contiguous_format).eval()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out / cards.WEIGHTS)
    example, many = torch.rand(8, 3, network.side, network.side), torch.export.Dim("views", min=3, max=64)
    torch.onnx.export(
        network, (example,), out / cards.ONNX, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
        dynamic_shapes=({0: many},), input_names=["views"], output_names=["logits"],
    )  # fmt: skip
    (out / cards.WEIGHTS).chmod(0o644)  # safetensors keeps what it writes to its owner
    written = card({name: sha256((out / name).read_bytes()).hexdigest() for name in cards.SUMMED})
    (out / CARD).write_text(json.dumps(dataclasses.asdict(written), indent=2) + "\n", encoding="utf-8")
    for engine in ("openvino", "onnxruntime", "torch"):
        run = load_recognizer(out, engine=engine).engine
        for count in (8, 14):
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
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--only", nargs="+", choices=BOTH, default=BOTH)
    parser.add_argument("--behind", type=float, default=0.0)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args(arguments)
    options.only = tuple(options.only)
    torch.set_num_threads(1)
    train, held = sources(options.data)
    photos = Photos(memory=2 << 30)
    torch.manual_seed(options.seed)
    network = WeatherNet(side=REGION // 2)
    known: dict[str, Any] = {}
    if options.again or options.start:
        network, known = begun(options.out if options.again else options.start)
    command = known.get("command", "")
    if not options.again:
        network = learned(network, Samples(train, photos, options.seed, behind=options.behind), options)
        said = f"--steps {options.steps} --batch {options.batch} --seed {options.seed} --rate {options.rate:g}"
        said += "" if options.only == BOTH else f" --only {options.only[0]}"
        said += f" --behind {options.behind:g}" if options.behind else ""
        command = f"{command}; then --start with it {said}" if options.start else f"runs/ship/weather.py {said}"
    found = judged(network, held, photos, options.seed)
    whole = [one for one in found if not one.kind.endswith(PARTED)]
    rules = [
        threshold(
            [one.logits[k] for one in whole if not one[k + 1]], [one.logits[k] for one in whole if one[k + 1]], FEW[k]
        )
        for k in (0, 1)
    ]
    table = report(found, *rules)
    training = {
        "command": command,
        "data": [*train.clear],
        "held_back": HOLD_BACK,
        "processor_seconds": known.get("processor_seconds", 0) + (0 if options.again else round(time.process_time())),
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
