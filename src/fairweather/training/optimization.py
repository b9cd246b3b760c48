"""The training engine (devices, precision, optimizers, averaging) and its parts: Muon, EMA, sample history."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadFolder, BadSettings
from fairweather.recipes import Batch, OptimizerGroup, Recipe
from fairweather.training.config import Device, Precision
from fairweather.training.dataloader import BatchLoader, DeviceBatchLoader, SampleSource
from fairweather.training.distributed import ProcessGroup

COMPILER: dict[str, Any] = {}
"""Further arguments of torch.compile."""


class TrainingEngine:
    """Runs a recipe's steps on a device, in a precision, in one or several processes.

    The engine is the `update` of a recipe's step: `update(name, loss)` takes an optimizer step. No parameter outside
    the group gets a gradient, so a loss may run through other groups' networks. With several processes, each computes
    gradients on its own samples and all apply their mean.

    Args:
        recipe: the networks and the step; moved to the device in place.
        device, precision: "auto" is resolved here; with `processes` they must be those of the processes.
        seed: of the sample histories.
        processes: the processes of the run (default: this one alone).
        compiled: compile the generators for training steps; sample sheets and export use them uncompiled.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        seed: int = 0,
        processes: ProcessGroup | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.processes = processes or ProcessGroup(self.device, self.precision)
        self.fabric = self.processes.fabric
        self.recipe = recipe.to(self.fabric.device)
        self.processes.share_weights(self.recipe)
        self.channels_last = self.device == "cuda" or self.precision == "bf16"
        if self.channels_last:
            to_channels_last(self.recipe, self.device)
        self.optimizer_groups = recipe.optimizer_groups()
        self.parameters = {name: list(group.parameters()) for name, group in self.optimizer_groups.items()}
        self.optimizers = {name: self._optimizer(name, group) for name, group in self.optimizer_groups.items()}
        self._wrapped = {name: self.fabric.setup_optimizers(one) for name, one in self.optimizers.items()}
        self.ema = EMA(recipe.restorer_network(), recipe.ema) if recipe.ema > 0 else None
        self.compiled = compiled
        if compiled:
            # In place, so that weights keep their names; after the copy for the moving average, which is not compiled.
            for generator in recipe.directions().values():
                generator.compile(**COMPILER)
        self.histories: dict[str, SampleHistory] = {}
        # On the CPU for every device, so that its state can be saved and moved.
        self.history_generator = torch.Generator().manual_seed(self.processes.seed(seed))

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Take one step of the recipe.

        Args:
            batch: samples, on any device.
            progress: share of the run that is done, 0 to 1; sets the learning rates.

        Returns:
            The terms of all losses, detached, on the device.

        Raises:
            FloatingPointError: a loss or a gradient is NaN or infinite, in any process; raised in all of them, before
                the optimizer step.
        """
        for name, group in self.optimizer_groups.items():
            for parameters in self.optimizers[name].param_groups:
                parameters["lr"] = learning_rate(group, progress)
        try:
            with self.autocast():
                terms = self.recipe.step(self.place(batch), self)
        except Exception as error:
            if (explained := _explained(error, compiled=self.compiled)) is not None:
                raise explained from error
            raise
        self.processes.mean_buffers(self.recipe)
        if self.ema is not None:
            self.ema.update(self.recipe.restorer_network())
        return {name: term.detach() for name, term in terms.items()}

    def __call__(self, name: str, loss: Tensor) -> None:
        """Take one optimizer step: gradients of the group's parameters, their mean over processes, clipping, update."""
        optimizer, parameters, several = self.optimizers[name], self.parameters[name], self.processes.size > 1
        if not several:
            _check_finite(name, "loss", loss.item())
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss, inputs=parameters)
            if several:
                # Before unscaling, so that all gradient scalers see the same overflows.
                _check_finite(name, "loss", self.processes.mean_gradients(parameters, loss))
            self.fabric.strategy.precision.unscale_gradients(optimizer)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self.precision != "fp16":  # whose gradient scaler skips steps that overflow
                _check_finite(name, "gradient", norm)
            if (clip := self.optimizer_groups[name].clip) is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            self._wrapped[name].step()
        optimizer.zero_grad(set_to_none=True)
        # Autocast caches 16-bit copies of weights, which have just changed.
        torch.clear_autocast_cache()

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        """Return fakes mixed with earlier ones; see `SampleHistory`."""
        if name not in self.histories:
            self.histories[name] = SampleHistory(size, self.history_generator)
        return self.histories[name].sample(fakes)

    def place(self, batch: Batch) -> Batch:
        """The batch on the device, in the memory format of the networks."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        degraded, clear = (
            side.to(self.fabric.device, non_blocking=True, memory_format=layout)
            for side in (batch.degraded, batch.clear)
        )
        moves = None if batch.moves is None else batch.moves.to(self.fabric.device, non_blocking=True)
        return Batch(degraded, clear, moves)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context for a forward pass."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def restorer_network(self) -> nn.Module:
        """The network to export, uncompiled: the moving average if there is one."""
        if self.ema is not None:
            return self.ema.module
        return copy.deepcopy(self.recipe.restorer_network()) if self.compiled else self.recipe.restorer_network()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            **self.process_state(),
            "recipe": self.recipe.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.fabric.strategy.precision.state_dict(),
            "ema": None if self.ema is None else {"updates": self.ema.updates, "weights": self.ema.module.state_dict()},
        }

    def process_state(self) -> dict[str, Any]:
        """The part of the state that differs between processes, on the CPU."""
        return {
            "histories": {
                name: {"size": history.size, "photos": [photo.cpu() for photo in history.photos]}
                for name, history in self.histories.items()
            },
            "history_generator": self.history_generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state()` returned. Raises BadFolder if it does not fit these networks."""
        try:
            self.recipe.load_state_dict(state["recipe"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.updates = state["ema"]["updates"]
                self.ema.module.load_state_dict(state["ema"]["weights"])
            self.history_generator.set_state(state["history_generator"])
            for name, saved in state["histories"].items():
                history = self.histories[name] = SampleHistory(saved["size"], self.history_generator)
                history.photos = [photo.to(self.fabric.device) for photo in saved["photos"]]
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
            raise BadFolder(
                f"the checkpoint does not fit the networks of this version of fairweather ({reason}): resume with the "
                "version that wrote it (run.json names its commit), or start another run"
            ) from error

    def _optimizer(self, name: str, group: OptimizerGroup) -> torch.optim.Optimizer:
        options: dict[str, Any] = {"lr": group.lr, "betas": group.betas, "weight_decay": group.weight_decay}
        if group.optimizer == "muon":
            return Muon(self.parameters[name], **options)
        kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[group.optimizer]
        # PyTorch's fused kernels do not support unscaling for clipping.
        return kind(self.parameters[name], fused=self.precision != "fp16" and self.device in ("cpu", "cuda"), **options)


def choose_device(device: Device) -> Device:
    """Resolve "auto". Raises BadSettings for a device that is not available."""
    available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise BadSettings(f"run.device is {device!r}, which this machine or its PyTorch does not support: use 'auto'")
    return device


def choose_precision(precision: Precision, device: Device) -> Precision:
    """Resolve "auto" for a device. Raises BadSettings for fp16 without CUDA."""
    if precision == "auto":
        if device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        in_hardware: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return "bf16" if device == "cpu" and in_hardware is not None and in_hardware() else "fp32"
    if precision == "fp16" and device != "cuda":
        raise BadSettings(
            f"run.precision is 'fp16' on {device}, but its gradient scaler exists on CUDA only: use 'bf16' or 'fp32'"
        )
    return precision


def learning_rate(group: OptimizerGroup, progress: float) -> float:
    """The learning rate of a group after `progress` (0 to 1) of the run, by steps or by the clock."""
    progress = min(max(progress, 0.0), 1.0)
    # Not from zero: the first step must change something.
    warm = 1.0 if progress >= group.warmup else max(progress / group.warmup, 1e-2)
    if group.schedule == "linear":
        warm *= 1.0 if progress <= group.hold else (1.0 - progress) / (1.0 - group.hold)
    elif group.schedule == "cosine":
        done = max(0.0, (progress - group.warmup) / (1.0 - group.warmup)) if group.warmup < 1 else 0.0
        warm *= 0.5 * (1.0 + math.cos(math.pi * done))
    return group.lr * warm


class EMA:
    """Exponential moving average of parameters and batch norm statistics; integers are copied.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates (as TensorFlow's ExponentialMovingAverage with
    num_updates), so that the influence of the initial weights fades quickly.

    torch.optim.swa_utils.AveragedModel gives the same weights (within 2e-8 after 50 updates) in the same time, but
    needs another averaging function for the warm-up and prefixes the names of the weights: it would not be shorter.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            if average.is_floating_point():
                average.lerp_(buffer, 1 - decay)
            else:
                average.copy_(buffer)


NARROWEST = 16
"""Matrices with a side below this, such as heads and depthwise convolutions, are updated by AdamW."""


class Muon(torch.optim.Optimizer):
    """Muon with AdamW for the parameters that are not matrices.

    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; with the weight decay and the scale of
    Liu et al., Muon is Scalable for LLM Training, arXiv:2502.16982 (0.2 sqrt(longer side)), so that AdamW's
    learning rates and decays apply. A convolution is a matrix of outputs x (inputs * kernel). Biases, norms and narrow
    matrices are updated by AdamW (Loshchilov and Hutter, ICLR 2019).

    torch.optim.Muon (PyTorch 2.13) accepts only 2D tensors and rejects every convolution, even 1 x 1; channels-last
    weights have no 2D view, and the rest would need a second optimizer. It computes in bf16: after 12 steps, weights
    differ by 0.5 % of their change, and a step takes half the time where the CPU has bf16.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        super().__init__(
            list(parameters),
            {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum, "iterations": iterations},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            matrices: dict[tuple[int, int], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim >= 2 and min(shape := (len(parameter), parameter[0].numel())) >= NARROWEST:
                    matrices.setdefault(shape, []).append(parameter)
                else:
                    self._adamw(parameter, group)
            for same_shape in matrices.values():
                self._orthogonalized(same_shape, group)

    def _orthogonalized(self, same_shape: list[nn.Parameter], group: dict[str, Any]) -> None:
        moments = []
        for parameter in same_shape:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            moments.append(torch.lerp(gradient, state["momentum"], group["momentum"]).flatten(1))  # Nesterov's
        updates = orthogonal(torch.stack(moments), group["iterations"])
        scale = 0.2 * math.sqrt(max(updates.shape[1:]))
        for parameter, update in zip(same_shape, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        steps = int(state["step"])
        root = (state["square"] / (1 - second**steps)).sqrt_().add_(1e-8)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**steps))


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrices, N x a x b.

    Newton and Schulz's iteration with Jordan's coefficients brings singular values to 0.7 to 1.2 quickly rather than to
    1 slowly.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class SampleHistory:
    """Mixes fresh fakes with earlier ones (Shrivastava et al., Learning from Simulated and Unsupervised Images through
    Adversarial Training, CVPR 2017, section 2.3).

    Fakes are returned unchanged until the history is full. Then each one, with probability 1/2, replaces an earlier
    one, which is returned instead. The `generator` of the draws is on the CPU; checkpoints hold its state.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size = size
        self.generator = generator
        self.photos: list[Tensor] = []

    def sample(self, fakes: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W, detached."""
        fakes = fakes.detach()
        if self.size <= 0:
            return fakes
        mixed = []
        for fake in fakes:
            if len(self.photos) < self.size:
                self.photos.append(fake.clone())
                mixed.append(fake)
            elif torch.rand((), generator=self.generator) < 0.5:
                place = int(torch.randint(self.size, (), generator=self.generator))
                mixed.append(self.photos[place])
                self.photos[place] = fake.clone()
            else:
                mixed.append(fake)
        return torch.stack(mixed)


class ChannelsLastInstanceNorm(nn.InstanceNorm2d):
    """nn.InstanceNorm2d that keeps the channels-last format in training.

    PyTorch computes instance norm as the batch norm of N C channels and reshapes for that, which copies channels-last
    features twice, and twice more for a following in-place ReLU. The batch norm of a single sample is its instance norm
    and has a channels-last kernel.
    """

    def forward(self, features: Tensor) -> Tensor:
        plain = features.is_contiguous() or not features.is_contiguous(memory_format=torch.channels_last)
        # The exported graph (in evaluation mode) must contain ONNX's instance norm.
        if plain or not self.training or self.affine or self.track_running_stats:
            return super().forward(features)
        samples = [
            functional.batch_norm(features[at : at + 1], None, None, training=True, eps=self.eps)
            for at in range(len(features))
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


def to_channels_last(module: nn.Module, device: str) -> None:
    """Convert weights to channels last, in place; on a CPU with instance norms that keep the format."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in module.modules():
        if device == "cpu" and type(part) is nn.InstanceNorm2d:
            part.__class__ = ChannelsLastInstanceNorm


RECALIBRATION_SAMPLES = 1600
RECALIBRATION_BATCH = 16


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has batch norm statistics to recalibrate."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def recalibrate_batchnorm(
    network: nn.Module,
    samples: SampleSource | GPUBatches,
    *,
    seed: int,
    most: int = RECALIBRATION_SAMPLES,
    side: Literal["degraded", "clear"] = "degraded",
) -> nn.Module:
    """Return a copy of the network whose batch norms hold mean statistics over training samples.

    The running averages of training are those of the last few batches and of weights that were still changing, not of
    the averaged weights that are exported ("precise batch norm": Wu and Johnson, Rethinking "Batch" in BatchNorm,
    arXiv:2105.07576, section 3).

    Args:
        network: returned unchanged if it has no batch norm.
        samples: the training data.
        seed: of the sample order.
        most: maximum number of samples.
        side: the network's input: degraded photos, or clear ones for a network that degrades.
    """
    if not has_batch_norm(network):
        return network
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
            module.train()
    device = next(network.parameters()).device
    kind = DeviceBatchLoader if isinstance(samples, GPUBatches) else BatchLoader
    batches = iter(kind(samples, seed=seed, batch=RECALIBRATION_BATCH))  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in islice(batches, max(1, most // RECALIBRATION_BATCH)):
            network(getattr(batch, side).to(device))
    return network.eval()


def _check_finite(name: str, what: str, value: float | Tensor) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"the {what} of {name} is {float(value)}")


def _explained(error: Exception, *, compiled: bool) -> BadSettings | None:
    """The error about the settings that caused an error of PyTorch, or None if they did not."""
    if compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = " ".join(str(error).split("\n\n")[0].split())
        return BadSettings(f"run.compile: the network cannot be compiled here ({reason}): omit it")
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return BadSettings(
            "run.batch is 1 and the network reduces a crop to a single pixel, too little for batch norm: "
            "raise run.batch, data.crop or generator.size, or lower generator.levels"
        )
    return None
