"""`fairweather export RUN --direction degrade`, and what a model that degrades does in the other verbs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images, model_folder
from fairweather.training import trainer
from tests.training.toy import small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CycleGAN's run that was stopped before its end."""
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


def test_a_run_that_has_not_ended(
    run: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["restore", "x.jpg", "--model", str(run)]) == 1
    assert f"fairweather export {run} -o DIR" in capsys.readouterr().err
    made = []

    def export(network: object, folder: Path, **said: object) -> model_folder.Card:
        made.append((folder, said["direction"], said["name"]))
        return model_folder.read_card(tiny_model)

    monkeypatch.setattr("fairweather.deploy.onnx_export.export_generator", export)
    assert cli.main(["export", str(run), "-o", "out"]) == 0
    said = capsys.readouterr()
    assert "fairweather restore PHOTO --model out" in said.out
    assert "after step 3 (restore)" in said.err
    assert made == [(Path("out"), "restore", "cyc")]


def test_the_card_says_which_way(degrader: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_folder.read_card(degrader)
    assert (card.name, card.direction, card.weather) == ("cyc-degrade", "degrade", "haze")
    assert not any(key.startswith("batch_norm") for key in card.training), "it has none"
    assert cli.main(["info", str(degrader)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "cyc-degrade, puts haze into clear photos" in page
    assert "direction degrade" in page


def test_restore_and_synthesize_put_weather_in(degrader: Path, clear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "clear", "--model", str(degrader)]) == 0
    assert "1 of 1 photos given haze" in capsys.readouterr().out
    first = images.read(clear.parent / "degraded" / "one.png").pixels
    assert first.shape == images.read(clear / "one.png").pixels.shape
    assert np.abs(first.astype(int) - images.read(clear / "one.png").pixels).mean() > 1
    assert cli.main(["synthesize", "haze", "clear", "-o", "set/hazy", "--model", str(degrader)]) == 0
    assert "1 photos with haze: set/hazy" in capsys.readouterr().out
    assert (images.read(clear.parent / "set" / "hazy" / "one.png").pixels == first).all()


def test_what_does_not_go_together(
    degrader: Path, tiny_model: Path, clear: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert cli.main([*map(str, words)]) == 1
        assert not (clear.parent / "out").exists()
        return capsys.readouterr().err

    assert "rain is to be put in" in refused("synthesize", "rain", "clear", "-o", "out", "--model", degrader)
    assert "takes out haze" in refused("synthesize", "haze", "clear", "-o", "out", "--model", tiny_model)
    assert "leave out --seed" in refused("synthesize", "haze", "clear", "-o", "out", "--model", degrader, "--seed", 3)
    assert "leave out" in refused("synthesize", "haze", "clear", "-o", "out", "--model", degrader, "--haze.noise", "0")
    assert "degrades photos" in refused("evaluate", "--data", "clear", "--themselves", "--model", degrader, "-o", "out")
    assert "give the run folder" in refused("export", tiny_model, "-o", "out", "--direction", "degrade")
    assert "goes one way (degrade)" in refused("export", degrader, "-o", "out", "--direction", "restore")


def test_a_degrader_is_exported_again_as_one(
    degrader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_model_folder", lambda model, *_, **__: model_folder.read_card(model)
    )
    for words in ([], ["--direction", "degrade"]):
        assert cli.main(["export", str(degrader), "-o", "again", *words]) == 0
        assert "fairweather synthesize haze PHOTOS -o OUT --model again" in capsys.readouterr().out
