"""Networks that tell restored photos from real ones, patch by patch."""

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
    The defaults are CycleGAN's (three channels, instance norm). pix2pix's is conditional: 6 channels, the degraded
    photo and the other one concatenated, with batch norm (2,768,705 parameters). `spectral` normalises the weights of
    every layer (Miyato et al., ICLR 2018), usually with `norm="none"`. Draws its weights from torch's global generator.

    Raises BadSettings on settings out of range, and on pictures too small for one patch to be scored.
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
            # Batch norm brings its own bias; instance norm cancels one too, but the paper's code keeps it there.
            bias = first or last or norm != "batch"
            convolution = nn.Conv2d(channels[layer], channels[layer + 1], 4, stride, padding=1, bias=bias)
            nn.init.normal_(convolution.weight, 0.0, 0.02)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            if spectral:
                # "unsafe" leaves out a trial run, which would turn the vectors and cannot be had on the meta device.
                register_parametrization(convolution, "weight", SpectralNorm(convolution.weight), unsafe=True)
            network.append(convolution)
            if not first and not last:
                network.extend(_norm(norm, channels[layer + 1]))
            if not last:
                network.append(nn.LeakyReLU(0.2, inplace=True))
        self.network = nn.Sequential(*network)
        self.receptive_field: int = _receptive_field(strides)
        # Each convolution of stride 1 takes a row away; this many rows leave one logit.
        self.smallest: int = 3 * 2**layers

    def forward(self, photo: Tensor) -> Tensor:
        """N x in_channels x H x W in [0,1] -> N x 1 x (H / 8 - 2) x (W / 8 - 2) logits at the default depth."""
        if min(photo.shape[-2:]) < self.smallest:
            raise BadSettings(
                f"this discriminator scores crops of at least {self.smallest} x {self.smallest} px, got "
                f"{tuple(photo.shape[-2:])}: take larger crops, or fewer layers"
            )
        return cast(Tensor, self.network(photo * 2 - 1))


class SpectralNorm(nn.Module):
    """A weight over its largest singular value, as a matrix of out x (in * 4 * 4): Miyato et al., ICLR 2018, eq. 8.

    A parametrization, in fp32 whatever autocast says. The paper follows one singular vector by one power iteration a
    forward pass. Adam moves new ones past it faster than it turns: in the first hundred steps of a PatchGAN that left
    norms of 1.01 to 1.2. Here an iteration turns a few vectors together (orthogonal iteration with the Rayleigh-Ritz
    projection; Golub and Van Loan, Matrix Computations, section 8.3), of which the foremost is the one that counts.
    """

    vectors: Tensor

    def __init__(self, weight: Tensor, count: int = 16) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        # Left singular vectors, the foremost first: exact to begin with.
        found = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)
        self.register_buffer("vectors", found[:, :count].clone())

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            # Singular values do not care for the order of the columns; this one is how the weight lies in memory.
            matrix = (weight.movedim(1, -1) if weight.stride(1) == 1 else weight).flatten(1)
            with torch.no_grad():
                if self.training:
                    self.vectors.copy_(self._turned(matrix))
                left = self.vectors[:, 0].clone()  # the next pass turns the vectors; this one's gradient needs them
                right = functional.normalize(matrix.T @ left, dim=0)
            normalised: Tensor = weight / torch.dot(left, matrix @ right)
            return normalised

    def _turned(self, matrix: Tensor) -> Tensor:
        # Metal has neither factorisation; both are of small matrices.
        able = torch.device("cpu") if matrix.device.type == "mps" else matrix.device
        basis: Tensor = torch.linalg.qr((matrix @ (matrix.T @ self.vectors)).to(able)).Q.to(matrix.device)
        seen = matrix.T @ basis
        turn: Tensor = torch.linalg.eigh((seen.T @ seen).to(able)).eigenvectors.flip(1).to(matrix.device)
        return basis @ turn


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
