"""`fairweather models` and `fairweather info`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fairweather import cli, model_folder
from fairweather.commands.models import score_line
from tests.test_model_folder import QUANTIZED

SCORE = {"metric": "psnr", "protocol": "rgb", "data": "fogville", "n": 7, "value": 21.456, "input": 11.02}


@pytest.fixture
def shipping(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one model, `tiny`."""
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(tiny_model, folder)
    rewrite(folder, scores=[SCORE], description="a [toy]")
    monkeypatch.setattr(model_folder, "MODELS", tmp_path / "models")
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    model_folder.write_card(folder, dataclasses.replace(model_folder.read_card(folder, verify=False), **fields))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_models(shipping: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "models")
    for words in ("tiny haze", "MB", "psnr 21.46 dB (11.02), rgb, fogville, n=7"):
        assert words in page


def test_no_model_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_folder, "MODELS", tmp_path)
    assert "no models" in printed(capsys, "models")
    assert cli.main(["info", "dehaze"]) == 1
    assert "available: none" in capsys.readouterr().err


def test_info(shipping: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "info", "tiny")
    for words in ("a [toy]", "levels=2", "random numbers", "MIT", "recipe = none", "n=7", "in tiles"):
        assert words in page
    assert "int8" not in page
    assert "selected" not in page
    assert printed(capsys, "info", str(shipping)).startswith("model tiny, removes haze")
    (shipping / model_folder.INT8).write_bytes(b"int8")
    rewrite(shipping, quantized={**QUANTIZED, "passed": False, "failures": ["by far"]}, choice="best [of two]")
    page = printed(capsys, "info", "tiny")
    for words in ("int8 static, 8 of 9 layers in int8", "float: stem, first layer", "44.0 dB", "--force: by far"):
        assert words in page
    assert "selected best [of two]" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "blue"}, "colour"),
        ({"description": "\x1b]0;title\x07"}, r"'\x1b' is not allowed in description"),
        ({"licence": "\ud800"}, r"'\ud800' is not allowed in licence"),
        ({"\x1b[2J": 1}, r"'\x1b' is not allowed"),
    ],
)
def test_info_of_a_wrong_card(
    shipping: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((shipping / "card.json").read_text())
    (shipping / "card.json").write_text(json.dumps({**card, **change}))
    assert cli.main(["info", "tiny"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "\x1b" not in error


def test_a_score_line_has_its_context() -> None:
    score = {"metric": "ssim", "protocol": "rgb", "data": "x", "n": 3, "value": 0.87654}
    assert score_line(score) == "ssim 0.877, rgb, x, n=3"


def test_info_of_the_weather_detector(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "info", "weather")
    for words in ("restore --weather auto", "research data", "held_back = 0.15", "checksums match"):
        assert words in page
    assert "detected holdout scenes none haze rain both sots_outdoor" in page
    assert "on_held_back_scenes" not in page
