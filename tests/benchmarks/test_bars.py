"""What is to be reached: each aim can be reached and missed, and what was not measured is neither."""

from __future__ import annotations

from pathlib import Path

import bars
import pytest
import tables
from scoring import Kept, Measured, Natural, Row

from fairweather.evaluation import PROTOCOLS, PhotoScore, SetScores
from fairweather.pairs import Pair

BY_MODEL = {("dehaze", "rgb"): "hazy", ("derain", "rain-y"): "light"}


def row(system: str, data: str, rule: str, decibels: list[float], before: float = 10.0) -> Row:
    photos = [
        PhotoScore(
            Pair(Path("hazy") / f"{at}.png", Path("clear") / f"{at}.png", str(at)),
            {"psnr": value, "ssim": 0.9},
            {"psnr": before, "ssim": 0.5},
        )
        for at, value in enumerate(decibels)
    ]
    return Row(system, SetScores(data, PROTOCOLS[rule], tuple(photos)))


def everything(lack: float = 0.0, change: float = 0.0) -> Measured:
    """What reaches all bars exactly where both are 0; `lack` is in dB, `change` of other figures."""
    rows = []
    for (model, rule), sets in bars.AT_LEAST.items():
        for data, least in sets.items():
            rows.append(row(model, data, rule, [least - lack] * 2))
            rows.append(row("auto", data, "rgb", [least - bars.BY_ITSELF - 2 * lack] * 2))
            if rule != "rgb":
                rows.append(row(model, data, "rgb", [least - lack] * 2))
            rows.append(row(f"{model}-fast", data, rule, [least - bars.BEHIND - 2 * lack] * 2))
    kept = [Kept("auto", "kodak", {str(at): 36.0 - lack for at in range(19)} | {"low": 28.0 - lack})]
    kept += [Kept(name, "kodak", {"a": 30.0 - lack}) for name in bars.MODELS]
    photo = {"contrast": 1.3 - change, "saturated": 0.5 + change}
    places = {"dehaze": "hazy_photos", "derain": "rainy_photos"}
    return Measured(rows, kept, [Natural(name, places[name.split("-")[0]], {"a": photo}) for name in bars.MODELS])


PEERS = [tables.Published("Peer", "i_haze", "rgb", 2, 16.0, None)]


def test_all_are_reached_and_all_are_missed() -> None:
    names = bars.MODELS
    reached = bars.check(everything(), dict.fromkeys(names, 8_000_000), PEERS)
    assert [bar for bar in reached if bar.reached is not True] == []
    others = [tables.Published("Peer", "i_haze", "rgb", 10, 16.0, None)]
    missed = bars.check(everything(0.1, 0.01), dict.fromkeys(names, 8_000_001), others)
    still = [bar.aim for bar in missed if bar.reached is not False]
    assert still == [f"`dehaze` on {data}: no photo worse than its input" for data in bars.REAL]
    assert len(missed) == len(reached) >= 30


def test_one_photo_that_got_worse_is_named() -> None:
    measured = Measured([row("dehaze", "i_haze", "rgb", [30.0, 9.5])])
    bar = next(bar for bar in bars.check(measured, {}, []) if "no photo worse" in bar.aim)
    assert bar.reached is False
    assert bar.found == "1 of 2: 1 -0.50 dB"


@pytest.mark.parametrize("words", ["dB at least", "`auto` on", "clear photos under", "saturated pixels", "within"])
def test_what_was_not_measured_is_neither(words: str) -> None:
    found = [bar for bar in bars.check(Measured(), {}, PEERS) if words in bar.aim]
    assert found
    assert all(bar.reached is None for bar in found)
    assert "| ? |" in bars.markdown(found)


def test_the_peers_of_the_file() -> None:
    peers = tables.read_peers()
    assert len(peers) == 4 + 4 + 2 + 1 + 3 * 4
    assert {peer.data for peer in peers} == set(tables.NAMES)
    assert all(5 < peer.psnr < 40 for peer in peers)
    best = max((peer for peer in peers if peer.data == "sots_outdoor"), key=lambda peer: peer.psnr)
    assert (best.psnr, best.ssim, best.n) == (28.12, 0.962, 39)
