"""The one place that knows the device, the precision and the optimizers: Lightning Fabric, wrapped."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fairweather.errors import BadFolder, BadSettings
from fairweather.recipes import Batch, Player, Recipe
from fairweather.training.ema import EMA
from fairweather.training.layout import to_channels_last
from fairweather.training.muon import Muon
from fairweather.training.pool import Pool
from fairweather.training.processes import Processes
from fairweather.training.schedules import rate
from fairweather.training.settings import Device, Precision


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


class Engine:
    """Runs a recipe's steps: `engine.step(batch, progress)`; it is what the recipe's step calls `learn`.

    `learn(name, loss)` leaves every parameter but the player's own without a gradient, so that a loss may run through
    another player's networks freely. Where a run has several `processes`, each learns from photos of its own, and all
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
        processes: Processes | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.processes = processes or Processes(self.device, self.precision)
        self.fabric = self.processes.fabric
        self.recipe = recipe.to(self.fabric.device)
        self.processes.share_weights(self.recipe)
        self.channels_last = self.device == "cuda" or self.precision == "bf16"
        if self.channels_last:
            to_channels_last(self.recipe, self.device)
        self.players = recipe.players()
        self.optimizers = {name: self._optimizer(player) for name, player in self.players.items()}
        self._wrapped = {name: self.fabric.setup_optimizers(one) for name, one in self.optimizers.items()}
        self.ema = EMA(recipe.shipped(), recipe.ema) if recipe.ema > 0 else None
        self.compiled = compiled
        if compiled:
            # In place, so that names of weights stay; after the moving average has been copied, which is not compiled.
            for generator in recipe.directions().values():
                generator.compile(**COMPILER)
        self.pools: dict[str, Pool] = {}
        # On the CPU whatever the device, so that its state can always be saved and moved.
        self.pool_generator = torch.Generator().manual_seed(self.processes.seed(seed))

    def _optimizer(self, player: Player) -> torch.optim.Optimizer:
        if player.optimizer == "muon":
            return Muon(player.parameters(), lr=player.lr, betas=player.betas, weight_decay=player.weight_decay)
        kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        # Unscaling for clipping and PyTorch's fused kernels do not go together.
        fused = self.precision != "fp16" and self.device in ("cpu", "cuda")
        return kinds[player.optimizer](
            list(player.parameters()),
            lr=player.lr,
            betas=player.betas,
            weight_decay=player.weight_decay,
            fused=fused,
        )

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step of the recipe at `progress` (0 to 1) of the run; its terms, detached, on the device."""
        for name, player in self.players.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate(player, progress)
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
            self.ema.update(self.recipe.shipped())
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

    def __call__(self, player: str, loss: Tensor) -> None:
        """`learn`: zero the player's gradients, backward for its parameters alone, mean over processes, clip, step.

        Raises FloatingPointError where the loss or a gradient is NaN or infinite in any process, in all of them,
        before anything has moved.
        """
        if player not in self.players:
            raise KeyError(f"{player!r} is not among the players: {', '.join(self.players)}")
        several = self.processes.size > 1
        if not several:
            _check_finite(player, loss.item())
        optimizer, parameters = self.optimizers[player], self._parameters(player)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss, inputs=parameters)
            if several:
                # Before unscaling, so that all scalers see the same overflows.
                _check_finite(player, self.processes.mean_gradients(parameters, loss))
            self.fabric.strategy.precision.unscale_gradients(optimizer)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            # fp16 overflows now and then by design: its scaler skips such a step and halves itself.
            if self.precision != "fp16" and not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient of {player} is {norm.item()}")
            if (clip := self.players[player].clip) is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            self._wrapped[player].step()
        optimizer.zero_grad(set_to_none=True)
        # Autocast remembers 16-bit copies of weights; the player's have just changed.
        torch.clear_autocast_cache()

    def _parameters(self, player: str) -> list[nn.Parameter]:
        return [p for group in self.optimizers[player].param_groups for p in group["params"]]

    def recall(self, name: str, fakes: Tensor, size: int) -> Tensor:
        """Fakes mixed with earlier ones of the pool `name`; see `Pool`."""
        if name not in self.pools:
            self.pools[name] = Pool(size, self.pool_generator)
        return self.pools[name].recall(fakes)

    def shipped(self) -> nn.Module:
        """The network that ships: the moving average where there is one. It is not compiled: it meets many sizes."""
        if self.ema is not None:
            return self.ema.module
        return copy.deepcopy(self.recipe.shipped()) if self.compiled else self.recipe.shipped()

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
            pool = self.pools[name] = Pool(kept["size"], self.pool_generator)
            pool.photos = [photo.to(self.fabric.device) for photo in kept["photos"]]


def _check_finite(player: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of {player} is {loss}")
