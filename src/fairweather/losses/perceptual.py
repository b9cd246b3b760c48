"""Differences as a network sees them: features of VGG-19 in place of pixels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName

log = logging.getLogger("fairweather")

STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Channels of the 3 x 3 convolutions between one max-pooling and the next (configuration E)."""
LAYERS = tuple(f"relu{stage}_{at}" for stage, row in enumerate(STAGES, 1) for at in range(1, len(row) + 1))
FILE = "vgg19-dcbb9e9d.pth"
"""What torchvision calls its ImageNet weights; they lie in torch's cache where it has ever fetched them."""
SEED = 19
"""Of the random network. Another seed is another loss: runs that were begun with this one could not go on."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Distance = Literal["mse", "l1"]


class Perceptual(nn.Module):
    """Mean difference of VGG-19's features (Simonyan and Zisserman, ICLR 2015, configuration E): a loss with weights.

    The distance of Johnson, Alahi and Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution,
    ECCV 2016, eq. 2: the squared difference divided by C H W, after the ReLUs `layers` ("relu1_1" ... "relu5_4"), here
    the mean over them, so that the term's scale does not grow with their number. `distance="l1"` takes absolute
    differences, as Wang et al., pix2pixHD, CVPR 2018, do. The network ends at the deepest layer asked for.

    `weights` is a file of torchvision's (`vgg19-dcbb9e9d.pth`, or any with keys `features.N.weight`); without it the
    one in torch's cache is taken; where there is none either, the features of a random network of the same shape and
    a fixed seed (He et al., ICCV 2015, initialisation) stand in. `origin` says which: "imagenet" or "random".

    The weights are neither parameters nor part of a checkpoint; they follow to a device, but never change their type:
    the term is computed in fp32 whatever autocast or the caller's networks do. A checkpoint holds a fingerprint, and
    going on from it with other weights raises BadSettings. Draws nothing from the global random generator.

    Raises UnknownName for a layer that VGG-19 does not have; BadSettings for a file that is missing or no VGG-19.
    """

    origin: Literal["imagenet", "random"]
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        layers: Iterable[str] = ("relu3_3", "relu4_3"),
        weights: str | Path | None = None,
        *,
        distance: Distance = "mse",
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        if not self.layers:
            raise BadSettings("a perceptual loss needs at least one layer, say relu3_3")
        for layer in self.layers:
            if layer not in LAYERS:
                raise UnknownName("layer of VGG-19", layer, LAYERS)
        if distance not in ("mse", "l1"):
            raise UnknownName("distance", distance, ("mse", "l1"))
        self.distance = distance
        deepest = max(map(LAYERS.index, self.layers))
        network, places = _shape(deepest)
        self.places = {places[layer] for layer in self.layers}
        path = Path(weights).expanduser() if weights is not None else _cached()
        if path is not None:
            _read(network, path)
            self.origin, self.fingerprint = "imagenet", _digest(network)
        else:
            log.info(
                "no VGG-19 weights (%s in %s, or the recipe's setting): the perceptual term uses a random network's",
                *(FILE, _cache()),
            )
            _randomise(network)
            # Not of the bits: another processor may round the random numbers differently.
            self.origin, self.fingerprint = "random", SEED
        for convolution in network:
            _freeze(convolution)
        self.network = network
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """`output` and `target`, N x 3 x H x W in [0,1] -> a scalar; gradients flow to `output` alone.

        Raises BadSettings where the shapes differ or a side vanishes on the way down.
        """
        if output.shape != target.shape:
            raise BadSettings(
                f"a loss compares pictures of one shape, got {tuple(output.shape)} and {tuple(target.shape)}"
            )
        smallest = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.network)
        if min(output.shape[-2:]) < smallest:
            raise BadSettings(
                f"VGG-19's features {', '.join(self.layers)} need pictures of at least {smallest} x {smallest} px, got "
                f"{tuple(output.shape[-2:])}"
            )
        with torch.autocast(output.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.features(target.detach())
            differences = [a - b for a, b in zip(self.features(output), wanted, strict=True)]
            values = [d.square().mean() if self.distance == "mse" else d.abs().mean() for d in differences]
            return torch.stack(values).mean()

    def features(self, photos: Tensor) -> list[Tensor]:
        """N x 3 x H x W in [0,1] -> what each of the layers gives, the shallowest first, in fp32."""
        values = (photos.float() - self.mean) / self.deviation
        kept = []
        for place, layer in enumerate(self.network):
            values = layer(values)
            if place in self.places:
                kept.append(values)
        return kept

    @property
    def words(self) -> str:
        """What a card says of it."""
        return f"{self.origin} VGG-19 features after {', '.join(self.layers)}"

    def train(self, mode: bool = True) -> Self:
        """Stays as it is: there is nothing to train."""
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.origin == "imagenet", self.fingerprint], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            was = "ImageNet's" if state[0] else "random"
            raise BadSettings(
                f"the run began with {was} VGG-19 weights, other than the {self.origin} ones found now: put {FILE} "
                f"as it was then into {_cache()} (or take it out), or start another run"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            # A change of type would round the weights for good; the device is all that is followed.
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def _shape(deepest: int) -> tuple[nn.Sequential, dict[str, int]]:
    """VGG-19 from the first convolution to the ReLU number `deepest`, and the place of each ReLU in it."""
    network, places, channels = nn.Sequential(), {}, 3
    for stage, row in enumerate(STAGES, 1):
        if stage > 1:
            network.append(nn.MaxPool2d(2))
        for at, wider in enumerate(row, 1):
            network.append(_convolution(channels, wider))
            places[f"relu{stage}_{at}"] = len(network)
            network.append(nn.ReLU(inplace=True))
            channels = wider
            if len(places) > deepest:
                return network, places
    raise AssertionError(deepest)


def _convolution(channels: int, wider: int) -> nn.Module:
    # Made on no device and without values, since its own initialisation would draw from the global random generator.
    return nn.Conv2d(channels, wider, 3, padding=1, device="meta").to_empty(device="cpu")


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached() -> Path | None:
    path = _cache() / FILE
    return path if path.is_file() else None


def _read(network: nn.Sequential, path: Path) -> None:
    """Fill the network from torchvision's file. Raises BadSettings naming it."""
    remedy = f"name torchvision's {FILE}, or take the setting (or the file) away to use random features"
    if not path.is_file():
        raise BadSettings(f"{path}: there are no VGG-19 weights; {remedy}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "features."
        own = {key: state[prefix + key].float() for key in network.state_dict()}
        network.load_state_dict(own)
    except Exception as error:  # what a cut-off or a foreign file raises depends on where it was cut
        raise BadSettings(f"{path}: these are no VGG-19 weights ({type(error).__name__}: {error}); {remedy}") from error


def _randomise(network: nn.Sequential) -> None:
    generator = torch.Generator("cpu").manual_seed(SEED)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _digest(network: nn.Sequential) -> int:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:7])


def _freeze(layer: nn.Module) -> None:
    """Parameters become buffers that no checkpoint holds: no optimizer, average or exchange ever meets them."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        value = parameter.detach()
        if value.dim() == 4:
            # The convolutions follow the layout of their weights; this one is the faster by 5 to 10 % on a CPU.
            value = value.contiguous(memory_format=torch.channels_last)
        layer.register_buffer(name, value, persistent=False)
