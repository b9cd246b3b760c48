"""The error map and the pages: what is where, and how bright."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather.errors import BadFolder, BadSettings
from fairweather.evaluation import evaluate_model
from fairweather.evaluation.metrics import psnr
from fairweather.evaluation.sheets import (
    ERROR_SCALE,
    GAP,
    LINE,
    PAGE_MIN_WIDTH,
    PAGE_SIDE,
    TITLE,
    checked_count,
    colour_bar,
    coloured,
    error_map,
    pixel_error,
)


def flat(value: float, height: int = 20, width: int = 24) -> np.ndarray:
    return np.full((height, width, 3), value, np.float32)


def test_the_error_is_the_psnr_s(rng: np.random.Generator) -> None:
    output, target = rng.random((30, 40, 3)), rng.random((30, 40, 3))
    error = pixel_error(output, target)
    assert error.shape == (30, 40)
    assert -10 * np.log10(np.square(error).mean()) == pytest.approx(psnr(output, target), abs=1e-4)
    assert pixel_error(flat(1.7), flat(1.0)).max() == 0, "clipped, as scores are"
    one_channel = flat(0.5)
    one_channel[..., 1] += 0.3
    assert pixel_error(one_channel, flat(0.5)).max() == pytest.approx(0.3 / np.sqrt(3), abs=1e-6)


def test_brightness_tells_the_error() -> None:
    bar = colour_bar(256, 1)[0].astype(float)
    luminance = bar @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) >= -1).all(), "brighter and brighter, for eyes that see no colour too"
    assert luminance[0] < 5 < 200 < luminance[-1]
    assert (coloured(np.array([[ERROR_SCALE, 7.0]]))[0, 0] == coloured(np.array([[ERROR_SCALE, 7.0]]))[0, 1]).all()
    assert (coloured(np.zeros((1, 1)))[0, 0] == bar[0]).all()


def test_the_scale_is_the_same_for_every_photo() -> None:
    slight, gross = (error_map(flat(0.5 + by), flat(0.5), 100) for by in (0.05, 0.2))
    assert (slight == coloured(np.full((20, 24), 0.05))).all()
    assert (slight < gross).any()


def test_errors_are_averaged_not_colours() -> None:
    output, target = flat(0.5, 100, 200), flat(0.5, 100, 200)
    output[:, ::2] += 0.2
    reduced = error_map(output, target, 100)
    assert reduced.shape == (50, 100, 3)
    assert np.abs(reduced[10:-10, 10:-10].astype(int) - coloured(np.full((1, 1), 0.1)).astype(int)).max() <= 6


def halve(picture: np.ndarray) -> np.ndarray:
    return picture / 2


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two sets; of the first, photo 0 comes out worst and photo 1 best."""
    for name, lights in (("one", (204, 51, 77, 102)), ("two", (51,))):
        for i, light in enumerate(lights):
            for side, value in (("hazy", 102), ("clear", light)):
                path = tmp_path / "sets" / name / side / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((40, 48, 3), value, np.uint8)).save(path)
    return tmp_path / "sets"


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_pages_of_the_worst(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_model(halve, sets, out=out, sheet=2)
    pages = ["one/1-0.jpg", "one/2-3.jpg", "two/1-0.jpg"]
    assert tree(out) == sorted(["one.jpg", "two.jpg", "photos.csv", "scores.json", *pages])
    with open(out / "photos.csv", newline="") as file:
        assert [line["page"] for line in csv.DictReader(file) if line["page"]] == pages
    with Image.open(out / "one" / "1-0.jpg") as page:
        assert page.width == 4 * (PAGE_MIN_WIDTH + GAP) + GAP
        seen = [page.getpixel((GAP + place * (PAGE_MIN_WIDTH + GAP) + 20, TITLE + LINE + 20)) for place in range(4)]
    assert [pixel[0] for pixel in seen[:3]] == pytest.approx([102, 51, 204], abs=2), "degraded | restored | clear"
    assert seen[3] == pytest.approx(tuple(coloured(np.full((1, 1), 153 / 255))[0, 0]), abs=6), "| error"


def test_all_of_them_and_then_fewer(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_model(halve, sets, out=out, sheet="all")
    assert [name for name in tree(out) if "/" in name] == [
        *(f"one/{n}.jpg" for n in ("1-0", "2-3", "3-2", "4-1")),
        "two/1-0.jpg",
    ]
    (out / "one" / "5-mine.jpg").touch()
    evaluate_model(lambda picture: picture, sets / "one", out=out, sheet=1)
    assert [name for name in tree(out) if "/" in name] == ["one/1-0.jpg", "one/5-mine.jpg"], "old pages mislead"
    assert not (out / "two").exists()


def test_what_cannot_be(sets: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def count(picture: np.ndarray) -> np.ndarray:
        calls.append(1)
        return picture

    with pytest.raises(BadSettings, match="--out"):
        evaluate_model(count, sets, sheet=1)
    with pytest.raises(BadSettings, match="at least 1"):
        evaluate_model(count, sets, out=tmp_path / "out", sheet=0)
    assert not calls
    assert checked_count("all") is None
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "one").touch()
    with pytest.raises(BadFolder, match="cannot be created"):
        evaluate_model(count, sets, out=tmp_path / "out", sheet=1)


@pytest.mark.parametrize(("height", "width"), [(600, 900), (900, 600)])
def test_a_page_is_as_wide_as_its_pictures(height: int, width: int, tmp_path: Path) -> None:
    for side in ("hazy", "clear"):
        (tmp_path / "set" / side).mkdir(parents=True)
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / "set" / side / "a.png")
    evaluate_model(halve, tmp_path / "set", out=tmp_path / "out", sheet=1)
    with Image.open(tmp_path / "out" / "set" / "1-a.jpg") as page:
        assert page.width == 4 * (max(PAGE_MIN_WIDTH, PAGE_SIDE * width // max(height, width)) + GAP) + GAP
        assert page.height > PAGE_SIDE * height // max(height, width)


def test_names_in_folders(tmp_path: Path) -> None:
    for side, value in (("rain/light", 102), ("norain/light", 51)):
        (tmp_path / "set" / side).mkdir(parents=True)
        Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(tmp_path / "set" / side / "a.png")
    from fairweather.pairs import Pair

    pair = Pair(tmp_path / "set/rain/light/a.png", tmp_path / "set/norain/light/a.png", "light/a")
    evaluate_model(halve, {"test/rain": [pair]}, out=tmp_path / "out", sheet="all")
    assert [name for name in tree(tmp_path / "out") if "/" in name] == ["test-rain/1-light-a.jpg"]
