"""An exported model is the generator, to 1e-4, or it is not there at all."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from torch import nn

from fairweather import cards
from fairweather.deploy import parity
from fairweather.deploy.export import bytes_per_pixel, export, reexport, write_onnx
from fairweather.errors import BadCard, BadFolder, BadSettings, ParityFailed
from fairweather.generators import GENERATORS
from fairweather.restoring import load
from fairweather.restoring.engines import rebuilt

SAID = {"name": "fresh", "weather": "haze", "licence": "MIT", "terms": "none", "training": {"steps": 3}}
RESNET: dict[str, Any] = {"width": 4, "blocks": 1}
PLAIN: dict[str, Any] = {"widths": [8, 8], "encoder": [1, 1], "decoder": [1]}


def lively(generator: nn.Module) -> nn.Module:
    """Weights with which the answer is no grey: fresh ones would hide differences."""
    torch.manual_seed(3)
    for value in generator.parameters():
        if value.dim() > 1:
            nn.init.normal_(value, std=1.5 / value[0].numel() ** 0.5)
    return generator


def pictures_of(card: cards.Card) -> list[np.ndarray]:
    return parity.pictures((), card)


def test_networks_with_global_statistics_export_too(tmp_path: Path) -> None:
    generator = lively(GENERATORS["resnet6"](**RESNET)).train()
    before = copy.deepcopy(generator.state_dict())
    draws = torch.get_rng_state()
    card = export(generator, tmp_path / "model", generator_name="resnet6", arguments=RESNET, **SAID)
    assert torch.equal(torch.get_rng_state(), draws), "a training that goes on must not notice"
    assert generator.training
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted((cards.CARD, *cards.SUMMED))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "model").stat().st_mode & 0o666}, "whoever may list the folder may load the model"
    assert card == cards.read_card(tmp_path / "model")
    assert card.maps is None
    agrees(generator, tmp_path / "model")


def test_a_network_of_maps_exports_too(narrow_model: Callable[[str], Path]) -> None:
    """That its export leaves the generator alone is seen where tests/narrow.py writes the folder."""
    folder = narrow_model("swift")
    assert cards.read_card(folder).maps is not None
    agrees(rebuilt(folder, cards.read_card(folder)), folder)


def agrees(generator: nn.Module, folder: Path) -> None:
    card = cards.read_card(folder)
    assert card.receptive_field is None
    assert card.bytes_per_pixel > 0
    results = parity.check(generator, folder, pictures_of(card))
    assert set(results) == {"onnxruntime", "openvino", "torch"}
    assert max(results.values()) <= 1e-4
    assert load(folder)(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


def test_the_folder_is_what_it_should_be(tiny_model: Path) -> None:
    card = cards.read_card(tiny_model)
    generator = rebuilt(tiny_model, card)
    assert (card.multiple_of, card.receptive_field, card.output) == (4, generator.receptive_field, "image")
    weights = load_file(tiny_model / cards.WEIGHTS)
    assert set(weights) == set(generator.state_dict())
    assert all(value.dtype == np.float32 for value in weights.values() if value.dtype.kind == "f")
    model = onnx.load(tiny_model / cards.ONNX, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    shape = [dim.dim_value or None for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, None, None]


def test_one_corrupted_weight_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    card = cards.read_card(tiny_model)
    generator = rebuilt(tiny_model, card)
    pictures = pictures_of(card)
    parity.check(generator, tiny_model, pictures)

    folder = copytree(tiny_model, tmp_path / "onnx")
    model = onnx.load(folder / cards.ONNX)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / cards.ONNX)
    cards.write_card(folder, card)
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ParityFailed, match=rf"{engine} differs.*by .*101 x 67 pixels"):
            parity.check(generator, folder, pictures, engines=[engine])
    parity.check(generator, folder, pictures, engines=["torch"])

    folder = copytree(tiny_model, tmp_path / "weights")
    weights = load_file(folder / cards.WEIGHTS)
    name = "encoder.0.0.weight"
    weights[name] = weights[name].copy()
    weights[name].flat[0] += 0.05
    save_file(weights, folder / cards.WEIGHTS)
    cards.write_card(folder, card)
    with pytest.raises(ParityFailed, match="torch differs"):
        parity.check(generator, folder, pictures)


def test_parity_wants_three_sizes_with_an_odd_one(tiny_model: Path) -> None:
    generator = rebuilt(tiny_model, cards.read_card(tiny_model))
    even = [np.zeros((side, 2 * side, 3), np.uint8) for side in (8, 10, 12)]
    for pictures in (even, [np.zeros((9, 7, 3), np.uint8)] * 3, []):
        with pytest.raises(BadSettings, match="three sizes"):
            parity.check(generator, tiny_model, pictures)


def test_photos_are_what_parity_is_asked_on(tiny_model: Path, photo: np.ndarray) -> None:
    card = cards.read_card(tiny_model)
    cut = parity.pictures([photo, photo[:30, :20]], card)
    assert [picture.shape[:2] for picture in cut] == [picture.shape[:2] for picture in pictures_of(card)]
    assert cut[0].dtype == np.uint8
    assert (cut[0] == photo[14:81, 13:114]).all(), "the middle of the first"
    assert (cut[1][:30, :20] == photo[:30, :20]).all()


def test_an_export_that_fails_leaves_what_was_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copytree(tiny_model, tmp_path / "model")
    card = cards.read_card(folder)
    generator = rebuilt(folder, card)
    arguments = {"generator_name": "unet", "arguments": card.arguments}

    def copied(_: nn.Module, path: Path, __: int) -> None:
        """What would be written, for the network is the tiny model's."""
        copyfile(tiny_model / cards.ONNX, path)

    def differs(*_: Any, **__: Any) -> None:
        raise ParityFailed("by much")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, failure, error in (("parity.check", differs, ParityFailed), ("save", full, BadFolder)):
        with monkeypatch.context() as patched:
            patched.setattr("fairweather.deploy.export.write_onnx", copied)
            patched.setattr(f"fairweather.deploy.export.{place}", failure)
            for target in (folder, tmp_path / "new"):
                with pytest.raises(error):
                    export(generator, target, **arguments, **SAID)
    with monkeypatch.context() as patched:
        patched.setattr("fairweather.deploy.export.write_onnx", copied)
        with pytest.raises(BadCard, match="does not fit"):  # arguments that rebuild another network
            export(generator, folder, generator_name="unet", arguments={"levels": 2, "width": 8}, **SAID)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert cards.read_card(folder) == card
    assert export(generator, folder, **arguments, **SAID).name == "fresh"
    assert cards.read_card(folder).name == "fresh", "a model is replaced by its next export"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_something_else_in_it_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(BadFolder, match="no model"):
        reexport(tiny_model, tmp_path)
    with pytest.raises(BadFolder, match="is a file"):
        reexport(tiny_model, tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_exporting_again_gives_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = copytree(tiny_model, tmp_path / "run" / "model")
    (folder / cards.ONNX).write_bytes(b"lost")  # what is made anew need not be whole
    card, old = reexport(tmp_path / "run", tmp_path / "out"), cards.read_card(tiny_model)
    assert card.checksums[cards.WEIGHTS] == old.checksums[cards.WEIGHTS]
    assert dataclasses.replace(card, checksums={}) == dataclasses.replace(old, checksums={})
    (folder / cards.WEIGHTS).write_bytes(b"lost too")
    with pytest.raises(BadCard, match=r"weights\.safetensors"):
        reexport(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_halved_weights_are_what_every_engine_runs(narrow_model: Callable[[str], Path], tmp_path: Path) -> None:
    copytree(narrow_model("plain_unet"), tmp_path / "whole")
    card = cards.read_card(tmp_path / "whole")
    generator = rebuilt(tmp_path / "whole", card)
    told = {"generator_name": "plain_unet", "arguments": card.arguments, **SAID}
    export(generator, tmp_path / "half", half=True, **told)  # which compares the engines with the rounded network
    whole, half = (load_file(tmp_path / name / cards.WEIGHTS) for name in ("whole", "half"))
    for name, value in half.items():
        assert value.dtype == (np.float16 if value.ndim > 1 else whole[name].dtype), name
        np.testing.assert_allclose(value, whole[name], rtol=2**-11, atol=1e-7)
    assert any((half[name] != whole[name]).any() for name in half)
    graph = onnx.load(tmp_path / "half" / cards.ONNX).graph
    kinds = {weight.data_type for weight in graph.initializer if len(weight.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    card = cards.read_card(tmp_path / "half")
    assert card.bytes_per_pixel == cards.read_card(tmp_path / "whole").bytes_per_pixel
    restored = rebuilt(tmp_path / "half", card).state_dict()
    assert all(value.dtype != torch.float16 for value in restored.values())
    reexport(tmp_path / "half", tmp_path / "again")
    assert (tmp_path / "again" / cards.WEIGHTS).read_bytes() == (tmp_path / "half" / cards.WEIGHTS).read_bytes()
    with torch.no_grad():
        next(iter(generator.parameters())).fill_(1e5)
    with pytest.raises(BadCard, match="beyond float16"):
        export(generator, tmp_path / "large", half=True, **told)
    assert not (tmp_path / "large").exists()


def test_a_model_that_degrades_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "check", lambda *_, **__: {})
    monkeypatch.setattr("fairweather.deploy.export.write_onnx", lambda network, path, _: path.write_bytes(b"onnx"))
    monkeypatch.setattr("fairweather.deploy.export.bytes_per_pixel", lambda *_: 1.0)
    said = {"generator_name": "unet", "arguments": {"levels": 1, "width": 2}, **SAID}
    generator = GENERATORS["unet"](**said["arguments"])
    assert export(generator, tmp_path / "way", direction="degrade", **said).direction == "degrade"
    assert reexport(tmp_path / "way", tmp_path / "again").direction == "degrade"
    assert cards.read_card(tmp_path / "again").direction == "degrade"
    assert export(generator, tmp_path / "way", **said).direction == "restore"


def test_bytes_per_pixel_counts_what_is_alive_at_once(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 3, 1)).eval()
    write_onnx(wide, tmp_path / "wide.onnx", 4)
    assert bytes_per_pixel(tmp_path / "wide.onnx", 4) == (32 + 16) * 4


def test_bytes_a_pixel_are_counted_behind_a_pixel_unshuffle(tmp_path: Path) -> None:
    """A network of 8 channels at half the size holds two layers of 8 / 4 x 4 bytes a pixel at once, and its input."""
    write_onnx(GENERATORS["plain_unet"](**PLAIN), tmp_path / "model.onnx", 4)
    counted = bytes_per_pixel(tmp_path / "model.onnx", 4)
    assert 12 + 2 * 8 < counted < 200
    write_onnx(GENERATORS["plain_unet"](**{**PLAIN, "widths": [32, 8]}), tmp_path / "wide.onnx", 4)
    wide = bytes_per_pixel(tmp_path / "wide.onnx", 4)
    assert wide - counted >= 24  # at least one layer more of 24 channels at half the size
