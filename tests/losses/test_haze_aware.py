from __future__ import annotations

import pytest
import torch

from fairweather.errors import BadSettings
from fairweather.losses import charbonnier, dark_channel_mask, haze_aware, transmission_mask
from fairweather.weather.haze import compose


def scene(seed: int = 0) -> torch.Tensor:
    """2 x 3 x 40 x 48 of saturated colours: in every patch of 5 px a pixel lacks one of the primaries."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(2, 3, 40, 48, generator=generator)
    return torch.where(torch.rand(2, 3, 40, 48, generator=generator) < 0.4, 0, colours)


def hazed(clear: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Haze, dense on the left and thin on the right, and its transmission."""
    t = torch.linspace(0.05, 0.95, clear.shape[-1]).expand(len(clear), 1, clear.shape[-2], -1)
    return compose(clear, t, torch.tensor([[0.8, 0.82, 0.85]] * len(clear))), t


def test_dark_channel_mask() -> None:
    """By the definition, pixel by pixel, and against the transmission of synthetic haze."""
    hazy, t = hazed(scene())
    mask = dark_channel_mask(hazy, patch=5)
    dark = torch.zeros(2, 40, 48)
    for photo in range(2):
        for y in range(40):
            for x in range(48):
                window = hazy[photo, :, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                dark[photo, y, x] = window.min()
    for photo in range(2):
        best = dark[photo].flatten().topk(2).indices  # 0.1 % of 1,920 pixels
        airlight = hazy[photo].flatten(1)[:, best].mean(1)
        bright = hazy[photo] / airlight[:, None, None]
        for y, x in [(0, 0), (20, 24), (39, 47), (3, 40)]:
            window = bright[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            assert mask[photo, 0, y, x].item() == pytest.approx(min(1, window.min().item()), rel=1e-5)
    assert mask.shape == (2, 1, 40, 48)
    assert 0 <= mask.min() <= mask.max() <= 1
    assert (mask - (1 - t)).abs().mean() < 0.06  # biased where haze varies in a patch


def test_transmission_mask() -> None:
    clear = scene()
    hazy, t = hazed(clear)
    mask = transmission_mask(hazy, clear)
    assert mask.shape == (2, 1, 40, 48)
    assert (mask - (1 - t)).abs().mean() < 0.03
    assert transmission_mask(clear, clear).max() < 0.01


@pytest.mark.parametrize("mask", [dark_channel_mask, lambda photo, **o: transmission_mask(photo, scene(), **o)])
def test_threshold(mask) -> None:
    hazy, _ = hazed(scene())
    soft, hard = mask(hazy), mask(hazy, threshold=0.5)
    assert set(hard.unique().tolist()) == {0, 1}
    assert torch.equal(hard, (soft > 0.5).float())
    assert mask(hazy, threshold=1.0).sum() == 0


def test_masks_carry_no_gradient_and_full_precision() -> None:
    hazy, _ = hazed(scene())
    hazy = hazy.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks = dark_channel_mask(hazy, patch=5), transmission_mask(hazy, scene().bfloat16())
    exact = dark_channel_mask(hazy.float(), patch=5), transmission_mask(hazy.float(), scene().bfloat16().float())
    for mask, wanted in zip(masks, exact, strict=True):
        assert not mask.requires_grad
        assert mask.dtype == torch.float32
        assert torch.equal(mask, wanted)


def test_a_clear_dark_photo_has_a_small_mask() -> None:
    dark = 0.05 + 0.05 * scene()
    assert dark_channel_mask(dark).max() < 0.25
    assert dark_channel_mask(torch.zeros(1, 3, 8, 8)).max() == 0


def test_weights_of_whole_and_inside() -> None:
    output, target = scene(1), scene(2)
    mask = torch.zeros(2, 1, 40, 48)
    mask[:, :, 4:9, 7:30] = 1
    inside = charbonnier(output[:, :, 4:9, 7:30], target[:, :, 4:9, 7:30])
    expected = 0.7 * charbonnier(output, target) + 0.3 * inside
    assert haze_aware(output, target, mask).item() == pytest.approx(expected.item(), rel=1e-5)
    assert haze_aware(output, target, 0.01 * mask).item() == pytest.approx(expected.item(), rel=1e-4)
    assert haze_aware(output, target, mask, inside=1.0).item() == pytest.approx(inside.item(), rel=1e-5)


def test_an_empty_mask() -> None:
    output, target = scene(1).requires_grad_(), scene(2)
    loss = haze_aware(output, target, torch.zeros(2, 1, 40, 48))
    loss.backward()
    assert loss.item() == pytest.approx(0.7 * charbonnier(output, target).item(), rel=1e-6)
    assert output.grad is not None
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("patch", [0, 4])
def test_an_even_patch_is_rejected(patch: int) -> None:
    with pytest.raises(BadSettings, match="odd"):
        dark_channel_mask(torch.zeros(1, 3, 8, 8), patch=patch)
