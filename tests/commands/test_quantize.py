"""`fairweather quantize`, and `restore --precision int8`."""

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
    monkeypatch.setattr(quantization, "COST_SECONDS", 0.0)
    monkeypatch.setattr(quantization, "SMALLER_SIZE", (64, 64))
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(np.roll(photo, 20 * number, 1)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def difference_by_precision(model: str) -> float:
    """Mean difference of a restored photo between int8 and f32, in levels."""
    for precision in ("int8", "f32"):
        options = ["--model", model, "-o", f"{precision}.png", "--no-guard", "--precision", precision]
        assert cli.main(["restore", "photos/1.png", *options]) == 0
    first, second = (images.read(f"{precision}.png").pixels.astype(int) for precision in ("int8", "f32"))
    return float(np.abs(first - second).mean())


def test_from_a_model_to_a_restored_photo(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny_model), "--method", "static", "--data", "photos", "-o", "small"]) == 0
    printed = capsys.readouterr().out
    assert "layers in int8, data photos, photos 2" in printed
    assert "openvino int8: " in printed
    assert "fairweather restore PHOTO --model small --precision int8" in printed
    card = model_folder.read_card("small")
    assert card.quantized is not None
    assert card.quantized["pairs"] is False
    assert card.quantized["bar"]["psnr"] == pytest.approx(26 + 14.54, abs=0.01), "for a card without scores"
    assert cli.main(["info", "small"]) == 0
    assert "int8 static, " in " ".join(capsys.readouterr().out.split())
    assert 0 < difference_by_precision("small") < 4


def test_dynamic_needs_no_photos(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny_model), "--method", "dynamic", "-o", "small"]) == 0
    assert "(synthetic pictures, n=3)" in capsys.readouterr().out


def test_errors_are_one_line(tiny_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["quantize", tiny_model, "--method", "static", "-o", "small"], "--data DIR"),
        (["restore", "photos", "--model", tiny_model, "--precision", "int8"], "fairweather quantize"),
    ):
        assert cli.main([*map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
    assert not Path("small").exists()
    assert not Path("restored").exists()


@pytest.mark.parametrize("name", ["dehaze-fast", "derain"])
def test_shipped_models_have_int8(name: str, photos: Path) -> None:
    record = model_folder.read_card(model_folder.find(name)).quantized
    assert record is not None
    assert record["passed"]
    assert 0 < difference_by_precision(name) < 3
