"""Writing a network in int8: weights alone, or weights and what flows between the layers, as QDQ nodes.

QDQ is a pair of nodes, QuantizeLinear and DequantizeLinear, around each tensor that is to be int8; engines that have
int8 kernels for what lies between them take those, others compute what the nodes say in float. A layer is a
convolution; its name is that of its weight in the generator, `encoder.0.0.first` for `encoder.0.0.first.weight`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fairweather.deploy.rewriting import constants
from fairweather.errors import MissingExtra

Ranges = dict[str, tuple[float, float]]
"""Tensor's name -> least and greatest value that int8 has to hold."""

HALF = 0.55
"""Steps that rounding may move a weight by: a half, and what float32 does at its edge."""


def layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The convolutions with constant weights, by name, in the order in which they run."""
    found = constants(model.graph)
    return {layer_name(n): n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in found}


def layer_name(node: onnx.NodeProto) -> str:
    return str(node.input[1].partition(".weight")[0])


def ends(model: onnx.ModelProto) -> dict[str, str]:
    """Layer -> why it is left in float without being measured: the first ones, which are fed the photo, and the last
    ones, which no other follows. Rounding there goes right through to the picture, and they cost little (Zhou et al.,
    DoReFa-Net, arXiv:1606.06160, section 2.7, leave both in float). Empty for networks of hardly more than ends."""
    nodes = layers(model)
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


def weights_only(model: onnx.ModelProto, chosen: Collection[str]) -> onnx.ModelProto:
    """A copy in which the weights of these layers are int8, symmetric, with a scale for each output channel, and made
    float again where they are used: a quarter of the size, computed in float."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, nodes = copy.graph, []
    found = constants(graph)
    for name, node in layers(copy).items():
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


def measured_ranges(model: onnx.ModelProto, pictures: Sequence[NDArray[np.float32]]) -> Ranges:
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


def static(
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
    named = layers(copy)
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
    written: onnx.ModelProto = quantizer.model.model
    return written


def fed_to(model: onnx.ModelProto, learned: Mapping[str, tuple[float, float]]) -> Ranges:
    """From the range of what flows into each layer to ranges by tensor."""
    return {node.input[0]: learned[name] for name, node in layers(model).items() if name in learned}


def strayed(made: onnx.ModelProto, source: onnx.ModelProto) -> list[str]:
    """Layers whose weights in `made` are not those of `source` rounded to int8 (or, where they are float, the same).

    One wrong weight may change a picture by less than rounding all of them does; it is seen here all the same.
    """
    found, own = constants(made.graph), constants(source.graph)
    decoded = {node.output[0]: node for node in made.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = {layer_name(node): node for node in made.graph.node if node.op_type == "Conv"}
    wrong = []
    for name, node in layers(source).items():
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
        if weights.shape != wanted.shape or not (np.abs(weights - wanted) <= HALF * step + 1e-7).all():
            wrong.append(name)
    return wrong


def _flowing(model: onnx.ModelProto) -> list[str]:
    chosen = [node for node in model.graph.node if node.op_type in ("Conv", "Relu")]
    return list(dict.fromkeys(name for node in chosen for name in (node.input[0], node.output[0])))
