"""Trains models/weather, the recognizer behind `restore --weather auto`, and weighs it against what the models say.

    python runs/ship/weather.py --data DATA [--out src/fairweather/models/weather] [--steps 1000] [--seed 1]
                                  [--start FOLDER] [--only haze|rain] [--rate 4e-3] [--behind 0.15] [--costly 0.3]
                                  [--again]

command    python runs/ship/weather.py --data DATA
hardware   one core of an AMD EPYC (AVX2, no bf16)
time       24 minutes of processor time
data       DATA as for the models that it chooses between: sots_outdoor, sots_indoor,
           o_haze, nh_haze, rain100 (pairs) and clear, depth (photos)
expected   printed at the end, on scenes held back from DATA: how many clear photos are taken for weather, and how many
           hazy and rainy ones are seen; benchmarks/weather.py prints the table for the test photos

--start goes on from the weights of another recognizer's folder, --only teaches one of its two parts. --behind is the
share of hazy samples whose foreground is made clear, --costly the share of clear ones that are drawn from those which
`dehaze` would change: only there a mistake shows. --again takes the weights that are in --out already and sets the
rules alone: to be done whenever `dehaze` or `derain` ships anew, since they are asked as well.

Fifteen of a hundred scenes of each folder are held back. They choose the rules, nothing else: how much a model's
estimate weighs beside the network's logit (logistic regression), and where a decision turns. Of these scenes the models
learned from seven of fifteen; what they say of those may be a little surer than it would be elsewhere.
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
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional
from weather_samples import HAZE, HOLD_BACK, REGION, Samples, Sources, behind, dear, one_of, sources, visible

from fairweather import images, model_folder
from fairweather.data.datasets import PhotoCache, item_rng, to_tensor, torch_generator
from fairweather.data.synthetic import streak_layer
from fairweather.inference.restorer import load
from fairweather.inference.weather_detection import DETECTOR_CARD, DecisionRule, DetectorCard, Weather, WeatherDetector
from fairweather.training.optimization import choose_precision
from fairweather.weather.haze import haze
from fairweather.weather.rain import added, recorded_streaks
from fairweather.weather_classifier import WeatherClassifier

FEW = 0.02
"""The most of the held-back photos without haze, and without rain, that may be taken to have it. At 0.04 two clear ones
of 192 changed to less than 28 dB of themselves, at 0.02 none; what hazy and rainy ones lose by it is below 0.2 dB."""
BOTH = ("haze", "rain")
ASKED: tuple[tuple[str, float | None], ...] = (("dehaze", None), ("derain", -5.0))
"""The model that is asked of each weather, and the logit that the network must give first: no rainy photo that was held
back is near -5, and two clear ones of three are below."""
PARTED = ", behind"
"""Kinds of held-back photos whose foreground was made clear: in the weights of the estimates they count PARTLY, and
they have no say in where a decision turns."""
PARTLY = 0.3
DESCRIPTION = "Sees whether a photo shows haze, rain, both or neither; asks the models how much of it they find."
TERMS = (
    "Trained on research data (RESIDE/SOTS, O-HAZE, NH-HAZE, Rain100, BSDS500, ImageNet, CamVid, Middlebury): "
    "non-commercial research use."
)


def learned(network: WeatherClassifier, samples: Samples, options: argparse.Namespace) -> WeatherClassifier:
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


def begun(folder: Path) -> tuple[WeatherClassifier, dict[str, Any]]:
    """A network that is there already, and what its card says of its training."""
    network = WeatherClassifier(side=REGION // 2)
    network.load_state_dict(load_file(folder / model_folder.WEIGHTS))
    return network.eval(), json.loads((folder / DETECTOR_CARD).read_text(encoding="utf-8"))["training"]


class Judged(NamedTuple):
    """What the network says of a held-back photo, and what is known of it."""

    kind: str
    haze: bool
    rain: bool
    logits: tuple[float, float]
    estimates: tuple[float, float]


def judged(look: WeatherDetector, held: Sources, photos: PhotoCache, seed: int) -> list[Judged]:
    """Every held-back photo whole, as it is restored: as recorded, and clear ones with weather made over them."""
    rng, apart = item_rng(seed, 2 << 32), item_rng(seed, 3 << 32)
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
        haze_said, rain_said = look.evidence(photo)
        found.append(Judged(kind, hazy, rainy, *zip(haze_said, rain_said, strict=True)))
    return found


def ruled(found: Sequence[Judged]) -> list[DecisionRule]:
    """How each model's estimate weighs beside the network, and where a decision turns."""
    rules = []
    for k, (model, above) in enumerate(ASKED):
        having = np.array([one[k + 1] for one in found])
        partly = np.array([one.kind.endswith(PARTED) for one in found])
        said = np.array([(one.logits[k], one.estimates[k]) for one in found])
        told = having | ~partly if k == 0 else ~partly  # made from hazy photos, they say nothing new of rain
        shares = np.where(partly, PARTLY, 1.0) / np.where(having, having[told].sum(), (~having[told]).sum())
        estimate = weight(said[told], having[told], shares[told])
        fused = said @ np.array([1.0, estimate])
        rules.append(threshold(fused[~having & ~partly], fused[having & ~partly], FEW, estimate, model, above))
    return rules


def weight(said: NDArray[np.float64], having: NDArray[np.bool_], shares: NDArray[np.float64]) -> float:
    """How much the second column counts beside the first one's 1, by logistic regression with a little ridge."""
    scale = said.std(axis=0)
    x = torch.from_numpy(np.column_stack([(said - said.mean(axis=0)) / scale, np.ones(len(said))]))
    y, share = torch.from_numpy(having.astype(np.float64)), torch.from_numpy(shares / shares.sum())
    factors = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([factors], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        surprise = functional.binary_cross_entropy_with_logits(x @ factors, y, share, reduction="sum")
        total = surprise + 0.005 * factors[:2].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    first, second = (factors.detach().numpy()[:2] / scale).tolist()
    if min(first, second) <= 0:
        raise SystemExit(f"the network ({first:.3g}) and the model ({second:.3g}) do not agree on what weather is")
    return round(second / first, 4)


def threshold(
    without: NDArray[np.float64],
    having: NDArray[np.float64],
    few: float,
    estimate: float,
    model: str,
    above: float | None,
) -> DecisionRule:
    """Between the photos that lack a weather and those that have it: in the middle of the gap between all but `few` of
    the ones and all but `few` of the others, or where there is none, above all but `few` of those that lack it."""
    high, low = float(np.quantile(without, 1 - few)), float(np.quantile(having, few))
    logit = max(high, (high + low) / 2)
    truth = np.concatenate([np.zeros(len(without)), np.ones(len(having))])
    share = np.where(truth == 1, 0.5 / len(having), 0.5 / len(without))
    logits = np.concatenate([without, having]) - logit

    def surprise(width: float) -> float:
        return float((share * np.logaddexp(0, np.where(truth == 1, -1, 1) * logits / width)).sum())

    width = round(float(min(np.geomspace(0.25, 8, 41), key=surprise)), 4)
    return DecisionRule(round(logit, 4), width, estimate, model, above)


def report(found: Sequence[Judged], rules: Sequence[DecisionRule]) -> dict[str, dict[str, int]]:
    """Kind -> how many were decided to be what."""
    table: dict[str, dict[str, int]] = {}
    for one in found:
        seen = Weather(*(rule(*said) for rule, *said in zip(rules, one.logits, one.estimates, strict=True)))
        row = table.setdefault(one.kind, {"none": 0, "haze": 0, "rain": 0, "both": 0})
        row[seen.decided] += 1
    return table


def witnesses(found: Sequence[Judged], rules: Sequence[DecisionRule]) -> str:
    """How many of those that have a weather are seen by the network alone, by the model alone and by both, where FEW of
    those that have it not are taken for it."""
    lines = ["| | network | model | both |", "|---|--:|--:|--:|"]
    partly = np.array([one.kind.endswith(PARTED) for one in found])
    for k, (weather, rule) in enumerate(zip(BOTH, rules, strict=True)):
        having = np.array([one[k + 1] for one in found])
        said = np.array([(one.logits[k], one.estimates[k]) for one in found])
        columns = (said[:, 0], said[:, 1], said @ np.array([1.0, rule.estimate]))
        edges = [np.quantile(column[~having & ~partly], 1 - FEW) for column in columns]
        for name, part in ((weather, having & ~partly), (weather + PARTED, having & partly)):
            if part.any() and not (name.endswith(PARTED) and k == 1):
                seen = [int((column[part] > edge).sum()) for column, edge in zip(columns, edges, strict=True)]
                lines.append(f"| {name} ({part.sum()}) | " + " | ".join(map(str, seen)) + " |")
    return "\n".join(lines)


def ship(network: WeatherClassifier, out: Path, card: Callable[[dict[str, str]], DetectorCard]) -> DetectorCard:
    """Weights, ONNX with any number of views, and the card, once ONNX Runtime and OpenVINO agree with PyTorch."""
    from hashlib import sha256

    from fairweather.deploy.onnx_export import OPSET
    from fairweather.inference.weather_detection import load_detector

    out.mkdir(parents=True, exist_ok=True)
    network = network.to(memory_format=torch.contiguous_format).eval()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out / model_folder.WEIGHTS)
    example, many = torch.rand(8, 3, network.side, network.side), torch.export.Dim("views", min=3, max=64)
    torch.onnx.export(
        network, (example,), out / model_folder.ONNX, dynamo=True, opset_version=OPSET, external_data=False,
        verbose=False,
        dynamic_shapes=({0: many},), input_names=["views"], output_names=["logits"],
    )  # fmt: skip
    (out / model_folder.WEIGHTS).chmod(0o644)  # safetensors keeps what it writes to its owner
    written = card({name: sha256((out / name).read_bytes()).hexdigest() for name in model_folder.SUMMED})
    (out / DETECTOR_CARD).write_text(json.dumps(dataclasses.asdict(written), indent=2) + "\n", encoding="utf-8")
    for engine in ("openvino", "onnxruntime", "torch"):
        run = load_detector(load, out, engine=engine).engine
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
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--only", nargs="+", choices=BOTH, default=BOTH)
    parser.add_argument("--behind", type=float, default=0.15)
    parser.add_argument("--costly", type=float, default=0.3)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args(arguments)
    options.only = tuple(options.only)
    torch.set_num_threads(1)
    train, held = sources(options.data)
    photos = PhotoCache(memory=2 << 30)
    torch.manual_seed(options.seed)
    network = WeatherClassifier(side=REGION // 2)
    known: dict[str, Any] = {}
    if options.again or options.start:
        network, known = begun(options.out if options.again else options.start)
    command = known.get("command", "")
    restorers = {name: load(name, engine="onnxruntime", threads=1) for name, _ in ASKED}
    if not options.again:
        choice = dear(train, photos, restorers["dehaze"]) if options.costly else []
        print(f"{len(choice)} clear photos are costly")
        samples = Samples(train, photos, options.seed, behind=options.behind, costly=options.costly, dear=choice)
        network = learned(network, samples, options)
        said = f"--steps {options.steps} --batch {options.batch} --seed {options.seed} --rate {options.rate:g}"
        said += "" if options.only == BOTH else f" --only {options.only[0]}"
        said += f" --behind {options.behind:g}" if options.behind else ""
        said += f" --costly {options.costly:g}" if options.costly else ""
        command = f"{command}; then --start with it {said}" if options.start else f"runs/ship/weather.py {said}"

    def engine(shown: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(shown)).numpy())

    open_rules = [
        DecisionRule(0.0, 1.0, 0.0, model, above) for model, above in ASKED
    ]  # whom to ask is known, the rest is not
    card = DetectorCard("weather", network.side, *open_rules, {}, "CC-BY-NC-4.0", TERMS, DESCRIPTION)
    found = judged(WeatherDetector(card, engine, restorers.__getitem__), held, photos, options.seed)
    rules = ruled(found)
    table = report(found, rules)
    training = {
        "command": command,
        "data": [*train.clear],
        "held_back": HOLD_BACK,
        "processor_seconds": known.get("processor_seconds", 0) + (0 if options.again else round(time.process_time())),
        "asks": {name: restorer.card.checksums[model_folder.WEIGHTS] for name, restorer in restorers.items()},
        "on_held_back_scenes": table,
    }
    whole = dataclasses.replace(card, haze=rules[0], rain=rules[1], training=training)
    ship(network, options.out, lambda sums: dataclasses.replace(whole, checksums=sums))
    print(f"haze {rules[0]}\nrain {rules[1]}\nheld back (rows: what they are):")
    for kind, row in table.items():
        print(f"{kind:22} " + "  ".join(f"{name} {count:3}" for name, count in row.items()))
    print(f"\nseen where {FEW:.0%} of the others are taken for it:\n{witnesses(found, rules)}")


if __name__ == "__main__":
    main()
