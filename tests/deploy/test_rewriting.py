"""Rewrites of the exported graph give the numbers that it gave before, and leave nothing that int8 fails on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from fairweather.deploy import rewriting
from fairweather.deploy.export import halve_onnx, write_onnx
from fairweather.generators import GENERATORS, exported

NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"levels": 2, "width": 4},
    "resnet6": {"width": 4, "blocks": 1},
    "mbconv_unet": {"width": 4, "levels": 2, "expansion": 2},
    "plain_unet": {"widths": [4, 8], "encoder": [1, 1], "decoder": [1]},
    "swift": {"size": 64, "widths": [8, 8, 8, 8]},
}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def answer(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: picture})[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rewritten_network_answers_as_before(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(4)
    network = GENERATORS[name](**NETWORKS[name])
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value, 0.3, 0.9) if value.dim() == 1 else nn.init.normal_(value, std=0.2)
    part = exported(network.eval())
    write_onnx(part, tmp_path / "model.onnx", part.multiple_of)
    source = onnx.load(tmp_path / "model.onnx")
    made = rewriting.prepared(source)
    assert onnx.load(tmp_path / "model.onnx") == source, "a copy is rewritten"
    for shape in ((64, 96), (32, 64)):
        picture = rng.random((1, 3, *shape), np.float32)
        before, after = answer(source, picture), answer(made, picture)
        assert before.std() > 1e-3
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5)
    assert not {"ConvTranspose", "BatchNormalization"} & set(kinds(made))
    transposed = kinds(source).count("ConvTranspose")
    assert kinds(made).count("Conv") == kinds(source).count("Conv") + transposed
    assert transposed == {"unet": 2, "resnet6": 2, "mbconv_unet": 2}.get(name, 0)
    norms = kinds(source).count("InstanceNormalization")
    assert kinds(made).count("InstanceNormalization") == norms, "it stays as it is, in float"
    assert bool(norms) == (name == "resnet6")


def test_halved_weights_become_plain_ones(tmp_path: Path, rng: np.random.Generator) -> None:
    network = GENERATORS["plain_unet"](**NETWORKS["plain_unet"]).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(value.half().float())
    write_onnx(network, tmp_path / "model.onnx", network.multiple_of)
    halve_onnx(tmp_path / "model.onnx")
    source = onnx.load(tmp_path / "model.onnx")
    made = rewriting.prepared(source)
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
    made = rewriting.prepared(graph_of([node], tensors))
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
    made = rewriting.prepared(source)
    assert "BatchNormalization" not in kinds(made)
    x = rng.random((1, 3, 6, 8), np.float32)
    np.testing.assert_allclose(answer(made, x), answer(source, x), rtol=1e-4, atol=1e-5)
    # the convolution's own answer is asked for, too: it has to stay what it was
    source.graph.node.append(helper.make_node("Add", ["c", "y"], ["z"]))
    source.graph.output[0].name = "z"
    assert "BatchNormalization" in kinds(rewriting.prepared(source))


def graph_of(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [*"abcd"])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
