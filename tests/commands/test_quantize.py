"""`fairweather quantize MODEL`, and `restore --precision int8` with what it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images, model_folder
from fairweather.deploy import quantization


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quantization, "COST_SECONDS", 0.0)  # at the smaller size: what is asked here are no times
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(np.roll(photo, 20 * number, 1)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_from_a_model_to_a_restored_photo(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny_model), "--method", "static", "--data", "photos", "-o", "small"]) == 0
    said = capsys.readouterr().out
    assert "static, " in said
    assert "layers in int8, data photos, photos 2" in said
    assert "openvino int8: " in said
    assert "fairweather restore PHOTO --model small --precision int8" in said
    card = model_folder.read_card("small")
    assert card.quantized is not None
    assert card.quantized["pairs"] is False
    assert card.quantized["bar"]["psnr"] == pytest.approx(26 + 14.54, abs=0.01), "a card without scores"

    assert cli.main(["info", "small"]) == 0
    assert "int8 static, " in " ".join(capsys.readouterr().out.split())

    for precision in ("int8", "f32"):
        words = ["restore", "photos/1.png", "--model", "small", "-o", f"{precision}.png", "--no-guard"]
        assert cli.main([*words, "--precision", precision]) == 0
    first, second = (images.read(f"{precision}.png").pixels.astype(int) for precision in ("int8", "f32"))
    assert 0 < np.abs(first - second).mean() < 4


def test_dynamic_needs_no_photos(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny_model), "--method", "dynamic", "-o", "small"]) == 0
    assert "(invented pictures, n=3)" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_line(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: object) -> str:
        assert cli.main([*map(str, words)]) == 1
        error = capsys.readouterr().err
        assert "error" in error
        return error

    assert "--data DIR" in refused("quantize", tiny_model, "--method", "static", "-o", "small")
    assert "fairweather quantize" in refused("restore", "photos", "--model", tiny_model, "--precision", "int8")
    assert not Path("small").exists()
    assert not Path("restored").exists()


@pytest.mark.skipif("dehaze-fast" not in model_folder.shipped(), reason="NO MODEL SHIPS YET")
@pytest.mark.parametrize("name", ["dehaze-fast", "derain"])
def test_the_models_that_ship_bring_int8(name: str, photos: Path) -> None:
    said = model_folder.read_card(model_folder.find(name)).quantized
    assert said is not None
    assert said["passed"]
    for precision in ("int8", "f32"):
        words = ["restore", "photos/1.png", "--model", name, "-o", f"{precision}.png", "--no-guard"]
        assert cli.main([*words, "--precision", precision]) == 0
    first, second = (images.read(f"{precision}.png").pixels.astype(int) for precision in ("int8", "f32"))
    assert 0 < np.abs(first - second).mean() < 3
