from __future__ import annotations

import numpy as np
import pytest
import torch

from fairweather.errors import BadSettings
from fairweather.losses import frequency, ssim_loss

metrics = pytest.importorskip("skimage.metrics")


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize("noise", [2.0, 25.0])
def test_ssim_matches_scikit_image(photo: np.ndarray, rng: np.random.Generator, noise: float) -> None:
    other = (photo + rng.normal(0, noise, photo.shape)).clip(0, 255).astype(np.uint8)
    # Two different pairs in one batch: mixed-up channels or pictures would show.
    output = torch.cat([as_batch(photo), as_batch(photo[::-1].copy())])
    target = torch.cat([as_batch(other), as_batch(photo)])
    expected = np.mean(
        [
            metrics.structural_similarity(
                a.permute(1, 2, 0).double().numpy(),
                b.permute(1, 2, 0).double().numpy(),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
                channel_axis=2,
            )
            for a, b in zip(output, target, strict=True)
        ]
    )
    assert 1 - ssim_loss(output, target).item() == pytest.approx(expected, abs=1e-4)
    channels_last = output.contiguous(memory_format=torch.channels_last)
    assert ssim_loss(channels_last, target).item() == pytest.approx(1 - expected, abs=1e-4)


def test_ssim_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    output = torch.rand(1, 1, 14, 12, generator=generator, requires_grad=True)
    target = torch.rand(1, 1, 14, 12, generator=generator)
    (gradient,) = torch.autograd.grad(ssim_loss(output, target), output)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        step = 1e-2
        slope = (ssim_loss(output + step * direction, target) - ssim_loss(output - step * direction, target)) / step / 2
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_ssim_rejects_pictures_below_its_window() -> None:
    with pytest.raises(BadSettings, match="11 x 11"):
        ssim_loss(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


@pytest.mark.parametrize("width", [1, 2, 15, 16])
@pytest.mark.parametrize("norm", ["backward", "ortho"])
def test_frequency_is_the_mean_over_the_whole_plane(width: int, norm: str) -> None:
    generator = torch.Generator().manual_seed(width)
    a, b = torch.rand(2, 2, 3, 9, width, generator=generator)
    spectra = torch.view_as_real(torch.fft.fft2(a, norm=norm)) - torch.view_as_real(torch.fft.fft2(b, norm=norm))
    assert frequency(a, b, norm=norm).item() == pytest.approx(spectra.abs().mean().item(), rel=1e-4)
