"""`fairweather quantize MODEL --method ... -o DIR`: the model with a network in int8, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from fairweather import model_folder


def quantize(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    method: Literal["dynamic", "static", "qat"],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])],
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 200,
    force: bool = False,
) -> None:
    """Put a network in int8 beside a model's float one, and say what it costs: dB, milliseconds, megabytes.

    Layers that lose too much stay in float; they are found by measuring and named on the card. The result is refused
    where its pictures are not the float model's: PSNR to the truth may fall by 0.15 dB (qat: 0.1), on photos other
    than those calibrated on. The float network stays as it is; `restore --precision int8` runs the other.

    Args:
        model: a shipped model's name, or the path of a model folder or run folder.
        method: dynamic makes the weights int8 and computes in float; static computes in int8, with ranges measured
            on photos; qat fine-tunes first, so that the weights fit int8 (the extra quantize).
        out: the model folder to write; one that is there already is replaced.
        data: folder of pairs, or of photos alone, such as the model is made for.
        steps: how long qat fine-tunes.
        force: keep what misses the bar, and say so on its card.
    """
    from fairweather.deploy.quantization import quantize_model as make

    card = make(model, out, method=method, data=data, steps=steps, force=force)
    for line in lines(card):
        print(line)
    print(f"{card.name} with int8 is in {out}: fairweather restore PHOTO --model {out} --precision int8")


def lines(card: model_folder.Card) -> list[str]:
    """What the card says of its int8 network, for people."""
    said = card.quantized
    if said is None:
        return []
    found = [f"{said['method']}, {said['layers'] - len(said['float_layers'])} of {said['layers']} layers in int8"]
    if "calibration" in said:
        found[0] += ", " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said["calibration"].items())
    found += [f"in float: {layer}, {why}" for layer, why in said["float_layers"].items()]
    for artefact, one in said["parity"].items():
        change = "" if one["change"] is None else f", {one['change']:+.2f} dB to the truth"
        found.append(f"{artefact}: {one['psnr']:.1f} dB alike{change} ({said['data']}, n={one['photos']})")
    if not said["passed"]:
        found.append(f"KEPT BY FORCE below the bar: {'; '.join(said['failures'])}")
    cost = said["cost"]
    ms, size = cost["ms"], cost["megabytes"]
    found.append(
        f"network at {cost['photo']} in {cost['engine']}: {ms['int8']:.1f} ms, f32 {ms['f32']:.1f} ms; "
        f"{size['model.int8.onnx']:.2f} MB, float {size['model.onnx']:.2f} MB"
    )
    if "slow" in cost:
        found.append(cost["slow"])
    return found
