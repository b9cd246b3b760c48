"""Initial weights: a second phase of training, or fine-tuning of a model."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairweather import model_folder
from fairweather.errors import BadCard, BadFolder, BadSettings, UnknownName
from fairweather.generators import GENERATORS
from fairweather.training import checkpoint, trainer
from fairweather.training.config import NamedArguments
from fairweather.training.export_run import export_run
from fairweather.training.initial_weights import InitialWeights, read_initial_weights
from tests.training.test_loop import interrupt_at
from tests.training.toy import assert_same_state, no_export, small_run

UNET = {"levels": 2, "width": 4, "dropout": 0.0}
STILL = {"lr": 0.0, "ema": 0.9}
"""Settings by which a run ends with the weights that it began with."""


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    no_export(monkeypatch)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a first phase; its moving average is not its last weights."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "export_model", lambda *_: None)
        out = tmp_path_factory.mktemp("runs") / "first"
        return small_run("supervised", out, steps=3, settings={"lr": 1e-2, "ema": 0.5}, generator_arguments=UNET).folder


def engine_of(run: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(run / "checkpoints")["engine"]


def learned(weights: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Parameters without batch norm statistics, which change at any learning rate."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if "running" not in name and "num_" not in name}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 3
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_starts_with_what_the_other_run_exports(first: Path, tmp_path: Path) -> None:
    run = small_run("supervised", tmp_path / "second", steps=1, start=first, settings=STILL, generator_arguments=UNET)
    before, after = engine_of(first), engine_of(run.folder)
    assert_same(learned(after["recipe"], "restore."), learned(before["ema"]["weights"]))
    assert not torch.equal(
        after["recipe"]["restore.encoder.0.0.weight"], before["recipe"]["restore.encoder.0.0.weight"]
    )
    assert_same(learned(after["ema"]["weights"]), learned(before["ema"]["weights"]))
    record = run.settings()
    assert record["settings"]["run"]["start"] == str(first)
    told = record["start"]
    assert (told["name"], told["steps"], told["recipe"], told["terms"]) == ("first", 3, "supervised", "not stated")
    assert told["data"]["hold_back"] == 0.0


def test_a_model_brings_its_generator(tiny_model: Path, tmp_path: Path) -> None:
    """None is named, so that it is the model's, with its arguments, not the recipe's."""
    own = {"generator": None, "generator_arguments": None, "settings": STILL}
    run = small_run("supervised", tmp_path / "run", steps=1, start=tiny_model, **own)
    assert (
        run.settings()["settings"]["generator"] | {"levels": 2, "width": 4} == run.settings()["settings"]["generator"]
    )
    weights = {name: torch.from_numpy(value) for name, value in model_folder.read_weights(tiny_model).items()}
    assert_same(learned(engine_of(run.folder)["recipe"], "restore."), learned(weights))
    told = run.settings()["start"]
    card = model_folder.read_card(tiny_model)
    assert (told["name"], told["terms"]) == ("tiny", "made of random numbers")
    assert told["weights"] == card.checksums["weights.safetensors"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator_arguments": {"width": 8}}, r"width=4, but generator\.width is 8"),
        ({"generator": "resnet6", "generator_arguments": {"width": 4}}, "is a unet, but generator.name is 'resnet6'"),
        ({"generator": None, "generator_arguments": {"levels": 3}}, r"levels=2, but generator\.levels is 3"),
    ],
)
def test_another_generator_is_refused(change: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=words):
        small_run("supervised", tmp_path / "run", steps=1, start=tiny_model, **change)
    assert not (tmp_path / "run").exists()


def test_what_no_weight_depends_on_may_differ() -> None:
    """Another `size` is valid, other widths are not."""
    trained = InitialWeights("model", NamedArguments("scattering_maps", {"size": 256, "widths": [8, 8, 8, 8]}), {}, {})
    trained.check(NamedArguments("scattering_maps", {"size": 192, "widths": (8, 8, 8, 8)}))
    with pytest.raises(BadSettings, match=r"widths=\[8, 8, 8, 8\], but generator\.widths"):
        trained.check(NamedArguments("scattering_maps", {"size": 192, "widths": (8, 8, 8, 16)}))


def test_invalid_initial_weights_are_named(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="dehase"):
        read_initial_weights("dehase")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFolder, match="no model"):
        read_initial_weights(str(tmp_path / "empty"))
    hazer = shutil.copytree(tiny_model, tmp_path / "hazer")
    model_folder.write_card(hazer, dataclasses.replace(model_folder.read_card(hazer), direction="degrade"))
    with pytest.raises(BadSettings, match="adds haze to photos"):
        read_initial_weights(str(hazer))
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadCard, match=r"weights\.safetensors"):
        read_initial_weights(str(broken))
    other = dataclasses.replace(read_initial_weights(str(tiny_model)), weights={"one": torch.zeros(1)})
    with pytest.raises(BadCard, match="do not fit this release's unet"):
        other.load(torch.nn.Linear(1, 1))
    fresh = shutil.copytree(first, tmp_path / "fresh")
    saved = {key: value for key, value in checkpoint.load_checkpoint(fresh / "checkpoints").items() if key != "format"}
    shutil.rmtree(fresh / "checkpoints")
    checkpoint.save_checkpoint(fresh / "checkpoints", {**saved, "step": 0})
    with pytest.raises(BadFolder, match="has not taken a step"):
        read_initial_weights(str(fresh))


def test_a_run_that_was_thinned_out_or_has_ended_gives_its_model(first: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = shutil.copytree(first, tmp_path / "run")
    model = shutil.copytree(tiny_model, run / "model")
    card = model_folder.read_card(model)
    model_folder.write_card(model, dataclasses.replace(card, training={"steps": 3}))
    assert read_initial_weights(str(run)).training["name"] == "tiny"
    model_folder.write_card(model, dataclasses.replace(card, training={"steps": 2}))
    assert read_initial_weights(str(run)).training["name"] == "run", "it was gone on with: the checkpoint is newer"
    shutil.rmtree(run / "checkpoints")
    assert read_initial_weights(str(run)).training["name"] == "tiny"


def test_the_second_phase_goes_on_exactly_without_its_start(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted during the adversarial ramp; the initial weights have been removed by then."""
    start = shutil.copytree(first, tmp_path / "first")
    phase = {
        "steps": 6,
        "settings": {"lr": 1e-3, "ema": 0.9, "adversarial": 0.1, "discriminator_warmup": 2, "width": 4},
        "generator_arguments": UNET,
    }
    whole = small_run("supervised", tmp_path / "whole", start=start, **phase)
    interrupt_at(3, "supervised", tmp_path / "part", start=start, **phase)
    shutil.rmtree(start)
    with caplog.at_level(logging.WARNING, "fairweather"):
        resumed = small_run("supervised", tmp_path / "part", start=start, resume=True, **phase)
    assert not caplog.text
    assert_same_state(
        checkpoint.load_checkpoint(whole.folder / "checkpoints"),
        checkpoint.load_checkpoint(resumed.folder / "checkpoints"),
    )
    assert ["adversarial" in line for line in resumed.stats()] == [False, False, True, True, True, True]
    assert resumed.settings()["start"] == whole.settings()["start"]
    with caplog.at_level(logging.WARNING, "fairweather"):
        small_run("supervised", tmp_path / "part", start="elsewhere", resume=True, **phase)
    assert "run.start (the arguments) is ignored: the run started from" in caplog.text
    assert resumed.settings()["settings"]["run"]["start"] == str(start)


def test_the_card_tells_the_whole_story(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SimpleNamespace] = []
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.export_generator",
        lambda *_, **said: made.append(SimpleNamespace(**said)) or made[-1],
    )
    run = small_run("supervised", tmp_path / "second", steps=1, start=first, generator_arguments=UNET)
    export_run(run.folder, tmp_path / "model", choice="the sharper one")
    training = made[-1].training
    assert made[-1].choice == "the sharper one"
    assert training["start"]["settings"]["ema"] == 0.5
    assert training["settings"]["ema"] == 0.9
    third = small_run("supervised", tmp_path / "third", steps=1, start=run.folder, generator_arguments=UNET)
    assert third.settings()["start"]["start"]["name"] == "first"
    assert json.dumps(training).count(str(tmp_path)) == 0, "a card travels"


def test_a_deeper_network_starts_with_a_shallower_ones_output(tmp_path: Path) -> None:
    shallow = {"shuffle": 2, "widths": [4, 8], "encoder": [1, 1], "decoder": [0]}
    first = small_run("supervised", tmp_path / "first", generator="conv_unet", generator_arguments=shallow).folder
    deep = {**shallow, "encoder": [1, 3], "decoder": [2]}
    start = read_initial_weights(str(first))
    start.check(NamedArguments("conv_unet", deep))
    little, large = (GENERATORS["conv_unet"](**arguments).eval() for arguments in (shallow, deep))
    start.load(little)
    start.load(large)
    photo = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(little(photo), large(photo))
        assert not torch.equal(little(photo), photo)
    # The blocks that were added learn at once: the second convolution from the first step, the first from the next.
    large.train()(photo).mean().backward()
    assert large.encoder[1][2].second.weight.grad.abs().max() > 0  # type: ignore[index,union-attr,operator]
    with pytest.raises(BadSettings, match=r"encoder=\[1, 1\]"):
        start.check(NamedArguments("conv_unet", {**shallow, "encoder": [0, 1]}))
    with pytest.raises(BadSettings, match="widths"):
        start.check(NamedArguments("conv_unet", {**deep, "widths": [4, 16]}))
