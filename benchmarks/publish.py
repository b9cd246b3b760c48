"""What `quality.py --update` writes: the scores on the cards, the README's block and the tables of docs/models.md."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from measuring import Measured, Row
from tables import MARK, Published, in_order, lines

from fairweather import cards
from fairweather.errors import BadSettings
from fairweather.evaluation import PROTOCOLS
from fairweather.files import atomic

ROOT = Path(__file__).resolve().parent.parent
COMMAND = """```sh
python benchmarks/quality.py --update
```"""
PEERS_WORDS = (
    f"{MARK} other people's systems with their own weights, measured on the same photos; "
    "[benchmarks/peers.toml]({}benchmarks/peers.toml) says which, and what some of them were trained on. This command "
    "does not run them."
)
REAL_WORDS = (
    "Real photos without a truth, as a change from the input: the ratio of local contrast; percentage points of "
    "saturated pixels, in the mean and the most of any photo; colour cast in CIELAB units; noise in levels of 255; the "
    "estimated share of airlight."
)
CELLS = (
    "± is the standard deviation over the photos; in brackets how many ended further from the truth than they came. On "
    "the few real photos a difference under 1 dB is noise."
)


@dataclass(frozen=True)
class Page:
    """A page with blocks between `<!-- NAME:begin -->` and `<!-- NAME:end -->` that are written here."""

    path: Path

    def replaced(self, blocks: Mapping[str, str]) -> str:
        """The page's text with these blocks in it. Raises BadSettings naming a block that has no place."""
        text = self.path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
            if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
                raise BadSettings(
                    f"{self.path} has no place for {name}: add the lines {begin.strip()} and {end} where it belongs"
                )
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
    """That every block has its place, before anything is measured. Raises BadSettings."""
    root = root or ROOT
    readme(root).replaced({"scores": ""})
    models(root).replaced({name: "" for name in ("quality", *(f"card:{name}" for name in cards.shipped()))})


def update(measured: Measured, peers: Sequence[Published], root: Path | None = None) -> list[Path]:
    """Put what was measured onto the cards of what ships and into the pages; the files that were written."""
    root, written = root or ROOT, []
    for name, folder in cards.shipped().items():
        scores = card_scores(measured, name)
        if not scores:
            raise BadSettings(f"{name} ships and was not measured: --update wants a run over all that ships")
        cards.write_card(folder, dataclasses.replace(cards.read_card(folder), scores=scores))
        written.append(folder / cards.CARD)
    readme(root).write({"scores": readme_block(measured, peers)})
    facts = {f"card:{name}": facts_of(folder) for name, folder in cards.shipped().items()}
    models(root).write({"quality": quality_block(measured, peers), **facts})
    return [*written, readme(root).path, models(root).path]


def card_scores(measured: Measured, name: str) -> list[dict[str, Any]]:
    """A model's scores as its card has them: on pairs, then clear photos against themselves."""
    rows: dict[str, list[Row]] = {}
    for row in measured.rows:
        if row.system == name and row.result.photos:
            rows.setdefault(row.result.data, []).append(row)
    scores = [score.as_dict() for data in in_order(rows) for row in rows[data] for score in row.result.scores]
    for kept in measured.kept:
        if kept.system == name and math.isfinite(kept.mean):  # "inf" would be a word, and says nothing on a card
            spread = None if kept.spread is None else round(kept.spread, 4)
            clear = {"metric": "psnr", "protocol": "rgb", "data": kept.data, "n": len(kept.decibel)}
            scores.append({**clear, "value": round(kept.mean, 4), "spread": spread})
    return scores


def readme_block(measured: Measured, peers: Sequence[Published]) -> str:
    """Short tables: haze, rain where a model for it was measured, clear photos."""
    ours = {*cards.shipped(), "auto"}
    rule = PROTOCOLS["rgb"].description.removesuffix("; mean over photos")
    parts = [
        _wrapped(f"Mean PSNR in dB / SSIM over (n) photos that were not trained on; protocol `rgb`: {rule}. {CELLS}")
    ]
    for weather in ("haze", "rain"):
        if any(row.system in ours - {"auto"} for row in measured.rows if tables.weather(row) == weather):
            parts.append(tables.short(measured.rows, peers, weather, bold=ours))
    if any(row.result.protocol.name == "rain-y" for row in measured.rows if row.system in ours - {"auto"}):
        parts.append("Protocol `rain-y` is the luma of the deraining papers, which reads about 1.4 dB higher.")
    if tables.beside(measured.rows, peers):
        parts.append(_wrapped(PEERS_WORDS.format("")))
    folders = ", ".join(dict.fromkeys(one.data for one in measured.kept))
    parts.append(
        _wrapped(f"Clear photos ({folders}) against themselves: what is changed where nothing is to be removed.")
    )
    parts += [tables.clear_overall(measured, bold=ours), f"All of it is printed, and written here, by\n\n{COMMAND}"]
    return "\n\n".join(parts)


def quality_block(measured: Measured, peers: Sequence[Published]) -> str:
    """Everything that was measured, set by set."""
    rules = dict.fromkeys(row.result.protocol.name for row in measured.rows)
    words = [f"`{name}`: {PROTOCOLS[name].description} ({PROTOCOLS[name].source})." for name in rules]
    parts = [
        _wrapped(
            "Pairs. `worse` counts photos that ended further from the truth than they came; glow is the halo near "
            "strong edges and the like of it elsewhere, in levels of 255 ([benchmarks/glow.py](../benchmarks/glow.py))."
        ),
        *(_wrapped(f"Protocol {text}") for text in words),
        tables.long(measured.rows, peers),
        _wrapped(PEERS_WORDS.format("../")),
        "Clear photos against themselves, PSNR in RGB:",
        tables.clear(measured.kept),
    ]
    if measured.natural:
        parts += [_wrapped(REAL_WORDS), tables.real(measured)]
    return "\n\n".join([*parts, f"Printed and written here by\n\n{COMMAND}"])


def facts_of(folder: Path) -> str:
    """A model's card for people: a table of what it is and where it is from, and its scores."""
    card = cards.read_card(folder)
    weights = cards.read_weights(folder)
    numbers = sum(tensor.size for tensor in weights.values())
    facts = {
        "takes out": card.weather,
        "network": f"`{card.generator}`, {numbers:,} numbers, {(folder / cards.WEIGHTS).stat().st_size / 1e6:.1f} MB",
        "sees": _sees(card),
        "trained on": _sources(card.training),
        "trained for": _effort(card.training),
        "why this one": card.choice,
        "licence": card.licence,
        "terms": card.terms,
    }
    table = lines(("`" + card.name + "`", card.description), ((key, text) for key, text in facts.items() if text), 2)
    scores = lines(("data", "protocol", "metric", "n", "value", "±", "input", "worse"), map(_score, card.scores), 3)
    return f"{table}\n\n{scores}"


def _sees(card: cards.Card) -> str:
    if card.maps is not None:
        side = card.maps.size
        return f"the photo reduced to about {side} x {side} pixels, whole; its maps are applied at full size"
    large = f"; a photo above {card.most_pixels / 1e6:.1f} megapixels reduced" if card.most_pixels else ""
    if card.receptive_field is None:
        return f"the whole photo at full size, never in tiles{large}"
    return f"{card.receptive_field} pixels around each pixel, at full size{large}"


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
