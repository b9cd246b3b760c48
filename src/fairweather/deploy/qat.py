"""Quantization-aware fine-tuning: training continues with the convolutions rounded as int8 rounds them.

torchao's PT2E flow: export, `prepare_qat_pt2e` with the quantizer below, training. Weights and input ranges are then
read back, so that deploy/int8.py writes the same graph as after calibration.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
from fairweather.deploy.sample_photos import PhotoPath
from fairweather.errors import BadSettings, MissingExtra
from fairweather.generators import exported

QAT_BATCH = 4
QAT_CROP = 128
"""Side of the training crops of an image network, rounded up to `multiple_of`."""
QAT_FROZEN = 0.25
"""Share of the steps, at the end, with fixed ranges."""
QAT_RATE = 5e-6
"""Learning rate of Adam; small, since the weights are already trained."""
QAT_CHECKS, QAT_VALIDATION = 5, 4
"""Number of validations, and of batches for each."""
_log = logging.getLogger("fairweather")


@dataclass(frozen=True)
class TunedNetwork:
    """The result of fine-tuning."""

    network: nn.Module
    """The part of the generator that is exported, in float, fine-tuned, with batch norm folded."""
    ranges: dict[str, tuple[float, float]]
    """Layer -> learned range of its input."""
    kept: int
    """The step with the least validation error, whose weights these are; 0 if no step improved on the start."""


def fine_tune(
    generator: nn.Module,
    paths: Sequence[PhotoPath],
    *,
    floats: Collection[str] = (),
    steps: int = 200,
    seed: int = 0,
    rate: float = QAT_RATE,
) -> TunedNetwork:
    """Fine-tune a copy of a generator with int8 rounding.

    The loss is the Charbonnier distance to the float model's output (distillation) and, if known, to the ground truth.
    Adam, learning rate with cosine decay.

    Args:
        generator: the float model; it is not changed.
        paths: photos, with or without ground truth.
        floats: layers that stay in float.
        steps: number of steps.
        seed: seed of crops and flips.
        rate: learning rate.

    Raises:
        MissingExtra: torchao is not installed.
        BadSettings: `steps` is below 1.
    """
    if steps < 1:
        raise BadSettings(f"--steps {steps}: give at least 1")
    prepare, allow_eval, disable_observer = _torchao()
    teacher = copy.deepcopy(generator).cpu().float().eval()
    student: Any = fold_batch_norm(copy.deepcopy(teacher))
    student.requires_grad_(True)
    batches = _batches(generator, paths, seed)
    degraded, _ = next(batches)
    part: Any = exported(student).train()
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        prepared = prepare(torch.export.export(part, (degraded,)).module(), _quantizer(floats))
    allow_eval(prepared)
    if part is student:
        student = prepared
    else:
        prepared.multiple_of = part.multiple_of
        student.maps_module = prepared
    optimizer = torch.optim.Adam([p for p in prepared.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    validation = [(one, clear, _run(teacher, one)) for one, clear in (next(batches) for _ in range(QAT_VALIDATION))]
    for one, _, _ in validation:  # initial ranges
        _run(student, one)
    best, kept, state = _error(student, validation), 0, copy.deepcopy(prepared.state_dict())
    for step in range(1, steps + 1):
        if step == math.ceil(steps * (1 - QAT_FROZEN)) + 1:
            prepared.apply(disable_observer)
        degraded, clear = next(batches)
        output = student(degraded)
        loss = _charbonnier(output, _run(teacher, degraded))
        if clear is not None:
            loss = loss + _charbonnier(output, clear)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // QAT_CHECKS) == 0 or step == steps:
            error = _error(student, validation)
            _log.info("qat: step %d of %d, squared error %.3e (best so far %.3e)", step, steps, error, best)
            if error < best:
                best, kept, state = error, step, copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(state)
    tuned = exported(fold_batch_norm(copy.deepcopy(teacher)))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            parameter.copy_(prepared.get_parameter(name))
    return TunedNetwork(tuned.eval(), _ranges(prepared), kept)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold batch norm into the convolution before it, in place, in eval mode."""
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
    """prepare_qat_pt2e, allow_exported_model_train_eval, disable_observer."""
    try:
        logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels for other processors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization.pt2e import allow_exported_model_train_eval, disable_observer
            from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    except ImportError:
        raise MissingExtra("torchao", "quantize", "quantization-aware fine-tuning") from None
    return prepare_qat_pt2e, allow_exported_model_train_eval, disable_observer


def _quantizer(floats: Collection[str]) -> Any:
    """A torchao quantizer that rounds as deploy/int8.py does."""
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, averaging_constant=0.05
        ),
    )

    def weights(axis: int) -> Any:
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-64,
            quant_max=64,
            qscheme=torch.per_channel_symmetric,
            ch_axis=axis,
            observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
                observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
            ),
        )

    class Convolutions(Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node, layer in _convolutions(model):
                if layer not in floats:
                    specs = {node.args[0]: activations, node.args[1]: weights(int("transpose" in str(node.target)))}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=specs, _annotated=True
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return Convolutions()


def _convolutions(model: torch.fx.GraphModule) -> Iterator[tuple[Any, str]]:
    """The convolutions of an exported network, with their layers' names."""
    nodes: Any = model.graph.nodes
    for node in nodes:
        if node.op == "call_function" and "conv" in str(node.target) and len(node.args) > 1:
            weight = node.args[1]
            while weight.op != "get_attr":  # skip its fake quantization
                weight = weight.args[0]
            yield node, str(weight.target).removesuffix(".weight")


def _ranges(prepared: torch.fx.GraphModule) -> dict[str, tuple[float, float]]:
    ranges = {}
    for node, layer in _convolutions(prepared):
        source = node.args[0]
        if source.op == "call_module":  # else the layer stays in float
            module: Any = prepared.get_submodule(str(source.target))
            scale, zero = (float(value) for value in module.calculate_qparams())
            ranges[layer] = ((0 - zero) * scale, (255 - zero) * scale)
    return ranges


def _run(network: nn.Module, degraded: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(degraded)
    return output


def _error(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> float:
    """Mean squared error to the float model's output and, if known, to the ground truth."""
    errors = []
    for degraded, clear, teacher in batches:
        output = _run(network, degraded)
        errors += [float(F.mse_loss(output, target)) for target in (teacher, clear) if target is not None]
    return float(np.mean(errors))


def _charbonnier(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt(F.mse_loss(a, b, reduction="none") + 1e-6).mean()


def _batches(
    generator: nn.Module, paths: Sequence[PhotoPath], seed: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Random square crops, randomly flipped, QAT_BATCH x 3 x s x s, of one size, which the export needs.

    For a network with a reduced input, crops are as large as the photo allows and reduced to the input's size.
    """
    random = np.random.default_rng(seed)
    source: Any = generator
    part: Any = exported(generator)
    reduces = part is not generator
    side = math.ceil((source.size if reduces else QAT_CROP) / part.multiple_of) * part.multiple_of

    @cache
    def photo(path: Path) -> NDArray[Any]:
        return images.read(path).pixels

    while True:
        sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = [], []
        for _ in range(QAT_BATCH):
            pair = paths[int(random.integers(len(paths)))]
            whole = [photo(path) for path in pair if path is not None]
            height, width = whole[0].shape[:2]
            cut = min(height, width) if reduces else min(height, width, side)
            top, left = (int(random.integers(room - cut + 1)) for room in (height, width))
            flipped = bool(random.integers(2))
            for into, pixels in zip(sides, whole, strict=False):
                square = images.to_float(np.ascontiguousarray(pixels[top : top + cut, left : left + cut]))
                if cut != side:
                    interpolation = cv2.INTER_AREA if cut > side else cv2.INTER_LINEAR
                    square = np.asarray(cv2.resize(square, (side, side), interpolation=interpolation), np.float32)
                into.append(np.ascontiguousarray(square[:, ::-1] if flipped else square).transpose(2, 0, 1))
        yield torch.from_numpy(np.stack(sides[0])), torch.from_numpy(np.stack(sides[1])) if sides[1] else None
