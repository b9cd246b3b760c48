"""The tables of quality.py as markdown: long ones with every value, short ones with a column for each set."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoring import STAYS, Kept, Measured, Row, weather_of

PEERS = Path(__file__).resolve().parent / "peers.toml"
HEADINGS = ("data", "n", "protocol", "system", "PSNR dB", "±", "SSIM", "worse", "glow", "elsewhere")
NAMES = {
    "sots_outdoor": "SOTS outdoor",
    "sots_indoor": "SOTS indoor",
    "i_haze": "I-HAZE, real fog",
    "nh_haze2": "NH-HAZE2, real fog",
    "rain100/light": "Rain100 light",
    "rain100/heavy": "Rain100 heavy",
}
"""The test sets in table order, with their usual names."""
MARK = "†"
BASELINES = ("the input", "dark channel prior")


@dataclass(frozen=True)
class Published:
    """A value from peers.toml."""

    system: str
    data: str
    protocol: str
    n: int
    psnr: float
    ssim: float | None


def read_peers(path: Path = PEERS) -> list[Published]:
    """All values of the file, in file order."""
    found = []
    for peer in tomllib.loads(path.read_text(encoding="utf-8"))["peer"]:
        for score in peer["scores"]:
            figures = (score["protocol"], score["n"], score["psnr"], score.get("ssim"))
            found.append(Published(peer["name"], score["data"], *figures))
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Sets of NAMES first, in that order, then the others by name."""
    known = list(NAMES)
    return sorted(dict.fromkeys(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def comparable(rows: Sequence[Row], peers: Sequence[Published]) -> list[Published]:
    """The peers' values for the photos and protocol of these rows."""
    here = {(row.result.data, row.result.protocol.name, len(row.result.photos)) for row in rows}
    return [peer for peer in peers if (peer.data, peer.protocol, peer.n) in here]


def lines(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A markdown table. The first `left` columns are left-aligned, the others right-aligned."""
    rule = "|" + "|".join("---" if at < left else "--:" for at in range(len(headings))) + "|"
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in (headings, *rows))
    return "\n".join([first, rule, *rest])


def long(rows: Sequence[Row], peers: Sequence[Published] = ()) -> str:
    """All results on pairs: one line per set, protocol and system."""
    blocks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row.result.data, row.result.protocol.name), []).append(row)
    table = []
    for (data, protocol), block in blocks.items():
        ours = {row.system: _long(row) for row in block}
        theirs = [
            [data, str(p.n), protocol, f"{p.system} {MARK}", f"{p.psnr:.2f}", "", _three(p.ssim), "", "", ""]
            for p in comparable(block, peers)
        ]
        table += [ours.pop(name) for name in BASELINES if name in ours] + theirs + list(ours.values())
    return lines(HEADINGS, table, 4)


def _long(row: Row) -> list[str]:
    cells = [row.result.data, str(len(row.result.photos)), row.result.protocol.name, row.system]
    if not row.result.photos:
        return cells + [""] * (len(HEADINGS) - len(cells))
    decibel, structure = (score.as_dict() for score in row.result.scores)  # rounded as on the cards
    spread = "" if decibel["spread"] is None else f"{decibel['spread']:.2f}"
    cells += [_two(decibel["value"]), spread, _three(structure["value"]), str(decibel["worse"])]
    return cells + ["" if math.isnan(value) else f"{value:.1f}" for value in (row.near, row.elsewhere)]


def short(rows: Sequence[Row], peers: Sequence[Published], kind: str, bold: Iterable[str] = ()) -> str:
    """One line per system, one column per set (and protocol, if there are several) of one kind of weather.

    bold: systems whose name is set as code and whose PSNR is bold.
    """
    bold = set(bold)
    rows = [row for row in rows if weather(row) == kind]
    columns = {(row.result.data, row.result.protocol.name): len(row.result.photos) for row in rows}
    order = in_order(data for data, _ in columns)
    keys = sorted(columns, key=lambda key: (order.index(key[0]), key[1]))
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in (row for row in rows if row.system in BASELINES):
        cells.setdefault(row.system, {})[_key(row)] = _short(row, bold)
    for peer in comparable(rows, peers):
        figure = f"{peer.psnr:.2f}" + ("" if peer.ssim is None else f" / {_ssim(peer.ssim)}")
        cells.setdefault(f"{peer.system} {MARK}", {})[peer.data, peer.protocol] = figure
    for row in (row for row in rows if row.system not in BASELINES):
        name = f"`{row.system}`" if row.system in bold else row.system
        cells.setdefault(name, {})[_key(row)] = _short(row, bold)
    several = len({rule for _, rule in keys}) > 1
    headings = [f"{NAMES.get(data, data)} ({columns[data, rule]})" + f", {rule}" * several for data, rule in keys]
    return lines([kind, *headings], ([name, *(own.get(key, "-") for key in keys)] for name, own in cells.items()))


def summary(rows: Sequence[Row], ours: set[str]) -> str:
    """The README's table: one line per system, one column per set; haze in protocol rgb, rain in rain-y."""
    rule = {"haze": "rgb", "rain": "rain-y"}
    rows = [row for row in rows if weather(row) and row.result.protocol.name == rule[weather(row)]]
    rows = [row for row in rows if row.system in ours or row.system in BASELINES]
    counts = {row.result.data: len(row.result.photos) for row in rows}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        decibel, structure = (score.as_dict() for score in row.result.scores)
        cells.setdefault(row.system, {})[row.result.data] = cell(decibel, structure, plain=True)
    table = []
    for system in sorted(cells, key=lambda system: system not in BASELINES):
        name = f"`{system}`" if system in ours else system
        table.append([name, *(cells[system].get(data, "-") for data in in_order(counts))])
    return lines(["PSNR / SSIM", *(f"{NAMES.get(data, data)} ({counts[data]})" for data in in_order(counts))], table)


def _key(row: Row) -> tuple[str, str]:
    return row.result.data, row.result.protocol.name


def _short(row: Row, bold: set[str]) -> str:
    decibel, structure = (score.as_dict() for score in row.result.scores)
    return cell(decibel, structure, strong=row.system in bold, plain=row.system == "the input")


def weather(row: Row) -> str:
    """The weather of a row's photos: "haze" or "rain", or "" if no photo could be scored."""
    return weather_of([photo.pair for photo in row.result.photos]) if row.result.photos else ""


def cell(decibel: Mapping[str, Any], structure: Mapping[str, Any], *, strong: bool = False, plain: bool = False) -> str:
    """`26.07 ± 3.7 / .946 (1)`: PSNR and SSIM of a card, or of SetScores; `plain` leaves out ± and ()."""
    value = _two(decibel["value"])
    if plain:
        return f"{value} / {_ssim(structure['value'])}"
    spread = "" if decibel.get("spread") is None else f" ± {decibel['spread']:.1f}"
    worse = "" if decibel.get("worse") is None else f" ({decibel['worse']})"
    return f"{f'**{value}**' if strong else value}{spread} / {_ssim(structure['value'])}{worse}"


def _ssim(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _two(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"  # the string "inf"


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def clear(kept: Sequence[Kept]) -> str:
    """PSNR of clear photos against themselves, by folder and system."""
    return lines(
        ("clear photos", "system", "n", "mean dB", "worst dB", f"{STAYS:.0f} dB or more", "unchanged"),
        ([one.data, one.system, *_kept(one)] for one in kept),
        2,
    )


def clear_overall(measured: Measured, bold: Iterable[str] = ()) -> str:
    """PSNR of clear photos against themselves over all folders, one line per system."""
    bold, rows = set(bold), []
    for name in dict.fromkeys(one.system for one in measured.kept):
        overall = measured.kept_overall(name)
        assert overall is not None
        rows.append([f"`{name}`" if name in bold else name, *_kept(overall)])
    return lines(("clear photos", "n", "mean dB", "worst dB", f"{STAYS:.0f} dB or more", "unchanged"), rows)


def _kept(one: Kept) -> list[str]:
    n = len(one.decibel)
    mean = "-" if one.unchanged else f"{one.mean:.2f}"
    worst = "-" if math.isinf(one.worst) else f"{one.worst:.1f}"
    return [str(n), mean, worst, f"{round(one.stay * n)} ({100 * one.stay:.0f} %)", str(one.unchanged)]


def real(measured: Measured, bold: Iterable[str] = ()) -> str:
    """Photos without ground truth: mean changes, and the largest growth of saturated pixels."""
    bold = set(bold)
    headings = ("no truth", "system", "n", "contrast", "saturated", "most", "cast", "noise", "haze")
    table = []
    for one in measured.natural:
        saturated = max(change["saturated"] for change in one.changes.values())
        table.append(
            [
                one.data,
                f"`{one.system}`" if one.system in bold else one.system,
                str(len(one.changes)),
                f"× {one.mean('contrast'):.2f}",
                f"{one.mean('saturated'):+.2f}",
                f"{saturated:+.2f}",
                f"{one.mean('cast'):.1f}",
                f"{one.mean('noise'):+.2f}",
                f"{one.mean('density'):+.3f}",
            ]
        )
    return lines(headings, table, 2)
