"""Targets for the shipped models, checked against a run of quality.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scoring import STAYS, Kept, Measured, Row
from tables import Published, comparable, lines

AT_LEAST: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("dehaze", "rgb"): {"sots_outdoor": 29.0, "sots_indoor": 27.0, "i_haze": 17.5, "nh_haze2": 17.0},
    ("derain", "rain-y"): {"rain100/light": 35.0, "rain100/heavy": 27.0},
}
"""(model, protocol) -> set -> minimum mean PSNR in dB."""
MODELS = ("dehaze", "dehaze-fast", "derain", "derain-fast")
GOAL = ("dehaze", "rgb", "sots_indoor", 31.0)
REAL = ("i_haze", "nh_haze2")
"""Sets of real fog, in which no photo may end with a lower PSNR than its input."""
BEHIND = 1.5
"""dB by which a fast model may be worse than the full one."""
BY_ITSELF = 0.5
"""dB that a set may lose with `auto`, compared with naming the weather."""
SHARE, LEAST, FORCED = 0.95, 28.0, 30.0
"""Clear photos: fraction at STAYS dB or more and the minimum with `auto`; the mean with a named model."""
SATURATED, CONTRAST = 0.5, 1.3
"""Real photos: maximum growth of saturated pixels in percentage points; minimum contrast ratio on hazy ones."""
MEGABYTES = 8.0


@dataclass(frozen=True)
class Bar:
    """A target and its result."""

    aim: str
    found: str = "not measured in this run"
    reached: bool | None = None


def check(measured: Measured, weights: Mapping[str, int], peers: Sequence[Published]) -> list[Bar]:
    """All targets. weights: name of a shipped model -> size of its weights in bytes."""
    table = {(row.system, row.result.protocol.name, row.result.data): row for row in measured.rows if row.result.photos}
    return [
        *_decibels(table),
        *_never_worse(table),
        *_fast(table),
        _against_peers(measured.rows, peers),
        *_clear(measured),
        *_by_itself(table),
        *_real(measured),
        *_small(weights),
    ]


Table = Mapping[tuple[str, str, str], Row]


def _psnr(row: Row) -> float:
    return row.result.scores[0].value


def _decibels(table: Table) -> Iterator[Bar]:
    wanted = [(model, rule, data, least) for (model, rule), sets in AT_LEAST.items() for data, least in sets.items()]
    for model, rule, data, least in wanted:
        aim = f"`{model}` on {data} ({rule}): {least:g} dB at least"
        row = table.get((model, rule, data))
        if row is None:
            yield Bar(aim)
            continue
        score = row.result.scores[0]
        spread = "" if score.spread is None else f" ± {score.spread:.2f}"
        found = f"{score.value:.2f}{spread} dB, n = {score.n}"
        if (model, rule, data) == GOAL[:3]:
            found += f" (goal {GOAL[3]:g}: {'reached' if score.value >= GOAL[3] else 'missed'})"
        yield Bar(aim, found, score.value >= least)


def _never_worse(table: Table) -> Iterator[Bar]:
    for data in REAL:
        aim, row = f"`dehaze` on {data}: no photo worse than its input", table.get(("dehaze", "rgb", data))
        if row is None:
            yield Bar(aim)
            continue
        worse = [photo for photo in row.result.photos if photo.scores["psnr"] < photo.input["psnr"]]
        named = ", ".join(f"{p.pair.name} {p.scores['psnr'] - p.input['psnr']:+.2f} dB" for p in worse)
        yield Bar(aim, f"{len(worse)} of {len(row.result.photos)}" + (f": {named}" if named else ""), not worse)


def _fast(table: Table) -> Iterator[Bar]:
    for (model, protocol), sets in AT_LEAST.items():
        for data in sets:
            aim = f"`{model}-fast` on {data}: within {BEHIND:g} dB of `{model}`"
            rows = [table.get((name, protocol, data)) for name in (model, f"{model}-fast")]
            if rows[0] is None or rows[1] is None:
                yield Bar(aim)
            else:
                behind = _psnr(rows[0]) - _psnr(rows[1])
                yield Bar(aim, f"{_psnr(rows[1]):.2f} for {_psnr(rows[0]):.2f} dB", behind <= BEHIND)


def _against_peers(rows: Sequence[Row], peers: Sequence[Published]) -> Bar:
    shown = comparable(rows, peers)
    return Bar("every value of peers.toml is in the table", f"{len(shown)} of {len(peers)}", len(shown) == len(peers))


def _clear(measured: Measured) -> Iterator[Bar]:
    auto = measured.kept_overall("auto")
    often, never = (
        f"clear photos under `auto`: {100 * SHARE:g} % keep {STAYS:g} dB",
        f"the same: none below {LEAST:g} dB",
    )
    if auto is None:
        yield from (Bar(often), Bar(never))
    else:
        below = {name: value for name, value in auto.decibel.items() if value < LEAST}
        n = len(auto.decibel)
        yield Bar(often, f"{100 * auto.stay:.1f} % of {n}; {auto.unchanged} unchanged", auto.stay >= SHARE)
        yield Bar(never, f"{_decibel(auto.worst)} the worst, {len(below)} below{_named(below)}", not below)
    for model in MODELS:
        aim, forced = f"clear photos with `{model}` forced: mean {FORCED:g} dB", measured.kept_overall(model)
        yield Bar(aim) if forced is None else Bar(aim, _forced(forced), forced.mean >= FORCED)


def _forced(kept: Kept) -> str:
    return f"{_decibel(kept.mean)}, the worst {_decibel(kept.worst)}, n = {len(kept.decibel)}"


def _decibel(value: float) -> str:
    return "unchanged" if math.isinf(value) else f"{value:.2f} dB"


def _named(photos: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.1f}' for name, value in sorted(photos.items()))})" if photos else ""


def _by_itself(table: Table) -> Iterator[Bar]:
    """`auto` compared with the model that a user would name."""
    for (model, _), sets in AT_LEAST.items():
        for data in sets:
            aim = f"`auto` on {data}: at most {BY_ITSELF:g} dB below naming `{model}`"
            rows = [table.get((name, "rgb", data)) for name in (model, "auto")]
            if rows[0] is None or rows[1] is None:
                yield Bar(aim)
            else:
                lost = _psnr(rows[0]) - _psnr(rows[1])
                yield Bar(aim, f"{round(-lost, 2) + 0.0:+.2f} dB", lost <= BY_ITSELF)


def _real(measured: Measured) -> Iterator[Bar]:
    for model in MODELS:
        data = "hazy_photos" if model.startswith("dehaze") else "rainy_photos"
        found = next((one for one in measured.natural if (one.system, one.data) == (model, data)), None)
        aim = f"`{model}` on {data}: saturated pixels grow by at most {SATURATED:g} percentage points"
        if found is None:
            yield Bar(aim)
        else:
            grown = found.mean("saturated")
            most = max(change["saturated"] for change in found.changes.values())
            over = sum(change["saturated"] > SATURATED for change in found.changes.values())
            words = f"mean {grown:+.2f}, most {most:+.2f}; {over} of {len(found.changes)} photos above"
            yield Bar(aim, words, grown <= SATURATED)
        if data == "hazy_photos":
            aim = f"`{model}` on {data}: mean local contrast grows by {CONTRAST:g} x at least"
            contrast = None if found is None else found.mean("contrast")
            yield Bar(aim) if contrast is None else Bar(aim, f"{contrast:.2f} x", contrast >= CONTRAST)


def _small(weights: Mapping[str, int]) -> Iterator[Bar]:
    for name in MODELS:
        aim = f"weights of `{name}`: at most {MEGABYTES:g} MB"
        size = weights.get(name)
        yield Bar(aim, "does not ship") if size is None else Bar(aim, f"{size / 1e6:.2f} MB", size <= MEGABYTES * 1e6)


def markdown(bars: Sequence[Bar]) -> str:
    """The targets as a table; those not measured are neither reached nor missed."""
    words = {True: "reached", False: "missed", None: "?"}
    return lines(("aim", "found", ""), ([bar.aim, bar.found, words[bar.reached]] for bar in bars), 3)
