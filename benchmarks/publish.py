"""`quality.py --update`: write the scores onto the cards, into the README's table and into docs/models.md."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from measuring import ROOT
from scoring import Measured, Row
from tables import MARK, Published, in_order, lines

from fairweather import model_folder
from fairweather.errors import BadSettings
from fairweather.evaluation import PROTOCOLS
from fairweather.files import atomic

COMMAND = """```sh
python benchmarks/quality.py --update
```"""
PEERS_NOTE = (
    f"{MARK} published systems with their own weights, measured on the same photos. `benchmarks/peers.toml` names them "
    "and, where known, their training data. This command does not run them."
)
REAL_NOTE = (
    "Real photos without ground truth, as change from the input: ratio of local contrast; saturated pixels in "
    "percentage points (mean, and maximum over the photos); colour cast in CIELAB units; noise in levels of 255; "
    "estimated share of airlight."
)
CELL_NOTE = (
    "± is the standard deviation over the photos; the number in brackets counts photos whose PSNR is lower than that "
    "of the input. On the small sets of real fog a difference below 1 dB is noise."
)


@dataclass(frozen=True)
class Page:
    """A page whose blocks between `<!-- NAME:begin -->` and `<!-- NAME:end -->` are generated."""

    path: Path

    def replaced(self, blocks: Mapping[str, str]) -> str:
        """The page's text with these blocks filled in. Raises BadSettings if the page lacks a block's markers."""
        text = self.path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
            if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
                raise BadSettings(f"{self.path} has no markers for {name}: add the lines {begin.strip()} and {end}")
            text = text[: text.index(begin) + len(begin)] + block + "\n" + text[text.index(end) :]
        return text

    def write(self, blocks: Mapping[str, str]) -> None:
        text = self.replaced(blocks)
        with atomic(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def readme(root: Path) -> Page:
    return Page(root / "README.md")


def models(root: Path) -> Page:
    return Page(root / "docs" / "models.md")


def check_places(root: Path | None = None) -> None:
    """Check that every block has its markers, before anything is measured. Raises BadSettings."""
    root = root or ROOT
    readme(root).replaced({"scores": ""})
    blocks = ("scores", "quality", *(f"card:{name}" for name in model_folder.shipped()))
    models(root).replaced({name: "" for name in blocks})


def update(measured: Measured, peers: Sequence[Published], root: Path | None = None) -> list[Path]:
    """Write the scores onto the cards of the shipped models and into the pages. Returns the files written."""
    root, written = root or ROOT, []
    for name, folder in model_folder.shipped().items():
        scores = card_scores(measured, name)
        if not scores:
            raise BadSettings(f"{name} was not measured: --update needs a run over all shipped models")
        model_folder.write_card(folder, dataclasses.replace(model_folder.read_card(folder), scores=scores))
        written.append(folder / model_folder.CARD)
    readme(root).write({"scores": readme_block(measured)})
    facts = {f"card:{name}": facts_of(folder) for name, folder in model_folder.shipped().items()}
    tables_of_models = {"scores": scores_block(measured, peers), "quality": quality_block(measured, peers)}
    models(root).write({**tables_of_models, **facts})
    return [*written, readme(root).path, models(root).path]


def card_scores(measured: Measured, name: str) -> list[dict[str, Any]]:
    """A model's scores for its card: pairs first, then clear photos compared with themselves."""
    rows: dict[str, list[Row]] = {}
    for row in measured.rows:
        if row.system == name and row.result.photos:
            rows.setdefault(row.result.data, []).append(row)
    scores = [score.as_dict() for data in in_order(rows) for row in rows[data] for score in row.result.scores]
    for kept in measured.kept:
        if kept.system == name and math.isfinite(kept.mean):  # JSON has no infinity
            spread = None if kept.spread is None else round(kept.spread, 4)
            clear = {"metric": "psnr", "protocol": "rgb", "data": kept.data, "n": len(kept.decibel)}
            scores.append({**clear, "value": round(kept.mean, 4), "spread": spread})
    return scores


def readme_block(measured: Measured) -> str:
    """One table: a row for each shipped model and a column for each test set."""
    note = "Mean PSNR in dB / SSIM over (n) photos outside the training data; haze in protocol `rgb`, rain in `rain-y`."
    return f"{_wrapped(note)}\n\n{tables.summary(measured.rows, {*model_folder.shipped(), 'auto'})}"


def scores_block(measured: Measured, peers: Sequence[Published]) -> str:
    """The tables for docs/models.md that compare systems: haze, rain if a rain model was measured, clear photos."""
    ours = {*model_folder.shipped(), "auto"}
    rule = PROTOCOLS["rgb"].description.removesuffix("; mean over photos")
    parts = [
        _wrapped(
            f"Mean PSNR in dB / SSIM over (n) photos outside the training data; protocol `rgb`: {rule}. {CELL_NOTE}"
        )
    ]
    for weather in ("haze", "rain"):
        if any(row.system in ours - {"auto"} for row in measured.rows if tables.weather(row) == weather):
            parts.append(tables.short(measured.rows, peers, weather, bold=ours))
    if any(row.result.protocol.name == "rain-y" for row in measured.rows if row.system in ours - {"auto"}):
        parts.append("Protocol `rain-y` compares luma, as deraining papers do; its values are about 1.4 dB higher.")
    if tables.comparable(measured.rows, peers):
        parts.append(_wrapped(PEERS_NOTE))
    folders = ", ".join(dict.fromkeys(one.data for one in measured.kept))
    parts.append(_wrapped(f"Clear photos ({folders}), compared with themselves: how much a model changes them."))
    parts += [tables.clear_overall(measured, bold=ours), f"Printed, and written to this page, by\n\n{COMMAND}"]
    return "\n\n".join(parts)


def quality_block(measured: Measured, peers: Sequence[Published]) -> str:
    """All results, set by set, for docs/models.md."""
    rules = dict.fromkeys(row.result.protocol.name for row in measured.rows)
    words = [f"`{name}`: {PROTOCOLS[name].description} ({PROTOCOLS[name].source})." for name in rules]
    parts = [
        _wrapped(
            "Pairs. `worse` counts photos whose PSNR is lower than that of the input. `glow` measures halos near "
            "strong edges, `elsewhere` the same quantity away from them, in levels of 255 (`benchmarks/glow.py`)."
        ),
        *(_wrapped(f"Protocol {text}") for text in words),
        tables.long(measured.rows, peers),
        _wrapped(PEERS_NOTE),
        "Clear photos compared with themselves, PSNR in RGB:",
        tables.clear(measured.kept),
    ]
    if measured.natural:
        parts += [_wrapped(REAL_NOTE), tables.real(measured)]
    return "\n\n".join([*parts, f"Printed, and written to this page, by\n\n{COMMAND}"])


def facts_of(folder: Path) -> str:
    """A model's card as markdown: a table of facts, then its scores."""
    card = model_folder.read_card(folder)
    weights = model_folder.read_weights(folder)
    numbers = sum(tensor.size for tensor in weights.values())
    megabytes = (folder / model_folder.WEIGHTS).stat().st_size / 1e6
    facts = {
        "removes": card.weather,
        "network": f"`{card.generator}`, {numbers:,} parameters, {megabytes:.1f} MB",
        "input": _input(card),
        "trained on": _sources(card.training),
        "training": _effort(card.training),
        "selection": card.choice,
        "licence": card.licence,
        "terms": card.terms,
    }
    table = lines(("`" + card.name + "`", card.description), ((key, text) for key, text in facts.items() if text), 2)
    scores = lines(("data", "protocol", "metric", "n", "value", "±", "input", "worse"), map(_score, card.scores), 3)
    return f"{table}\n\n{scores}"


def _input(card: model_folder.Card) -> str:
    if card.maps is not None:
        side = card.maps.size
        return f"the whole photo, reduced to about {side} x {side} pixels; the maps are applied at full size"
    large = f"; photos above {card.most_pixels / 1e6:.1f} megapixels are reduced" if card.most_pixels else ""
    if card.receptive_field is None:
        return f"the whole photo at full size, not tiled{large}"
    return f"full size, receptive field {card.receptive_field} px{large}"


def _sources(training: Mapping[str, Any]) -> str:
    sources = dict(training.get("data") or {}).get("sources") or []
    total = sum(source.get("weight", 1) for source in sources)
    return ", ".join(
        f"{source['path']} ({source['kind']}, {100 * source.get('weight', 1) / total:.0f} %)" for source in sources
    )


def _effort(training: Mapping[str, Any]) -> str:
    words = f"{training['steps']:,} steps" if training.get("steps") else ""
    if training.get("minutes"):
        words += f"{', ' if words else ''}{training['minutes']:g} minutes"
    if training.get("batch") and training.get("crop"):
        words += f" of {training['batch']} crops of {training['crop']} px"
    words += f", {training['precision']}" if training.get("precision") else ""
    before = training.get("start") or {}
    return f"{_effort(before)}; then {words}" if before.get("recipe") else words


def _score(score: Mapping[str, Any]) -> list[str]:
    places = 2 if score["metric"] == "psnr" else 3
    numbers = ["" if score.get(key) is None else f"{score[key]:.{places}f}" for key in ("value", "spread", "input")]
    worse = "" if score.get("worse") is None else str(score["worse"])
    return [score["data"], score["protocol"], score["metric"], str(score["n"]), *numbers, worse]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
