"""WeatherClassifier: detects haze in the reduced photo and rain in windows at full resolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional


class WeatherClassifier(nn.Module):
    """Our design: two small stacks of 3 x 3 convolutions, one for each weather; 179,971 parameters.

    V x 3 x S x S in [0,1], V >= 3 views of one photo, S a multiple of 32 -> 1 x 2 logits of haze and rain. The first
    two views are the whole photo, reduced: mean and minimum of each 2 x 2 pixels. The others are windows
    (`fairweather.inference.weather_detection.detector_views`).

    Haze is detected from colours and the dark channel at two scales (He, Sun & Tang, CVPR 2009). Some windows are sky
    or clipped and show no rain, so they are weighted by attention (over the instances of a bag: Ilse, Tomczak &
    Welling, ICML 2018).
    """

    multiple_of: ClassVar[int] = 32

    def __init__(self, *, side: int = 160) -> None:
        super().__init__()
        self.side = side
        self.haze = nn.Sequential(
            _conv(2 * 48 + 4, 24), _conv(24, 40, 2), _conv(40, 56, 2), _conv(56, 64), _conv(64, 64, 2)
        )
        self.rain = nn.Sequential(
            _conv(3, 16, 2), _conv(16, 24, 2), _conv(24, 24), _conv(24, 40, 2), _conv(40, 48), _conv(48, 56, 2)
        )
        self.haze_head = nn.Linear(2 * 64, 1)
        self.rain_head = nn.Linear(2 * 56, 2)

    def forward(self, views: Tensor) -> Tensor:
        return torch.cat([self.haze_logit(views[:1], views[1:2]), self.rain_logit(views[None, 2:])], 1)

    def haze_logit(self, mean: Tensor, least: Tensor) -> Tensor:
        """Mean and minimum view, N x 3 x S x S each -> N x 1."""
        pixels, darkest = functional.pixel_unshuffle(mean, 4), functional.pixel_unshuffle(least, 4)
        features = torch.cat([pixels - 0.5, darkest - 0.5, *_dark_and_bright(darkest, pixels)], 1)
        logit: Tensor = self.haze_head(_pooled(self.haze(features)))
        return logit

    def rain_logit(self, windows: Tensor) -> Tensor:
        """N x K x 3 x S x S, K windows of each of N photos -> N x 1."""
        count, many = windows.shape[:2]
        scores = self.rain_head(_pooled(self.rain(windows.flatten(0, 1) - 0.5))).view(count, many, 2)
        logit: Tensor = (scores[..., 0] * scores[..., 1].softmax(1)).sum(1, keepdim=True)
        return logit


def _dark_and_bright(darkest: Tensor, pixels: Tensor) -> list[Tensor]:
    """Minimum over channels and cells of 4 x 4 pixels, its erosions over 5 and 13 cells, and the maximum."""
    darkest = darkest.amin(1, keepdim=True)
    near = -functional.max_pool2d(-darkest, 5, 1, 2)
    return [darkest, near, -functional.max_pool2d(-near, 9, 1, 4), pixels.amax(1, keepdim=True)]


def _pooled(x: Tensor) -> Tensor:
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    parts: list[Any] = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)
