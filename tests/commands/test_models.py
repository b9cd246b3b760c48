"""`models`, `info`, `export`, `synthesize` and `evaluate`: what they print and write."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, model_folder
from fairweather.commands import models as verb


@pytest.fixture
def shipping(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that ships one model, `tiny`, with a score."""
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(tiny_model, folder)
    score = {"metric": "psnr", "protocol": "rgb", "data": "fogville", "n": 7, "value": 21.456, "input": 11.02}
    model_folder.write_card(
        folder, dataclasses.replace(model_folder.read_card(folder), scores=[score], description="a [toy]")
    )
    monkeypatch.setattr(model_folder, "MODELS", tmp_path / "models")
    return folder


def test_models_lists_what_ships(shipping: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    page = capsys.readouterr().out
    for word in ("tiny", "haze", "unet", "MB", "psnr 21.46 dB (11.02), rgb, fogville, n=7"):
        assert word in " ".join(page.split())


def test_no_model_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_folder, "MODELS", tmp_path)
    assert cli.main(["models"]) == 0
    assert "No model ships" in capsys.readouterr().out
    assert cli.main(["info", "dehaze"]) == 1
    assert "there are: none" in capsys.readouterr().err


def test_info_tells_all_of_a_card(shipping: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "tiny"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for word in ("a [toy]", "levels=2", "random numbers", "MIT", "recipe = none", "n=7", "in tiles"):
        assert word in page
    assert cli.main(["info", str(shipping)]) == 0


def test_info_of_an_altered_model(shipping: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads((shipping / "card.json").read_text())
    (shipping / "card.json").write_text(json.dumps({**card, "colour": "blue"}))
    assert cli.main(["info", "tiny"]) == 1
    assert "colour" in capsys.readouterr().err


def test_a_score_line_has_all_that_gives_it_meaning() -> None:
    score = {"metric": "ssim", "protocol": "rgb", "data": "x", "n": 3, "value": 0.87654}
    assert verb.score_line(score) == "ssim 0.877, rgb, x, n=3"


def test_export_makes_a_model_folder(shipping: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "again"
    assert cli.main(["export", "tiny", "-o", str(out)]) == 0
    assert model_folder.read_card(out).scores == model_folder.read_card(shipping).scores
    assert (out / "weights.safetensors").read_bytes() == (shipping / "weights.safetensors").read_bytes()
    assert str(out) in capsys.readouterr().out
    assert cli.main(["export", "tiny", "-o", str(tmp_path)]) == 1
    assert "no model" in capsys.readouterr().err


def test_export_says_why_it_was_chosen(
    shipping: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network need not be exported for it here: what the new card is to say is noted."""
    card = dataclasses.replace(model_folder.read_card(shipping), choice="phase two, on 12 scenes [by eye]")
    model_folder.write_card(shipping, card)
    said: list[str] = []
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_generator", lambda *_, **fields: said.append(fields["choice"]) or card
    )
    for words in ([], ["--choice", "phase one"], ["--choice", ""]):
        assert cli.main(["export", "tiny", "-o", "again", *words]) == 0
    assert said == [card.choice, "phase one", ""]
    capsys.readouterr()
    assert cli.main(["info", "tiny"]) == 0
    assert "chosen phase two, on 12 scenes [by eye]" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def clear(tmp_path: Path, photo: np.ndarray) -> Path:
    (tmp_path / "set" / "clear").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "set" / "clear" / "one.png")
    Image.fromarray(photo[:, ::-1]).save(tmp_path / "set" / "clear" / "two.png")
    return tmp_path / "set" / "clear"


@pytest.mark.parametrize("kind", ["haze", "rain"])
def test_synthesize_by_seed(kind: str, clear: Path, tmp_path: Path) -> None:
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert cli.main(["synthesize", kind, str(clear), "-o", str(tmp_path / out), "--seed", seed]) == 0
    made = {out: (tmp_path / out / "one.png").read_bytes() for out in "abc"}
    assert made["a"] == made["b"] != made["c"]
    assert made["a"] != (clear / "one.png").read_bytes()


def test_synthesize_takes_the_ranges_as_flags(clear: Path, tmp_path: Path) -> None:
    means = []
    for density in ("0.01", "5"):
        out = tmp_path / density
        words = ["--haze.density", density, density, "--haze.airlight", "1", "1", "--haze.noise", "0"]
        assert cli.main(["synthesize", "haze", str(clear / "one.png"), "-o", str(out), *words]) == 0
        means.append(np.asarray(Image.open(out / "one.png")).mean())
    assert means[1] > means[0] + 30


def test_synthesize_counts_what_fails(clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clear / "three.jpg").write_text("not a photo")
    assert cli.main(["synthesize", "haze", str(clear), "-o", str(tmp_path / "out")]) == 1
    assert "three.jpg" in capsys.readouterr().err
    assert (tmp_path / "out" / "two.png").exists()
    assert cli.main(["synthesize", "snow", str(clear), "-o", "x"]) == 2
    assert cli.main(["synthesize", "haze", "-o", "x"]) == 2


def test_evaluate_prints_a_table_and_writes_scores(
    shipping: Path, clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["synthesize", "haze", str(clear), "-o", str(clear.parent / "hazy")]) == 0
    capsys.readouterr()
    out = tmp_path / "report"
    assert cli.main(["evaluate", "--model", "tiny", "--data", str(clear.parent), "--out", str(out)]) == 0
    assert "set" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["sets"][0]["n"] == 2
    assert (out / "set.jpg").exists()
    assert cli.main(["evaluate", "--model", "tiny", "--data", str(clear.parent), "--protocol", "rbg"]) == 1
    assert "did you mean 'rgb'" in capsys.readouterr().err


def test_evaluate_clear_photos_against_themselves(
    shipping: Path, clear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--model", "tiny", "--data", str(clear), "--clear-only"]) == 0
    assert "clear" in capsys.readouterr().out


def test_scores_go_onto_the_card(shipping: Path, clear: Path) -> None:
    for _ in range(2):  # the second time they take the place of the first
        assert cli.main(["evaluate", "--model", "tiny", "--data", str(clear), "--clear-only", "--card"]) == 0
    scores = model_folder.read_card(shipping).scores
    assert [(score["data"], score["metric"]) for score in scores] == [
        ("fogville", "psnr"),
        ("clear", "psnr"),
        ("clear", "ssim"),
    ]
    assert scores[1]["n"] == 2
    assert "input" not in scores[1]


def test_synthesize_where_nothing_can_be_written(
    clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["synthesize", "haze", str(clear), "-o", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'file'}: cannot be made" in said
    assert "Traceback" not in said


def test_info_tells_of_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "weather"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("restore --weather auto", "research data", "held_back = 0.15", "checksums are right"):
        assert words in said
    assert "scenes held back seen: none seen: haze seen: rain seen: both" in said
    assert "on_held_back_scenes" not in said
