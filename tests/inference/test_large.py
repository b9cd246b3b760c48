"""A photo of 12 megapixels, whole and in tiles, through a real U-Net."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fairweather.generators import UNet
from fairweather.inference.restorer import Restorer
from tests.inference.test_restorer import LOCAL, engine_of


@pytest.fixture
def unet() -> UNet:
    """Shallow and narrow, with weights so large that each output depends on its whole field."""
    torch.manual_seed(0)
    network = UNet(levels=4, width=4).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data *= 8
    return network


def test_tiled_is_whole_at_twelve_megapixels(unet: UNet, rng: np.random.Generator) -> None:
    coarse = rng.random((150, 200, 3), dtype=np.float32)
    photo = (cv2.resize(coarse, (4000, 3000)) * 255).round().astype(np.uint8)
    card = replace(LOCAL, multiple_of=unet.multiple_of, receptive_field=unet.receptive_field)
    whole = Restorer(card, engine_of(unet), memory=1 << 40)(photo)
    tiled = Restorer(card, engine_of(unet), tile=1000)(photo)
    assert cv2.absdiff(tiled, whole).max() <= 1
    # It can fail: with a halo that does not cover the field, seams show.
    corner = photo[:600, :600]
    short = replace(card, receptive_field=9)
    seams = cv2.absdiff(Restorer(short, engine_of(unet), tile=200)(corner), Restorer(card, engine_of(unet))(corner))
    assert seams.max() > 10
