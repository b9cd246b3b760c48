"""`fairweather evaluate` from pairs to scores.json, a sheet and the model's card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, model_folder


@pytest.fixture
def clear(tmp_path: Path, photo: np.ndarray) -> Path:
    (tmp_path / "set" / "clear").mkdir(parents=True)
    for name, pixels in (("one", photo), ("two", photo[:, ::-1])):
        Image.fromarray(pixels).save(tmp_path / "set" / "clear" / f"{name}.png")
    return tmp_path / "set" / "clear"


def test_a_table_scores_and_a_sheet(
    tiny_model: Path, clear: Path, photo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clear.parent / "hazy").mkdir()
    for path in clear.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 100).save(clear.parent / "hazy" / path.name)
    evaluate = ["evaluate", "--model", str(tiny_model), "--data", str(clear.parent)]
    assert cli.main([*evaluate, "--out", str(tmp_path / "report")]) == 0
    assert "set" in capsys.readouterr().out
    scores = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert scores["sets"][0]["n"] == 2
    assert (tmp_path / "report" / "set.jpg").exists()
    assert cli.main([*evaluate, "--protocol", "rbg"]) == 1
    assert "did you mean 'rgb'" in capsys.readouterr().err


def test_scores_of_clear_photos_on_the_card(tiny_model: Path, clear: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "tiny")
    for _ in range(2):  # the second scores replace the first
        assert cli.main(["evaluate", "--model", str(model), "--data", str(clear), "--clear-only", "--card"]) == 0
    scores = model_folder.read_card(model).scores
    assert [(score["data"], score["metric"], score["n"]) for score in scores] == [
        ("clear", "psnr", 2),
        ("clear", "ssim", 2),
    ]
    assert "input" not in scores[0]
