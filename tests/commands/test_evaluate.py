"""`fairweather evaluate`: tables, pages, photos without clear versions, and options that exclude each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli


@pytest.fixture
def pairs(tmp_path: Path, photo: np.ndarray) -> Path:
    """Five pairs, increasingly hazy."""
    for at in range(5):
        hazy = photo * (1 - 0.15 * at) + 255 * 0.15 * at
        for side, pixels in (("hazy", hazy), ("clear", photo)):
            (tmp_path / "pairs" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.round().astype(np.uint8)).save(tmp_path / "pairs" / side / f"photo{at}.png")
    return tmp_path / "pairs"


def evaluate(model: Path | str, *arguments: object) -> int:
    return cli.main(["evaluate", "--model", str(model), *map(str, arguments)])


def test_the_worst_photos_are_printed_or_all(
    tiny_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_model, "--data", pairs) == 0
    output = capsys.readouterr().out
    assert sum(f"photo{at}" in output for at in range(5)) == 3
    assert "--photos" in output
    assert evaluate(tiny_model, "--data", pairs, "--photos", "--precision", "f32") == 0
    output = capsys.readouterr().out
    assert all(f"photo{at}" in output for at in range(5))


@pytest.mark.parametrize(("sheet", "pages"), [("2", 2), ("all", 5)])
def test_pages(sheet: str, pages: int, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    assert evaluate(tiny_model, "--data", pairs, "--sheet", sheet, "-o", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "pairs").iterdir())) == pages
    assert (tmp_path / "out" / "photos.csv").read_text().count("\n") == 6


def test_photos_without_clear_versions(
    tiny_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(tiny_model, "--unpaired", pairs / "hazy", "-o", out, "--photos") == 0
    output = capsys.readouterr().out
    assert "local contrast" in output
    assert "photo3" in output
    assert (out / "hazy-01.jpg").is_file()
    guarded = (out / "changes.csv").read_text()
    assert evaluate(tiny_model, "--unpaired", pairs / "hazy", "-o", out, "--no-guard") == 0
    assert (out / "changes.csv").read_text() != guarded


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "give one of --data"),
        (["--data", ".", "--unpaired", "."], 1, "give one of --data"),
        (["--unpaired", ".", "--clear-only"], 1, "--unpaired photos have none"),
        (["--unpaired", ".", "--card"], 1, "--unpaired photos have none"),
        (["--unpaired", ".", "--protocol", "rain-y"], 1, "--unpaired photos have none"),
        (["--data", "PAIRS", "--protocol", "rgbs"], 1, "did you mean 'rgb'"),
        (["--data", "PAIRS", "--sheet", "all"], 1, "--out"),
        (["--data", "PAIRS", "--sheet", "0", "-o", "OUT"], 1, "at least 1"),
        (["--data", "PAIRS", "--sheet", "some", "-o", "OUT"], 2, "some"),
        (["--data", "PAIRS", "--precision", "int8"], 1, "fairweather quantize"),
        (["--data", "PAIRS", "--precision", "int8", "--card"], 1, "--card"),
    ],
)
def test_options_that_are_rejected(
    arguments: list[str],
    code: int,
    message: str,
    tiny_model: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"PAIRS": str(pairs), "OUT": str(tmp_path / "out")}
    assert evaluate(tiny_model, *(places.get(argument, argument) for argument in arguments)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
