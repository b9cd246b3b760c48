"""Perceptual loss: difference of VGG-19 features instead of pixels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.losses.pixel import check_same_shape

log = logging.getLogger("fairweather")

STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Channels of the 3 x 3 convolutions between max-poolings (configuration E)."""
LAYERS = tuple(f"relu{stage}_{at}" for stage, row in enumerate(STAGES, 1) for at in range(1, len(row) + 1))
FILE = "vgg19-dcbb9e9d.pth"
"""Name of torchvision's ImageNet weights, as torch caches them."""
SEED = 19
"""Seed of the random network; with another seed the loss changes, and runs cannot be resumed."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Distance = Literal["mse", "l1"]


class Perceptual(nn.Module):
    """Mean difference of VGG-19's features (Simonyan and Zisserman, ICLR 2015, configuration E).

    Johnson, Alahi and Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution, ECCV 2016, eq. 2:
    the squared difference divided by C H W. Here it is averaged over the layers, so that the scale of the loss does not
    depend on their number.

    The weights are neither parameters nor part of a checkpoint. They move with the module but keep their type: the loss
    is computed in fp32. A checkpoint stores a fingerprint; loading it with other weights raises BadSettings. The
    global random generator is not used.

    Args:
        layers: ReLUs, "relu1_1" ... "relu5_4"; the network ends at the deepest.
        weights: torchvision's file `vgg19-dcbb9e9d.pth`, or any with keys `features.N.weight`; default: the one in
            torch's cache or, if there is none, a random network with a fixed seed (He et al., ICCV 2015). `origin` is
            "imagenet" or "random" accordingly.
        distance: "mse", or "l1" as in Wang et al., pix2pixHD, CVPR 2018.

    Raises:
        UnknownName: VGG-19 has no such layer.
        BadSettings: the file is missing or does not contain VGG-19.
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
            raise BadSettings("a perceptual loss needs at least one layer, such as relu3_3")
        for layer in self.layers:
            if layer not in LAYERS:
                raise UnknownName("layer of VGG-19", layer, LAYERS)
        if distance not in ("mse", "l1"):
            raise UnknownName("distance", distance, ("mse", "l1"))
        self.distance = distance
        network, places = vgg19(max(map(LAYERS.index, self.layers)))
        self.places = {places[layer] for layer in self.layers}
        cached = _cache() / FILE
        if weights is not None or cached.is_file():
            _read(network, cached if weights is None else Path(weights).expanduser())
            self.origin, self.fingerprint = "imagenet", _digest(network)
        else:
            log.info("no VGG-19 weights at %s: the perceptual loss uses a random network", cached)
            _randomise(network)
            # Not a digest: another processor may round the random numbers differently.
            self.origin, self.fingerprint = "random", SEED
        for convolution in network:
            _freeze(convolution)
        self.network = network
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """`output` and `target`, N x 3 x H x W in [0,1] -> a scalar; gradients flow to `output` only.

        Raises BadSettings if the shapes differ or are too small for the deepest layer.
        """
        check_same_shape(output, target)
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
        """N x 3 x H x W in [0,1] -> the output of each layer, from the shallowest, in fp32."""
        values = (photos.float() - self.mean) / self.deviation
        features = []
        for place, layer in enumerate(self.network):
            values = layer(values)
            if place in self.places:
                features.append(values)
        return features

    @property
    def words(self) -> str:
        """Description for the card."""
        return f"{self.origin} VGG-19 features after {', '.join(self.layers)}"

    def train(self, mode: bool = True) -> Self:
        """Do nothing: the network always stays in eval mode."""
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.origin == "imagenet", self.fingerprint], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            was = "ImageNet's" if state[0] else "random"
            raise BadSettings(
                f"the run was started with {was} VGG-19 weights, but the {self.origin} ones found now differ: restore "
                f"the same {FILE} in {_cache()} (or remove it), or start another run"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            # Follow the device only: another type would round the weights permanently.
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


def vgg19(deepest: int) -> tuple[nn.Sequential, dict[str, int]]:
    """VGG-19 with uninitialized weights up to ReLU number `deepest` (from 0), and the index of each ReLU in it."""
    network, places, channels = nn.Sequential(), {}, 3
    for stage, row in enumerate(STAGES, 1):
        if stage > 1:
            network.append(nn.MaxPool2d(2))
        for at, wider in enumerate(row, 1):
            # Through the meta device, since the layer's initialization would use the global random generator.
            network.append(nn.Conv2d(channels, wider, 3, padding=1, device="meta").to_empty(device="cpu"))
            places[f"relu{stage}_{at}"] = len(network)
            network.append(nn.ReLU(inplace=True))
            channels = wider
            if len(places) > deepest:
                return network, places
    raise AssertionError(deepest)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _read(network: nn.Sequential, path: Path) -> None:
    remedy = f"give torchvision's {FILE}, or remove the setting (or the file) to use random features"
    if not path.is_file():
        raise BadSettings(f"{path}: no VGG-19 weights found: {remedy}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({key: state[f"features.{key}"].float() for key in network.state_dict()})
    except Exception as error:  # the type for a truncated or foreign file depends on its content
        raise BadSettings(f"{path} contains no VGG-19 weights ({type(error).__name__}: {error}): {remedy}") from error


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
    """Turn parameters into non-persistent buffers, which are not optimized, averaged, synchronized or saved."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        value = parameter.detach()
        if value.dim() == 4:
            # Convolutions follow the memory format of their weights; this one is 5 to 10 % faster on a CPU.
            value = value.contiguous(memory_format=torch.channels_last)
        layer.register_buffer(name, value, persistent=False)
