"""The README's table and docs/models.md say what stands on the cards, and benchmarks/quality.py writes both."""

from __future__ import annotations

import re
import sys

import pytest

from fairweather import model_folder
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import publish
import tables

BLOCK = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- scores:begin -->")[1].split("<!-- scores:end")[0]


def columns() -> dict[tuple[str, str, str], str]:
    """(system, set, protocol) -> the cell of the README."""
    names = {words: data for data, words in tables.NAMES.items()}
    found, heading = {}, []
    for line in BLOCK.splitlines():
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heading = []
        elif row[0] in ("haze", "rain"):
            heading = [re.fullmatch(r"(.+) \((\d+)\)(?:, ([\w-]+))?", cell) for cell in row[1:]]
            assert all(heading), f"columns that are no set: {row}"
            continue
        for match, cell in zip(heading, row[1:], strict=False):
            found[row[0].strip("`"), names[match[1]], match[3] or "rgb"] = cell
    return found


@pytest.mark.parametrize("name", model_folder.shipped())
def test_the_readme_says_what_the_card_says(name: str) -> None:
    card = model_folder.read_card(model_folder.shipped()[name])
    told = columns()
    scores = {(score["data"], score["protocol"], score["metric"]): score for score in card.scores}
    on_pairs = [key for key in scores if key[0] in tables.NAMES and key[2] == "psnr"]
    assert len(on_pairs) >= 4, f"{name} was not scored on the test sets: python benchmarks/quality.py --update"
    for data, protocol, _ in on_pairs:
        pair = (scores[data, protocol, metric] for metric in ("psnr", "ssim"))
        assert told[name, data, protocol] == tables.cell(*pair, strong=True), f"{name}, {data}: run quality.py --update"


def test_every_figure_of_a_peer_is_in_the_readme() -> None:
    told = columns()
    weathers = {model_folder.read_card(folder).weather for folder in model_folder.shipped().values()}
    for peer in tables.read_peers():
        weather = "rain" if peer.data.startswith("rain") else "haze"
        if weather in weathers:
            assert told[f"{peer.system} {tables.MARK}", peer.data, peer.protocol].startswith(f"{peer.psnr:.2f}")


@pytest.mark.parametrize("name", model_folder.shipped())
def test_the_page_of_models_has_each_card(name: str) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    told = page.split(f"<!-- card:{name}:begin -->\n")[1].split(f"\n<!-- card:{name}:end -->")[0]
    assert told == publish.facts_of(model_folder.shipped()[name])
    assert f"\n## {name}\n" in page
