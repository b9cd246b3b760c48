"""A model folder is read strictly: whatever is wrong with it is a BadCard that names the file and says what to do."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fairweather import model_folder
from fairweather.errors import BadCard, BadFolder, UnknownName

CARD = model_folder.Card(
    name="thin-haze",
    weather="haze",
    generator="unet",
    arguments={"levels": 3},
    output="image",
    multiple_of=8,
    receptive_field=60,
    maps=None,
    training={"recipe": "pix2pix", "steps": 10},
    scores=[{"metric": "psnr", "protocol": "rgb", "data": "sots_indoor", "n": 14, "value": 21.5, "input": 11.0}],
    licence="MIT",
    terms="non-commercial research",
    bytes_per_pixel=120.5,
    description="a model für tests",
)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4)}, folder / "weights.safetensors")
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 4)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model_folder.write_card(fill(tmp_path / "model"), CARD)
    return tmp_path / "model"


def change(folder: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "card.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    how(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    card = model_folder.read_card(folder)
    assert dataclasses.replace(card, checksums={}) == CARD
    assert set(card.checksums) == {"weights.safetensors", "model.onnx"}
    assert model_folder.write_card(folder, card) == card
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx", "weights.safetensors"]


def test_a_maps_card_goes_round(tmp_path: Path) -> None:
    spec = model_folder.MapsSpec(size=256, radius=2, eps=1e-3)
    maps = dataclasses.replace(CARD, generator="scattering_maps", output="maps", receptive_field=None, maps=spec)
    model_folder.write_card(fill(tmp_path), maps)
    assert model_folder.read_card(tmp_path).maps == spec
    change(tmp_path, lambda fields: fields["maps"].update(sigma=1))
    with pytest.raises(BadCard, match=r"card\.json.*maps\.sigma"):
        model_folder.read_card(tmp_path)


def test_which_way_a_model_goes(folder: Path) -> None:
    assert "direction" not in json.loads((folder / "card.json").read_text()), "restorers are written as ever"
    assert model_folder.read_card(folder).direction == "restore"
    degrades = dataclasses.replace(CARD, direction="degrade")
    model_folder.write_card(folder, degrades)
    assert json.loads((folder / "card.json").read_text())["direction"] == "degrade"
    assert model_folder.read_card(folder).direction == "degrade"
    change(folder, lambda fields: fields.update(direction="restore"))  # said aloud: the same as not said
    assert model_folder.read_card(folder).direction == "restore"


def test_why_it_was_chosen(folder: Path) -> None:
    """An older card does not say, and is read as ever; what is not said is not written."""
    assert "choice" not in json.loads((folder / "card.json").read_text())
    assert model_folder.read_card(folder).choice == ""
    model_folder.write_card(folder, dataclasses.replace(CARD, choice="phase two: sharper on 12 scenes"))
    assert json.loads((folder / "card.json").read_text())["choice"] == "phase two: sharper on 12 scenes"
    assert model_folder.read_card(folder).choice == "phase two: sharper on 12 scenes"
    change(folder, lambda fields: fields.update(choice=3))
    with pytest.raises(BadCard, match=r"card\.json.*choice"):
        model_folder.read_card(folder)


def test_a_quantized_model_says_so(folder: Path) -> None:
    """An older card does not, and is read as ever; the file and what is said of it belong together."""
    assert "quantized" not in json.loads((folder / "card.json").read_text())
    assert model_folder.read_card(folder).quantized is None
    said = {"method": "static", "passed": True, "float_layers": {"stem": "alone 27 dB"}}
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is missing"):
        model_folder.write_card(folder, dataclasses.replace(CARD, quantized=said))
    (folder / "model.int8.onnx").write_bytes(b"small")
    card = model_folder.write_card(folder, dataclasses.replace(CARD, quantized=said))
    assert set(card.checksums) == {*model_folder.SUMMED, model_folder.INT8}
    assert model_folder.read_card(folder).quantized == said
    (folder / "model.int8.onnx").write_bytes(b"smull")
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is not the file"):
        model_folder.read_card(folder)
    change(folder, lambda fields: fields["checksums"].pop("model.int8.onnx"))
    with pytest.raises(BadCard, match="belong together"):
        model_folder.read_card(folder)
    change(folder, lambda fields: fields.update(quantized={"method": "static"}))
    with pytest.raises(BadCard, match=r"card\.json.*quantized"):
        model_folder.read_card(folder)


def test_weights_are_read_as_they_were_saved(folder: Path) -> None:
    weights = model_folder.read_weights(folder)
    assert list(weights) == ["layer.weight"]
    assert (weights["layer.weight"] == np.arange(12).reshape(3, 4)).all()


WRONG = {
    "lacks the field": lambda fields: fields.pop("licence"),
    "lacks the field description, format_version": lambda fields: (
        fields.pop("format_version"),
        fields.pop("description"),
    ),
    "unknown field colour": lambda fields: fields.update(colour="blue"),
    "format version 2": lambda fields: fields.update(format_version=2),
    "format version '1'": lambda fields: fields.update(format_version="1"),
    "generator 'vnet'": lambda fields: fields.update(generator="vnet"),
    "field name must be": lambda fields: fields.update(name="../elsewhere"),
    "field weather must be": lambda fields: fields.update(weather=3),
    "field arguments must be": lambda fields: fields.update(arguments=[]),
    "field output must be": lambda fields: fields.update(output="video"),
    "field multiple_of must be": lambda fields: fields.update(multiple_of=True),
    "field receptive_field must be": lambda fields: fields.update(receptive_field=0),
    'field "maps" belongs': lambda fields: fields.update(output="maps"),
    "field direction must be": lambda fields: fields.update(direction="sideways"),
    "field picture_range must be": lambda fields: fields.update(picture_range=[-1, 1]),
    "field bytes_per_pixel must be": lambda fields: fields.update(bytes_per_pixel=-1),
    "field scores must be": lambda fields: fields["scores"][0].pop("protocol"),
    "field terms must be": lambda fields: fields.update(terms=None),
    "field training must be": lambda fields: fields.update(training=None),
    "field checksums must be": lambda fields: fields["checksums"].pop("model.onnx"),
    "weights.safetensors is not the file": lambda fields: fields["checksums"].update({"weights.safetensors": "0" * 64}),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_field_is_named(folder: Path, words: str) -> None:
    change(folder, WRONG[words])
    with pytest.raises(BadCard) as caught:
        model_folder.read_card(folder)
    message = str(caught.value)
    assert words in message
    assert str(folder) in message
    assert any(remedy in message for remedy in ("export the model again", "install the release"))


def test_every_single_field_is_needed(folder: Path) -> None:
    text = (folder / "card.json").read_text(encoding="utf-8")
    for key in json.loads(text):
        change(folder, lambda fields, key=key: fields.pop(key))
        with pytest.raises(BadCard, match=rf"lacks the field {key}:"):
            model_folder.read_card(folder)
        (folder / "card.json").write_text(text, encoding="utf-8")
    model_folder.read_card(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"name": "a", "name": "b"}', '{"name": NaN}', "[" * 100_000, "\xff\xfe"],
    ids=["empty", "cut", "list", "null", "twice", "nan", "deep", "binary"],
)
def test_a_card_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCard, match=r"card\.json"):
        model_folder.read_card(folder)


def test_a_number_too_large_for_a_float_is_refused(folder: Path) -> None:
    change(folder, lambda fields: fields.update(bytes_per_pixel=10**400))
    with pytest.raises(BadCard, match="bytes_per_pixel"):
        model_folder.read_card(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_one_changed_byte_is_found_wherever_it_is(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BadCard, match=rf"{name} is not the file that card\.json describes"):
            model_folder.read_card(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(BadCard, match="not copied whole"):
        model_folder.read_card(folder)
    path.write_bytes(whole)
    model_folder.read_card(folder)


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors", "model.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadCard, match=rf"{name} is missing.*copy"):
        model_folder.read_card(folder)


def test_reading_weights_compares_them_too(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BadCard, match=r"weights\.safetensors is not the file"):
        model_folder.read_weights(folder)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    """A pickle in the weights' place, with a checksum that fits, is refused and does not run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    model_folder.write_card(folder, CARD)
    with pytest.raises(BadCard, match="not a safetensors file"):
        model_folder.read_weights(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    save_file({"layer.weight": np.array([1, np.nan], np.float32)}, folder / "weights.safetensors")
    model_folder.write_card(folder, CARD)
    with pytest.raises(BadCard, match=r"layer\.weight.*NaN"):
        model_folder.read_weights(folder)


def test_a_card_that_could_not_be_read_back_is_not_written(folder: Path) -> None:
    before = (folder / "card.json").read_bytes()
    for wrong in ({"arguments": {"norm": object()}}, {"terms": None}, {"bytes_per_pixel": float("nan")}):
        with pytest.raises(BadCard, match=r"card\.json"):
            model_folder.write_card(folder, dataclasses.replace(CARD, **wrong))
    assert (folder / "card.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


def test_finding_a_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "MODELS", tmp_path / "models")
    model_folder.write_card(fill(tmp_path / "models" / "dehaze"), CARD)
    (tmp_path / "models" / "empty").mkdir()
    assert model_folder.shipped() == {"dehaze": tmp_path / "models" / "dehaze"}
    assert model_folder.find("dehaze") == tmp_path / "models" / "dehaze"
    assert model_folder.find(folder) == folder
    assert model_folder.find(folder.parent) == folder, "a run folder holds its model in model/"
    with pytest.raises(UnknownName, match="did you mean 'dehaze'"):
        model_folder.find("dehase")
    with pytest.raises(BadFolder, match="no model"):
        model_folder.find(tmp_path / "models" / "empty")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(BadFolder, match=r"not ended.*--resume"):
        model_folder.find(tmp_path / "run")
    with pytest.raises(BadFolder, match="not a model folder"):
        model_folder.find(tmp_path / "nowhere")
    with pytest.raises(BadFolder, match="not a folder"):
        model_folder.read_card(tmp_path / "nowhere")
