"""Quantization-aware fine-tuning: the network trains on with its convolutions rounded as int8 will round them.

torchao's PT2E flow (export, `prepare_qat_pt2e` with the quantizer below, train); weights and the ranges of what flows
into each layer are then read back, and the same writer makes the file as for post-training quantization: one graph,
one set of rules, whatever trained it.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fairweather import images
from fairweather.errors import BadSettings, MissingExtra
from fairweather.generators import exported

QAT_BATCH = 4
QAT_CROP = 128
"""Side of what an image network trains on, to the next multiple that it takes."""
QAT_FROZEN = 0.25
"""Share of the steps, the last ones, in which the ranges no longer move."""
QAT_RATE = 5e-6
"""Adam moves each weight by about this a step, whatever the gradient: what is trained already needs no more."""
CHECKS, VALIDATED = 5, 4
"""How often it is asked whether what was learned is kept, and on how many batches."""
_log = logging.getLogger("fairweather")


@dataclass(frozen=True)
class TunedNetwork:
    """What fine-tuning gives."""

    network: nn.Module
    """The float network with the weights that it learned, batch norm folded; what is exported of it."""
    learned: dict[str, tuple[float, float]]
    """Layer -> the range of what flows into it."""
    kept: int
    """The step whose weights these are: the best by squared error on fixed crops; 0 where no step was better than none.
    """


def fine_tune(
    generator: nn.Module,
    paths: Sequence[tuple[Path, Path | None]],
    *,
    floats: Collection[str] = (),
    steps: int = 200,
    seed: int = 0,
    rate: float = QAT_RATE,
) -> TunedNetwork:
    """Fine-tune a copy of the generator, the layers `floats` in float, on the photos (with truths: Charbonnier loss to
    the truth and to the float model's answer; without: to its answer alone, distillation).

    Adam with a cosine to zero. Raises MissingExtra without torchao, BadSettings where there is nothing to do.
    """
    if steps < 1:
        raise BadSettings(f"steps must be at least 1, not {steps}")
    quantize, allow, off = _torchao()
    teacher = copy.deepcopy(generator).cpu().float().eval()
    student = fold(copy.deepcopy(teacher))
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    batches = _batches(generator, paths, seed)
    degraded, _ = next(batches)
    part = exported(student).train()
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        graph = torch.export.export(part, (degraded,)).module()
        prepared = quantize(graph, _quantizer(floats))
    allow(prepared)
    whole = student
    if part is student:
        whole = prepared
    else:
        prepared.multiple_of = part.multiple_of
        whole.maps_module = prepared
    optimizer = torch.optim.Adam([p for p in prepared.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    watched = [(one, clear, _answer(teacher, one)) for (one, clear), _ in zip(batches, range(VALIDATED), strict=False)]
    for one, _, _ in watched:  # ranges to begin with, measured and not learned
        _answer(whole, one)
    best, kept, state = _error(whole, watched), 0, copy.deepcopy(prepared.state_dict())
    for step in range(steps):
        if step == math.ceil(steps * (1 - QAT_FROZEN)):
            prepared.apply(off)
        degraded, clear = next(batches)
        answer = whole(degraded)
        loss = _charbonnier(answer, _answer(teacher, degraded))
        if clear is not None:
            loss = loss + _charbonnier(answer, clear)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // CHECKS) == 0 or step == steps - 1:
            error = _error(whole, watched)
            _log.info("qat: step %d of %d, squared error %.3e (%.3e before)", step + 1, steps, error, best)
            if error < best:
                best, kept, state = error, step + 1, copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(state)
    tuned = fold(copy.deepcopy(teacher))
    own = exported(tuned)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(prepared.get_parameter(name))
    return TunedNetwork(own.eval(), _learned(prepared), kept)


def fold(network: nn.Module) -> nn.Module:
    """Batch norm behind a convolution folded into it, in place, in eval mode: what will be int8 has none."""
    network.eval()
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            layer, norm = module[index], module[index + 1]
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d))
                module[index + 1] = nn.Identity()
    return network


def _torchao() -> tuple[Any, Any, Any]:
    """(prepare_qat_pt2e, what lets an exported network be put into eval, what stops observing)."""
    try:
        logging.getLogger("torchao").setLevel(logging.ERROR)  # kernels for other processors, which it cannot load
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization.pt2e import allow_exported_model_train_eval, disable_observer
            from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    except ImportError:
        raise MissingExtra("torchao", "quantize", "quantization-aware fine-tuning") from None
    return prepare_qat_pt2e, allow_exported_model_train_eval, disable_observer


def _quantizer(floats: Collection[str]) -> Any:
    """What tells torchao which layers are rounded how: as deploy/int8.py writes them."""
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    flowing = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, averaging_constant=0.05
        ),
    )

    def weights(axis: int) -> Any:
        observed = FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
        )
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-64,
            quant_max=64,
            qscheme=torch.per_channel_symmetric,
            ch_axis=axis,
            observer_or_fake_quant_ctr=observed,
        )

    class Convolutions(Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node, layer in _convolutions(model):
                if layer not in floats:
                    axis = 0 if "transpose" not in str(node.target) else 1
                    given = {node.args[0]: flowing, node.args[1]: weights(axis)}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=given, _annotated=True
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return Convolutions()


def _convolutions(model: torch.fx.GraphModule) -> Iterator[tuple[Any, str]]:
    """Every convolution of an exported network, with its layer's name."""
    nodes: Any = model.graph.nodes
    for node in nodes:
        if node.op == "call_function" and "conv" in str(node.target) and len(node.args) > 1:
            weight = node.args[1]
            while weight.op != "get_attr":  # behind its fake quantization
                weight = weight.args[0]
            yield node, str(weight.target).removesuffix(".weight")


def _learned(prepared: torch.fx.GraphModule) -> dict[str, tuple[float, float]]:
    found = {}
    for node, layer in _convolutions(prepared):
        fed = node.args[0]
        if fed.op != "call_module":
            continue  # a layer that stays in float
        module: Any = prepared.get_submodule(str(fed.target))
        scale, zero = (float(value) for value in module.calculate_qparams())
        found[layer] = ((0 - zero) * scale, (255 - zero) * scale)
    return found


def _answer(network: nn.Module, degraded: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(degraded)
    return answer


def _error(network: nn.Module, watched: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> float:
    """Mean squared error, as rounded, to the truths where there are some, and to the float model's answers."""
    errors = []
    for degraded, clear, wanted in watched:
        answer = _answer(network, degraded)
        errors += [float(F.mse_loss(answer, one)) for one in (wanted, clear) if one is not None]
    return float(np.mean(errors))


def _charbonnier(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt(F.mse_loss(a, b, reduction="none") + 1e-6).mean()


def _batches(
    generator: nn.Module, paths: Sequence[tuple[Path, Path | None]], seed: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Square crops, mirrored at random, BATCH x 3 x s x s, of one size: the network is exported for that.

    A network that sees a reduced photo is shown crops as large as the photo allows, reduced to its size.
    """
    random = np.random.default_rng(seed)
    part = exported(generator)
    reduces = part is not generator
    multiple = int(part.multiple_of)  # type: ignore[arg-type]
    side = math.ceil((int(generator.size) if reduces else QAT_CROP) / multiple) * multiple  # type: ignore[arg-type]
    kept: dict[Path, NDArray[Any]] = {}

    def photo(path: Path) -> NDArray[Any]:
        if path not in kept:
            kept[path] = images.read(path).pixels
        return kept[path]

    while True:
        sides: list[list[NDArray[np.float32]]] = [[], []]
        for _ in range(QAT_BATCH):
            pair = paths[int(random.integers(len(paths)))]
            whole = [photo(path) for path in pair if path is not None]
            height, width = whole[0].shape[:2]
            cut = min(height, width) if reduces else min(height, width, side)
            top, left = (int(random.integers(room - cut + 1)) for room in (height, width))
            mirrored = bool(random.integers(2))
            for into, pixels in zip(sides, whole, strict=False):
                square = images.to_float(np.ascontiguousarray(pixels[top : top + cut, left : left + cut]))
                if cut != side:
                    way = cv2.INTER_AREA if cut > side else cv2.INTER_LINEAR
                    square = np.asarray(cv2.resize(square, (side, side), interpolation=way), np.float32)
                into.append(np.ascontiguousarray(square[:, ::-1] if mirrored else square).transpose(2, 0, 1))
        degraded, clear = (torch.from_numpy(np.stack(one)) if one else None for one in sides)
        assert degraded is not None
        yield degraded, clear
