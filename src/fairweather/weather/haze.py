"""Haze by the atmospheric scattering model, I = J t + A (1 - t) with t = exp(-beta d).

Koschmieder (1924); Narasimhan & Nayar, "Vision and the Atmosphere", IJCV 2002, eq. 3. Pure functions on
batches: pictures are N x 3 x H x W in [0, 1], transmissions and depths N x 1 x H x W, airlights N x 3.
Every random number comes from the generator that the caller hands in, so a seed is a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fairweather.errors import BadSettings

MIN_TRANSMISSION = 0.02
BLUE = (-0.15, -0.024, 0.15)


@dataclass(frozen=True)
class HazeSettings:
    """The ranges that `haze` and `rehaze` draw from, each uniformly unless said otherwise."""

    density: tuple[float, float] = (0.3, 3.5)
    """Optical depth beta d at the far end of the scene, drawn log-uniformly. RIDCP (Wu et al., CVPR 2023, sec. 3.1)
    has beta in [0.3, 1.5] over depths of a few units; RESIDE (Li et al., TIP 2019) reaches t of about 0.03."""
    airlight: tuple[float, float] = (0.6, 1.0)
    """Brightness of the airlight A. RESIDE: [0.7, 1.0] indoors, [0.8, 1.0] outdoors; RIDCP goes darker, for dusk."""
    tint: float = 0.04
    """Largest departure of one channel of A from its brightness (RIDCP: 0.025; real fog machines tint more)."""
    blue: float = 0.0
    """Share of pictures under the bluish airlight of real fog by day: up to BLUE is added to A, uniformly. Measured as
    the brightest haze of the pairs of O-HAZE (0.63, 0.71, 0.88) and NH-HAZE (0.61, 0.68, 0.79)."""
    patchy: float = 0.35
    """Share of pictures whose haze is not homogeneous: beta is multiplied by fractal noise (NH-HAZE, Ancuti et al.,
    CVPRW 2020, shows what it looks like)."""
    linear: float = 0.25
    """Share of pictures composed in linear light, as light adds up; the rest in sRGB, as RESIDE and most data are."""
    noise: float = 0.02
    """Largest standard deviation of the sensor noise added after the haze (in [0, 1] units)."""
    clear: float = 0.0
    """Share of pictures left clear, so that a network learns to leave clear photos alone (D4, Yang et al., CVPR 2022,
    argues for densities down to none)."""

    def __post_init__(self) -> None:
        for name in ("density", "airlight"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise BadSettings(f"haze.{name} is {low} to {high}: a range goes up from 0 or more")
        if self.density[0] == 0:  # its logarithm is drawn
            raise BadSettings("haze.density starts at 0: it must be above; haze.clear leaves pictures clear")
        if self.airlight[1] > 1 or self.noise < 0:
            raise BadSettings("haze.airlight ends at 1, and haze.noise is at least 0")
        for name in ("blue", "patchy", "linear", "clear", "tint"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettings(f"haze.{name} is {getattr(self, name)}: a share lies in [0, 1]")


def compose(clear: Tensor, transmission: Tensor, airlight: Tensor, *, linear: bool = False) -> Tensor:
    """Hazy pictures from clear ones: N x 3 x H x W, N x 1 x H x W and N x 3 give N x 3 x H x W.

    `linear` composes in linear light (sRGB's transfer function, IEC 61966-2-1, undone and redone).
    """
    airlight = airlight[:, :, None, None]
    if not linear:
        return airlight + (clear - airlight) * transmission
    light = to_linear(airlight)
    return to_srgb(light + (to_linear(clear) - light) * transmission)


def to_linear(picture: Tensor) -> Tensor:
    """sRGB code values in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(picture <= 0.04045, picture / 12.92, ((picture.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB code values (IEC 61966-2-1)."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def haze(
    clear: Tensor, generator: Generator, settings: HazeSettings | None = None, depth: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Haze N clear pictures, each with its own draw of depth (unless given, in [0, 1]), density and airlight.

    Returns the hazy pictures (N x 3 x H x W in [0, 1]) and what made them: `transmission`, `airlight`.
    """
    settings = settings or HazeSettings()
    count, _, height, width = clear.shape
    if depth is None:
        depth = invented_depth(count, height, width, generator, guide=clear)
    low, high = (torch.tensor(v).log().item() for v in settings.density)
    beta = _uniform(count, low, high, generator, clear).exp()
    return _finish(clear, (-beta * depth).exp(), generator, settings)


def rehaze(
    clear: Tensor, transmission: Tensor, generator: Generator, settings: HazeSettings | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Haze N clear pictures again along their own measured transmission, with another density and airlight.

    A pair's transmission is exp(-beta d), so its power is the same scene at another density; the power is
    drawn log-uniformly from [0.4, 2]. Returns what `haze` does.
    """
    settings = settings or HazeSettings()
    power = _uniform(len(clear), -0.9163, 0.6931, generator, clear).exp()
    return _finish(clear, transmission.clamp(MIN_TRANSMISSION, 1) ** power, generator, settings)


def _finish(
    clear: Tensor, transmission: Tensor, generator: Generator, settings: HazeSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    count, _, height, width = clear.shape
    patchy = _happens(count, settings.patchy, generator, clear)
    if patchy.any():
        patches = fractal_noise(count, height, width, generator, octaves=3, like=clear)
        transmission = torch.where(patchy, transmission ** (0.2 + 1.6 * patches), transmission)
    left_clear = _happens(count, settings.clear, generator, clear)
    transmission = torch.where(left_clear, torch.ones_like(transmission), transmission.clamp(MIN_TRANSMISSION, 1))
    brightness = _uniform(count, *settings.airlight, generator, clear)[:, :, 0, 0]
    tint = (torch.rand(count, 3, generator=generator, device=generator.device) * 2 - 1).to(clear) * settings.tint
    if settings.blue > 0:
        strength = _uniform(count, 0, 1, generator, clear) * _happens(count, settings.blue, generator, clear)
        tint = tint + strength[:, :, 0, 0] * clear.new_tensor(BLUE)
    airlight = (brightness + tint).clamp(0, 1)
    linear = _happens(count, settings.linear, generator, clear)
    hazy = compose(clear, transmission, airlight)
    if linear.any():
        hazy = torch.where(linear, compose(clear, transmission, airlight, linear=True), hazy)
    if settings.noise > 0:
        sigma = _uniform(count, 0, settings.noise, generator, clear)
        grain = torch.randn(hazy.shape, generator=generator, device=generator.device).to(clear)
        hazy = hazy + grain * torch.where(left_clear, torch.zeros_like(sigma), sigma)
    return hazy.clamp(0, 1), {"transmission": transmission, "airlight": airlight}


def invented_depth(count: int, height: int, width: int, generator: Generator, guide: Tensor) -> Tensor:
    """Plausible depths for photos without one: N x 1 x H x W in [0, 1], 0 near and 1 far.

    A ramp (the ground runs away upwards, more or less tilted), fractal noise, and a random mixture of the
    photo's own colours so that objects stand at depths of their own, smoothed along the photo's edges by a
    guided filter (He, Sun & Tang, TPAMI 2013).
    """
    y = torch.linspace(1, 0, height, device=guide.device, dtype=guide.dtype).view(1, 1, height, 1)
    x = torch.linspace(-0.5, 0.5, width, device=guide.device, dtype=guide.dtype).view(1, 1, 1, width)
    power = _uniform(count, -0.7, 0.9, generator, guide).exp()
    ramp = (y**power + x * _uniform(count, -0.6, 0.6, generator, guide)).clamp(0, 1)
    noise = fractal_noise(count, height, width, generator, octaves=4, like=guide)
    direction = torch.randn(count, 3, 1, 1, generator=generator, device=generator.device).to(guide)
    colours = (guide * direction).sum(1, keepdim=True)
    colours = _stretched(colours)
    shares = torch.rand(count, 3, 1, 1, generator=generator, device=generator.device).to(guide)
    shares = shares * torch.tensor([1.0, 0.7, 0.6], device=guide.device, dtype=guide.dtype).view(1, 3, 1, 1)
    depth = (torch.cat([ramp, noise, colours], 1) * shares).sum(1, keepdim=True) / shares.sum(1, keepdim=True)
    luma = guide.mean(1, keepdim=True)
    radius = max(1, min(height, width) // 24)
    return _stretched(guided_filter(luma, depth, radius, 1e-3))


def fractal_noise(count: int, height: int, width: int, generator: Generator, *, octaves: int, like: Tensor) -> Tensor:
    """Sum of smooth random fields, each twice as fine and half as strong: N x 1 x H x W stretched to [0, 1]."""
    total = torch.zeros(count, 1, height, width, device=like.device, dtype=like.dtype)
    for octave in range(octaves):
        cells = 2 ** (octave + 1) + 1
        coarse = torch.rand(count, 1, cells, cells, generator=generator, device=generator.device).to(like)
        fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        total = total + fine * 0.5**octave
    return _stretched(total)


def guided_filter(guide: Tensor, source: Tensor, radius: int, eps: float) -> Tensor:
    """The guided filter with a one-channel guide (He, Sun & Tang, TPAMI 2013, algorithm 1), windows cut at the border.

    The two linear coefficients are found on pictures reduced by radius / 4 and enlarged ("Fast Guided Filter",
    He & Sun, arXiv:1505.00996), which changes little and costs a small part.
    """
    factor = max(1, radius // 4)
    size = [max(1, side // factor) for side in guide.shape[-2:]]
    small_guide, small_source = (F.interpolate(x, size, mode="area") for x in (guide, source))
    radius = max(1, radius // factor)

    def mean(x: Tensor) -> Tensor:
        for axis in (0, 1):
            side = 2 * min(radius, (x.shape[axis + 2] - 1) // 2) + 1
            kernel, padding = ((side, 1), (side // 2, 0)) if axis == 0 else ((1, side), (0, side // 2))
            x = F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)
        return x

    mean_guide, mean_source = mean(small_guide), mean(small_source)
    covariance = mean(small_guide * small_source) - mean_guide * mean_source
    slope = covariance / (mean(small_guide * small_guide) - mean_guide**2 + eps)
    coefficients = torch.cat([mean(slope), mean(mean_source - slope * mean_guide)], 1)
    slope, offset = F.interpolate(coefficients, guide.shape[-2:], mode="bilinear").chunk(2, 1)
    return slope * guide + offset


def transmission_of_pair(hazy: Tensor, clear: Tensor, airlight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The transmission that turned `clear` into `hazy`, t = (I - A) / (J - A): N x 1 x H x W, and A: N x 3.

    Where A is not given it is the grey between 0.5 and 1.05 under which the three channels agree best on t.
    Where clear and airlight are alike t says nothing; there it is averaged from the pixels around.
    """
    if airlight is None:
        candidates = torch.linspace(0.5, 1.05, 56, device=hazy.device, dtype=hazy.dtype)
        size = (min(96, hazy.shape[-2]), min(96, hazy.shape[-1]))
        small_hazy, small_clear = (F.adaptive_avg_pool2d(x, size) for x in (hazy, clear))
        errors = []
        for value in candidates:
            light, dimmed = small_clear - value, small_hazy - value
            t = (light * dimmed).sum(1, keepdim=True) / (light * light).sum(1, keepdim=True).clamp_min(1e-4)
            errors.append((dimmed - t.clamp(0, 1) * light).square().mean((1, 2, 3)))
        airlight = candidates[torch.stack(errors).argmin(0)][:, None].expand(-1, 3)
    light, dimmed = (x - airlight[:, :, None, None] for x in (clear, hazy))
    evidence = (light * light).sum(1, keepdim=True)
    product = (light * dimmed).sum(1, keepdim=True)
    # A pixel with strong evidence keeps its own value; the pooled terms only fill in for weak ones.
    pooled_evidence, pooled_product = (F.avg_pool2d(x, 7, 1, 3, count_include_pad=False) for x in (evidence, product))
    t = (product + 0.1 * pooled_product) / (evidence + 0.1 * pooled_evidence).clamp_min(1e-6)
    return t.clamp(MIN_TRANSMISSION, 1), airlight


def _uniform(count: int, low: float, high: float, generator: Generator, like: Tensor) -> Tensor:
    draw = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device).to(like)
    return low + (high - low) * draw


def _happens(count: int, share: float, generator: Generator, like: Tensor) -> Tensor:
    return _uniform(count, 0, 1, generator, like) < share


def _stretched(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)
