"""`fairweather evaluate`: the table photo by photo, and the pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli


@pytest.fixture
def pairs(tmp_path: Path, photo: np.ndarray) -> Path:
    """Five pairs, the first the least hazy."""
    for at in range(5):
        hazy = photo * (1 - 0.15 * at) + 255 * 0.15 * at
        for side, pixels in (("hazy", hazy), ("clear", photo)):
            (tmp_path / "pairs" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.round().astype(np.uint8)).save(tmp_path / "pairs" / side / f"photo{at}.png")
    return tmp_path / "pairs"


def evaluate(model: Path, data: Path, *words: object) -> int:
    return cli.main(["evaluate", "--model", str(model), "--data", str(data), *map(str, words)])


def test_the_worst_are_printed_and_all_when_asked(
    tiny_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_model, pairs) == 0
    said = capsys.readouterr().out
    assert sum(f"photo{at}" in said for at in range(5)) == 3
    assert "--photos" in said
    assert evaluate(tiny_model, pairs, "--photos") == 0
    said = capsys.readouterr().out
    assert all(f"photo{at}" in said for at in range(5))


@pytest.mark.parametrize(("sheet", "pages"), [("2", 2), ("all", 5)])
def test_pages(sheet: str, pages: int, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    assert evaluate(tiny_model, pairs, "--sheet", sheet, "-o", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "pairs").iterdir())) == pages
    assert (tmp_path / "out" / "photos.csv").read_text().count("\n") == 6


def test_pages_that_cannot_be(
    tiny_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_model, pairs, "--sheet", "all") == 1
    assert "--out" in capsys.readouterr().err
    assert evaluate(tiny_model, pairs, "--sheet", 0, "-o", tmp_path / "out") == 1
    assert "1 at least" in capsys.readouterr().err
    assert evaluate(tiny_model, pairs, "--sheet", "some", "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_the_precision_reaches_the_engine(tiny_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tiny_model, pairs, "--precision", "f32") == 0
    assert evaluate(tiny_model, pairs, "--precision", "int8") == 1
    assert "fairweather quantize" in capsys.readouterr().err
    assert evaluate(tiny_model, pairs, "--precision", "int8", "--card") == 1
    assert "--card" in capsys.readouterr().err
