"""The same network as a graph that quantizes well: what is done to a copy of model.onnx before model.int8.onnx is made.

Each rewrite gives the numbers that the graph gave before, up to float rounding; tests compare them.

- weights kept as float16 behind a cast become plain float32 initializers, which a quantizer can read;
- batch norm behind a convolution goes into its weights and bias (Jacob et al., CVPR 2018, section 3.2);
- a transposed convolution of stride s becomes a plain convolution that gives s x s times the channels, and a pixel
  shuffle (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009): int8 kernels
  for transposed convolutions are missing in some engines and, where they are, quantize per tensor.

Instance norm is left as it is: its statistics need float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Weights = NDArray[np.float32]


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all the rewrites."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    widen(copy)
    fold_batch_norm(copy)
    shuffle_transposed(copy)
    return copy


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializer by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def widen(model: onnx.ModelProto) -> None:
    """Float16 initializers behind a cast become float32 initializers under the cast's name, in place."""
    graph, found, kept = model.graph, constants(model.graph), []
    for node in graph.node:
        source = found.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.data_type != onnx.TensorProto.FLOAT16:
            kept.append(node)
            continue
        _add(graph, node.output[0], numpy_helper.to_array(source).astype(np.float32))
    _replace_nodes(graph, kept)


def fold_batch_norm(model: onnx.ModelProto) -> None:
    """Batch norm whose only input is a convolution's only use goes into that convolution, in place."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    gone: set[str] = set()
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = made_by.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "ConvTranspose") or _uses(graph, norm.input[0]) != 1:
            continue
        found = constants(graph)
        names = [layer.input[1], *norm.input[1:], *layer.input[2:]]
        if any(name not in found for name in names):
            continue
        weight, gain, shift, mean, variance, *bias = (numpy_helper.to_array(found[name]) for name in names)
        scale = gain / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
        groups = _attribute(layer, "group", 1)
        if layer.op_type == "Conv":
            weight = weight * scale.reshape(-1, 1, 1, 1)
        else:  # C_in x C_out / groups: the channels of each group follow one another in the output
            shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = (weight.reshape(shape) * scale.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)
        start = shift + ((bias[0] if bias else 0) - mean) * scale
        name = layer.input[1]  # the layer keeps its name, by which it is spoken of
        if _uses(graph, name) != 1:
            continue
        del layer.input[2:]
        layer.input.append(f"{name}_bias")
        _add(graph, name, weight)
        _add(graph, f"{name}_bias", start)
        layer.output[0] = norm.output[0]
        gone.add(norm.output[0])
    _replace_nodes(graph, [n for n in graph.node if not (n.op_type == "BatchNormalization" and n.output[0] in gone)])


def shuffle_transposed(model: onnx.ModelProto) -> None:
    """Transposed convolutions with equal strides, one group and no dilation become convolution, pixel shuffle and a
    crop of the border, in place; what cannot is left."""
    graph, found, nodes = model.graph, constants(model.graph), []
    for node in graph.node:
        weight = found.get(node.input[1]) if node.op_type == "ConvTranspose" else None
        shape = None if weight is None else _plain_transposed(node)
        if weight is None or shape is None:
            nodes.append(node)
            continue
        stride, pads, extra = shape
        kernel, stem = numpy_helper.to_array(weight), node.output[0]
        taps = math.ceil(kernel.shape[2] / stride)
        name = f"{node.input[1]}_shuffled"
        _add(graph, name, shuffled_kernel(kernel, stride))
        inputs = [node.input[0], name]
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(found[node.input[2]])
            _add(graph, f"{name}_bias", np.repeat(bias, stride * stride))
            inputs.append(f"{name}_bias")
        around = [taps - 1] * 4
        nodes.append(
            helper.make_node(
                *("Conv", inputs, [f"{stem}_cells"]),
                kernel_shape=[taps, taps],
                pads=around,
            )
        )
        # channel o of the answer is channels o * s^2 ... of the cells: the order that CRD means
        nodes.append(
            helper.make_node("DepthToSpace", [f"{stem}_cells"], [f"{stem}_pixels"], blocksize=stride, mode="CRD")
        )
        # all that the pixels have beyond what was asked for: the same on every size
        ends = [stride * taps - kernel.shape[axis] + pads[axis] - extra[axis - 2] for axis in (2, 3)]
        _crop(graph, nodes, f"{stem}_pixels", stem, pads[:2], ends)
    _replace_nodes(graph, nodes)


def shuffled_kernel(kernel: Weights, stride: int) -> Weights:
    """C_in x C_out x k x k of a transposed convolution -> (C_out s s) x C_in x t x t of the plain one, t = ceil(k / s).

    Output s q + r sees input q - d by the tap s d + r, for d = 0 ... t - 1; taps beyond the kernel are zero.
    """
    into, out, side, _ = kernel.shape
    taps = math.ceil(side / stride)
    full = np.zeros((into, out, taps * stride, taps * stride), kernel.dtype)
    full[:, :, :side, :side] = kernel
    cells = full.reshape(into, out, taps, stride, taps, stride)[:, :, ::-1, :, ::-1]
    shuffled: Weights = cells.transpose(1, 3, 5, 0, 2, 4).reshape(out * stride * stride, into, taps, taps)
    return np.ascontiguousarray(shuffled)


def _plain_transposed(node: onnx.NodeProto) -> tuple[int, list[int], list[int]] | None:
    """(stride, pads, output padding) of a transposed convolution that can be rewritten, else None."""
    strides, pads = _attribute(node, "strides", [1, 1]), _attribute(node, "pads", [0, 0, 0, 0])
    plain = (
        len(set(strides)) == 1
        and _attribute(node, "group", 1) == 1
        and set(_attribute(node, "dilations", [1, 1])) == {1}
        and len(set(_attribute(node, "kernel_shape", [1, 1]))) == 1
        and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
        and not _attribute(node, "output_shape", [])
    )
    return (strides[0], pads, _attribute(node, "output_padding", [0, 0])) if plain else None


def _crop(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    source: str,
    target: str,
    starts: Sequence[int],
    ends: Sequence[int],
) -> None:
    """Take so many rows and columns off either end."""
    last = [-end if end else np.iinfo(np.int64).max for end in ends]
    names = [f"{target}_{part}" for part in ("starts", "ends", "axes")]
    for name, values in zip(names, (starts, last, (2, 3)), strict=True):
        _add(graph, name, np.array(values, np.int64))
    nodes.append(helper.make_node("Slice", [source, *names], [target]))


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _uses(graph: onnx.GraphProto, name: str) -> int:
    used = sum(list(node.input).count(name) for node in graph.node)
    return used + sum(bool(out.name == name) for out in graph.output)


def _add(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> None:
    """An initializer; one of this name that is there already is replaced."""
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
            return
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """These nodes, and no initializer that none of them reads."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    kept_tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(kept_tensors)
