"""Graph passes keep results, and int8 graphs are valid ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from fairweather.deploy import int8
from fairweather.deploy.onnx_export import halve_onnx
from fairweather.generators import exported
from fairweather.model_folder import ONNX
from tests.narrow import narrow

TRANSPOSED = {"unet": 3, "resnet6": 2, "mbconv_unet": 2, "conv_unet": 0, "scattering_maps": 0}
"""Generator -> number of transposed convolutions in its narrow form."""


def with_random_weights(path: Path, name: str) -> onnx.ModelProto:
    rng, model, state = np.random.default_rng(4), onnx.load(path), exported(narrow(name)).state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in state and tensor.data_type == onnx.TensorProto.FLOAT:
            values = rng.uniform(0.3, 0.9, tensor.dims) if len(tensor.dims) == 1 else rng.normal(0, 0.2, tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: picture})[0])


def graph_of(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], output: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [*"abcd"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_prepared_networks_compute_the_same(
    name: str, narrow_model: Callable[[str], Path], rng: np.random.Generator
) -> None:
    source = with_random_weights(narrow_model(name) / ONNX, name)
    before = source.SerializeToString(deterministic=True)
    prepared = int8.prepare_graph(source)
    assert source.SerializeToString(deterministic=True) == before
    for shape in ((64, 96), (32, 64)):
        picture = rng.random((1, 3, *shape), np.float32)
        expected = run(source, picture)
        assert expected.std() > 1e-3
        np.testing.assert_allclose(run(prepared, picture), expected, rtol=1e-4, atol=2e-5)
    assert not {"ConvTranspose", "BatchNormalization"} & set(kinds(prepared))
    assert kinds(source).count("ConvTranspose") == TRANSPOSED[name]
    assert kinds(prepared).count("Conv") == kinds(source).count("Conv") + TRANSPOSED[name]
    norms = kinds(source).count("InstanceNormalization")
    assert kinds(prepared).count("InstanceNormalization") == norms
    assert bool(norms) == (name == "resnet6")


def test_float16_weights_become_float32(
    narrow_model: Callable[[str], Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    whole = with_random_weights(narrow_model("conv_unet") / ONNX, "conv_unet")
    for tensor in whole.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(whole, tmp_path / "model.onnx")
    halve_onnx(tmp_path / "model.onnx")
    source = onnx.load(tmp_path / "model.onnx")
    prepared = int8.prepare_graph(source)
    assert "Cast" in kinds(source)
    assert "Cast" not in kinds(prepared)
    assert {t.data_type for t in prepared.graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.FLOAT}
    picture = rng.random((1, 3, 32, 48), np.float32)
    assert np.array_equal(run(prepared, picture), run(source, picture))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"), [(4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (5, 3, 1, 2), (3, 1, 1, 0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_are_replaced(
    kernel: int, stride: int, padding: int, extra: int, bias: bool, rng: np.random.Generator
) -> None:
    torch.manual_seed(kernel)
    layer = nn.ConvTranspose2d(3, 5, kernel, stride, padding, output_padding=extra, bias=bias)
    tensors = {"w": layer.weight.detach().numpy()} | ({"b": layer.bias.detach().numpy()} if bias else {})
    node = helper.make_node(
        *("ConvTranspose", ["x", *tensors], ["y"]),
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
        output_padding=[extra] * 2,
    )
    prepared = int8.prepare_graph(graph_of([node], tensors))
    assert kinds(prepared) == ["Conv", "DepthToSpace", "Slice"]
    x = rng.random((1, 3, 5, 7), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(run(prepared, x), layer(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_is_folded(transposed: bool, rng: np.random.Generator) -> None:
    tensors = {"w": rng.normal(size=(3, 4, 3, 3) if transposed else (4, 3, 3, 3)), "b": rng.normal(size=4)}
    tensors |= {name: rng.uniform(0.5, 2, 4) for name in ("gain", "shift", "mean", "variance")}
    nodes = [
        helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    source = graph_of(nodes, tensors)
    prepared = int8.prepare_graph(source)
    assert "BatchNormalization" not in kinds(prepared)
    x = rng.random((1, 3, 6, 8), np.float32)
    np.testing.assert_allclose(run(prepared, x), run(source, x), rtol=1e-4, atol=1e-5)
    # Not if the convolution's output has another use.
    source = graph_of([*nodes, helper.make_node("Add", ["c", "y"], ["z"])], tensors, "z")
    assert "BatchNormalization" in kinds(int8.prepare_graph(source))


def convolutions(rng: np.random.Generator, *layers: tuple[str, str, str, int, int]) -> onnx.ModelProto:
    """A graph of (name, input, output, channels in, channels out), each 1 x 1; "relu" and others name an activation."""
    nodes, tensors = [], {}
    for name, source, output, into, out in layers:
        if into:
            tensors[f"{name}.weight"] = rng.normal(size=(out, into, 1, 1))
            nodes.append(helper.make_node("Conv", [source, f"{name}.weight"], [output], kernel_shape=[1, 1]))
        else:
            nodes.append(helper.make_node(name, source.split(), [output], **({"axis": 1} if name == "Concat" else {})))
    return graph_of(nodes, tensors)


def test_outer_layers(rng: np.random.Generator) -> None:
    """Two layers take the photo, one of them through a ReLU; two heads, one before a sigmoid."""
    inner = [(f"inner{at}", f"i{at}", f"i{at + 1}", 4, 4) for at in range(9)]
    model = convolutions(
        rng,
        ("first", "x", "a", 3, 4),
        ("Relu", "x", "r", 0, 0),
        ("other", "r", "b", 3, 4),
        ("Add", "a b", "i0", 0, 0),
        *inner,
        ("haze", "i9", "h", 4, 1),
        ("colour", "i9", "c", 4, 2),
        ("Sigmoid", "h", "s", 0, 0),
        ("Concat", "s c", "y", 0, 0),
    )
    found = int8.outer_layers(model)
    assert {layer: reason.split()[0] for layer, reason in found.items()} == {
        "first": "first",
        "other": "first",
        "haze": "last",
        "colour": "last",
    }
    assert int8.outer_layers(convolutions(rng, ("a", "x", "m", 3, 4), ("b", "m", "y", 4, 3))) == {}, "no others"


def test_static_int8_is_valid_onnx_and_close(rng: np.random.Generator) -> None:
    model = convolutions(rng, ("a", "x", "m", 3, 4), ("Relu", "m", "r", 0, 0), ("b", "r", "y", 4, 3))
    pictures = [rng.random((1, 3, 8, 8), np.float32) for _ in range(3)]
    ranges = int8.measured_ranges(model, pictures)
    assert set(ranges) == {"x", "m", "r", "y"}
    assert all(low <= 0 <= high for low, high in ranges.values())
    for made in (int8.quantize_static(model, ranges, ["a", "b"]), int8.quantize_weights(model, ["a", "b"])):
        assert "DequantizeLinear" in kinds(made)
        expected = run(model, pictures[0])
        error = np.abs(run(made, pictures[0]) - expected).max()
        assert 0 < error < 0.1 * np.abs(expected).max()
        assert int8.changed_layers(made, model) == []
    assert int8.quantize_static(model, ranges, []) == model
