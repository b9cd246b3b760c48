"""`fairweather models` and `fairweather info MODEL`: what ships, and what one model's card says, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from fairweather import model_folder


def models() -> None:
    """List the models that come with fairweather, with their sizes and scores."""
    console = _console()
    shipped = model_folder.shipped()
    if not shipped:
        console.print("No model ships with this build of fairweather; `fairweather train` makes one.")
        return
    table = Table("model", "what it does", "network", "size", "scores (untouched photos in brackets)", box=None)
    for name, folder in shipped.items():
        card = model_folder.read_card(folder, verify=False)
        scores = "\n".join(score_line(score) for score in card.scores) or "none noted"
        table.add_row(name, _does(card), card.generator, _size(folder), scores)
    console.print(table)


def info(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
) -> None:
    """Tell what a model is: its network, what it was trained on and on what terms it may be used.

    Args:
        model: name of a shipped model, or path of a model folder or run folder; `weather` is what decides between
            them.
    """
    if model == "weather":
        _recognizer()
        return
    from fairweather.commands.quantize import lines

    folder = model_folder.find(model)
    card = model_folder.read_card(folder)
    console = _console()
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, str]] = [
        ("model", f"{card.name}, {_does(card)}"),
        ("direction", card.direction),
        ("what it is", card.description or "not described"),
        ("network", f"{card.generator}({', '.join(f'{key}={value!r}' for key, value in card.arguments.items())})"),
        ("gives", _gives(card)),
        ("sees", _sees(card)),
        *([("int8", "\n".join(lines(card)))] if card.quantized is not None else []),
        ("trained", "\n".join(_flat(card.training)) or "not noted"),
        ("scores", "\n".join(score_line(score) for score in card.scores) or "none noted"),
        *([("chosen", card.choice)] if card.choice else []),
        ("licence", card.licence),
        ("terms", card.terms),
        ("folder", f"{folder} ({_size(folder)}, checksums are right)"),
    ]
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)


def _recognizer() -> None:
    """The card of the network that looks for haze and rain; it is no model that `restore --model` would take."""
    from fairweather.inference import load
    from fairweather.inference.weather_detection import DETECTOR_FOLDER, load_detector

    card = load_detector(load).card
    training = dict(card.training)
    held: dict[str, dict[str, int]] = training.pop("on_held_back_scenes", {})
    table = Table.grid(padding=(0, 2))
    table.add_row("model", f"{card.name}, decides what `restore --weather auto` takes out")
    table.add_row("what it is", card.description)
    table.add_row("trained", "\n".join(_flat(training)))
    if held:
        decisions = list(dict.fromkeys(decision for counts in held.values() for decision in counts))
        counted = Table("scenes held back", *(Column(f"seen: {one}", justify="right") for one in decisions), box=None)
        for kind, counts in held.items():
            counted.add_row(kind, *(str(counts.get(one, 0)) for one in decisions))
        table.add_row("decides", counted)
    table.add_row("licence", card.licence)
    table.add_row("terms", card.terms)
    table.add_row("folder", f"{DETECTOR_FOLDER} ({_size(DETECTOR_FOLDER)}, checksums are right)")
    _console().print(table)


def score_line(score: dict[str, Any]) -> str:
    """A score with all that gives it meaning: `psnr 24.61 dB (15.89), rgb, sots_outdoor, n=39`."""
    unit = " dB" if str(score["metric"]).lower() == "psnr" else ""
    digits = 2 if unit else 3
    before = f" ({score['input']:.{digits}f})" if score.get("input") is not None else ""
    value = f"{score['metric']} {score['value']:.{digits}f}{unit}{before}"
    return f"{value}, {score['protocol']}, {score['data']}, n={score['n']}"


def _does(card: model_folder.Card) -> str:
    if card.direction == "degrade":
        return f"puts {card.weather} into clear photos"
    return f"takes out {card.weather}"


def _gives(card: model_folder.Card) -> str:
    if card.output == "maps":
        return "haze maps at low resolution, applied to the photo at its full size"
    return "the whole picture"


def _sees(card: model_folder.Card) -> str:
    if card.maps is not None:
        return f"the photo reduced to about {card.maps.size} x {card.maps.size} pixels, whole"
    if card.receptive_field is None:
        return "the whole photo at once (never in tiles)"
    return f"{card.receptive_field} pixels around each pixel; large photos go through in tiles"


def _flat(fields: dict[str, Any], at: str = "") -> list[str]:
    """Nested settings as `a.b = value` lines."""
    lines: list[str] = []
    for key, value in fields.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{at}{key}.")
        else:
            lines.append(f"{at}{key} = {value}")
    return lines


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6:.1f} MB"


def _console() -> Console:
    # A card may hold [brackets] and rich would take them for its own markup.
    return Console(markup=False, highlight=False, emoji=False)
