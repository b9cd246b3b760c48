"""`fairweather models` lists the models that come with the package; `fairweather info MODEL` prints one card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from fairweather import model_folder


def models() -> None:
    """List the models that come with fairweather, with their sizes and main scores; `info` prints all scores."""
    table = Table("model", "weather", "size", "scores (unprocessed photos in brackets)", box=None)
    for name, folder in model_folder.shipped().items():
        card = model_folder.read_card(folder, verify=False)
        main = [one for one in card.scores if (one["metric"], one["protocol"]) == ("psnr", "rgb") and "input" in one]
        scores = "\n".join(map(score_line, main or card.scores)) or "none"
        table.add_row(name, card.weather, _size(folder), scores)
    _print(table if table.rows else "This build of fairweather has no models: train one with `fairweather train`.")


def info(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
) -> None:
    """Print a model's card: its network, training data, scores, licence and terms of use.

    Args:
        model: Name of a shipped model, or path of a model folder or run folder; `weather` is the detector that
            `restore --weather auto` uses.
    """
    if model == "weather":
        _print(_rows(_detector()))
        return
    folder = model_folder.find(model)
    card = model_folder.read_card(folder)
    arguments = ", ".join(f"{key}={value!r}" for key, value in card.arguments.items())
    rows = {
        "model": f"{card.name}, {_task(card)}",
        "direction": card.direction,
        "description": card.description or "none",
        "network": f"{card.generator}({arguments})",
        "input": _input(card),
        "output": "haze maps at low resolution, applied at full size" if card.output == "maps" else "the whole picture",
        "int8": "\n".join(quantized_lines(card)),
        "training": "\n".join(_flat(card.training)) or "not recorded",
        "scores": "\n".join(map(score_line, card.scores)) or "none",
        "selected": card.choice,
        "licence": card.licence,
        "terms": card.terms,
        "folder": f"{folder} ({_size(folder)}, checksums match)",
    }
    _print(_rows(rows))


def quantized_lines(card: model_folder.Card) -> list[str]:
    """Lines that describe a model's int8 network; none for a model without one."""
    record = card.quantized
    if record is None:
        return []
    floats, calibration = record["float_layers"], record.get("calibration", {})
    lines = [
        f"{record['method']}, {record['layers'] - len(floats)} of {record['layers']} layers in int8"
        + "".join(f", {key.replace('_', ' ')} {value}" for key, value in calibration.items())
    ]
    lines += [f"float: {layer}, {reason}" for layer, reason in floats.items()]
    for network, found in record["parity"].items():
        change = "" if found["change"] is None else f", PSNR to the ground truth {found['change']:+.2f} dB"
        lines.append(
            f"{network}: {found['psnr']:.1f} dB to the float model{change} ({record['data']}, n={found['photos']})"
        )
    if not record["passed"]:
        lines.append(f"BELOW THE QUALITY BAR, written with --force: {'; '.join(record.get('failures', []))}")
    cost = record["cost"]
    ms, size = cost["ms"], cost["megabytes"]
    lines.append(
        f"network at {cost['photo']} in {cost['engine']}: {ms['int8']:.1f} ms, f32 {ms['f32']:.1f} ms; "
        f"{size[model_folder.INT8]:.2f} MB, f32 {size[model_folder.ONNX]:.2f} MB"
    )
    return [*lines, str(cost["slow"])] if "slow" in cost else lines


def score_line(score: dict[str, Any]) -> str:
    """A score with its context: `psnr 24.61 dB (15.89), rgb, sots_outdoor, n=39`."""
    unit = " dB" if score["metric"].lower() == "psnr" else ""
    digits = 2 if unit else 3
    before = f" ({score['input']:.{digits}f})" if score.get("input") is not None else ""
    value = f"{score['metric']} {score['value']:.{digits}f}{unit}{before}"
    return f"{value}, {score['protocol']}, {score['data']}, n={score['n']}"


def _detector() -> dict[str, str | Table]:
    """Rows for the weather detector, which `restore --model` does not accept."""
    from fairweather.inference import load
    from fairweather.inference.weather_detection import DETECTOR_FOLDER, load_detector

    card = load_detector(load).card
    training = dict(card.training)
    decisions: dict[str, dict[str, int]] = training.pop("on_held_back_scenes", {})
    names = list(dict.fromkeys(decision for counts in decisions.values() for decision in counts))
    table = Table("holdout scenes", *(Column(name, justify="right") for name in names), box=None)
    for kind, counts in decisions.items():
        table.add_row(kind, *(str(counts.get(name, 0)) for name in names))
    return {
        "model": f"{card.name}, detects what `restore --weather auto` removes",
        "description": card.description,
        "training": "\n".join(_flat(training)),
        "detected": table if decisions else "",
        "licence": card.licence,
        "terms": card.terms,
        "folder": f"{DETECTOR_FOLDER} ({_size(DETECTOR_FOLDER)}, checksums match)",
    }


def _task(card: model_folder.Card) -> str:
    return f"adds {card.weather}" if card.direction == "degrade" else f"removes {card.weather}"


def _input(card: model_folder.Card) -> str:
    if card.maps is not None:
        return f"the whole photo, reduced to about {card.maps.size} x {card.maps.size} pixels"
    if card.receptive_field is None:
        return "the whole photo, never in tiles"
    return f"the photo, in tiles where it is large (receptive field {card.receptive_field} pixels)"


def _flat(fields: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as `a.b = value` lines."""
    lines: list[str] = []
    for key, value in fields.items():
        lines += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key} = {value}"]
    return lines


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6:.1f} MB"


def _rows(rows: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, content in rows.items():
        if content:
            table.add_row(name, content)
    return table


def _print(content: Table | str) -> None:
    # Without markup, so that [brackets] in a card are printed unchanged.
    Console(markup=False, highlight=False, emoji=False).print(content)
