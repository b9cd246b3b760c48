"""From a generator to a model folder (weights, ONNX with free height and width, card), kept only if engines agree."""

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
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from fairweather import cards
from fairweather.deploy import parity
from fairweather.errors import BadCard, MissingExtra
from fairweather.files import atomic_folder, recover
from fairweather.generators import exported
from fairweather.outputs import check_place, refuse_other_than_model, refuse_within
from fairweather.restoring.engines import rebuilt

OPSET = 18
_log = logging.getLogger("fairweather")


def export(
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
    engines: Sequence[str] = parity.ENGINES,
) -> cards.Card:
    """Write the model folder of a generator and give its card.

    `generator_name` and `arguments` must rebuild the generator. `photos` (H x W x 3 uint8, uint16 or float32) are what
    the engines are compared on; without them, invented pictures. The folder appears whole or not at all; a model folder
    that is there already is replaced, any other folder with something in it is not. The generator is not changed: a
    copy goes to ONNX, in eval mode, on the CPU, in float32. With `half` that copy's weights are first rounded to
    float16, and weights.safetensors holds them so, at half the size.
    Raises ParityFailed, BadFolder, BadCard.
    """
    folder = Path(folder)
    check_place(folder)
    recover(folder)
    refuse_other_than_model(folder)
    frozen = copy.deepcopy(generator).to("cpu", torch.float32).eval()
    if half:
        _round_to_half(frozen)
    network = exported(frozen)
    multiple_of = int(getattr(network, "multiple_of", frozen.multiple_of))  # type: ignore[arg-type]
    maps = None
    if frozen.output == "maps":
        maps = cards.MapsSpec(size=int(frozen.size), radius=int(frozen.radius), eps=float(frozen.eps))  # type: ignore[arg-type]
    with atomic_folder(folder) as building:
        write_weights(frozen, building / cards.WEIGHTS, half=half)
        write_onnx(network, building / cards.ONNX, multiple_of)
        card = cards.Card(
            name=name,
            weather=weather,
            generator=generator_name,
            arguments=dict(arguments),
            output=frozen.output,  # type: ignore[arg-type]
            multiple_of=multiple_of,
            receptive_field=frozen.receptive_field,  # type: ignore[arg-type]
            maps=maps,
            training=dict(training),
            scores=[dict(score) for score in scores],
            licence=licence,
            terms=terms,
            bytes_per_pixel=bytes_per_pixel(building / cards.ONNX, multiple_of, _state(network)),
            description=description,
            direction=direction,
            choice=choice,
            most_pixels=most_pixels,
            state=_state(network),
        )
        if half:
            halve_onnx(building / cards.ONNX)
        card = cards.write_card(building, card)
        parity.check(frozen, building, parity.pictures(photos, card), engines=engines)
    return card


def reexport(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    photos: Sequence[NDArray[Any]] = (),
    choice: str | None = None,
    half: bool | None = None,
) -> cards.Card:
    """Build a model's generator from its card and weights and export it anew: another release's ONNX, a checked copy.

    `model`: a shipped name, a model folder, or a run folder; `choice` takes the place of what its card says on that,
    and `half` is as its weights are where it is not given. An int8 network is not made again; that is said.
    Raises as `export`, and BadCard where weights do not fit.
    """
    folder = cards.find(model)
    refuse_within(out, [folder])
    card = cards.read_card(folder, verify=False)  # its model.onnx may be the very thing that needs making again
    if card.quantized is not None:
        _log.warning(
            "model %s: %s is not exported with it: run fairweather quantize on the copy", card.name, cards.INT8
        )
    if half is None:
        half = any(tensor.dtype == np.float16 for tensor in cards.read_weights(folder).values())
    return export(
        rebuilt(folder, card),
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
    """The state of a module as safetensors, floats as float32 (with `half`, weights as float16), tied tensors written
    twice."""
    state = {
        key: value.detach().to(_stored(value, half)).cpu().contiguous().clone()
        for key, value in generator.state_dict().items()
    }
    path.write_bytes(save(state))  # its own way to a file leaves one that only the owner can read


def _state(network: nn.Module) -> cards.StateSpec | None:
    """What the card says of a network's memory, where it has one."""
    if not hasattr(network, "state_channels"):
        return None
    return cards.StateSpec(channels=int(network.state_channels), stride=int(network.state_stride))  # type: ignore[arg-type]


def _stored(value: torch.Tensor, half: bool) -> torch.dtype:
    """Weights alone are halved: biases and batch norm's statistics are few, and a variance may be small beyond it."""
    if not value.is_floating_point():
        return value.dtype
    return torch.float16 if half and value.ndim > 1 else torch.float32


def _round_to_half(generator: nn.Module) -> None:
    """Each weight to the nearest float16, in place. Raises BadCard where one is beyond its range."""
    with torch.no_grad():
        for name, value in generator.state_dict().items():
            rounded = value.to(_stored(value, True))
            if not torch.isfinite(rounded.float()).all():
                raise BadCard(f"weight {name} is beyond float16: export in full precision (without half)")
            value.copy_(rounded)


def write_onnx(network: nn.Module, path: Path, multiple_of: int) -> None:
    """One file: input `picture` 1 x 3 x h x w with h and w any multiples of `multiple_of`, output `result`; of a
    network with a memory `state` goes in and `state_after` comes out beside them."""
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it and says so less clearly)
    except ImportError:
        raise MissingExtra("onnxscript", "train", "exporting a model") from None
    # At least two cells, or torch would take the side for a constant; two lengths, or it would take them for equal.
    cells = math.ceil(64 / multiple_of)
    sides = ((cells + 1) * multiple_of, (cells + 2) * multiple_of)
    down, across = (torch.export.Dim(f"cells_{way}", min=1, max=1 << 20) for way in ("down", "across"))
    inputs = [torch.linspace(0, 1, 3 * sides[0] * sides[1]).reshape(1, 3, *sides)]
    shapes = [{2: multiple_of * down, 3: multiple_of * across}]
    names = (["picture", "state"], ["result", "state_after"])
    if (spec := _state(network)) is not None:
        cell = multiple_of // spec.stride
        inputs.append(torch.zeros(1, spec.channels, *(side // spec.stride for side in sides)))
        shapes.append({2: cell * down, 3: cell * across})
    quiet = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
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
                input_names=names[0][: len(inputs)],
                output_names=names[1][: len(inputs)],
                verbose=False,
            )
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def halve_onnx(path: Path) -> None:
    """Keep the file's float32 weights as float16, each with a cast behind it, which engines fold when they load it.

    For weights that float16 holds exactly: nothing that is computed changes.
    """
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name, values = weight.name, onnx.numpy_helper.to_array(weight)
        halved = values.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), values):
            continue
        weight.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}_float16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_float16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def bytes_per_pixel(path: Path, multiple_of: int, state: cards.StateSpec | None = None) -> float:
    """Peak of the bytes that are alive at once while the network runs node by node, per pixel of its input.

    Counted on the ONNX graph at one size, by running it once: inference of shapes alone gives up behind a pixel
    unshuffle, whose sizes are computed in the graph. Weights, which do not grow with the photo, are left out. An
    engine's own scratch space comes on top, work done in place comes off.
    """
    import onnxruntime

    model = onnx.load(path)
    side = multiple_of * math.ceil(64 / multiple_of)
    fixed = {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:  # what is computed from weights alone does not grow with the photo either
        if all(name in fixed for name in node.input if name):
            fixed.update(node.output)
    given = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output if name}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made - given - fixed))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    zeros = [np.zeros((1, 3, side, side), np.float32)]
    if state is not None:
        zeros.append(np.zeros((1, state.channels, side // state.stride, side // state.stride), np.float32))
    fed = dict(zip((entry.name for entry in session.get_inputs()), zeros, strict=True))
    answers = session.run(None, dict(fed))
    sizes = {told.name: answer.nbytes for told, answer in zip(session.get_outputs(), answers, strict=True)}
    sizes |= {name: given.nbytes for name, given in fed.items()}
    last = {name: index for index, node in enumerate(model.graph.node) for name in node.input}
    alive = peak = sum(given.nbytes for given in fed.values())
    for index, node in enumerate(model.graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        alive -= sum(sizes.get(name, 0) for name in set(node.input) if last[name] == index)
    return float(round(peak / (side * side), 1))
