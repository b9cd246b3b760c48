"""ONNX graphs in int8: passes that prepare a float graph, calibration, and writers of int8 weights and QDQ graphs.

QDQ is a pair of nodes, QuantizeLinear and DequantizeLinear, around each int8 tensor. Engines run int8 kernels for the
operation in between if they have them, and otherwise evaluate the nodes in float. A layer is a
convolution, named after its weight in the generator: `encoder.0.0.first` for `encoder.0.0.first.weight`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ActivationRanges = dict[str, tuple[float, float]]
"""Tensor name -> minimum and maximum that its int8 form must represent."""
HALF_STEP = 0.55
"""Largest change of a weight by rounding, in quantization steps: a half, and a margin for float32."""


def prepare_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent copy of an exported graph, up to float rounding, that quantizes well.

    - Weights stored as float16 with a cast become float32 initializers, which the quantizer can read.
    - Batch norm after a convolution is folded into its weight and bias (Jacob et al., CVPR 2018, section 3.2).
    - A transposed convolution of stride s becomes a convolution to s x s times the channels and a pixel shuffle (Shi et
      al., "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009): engines lack int8 kernels
      for transposed convolutions, or quantize their weights per tensor.

    Instance norm stays: its statistics need float.
    """
    prepared = copy.deepcopy(model)
    _widen_float16(prepared.graph)
    _fold_batch_norm(prepared.graph)
    _replace_transposed(prepared.graph)
    return prepared


def quantizable_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Layer -> node of the convolutions with constant weights, in execution order."""
    constants = _constants(model.graph)
    return {_layer(n): n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in constants}


def outer_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Layer -> reason, for the first layers, with the photo as input, and the last ones, which no layer follows.

    They stay in float without being measured, since rounding there directly changes the picture and they cost little
    (Zhou et al., DoReFa-Net, arXiv:1606.06160, section 2.7). Empty for a network with hardly any other layers.
    """
    layers = quantizable_layers(model)
    names = {id(node): name for name, node in layers.items()}
    raw, followed = {model.graph.input[0].name}, set[str]()
    for node in model.graph.node:
        if id(node) not in names and any(tensor in raw for tensor in node.input):
            raw.update(node.output)
    used = set[str]()
    for node in reversed(model.graph.node):
        leads = any(tensor in used for tensor in node.output)
        if leads and id(node) in names:
            followed.add(names[id(node)])
        if leads or id(node) in names:
            used.update(node.input)
    found = {name: "first layer: its input is the photo" for name, node in layers.items() if node.input[0] in raw}
    found |= {name: "last layer" for name in layers if name not in followed}
    return found if len(found) * 3 <= len(layers) else {}


def measured_ranges(model: onnx.ModelProto, pictures: Sequence[NDArray[np.float32]]) -> ActivationRanges:
    """Ranges of the inputs and outputs of all convolutions and ReLUs, over network inputs of 1 x 3 x h x w.

    Minima and maxima of each picture are averaged over the pictures, as in Jacob et al., CVPR 2018, section 3.1: rare
    values are clipped, and all others get finer steps.
    """
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "Relu")]
    names = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0])))
    watched = copy.deepcopy(model)
    present = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = model.graph.input[0].name
    computed = [name for name in names if name != source]
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for picture in pictures:
        values = dict(zip(computed, session.run(computed, {source: picture}), strict=True)) | {source: picture}
        for name in names:
            ends[name].append((values[name].min(), values[name].max()))
    means = {name: np.mean(np.asarray(found, np.float64), 0) for name, found in ends.items()}
    return {name: (min(0.0, float(low)), max(0.0, float(high))) for name, (low, high) in means.items()}


def input_ranges(model: onnx.ModelProto, by_layer: Mapping[str, tuple[float, float]]) -> ActivationRanges:
    """Ranges of layer inputs, by tensor instead of by layer."""
    return {node.input[0]: by_layer[name] for name, node in quantizable_layers(model).items() if name in by_layer}


def quantize_weights(model: onnx.ModelProto, chosen: Collection[str]) -> onnx.ModelProto:
    """A copy with int8 weights in the chosen layers, dequantized for computation in float: a quarter of the size.

    Symmetric, with one scale per output channel.
    """
    quantized = copy.deepcopy(model)
    graph, nodes = quantized.graph, []
    constants = _constants(graph)
    for name, node in quantizable_layers(quantized).items():
        if name not in chosen:
            continue
        weight = node.input[1]
        values = numpy_helper.to_array(constants[weight])
        largest = np.abs(values).reshape(len(values), -1).max(1)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        rounded = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).clip(-127, 127).astype(np.int8)
        parts = {"int8": rounded, "scale": scale, "zero": np.zeros(len(values), np.int8)}
        graph.initializer.remove(constants[weight])
        graph.initializer.extend(numpy_helper.from_array(part, f"{weight}_{key}") for key, part in parts.items())
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{weight}_{key}" for key in parts], [weight], axis=0, name=weight)
        )
    _set_nodes(graph, [*nodes, *graph.node])
    return quantized


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], chosen: Collection[str]
) -> onnx.ModelProto:
    """A copy with QDQ around the chosen layers, written by ONNX Runtime.

    Activations are 8 bits, unsigned, asymmetric, with one scale per tensor. Weights are symmetric with one scale per
    output channel, of 7 bits: processors without VNNI add two products of 8 by 8 bits in 16 and would overflow, and
    results would differ between engines and machines.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    prepared = copy.deepcopy(model)
    nodes = [node for name, node in quantizable_layers(prepared).items() if name in chosen]
    if not nodes:
        return prepared
    for index, node in enumerate(prepared.graph.node):
        node.name = node.name or f"node_{index}"
    outputs = {node.output[0] for node in nodes}
    # A ReLU after a layer is fused with it: negative values need no part of the range.
    relus = [node for node in prepared.graph.node if node.op_type == "Relu" and node.input[0] in outputs]
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        prepared,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[node.name for node in (*nodes, *relus)],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv", "Relu"],
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # the quantizer appends its nodes at the end, which ONNX does not allow
    written: onnx.ModelProto = quantizer.model.model
    return written


def changed_layers(quantized: onnx.ModelProto, source: onnx.ModelProto) -> list[str]:
    """Layers of `quantized` whose weights are not those of `source`, rounded or in float.

    A single wrong weight may change a picture less than the rounding of all weights does; this check detects it.
    """
    constants, floats = _constants(quantized.graph), _constants(source.graph)
    decoders = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    layers = {_layer(node): node for node in quantized.graph.node if node.op_type == "Conv"}
    wrong = []
    for name, node in quantizable_layers(source).items():
        expected = numpy_helper.to_array(floats[node.input[1]])
        step = np.float32(0)
        stored = layers[name].input[1]
        if stored in decoders:
            values, scale, zero = (numpy_helper.to_array(constants[part]) for part in decoders[stored].input)
            shape = (-1, *[1] * (expected.ndim - 1))
            step = scale.reshape(shape)
            weights = (values.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * step
        else:
            weights = numpy_helper.to_array(constants[stored])
        if weights.shape != expected.shape or not (np.abs(weights - expected) <= HALF_STEP * step + 1e-7).all():
            wrong.append(name)
    return wrong


def _widen_float16(graph: onnx.GraphProto) -> None:
    constants, nodes = _constants(graph), []
    for node in graph.node:
        source = constants.get(node.input[0]) if node.op_type == "Cast" else None
        if source is not None and source.data_type == onnx.TensorProto.FLOAT16:
            _set_constant(graph, node.output[0], numpy_helper.to_array(source))
        else:
            nodes.append(node)
    _set_nodes(graph, nodes)


def _fold_batch_norm(graph: onnx.GraphProto) -> None:
    """Fold each batch norm into the convolution before it, unless that output or those weights have other users."""
    producers = {name: node for node in graph.node for name in node.output}
    folded: set[str] = set()
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = producers.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "ConvTranspose") or _uses(graph, norm.input[0]) != 1:
            continue
        constants = _constants(graph)
        name = layer.input[1]  # the layer keeps its name
        names = [name, *norm.input[1:], *layer.input[2:]]
        if any(one not in constants for one in names) or _uses(graph, name) != 1:
            continue
        weight, gain, shift, mean, variance, *bias = (numpy_helper.to_array(constants[one]) for one in names)
        scale = gain / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
        if layer.op_type == "Conv":
            weight = weight * scale.reshape(-1, 1, 1, 1)
        else:  # C_in x C_out / groups: the output channels of the groups follow each other
            groups = _attribute(layer, "group", 1)
            shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = (weight.reshape(shape) * scale.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)
        _set_constant(graph, name, weight)
        _set_constant(graph, f"{name}_bias", shift + ((bias[0] if bias else 0) - mean) * scale)
        del layer.input[2:]
        layer.input.append(f"{name}_bias")
        layer.output[0] = norm.output[0]
        folded.add(norm.output[0])
    _set_nodes(graph, [n for n in graph.node if not (n.op_type == "BatchNormalization" and n.output[0] in folded)])


def _replace_transposed(graph: onnx.GraphProto) -> None:
    """Replace transposed convolutions of one stride, one group and no dilation by Conv, DepthToSpace and Slice."""
    constants, nodes = _constants(graph), []
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "ConvTranspose" else None
        strides = _attribute(node, "strides", [1, 1])
        if weight is None or not (
            len(set(strides)) == len(set(_attribute(node, "kernel_shape", [1, 1]))) == 1
            and _attribute(node, "group", 1) == 1
            and set(_attribute(node, "dilations", [1, 1])) == {1}
            and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
            and not _attribute(node, "output_shape", [])
        ):
            nodes.append(node)
            continue
        stride, kernel, stem = strides[0], numpy_helper.to_array(weight), node.output[0]
        pads, extra = _attribute(node, "pads", [0] * 4), _attribute(node, "output_padding", [0, 0])
        taps = math.ceil(kernel.shape[2] / stride)
        name = f"{node.input[1]}_shuffled"
        inputs = [node.input[0], name]
        _set_constant(graph, name, _shuffled_kernel(kernel, stride))
        if len(node.input) > 2 and node.input[2]:
            inputs.append(f"{name}_bias")
            _set_constant(graph, inputs[-1], np.repeat(numpy_helper.to_array(constants[node.input[2]]), stride**2))
        # The border beyond the transposed convolution's output, which is the same for every size, is cropped.
        ends = [stride * taps - kernel.shape[axis] + pads[axis] - extra[axis - 2] for axis in (2, 3)]
        bounds = {
            "starts": pads[:2],
            "ends": [-end if end else np.iinfo(np.int64).max for end in ends],
            "axes": [2, 3],
        }
        for part, values in bounds.items():
            _set_constant(graph, f"{stem}_{part}", np.array(values, np.int64))
        cells, pixels = f"{stem}_cells", f"{stem}_pixels"
        nodes += [
            helper.make_node("Conv", inputs, [cells], kernel_shape=[taps, taps], pads=[taps - 1] * 4),
            # Output channel o is channels o * s^2 ... of the cells, which is the order CRD.
            helper.make_node("DepthToSpace", [cells], [pixels], blocksize=stride, mode="CRD"),
            helper.make_node("Slice", [pixels, *(f"{stem}_{part}" for part in bounds)], [stem]),
        ]
    _set_nodes(graph, nodes)


def _shuffled_kernel(kernel: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """C_in x C_out x k x k of a transposed convolution -> (C_out s s) x C_in x t x t of the plain one, t = ceil(k / s).

    Output pixel s q + r depends on input pixel q - d through tap s d + r, for d = 0 ... t - 1; taps beyond k are zero.
    """
    into, out, side, _ = kernel.shape
    taps = math.ceil(side / stride)
    full = np.zeros((into, out, taps * stride, taps * stride), kernel.dtype)
    full[:, :, :side, :side] = kernel
    cells = full.reshape(into, out, taps, stride, taps, stride)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(cells.transpose(1, 3, 5, 0, 2, 4)).reshape(out * stride * stride, into, taps, taps)


def _layer(node: onnx.NodeProto) -> str:
    return str(node.input[1].partition(".weight")[0])


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _uses(graph: onnx.GraphProto, name: str) -> int:
    return sum(list(node.input).count(name) for node in graph.node) + [out.name for out in graph.output].count(name)


def _set_constant(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> None:
    """Add an initializer, floats as float32, or replace the one of that name."""
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    if (present := _constants(graph).get(name)) is not None:
        present.CopyFrom(tensor)
    else:
        graph.initializer.append(tensor)


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace the nodes, and remove unused initializers."""
    nodes = [copy.deepcopy(node) for node in nodes]
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    tensors = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
