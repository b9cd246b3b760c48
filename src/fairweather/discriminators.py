"""PatchGAN, the discriminator of all adversarial recipes."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import register_parametrization

from fairweather.errors import BadSettings, UnknownName


class PatchGAN(nn.Module):
    """Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017, section 6.1.2;
    N x C x H x W in [0,1] -> N x 1 x h x w logits, one for each overlapping patch of 70 x 70 px; 2,764,737 parameters.

    C64-C128-C256-C512 and a convolution to one channel: 4 x 4, LeakyReLU 0.2, stride 2 in the first `layers`, then 1.
    The defaults are CycleGAN's. pix2pix's is conditional, with 6 channels, the degraded photo and the other one
    concatenated, and batch norm (2,768,705 parameters).

    Args:
        in_channels: channels of the input.
        width: channels of the first layer; they double from layer to layer, up to eight times `width`.
        layers: layers of stride 2; 1, 2 and 3 have patches of 16, 34 and 70 px.
        norm: "instance", "batch" or "none".
        spectral: spectral norm on all layers (Miyato et al., ICLR 2018), usually with `norm="none"`.

    Raises:
        BadSettings: a setting is out of range, or a picture is smaller than `smallest`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        width: int = 64,
        layers: int = 3,
        norm: Literal["instance", "batch", "none"] = "instance",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, width, layers) < 1:
            raise BadSettings(f"in_channels, width and layers must be at least 1, got {in_channels}, {width}, {layers}")
        channels = [in_channels, *(min(2**layer, 8) * width for layer in range(layers + 1)), 1]
        strides = [2] * layers + [1, 1]
        network: list[nn.Module] = []
        for layer, stride in enumerate(strides):
            first, last = layer == 0, layer == len(strides) - 1
            # Both norms cancel a bias; the paper's code keeps it for instance norm.
            bias = first or last or norm != "batch"
            convolution = nn.Conv2d(channels[layer], channels[layer + 1], 4, stride, padding=1, bias=bias)
            nn.init.normal_(convolution.weight, 0.0, 0.02)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            if spectral:
                # "unsafe" skips a trial run, which would update the vectors and is impossible on the meta device.
                register_parametrization(convolution, "weight", SpectralNorm(convolution.weight), unsafe=True)
            network.append(convolution)
            if not first and not last:
                network.extend(_norm(norm, channels[layer + 1]))
            if not last:
                network.append(nn.LeakyReLU(0.2, inplace=True))
        self.network = nn.Sequential(*network)
        self.receptive_field: int = _receptive_field(strides)
        self.smallest: int = 3 * 2**layers
        """Least side of an input: the convolutions of stride 1 crop one row each, and one logit remains."""

    def forward(self, photo: Tensor) -> Tensor:
        """N x in_channels x H x W in [0,1] -> N x 1 x (H / 8 - 2) x (W / 8 - 2) logits at the default depth."""
        if min(photo.shape[-2:]) < self.smallest:
            raise BadSettings(
                f"the discriminator needs crops of at least {self.smallest} x {self.smallest} px, got "
                f"{tuple(photo.shape[-2:])}: set a larger data.crop, or fewer layers"
            )
        return cast(Tensor, self.network(photo * 2 - 1))


class SpectralNorm(nn.Module):
    """A weight, as a matrix of out x (in * 4 * 4), over its largest singular value: Miyato et al., ICLR 2018, eq. 8.

    A parametrization, computed in fp32 also under autocast. The paper tracks one singular vector by one power iteration
    per forward pass, which lags behind Adam: in the first hundred steps of a PatchGAN it left norms of 1.01 to 1.2.
    Here an iteration updates the first `count` vectors (orthogonal iteration with the Rayleigh-Ritz projection; Golub
    and Van Loan, Matrix Computations, section 8.3), of which the first is used.
    """

    vectors: Tensor

    def __init__(self, weight: Tensor, count: int = 16) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        # Left singular vectors, the first for the largest value; initially exact.
        found = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)
        self.register_buffer("vectors", found[:, :count].clone())

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            # Singular values do not depend on the order of the columns: use the order in memory.
            matrix = (weight.movedim(1, -1) if weight.stride(1) == 1 else weight).flatten(1)
            with torch.no_grad():
                if self.training:
                    self.vectors.copy_(self._iterate(matrix))
                left = self.vectors[:, 0].clone()  # for the gradient: the next pass updates the vectors in place
                right = functional.normalize(matrix.T @ left, dim=0)
            normalised: Tensor = weight / torch.dot(left, matrix @ right)
            return normalised

    def _iterate(self, matrix: Tensor) -> Tensor:
        # Metal has neither of these factorizations of small matrices.
        device = torch.device("cpu") if matrix.device.type == "mps" else matrix.device
        basis: Tensor = torch.linalg.qr((matrix @ (matrix.T @ self.vectors)).to(device)).Q.to(matrix.device)
        projected = matrix.T @ basis
        rotation: Tensor = torch.linalg.eigh((projected.T @ projected).to(device)).eigenvectors.flip(1)
        return basis @ rotation.to(matrix.device)


def _norm(norm: str, channels: int) -> list[nn.Module]:
    if norm == "instance":
        return [nn.InstanceNorm2d(channels)]
    if norm == "batch":
        layer = nn.BatchNorm2d(channels)
        nn.init.normal_(layer.weight, 1.0, 0.02)
        return [layer]
    if norm == "none":
        return []
    raise UnknownName("norm", norm, ("instance", "batch", "none"))


def _receptive_field(strides: list[int]) -> int:
    side = 1
    for stride in reversed(strides):
        side = (side - 1) * stride + 4
    return side
