from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.errors import BadFolder, BadSettings, FairweatherError, UnknownName

QUIET = Augment(crop=32, tone=0, noise_share=0, jpeg_share=0)


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


def test_a_mixture_is_a_function_of_seed_epoch_and_index(root: Path) -> None:
    keys = [(seed, epoch, index) for seed in (0, 7) for epoch in (0, 1) for index in range(8)]
    data = Mixture(settings(samples=8), root)
    once = [data.sample(*key) for key in keys]
    other = Mixture(settings(samples=8, memory_gib=0.0), root)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda key: other.sample(*key), reversed(keys)))[::-1]
    for one, two in zip(once, again, strict=True):
        assert torch.equal(one["degraded"], two["degraded"])
        assert torch.equal(one["clear"], two["clear"])
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


def test_length_is_a_setting_or_the_number_of_items(root: Path) -> None:
    assert len(Mixture(settings(samples=77), root)) == 77
    assert len(Mixture(settings(), root)) == 16 + 16 + 6 + 6 + 6
    with pytest.raises(IndexError):
        Mixture(settings(samples=77), root).sample(0, 0, 77)


def test_folders_that_sources_share_are_kept_once(root: Path) -> None:
    both = Mixture(settings(), root)
    one = Mixture(settings(sources=(SourceSettings("pairs", "pairs"), SourceSettings("clear", "photos"))), root)
    assert both.photos.used == one.photos.used > 0


def test_a_held_back_scene_is_held_back_from_every_source(root: Path) -> None:
    data = Mixture(settings(hold_back=0.3), root)
    held = data.holdout()
    assert sorted(held) == ["clear:photos", "pairs:pairs"]
    assert all(pair.degraded == pair.clear for pair in held["clear:photos"])
    scenes = {pair.clear for pairs in held.values() for pair in pairs}
    assert len(scenes) == 2 + 2
    for source in data.sources:
        used = {p.clear for p in source.pairs} if hasattr(source, "pairs") else set(source.paths)  # type: ignore[attr-defined]
        assert used
        assert not used & scenes


def test_a_mixture_travels_to_a_worker_process(root: Path) -> None:
    data = Mixture(settings(samples=8), root)
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(copy.sample(0, 0, i)["degraded"], data.sample(0, 0, i)["degraded"]) for i in range(8))


def test_a_table_becomes_settings() -> None:
    built = MixtureSettings.from_table(
        {
            "hold_back": 0.05,
            "memory_gib": 2,
            "augment": {"crop": 128, "scale": [0.5, 1], "jpeg": [60, 90]},
            "sources": [
                {"kind": "synthetic", "path": "clear", "weight": 2, "haze": {"density": [0.5, 2.0], "patchy": 0.5}},
                {"kind": "synthetic", "path": "clear", "weather": "rain", "streaks": "rain100", "rain": {"veil": 0}},
            ],
        }
    )
    assert built.augment == Augment(crop=128, scale=(0.5, 1.0), jpeg=(60, 90))
    assert built.memory_gib == 2.0
    assert built.sources[0].weight == 2.0
    assert built.sources[0].haze.density == (0.5, 2.0)
    assert built.sources[1].streaks == "rain100"
    assert built.sources[1].rain.veil == 0.0


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"hold_bak": 0.1}, r"data.*'hold_bak'; did you mean 'hold_back'"),
        ({"sources": [{"kind": "pairs", "paht": "a"}]}, r"sources\[0\].*'paht'; did you mean 'path'"),
        ({"sources": [{"kind": "pairs", "path": "a", "haze": {"dense": 1}}]}, r"haze.*'dense'"),
        ({"sources": [{"kind": "pairs"}]}, r"sources\[0\].*path"),
        ({"sources": [{"kind": "pears", "path": "a"}]}, "'pears'; did you mean 'pairs'"),
        ({"sources": [{"kind": "synthetic", "path": "a", "weather": "snow"}]}, "'snow'"),
        ({"sources": [{"kind": "pairs", "path": "a", "weight": 0}]}, "weight of the source a is 0"),
        ({"sources": "a"}, "sources must be a list"),
        ({"augment": {"crop": "big"}}, r"augment\.crop must be of type int"),
        ({"augment": {"scale": [0.5]}}, r"augment\.scale must have 2 values"),
        ({"augment": 3}, "augment must be a table"),
    ],
)
def test_faults_in_a_table_are_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises((BadSettings, UnknownName), match=named):
        MixtureSettings.from_table(table)


def test_an_empty_mixture_and_a_missing_folder_are_refused(root: Path) -> None:
    with pytest.raises(BadSettings, match="sources"):
        Mixture(settings(sources=()), root)
    for kind in ("pairs", "rehazed", "synthetic", "clear"):
        with pytest.raises((BadFolder, FairweatherError), match="nowhere"):
            Mixture(settings(sources=(SourceSettings(kind, "nowhere"),)), root)


def test_a_source_may_be_augmented_in_its_own_way(root: Path) -> None:
    own = SourceSettings("pairs", "pairs", augment={"flip": 0.0, "scale": [0.5, 0.6]})
    data = Mixture(settings(sources=(own, SourceSettings("clear", "photos")), augment=Augment(crop=32, flip=1.0)), root)
    assert data.sources[0].augment == Augment(crop=32, flip=0.0, scale=(0.5, 0.6))
    assert data.sources[1].augment == Augment(crop=32, flip=1.0)
    with pytest.raises(BadSettings, match="crop of its own"):
        SourceSettings("pairs", "pairs", augment={"crop": 16})
    with pytest.raises(BadSettings, match=r"augment table of the source pairs.*flipp"):
        Mixture(settings(sources=(SourceSettings("pairs", "pairs", augment={"flipp": 1.0}),)), root)
