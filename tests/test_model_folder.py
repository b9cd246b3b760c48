"""Model folders are read strictly: a wrong one raises BadCard with the file, the field and the fix."""

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
MAPS = dataclasses.replace(
    CARD,
    generator="scattering_maps",
    output="maps",
    receptive_field=None,
    maps=model_folder.MapsSpec(size=256, radius=2, eps=1e-3),
)
QUANTIZED = {
    "method": "static",
    "passed": True,
    "layers": 9,
    "float_layers": {"stem": "first layer"},
    "data": "photos",
    "parity": {"openvino int8": {"psnr": 44.0, "worst": 0.1, "change": None, "photos": 3}},
    "cost": {
        "engine": "openvino",
        "photo": "64 x 64",
        "ms": {"f32": 2.0, "int8": 1.0},
        "megabytes": {"model.onnx": 4.0, "model.int8.onnx": 1.0},
    },
}


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


def test_a_written_card_is_read_back(folder: Path) -> None:
    card = model_folder.read_card(folder)
    assert dataclasses.replace(card, checksums={}) == CARD
    assert set(card.checksums) == {"weights.safetensors", "model.onnx"}
    assert model_folder.write_card(folder, card) == card
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx", "weights.safetensors"]
    weights = model_folder.read_weights(folder)
    assert list(weights) == ["layer.weight"]
    assert (weights["layer.weight"] == np.arange(12).reshape(3, 4)).all()


@pytest.mark.parametrize(
    ("field", "default", "value"),
    [
        ("direction", "restore", "degrade"),
        ("choice", "", "sharper on 12 scenes"),
        ("most_pixels", 0, 2_000_000),
        ("state", None, model_folder.StateSpec(channels=12, stride=4)),
        ("quantized", None, QUANTIZED),
    ],
)
def test_optional_fields_are_written_if_set(folder: Path, field: str, default: Any, value: Any) -> None:
    assert field not in json.loads((folder / "card.json").read_text())
    assert getattr(model_folder.read_card(folder), field) == default
    (folder / "model.int8.onnx").write_bytes(b"small")
    model_folder.write_card(folder, dataclasses.replace(CARD, **{field: value}))
    assert field in json.loads((folder / "card.json").read_text())
    assert getattr(model_folder.read_card(folder), field) == value


def test_unprintable_characters_are_written_as_escapes(folder: Path) -> None:
    """File names may have them, and a finished training must not fail for that."""
    training = {"data": "/photos/caf\udce9", "\x1b[1m": ["a\x07b"]}
    card = model_folder.write_card(folder, dataclasses.replace(CARD, training=training, terms="two\nlines\tof text"))
    assert card.training == {"data": "/photos/caf\\udce9", "\\x1b[1m": ["a\\x07b"]}
    assert model_folder.read_card(folder) == card
    assert card.terms == "two\nlines\tof text"


def test_a_quantized_model_needs_its_file(folder: Path) -> None:
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is missing"):
        model_folder.write_card(folder, dataclasses.replace(CARD, quantized=QUANTIZED))
    (folder / "model.int8.onnx").write_bytes(b"small")
    model_folder.write_card(folder, dataclasses.replace(CARD, quantized=QUANTIZED))
    (folder / "model.int8.onnx").write_bytes(b"smull")
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is not the file"):
        model_folder.read_card(folder)
    change(folder, lambda fields: fields["checksums"].pop("model.int8.onnx"))
    with pytest.raises(BadCard, match="require each other"):
        model_folder.read_card(folder)
    change(folder, lambda fields: fields["quantized"].pop("cost"))
    with pytest.raises(BadCard, match=r"card\.json.*quantized must be"):
        model_folder.read_card(folder)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lacks the field description, format_version": lambda card: (card.pop("format_version"), card.pop("description")),
    "unknown field colour": lambda card: card.update(colour="blue"),
    "format version 2": lambda card: card.update(format_version=2),
    "format version '1'": lambda card: card.update(format_version="1"),
    "generator 'vnet'": lambda card: card.update(generator="vnet"),
    "field generator must be": lambda card: card.update(generator=[1]),
    "field name must be": lambda card: card.update(name="../elsewhere"),
    "field weather must be": lambda card: card.update(weather=3),
    "field arguments must be": lambda card: card.update(arguments=[]),
    "field output must be": lambda card: card.update(output="video"),
    "field multiple_of must be": lambda card: card.update(multiple_of=True),
    "field multiple_of must be a whole number from 1 to 4096": lambda card: card.update(multiple_of=10**9),
    "field receptive_field must be": lambda card: card.update(receptive_field=0),
    'field "maps" is required': lambda card: card.update(output="image"),
    "unknown field maps.sigma": lambda card: card["maps"].update(sigma=1),
    "field maps.radius must be a whole number from 0 to 256": lambda card: card["maps"].update(radius=1_000_000_000),
    "field maps.size must be": lambda card: card["maps"].update(size=1e3),
    "field maps.eps must be": lambda card: card["maps"].update(eps=0),
    "field state.channels must be": lambda card: card.update(state={"channels": 10**6, "stride": 4}),
    "state.stride must divide": lambda card: card.update(state={"channels": 1, "stride": 3}),
    "field direction must be": lambda card: card.update(direction="sideways"),
    "field choice must be": lambda card: card.update(choice=3),
    "field picture_range must be": lambda card: card.update(picture_range=[-1, 1]),
    "field bytes_per_pixel must be": lambda card: card.update(bytes_per_pixel=-1),
    "field most_pixels must be": lambda card: card.update(most_pixels=10**18),
    "field scores must be": lambda card: card["scores"][0].pop("protocol"),
    "field terms must be": lambda card: card.update(terms=None),
    "field training must be": lambda card: card.update(training=None),
    "field checksums must be": lambda card: card["checksums"].pop("model.onnx"),
    "weights.safetensors is not the file": lambda card: card["checksums"].update({"weights.safetensors": "0" * 64}),
    "below 2^63, unlike bytes_per_pixel": lambda card: card.update(bytes_per_pixel=10**400),
    "below 2^63, unlike training.lr": lambda card: card["training"].update(lr=-(2**63)),
    r"'\ud800' is not allowed in licence": lambda card: card.update(licence="MIT \ud800"),
    r"'\x1b' is not allowed in description": lambda card: card.update(description="\x1b]0;title\x07"),
    r"'\x9b' is not allowed in training.data.0": lambda card: card["training"].update(data=["\x9b1m"]),
    r"'\u202e' is not allowed": lambda card: card["arguments"].update({"\u202elevels": 3}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_field_is_named(tmp_path: Path, message: str) -> None:
    folder = fill(tmp_path / "model")
    model_folder.write_card(folder, MAPS)
    change(folder, WRONG[message])
    with pytest.raises(BadCard) as caught:
        model_folder.read_card(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("export the model again", "install the release"))
    str(caught.value).encode()


def test_every_field_is_required(folder: Path) -> None:
    text = (folder / "card.json").read_text(encoding="utf-8")
    for key in json.loads(text):
        change(folder, lambda fields, key=key: fields.pop(key))
        with pytest.raises(BadCard, match=rf"lacks the field {key}:"):
            model_folder.read_card(folder)
        (folder / "card.json").write_text(text, encoding="utf-8")
    model_folder.read_card(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", '{"name": "a", "name": "b"}', '{"name": NaN}', '{"name": 1e999}'),
        *("[" * 100_000, '{"training": ' + "[" * 100 + "]" * 100 + "}", '{"n": ' + "9" * 5000 + "}", "\xff\xfe"),
    ],
    ids=["empty", "cut", "list", "null", "number", "twice", "nan", "infinite", "deep", "nested", "digits", "binary"],
)
def test_a_card_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCard, match=r"card\.json"):
        model_folder.read_card(folder)


@pytest.mark.parametrize("text", ['{"side": ' + "9" * 400 + "}", "[" * 100_000, '{"name": "\\u001b[2J"}'])
def test_the_weather_detector_s_card_is_read_strictly_too(tmp_path: Path, text: str) -> None:
    from fairweather.inference.weather_detection import DETECTOR_CARD, read_detector_card

    (tmp_path / DETECTOR_CARD).write_text(text)
    with pytest.raises(BadCard, match="not valid JSON"):
        read_detector_card(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BadCard, match=rf"{name} is not the file that card\.json describes"):
            model_folder.read_card(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(BadCard, match="copy is incomplete"):
        model_folder.read_weights(folder) if name == "weights.safetensors" else model_folder.read_card(folder)


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors", "model.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadCard, match=rf"{name} is missing.*copy"):
        model_folder.read_card(folder)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    model_folder.write_card(folder, CARD)
    with pytest.raises(BadCard, match="not a safetensors file"):
        model_folder.read_weights(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_must_be_finite(folder: Path) -> None:
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
    assert model_folder.find(folder.parent) == folder, "model/ of a run folder"
    with pytest.raises(UnknownName, match="did you mean 'dehaze'"):
        model_folder.find("dehase")
    with pytest.raises(BadFolder, match="no model"):
        model_folder.find(tmp_path / "models" / "empty")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(BadFolder, match=r"unfinished.*--resume"):
        model_folder.find(tmp_path / "run")
    with pytest.raises(BadFolder, match="not a model folder"):
        model_folder.find(tmp_path / "nowhere")
    with pytest.raises(BadFolder, match="not a folder"):
        model_folder.read_card(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["dehaze", "dehaze-fast", "derain", "derain-fast"])
def test_shipped_networks_are_valid_onnx(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    for file in (model_folder.ONNX, model_folder.INT8):
        onnx.checker.check_model(model_folder.find(name) / file, full_check=True)
