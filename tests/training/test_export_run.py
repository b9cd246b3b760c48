"""Model folders from checkpoints: weights, statistics, facts on the card."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fairweather.errors import BadFolder, BadSettings
from fairweather.training import checkpoint
from fairweather.training.export_run import export_run
from tests.training.toy import Toy, small_run

UNET = {"generator": "unet", "generator_arguments": {"levels": 2, "width": 4}}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What would be written as a model folder: the real export has tests of its own, and takes seconds."""
    calls: list[SimpleNamespace] = []

    def export(network: nn.Module, folder: Path, **said: Any) -> SimpleNamespace:
        calls.append(SimpleNamespace(network=network, folder=folder, **said))
        return calls[-1]

    monkeypatch.setattr("fairweather.deploy.onnx_export.export_generator", export)
    return calls


def saved(run: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(run / "checkpoints")["engine"]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters without statistics."""
    return {name: value for name, value in network.state_dict().items() if "running" not in name and "num_" not in name}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_checkpoint_exports_what_training_exports(tmp_path: Path, exports: list[SimpleNamespace]) -> None:
    run = small_run("supervised", tmp_path / "run", steps=4)
    state_of_recipe = saved(run.folder)["recipe"]
    export_run(run.folder, tmp_path / "model", dataset=Toy())
    ended, later = exports
    assert_same(ended.network.state_dict(), later.network.state_dict())  # the average, its batch norm measured anew
    assert not torch.equal(weights(later.network)["encoder.0.0.weight"], state_of_recipe["restore.encoder.0.0.weight"])
    assert not later.network.training
    assert (later.name, later.folder, later.direction) == ("run", tmp_path / "model", "restore")
    told, then = dict(later.training), dict(ended.training)
    assert told.pop("exported") == "from a checkpoint before the end of the run"
    assert told == then
    assert (told["steps"], told["recipe"]) == (4, "supervised")


def test_missing_photos_are_a_warning_and_on_the_card(
    tmp_path: Path, exports: list[SimpleNamespace], caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run("supervised", tmp_path / "run", steps=2)
    with caplog.at_level(logging.WARNING, "fairweather"):
        export_run(run.folder, tmp_path / "model")
    assert "batch norm keeps the running averages" in caplog.text
    assert "given in Python" in caplog.text
    assert_same(exports[-1].network.state_dict(), saved(run.folder)["ema"]["weights"])
    assert "not recalibrated" in exports[-1].training["batch_norm"]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two folders of unpaired photos, one grey and bright, one coloured and dark."""
    rng = np.random.default_rng(2)
    for side, low, high in (("hazy", 150, 220), ("clear", 0, 160)):
        (tmp_path / side).mkdir()
        for at in range(3):
            photo = rng.integers(low, high, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(photo).save(tmp_path / side / f"{at}.png")
    return {"degraded": tmp_path / "hazy", "clear": tmp_path / "clear"}


def test_the_network_that_degrades(
    tmp_path: Path, folders: dict[str, Path], exports: list[SimpleNamespace], caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run("cyclegan", tmp_path / "run", data=None, steps=2, **folders, **UNET).folder
    with caplog.at_level(logging.WARNING, "fairweather"):
        export_run(run, tmp_path / "model", direction="degrade")
    made, recipe = exports[-1], saved(run)["recipe"]
    degrade = {name.removeprefix("degrade."): value for name, value in recipe.items() if name.startswith("degrade.")}
    assert_same(weights(made.network), {name: degrade[name] for name in weights(made.network)})
    assert not torch.equal(degrade["encoder.0.0.weight"], recipe["restore.encoder.0.0.weight"])
    assert (made.direction, made.name, made.weather) == ("degrade", "run-degrade", "haze")
    assert not caplog.text
    assert "batch_norm" not in made.training
    # Measured on what it will be shown: clear photos.
    first = next(name for name in degrade if name.endswith("running_mean"))
    anew = made.network.state_dict()[first]
    assert not torch.allclose(anew, degrade[first])
    shutil.rmtree(folders["degraded"])
    export_run(run, tmp_path / "model", direction="degrade")
    assert "hazy" in caplog.text
    assert torch.equal(exports[-1].network.state_dict()[first], degrade[first])


def test_recipes_without_degrade_name_those_with_it(tmp_path: Path, exports: list[SimpleNamespace]) -> None:
    run = small_run("pix2pix", tmp_path / "run", steps=1)
    with pytest.raises(BadSettings, match=r"pix2pix trains restore only; recipes that train degrade: cyclegan"):
        export_run(run.folder, tmp_path / "model", direction="degrade")
    assert len(exports) == 1


def test_a_run_that_has_ended_gives_its_model(
    tmp_path: Path, exports: list[SimpleNamespace], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[Path] = []
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_model_folder", lambda model, out, **_: again.append(model)
    )
    run = small_run("cyclegan", tmp_path / "run", steps=3).folder
    model = run / "model"
    shutil.copytree(tiny_model, model)
    card = json.loads((model / "card.json").read_text())

    def steps(number: int) -> None:
        (model / "card.json").write_text(json.dumps({**card, "training": {"steps": number}}))

    steps(3)
    export_run(run, tmp_path / "out")
    assert again == [model]
    export_run(run, tmp_path / "out", direction="degrade")
    assert exports[-1].direction == "degrade"
    assert "exported" not in exports[-1].training
    steps(2)  # it was resumed, to be longer
    export_run(run, tmp_path / "out")
    assert exports[-1].direction == "restore"
    assert exports[-1].training["steps"] == 3
    steps(3)
    shutil.rmtree(run / "checkpoints")  # a run that was thinned out
    export_run(run, tmp_path / "out")
    assert again == [model, model]
    with pytest.raises(BadFolder, match="checkpoint"):
        export_run(run, tmp_path / "out", direction="degrade")


def test_what_is_no_run_yet(tmp_path: Path, exports: list[SimpleNamespace]) -> None:
    with pytest.raises(BadFolder, match=r"run\.json"):
        export_run(tmp_path, tmp_path / "out")
    run = small_run("cyclegan", tmp_path / "run", steps=1).folder
    start = checkpoint.load_checkpoint(run / "checkpoints")
    shutil.rmtree(run / "checkpoints")
    checkpoint.save_checkpoint(
        run / "checkpoints", {**{key: value for key, value in start.items() if key != "format"}, "step": 0}
    )
    with pytest.raises(BadFolder, match="has not taken a step"):
        export_run(run, tmp_path / "out")
    record = json.loads((run / "run.json").read_text())
    checkpoint.save_checkpoint(run / "checkpoints", {key: value for key, value in start.items() if key != "format"})
    record["settings"]["recipe"]["magic"] = 3
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadSettings, match=r"run\.json.*magic"):
        export_run(run, tmp_path / "out")
    assert len(exports) == 1


def test_remarks_of_the_run_s_own_machine(tmp_path: Path, exports: list[SimpleNamespace]) -> None:
    run = small_run("cyclegan", tmp_path / "run", steps=1).folder
    record = json.loads((run / "run.json").read_text())
    assert record["notes"] == {}
    (run / "run.json").write_text(json.dumps({**record, "notes": {"perceptual": "theirs"}, "commit": "abc"}))
    export_run(run, tmp_path / "out")
    assert (exports[-1].training["perceptual"], exports[-1].training["commit"]) == ("theirs", "abc")
