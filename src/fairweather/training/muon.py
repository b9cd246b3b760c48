"""Muon: momentum whose every matrix is made orthogonal before it moves the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

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
