"""Pairs are found under every usual naming, and errors name the photos that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fairweather.errors import BadFolder
from fairweather.pairs import SIDES, Pair, find_pairs, find_sets, pictures


def lay(folder: Path, *names: str) -> Path:
    """Create empty files: only names matter."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def short(pairs: list[Pair], folder: Path) -> list[tuple[str, str]]:
    return [(p.degraded.relative_to(folder).as_posix(), p.clear.relative_to(folder).as_posix()) for p in pairs]


@pytest.mark.parametrize("case", [str.lower, str.upper, str.capitalize])
def test_every_name_of_the_sides(case: Callable[[str], str], tmp_path: Path) -> None:
    for degraded, clear in ((d, c) for names, clear_names in SIDES for d in names for c in clear_names):
        folder = lay(tmp_path / f"{degraded}-{clear}", f"{case(degraded)}/x.png", f"{case(clear)}/x.png")
        (pair,) = find_pairs(folder)
        assert (pair.degraded.parent.name, pair.clear.parent.name, pair.name) == (case(degraded), case(clear), "x")


@pytest.mark.parametrize(
    ("degraded", "clear"),
    [
        ("hazy/1400_1.png", "clear/1400.png"),
        ("hazy/0001_0.8_0.2.jpg", "clear/0001.png"),
        ("A/x.jpg", "B/x.png"),
        ("A/X.JPG", "B/x.png"),
        ("hazy/01_hazy.png", "GT/01_GT.png"),
        ("hazy/01_outdoor_hazy.jpg", "GT/01_outdoor_GT.jpg"),
        ("rain/rain-1.png", "norain/norain-1.png"),
        ("rain/city/7.png", "norain/city/7.png"),
        ("01_hazy.png", "01_GT.png"),
        ("rain-1.png", "norain-1.png"),
    ],
)
def test_names_of_the_photos(tmp_path: Path, degraded: str, clear: str) -> None:
    other = [name.replace("1", "2").replace("x", "y").replace("X", "Y").replace("7", "8") for name in (degraded, clear)]
    lay(tmp_path, degraded, clear, *other)
    assert short(find_pairs(tmp_path), tmp_path) == sorted([(degraded, clear), (other[0], other[1])])


def test_several_hazes_share_a_scene(tmp_path: Path) -> None:
    lay(tmp_path, "hazy/1400_1.png", "hazy/1400_2.png", "hazy/1401_1.png", "clear/1400.png", "clear/1401.png")
    assert [(p.name, p.clear.stem) for p in find_pairs(tmp_path)] == [
        ("1400_1", "1400"),
        ("1400_2", "1400"),
        ("1401_1", "1401"),
    ]


def test_an_equal_name_wins_over_a_shortened_one(tmp_path: Path) -> None:
    for other in ("a_1", "a_clear"):
        folder = lay(tmp_path / other, *(f"{side}/{name}.png" for side in ("hazy", "clear") for name in ("a", other)))
        assert [(pair.name, pair.clear.stem) for pair in find_pairs(folder)] == [("a", "a"), (other, other)]


def test_only_numbers_are_dropped_behind_underscores(tmp_path: Path) -> None:
    lay(tmp_path, "hazy/street_left.png", "clear/street.png")
    with pytest.raises(BadFolder, match="no partner"):
        find_pairs(tmp_path)


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    lay(tmp_path, "hazy/x.png", "clear/x.png", "hazy/readme.txt", "hazy/._x.png", "clear/.cache/x.png")
    assert len(find_pairs(tmp_path)) == 1
    assert pictures(tmp_path / "hazy") == [tmp_path / "hazy" / "x.png"]


@pytest.mark.parametrize(("extra", "named"), [("hazy/lone.png", "hazy/lone.png"), ("clear/lone.jpg", "clear/lone.jpg")])
def test_an_unmatched_photo_is_named(tmp_path: Path, extra: str, named: str) -> None:
    lay(tmp_path, "hazy/x.png", "clear/x.png", extra)
    with pytest.raises(BadFolder, match=f"1 of its photos have no partner.*{named}.*rename"):
        find_pairs(tmp_path)


def test_many_unmatched_photos_are_counted(tmp_path: Path) -> None:
    lay(tmp_path, "hazy/x.png", "clear/x.png", *(f"hazy/lone{i}.png" for i in range(8)))
    with pytest.raises(BadFolder, match=r"8 of its photos.*lone0.png, hazy/lone1.png, hazy/lone2.png and 5 more"):
        find_sets(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("hazy/x.png", "clear/x.png", "clear/x.jpg"), "match more than one clear photo: hazy/x.png"),
        (("hazy/x.png", "hazy/x.jpg", "clear/x.png"), "differ only in their suffix: hazy/x.jpg, hazy/x.png"),
        (("hazy/x.png", "clear/x.png", "GT/x.png"), "both be the clear side"),
        (("hazy/notes.txt", "clear/x.png"), "hazy contains no pictures"),
        (("holiday/x.png",), "contains no pairs"),
        (("clear/x.png",), "contains no pairs"),
        (("train/hazy/x.png", "train/clear/x.png", "test/hazy/y.png", "test/clear/y.png"), "2 sets.*test, train"),
    ],
)
def test_what_cannot_be_paired(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    lay(tmp_path, *names)
    with pytest.raises(BadFolder, match=message):
        find_pairs(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFolder, match="nowhere"):
        find_sets(tmp_path / "nowhere")


def test_sides_one_or_two_levels_below(tmp_path: Path) -> None:
    lay(tmp_path, "data/real/hazy/x.png", "data/real/clear/x.png")
    for folder, name in ((tmp_path / "data" / "real", "real"), (tmp_path / "data", "real"), (tmp_path, "data/real")):
        assert list(find_sets(folder)) == [name]
        assert [p.name for p in find_pairs(folder)] == ["x"]


def test_a_folder_of_sets(tmp_path: Path) -> None:
    lay(tmp_path, "fog/hazy/x.png", "fog/clear/x.png", "clear/unrelated.png")
    lay(tmp_path, *(f"rain100/{side}/{i}.png" for side in ("light", "heavy", "clear") for i in range(3)))
    sets = find_sets(tmp_path)
    assert {name: len(pairs) for name, pairs in sets.items()} == {"fog": 1, "rain100/heavy": 3, "rain100/light": 3}
    assert {p.clear.parent.name for p in sets["rain100/light"]} == {"clear"}
    assert [p.name for p in find_pairs(tmp_path / "rain100")][:2] == ["heavy/0", "heavy/1"]


def test_the_real_sets(shared_data: Path) -> None:
    counted = {part: {k: len(v) for k, v in find_sets(shared_data / part).items()} for part in ("train", "test")}
    assert counted["test"] == {
        "i_haze": 10,
        "nh_haze2": 8,
        "rain100/heavy": 17,
        "rain100/light": 17,
        "sots_indoor": 14,
        "sots_outdoor": 39,
    }
    assert counted["train"] == {
        "nh_haze": 55,
        "o_haze": 45,
        "rain100/heavy": 40,
        "rain100/light": 40,
        "sots_indoor": 125,
        "sots_outdoor": 250,
    }
    for pair in find_sets(shared_data / "train")["sots_indoor"]:
        assert pair.degraded.stem.split("_")[0] == pair.clear.stem
