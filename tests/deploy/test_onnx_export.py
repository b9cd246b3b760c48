"""An exported model matches its generator to 1e-4, or there is none."""

from __future__ import annotations

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

from fairweather import model_folder
from fairweather.deploy import parity
from fairweather.deploy.onnx_export import bytes_per_pixel, export_generator, export_model_folder, write_onnx
from fairweather.errors import BadCard, BadFolder, BadSettings, ParityFailed
from fairweather.generators import GENERATORS
from fairweather.inference import load
from fairweather.inference.engines import load_generator

FIELDS = {"name": "fresh", "weather": "haze", "licence": "MIT", "terms": "none", "training": {"steps": 3}}


@pytest.mark.parametrize("name", ["resnet6", "scattering_maps"])
def test_networks_with_global_statistics(name: str, narrow_model: Callable[[str], Path]) -> None:
    """tests/narrow.py checks that the export has no side effects."""
    folder = narrow_model(name)
    card = model_folder.read_card(folder)
    assert (card.maps is not None) == (name == "scattering_maps")
    assert card.receptive_field is None
    results = parity.check_parity(load_generator(folder, card), folder, parity.parity_pictures((), card))
    assert set(results) == {"onnxruntime", "openvino", "torch"}
    assert max(results.values()) <= 1e-4
    assert load(folder)(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


def test_the_files_of_a_model_folder(tiny_model: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in tiny_model.iterdir()}
    assert modes == {tiny_model.stat().st_mode & 0o666}, "whoever may list the folder may load the model"
    card = model_folder.read_card(tiny_model)
    generator = load_generator(tiny_model, card)
    assert (card.multiple_of, card.receptive_field, card.output) == (4, generator.receptive_field, "image")
    weights = load_file(tiny_model / model_folder.WEIGHTS)
    assert set(weights) == set(generator.state_dict())
    assert all(value.dtype == np.float32 for value in weights.values() if value.dtype.kind == "f")
    model = onnx.load(tiny_model / model_folder.ONNX, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    shape = [dim.dim_value or None for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, None, None]


def test_a_single_wrong_weight_is_found(tiny_model: Path, tmp_path: Path) -> None:
    card = model_folder.read_card(tiny_model)
    generator = load_generator(tiny_model, card)
    pictures = parity.parity_pictures((), card)

    folder = copytree(tiny_model, tmp_path / "onnx")
    model = onnx.load(folder / model_folder.ONNX)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / model_folder.ONNX)
    model_folder.write_card(folder, card)
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ParityFailed, match=rf"{engine} differs.*by .*101 x 67 pixels"):
            parity.check_parity(generator, folder, pictures, engines=[engine])
    parity.check_parity(generator, folder, pictures, engines=["torch"])

    folder = copytree(tiny_model, tmp_path / "weights")
    weights = load_file(folder / model_folder.WEIGHTS)
    name = "encoder.0.0.weight"
    weights[name] = weights[name].copy()
    weights[name].flat[0] += 0.05
    save_file(weights, folder / model_folder.WEIGHTS)
    model_folder.write_card(folder, card)
    with pytest.raises(ParityFailed, match="torch differs"):
        parity.check_parity(generator, folder, pictures)


def test_parity_needs_three_sizes_with_an_odd_one(tiny_model: Path, photo: np.ndarray) -> None:
    card = model_folder.read_card(tiny_model)
    even = [np.zeros((side, 2 * side, 3), np.uint8) for side in (8, 10, 12)]
    for pictures in (even, [np.zeros((9, 7, 3), np.uint8)] * 3, []):
        with pytest.raises(BadSettings, match="three sizes"):
            parity.check_parity(load_generator(tiny_model, card), tiny_model, pictures)
    cut = parity.parity_pictures([photo, photo[:30, :20]], card)
    assert [picture.shape for picture in cut] == [picture.shape for picture in parity.parity_pictures((), card)]
    assert (cut[0] == photo[14:81, 13:114]).all(), "the middle of the first photo"
    assert (cut[1][:30, :20] == photo[:30, :20]).all()


def test_a_failed_export_changes_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copytree(tiny_model, tmp_path / "model")
    card = model_folder.read_card(folder)
    generator = load_generator(folder, card)

    def differs(*_: Any, **__: Any) -> None:
        raise ParityFailed("by much")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.write_onnx", lambda _, path, __: copyfile(tiny_model / model_folder.ONNX, path)
    )
    for place, failure, error in (("parity.check_parity", differs, ParityFailed), ("save", full, BadFolder)):
        with monkeypatch.context() as patched:
            patched.setattr(f"fairweather.deploy.onnx_export.{place}", failure)
            for target in (folder, tmp_path / "new"):
                with pytest.raises(error):
                    export_generator(generator, target, generator_name="unet", arguments=card.arguments, **FIELDS)
    with pytest.raises(BadCard, match="does not fit"):
        export_generator(generator, folder, generator_name="unet", arguments={"levels": 2, "width": 8}, **FIELDS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert model_folder.read_card(folder) == card
    export_generator(generator, folder, generator_name="unet", arguments=card.arguments, **FIELDS)
    assert model_folder.read_card(folder).name == "fresh", "a model is replaced by its next export"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_folders_are_not_replaced(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(BadFolder, match="nor a model folder"):
        export_model_folder(tiny_model, tmp_path)
    with pytest.raises(BadFolder, match="is a file"):
        export_model_folder(tiny_model, tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_model_is_exported_again_without_its_onnx_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = copytree(tiny_model, tmp_path / "run" / "model")
    (folder / model_folder.ONNX).write_bytes(b"lost")
    card, old = export_model_folder(tmp_path / "run", tmp_path / "out"), model_folder.read_card(tiny_model)
    assert card.checksums[model_folder.WEIGHTS] == old.checksums[model_folder.WEIGHTS]
    assert dataclasses.replace(card, checksums={}) == dataclasses.replace(old, checksums={})
    (folder / model_folder.WEIGHTS).write_bytes(b"lost too")
    with pytest.raises(BadCard, match=r"weights\.safetensors"):
        export_model_folder(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_float16_weights(narrow_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The export compares all engines with the rounded network."""
    source = narrow_model("conv_unet")
    card = model_folder.read_card(source)
    generator = load_generator(source, card)
    fields = {"generator_name": "conv_unet", "arguments": card.arguments, **FIELDS}
    export_generator(generator, tmp_path / "half", half=True, **fields)
    whole, half = (load_file(folder / model_folder.WEIGHTS) for folder in (source, tmp_path / "half"))
    for name, value in half.items():
        assert value.dtype == (np.float16 if value.ndim > 1 else whole[name].dtype), name
        np.testing.assert_allclose(value, whole[name], rtol=2**-11, atol=1e-7)
    assert any((half[name] != whole[name]).any() for name in half)
    graph = onnx.load(tmp_path / "half" / model_folder.ONNX).graph
    kinds = {weight.data_type for weight in graph.initializer if len(weight.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    made = model_folder.read_card(tmp_path / "half")
    assert made.bytes_per_pixel == card.bytes_per_pixel
    restored = load_generator(tmp_path / "half", made).state_dict()
    assert all(value.dtype != torch.float16 for value in restored.values())
    with torch.no_grad():
        next(iter(generator.parameters())).fill_(1e5)
    with pytest.raises(BadCard, match="exceeds the range of float16"):
        export_generator(generator, tmp_path / "broken", half=True, **fields)
    assert not (tmp_path / "broken").exists()


def test_copies_keep_direction_and_half(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "check_parity", lambda *_, **__: {})
    monkeypatch.setattr("fairweather.deploy.onnx_export.write_onnx", lambda network, path, _: path.write_bytes(b"onnx"))
    monkeypatch.setattr("fairweather.deploy.onnx_export.halve_onnx", lambda path: None)
    monkeypatch.setattr("fairweather.deploy.onnx_export.bytes_per_pixel", lambda *_: 1.0)
    arguments = {"levels": 1, "width": 2}
    fields = {"generator_name": "unet", "arguments": arguments, "half": True, "direction": "degrade", **FIELDS}
    export_generator(GENERATORS["unet"](**arguments), tmp_path / "one", **fields)
    assert export_model_folder(tmp_path / "one", tmp_path / "two").direction == "degrade"
    weights = [(tmp_path / name / model_folder.WEIGHTS).read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_bytes_per_pixel(narrow_model: Callable[[str], Path], tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 3, 1)).eval()
    write_onnx(wide, tmp_path / "wide.onnx", 4)
    assert bytes_per_pixel(tmp_path / "wide.onnx", 4) == (32 + 16) * 4
    # Behind a pixel unshuffle, where shapes are computed in the graph: the input and two tensors of 4 channels.
    assert 12 + 2 * 4 < bytes_per_pixel(narrow_model("conv_unet") / model_folder.ONNX, 4) < 100
