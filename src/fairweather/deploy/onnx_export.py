"""Export a generator as a model folder (weights, ONNX with free height and width, card), if all engines agree."""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from fairweather import model_folder
from fairweather.deploy import parity
from fairweather.errors import BadCard, MissingExtra
from fairweather.files import atomic_folder, check_place, recover, refuse_other_than_model, refuse_within
from fairweather.generators import exported
from fairweather.inference.engines import load_generator

OPSET = 18
_log = logging.getLogger("fairweather")


def export_generator(
    generator: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str,
    weather: str,
    generator_name: str,
    arguments: Mapping[str, Any],
    licence: str,
    terms: str,
    training: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] = (),
    description: str = "",
    direction: Literal["restore", "degrade"] = "restore",
    choice: str = "",
    most_pixels: int = 0,
    half: bool = False,
    photos: Sequence[NDArray[Any]] = (),
    engines: Sequence[str] = parity.PARITY_ENGINES,
) -> model_folder.Card:
    """Write the model folder of a generator and compare all engines with it.

    The folder is written atomically. The generator is not changed: a copy is exported, in eval mode, on the CPU, in
    float32.

    Args:
        generator: the network.
        folder: the model folder; an existing model folder is replaced.
        name, weather, licence, terms, training, scores, description, direction, choice, most_pixels: for the card.
        generator_name: name in GENERATORS.
        arguments: keyword arguments that rebuild the generator.
        half: round the weights to float16 before the export, and store them as float16.
        photos: photos to compare the engines on, H x W x 3 uint8, uint16 or float32; default: synthetic pictures.
        engines: engines to compare.

    Returns:
        The card.

    Raises:
        ParityFailed: an engine differs from the generator by more than PARITY_TOLERANCE.
        BadFolder: the folder cannot be written, or contains something other than a model.
        BadCard: a field cannot be stored, the arguments build another network, or a weight exceeds float16.
    """
    folder = Path(folder)
    check_place(folder)
    recover(folder)
    refuse_other_than_model(folder)
    frozen = copy.deepcopy(generator).to("cpu", torch.float32).eval()
    if half:
        _round_to_half(frozen)
    network: Any = exported(frozen)
    source: Any = frozen
    multiple_of = int(getattr(network, "multiple_of", source.multiple_of))
    maps, state = None, _state_spec(network)
    if source.output == "maps":
        maps = model_folder.MapsSpec(size=int(source.size), radius=int(source.radius), eps=float(source.eps))
    with atomic_folder(folder) as building:
        write_weights(frozen, building / model_folder.WEIGHTS, half=half)
        write_onnx(network, building / model_folder.ONNX, multiple_of)
        peak = bytes_per_pixel(building / model_folder.ONNX, multiple_of, state)
        if half:
            halve_onnx(building / model_folder.ONNX)
        card = model_folder.Card(
            name=name,
            weather=weather,
            generator=generator_name,
            arguments=dict(arguments),
            output=source.output,
            multiple_of=multiple_of,
            receptive_field=source.receptive_field,
            maps=maps,
            training=dict(training),
            scores=[dict(score) for score in scores],
            licence=licence,
            terms=terms,
            bytes_per_pixel=peak,
            description=description,
            direction=direction,
            choice=choice,
            most_pixels=most_pixels,
            state=state,
        )
        card = model_folder.write_card(building, card)
        parity.check_parity(frozen, building, parity.parity_pictures(photos, card), engines=engines)
    return card


def export_model_folder(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    photos: Sequence[NDArray[Any]] = (),
    choice: str | None = None,
    half: bool | None = None,
) -> model_folder.Card:
    """Rebuild a model's generator from its card and weights, and export it again.

    An int8 network is not exported; a warning is logged.

    Args:
        model: name of a shipped model, or path of a model folder or run folder. Its model.onnx may be missing.
        out: the model folder to write.
        photos: photos to compare the engines on, as in `export_generator`.
        choice: replaces the card's `choice`.
        half: round the weights to float16; default: only if the model's weights are float16.

    Returns:
        The new card.

    Raises:
        BadCard: the model's card or weights are wrong. Further as `export_generator`.
    """
    folder = model_folder.find(model)
    refuse_within(out, [folder])
    card = model_folder.read_card(folder, verify=False)
    if card.quantized is not None:
        _log.warning("model %s: %s is not exported: quantize the copy again", card.name, model_folder.INT8)
    if half is None:
        half = any(tensor.dtype == np.float16 for tensor in model_folder.read_weights(folder).values())
    return export_generator(
        load_generator(folder, card),
        out,
        name=card.name,
        weather=card.weather,
        generator_name=card.generator,
        arguments=card.arguments,
        licence=card.licence,
        terms=card.terms,
        training=card.training,
        scores=card.scores,
        description=card.description,
        direction=card.direction,
        choice=card.choice if choice is None else choice,
        most_pixels=card.most_pixels,
        half=half,
        photos=photos,
    )


def write_weights(generator: nn.Module, path: Path, *, half: bool = False) -> None:
    """Write a module's state as safetensors: floats as float32 or, with `half`, weights as float16."""
    state = {
        key: value.detach().to(_stored_type(value, half)).cpu().contiguous().clone()  # clone: tied tensors are refused
        for key, value in generator.state_dict().items()
    }
    path.write_bytes(save(state))  # save_file would create a file that only the owner can read


def _stored_type(value: torch.Tensor, half: bool) -> torch.dtype:
    """Biases and batch norm statistics stay float32: they are few, and variances may be below float16's range."""
    if not value.is_floating_point():
        return value.dtype
    return torch.float16 if half and value.ndim > 1 else torch.float32


def _round_to_half(generator: nn.Module) -> None:
    with torch.no_grad():
        for name, value in generator.state_dict().items():
            rounded = value.to(_stored_type(value, True))
            if not torch.isfinite(rounded.float()).all():
                raise BadCard(f"weight {name} exceeds the range of float16: export with --no-half")
            value.copy_(rounded)


def _state_spec(network: Any) -> model_folder.StateSpec | None:
    if not hasattr(network, "state_channels"):
        return None
    return model_folder.StateSpec(channels=int(network.state_channels), stride=int(network.state_stride))


def write_onnx(network: nn.Module, path: Path, multiple_of: int) -> None:
    """Write a network as one ONNX file.

    Args:
        network: maps 1 x 3 x h x w (and, if recurrent, its state) to a result (and the next state), in eval mode.
        path: the file. Its inputs are `picture` (and `state`), its outputs `result` (and `state_after`); h and w are
            free multiples of `multiple_of`.
        multiple_of: required divisor of the sides.
    """
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it and reports its absence less clearly)
    except ImportError:
        raise MissingExtra("onnxscript", "train", "exporting a model") from None
    # At least two cells, or torch specializes the side to a constant; two different sides, or it assumes a square.
    cells = math.ceil(64 / multiple_of)
    sides = ((cells + 1) * multiple_of, (cells + 2) * multiple_of)
    rows, columns = (torch.export.Dim(f"cells_{axis}", min=1, max=1 << 20) for axis in ("down", "across"))
    inputs = [torch.linspace(0, 1, 3 * sides[0] * sides[1]).reshape(1, 3, *sides)]
    shapes = [{2: multiple_of * rows, 3: multiple_of * columns}]
    names = (["picture"], ["result"])
    if (state := _state_spec(network)) is not None:
        names = (["picture", "state"], ["result", "state_after"])
        inputs.append(torch.zeros(1, state.channels, *(side // state.stride for side in sides)))
        shapes.append({axis: multiple_of // state.stride * dim for axis, dim in ((2, rows), (3, columns))})
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                tuple(inputs),
                path,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=tuple(shapes),
                input_names=names[0],
                output_names=names[1],
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def halve_onnx(path: Path) -> None:
    """Store those float32 weights of a file as float16 that float16 represents exactly, each followed by a cast.

    Engines fold the casts on loading, so that results do not change.
    """
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name, values = weight.name, onnx.numpy_helper.to_array(weight)
        halved = values.astype(np.float16)
        if np.array_equal(halved.astype(np.float32), values):
            weight.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}_float16"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_float16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def bytes_per_pixel(path: Path, multiple_of: int, state: model_folder.StateSpec | None = None) -> float:
    """Count the peak memory of a network's activations, in bytes per input pixel.

    The tensors alive at once while the graph runs node by node, without weights and without an engine's scratch space.
    The graph is run once for the sizes, since ONNX shape inference does not pass a pixel unshuffle.
    """
    model = onnx.load(path)
    side = multiple_of * math.ceil(64 / multiple_of)
    constant = {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:  # tensors that depend only on weights do not grow with the photo either
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
    outputs = {value.name for value in model.graph.output}
    computed = {name for node in model.graph.node for name in node.output if name}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(computed - outputs - constant))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    zeros = [np.zeros((1, 3, side, side), np.float32)]
    if state is not None:
        zeros.append(np.zeros((1, state.channels, side // state.stride, side // state.stride), np.float32))
    inputs = dict(zip((entry.name for entry in session.get_inputs()), zeros, strict=True))
    results = session.run(None, dict(inputs))
    sizes = {entry.name: result.nbytes for entry, result in zip(session.get_outputs(), results, strict=True)}
    sizes |= {name: value.nbytes for name, value in inputs.items()}
    last = {name: index for index, node in enumerate(model.graph.node) for name in node.input}
    alive = peak = sum(value.nbytes for value in inputs.values())
    for index, node in enumerate(model.graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(sizes.get(name, 0) for name in set(node.input) if last[name] == index)
    return float(round(peak / (side * side), 1))
