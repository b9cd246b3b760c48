"""Rewrites of the exported graph give the numbers that it gave before, and leave nothing that int8 fails on."""

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
"""Generators, and how many transposed convolutions theirs of tests/narrow.py have."""


def lively(path: Path, name: str) -> onnx.ModelProto:
    """An exported network, with random numbers for what it has learned."""
    rng, model, learned = np.random.default_rng(4), onnx.load(path), exported(narrow(name)).state_dict()
    weights = [t for t in model.graph.initializer if t.name in learned and t.data_type == onnx.TensorProto.FLOAT]
    assert sum(len(t.dims) == 4 for t in weights) == sum(value.dim() == 4 for value in learned.values())
    for tensor in weights:
        values = rng.uniform(0.3, 0.9, tensor.dims) if len(tensor.dims) == 1 else rng.normal(0, 0.2, tensor.dims)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def answer(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: picture})[0])


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_rewritten_network_answers_as_before(
    name: str, narrow_model: Callable[[str], Path], rng: np.random.Generator
) -> None:
    source = lively(narrow_model(name) / ONNX, name)
    before = source.SerializeToString(deterministic=True)
    made = int8.prepare_graph(source)
    assert source.SerializeToString(deterministic=True) == before, "a copy is rewritten"
    for shape in ((64, 96), (32, 64)):
        picture = rng.random((1, 3, *shape), np.float32)
        before, after = answer(source, picture), answer(made, picture)
        assert before.std() > 1e-3
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5)
    assert not {"ConvTranspose", "BatchNormalization"} & set(kinds(made))
    transposed = kinds(source).count("ConvTranspose")
    assert kinds(made).count("Conv") == kinds(source).count("Conv") + transposed
    assert transposed == TRANSPOSED[name]
    norms = kinds(source).count("InstanceNormalization")
    assert kinds(made).count("InstanceNormalization") == norms, "it stays as it is, in float"
    assert bool(norms) == (name == "resnet6")


def test_halved_weights_become_plain_ones(
    narrow_model: Callable[[str], Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    whole = lively(narrow_model("conv_unet") / ONNX, "conv_unet")
    for tensor in whole.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(whole, tmp_path / "model.onnx")
    halve_onnx(tmp_path / "model.onnx")
    source = onnx.load(tmp_path / "model.onnx")
    made = int8.prepare_graph(source)
    assert "Cast" in kinds(source)
    assert "Cast" not in kinds(made)
    assert {t.data_type for t in made.graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.FLOAT}
    picture = rng.random((1, 3, 32, 48), np.float32)
    assert np.array_equal(answer(made, picture), answer(source, picture))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"), [(4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (5, 3, 1, 2), (3, 1, 1, 0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_is_a_shuffled_one(
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
    made = int8.prepare_graph(graph_of([node], tensors))
    assert kinds(made) == ["Conv", "DepthToSpace", "Slice"]
    x = rng.random((1, 3, 5, 7), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(answer(made, x), layer(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_goes_into_the_convolution(transposed: bool, rng: np.random.Generator) -> None:
    shape = (3, 4, 3, 3) if transposed else (4, 3, 3, 3)
    tensors = {"w": rng.normal(size=shape), "b": rng.normal(size=4)}
    tensors |= {name: rng.uniform(0.5, 2, 4) for name in ("gain", "shift", "mean", "variance")}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    nodes = [
        helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    source = graph_of(nodes, tensors)
    made = int8.prepare_graph(source)
    assert "BatchNormalization" not in kinds(made)
    x = rng.random((1, 3, 6, 8), np.float32)
    np.testing.assert_allclose(answer(made, x), answer(source, x), rtol=1e-4, atol=1e-5)
    # the convolution's own answer is asked for, too: it has to stay what it was
    source.graph.node.append(helper.make_node("Add", ["c", "y"], ["z"]))
    source.graph.output[0].name = "z"
    assert "BatchNormalization" in kinds(int8.prepare_graph(source))


def graph_of(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [*"abcd"])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
