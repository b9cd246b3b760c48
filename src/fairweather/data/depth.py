"""Depth from one photo: a small network whose depth maps guide synthetic haze, and the format of the cached maps.

The network predicts log depth up to a constant, as in Eigen et al., "Depth Map Prediction from a Single Image using a
Multi-Scale Deep Network", NeurIPS 2014, so that data sets of unknown scale can be mixed (Ranftl et al., "Towards Robust
Monocular Depth Estimation", TPAMI 2022), and a logit of sky, whose depth no data set has.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fairweather import images
from fairweather.data.synthetic import DepthMap
from fairweather.weather.haze import guided_filter

SHORT_SIDE = 224
"""Short side of the network's input; its training crops are 160 to 224 px."""
MAP_SHORT_SIDE = 320
"""Largest short side of a depth map: depth is smooth inside objects, and a map is enlarged to its photo when used."""
FAR_OBJECTS = 0.8
"""Depth of the farthest objects of a photo that shows sky; the sky itself is 1."""
SKY_SHARE = 0.03
"""Share of sky from which `FAR_OBJECTS` applies in full; below it the farthest objects move towards 1."""


SKY_LOGIT, SHARPNESS = -0.6, 3.0
"""Threshold of the sky logit (a probability of 0.35) and steepness of the transition: the network is less certain about
clouds than about blue sky. On held-out scenes any threshold from 0.3 to 0.5 is equally accurate."""
OPEN_AIR = 16.0
"""Minimum ratio between the farthest and nearest depth of objects in photos with sky: outdoors, depths range from a
few metres to the horizon. The network, trained on depths of a smaller range, predicts a ratio of two to four."""
STRETCH = 3.0
"""Maximum factor by which log depth is stretched for that, so that a wall in front of the sky stays flat."""


class DepthNet(nn.Module):
    """Encoder and decoder after MobileNetV2 (Sandler et al., CVPR 2018) and U-Net, with the pooled context of PSPNet
    (Zhao et al., CVPR 2017); N x 3 x H x W in [0,1] -> log depth and logit of sky, N x 2 x H/2 x W/2; 1,777,026
    parameters.

    Plain 3 x 3 convolutions at the fine scales, where a CPU runs them faster than depthwise ones, and inverted
    residuals with 5 x 5 depthwise convolutions at 1/16 and 1/32. The input includes two coordinates, the height in the
    photo and the distance from its vertical centre line, since depth usually increases upwards.
    """

    multiple_of: int = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(5, 24, stride=2)
        self.quarter = nn.Sequential(_convolution(24, 40, stride=2), DepthResidual(40))
        self.eighth = nn.Sequential(_convolution(40, 72, stride=2), DepthResidual(72), DepthResidual(72))
        self.sixteenth = nn.Sequential(_convolution(72, 128, stride=2), *(InvertedResidual(128) for _ in range(3)))
        self.deepest = nn.Sequential(_convolution(128, 160, stride=2), *(InvertedResidual(160) for _ in range(3)))
        self.context = nn.Sequential(nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 160))
        self.rises = nn.ModuleList(
            [DepthUpBlock(160, 128, 96), DepthUpBlock(96, 72, 64), DepthUpBlock(64, 40, 40), DepthUpBlock(40, 24, 16)]
        )
        self.head = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, photo: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by 32 -> N x 2 x H/2 x W/2: log depth and logit of sky."""
        count, _, height, width = photo.shape
        y = torch.linspace(-1, 1, height).to(photo).view(1, 1, height, 1).expand(count, 1, height, width)
        x = torch.linspace(-1, 1, width).to(photo).abs().view(1, 1, 1, width).expand(count, 1, height, width)
        half = self.stem(torch.cat([photo * 4 - 2, y, x], 1))
        quarter = self.quarter(half)
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        features = self.deepest(sixteenth)
        features = features + self.context(features.mean((2, 3)))[:, :, None, None]
        for rise, skip in zip(self.rises, (sixteenth, eighth, quarter, half), strict=True):
            features = rise(features, skip)
        output: Tensor = self.head(features)
        return output


class DepthResidual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut: n x c x h x w -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels, active=False)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.second(self.first(features)))


class InvertedResidual(nn.Module):
    """Expand 1 x 1, depthwise 5 x 5, squeeze and excite, project 1 x 1, plus the input: n x c x h x w -> the same."""

    def __init__(self, channels: int, expansion: int = 3) -> None:
        super().__init__()
        inside = channels * expansion
        self.expand = _convolution(channels, inside, size=1)
        self.depthwise = _convolution(inside, inside, size=5, groups=inside)
        self.excite = nn.Sequential(
            nn.Linear(inside, channels // 4), nn.ReLU(), nn.Linear(channels // 4, inside), nn.Sigmoid()
        )
        self.project = _convolution(inside, channels, size=1, active=False)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.depthwise(self.expand(features))
        change: Tensor = self.project(inside * self.excite(inside.mean((2, 3)))[:, :, None, None])
        return features + change


class DepthUpBlock(nn.Module):
    """One step of the decoder: n x into x h x w and n x skip x 2h x 2w -> n x out x 2h x 2w."""

    def __init__(self, into: int, skip: int, out: int) -> None:
        super().__init__()
        self.up, self.across = nn.Conv2d(into, out, 1), nn.Conv2d(skip, out, 1)
        self.join = _convolution(out, out)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        wide = functional.interpolate(self.up(features), skip.shape[2:], mode="bilinear", align_corners=False)
        joined: Tensor = self.join(functional.relu(wide + self.across(skip)))
        return joined


def _convolution(
    into: int, out: int, *, size: int = 3, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), *([nn.ReLU()] if active else []))


def load_network(path: Path) -> DepthNet:
    """Load the network from a safetensors file, ready for `predict`."""
    network = DepthNet()
    network.load_state_dict(load_file(path))
    return network.eval()


def predict(network: nn.Module, photo: NDArray[Any]) -> NDArray[np.float32]:
    """Predict the depth of a photo, relative to its farthest point.

    Args:
        network: a `DepthNet` in evaluation mode, or any module that returns the same two maps.
        photo: H x W x 3, uint8, uint16 or float in [0,1], RGB, of any size.

    Returns:
        H x W float32 in [0,1], proportional to depth: 0 at the camera, 1 far; sky is far.
    """
    height, width = photo.shape[:2]
    shown = images.to_float(photo)
    scale = SHORT_SIDE / min(height, width)
    size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
    # a panorama stays within four times its short side
    small = cv2.resize(shown, (min(size[0], 1024), min(size[1], 1024)), interpolation=cv2.INTER_AREA)
    batch = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].clamp(0, 1)
    with torch.inference_mode():
        # the mean over the photo and its mirror image
        both = network(torch.cat([batch, batch.flip(3)]))
        log_depth, sky = ((both[:1] + both[1:].flip(3)) / 2).float().chunk(2, 1)
        guide = functional.interpolate(batch.mean(1, keepdim=True), sky.shape[2:], mode="area")
        depth = normalised(log_depth, (SHARPNESS * (sky - SKY_LOGIT)).sigmoid())
        depth = _refined(depth, guide, torch.from_numpy(np.ascontiguousarray(shown)).permute(2, 0, 1)[None])
    return np.asarray(depth[0, 0].numpy(), dtype=np.float32)


def normalised(log_depth: Tensor, sky: Tensor) -> Tensor:
    """Depth in [0,1] from log depth up to a constant and the probability of sky, 1 x 1 x h x w each.

    The farthest percent of the pixels without sky gets depth 1 in a photo without sky, and `FAR_OBJECTS` in one with
    sky. With sky, log depth is stretched until near and far objects differ by `OPEN_AIR`; the order of pixels by depth
    is preserved.
    """
    ground = log_depth[sky < 0.5]
    if ground.numel() < 0.01 * sky.numel():
        return sky.clone()
    near, far = torch.quantile(ground, 0.02), torch.quantile(ground, 0.99)
    share = (sky.mean() / SKY_SHARE).clamp(0, 1)
    stretch = (math.log(OPEN_AIR) / (far - near).clamp_min(1e-3)).clamp(1, STRETCH) ** share
    depth = ((log_depth - far) * stretch).exp().clamp(0, 1) * (1 - (1 - FAR_OBJECTS) * share)
    return depth * (1 - sky) + sky


def _refined(depth: Tensor, guide: Tensor, photo: Tensor) -> Tensor:
    """Depth at the photo's size, with edges aligned to those of the photo by a guided filter."""
    height, width = photo.shape[2:]
    wide = functional.interpolate(depth, (height, width), mode="bilinear", align_corners=False)
    luma = photo.mean(1, keepdim=True)
    radius = max(2, min(height, width) // 40)
    return guided_filter(luma, wide, radius, 1e-3).clamp(0, 1)


def to_map(depth: NDArray[np.float32]) -> DepthMap:
    """Convert depth in [0,1] to 16 bits, reduced to a short side of at most `MAP_SHORT_SIDE`."""
    height, width = depth.shape
    scale = min(1.0, MAP_SHORT_SIDE / min(height, width))
    if scale < 1:
        depth = cv2.resize(depth, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray((np.clip(depth, 0, 1) * 65535).round(), dtype=np.uint16)
