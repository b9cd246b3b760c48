"""Haze by the atmospheric scattering model, I = J t + A (1 - t) with t = exp(-beta d).

Koschmieder (1924); Narasimhan & Nayar, "Vision and the Atmosphere", IJCV 2002, eq. 3. Pure functions on batches:
pictures are N x 3 x H x W in [0, 1], transmissions and depths N x 1 x H x W, airlights N x 3. All random numbers come
from the caller's generator, so results are reproducible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fairweather.weather.draws import Range, check_number, check_range, happens, log_uniform, random_like, uniform

MIN_TRANSMISSION = 0.02
"""Lower bound of all transmissions."""
BLUE = (-0.15, -0.024, 0.15)
"""Offset of the airlight of the bluest fog by day (see `HazeSettings.blue`)."""
DUST = (1.0, 0.738, 0.405)
"""Hue of the airlight in a dust storm, relative to its red: A = (0.84, 0.62, 0.34)."""
NOISE_LEVELS = (2 / 255, 25 / 255)
"""Standard deviations of the sensor noise under the haze (RIDCP)."""
GAMMA = (1.5, 3.0)
"""Exponents that darken a scene before the haze (RIDCP)."""
LAMPS = ((1.0, 0.62, 0.25), (1.0, 0.9, 0.75), (0.86, 0.94, 1.0), (1.0, 0.12, 0.06), (0.25, 1.0, 0.55))
"""Colours of lamps in linear light: sodium (about 2000 K), warm white, cold white, tail and signal lamps."""
LAMP_SHARES = (0.34, 0.34, 0.18, 0.12, 0.02)
MOST_LAMPS = 10


@dataclass(frozen=True)
class HazeSettings:
    """The ranges that `haze` and `rehaze` draw from, uniformly unless stated otherwise."""

    density: Range = (0.3, 3.5)
    """Optical depth beta d at the far end of the scene, drawn log-uniformly (uniformly with `even`). RIDCP (Wu et al.,
    CVPR 2023, sec. 3.1) has 0.6 to 3: exp(-2 beta d), beta in [0.3, 1.5]; RESIDE (Li et al., TIP 2019) reaches t of
    about 0.03."""
    airlight: Range = (0.6, 1.0)
    """Brightness of the airlight A. RESIDE: [0.7, 1.0] indoors, [0.8, 1.0] outdoors; RIDCP goes darker, for dusk."""
    tint: float = 0.04
    """Largest departure of one channel of A from its brightness (RIDCP: 0.025; real fog machines tint more)."""
    blue: float = 0.0
    """Share of pictures with the bluish airlight of real fog by day: up to BLUE is added to A, uniformly. Measured as
    the brightest haze in the pairs of O-HAZE (0.63, 0.71, 0.88) and NH-HAZE (0.61, 0.68, 0.79)."""
    patchy: float = 0.35
    """Share of pictures with non-homogeneous haze: beta is multiplied by fractal noise (compare NH-HAZE, Ancuti et
    al., CVPRW 2020)."""
    linear: float = 0.25
    """Share of pictures composed in linear light, which is physical; the rest in sRGB, like RESIDE and most data."""
    noise: float = 0.02
    """Largest standard deviation of the sensor noise after the haze, on the scale [0, 1]."""
    clear: float = 0.0
    """Share of pictures left clear, so that a network learns to leave clear photos unchanged (D4, Yang et al., CVPR
    2022, argues for densities down to 0)."""
    near: Range = (0.0, 0.0)
    """Distance of the nearest point as a share of the farthest: there is haze in front of the foreground, too."""
    bend: Range = (1.0, 1.0)
    """Exponent of the depth, drawn log-uniformly, since estimated and invented depths are not linear in the distance.
    Above 1 the foreground is clearer and the distance denser, as along a road."""
    even: bool = False
    """Draw the density uniformly, as RESIDE does."""
    patches: Range = (0.2, 1.8)
    """Factors on beta in the thinnest and in the densest part of patchy haze; smoke has 0 in the thinnest."""
    dark: float = 0.0
    """Share of pictures whose scene is darkened before the haze, by a power from `gamma`; the clear side stays bright.
    RIDCP: 0.5."""
    gamma: Range = GAMMA
    """Powers that darken a scene. RIDCP: [1.5, 3.0]."""
    grain: float = 0.0
    """Share of pictures with sensor noise under the haze, of 2 to 25 levels of 255. RIDCP: 0.5."""
    warm: Range = (0.0, 0.0)
    """Warmth w of the airlight: its colour is multiplied by DUST ** w. Measured on 205 real photos (the median of the
    haziest 1 % of pixels): 90 % have w in [-0.13, 0.18], smog reaches 0.4, sand and dust 0.6 to 1.3. Below 0 it is
    bluish."""
    cast: Range = (0.0, 0.0)
    """Share of the airlight's hue in the light on the scene, which is multiplied by (A / max A) ** cast: dust and smog
    tint the whole picture. The clear side is the scene under white light."""
    night: float = 0.0
    """Share of pictures at night, with glowing lamps (see `nightfall` and `glow`). Their clear side is dark as well."""

    def __post_init__(self) -> None:
        for name in ("airlight", "near"):
            check_range(f"haze.{name}", getattr(self, name), 0, 1)
        for name in ("density", "bend"):  # their logarithms are drawn
            check_range(f"haze.{name}", getattr(self, name), above=True)
        for name in ("patches", "gamma", "cast"):
            check_range(f"haze.{name}", getattr(self, name))
        check_range("haze.warm", self.warm, -10, 10)
        check_number("haze.noise", self.noise)
        for name in ("blue", "patchy", "linear", "clear", "tint", "dark", "grain", "night"):
            check_number(f"haze.{name}", getattr(self, name), 0, 1)


def compose(clear: Tensor, transmission: Tensor, airlight: Tensor, *, linear: bool = False) -> Tensor:
    """Apply the scattering model.

    Args:
        clear: N x 3 x H x W.
        transmission: N x 1 x H x W.
        airlight: N x 3.
        linear: compose in linear light (through sRGB's transfer function, IEC 61966-2-1).

    Returns:
        Hazy pictures, N x 3 x H x W.
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
    """Add haze to clear pictures, each with its own density and airlight.

    Args:
        clear: N x 3 x H x W in [0, 1].
        generator: source of all random numbers.
        settings: ranges to draw from.
        depth: N x 1 x H x W in [0, 1], 0 near; invented if not given.

    Returns:
        The hazy pictures, N x 3 x H x W in [0, 1], and a record: `transmission` (N x 1 x H x W), `airlight` (N x 3) and
        `clear`, the pictures without haze (they differ from the given ones at night only).
    """
    settings = settings or HazeSettings()
    count, _, height, width = clear.shape
    if depth is None:
        depth = invented_depth(count, height, width, generator, guide=clear)
    if settings.bend != (1.0, 1.0):
        depth = depth ** log_uniform(count, settings.bend, generator, clear)
    if settings.near[1] > 0:
        near = uniform(count, settings.near, generator, clear)
        depth = near + (1 - near) * depth
    if settings.even:
        beta = uniform(count, settings.density, generator, clear)
    else:
        beta = log_uniform(count, settings.density, generator, clear)
    return _finish(clear, (-beta * depth).exp(), generator, settings)


def rehaze(
    clear: Tensor, transmission: Tensor, generator: Generator, settings: HazeSettings | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add haze along a measured transmission, at another density and with another airlight.

    A pair's transmission is exp(-beta d), so a power of it is the same scene at another density; the power is drawn
    log-uniformly from [0.4, 2]. Args and Returns as for `haze`.
    """
    settings = settings or HazeSettings()
    power = uniform(len(clear), (-0.9163, 0.6931), generator, clear).exp()
    return _finish(clear, transmission.clamp(MIN_TRANSMISSION, 1) ** power, generator, settings)


def _finish(
    clear: Tensor, transmission: Tensor, generator: Generator, settings: HazeSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    # settings that are off draw no random numbers, so that new settings do not change the pictures of a seed
    count, _, height, width = clear.shape
    patchy = happens(count, settings.patchy, generator, clear)
    if patchy.any():
        field = fractal_noise(count, height, width, generator, octaves=3, like=clear)
        thin, dense = settings.patches
        transmission = torch.where(patchy, transmission ** (thin + (dense - thin) * field), transmission)
    left_clear = happens(count, settings.clear, generator, clear)
    transmission = torch.where(left_clear, torch.ones_like(transmission), transmission.clamp(MIN_TRANSMISSION, 1))
    airlight = _airlight(count, generator, settings, clear)
    scene = _scene(clear, airlight, left_clear, generator, settings)
    linear = happens(count, settings.linear, generator, clear)
    hazy = compose(scene, transmission, airlight)
    if linear.any():
        hazy = torch.where(linear, compose(scene, transmission, airlight, linear=True), hazy)
    if settings.night > 0:
        dark = happens(count, settings.night, generator, clear) & ~left_clear
        lit, lamps = nightfall(clear, transmission, generator)
        foggy = night_haze(lit, lamps, transmission, airlight, generator)
        hazy = torch.where(dark, foggy, hazy)
        clear = torch.where(dark, to_srgb((lit + lamps).clamp(0, 1)), clear)
    if settings.noise > 0:
        sigma = uniform(count, (0, settings.noise), generator, clear)
        grain = random_like(clear, generator)
        hazy = hazy + grain * torch.where(left_clear, torch.zeros_like(sigma), sigma)
    return hazy.clamp(0, 1), {"transmission": transmission, "airlight": airlight, "clear": clear}


def _airlight(count: int, generator: Generator, settings: HazeSettings, like: Tensor) -> Tensor:
    brightness = uniform(count, settings.airlight, generator, like)[:, :, 0, 0]
    tint = (torch.rand(count, 3, generator=generator, device=generator.device) * 2 - 1).to(like) * settings.tint
    if settings.blue > 0:
        strength = uniform(count, (0, 1), generator, like) * happens(count, settings.blue, generator, like)
        tint = tint + strength[:, :, 0, 0] * like.new_tensor(BLUE)
    if settings.warm != (0.0, 0.0):
        warmth = uniform(count, settings.warm, generator, like)[:, :, 0, 0]
        hue = like.new_tensor(DUST) ** warmth
        brightness = brightness * hue / hue.amax(1, keepdim=True)
    return (brightness + tint).clamp(0, 1)


def _scene(clear: Tensor, airlight: Tensor, left_clear: Tensor, generator: Generator, settings: HazeSettings) -> Tensor:
    """The scene under the haze: darker, tinted or noisy, depending on the settings."""
    count, scene = len(clear), clear
    if settings.dark > 0:
        power = uniform(count, settings.gamma, generator, clear)
        power = torch.where(happens(count, settings.dark, generator, clear), power, torch.ones_like(power))
        scene = scene.clamp_min(0) ** power
    if settings.cast[1] > 0:
        hue = airlight / airlight.amax(1, keepdim=True).clamp_min(1e-3)
        scene = scene * hue[:, :, None, None] ** uniform(count, settings.cast, generator, clear)
    if settings.grain > 0:
        sigma = uniform(count, NOISE_LEVELS, generator, clear) * happens(count, settings.grain, generator, clear)
        scene = (scene + sigma * random_like(clear, generator)).clamp(0, 1)
    return torch.where(left_clear, clear, scene)


def nightfall(clear: Tensor, transmission: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Turn daytime pictures into the same scenes at night.

    The scene is lit by a bluish sky at 1 to 5 % of daylight and by 2 to MOST_LAMPS lamps, each with a pool of light
    that falls off with the square of the distance. Lamps do not light the sky or other distant parts (by transmission).

    Returns:
        Light of the scene and light of its lamps, N x 3 x H x W each, in linear light. Lamps exceed 1, white.
    """
    count, _, height, width = clear.shape
    side = min(height, width)
    y = torch.arange(height, device=clear.device, dtype=clear.dtype).view(1, 1, height, 1)
    x = torch.arange(width, device=clear.device, dtype=clear.dtype).view(1, 1, 1, width)
    sky = uniform(count, (-4.6, -3.0), generator, clear).exp() * clear.new_tensor((0.8, 0.9, 1.1)).view(1, 3, 1, 1)
    light, lamps = sky.expand_as(clear).clone(), torch.zeros_like(clear)
    shown = uniform(count, (2, MOST_LAMPS + 1), generator, clear).floor()
    colours, edges = clear.new_tensor(LAMPS), clear.new_tensor(LAMP_SHARES).cumsum(0)
    for lamp in range(MOST_LAMPS):
        at_x, at_y, size, power, reach, kind = (uniform(count, (0, 1), generator, clear) for _ in range(6))
        drawn = torch.searchsorted(edges, kind.flatten()).clamp_max(len(LAMPS) - 1)
        colour = colours[drawn][:, :, None, None] * (shown > lamp)
        # lamps are near the horizon, in the middle of most photos; distant ones are small and faint
        away = ((y - (0.15 + 0.6 * at_y) * height).square() + (x - at_x * width).square()).sqrt()
        radius = side * (0.003 + 0.017 * size**3)
        disc = (-(away / radius).square()).exp()
        lamps = lamps + disc * colour * 2 * 150**power
        pool = side * (0.05 + 0.25 * reach) * (0.3 + size)
        light = light + colour * (0.03 + 0.3 * power) / (1 + (away / pool).square())
    far = (1 - transmission / transmission.amax((2, 3), keepdim=True)) ** 4
    light = light * (1 - far) + 0.5 * sky * far
    return to_linear(clear) * light, lamps


def night_haze(scene: Tensor, lamps: Tensor, transmission: Tensor, airlight: Tensor, generator: Generator) -> Tensor:
    """Add haze to a scene and its lamps, both in linear light; returns N x 3 x H x W in [0, 1], sRGB.

    The model of Li, Tan & Brown, "Nighttime Haze Removal with Glow and Multiple Light Colors", ICCV 2015, eq. 3: the
    scattering model plus the lamps' glow. The light that the medium scatters, 1 - t, glows around the lamp.
    """
    count = len(scene)
    spread = min(scene.shape[-2:]) * uniform(count, (-4.6, -2.3), generator, scene).exp()
    shape = uniform(count, (0.4, 0.8), generator, scene)
    around = glow(lamps * (1 - transmission), spread, shape)
    # the same lamps light the air, including those outside the picture
    hue = lamps.mean((2, 3)) + 1e-2
    hue = (hue / hue.mean(1, keepdim=True)) ** 0.3
    ambient = (to_linear(airlight) * hue)[:, :, None, None]
    return to_srgb((ambient + (scene - ambient) * transmission + lamps * transmission + around).clamp(0, 1))


def glow(light: Tensor, spread: Tensor, shape: Tensor) -> Tensor:
    """Convolve light with the atmospheric point spread function.

    Narasimhan & Nayar, "Shedding Light on the Weather", CVPR 2003, derive that function from multiple scattering;
    Metari & Deschenes, ICCV 2007, approximate it by exp(-(r / spread) ^ shape).

    Args:
        light: N x 3 x H x W, linear.
        spread: N x 1 x 1 x 1, in pixels.
        shape: N x 1 x 1 x 1, smaller for a denser medium.

    Returns:
        N x 3 x H x W, of the same sum except for the light that leaves the picture.
    """
    height, width = light.shape[-2:]
    rows, columns = 2 * height, 2 * width  # wide enough that no light wraps around
    y, x = (_wrapped(size, light) for size in (rows, columns))
    away = (y.square().view(1, 1, -1, 1) + x.square().view(1, 1, 1, -1)).sqrt()
    kernel = (-((away / spread) ** shape)).exp()
    kernel = kernel / kernel.sum((2, 3), keepdim=True)
    spectrum = torch.fft.rfft2(light, s=(rows, columns)) * torch.fft.rfft2(kernel)
    spread_out: Tensor = torch.fft.irfft2(spectrum, s=(rows, columns))[..., :height, :width]
    return spread_out.clamp_min(0)


def invented_depth(count: int, height: int, width: int, generator: Generator, guide: Tensor) -> Tensor:
    """Invent plausible depths for N photos: N x 1 x H x W in [0, 1], 0 near and 1 far.

    A mixture of a tilted ramp (the ground recedes upwards), fractal noise, and a random projection of the photo's
    colours, so that objects have their own depth; smoothed along the photo's edges by a guided filter (He, Sun & Tang,
    TPAMI 2013). `guide` is the photos, N x 3 x H x W.
    """
    y = torch.linspace(1, 0, height, device=guide.device, dtype=guide.dtype).view(1, 1, height, 1)
    x = torch.linspace(-0.5, 0.5, width, device=guide.device, dtype=guide.dtype).view(1, 1, 1, width)
    power = uniform(count, (-0.7, 0.9), generator, guide).exp()
    ramp = (y**power + x * uniform(count, (-0.6, 0.6), generator, guide)).clamp(0, 1)
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
    """Sum smooth random fields, each twice as fine and half as strong: N x 1 x H x W, stretched to [0, 1]."""
    total = torch.zeros(count, 1, height, width, device=like.device, dtype=like.dtype)
    for octave in range(octaves):
        cells = 2 ** (octave + 1) + 1
        coarse = torch.rand(count, 1, cells, cells, generator=generator, device=generator.device).to(like)
        fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        total = total + fine * 0.5**octave
    return _stretched(total)


def guided_filter(guide: Tensor, source: Tensor, radius: int, eps: float) -> Tensor:
    """The guided filter with a one-channel guide (He, Sun & Tang, TPAMI 2013, algorithm 1), windows cut at the border.

    The linear coefficients are computed on pictures reduced by radius / 4 and enlarged ("Fast Guided Filter", He & Sun,
    arXiv:1505.00996), which is much cheaper at nearly the same result.
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
    """Measure the transmission between the two sides of pairs, t = (I - A) / (J - A).

    Where the clear picture is close to the airlight, t is averaged from the neighbourhood.

    Args:
        hazy: N x 3 x H x W.
        clear: N x 3 x H x W.
        airlight: N x 3; by default the grey from 0.5 to 1.05 for which the three channels agree best on t.

    Returns:
        Transmission, N x 1 x H x W, and airlight, N x 3.
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
    # Pixels with strong evidence keep their own value; the pooled terms fill in weak ones.
    pooled_evidence, pooled_product = (F.avg_pool2d(x, 7, 1, 3, count_include_pad=False) for x in (evidence, product))
    t = (product + 0.1 * pooled_product) / (evidence + 0.1 * pooled_evidence).clamp_min(1e-6)
    return t.clamp(MIN_TRANSMISSION, 1), airlight


def _wrapped(size: int, like: Tensor) -> Tensor:
    """0, 1, 2, ... 2, 1: distances from the first pixel of a periodic row."""
    along = torch.arange(size, device=like.device, dtype=like.dtype)
    return torch.minimum(along, size - along)


def _stretched(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)
