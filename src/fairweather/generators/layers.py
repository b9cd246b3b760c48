"""What the papers' generators have in common: how their weights start and how their features are normalised."""

from __future__ import annotations

from torch import nn

from fairweather.errors import UnknownName

NORMS = ("batch", "instance")


def initialise(network: nn.Module) -> None:
    """Weights from normal(0, 0.02), biases zero, batch norm's gains from normal(1, 0.02), in place.

    pix2pix (Isola et al., CVPR 2017) section 6.2 and CycleGAN (Zhu et al., ICCV 2017) section 7.1, with the gains of
    their public code. Draws from torch's global random generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Batch norm, or instance norm without parameters. Raises UnknownName."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    raise UnknownName("norm", norm, NORMS)
