"""Learning rates as a function of how much of the run is done, by steps or by the clock."""

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


def learning_rate(group: OptimizerGroup, progress: float) -> float:
    """The group's learning rate after `progress` (0 to 1) of the run."""
    progress = min(max(progress, 0.0), 1.0)
    return group.lr * _warm(group, progress) * _shape(group, progress)


def _warm(group: OptimizerGroup, progress: float) -> float:
    if progress >= group.warmup:
        return 1.0
    # Not from zero itself: the first step must move.
    return max(progress / group.warmup, 1e-2)


def _shape(group: OptimizerGroup, progress: float) -> float:
    if group.schedule == "constant":
        return 1.0
    if group.schedule == "linear":
        return 1.0 if progress <= group.hold else (1.0 - progress) / (1.0 - group.hold)
    done = max(0.0, (progress - group.warmup) / (1.0 - group.warmup)) if group.warmup < 1 else 0.0
    return 0.5 * (1.0 + math.cos(math.pi * done))


# A moving average of a network's weights.


class EMA:
    """Exponential moving average of parameters and of batch norm's statistics; whole numbers are copied as they are.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights are soon forgotten
    (as TensorFlow's ExponentialMovingAverage with num_updates). It reaches back over a ninth of a short run: a second
    phase that begins with trained weights does not end as a blend with them.
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
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, fresh in zip(self.module.buffers(), module.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(fresh, 1 - decay)
            else:
                kept.copy_(fresh)


# Muon: momentum whose every matrix is made orthogonal before it moves the weights.

NARROWEST = 16
"""Matrices with a side below this, as those of heads, are moved as AdamW would."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; with weight decay and the scale of
    Liu et al., Muon is Scalable for LLM Training, arXiv:2502.16982 (0.2 sqrt(longer side)), so that its updates are as
    large as AdamW's and AdamW's learning rates and decays serve.

    A convolution is a matrix of outputs x (inputs * kernel). What is no matrix (biases, norms), and matrices with a
    side below 16 (heads), are AdamW's (Loshchilov and Hutter, ICLR 2019). PyTorch's own Muon (from 2.9 on) takes
    matrices alone, and computes in bf16, which many processors do slowly.
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
        """Move every parameter that has a gradient."""
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
            for alike in matrices.values():
                self._orthogonal(alike, group)

    def _orthogonal(self, alike: list[nn.Parameter], group: dict[str, Any]) -> None:
        moments = []
        for parameter in alike:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            moments.append(torch.lerp(gradient, state["momentum"], group["momentum"]).flatten(1))  # Nesterov's
        updates = orthogonal(torch.stack(moments), group["iterations"])
        scale = 0.2 * math.sqrt(max(updates.shape[1:]))
        for parameter, update in zip(alike, updates, strict=True):
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
    """About the nearest (semi-)orthogonal matrices, N x a x b, by Newton and Schulz's iteration with Jordan's
    coefficients, which bring singular values to 0.7 to 1.2 quickly rather than to 1 slowly."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


# History of fakes for a discriminator.


class SampleHistory:
    """Shows a discriminator a mixture of fresh and earlier fakes (Shrivastava et al., Learning from Simulated and
    Unsupervised Images through Adversarial Training, CVPR 2017, section 2.3).

    While it fills, fakes come back as they are. Then each one is, with even chance, kept in place of an earlier one,
    which comes back instead. `generator` (on the CPU) makes the draws; its state belongs to the run's state.
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
        shown = []
        for fake in fakes:
            if len(self.photos) < self.size:
                self.photos.append(fake.clone())
                shown.append(fake)
            elif torch.rand((), generator=self.generator) < 0.5:
                place = int(torch.randint(self.size, (), generator=self.generator))
                shown.append(self.photos[place])
                self.photos[place] = fake.clone()
            else:
                shown.append(fake)
        return torch.stack(shown)


# Channels last on a CPU: what the convolutions gain by it, instance norm must not lose.


class ChannelsLastInstanceNorm(nn.InstanceNorm2d):
    """nn.InstanceNorm2d that stays in the layout it is given, while it trains.

    PyTorch computes instance norm as the batch norm of N C channels, and reshapes to that end: channels last, it copies
    the features to and fro, and the ReLU that then works in place on a view copies them twice more. The batch norm of
    one sample is its instance norm, and has a kernel for this layout.
    """

    def forward(self, features: Tensor) -> Tensor:
        plain = features.is_contiguous() or not features.is_contiguous(memory_format=torch.channels_last)
        # In evaluation mode it is exported, and must be what ONNX calls instance norm.
        if plain or not self.training or self.affine or self.track_running_stats:
            return super().forward(features)
        samples = [
            functional.batch_norm(features[at : at + 1], None, None, training=True, eps=self.eps)
            for at in range(len(features))
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


def to_channels_last(module: nn.Module, device: str) -> None:
    """Weights channels last, in place; what they are does not change."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in module.modules():
        if device == "cpu" and type(part) is nn.InstanceNorm2d:
            part.__class__ = ChannelsLastInstanceNorm


# Batch norm's statistics measured anew for the weights that ship.

RECALIBRATION_SAMPLES = 1600
RECALIBRATION_BATCH = 16


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is anything to measure."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def recalibrate_batchnorm(
    network: nn.Module,
    samples: SampleSource | GPUBatches,
    *,
    seed: int,
    most: int = RECALIBRATION_SAMPLES,
    side: Literal["degraded", "clear"] = "degraded",
) -> nn.Module:
    """A copy of the network whose batch norms hold the mean statistics of up to `most` training samples.

    `side` is what the network is shown: degraded photos, or clear ones where it is the one that degrades.

    "Precise batch norm" (Wu & Johnson, "Rethinking Batch in BatchNorm", arXiv:2105.07576, section 3): the running
    averages that training leaves are of the last few batches and of weights that were still moving, not of the moving
    average of weights that ships. A network without batch norm comes back as it is.
    """
    if not has_batch_norm(network):
        return network
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # PyTorch's word for the plain mean over all batches
            module.train()
    device = next(network.parameters()).device
    kind = DeviceBatchLoader if isinstance(samples, GPUBatches) else BatchLoader
    batches = iter(kind(samples, seed=seed, batch=RECALIBRATION_BATCH))  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in islice(batches, max(1, most // RECALIBRATION_BATCH)):
            network(getattr(batch, side).to(device))
    return network.eval()


# The one place that knows the device, the precision and the optimizers: Lightning Fabric, wrapped.


def choose_device(device: Device) -> Device:
    """The device that `auto` means here. Raises BadSettings for one that is not there."""
    there: dict[Device, bool] = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[device]:
        raise BadSettings(f"device is {device!r}, which this machine (or its PyTorch) does not have; 'auto' finds one")
    return device


def choose_precision(precision: Precision, device: Device) -> Precision:
    """The precision that `auto` means on `device`. Raises BadSettings for fp16 where there is no gradient scaler."""
    if precision == "auto":
        if device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"
    if precision == "fp16" and device != "cuda":
        raise BadSettings(
            f"precision is 'fp16' on {device}: its small range needs a gradient scaler, which exists on CUDA only; "
            "take 'bf16' (same speed, full range) or 'fp32'"
        )
    return precision


def _cpu_has_bf16() -> bool:
    check: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


COMPILER: dict[str, Any] = {}
"""Further arguments of torch.compile."""


class TrainingEngine:
    """Runs a recipe's steps: `engine.step(batch, progress)`; it is what the recipe's step calls `learn`.

    `update(name, loss)` leaves every parameter but the group's own without a gradient, so that a loss may run through
    another group's networks freely. Where a run has several `processes`, each learns from photos of its own, and all
    move by the mean of their gradients; `device` and `precision` are those that the processes were made for.
    `compiled`: the generators' steps are compiled; whatever else is done with them (sheets, export) is not.
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
        self.optimizers = {name: self._optimizer(group) for name, group in self.optimizer_groups.items()}
        self._wrapped = {name: self.fabric.setup_optimizers(one) for name, one in self.optimizers.items()}
        self.ema = EMA(recipe.restorer_network(), recipe.ema) if recipe.ema > 0 else None
        self.compiled = compiled
        if compiled:
            # In place, so that names of weights stay; after the moving average has been copied, which is not compiled.
            for generator in recipe.directions().values():
                generator.compile(**COMPILER)
        self.pools: dict[str, SampleHistory] = {}
        # On the CPU whatever the device, so that its state can always be saved and moved.
        self.pool_generator = torch.Generator().manual_seed(self.processes.seed(seed))

    def _optimizer(self, group: OptimizerGroup) -> torch.optim.Optimizer:
        if group.optimizer == "muon":
            return Muon(group.parameters(), lr=group.lr, betas=group.betas, weight_decay=group.weight_decay)
        kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        # Unscaling for clipping and PyTorch's fused kernels do not go together.
        fused = self.precision != "fp16" and self.device in ("cpu", "cuda")
        return kinds[group.optimizer](
            list(group.parameters()),
            lr=group.lr,
            betas=group.betas,
            weight_decay=group.weight_decay,
            fused=fused,
        )

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step of the recipe at `progress` (0 to 1) of the run; its terms, detached, on the device."""
        for name, group in self.optimizer_groups.items():
            for parameters in self.optimizers[name].param_groups:
                parameters["lr"] = learning_rate(group, progress)
        batch = self.place(batch)
        try:
            with self.autocast():
                terms = self.recipe.step(batch, self)
        except Exception as error:
            if self.compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = " ".join(str(error).split("\n\n")[0].split())
                raise BadSettings(
                    f"run.compile: the network cannot be compiled here ({reason}); leave it out"
                ) from error
            raise
        self.processes.mean_buffers(self.recipe)
        if self.ema is not None:
            self.ema.update(self.recipe.restorer_network())
        return {name: term.detach() for name, term in terms.items()}

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
        """The precision's context, for a forward pass."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def __call__(self, group: str, loss: Tensor) -> None:
        """`learn`: zero the group's gradients, backward for its parameters alone, mean over processes, clip, step.

        Raises FloatingPointError where the loss or a gradient is NaN or infinite in any process, in all of them,
        before anything has moved.
        """
        if group not in self.optimizer_groups:
            raise KeyError(f"{group!r} is not among the optimizer_groups: {', '.join(self.optimizer_groups)}")
        several = self.processes.size > 1
        if not several:
            _check_finite(group, loss.item())
        optimizer, parameters = self.optimizers[group], self._parameters(group)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss, inputs=parameters)
            if several:
                # Before unscaling, so that all scalers see the same overflows.
                _check_finite(group, self.processes.mean_gradients(parameters, loss))
            self.fabric.strategy.precision.unscale_gradients(optimizer)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            # fp16 overflows now and then by design: its scaler skips such a step and halves itself.
            if self.precision != "fp16" and not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient of {group} is {norm.item()}")
            if (clip := self.optimizer_groups[group].clip) is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            self._wrapped[group].step()
        optimizer.zero_grad(set_to_none=True)
        # Autocast remembers 16-bit copies of weights; the group's have just changed.
        torch.clear_autocast_cache()

    def _parameters(self, group: str) -> list[nn.Parameter]:
        return [p for parameters in self.optimizers[group].param_groups for p in parameters["params"]]

    def sample_history(self, name: str, fakes: Tensor, size: int) -> Tensor:
        """Fakes mixed with earlier ones of the pool `name`; see `Pool`."""
        if name not in self.pools:
            self.pools[name] = SampleHistory(size, self.pool_generator)
        return self.pools[name].sample(fakes)

    def restorer_network(self) -> nn.Module:
        """The network that ships: the moving average where there is one. It is not compiled: it meets many sizes."""
        if self.ema is not None:
            return self.ema.module
        return copy.deepcopy(self.recipe.restorer_network()) if self.compiled else self.recipe.restorer_network()

    def state(self) -> dict[str, Any]:
        """Everything of the engine that the next step depends on, as tensors and plain values."""
        return {
            **self.own_state(),
            "recipe": self.recipe.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.fabric.strategy.precision.state_dict(),
            "ema": None if self.ema is None else {"updates": self.ema.updates, "weights": self.ema.module.state_dict()},
        }

    def own_state(self) -> dict[str, Any]:
        """The part of it that no other process has, on the CPU."""
        return {
            "pools": {
                name: {"size": pool.size, "photos": [photo.cpu() for photo in pool.photos]}
                for name, pool in self.pools.items()
            },
            "pool_generator": self.pool_generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        try:
            self.recipe.load_state_dict(state["recipe"])
        except RuntimeError as error:  # torch's words for names and shapes that do not fit
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise BadFolder(
                f"the checkpoint is of other networks than this version of fairweather makes ({reason[0].strip()}): "
                "go on with the version that wrote it (run.json names its commit), or start another run"
            ) from error
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.updates = state["ema"]["updates"]
            self.ema.module.load_state_dict(state["ema"]["weights"])
        self.pool_generator.set_state(state["pool_generator"])
        for name, kept in state["pools"].items():
            pool = self.pools[name] = SampleHistory(kept["size"], self.pool_generator)
            pool.photos = [photo.to(self.fabric.device) for photo in kept["photos"]]


def _check_finite(group: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of {group} is {loss}")
