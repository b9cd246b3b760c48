"""Photos without a truth: the table, changes.csv and the sheets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fairweather import cli
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.evaluation import evaluate_unpaired, no_reference


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    """Six hazy photos, one of them in a folder below, one of 16 bits."""
    folder = tmp_path / "hazy"
    (folder / "more").mkdir(parents=True)
    for at in range(5):
        hazy = photo * (0.8 - 0.1 * at) + 255 * (0.1 + 0.1 * at)
        Image.fromarray(hazy.round().clip(0, 255).astype(np.uint8)).save(folder / f"photo{at}.png")
    Image.fromarray(photo[..., 1].astype(np.uint16) * 200).save(folder / "more" / "sixteen.png")
    return folder


def stretch(pixels: np.ndarray) -> np.ndarray:
    full = np.iinfo(pixels.dtype).max
    return ((pixels / full - 0.5) * 1.5 + 0.5).clip(0, 1).__mul__(full).round().astype(pixels.dtype)


def test_every_photo_is_measured_in_its_own_type(photos: Path) -> None:
    seen = []

    def restorer(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.dtype)
        return stretch(pixels)

    result = evaluate_unpaired(restorer, photos)
    assert set(result.photos) == {*(f"photo{at}" for at in range(5)), "more/sixteen"}
    assert set(seen) == {np.dtype(np.uint8), np.dtype(np.uint16)}
    assert 1.3 < result.mean("contrast") < 1.6
    name, value = result.worst("saturated")
    assert value == max(one.saturated for one in result.photos.values())
    assert result.photos[name].saturated == value
    assert result.worst("contrast")[1] == min(one.contrast for one in result.photos.values())


def test_files(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate_unpaired(stretch, photos, out)
    with open(out / no_reference.CHANGES_CSV, newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(result.photos)
    assert float(rows["photo1"]["contrast"]) == pytest.approx(result.photos["photo1"].contrast, abs=1e-4)
    sheets = sorted(path.name for path in out.glob("*.jpg"))
    assert sheets == ["hazy-01.jpg", "hazy-02.jpg"]
    with Image.open(out / "hazy-01.jpg") as first, Image.open(out / "hazy-02.jpg") as second:
        assert first.width > 2 * 500
        assert first.height > 1.8 * second.height, "four photos, then two"
    evaluate_unpaired(stretch, photos, out, sheet=1)
    assert [path.name for path in out.glob("*.jpg")] == ["hazy-01.jpg"], "sheets of an earlier evaluation go"


def test_a_broken_photo_is_named_and_the_others_go_on(photos: Path, tmp_path: Path) -> None:
    (photos / "photo2.png").write_bytes(b"no picture")
    result = evaluate_unpaired(stretch, photos, tmp_path / "out")
    assert list(result.failed) == ["photo2"]
    assert len(result.photos) == 5
    assert "no picture" not in (tmp_path / "out" / no_reference.CHANGES_CSV).read_text().splitlines()[0]
    assert "photo2.png" in (tmp_path / "out" / no_reference.CHANGES_CSV).read_text()

    def refuses(pixels: np.ndarray) -> np.ndarray:
        raise BadImage("too large")

    assert len(evaluate_unpaired(refuses, photos, tmp_path / "none").failed) == 6


def test_refusals(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFolder, match="no pictures"):
        evaluate_unpaired(stretch, tmp_path / "empty")
    with pytest.raises(BadSettings, match="1 at least"):
        evaluate_unpaired(stretch, photos, sheet=0)


def test_tables_fit_a_terminal(photos: Path) -> None:
    result = evaluate_unpaired(stretch, photos)
    for grid in (no_reference.changes_table(result, "some model"), no_reference.all_photos(result)):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(grid)
        text = console.export_text()
        assert "…" not in text
        assert "photo4" in text


def evaluate(model: Path, *words: object) -> int:
    return cli.main(["evaluate", "--model", str(model), *map(str, words)])


def test_command_line(tiny_model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tiny_model, "--unpaired", photos, "-o", tmp_path / "out", "--photos") == 0
    said = capsys.readouterr().out
    assert "local contrast" in said
    assert "photo3" in said
    assert (tmp_path / "out" / "hazy-01.jpg").is_file()
    guarded = (tmp_path / "out" / no_reference.CHANGES_CSV).read_text()
    assert evaluate(tiny_model, "--unpaired", photos, "-o", tmp_path / "out", "--no-guard") == 0
    assert (tmp_path / "out" / no_reference.CHANGES_CSV).read_text() != guarded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data"),
        (["--data", ".", "--unpaired", "."], "one of the two"),
        (["--unpaired", ".", "--themselves"], "without a truth"),
        (["--unpaired", ".", "--card"], "without a truth"),
        (["--unpaired", ".", "--protocol", "rain-y"], "without a truth"),
    ],
)
def test_what_does_not_go_together(
    words: list[str], message: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_model, *words) == 1
    assert message in capsys.readouterr().err
