"""Published networks with random weights, for measuring time and memory.

They run as published: in PyTorch, eager, float32, on the whole photo.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairweather.generators import GUNet, ResNet9


class AODNet(nn.Module):
    """Li, Peng, Wang, Xu & Feng, AOD-Net: All-in-One Dehazing Network, ICCV 2017, figure 3 and equation 5.

    N x 3 x H x W in [0, 1] -> the same shape; 1,761 parameters. Five convolutions of three channels each predict K;
    the output is K x - K + 1.
    """

    multiple_of = 1

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = nn.Conv2d(3, 3, 3, padding=1)
        self.three = nn.Conv2d(6, 3, 5, padding=2)
        self.four = nn.Conv2d(6, 3, 7, padding=3)
        self.five = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, photo: Tensor) -> Tensor:
        one = torch.relu(self.one(photo))
        two = torch.relu(self.two(one))
        three = torch.relu(self.three(torch.cat([one, two], 1)))
        four = torch.relu(self.four(torch.cat([two, three], 1)))
        k = torch.relu(self.five(torch.cat([one, two, three, four], 1)))
        return torch.relu(k * photo - k + 1).clamp(max=1)


def gunet_t() -> nn.Module:
    """gUNet-T's shape (Song, Zhou, Qian & Du, arXiv:2209.11448, table 1: 2.60 GMACs at 256 x 256, 0.81 M parameters):
    depths 2, 2, 2, 4, 2, 2, 2, widths from 24 on, as the package's own `gunet` has them.

    Counted here: 2.76 GMACs and 0.84 M parameters, since the paper leaves some details open. Multiply its times by
    GUNET_T_SHARE before comparing.
    """
    return GUNet(width=24, depths=(2, 2, 2, 4, 2, 2, 2), kernel=5)


GUNET_T_SHARE = 2.60 / 2.758
"""MACs stated in the paper relative to those of `gunet_t`."""

OPPONENTS: dict[str, Callable[[], nn.Module]] = {"gUNet-T": gunet_t, "ResNet-9": ResNet9, "AOD-Net": AODNet}
"""Name in the table -> network. ResNet-9 is the generator of CycleGAN and ClarityGAN."""


def macs(network: nn.Module, picture: Tensor) -> int:
    """MACs of the convolutions for one picture (1 x 3 x h x w), without norms, gates and resizing, as in papers."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        # each weight is applied once per position of the finer grid
        moved = inputs[0] if isinstance(module, nn.ConvTranspose2d) else answer
        total += len(moved) * module.weight.numel() * moved.shape[2] * moved.shape[3]

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    try:
        with torch.inference_mode():
            network(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return total
