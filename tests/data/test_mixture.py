"""Mixtures: seeding, weights, settings from a table, and the holdout, also derived from settings alone."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.mixture import divide_holdout
from fairweather.errors import BadFolder, BadSettings, FairweatherError
from tests.data.conftest import QUIET, scene, write_photo


def settings(**changes: Any) -> MixtureSettings:
    sources = (
        SourceSettings("pairs", "pairs", weight=3),
        SourceSettings("rehazed", "pairs"),
        SourceSettings("synthetic", "photos", weight=2),
        SourceSettings("synthetic", "photos", weather="rain"),
        SourceSettings("clear", "photos"),
    )
    return MixtureSettings(**{"sources": sources, "augment": QUIET, **changes})


@pytest.fixture
def root(pairs_folder: Path, clear_folder: Path) -> Path:
    assert pairs_folder.parent == clear_folder.parent
    return pairs_folder.parent


def test_a_sample_depends_on_seed_epoch_and_index_only(root: Path) -> None:
    keys = [(seed, epoch, index) for seed in (0, 7) for epoch in (0, 1) for index in range(8)]
    data = Mixture(settings(samples=8), root)
    once = [data.sample(*key) for key in keys]
    others = Mixture(settings(samples=8, memory_gib=0.0), root), pickle.loads(pickle.dumps(data))
    for other in others:  # in threads, and as in a worker process
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(lambda key: other.sample(*key), reversed(keys)))[::-1]  # noqa: B023
        for one, two in zip(once, again, strict=True):
            assert all(torch.equal(one[side], two[side]) for side in one)
    assert len({sample["degraded"].numpy().tobytes() for sample in once}) > 28


def test_sources_are_drawn_by_weight(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Mixture(settings(samples=800), root)
    counts = [0] * len(data.sources)
    for number, source in enumerate(data.sources):

        def count(item: int, rng: object, number: int = number, items: int = source.items) -> dict[str, torch.Tensor]:
            assert 0 <= item < items
            counts[number] += 1
            return {}

        monkeypatch.setattr(source, "make", count)
    for index in range(800):
        data.sample(0, 0, index)
    assert [round(count / 100) for count in counts] == [3, 1, 2, 1, 1]
    with pytest.raises(IndexError):
        data.sample(0, 0, 800)


def test_folders_that_sources_share_are_cached_once(root: Path) -> None:
    both = Mixture(settings(), root)
    assert len(both) == 16 + 16 + 6 + 6 + 6
    one = Mixture(settings(sources=(SourceSettings("pairs", "pairs"), SourceSettings("clear", "photos"))), root)
    assert both.photos.used == one.photos.used > 0


def test_a_source_may_have_its_own_augmentation(root: Path) -> None:
    own = SourceSettings("pairs", "pairs", augment={"flip": 0.0, "scale": [0.5, 0.6]})
    data = Mixture(settings(sources=(own, SourceSettings("clear", "photos")), augment=Augment(crop=32, flip=1.0)), root)
    assert [source.augment for source in data.sources] == [  # type: ignore[attr-defined]
        Augment(crop=32, flip=0.0, scale=(0.5, 0.6)),
        Augment(crop=32, flip=1.0),
    ]


def test_a_table_becomes_settings() -> None:
    rain = {"kind": "synthetic", "path": "clear", "weather": "rain", "streaks": "rain100", "rain": {"veil": 0}}
    haze = {"kind": "synthetic", "path": "clear", "weight": 2, "haze": {"density": [0.5, 2.0], "patchy": 0.5}}
    table = {"hold_back": 0.05, "memory_gib": 2, "sources": [haze, rain]}
    built = MixtureSettings.from_table({**table, "augment": {"crop": 128, "scale": [0.5, 1], "jpeg": [60, 90]}})
    assert built.augment == Augment(crop=128, scale=(0.5, 1.0), jpeg=(60, 90))
    assert (built.memory_gib, built.sources[0].weight, built.sources[0].haze.density) == (2.0, 2.0, (0.5, 2.0))
    assert (built.sources[1].streaks, built.sources[1].rain.veil) == ("rain100", 0.0)


def source(**changes: Any) -> dict[str, Any]:
    return {"sources": [{"kind": "synthetic", "path": "a", **changes}]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"hold_bak": 0.1}, r"data.*'hold_bak': did you mean 'hold_back'"),
        (source(paht="a"), r"sources\[0\].*'paht': did you mean 'path'"),
        (source(haze={"dense": 1}), r"haze.*'dense'"),
        ({"sources": [{"kind": "pairs"}]}, r"sources\[0\].*path"),
        (source(kind="pears"), "'pears': did you mean 'pairs'"),
        (source(kind=[1]), r"sources\[0\]\.kind must be of type str"),
        (source(weather="snow"), "'snow'"),
        (source(weight=0), "weight of the source a is 0.0: give a number above 0"),
        (source(weight=float("inf")), "weight of the source a is inf"),
        (source(weight=10**400), r"sources\[0\]\.weight must be of type float"),
        (source(speed=-1), "speed of the source a is -1"),
        (source(match="b*"), r"sources\[0\]\.match must be a list"),
        (source(match=[1]), r"sources\[0\]\.match\[0\] must be of type str"),
        (source(augment=[]), r"sources\[0\]\.augment must be of type dict"),
        (source(augment={"crop": 16}), "sets its own crop"),
        (source(haze={"density": [1, float("nan")]}), "haze.density is 1.0 to nan"),
        (source(rain={"layers": [1, 10**9]}), "rain.layers"),
        (source(kind="clear", depths="depths"), "a has depths"),
        (source(weather="rain", validate="x"), "a has validate"),
        (source(kind="pairs", match=["b*"]), "a has match"),
        ({"sources": "a"}, "sources must be a list"),
        ({"augment": {"crop": "big"}}, r"augment\.crop must be of type int"),
        ({"augment": {"crop": 10**9}}, r"augment\.crop is 1000000000: give a number from 1 to 16384"),
        ({"augment": {"scale": [0.5]}}, r"augment\.scale must have 2 values"),
        ({"augment": 3}, "augment must be a table"),
        ({"samples": 0}, r"data\.samples is 0"),
        ({"samples": 10**30}, r"data\.samples is 10+: give a number from 1 to"),
        ({"frames": 0}, r"data\.frames is 0"),
        ({"short_side": -5}, r"data\.short_side is -5"),
        ({"memory_gib": float("nan")}, r"data\.memory_gib is nan"),
    ],
)
def test_faults_in_a_table_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(FairweatherError, match=message):
        MixtureSettings.from_table(table)


def test_what_a_mixture_cannot_open_is_named(root: Path) -> None:
    with pytest.raises(BadSettings, match="sources is empty"):
        Mixture(settings(sources=()), root)
    for kind in ("pairs", "rehazed", "synthetic", "clear"):
        with pytest.raises(BadFolder, match="nowhere"):
            Mixture(settings(sources=(SourceSettings(kind, "nowhere"),)), root)  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match=r"augment table of the source pairs.*flipp"):
        Mixture(settings(sources=(SourceSettings("pairs", "pairs", augment={"flipp": 1.0}),)), root)
    with pytest.raises(BadFolder, match=r"no file name matches blunt_\*"):
        Mixture(settings(sources=(SourceSettings("clear", "photos", match=("blunt_*",)),)), root)


def test_patterns_choose_photos_without_changing_the_holdout(root: Path) -> None:
    def opened(kind: Any, **more: Any) -> Mixture:
        return Mixture(settings(sources=(SourceSettings(kind, "photos", **more),), hold_back=0.5), root)

    whole, some = opened("clear"), opened("synthetic", match=("photo[0-3].png",), validate="fog")
    used, every = ({path.stem for path in data.sources[0].paths} for data in (some, whole))  # type: ignore[attr-defined]
    matching = {f"photo{n}" for n in range(4)}
    assert used == every & matching
    assert {pair.name for pair in some.holdout()["fog"]} == matching - used


SOURCES: list[dict[str, Any]] = [
    {"kind": "pairs", "path": "town"},
    {"kind": "rehazed", "path": "town"},
    {"kind": "pairs", "path": "wet"},
    {"kind": "synthetic", "path": "sun"},
    {"kind": "clear", "path": "sun"},
]


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """Pairs of which two share a scene, two kinds of rain over the same photos, clear photos of which one has depth."""
    for number in range(6):
        names = [f"town/clear/{number}", f"town/hazy/{number}_1", f"town/hazy/{number}_2", f"sun/s{number}"]
        for name in [*names, *(f"wet/{side}/w{number}" for side in ("clear", "light", "heavy"))]:
            write_photo(tmp_path / f"{name}.png", scene(number, 40, 40))
    return tmp_path


def test_the_holdout_follows_from_the_settings(town: Path) -> None:
    division = divide_holdout(SOURCES, town, 0.34)
    table = {"sources": SOURCES, "hold_back": 0.34, "augment": {"crop": 16}}
    data = Mixture(MixtureSettings.from_table(table), town)
    sizes = {name: len(pairs) for name, pairs in division.holdout.items()}
    assert sizes == {"town": 4, "wet/heavy": 2, "wet/light": 2, "sun (clear)": 2}
    held = {pair.degraded for pairs in division.holdout.values() for pair in pairs}
    assert held == {pair.degraded for pairs in data.holdout().values() for pair in pairs}
    assert len({pair.clear for pair in division.holdout["town"]}) == 2, "whole scenes"
    assert all(pair.degraded == pair.clear for pair in division.holdout["sun (clear)"])
    held |= {pair.clear for pairs in division.holdout.values() for pair in pairs}
    assert division.trained == {*town.rglob("*.png")} - held
    for one in data.sources:  # a scene is held out of every source
        used = {p.clear for p in one.pairs} if hasattr(one, "pairs") else {*one.paths}  # type: ignore[attr-defined]
        assert used <= division.trained
    # disparity maps are not photos
    write_photo(town / "sun" / "s0_disparity.png", np.zeros((40, 40), np.uint8))
    clear = divide_holdout([{"kind": "synthetic", "path": "sun"}], town, 0.8)
    assert not any("disparity" in path.name for path in clear.trained)
    assert not any("disparity" in pair.name for pair in clear.holdout["sun (clear)"])


@pytest.mark.parametrize(("key", "folder"), [("fog", "town"), ("streaks", "wet")])
def test_pairs_that_provide_weather_count_as_trained_on(key: str, folder: str, town: Path) -> None:
    sun = {"kind": "synthetic", "path": "sun"}
    without, with_weather = (divide_holdout([{**sun, **more}], town, 0.34).trained for more in ({}, {key: folder}))
    own = divide_holdout([{"kind": "pairs", "path": folder}], town, 0.34).trained
    assert with_weather - without == own != frozenset()


def test_holdout_of_a_plain_folder_and_of_a_missing_one(town: Path) -> None:
    assert {name: len(pairs) for name, pairs in divide_holdout((), town / "town", 0.2).holdout.items()} == {"town": 2}
    assert divide_holdout((), town / "town", 0.0).holdout == {}
    with pytest.raises(BadFolder, match=r"nowhere.*--data"):
        divide_holdout([{"kind": "pairs", "path": "nowhere"}], town, 0.1)
