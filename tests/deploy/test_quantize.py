"""Int8 is the float model within its bar, in every engine, or it is not there; the card says all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from fairweather import model_folder
from fairweather.deploy import int8, parity, sample_photos
from fairweather.deploy import quantization as quantizing
from fairweather.deploy.onnx_export import export_model_folder
from fairweather.deploy.quantization import QUANTIZE_METHODS, quantize_model
from fairweather.errors import BadCard, BadFolder, BadSettings, MissingExtra, ParityFailed, UnknownName
from fairweather.inference import load
from fairweather.inference.engines import load_generator

SMALL = (64, 96)


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


def weights(path: Path) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims}


@pytest.mark.parametrize("method", QUANTIZE_METHODS)
def test_the_folder_is_a_model_s_with_one_more_file(method: str, made: dict[str, Path], tiny_model: Path) -> None:
    folder, before = made[method], model_folder.read_card(tiny_model)
    assert {path.name for path in folder.iterdir()} == {model_folder.CARD, *model_folder.SUMMED, model_folder.INT8}
    for name in model_folder.SUMMED:
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    card = model_folder.read_card(folder)
    assert dataclasses.replace(card, quantized=None, checksums={}) == dataclasses.replace(before, checksums={})
    assert set(card.checksums) == {*model_folder.SUMMED, model_folder.INT8}
    said = card.quantized
    assert said is not None
    assert (said["method"], said["passed"], said["pairs"]) == (method, True, True)
    assert "failures" not in said
    assert set(said["parity"]) == {f"{e} {p}" for e in ("openvino", "onnxruntime") for p in ("f32", "int8")}
    assert all(one["worst"] <= 1e-4 for name, one in said["parity"].items() if name.endswith("f32"))
    assert all(one["psnr"] < 90 for name, one in said["parity"].items() if name.endswith("int8")), "int8 does round"
    assert said["cost"]["ms"]["int8"] > 0
    chosen = [layer for layer in quantizing.int8.layers(source(folder)) if layer not in said["float_layers"]]
    assert len(weights(folder / model_folder.INT8)) >= len(chosen) > 0
    if method == "qat":
        told = dict(said["calibration"])
        kept = told.pop("kept_step")
        assert told == {"data": pairs_name(made), "photos": 3, "steps": 6, "trained_on": 3}
        assert changed(folder, made["static"]) == (kept > 0), "fine-tuning moves the weights"


def source(folder: Path) -> onnx.ModelProto:
    return int8.prepare_graph(onnx.load(folder / model_folder.ONNX))


def pairs_name(made: dict[str, Path]) -> str:
    said = model_folder.read_card(made["static"]).quantized
    assert said is not None
    return str(said["calibration"]["data"])


def changed(a: Path, b: Path) -> bool:
    one, other = weights(a / model_folder.INT8), weights(b / model_folder.INT8)
    return any(one[name].raw_data != other[name].raw_data for name in set(one) & set(other) if len(one[name].dims) > 1)


@pytest.mark.parametrize("method", QUANTIZE_METHODS)
def test_engines_agree_on_int8(method: str, made: dict[str, Path], photo: np.ndarray) -> None:
    picture = photo.astype(np.float32) / 255
    pictures = {
        (engine, precision): load(made[method], engine=engine, precision=precision)(picture, guard=False)
        for engine in ("openvino", "onnxruntime")
        for precision in ("f32", "int8")
    }
    apart = np.abs(pictures["openvino", "int8"] - pictures["onnxruntime", "int8"])
    assert apart.mean() < 0.004, "a level of what flows falls this way or that"
    rounded = np.abs(pictures["openvino", "int8"] - pictures["openvino", "f32"])
    assert rounded.max() > 1e-4, "int8 is what was run"
    assert rounded.mean() < 0.02
    auto = load(made[method], engine="openvino")(picture, guard=False)
    assert np.abs(auto - pictures["openvino", "int8"]).max() > 1e-4, "auto stays in float"


@pytest.mark.parametrize("artefact", ["f32", *QUANTIZE_METHODS])
def test_one_corrupted_weight_is_refused(artefact: str, made: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    """In each file that is exported, by whichever method, and by every engine that runs it."""
    folder = copytree(made["static" if artefact == "f32" else artefact], tmp_path / "model")
    card = model_folder.read_card(folder)
    name, precision = (model_folder.ONNX, "f32") if artefact == "f32" else (model_folder.INT8, "int8")
    generator, bar = load_generator(folder, card), parity.similarity_bar(card, "static", paired=False)
    measured = sample_photos.read_samples(sample_photos.find_samples(pairs).measuring)

    def refused() -> list[str]:
        return parity.parity_failures(
            parity.compare_engines(generator, folder, card, measured, precisions=[precision]), bar
        )

    assert not refused()
    corrupt(folder / name)
    said = refused()
    assert [line.split(":")[0] for line in said] == [f"openvino {precision}", f"onnxruntime {precision}"]


@pytest.mark.parametrize("method", QUANTIZE_METHODS)
def test_a_weight_too_small_to_be_seen_in_pictures_is_refused_too(method: str, made: dict[str, Path]) -> None:
    network = onnx.load(made[method] / model_folder.INT8)
    if method != "qat":  # whose own float weights are not kept
        assert not quantizing.int8.strayed(network, source(made[method]))
    before = source(made[method]) if method != "qat" else floats_of(network, source(made[method]))
    assert not quantizing.int8.strayed(network, before)
    tensor = next(t for t in network.graph.initializer if t.name.startswith("encoder.1.1.weight") and len(t.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] += 2 if values.flat[5] < 0 else -2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert quantizing.int8.strayed(network, before) == ["encoder.1.1"]


def floats_of(network: onnx.ModelProto, like: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph with the weights that an int8 one means."""
    found = int8.graph_constants(network.graph)
    for layer, node in quantizing.int8.layers(like).items():
        stored = next(n.input[1] for n in network.graph.node if n.op_type == "Conv" and n.input[1].startswith(layer))
        dequantized = next(n for n in network.graph.node if n.output[0] == stored)
        values, scale, _ = (numpy_helper.to_array(found[part]) for part in dequantized.input)
        tensor = int8.graph_constants(like.graph)[node.input[1]]
        meant = values.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
        tensor.CopyFrom(numpy_helper.from_array(meant, tensor.name))
    return like


def corrupt(path: Path) -> None:
    """The greatest weight of the first layer turns round."""
    model = onnx.load(path)
    wanted = onnx.TensorProto.INT8 if path.name == model_folder.INT8 else onnx.TensorProto.FLOAT
    tensors = [t for t in model.graph.initializer if t.data_type == wanted and len(t.dims) == 4]
    tensor = next(t for t in tensors if t.name.startswith("encoder.0.0"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values.astype(int) if values.dtype == np.int8 else values).argmax()] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_what_misses_the_bar_is_refused_unless_forced(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray
) -> None:
    make = quantizing.Quantization.make

    def spoiled(self: quantizing.Quantization, *given: Any) -> dict[str, Any]:
        record = make(self, *given)
        corrupt(self.building / model_folder.INT8)
        return record

    monkeypatch.setattr(quantizing.Quantization, "make", spoiled)
    with pytest.raises(ParityFailed, match=r"tiny by dynamic.*layer encoder\.0\.0: its weights.*--force"):
        quantize_model(tiny_model, tmp_path / "out", method="dynamic", data=pairs, timed_at=SMALL)
    assert not list(tmp_path.iterdir())
    card = quantize_model(tiny_model, tmp_path / "out", method="dynamic", data=pairs, force=True, timed_at=SMALL)
    assert card.quantized is not None
    assert card.quantized["passed"] is False
    assert "encoder.0.0" in " ".join(card.quantized["failures"])
    assert model_folder.read_card(tmp_path / "out") == card
    assert load(tmp_path / "out", precision="int8")(photo).shape == photo.shape


def test_int8_that_is_altered_or_lost_is_noticed(made: dict[str, Path], tmp_path: Path) -> None:
    folder = copytree(made["static"], tmp_path / "model")
    whole = (folder / model_folder.INT8).read_bytes()
    (folder / model_folder.INT8).write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    with pytest.raises(BadCard, match=r"model\.int8\.onnx"):
        load(folder)
    (folder / model_folder.INT8).unlink()
    with pytest.raises(BadCard, match=r"model\.int8\.onnx is missing"):
        load(folder)


def test_precision_int8_where_it_cannot_be(made: dict[str, Path], tiny_model: Path) -> None:
    with pytest.raises(BadSettings, match=r"no model\.int8\.onnx.*fairweather quantize"):
        load(tiny_model, precision="int8")
    with pytest.raises(BadSettings, match="openvino and onnxruntime engines, not torch"):
        load(made["static"], precision="int8", engine="torch")


def test_what_is_asked_for_wrongly(tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(BadSettings, match=r"--data DIR"):
        quantize_model(tiny_model, tmp_path / "out", method="static")
    with pytest.raises(UnknownName, match="did you mean 'static'"):
        quantize_model(tiny_model, tmp_path / "out", method="statik", data=pairs)
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear" / "letter.txt").write_text("dear")
    with pytest.raises(BadFolder, match="no model"):
        quantize_model(tiny_model, tmp_path / "dear", method="dynamic")
    with pytest.raises(BadFolder, match="no photos"):
        quantize_model(tiny_model, tmp_path / "out", method="static", data=tmp_path / "dear")
    with pytest.raises(BadFolder, match="the model itself"):
        quantize_model(tiny_model, tiny_model, method="dynamic")
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization.pt2e", None)
    with pytest.raises(MissingExtra, match=r"fairweather\[quantize\]"):
        quantize_model(tiny_model, tmp_path / "out", method="qat", data=pairs, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dear"]


def test_exporting_again_says_that_int8_is_left_behind(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a copy of the file in place of the same one made anew, which takes seconds."""
    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.write_onnx",
        lambda _, path, __: copyfile(made["static"] / model_folder.ONNX, path),
    )
    card = export_model_folder(made["static"], tmp_path / "again")
    assert card.quantized is None
    assert not (tmp_path / "again" / model_folder.INT8).exists()
    assert "fairweather quantize" in caplog.text
