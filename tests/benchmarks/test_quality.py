"""The quality table on a set made here: its rows, other systems' outputs, clear photos, and the figure for glow."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import quality
from glow import bands, glow
from PIL import Image

from fairweather.errors import BadFolder
from fairweather.evaluation import find_protocol
from fairweather.pairs import find_sets


@pytest.fixture
def roof() -> np.ndarray:
    """A dark roof before a bright sky, with a little texture on both."""
    y, x = np.mgrid[0:200, 0:300]
    luma = np.where(y > 120 - abs(x - 150) // 3, 0.25, 0.75) + 0.02 * np.sin(x / 3) * np.cos(y / 2)
    return np.repeat(luma[..., None], 3, axis=2).astype(np.float32)


def halo(truth: np.ndarray, amount: float) -> np.ndarray:
    """What a coarse map does: a change of the sky that reaches beyond the roof line."""
    wide = cv2.GaussianBlur(truth, (0, 0), 16)
    return truth + amount * (truth - wide)


def test_glow_sees_a_halo(roof: np.ndarray) -> None:
    weak, strong = (glow(halo(roof, amount), roof) for amount in (0.1, 0.3))
    assert weak[0] > 1
    assert strong[0] == pytest.approx(3 * weak[0], rel=0.1)
    assert strong[0] > 3 * strong[1]


def test_glow_does_not_see_what_is_no_glow(roof: np.ndarray, rng: np.random.Generator) -> None:
    ramp = np.linspace(-0.1, 0.1, roof.shape[1], dtype=np.float32)[:, None]
    for other in (roof * 0.8, roof + 0.1, roof + ramp, roof + rng.normal(0, 0.02, roof.shape).astype(np.float32)):
        assert glow(other, roof)[0] < 0.25 * glow(halo(roof, 0.3), roof)[0]
    assert glow(roof, roof) == pytest.approx((0, 0), abs=1e-3)


def test_a_photo_without_edges_has_no_glow() -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    near, beyond = bands(flat[..., 0])
    assert not near.any()
    assert beyond.all()
    assert np.isnan(glow(flat, flat)[0])


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path, roof: np.ndarray) -> Path:
    for name in ("fog", "mist"):
        for i in range(2):
            save(tmp_path / "data" / name / "clear" / f"{i}.png", roof)
            save(tmp_path / "data" / name / "hazy" / f"{i}.png", roof * 0.5 + 0.4)
    return tmp_path / "data"


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_a_row_for_each_system_and_set(
    data: Path, tmp_path: Path, roof: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def models(names: list[str], engine: str) -> dict[str, quality.System]:
        return {"ours": quality.by_function(lambda picture: ((picture - 0.4) / 0.5).clip(0, 1))}

    monkeypatch.setattr(quality, "_models", models)
    for i in range(2):
        save(tmp_path / "theirs" / "mist" / f"{i}.png", roof * 0.9)
    options = ["--data", str(data), "--clear", str(data / "fog" / "clear"), "--out", str(tmp_path / "out")]
    assert quality.main([*options, "--outputs", f"theirs={tmp_path / 'theirs'}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Protocol rgb: float32 straight from the restorer")
    heading, *rows = cells(printed)
    assert tuple(heading) == quality.HEADINGS
    assert [(row[0], row[2]) for row in rows] == [
        ("fog", "the input"),
        ("fog", "dark channel prior"),
        ("fog", "ours"),
        ("mist", "the input"),
        ("mist", "dark channel prior"),
        ("mist", "theirs"),
        ("mist", "ours"),
        ("clear (clear)", "the input"),
        ("clear (clear)", "dark channel prior"),
        ("clear (clear)", "ours"),
    ]
    by_name = {(row[0], row[2]): row for row in rows}
    assert all(row[1] == "2" for row in rows)
    expected = 10 * np.log10(1 / np.mean((roof * 0.1) ** 2))
    assert float(by_name["mist", "theirs"][3]) == pytest.approx(expected, abs=0.1)
    assert float(by_name["fog", "ours"][3]) > 45 > float(by_name["fog", "the input"][3])
    assert by_name["clear (clear)", "the input"][3] == "inf"
    assert by_name["clear (clear)", "ours"][6] == "2", "both clear photos got worse"
    assert json.loads((tmp_path / "out" / "theirs.json").read_text())["sets"][0]["data"] == "mist"


def test_outputs_of_a_single_set_may_lie_in_the_folder_itself(data: Path, tmp_path: Path, roof: np.ndarray) -> None:
    for i in range(2):
        save(tmp_path / "theirs" / f"{i}.jpg", roof)
    sets = find_sets(data / "fog")
    rows = quality.run({"theirs": quality.by_outputs(tmp_path / "theirs", sets)}, sets, find_protocol("rgb"))
    assert len(rows) == 1
    assert rows[0].result.scores[0].value > 30
    with pytest.raises(BadFolder, match="fog, mist"):
        quality.by_outputs(tmp_path / "theirs", find_sets(data))


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("quality.py: ")
    assert quality.main(["--data", str(tmp_path), "--protocol", "rbg"]) == 1
    assert "did you mean 'rgb'" in capsys.readouterr().err
