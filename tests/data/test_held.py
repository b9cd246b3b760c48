"""What a run held back, told from its settings, is what its dataset says it held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather.data.mixture import Mixture, MixtureSettings, divide_holdout
from fairweather.errors import BadFolder
from fairweather.images.io import write

SOURCES: list[dict[str, Any]] = [
    {"kind": "pairs", "path": "town"},
    {"kind": "rehazed", "path": "town"},
    {"kind": "pairs", "path": "wet"},
    {"kind": "synthetic", "path": "sun"},
    {"kind": "clear", "path": "sun"},
]


@pytest.fixture
def root(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Pairs of which two share a scene, two kinds of rain over the same photos, clear photos of which one has depth."""

    def photo(*path: str) -> None:
        place = tmp_path.joinpath(*path)
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))

    for scene in range(6):
        photo("town", "clear", f"{scene}.png")
        photo("town", "hazy", f"{scene}_1.png")
        photo("town", "hazy", f"{scene}_2.png")
        photo("wet", "clear", f"w{scene}.png")
        for side in ("light", "heavy"):
            photo("wet", side, f"w{scene}.png")
        photo("sun", f"s{scene}.png")
    return tmp_path


def test_it_is_what_training_holds_back(root: Path) -> None:
    share = 0.34
    division = divide_holdout(SOURCES, root, share)
    table = {"sources": SOURCES, "hold_back": share, "augment": {"crop": 16}}
    theirs = Mixture(MixtureSettings.from_table(table), root).holdout()
    assert {name: len(pairs) for name, pairs in division.holdout.items()} == {
        **{"town": 4, "wet/heavy": 2, "wet/light": 2},
        "sun (clear)": 2,
    }
    ours = {pair.degraded for pairs in division.holdout.values() for pair in pairs}
    assert ours == {pair.degraded for pairs in theirs.values() for pair in pairs}
    assert len({pair.clear for pair in division.holdout["town"]}) == 2, "whole scenes"
    assert division.holdout["sun (clear)"][0].degraded == division.holdout["sun (clear)"][0].clear
    everything = {path for path in root.rglob("*.png")}
    clear_of_held = {pair.clear for pairs in division.holdout.values() for pair in pairs}
    assert division.trained == everything - ours - clear_of_held


def test_depth_maps_are_no_scenes(root: Path) -> None:
    write(root / "sun" / "s0_disparity.png", np.zeros((40, 40), np.uint8)[..., None].repeat(3, 2))
    held = divide_holdout([{"kind": "synthetic", "path": "sun"}], root, 0.99 - 1 / 6).holdout["sun (clear)"]
    assert len(held) == 5
    assert not any("disparity" in pair.name for pair in held)


@pytest.mark.parametrize(("lent", "folder"), [("fog", "town"), ("streaks", "wet")])
def test_weather_that_is_lent_was_seen(lent: str, folder: str, root: Path) -> None:
    source = {"kind": "synthetic", "path": "sun", lent: folder}
    borrowed = divide_holdout([source], root, 0.34).trained
    own = divide_holdout([{"kind": "pairs", "path": folder}], root, 0.34)
    assert borrowed - divide_holdout([{"kind": "synthetic", "path": "sun"}], root, 0.34).trained == own.trained
    assert own.trained


def test_a_plain_folder_of_pairs_and_one_that_is_gone(root: Path) -> None:
    assert {name: len(pairs) for name, pairs in divide_holdout((), root / "town", 0.2).holdout.items()} == {"town": 2}
    assert divide_holdout((), root / "town", 0.0).holdout == {}
    with pytest.raises(BadFolder, match=r"nowhere.*--data"):
        divide_holdout([{"kind": "pairs", "path": "nowhere"}], root, 0.1)
