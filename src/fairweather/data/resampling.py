"""The crops of a whole batch at once, on any device: `augment.cut` as two products of matrices.

Whatever a resize does along one axis, it takes weighed sums of pixels. Written as a matrix R of weights, a crop of a
photo P is R_y P R_x^T: antialiased exactly at any scale and aspect, without a pyramid of reduced photos; a mirrored
crop has the rows of R_x in reverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairweather.data.augment import Cut

CUBIC = -0.75
"""Keys's parameter (Cubic Convolution Interpolation for Digital Image Processing, IEEE TASSP 1981) in OpenCV."""


def cuts(photos: Sequence[Tensor], boxes: Sequence[Cut], crop: int, *, smooth: bool = True) -> Tensor:
    """The boxes of N photos (H x C x W each, of any size and number type) as N x C x crop x crop float32.

    As `augment.cut` has them: by area where a box is reduced, else cubic; maps (`smooth=False`) linearly, so that they
    do not overshoot. Values keep the scale of the photos, and are not rounded.
    """
    windows = [_window(photo, box) for photo, box in zip(photos, boxes, strict=True)]
    count, channels, device = len(windows), windows[0].shape[1], windows[0].device
    height, width = (max(window.shape[axis] for window in windows) for axis in (0, 2))
    # What is beyond a smaller window is zero, and has no weight.
    stack = torch.zeros(count, height, channels, width, device=device)
    for row, window in zip(stack, windows, strict=True):
        row[: window.shape[0], :, : window.shape[2]] = window
    sizes = [(window.shape[0], window.shape[2]) for window in windows]
    # One small table travels to the device: where each sample begins, how far its steps are, how long its axis is.
    table = torch.tensor([_numbers(size, box, crop) for size, box in zip(sizes, boxes, strict=True)]).to(device)
    areas = [min(size) >= (box.first or crop) for size, box in zip(sizes, boxes, strict=True)]
    rows = _weights(table[:, 0:3], areas, crop, height, smooth)
    columns = _weights(table[:, 3:6], areas, crop, width, smooth)
    columns = torch.where(table[:, 6, None, None] > 0, columns.flip(1), columns)
    across = torch.bmm(stack.view(count, height * channels, width), columns.transpose(1, 2))
    both = torch.bmm(rows, across.view(count, height, channels * crop))
    return both.view(count, crop, channels, crop).transpose(1, 2).contiguous()


def _window(photo: Tensor, box: Cut) -> Tensor:
    if box.first is not None:  # a box of the photo as it is when resized to a square
        return photo
    return photo[box.top : box.top + box.height, :, box.left : box.left + box.width]


def _numbers(size: tuple[int, int], box: Cut, crop: int) -> list[float]:
    """First edge, step and length of both axes in pixels of the window, and whether the box is mirrored."""
    numbers: list[float] = []
    for side, corner in zip(size, (box.top, box.left), strict=True):
        step = side / (box.first or crop)
        numbers += [corner * step if box.first else 0.0, step, float(side)]
    return [*numbers, float(box.mirrored)]


def _weights(axes: Tensor, areas: Sequence[bool], crop: int, side: int, smooth: bool) -> Tensor:
    """The matrices R, N x crop x side, of axes N x 3 (first edge, step, length)."""
    first, step, length = (axes[:, at, None, None] for at in range(3))
    edges = first + step * torch.arange(crop, device=axes.device).view(1, crop, 1)
    pixels = torch.arange(side, device=axes.device).view(1, 1, side)
    covered = torch.minimum(edges + step, pixels + 1) - torch.maximum(edges, pixels.to(edges))
    by_area = covered.clamp_min(0) / step
    if all(areas):
        return by_area
    middles = edges + step / 2 - 0.5
    base = middles.floor()
    away = middles - base
    between = torch.zeros_like(by_area)
    taps = _cubic(away) if smooth else [(0, 1 - away), (1, away)]
    for at, weight in taps:
        # One tap after the other: two that meet at an edge are added in the same order every time.
        place = (base + at).clamp_min(0).minimum(length - 1).long()
        between.scatter_add_(2, place, weight)
    reduced = torch.tensor(list(areas), device=axes.device).view(-1, 1, 1)
    return torch.where(reduced, by_area, between)


def _cubic(away: Tensor) -> list[tuple[int, Tensor]]:
    """The four taps of cubic convolution for points that lie `away` (0 to 1) behind a pixel."""

    def near(x: Tensor) -> Tensor:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    return [(-1, far(1 + away)), (0, near(away)), (1, near(1 - away)), (2, far(2 - away))]
