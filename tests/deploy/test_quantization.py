"""An int8 network is close to the float model in every engine, or there is none; the card records the comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from fairweather import model_folder
from fairweather.deploy import int8, parity, quantization, sample_photos
from fairweather.deploy.onnx_export import export_model_folder
from fairweather.deploy.parity import Similarity, SimilarityBar
from fairweather.deploy.quantization import QUANTIZE_METHODS, Quantizer, quantize_model
from fairweather.errors import BadCard, BadFolder, BadSettings, MissingExtra, ParityFailed, UnknownName
from fairweather.inference import load
from fairweather.inference.engines import load_generator

SMALL = (64, 96)
every_method = pytest.mark.parametrize("method", QUANTIZE_METHODS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of smooth pictures, the degraded ones paler."""
    folder = tmp_path_factory.mktemp("pairs")
    y, x = np.mgrid[0:72, 0:88] / 80.0
    for number in range(6):
        rng = np.random.default_rng(number)
        clear = np.stack([0.5 + 0.4 * np.sin((3 + number) * x + k) * np.cos(4 * y - k) for k in range(3)], -1)
        clear = (clear + rng.normal(0, 0.02, clear.shape)).clip(0, 1)
        for side, picture in (("hazy", 0.6 * clear + 0.3), ("clear", clear)):
            (folder / side).mkdir(exist_ok=True)
            Image.fromarray((picture * 255).astype(np.uint8)).save(folder / side / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model quantized by each method."""
    pytest.importorskip("torchao")
    folder = tmp_path_factory.mktemp("quantized")
    for method in QUANTIZE_METHODS:
        quantize_model(tiny_model, folder / method, method=method, data=pairs, steps=6, timed_at=SMALL)
    return {method: folder / method for method in QUANTIZE_METHODS}


def source(folder: Path) -> onnx.ModelProto:
    return int8.prepare_graph(onnx.load(folder / model_folder.ONNX))


def stored_weights(folder: Path) -> dict[str, bytes]:
    tensors = onnx.load(folder / model_folder.INT8).graph.initializer
    return {t.name: t.raw_data for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}


@every_method
def test_the_folder_and_its_card(method: str, made: dict[str, Path], tiny_model: Path, pairs: Path) -> None:
    folder, before = made[method], model_folder.read_card(tiny_model)
    assert {path.name for path in folder.iterdir()} == {model_folder.CARD, *model_folder.SUMMED, model_folder.INT8}
    for name in model_folder.SUMMED:
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    onnx.checker.check_model(onnx.load(folder / model_folder.INT8), full_check=True)
    card = model_folder.read_card(folder)
    assert dataclasses.replace(card, quantized=None, checksums={}) == dataclasses.replace(before, checksums={})
    record = card.quantized
    assert record is not None
    assert (record["method"], record["passed"], record["pairs"]) == (method, True, True)
    assert "failures" not in record
    assert set(record["parity"]) == {f"{e} {p}" for e in ("openvino", "onnxruntime") for p in ("f32", "int8")}
    assert all(one["worst"] <= 1e-4 for name, one in record["parity"].items() if name.endswith("f32"))
    assert all(one["psnr"] < 90 for name, one in record["parity"].items() if name.endswith("int8")), "it is int8"
    assert record["cost"]["ms"]["int8"] > 0
    layers = [layer for layer in int8.quantizable_layers(source(folder)) if layer not in record["float_layers"]]
    assert len(stored_weights(folder)) >= len(layers) > 0
    if method == "qat":
        calibration = dict(record["calibration"])
        kept = calibration.pop("kept_step")
        assert calibration == {"data": pairs.name, "photos": 3, "steps": 6, "trained_on": 3}
        assert (stored_weights(folder) != stored_weights(made["static"])) == (kept > 0)


@every_method
def test_engines_agree(method: str, made: dict[str, Path], photo: np.ndarray) -> None:
    picture = photo.astype(np.float32) / 255
    networks = (("openvino", "int8"), ("onnxruntime", "int8"), ("openvino", "f32"), ("openvino", "auto"))
    pictures = {
        (engine, precision): load(made[method], engine=engine, precision=precision)(picture, guard=False)
        for engine, precision in networks
    }
    apart = np.abs(pictures["openvino", "int8"] - pictures["onnxruntime", "int8"])
    assert apart.mean() < 0.004, "a rounding of activations"
    rounded = np.abs(pictures["openvino", "int8"] - pictures["openvino", "f32"])
    assert rounded.max() > 1e-4
    assert rounded.mean() < 0.02
    assert np.abs(pictures["openvino", "auto"] - pictures["openvino", "int8"]).max() > 1e-4, "auto is float"


def corrupt(path: Path) -> None:
    """Change the sign of the largest weight of the first layer."""
    model = onnx.load(path)
    kind = onnx.TensorProto.INT8 if path.name == model_folder.INT8 else onnx.TensorProto.FLOAT
    tensors = [t for t in model.graph.initializer if t.data_type == kind and len(t.dims) == 4]
    tensor = next(t for t in tensors if t.name.startswith("encoder.0.0"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values.astype(float)).argmax()] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("network", ["f32", *QUANTIZE_METHODS])
def test_a_single_wrong_weight_is_found_in_pictures(
    network: str, made: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    folder = copytree(made["static" if network == "f32" else network], tmp_path / "model")
    card = model_folder.read_card(folder)
    name, precision = (model_folder.ONNX, "f32") if network == "f32" else (model_folder.INT8, "int8")
    generator, bar = load_generator(folder, card), parity.similarity_bar(card, "static", paired=False)
    samples = sample_photos.read_samples(sample_photos.find_samples(pairs).measuring)

    def failures() -> list[str]:
        found = parity.compare_engines(generator, folder, card, samples, precisions=[precision])
        return [reason.split(":")[0] for reason in parity.parity_failures(found, bar)]

    assert failures() == []
    corrupt(folder / name)
    assert failures() == [f"openvino {precision}", f"onnxruntime {precision}"]


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_wrong_weight_is_found_that_does_not_show_in_pictures(method: str, made: dict[str, Path]) -> None:
    network, floats = onnx.load(made[method] / model_folder.INT8), source(made[method])
    assert int8.changed_layers(network, floats) == []
    tensor = next(t for t in network.graph.initializer if t.name.startswith("encoder.1.1.weight") and len(t.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] += 2 if values.flat[5] < 0 else -2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert int8.changed_layers(network, floats) == ["encoder.1.1"]


def test_below_the_bar_only_with_force(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray
) -> None:
    write = Quantizer.write

    def corrupted(self: Quantizer, *arguments: Any) -> dict[str, Any]:
        record = write(self, *arguments)
        corrupt(self.building / model_folder.INT8)
        return record

    monkeypatch.setattr(Quantizer, "write", corrupted)
    with pytest.raises(ParityFailed, match=r"tiny quantized by dynamic.*layer encoder\.0\.0: its weights.*--force"):
        quantize_model(tiny_model, tmp_path / "out", method="dynamic", data=pairs, timed_at=SMALL)
    assert not list(tmp_path.iterdir())
    card = quantize_model(tiny_model, tmp_path / "out", method="dynamic", data=pairs, force=True, timed_at=SMALL)
    assert card.quantized is not None
    assert card.quantized["passed"] is False
    assert "encoder.0.0" in " ".join(card.quantized["failures"])
    assert load(tmp_path / "out", precision="int8")(photo).shape == photo.shape


def test_loading(made: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"no model\.int8\.onnx.*fairweather quantize"):
        load(tiny_model, precision="int8")
    with pytest.raises(BadSettings, match=r"torch does not support precision int8"):
        load(made["static"], precision="int8", engine="torch")
    folder = copytree(made["static"], tmp_path / "model")
    (folder / model_folder.INT8).write_bytes(b"altered")
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is not the file"):
        load(folder)


def test_wrong_arguments(tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "dear"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    out = tmp_path / "out"
    for error, message, model, target, method, data in (
        (BadSettings, "--data DIR", tiny_model, out, "static", None),
        (UnknownName, "did you mean 'static'", tiny_model, out, "statik", pairs),
        (BadFolder, "nor a model folder", tiny_model, other, "dynamic", None),
        (BadFolder, "no photos", tiny_model, out, "static", other),
        (BadFolder, "over the input", tiny_model, tiny_model, "dynamic", None),
    ):
        with pytest.raises(error, match=message):
            quantize_model(model, target, method=method, data=data)
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization.pt2e", None)
    with pytest.raises(MissingExtra, match=r"fairweather\[quantize\]"):
        quantize_model(tiny_model, out, method="qat", data=pairs, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dear"]


def test_exporting_again_warns_that_int8_is_missing(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.write_onnx",
        lambda _, path, __: copyfile(made["static"] / model_folder.ONNX, path),
    )
    card = export_model_folder(made["static"], tmp_path / "again")
    assert card.quantized is None
    assert not (tmp_path / "again" / model_folder.INT8).exists()
    assert "model.int8.onnx is not exported" in caplog.text


def test_the_search_finds_the_fewest_float_layers() -> None:
    """Squared errors add; the worst layers become float first."""
    layers = [f"layer{number}" for number in range(12)]
    errors = {"layer3": 1e-3, "layer7": 2e-4, "layer9": 1e-4, "layer1": 2e-5}
    calls: list[int] = []

    def measure(chosen: Collection[str]) -> dict[str, Similarity]:
        calls.append(len(chosen))
        psnr = -10 * np.log10(1e-9 + sum(errors.get(layer, 1e-7) for layer in chosen))
        return {"openvino": Similarity(psnr, 0.0, None, 1), "other": Similarity(90.0, 0.0, None, 1)}

    found = quantization.search_float_layers(layers, measure, SimilarityBar(psnr=44.0, drop=None))
    assert list(found) == ["layer3", "layer7", "layer9"]
    assert "30.0 dB (openvino)" in found["layer3"]
    assert len(calls) < 1 + len(layers) + 8
    calls.clear()
    assert quantization.search_float_layers(layers, measure, SimilarityBar(psnr=20.0, drop=None)) == {}
    assert calls == [12]
    assert len(quantization.search_float_layers(layers, measure, SimilarityBar(psnr=95.0, drop=None))) == 12


def test_the_bar() -> None:
    for drop in (0.1, 0.15):
        error, noise = 10**-2.8, 10 ** (-(28 + parity.similarity_margin(drop)) / 10)
        assert abs(-10 * np.log10(error + noise) - (28 - drop)) < 1e-9, "noise by the margin below costs the drop"
    bar = SimilarityBar(psnr=40.0, drop=0.15)
    assert bar.missed(Similarity(41.0, 0.1, -0.14, 5)) is None
    assert "-0.20 dB" in str(bar.missed(Similarity(41.0, 0.1, -0.2, 5)))
    assert bar.missed(Similarity(41.0, 0.1, -0.14, 5), slack=0.2) is not None
    assert "39.0 dB" in str(bar.missed(Similarity(39.0, 0.1, 0.3, 5)))
    assert bar.missed(Similarity(float("nan"), 0.1, float("nan"), 5)) is not None
