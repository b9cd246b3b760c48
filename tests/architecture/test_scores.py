"""README.md and docs/models.md show the scores on the cards; benchmarks/quality.py writes both."""

from __future__ import annotations

import re
import sys

import pytest

from fairweather import model_folder
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import publish
import tables

README = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- scores:begin -->")[1].split("<!-- scores:end")[0]
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
BLOCK = MODELS.split("<!-- scores:begin -->")[1].split("<!-- scores:end")[0]


def cells(block: str, corners: tuple[str, ...]) -> dict[tuple[str, str, str | None], str]:
    """(system, set, protocol) -> cell, of the tables whose first heading is one of `corners`."""
    names = {words: data for data, words in tables.NAMES.items()}
    found, heading = {}, []
    for line in block.splitlines():
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heading = []
        elif row[0] in corners:
            heading = [re.fullmatch(r"(.+) \((\d+)\)(?:, ([\w-]+))?", cell) for cell in row[1:]]
            assert all(heading), f"columns that name no set: {row}"
            continue
        for match, cell in zip(heading, row[1:], strict=False):
            found[row[0].strip("`"), names[match[1]], match[3]] = cell
    return found


@pytest.mark.parametrize("name", model_folder.shipped())
def test_pages_show_the_scores_of_the_card(name: str) -> None:
    card = model_folder.read_card(model_folder.shipped()[name])
    page, readme = cells(BLOCK, ("haze", "rain")), cells(README, ("PSNR / SSIM",))
    scores = {(score["data"], score["protocol"], score["metric"]): score for score in card.scores}
    on_pairs = [key for key in scores if key[0] in tables.NAMES and key[2] == "psnr"]
    assert len(on_pairs) >= 4, f"{name} was not scored on the test sets: python benchmarks/quality.py --update"
    for data, protocol, _ in on_pairs:
        pair = [scores[data, protocol, metric] for metric in ("psnr", "ssim")]
        column = protocol if card.weather == "rain" else None
        assert page[name, data, column] == tables.cell(*pair, strong=True), f"{name}, {data}: run quality.py --update"
        if protocol == ("rain-y" if card.weather == "rain" else "rgb"):
            assert readme[name, data, None] == tables.cell(*pair, plain=True), (
                f"{name}, {data}: run quality.py --update"
            )


def test_every_peer_is_in_the_tables() -> None:
    page = cells(BLOCK, ("haze", "rain"))
    for peer in tables.read_peers():
        column = peer.protocol if peer.data.startswith("rain") else None
        assert page[f"{peer.system} {tables.MARK}", peer.data, column].startswith(f"{peer.psnr:.2f}")


@pytest.mark.parametrize("name", model_folder.shipped())
def test_docs_show_each_card(name: str) -> None:
    block = MODELS.split(f"<!-- card:{name}:begin -->\n")[1].split(f"\n<!-- card:{name}:end -->")[0]
    assert block == publish.facts_of(model_folder.shipped()[name])
    assert f"\n## {name}\n" in MODELS
