"""`fairweather export`, and models that add weather in the other commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images, model_folder
from fairweather.training import trainer
from tests.training.toy import small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interrupted run of CycleGAN."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "export_model", lambda *_: None)
        return small_run("cyclegan", tmp_path_factory.mktemp("runs") / "cyc", steps=3).folder


@pytest.fixture(scope="module")
def degrader(run: Path) -> Path:
    out = run.parent / "hazer"
    assert cli.main(["export", str(run), "--direction", "degrade", "-o", str(out)]) == 0
    return out


@pytest.fixture
def clear(tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clear").mkdir()
    Image.fromarray(photo).save(tmp_path / "clear" / "one.png")
    return tmp_path / "clear"


def test_a_model_is_exported_again(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "again"
    assert cli.main(["export", str(tiny_model), "-o", str(out)]) == 0
    assert (out / "weights.safetensors").read_bytes() == (tiny_model / "weights.safetensors").read_bytes()
    assert f"fairweather restore PHOTO --model {out}" in capsys.readouterr().out
    assert cli.main(["export", str(tiny_model), "-o", str(tmp_path)]) == 1
    assert "nor a model folder" in capsys.readouterr().err


def test_choice_is_kept_or_replaced(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copytree(tiny_model, tmp_path / "chosen")
    card = model_folder.write_card(folder, dataclasses.replace(model_folder.read_card(folder), choice="of two"))
    choices: list[str] = []
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_generator", lambda *_, **fields: choices.append(fields["choice"]) or card
    )
    for arguments in ([], ["--choice", "of three"], ["--choice", ""]):
        assert cli.main(["export", str(folder), "-o", "again", *arguments]) == 0
    assert choices == ["of two", "of three", ""]


def test_an_unfinished_run(
    run: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["restore", "x.jpg", "--model", str(run)]) == 1
    assert f"fairweather export {run} -o DIR" in capsys.readouterr().err
    exports = []

    def export(network: object, folder: Path, **fields: object) -> model_folder.Card:
        exports.append((folder, fields["direction"], fields["name"]))
        return model_folder.read_card(tiny_model)

    monkeypatch.setattr("fairweather.deploy.onnx_export.export_generator", export)
    assert cli.main(["export", str(run), "-o", "out"]) == 0
    assert "fairweather restore PHOTO --model out" in capsys.readouterr().out
    assert exports == [(Path("out"), "restore", "cyc")]


def test_the_card_of_a_degrader(degrader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_folder.read_card(degrader)
    assert (card.name, card.direction, card.weather) == ("cyc-degrade", "degrade", "haze")
    assert not any(key.startswith("batch_norm") for key in card.training), "it has none"
    assert cli.main(["info", str(degrader)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "cyc-degrade, adds haze direction degrade" in page


def test_restore_and_synthesize_add_weather(degrader: Path, clear: Path) -> None:
    assert cli.main(["restore", "clear", "--model", str(degrader)]) == 0
    first = images.read(clear.parent / "degraded" / "one.png").pixels
    assert np.abs(first.astype(int) - images.read(clear / "one.png").pixels).mean() > 1
    assert cli.main(["synthesize", "haze", "clear", "-o", "set/hazy", "--model", str(degrader)]) == 0
    assert (images.read(clear.parent / "set" / "hazy" / "one.png").pixels == first).all()


def test_conflicting_options(
    degrader: Path, tiny_model: Path, clear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rejected(*arguments: object) -> str:
        assert cli.main([*map(str, arguments)]) == 1
        assert not (clear.parent / "out").exists()
        return capsys.readouterr().err

    synthesize = ("synthesize", "haze", "clear", "-o", "out", "--model")
    assert "--direction degrade" in rejected("synthesize", "rain", "clear", "-o", "out", "--model", degrader)
    assert "--direction degrade" in rejected(*synthesize, tiny_model)
    assert "--seed" in rejected(*synthesize, degrader, "--seed", 3)
    assert "--model" in rejected(*synthesize, degrader, "--haze.noise", "0")
    assert "degrade" in rejected("evaluate", "--data", "clear", "--clear-only", "--model", degrader, "-o", "out")
    assert "give the run folder" in rejected("export", tiny_model, "-o", "out", "--direction", "degrade")
    assert "one direction, degrade" in rejected("export", degrader, "-o", "out", "--direction", "restore")


def test_a_degrader_is_exported_again(
    degrader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_model_folder", lambda model, *_, **__: model_folder.read_card(model)
    )
    for arguments in ([], ["--direction", "degrade"]):
        assert cli.main(["export", str(degrader), "-o", "again", *arguments]) == 0
        assert "fairweather synthesize haze PHOTOS -o OUT --model again" in capsys.readouterr().out
