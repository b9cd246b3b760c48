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
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fairweather.errors import MissingExtra

GraphWeights = NDArray[np.float32]


def prepare_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all the rewrites."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    widen_float16(copy)
    fold_batch_norm(copy)
    shuffle_transposed(copy)
    return copy


def graph_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializer by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def widen_float16(model: onnx.ModelProto) -> None:
    """Float16 initializers behind a cast become float32 initializers under the cast's name, in place."""
    graph, found, kept = model.graph, graph_constants(model.graph), []
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
        found = graph_constants(graph)
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
    graph, found, nodes = model.graph, graph_constants(model.graph), []
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


def shuffled_kernel(kernel: GraphWeights, stride: int) -> GraphWeights:
    """C_in x C_out x k x k of a transposed convolution -> (C_out s s) x C_in x t x t of the plain one, t = ceil(k / s).

    Output s q + r sees input q - d by the tap s d + r, for d = 0 ... t - 1; taps beyond the kernel are zero.
    """
    into, out, side, _ = kernel.shape
    taps = math.ceil(side / stride)
    full = np.zeros((into, out, taps * stride, taps * stride), kernel.dtype)
    full[:, :, :side, :side] = kernel
    cells = full.reshape(into, out, taps, stride, taps, stride)[:, :, ::-1, :, ::-1]
    shuffled: GraphWeights = cells.transpose(1, 3, 5, 0, 2, 4).reshape(out * stride * stride, into, taps, taps)
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


# Writing a network in int8: weights alone, or weights and what flows between the layers, as QDQ nodes.
#
# QDQ is a pair of nodes, QuantizeLinear and DequantizeLinear, around each tensor that is to be int8; engines that have
# int8 kernels for what lies between them take those, others compute what the nodes say in float. A layer is a
# convolution; its name is that of its weight in the generator, `encoder.0.0.first` for `encoder.0.0.first.weight`.

ActivationRanges = dict[str, tuple[float, float]]
"""Tensor's name -> least and greatest value that int8 has to hold."""

HALF_RANGE = 0.55
"""Steps that rounding may move a weight by: a half, and what float32 does at its edge."""


def quantizable_layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The convolutions with constant weights, by name, in the order in which they run."""
    found = graph_constants(model.graph)
    return {layer_name(n): n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in found}


def layer_name(node: onnx.NodeProto) -> str:
    return str(node.input[1].partition(".weight")[0])


def outer_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Layer -> why it is left in float without being measured: the first ones, which are fed the photo, and the last
    ones, which no other follows. Rounding there goes right through to the picture, and they cost little (Zhou et al.,
    DoReFa-Net, arXiv:1606.06160, section 2.7, leave both in float). Empty for networks of hardly more than ends."""
    nodes = quantizable_layers(model)
    fed, followed = {model.graph.input[0].name}, set[str]()
    named = {id(node): name for name, node in nodes.items()}
    for node in model.graph.node:  # in the order in which they run
        if id(node) not in named and any(tensor in fed for tensor in node.input):
            fed.update(node.output)
    wanted = set[str]()
    for node in reversed(model.graph.node):
        leads = any(tensor in wanted for tensor in node.output)
        if leads and id(node) in named:
            followed.add(named[id(node)])
        if leads or id(node) in named:
            wanted.update(node.input)
    found = {name: "it is fed the photo" for name, node in nodes.items() if node.input[0] in fed}
    found |= {name: "no other layer follows it" for name in nodes if name not in followed}
    return found if len(found) * 3 <= len(nodes) else {}


def quantize_weights(model: onnx.ModelProto, chosen: Collection[str]) -> onnx.ModelProto:
    """A copy in which the weights of these layers are int8, symmetric, with a scale for each output channel, and made
    float again where they are used: a quarter of the size, computed in float."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, nodes = copy.graph, []
    found = graph_constants(graph)
    for name, node in quantizable_layers(copy).items():
        if name not in chosen:
            continue
        weight = node.input[1]
        values = numpy_helper.to_array(found[weight])
        largest = np.abs(values).reshape(len(values), -1).max(1)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        rounded = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).clip(-127, 127).astype(np.int8)
        parts = {"int8": rounded, "scale": scale, "zero": np.zeros(len(values), np.int8)}
        graph.initializer.remove(found[weight])
        graph.initializer.extend(numpy_helper.from_array(part, f"{weight}_{key}") for key, part in parts.items())
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{weight}_{key}" for key in parts], [weight], axis=0, name=weight)
        )
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return copy


def measured_ranges(model: onnx.ModelProto, pictures: Sequence[NDArray[np.float32]]) -> ActivationRanges:
    """The range of every convolution's and ReLU's input and output, over what the network is fed (1 x 3 x h x w each).

    The least and the greatest value in a picture, each averaged over the pictures: what is rare is cut off rather than
    that all else gets coarser steps. Calibration by mean minima and maxima, as Jacob et al., CVPR 2018, section 3.1,
    average them while they train.
    """
    import onnxruntime

    names = _flowing(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in given
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = model.graph.input[0].name
    asked = [name for name in names if name != fed]
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for picture in pictures:
        answers = dict(zip(asked, session.run(asked, {fed: picture}), strict=True)) | {fed: picture}
        for name in names:
            ends[name].append((float(answers[name].min()), float(answers[name].max())))
    means = {name: np.mean(np.asarray(found), 0) for name, found in ends.items()}
    return {name: (min(0.0, float(low)), max(0.0, float(high))) for name, (low, high) in means.items()}


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], chosen: Collection[str]
) -> onnx.ModelProto:
    """A copy in which these layers compute in int8: QDQ around their input and output, written by ONNX Runtime.

    What flows is 8 bits, unsigned and asymmetric, one scale a tensor; weights are symmetric with a scale for each
    output channel, of 7 bits: processors without VNNI add two products of 8 by 8 bits in 16 and would overflow, and
    then engines and machines give different pictures.
    """
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantType, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ImportError:
        raise MissingExtra("onnxruntime", "quantize", "static quantization") from None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    named = quantizable_layers(copy)
    nodes = [named[name] for name in named if name in chosen]
    if not nodes:
        return copy
    for index, node in enumerate(copy.graph.node):
        node.name = node.name or f"node_{index}"
    outputs = {node.output[0] for node in nodes}
    # A ReLU behind a layer is part of it: its zero becomes the end of the range, and nothing is spent below.
    relus = [node for node in copy.graph.node if node.op_type == "Relu" and node.input[0] in outputs]
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copy,
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


def fed_to(model: onnx.ModelProto, learned: Mapping[str, tuple[float, float]]) -> ActivationRanges:
    """From the range of what flows into each layer to ranges by tensor."""
    return {node.input[0]: learned[name] for name, node in quantizable_layers(model).items() if name in learned}


def changed_layers(made: onnx.ModelProto, source: onnx.ModelProto) -> list[str]:
    """Layers whose weights in `made` are not those of `source` rounded to int8 (or, where they are float, the same).

    One wrong weight may change a picture by less than rounding all of them does; it is seen here all the same.
    """
    found, own = graph_constants(made.graph), graph_constants(source.graph)
    decoded = {node.output[0]: node for node in made.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = {layer_name(node): node for node in made.graph.node if node.op_type == "Conv"}
    wrong = []
    for name, node in quantizable_layers(source).items():
        wanted = numpy_helper.to_array(own[node.input[1]])
        step = np.float32(0)
        stored = convolutions[name].input[1]
        if stored in decoded:
            values, scale, zero = (numpy_helper.to_array(found[part]) for part in decoded[stored].input)
            shape = (-1, *[1] * (wanted.ndim - 1))
            step = scale.reshape(shape)
            weights = (values.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * step
        else:
            weights = numpy_helper.to_array(found[stored])
        if weights.shape != wanted.shape or not (np.abs(weights - wanted) <= HALF_RANGE * step + 1e-7).all():
            wrong.append(name)
    return wrong


def _flowing(model: onnx.ModelProto) -> list[str]:
    chosen = [node for node in model.graph.node if node.op_type in ("Conv", "Relu")]
    return list(dict.fromkeys(name for node in chosen for name in (node.input[0], node.output[0])))
