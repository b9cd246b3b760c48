"""Rain: layers of streaks, the veil of rain too far away to show streaks, and drops on the lens.

    I = T (J + S) + (1 - T) A        Li, Cheong and Tan, Heavy Rain Image Restoration, CVPR 2019, eq. 3

J is the clear picture, S the streaks of all layers, T the transmission of the veil and A its airlight. Real pairs
(GT-RAIN, Ba et al., ECCV 2022) show streaks and veil together in any proportion. Pure functions on batches: pictures
are N x 3 x H x W in [0,1], streaks and transmissions N x 1 x H x W. All random numbers come from the caller's
generator, so results are reproducible. Lengths are in pixels of a photo of about 500 px; `scale` adapts them to larger
ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from fairweather.errors import BadSettings
from fairweather.weather.draws import Range, check_number, check_range, happens, uniform
from fairweather.weather.draws import log_uniform as _log_uniform
from fairweather.weather.haze import fractal_noise, invented_depth

log_uniform = partial(_log_uniform, dtype=torch.float64)


@dataclass(frozen=True)
class RainSettings:
    """The ranges that `rain` draws from for each picture, uniformly unless stated otherwise.

    "Rain100" are ranges measured on rain minus clear of Rain100L and Rain100H (Yang et al., CVPR 2017), 480 x 320 px;
    "Li" is the data generator that Li et al. published with their paper (CVPR 2019), for 720 x 480 px.
    """

    layers: tuple[int, int] = (1, 4)
    """Number of layers of streaks, from near to far (Yang et al., CVPR 2017, eq. 4: streaks of several directions and
    shapes overlap in heavy rain)."""
    angle: float = 30.0
    """Largest slant of the rain in degrees from the vertical. Rain100: 28; Li: 10."""
    spread: float = 5.0
    """Largest deviation of a layer from the picture's slant, in degrees."""
    length: Range = (12.0, 70.0)
    """Length of the nearest streaks in px, drawn log-uniformly. Rain100: 10 to 74; Li: 21 to 60."""
    width: Range = (1.0, 3.0)
    """Width at half height of the nearest streaks in px. Rain100: 1.4 to 2.8."""
    coverage: Range = (0.04, 0.6)
    """Share of the picture that streaks of one layer cover, drawn log-uniformly. All layers together, Rain100L: 0.05 to
    0.24; Rain100H: 0.46 to 0.93."""
    strength: Range = (0.1, 0.8)
    """Brightness of the brightest streaks. Rain100: 0.11 to 0.95 (99th percentile of a picture)."""
    screen: float = 0.5
    """Share of pictures whose streaks are screened, J + S (1 - J): a streak shows the sky and hides what is behind it
    (Garg and Nayar, Vision and Rain, IJCV 2007), so it cannot exceed white. The others are added, J + S, like Rain100
    and Li."""
    tint: float = 0.02
    """Largest deviation of a channel of the streaks from grey. Rain100: 0.01."""
    gusts: Range = (0.0, 0.6)
    """Attenuation of the streaks where they are weakest, by smooth noise. Rain100 and Li have none, real rain does."""
    recorded: float = 0.5
    """Share of pictures with a recorded streak layer instead of a computed one, if the caller passes a bank."""
    veil: float = 0.5
    """Share of pictures with a veil."""
    density: Range = (0.15, 2.0)
    """Optical depth of the veil at the far end of the scene, drawn log-uniformly. Li: 3 to 4.2 along the inverse of
    disparity, which is small nearly everywhere; invented depths are spread evenly, hence less here."""
    airlight: Range = (0.3, 0.9)
    """Brightness of the veil. Li: 0.3 to 0.9."""
    drops: float = 0.1
    """Share of pictures with drops on the lens (Qian et al., Attentive GAN for Raindrop Removal, CVPR 2018)."""
    most_drops: int = 12
    """Largest number of drops in a picture that has any."""
    radius: Range = (5.0, 28.0)
    """Radius of a drop in px."""
    clear: float = 0.0
    """Share of pictures left clear, so that a network learns to leave clear photos unchanged."""
    scale: float = 1.0
    """Factor on every length, width and radius: roughly the photo's short side over 400 px."""

    def __post_init__(self) -> None:
        for name in ("length", "width", "density", "radius"):  # their logarithms are drawn, or they divide
            check_range(f"rain.{name}", getattr(self, name), above=True)
        check_range("rain.coverage", self.coverage, 0, 1, above=True)
        for name in ("strength", "gusts", "airlight"):
            check_range(f"rain.{name}", getattr(self, name), 0, 1)
        for name in ("screen", "recorded", "veil", "drops", "clear", "tint"):
            check_number(f"rain.{name}", getattr(self, name), 0, 1)
        for name in ("angle", "spread"):
            check_number(f"rain.{name}", getattr(self, name), 0, 90)
        if self.coverage[1] == 1:
            raise BadSettings("rain.coverage ends at 1: give a maximum below 1")
        check_range("rain.layers", self.layers, 1, 16)
        check_number("rain.most_drops", self.most_drops, 0, 1000)
        check_number("rain.scale", self.scale, above=True)


def rain(
    clear: Tensor,
    generator: Generator,
    settings: RainSettings | None = None,
    *,
    layers: Tensor | None = None,
    depth: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add rain to clear pictures, with separate random draws for each.

    Args:
        clear: N x 3 x H x W in [0,1].
        generator: source of all random numbers.
        settings: ranges to draw from.
        layers: a bank of recorded streaks for some of the pictures, M x 1 x h x w (see `streaks_of_pair`).
        depth: N x 1 x H x W in [0,1], 0 near, for the veil; invented if not given.

    Returns:
        The rainy pictures (N x 3 x H x W in [0,1]) and a record: `streaks` and `transmission` (N x 1 x H x W), `drops`
        (N x 1 x H x W, share of a pixel that a drop covers), and `angle` (degrees), `length`, `width` (px), `strength`,
        `airlight`, `screened`, `recorded`, N each.
    """
    settings = settings or RainSettings()
    count, _, height, width = clear.shape
    streaks, record = streak_layers(count, height, width, generator, settings, like=clear)
    if layers is not None:
        record["recorded"] = happens(count, settings.recorded, generator, clear)
        windows = recorded_streaks(layers, count, height, width, generator, settings.scale)
        streaks = torch.where(record["recorded"], windows.to(clear), streaks)
    rainy = happens(count, 1 - settings.clear, generator, clear)
    streaks = streaks * rainy
    record["screened"] = happens(count, settings.screen, generator, clear)
    shades = torch.rand(count, 3, 1, 1, generator=generator, device=generator.device).to(clear)
    coloured = streaks * (1 + settings.tint * (2 * shades - 1))
    degraded = torch.where(record["screened"], screened(clear, coloured), added(clear, coloured))

    record["airlight"] = uniform(count, settings.airlight, generator, clear)
    density = log_uniform(count, settings.density, generator, clear)
    hazed = (happens(count, settings.veil, generator, clear) & rainy).flatten().nonzero().flatten()
    transmission = torch.ones_like(streaks)
    if len(hazed) > 0:
        if depth is None:
            distance = invented_depth(len(hazed), height, width, generator, guide=clear[hazed])
        else:
            distance = depth[hazed]
        transmission[hazed] = (-density[hazed] * distance).exp()
        degraded[hazed] = veiled(degraded[hazed], transmission[hazed], record["airlight"][hazed])

    covered = torch.zeros_like(streaks)
    wet = (happens(count, settings.drops, generator, clear) & rainy).flatten().nonzero().flatten()
    if len(wet) > 0:
        degraded[wet], covered[wet] = drops_on_lens(degraded[wet], generator, settings)
    flat = {name: value.flatten() for name, value in record.items()}
    return degraded.clamp(0, 1), {**flat, "streaks": streaks, "transmission": transmission, "drops": covered}


def added(clear: Tensor, streaks: Tensor) -> Tensor:
    """J + S, clipped at white."""
    return (clear + streaks).clamp(0, 1)


def screened(clear: Tensor, streaks: Tensor) -> Tensor:
    """J + S (1 - J): a streak of opacity S in front of J, as bright as white."""
    return clear + streaks.clamp(0, 1) * (1 - clear)


def veiled(picture: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """T I + (1 - T) A, with A broadcast against N x 3 x H x W."""
    return airlight + (picture - airlight) * transmission


def streaks_of_pair(rainy: Tensor, clear: Tensor) -> Tensor:
    """Measure the streak layer of pairs, N x 3 x H x W each -> N x 1 x H x W in [0,1].

    It is the largest difference of the channels, since streaks are grey and some channels may be clipped at white.
    """
    return (rainy - clear).amax(1, keepdim=True).clamp(0, 1)


def streak_layers(
    count: int, height: int, width: int, generator: Generator, settings: RainSettings, *, like: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute streaks, N x 1 x H x W in [0,1], and a record of their parameters, N x 1 x 1 x 1 each.

    Each layer is sparse noise, blurred along the fall and across the width. From the nearest to the farthest layer,
    streaks become shorter, thinner and fainter.
    """
    angle, length, thickness, coverage, strength = _draw_streaks(count, settings, generator, like)
    drawn = uniform(count, (settings.layers[0], settings.layers[1] + 1), generator, like).floor()
    through = torch.ones(count, 1, height, width, dtype=like.dtype, device=like.device)
    for layer in range(settings.layers[1]):
        distance = 0.7**layer * uniform(count, (0.8, 1.2), generator, like)
        slant = angle + uniform(count, (-settings.spread, settings.spread), generator, like)
        seeds = torch.rand(count, 1, height, width, generator=generator, device=generator.device).to(like)
        blurred = _blurred(seeds, slant, length * distance, thickness * distance, coverage)
        visible = strength * distance.clamp_max(1) * (drawn > layer)
        through = through * (1 - visible * blurred)
    weakest = uniform(count, settings.gusts, generator, like)
    gusts = 1 - weakest * fractal_noise(count, height, width, generator, octaves=3, like=like)
    record = {"angle": angle, "length": length, "width": thickness, "strength": strength}
    record["recorded"] = torch.zeros_like(angle, dtype=torch.bool)
    return (1 - through) * gusts, record


def falling_streaks(
    frames: int, height: int, width: int, generator: Generator, settings: RainSettings, *, like: Tensor | None = None
) -> Tensor:
    """Compute the streaks of a clip, T x 1 x H x W in [0,1]: each layer falls along its slant from frame to frame.

    A streak is the path of a drop while the shutter is open. So between two frames a layer falls by the length of its
    streaks divided by the share of time that the shutter is open, drawn from [0.3, 1]; the nearest layer falls fastest.
    Streaks that leave at the bottom do not reappear at the top.
    """
    like = torch.zeros(()) if like is None else like
    angle, length, thickness, coverage, strength = _draw_streaks(1, settings, generator, like)
    shutter = uniform(1, (0.3, 1.0), generator, like)
    drawn = int(uniform(1, (settings.layers[0], settings.layers[1] + 1), generator, like))
    through = torch.ones(frames, 1, height, width, dtype=like.dtype, device=like.device)
    for layer in range(min(drawn, settings.layers[1])):
        distance = 0.7**layer * uniform(1, (0.8, 1.2), generator, like)
        slant = angle + uniform(1, (-settings.spread, settings.spread), generator, like)
        fall = length * distance / shutter
        radians = slant * (torch.pi / 180)
        down, aside = float(fall * radians.cos()), float(fall * radians.sin())
        # One sheet for the whole clip; each frame is a window of it, which moves up as the streaks fall.
        rows, columns = (math.ceil(abs(way) * (frames - 1)) for way in (down, aside))
        shape = (1, 1, height + rows, width + columns)
        seeds = torch.rand(shape, generator=generator, device=generator.device).to(like)
        sheet = _blurred(seeds, slant, length * distance, thickness * distance, coverage)
        visible = strength * distance.clamp_max(1)
        for frame in range(frames):
            top = min(rows, max(0, rows - round(down * frame)))
            left = min(columns, max(0, (columns if aside > 0 else 0) - round(aside * frame)))
            through[frame] *= 1 - visible[0] * sheet[0, :, top : top + height, left : left + width]
    weakest = uniform(1, settings.gusts, generator, like)
    return (1 - through) * (1 - weakest * fractal_noise(1, height, width, generator, octaves=3, like=like))


def recorded_streaks(
    layers: Tensor, count: int, height: int, width: int, generator: Generator, scale: float = 1.0
) -> Tensor:
    """Draw `count` windows (N x 1 x H x W) from a bank, M x 1 x h x w: mirrored, resized and scaled in brightness."""
    chosen = torch.randint(len(layers), (count,), generator=generator, device=generator.device).to(layers.device)
    zoom = uniform(count, (0.7, 1.4), generator, layers) * scale
    # Enlarged until it fits: a window larger than the layer would repeat it, mirrored.
    zoom = zoom.clamp_min(max(height / layers.shape[-2], width / layers.shape[-1]))
    mirror = torch.where(happens(count, 0.5, generator, layers), -1.0, 1.0)
    span_y, span_x = height / layers.shape[-2] / zoom, width / layers.shape[-1] / zoom
    shift_y = uniform(count, (-1, 1), generator, layers) * (1 - span_y)
    shift_x = uniform(count, (-1, 1), generator, layers) * (1 - span_x)
    y = _centres(height, layers).view(1, height, 1, 1) * span_y + shift_y
    x = _centres(width, layers).view(1, 1, width, 1) * span_x * mirror + shift_x
    grid = torch.cat([x.expand(-1, height, -1, -1), y.expand(-1, -1, width, -1)], dim=-1)
    windows = functional.grid_sample(layers[chosen], grid, padding_mode="reflection", align_corners=False)
    return (windows * uniform(count, (0.5, 1.25), generator, layers)).clamp(0, 1)


def drops_on_lens(picture: Tensor, generator: Generator, settings: RainSettings) -> tuple[Tensor, Tensor]:
    """Add drops on the lens; returns the pictures and the share of each pixel that drops cover (N x 1 x H x W).

    A drop acts as a lens of short focal length: it shows a wide part of the scene upside down and small (Roser, Kurz
    and Geiger, Realistic Modeling of Water Droplets, ACCV 2010), out of focus and darker towards its rim.
    """
    count, _, height, width = picture.shape
    places = torch.rand(count, settings.most_drops, 5, generator=generator, device=generator.device).to(picture)
    shown = uniform(count, (0, settings.most_drops), generator, picture).view(count, 1, 1)
    y = torch.arange(height, device=picture.device, dtype=picture.dtype).view(1, height, 1)
    x = torch.arange(width, device=picture.device, dtype=picture.dtype).view(1, 1, width)
    from_y, from_x = y.expand(count, height, width), x.expand(count, height, width)
    covered, rim = torch.zeros_like(from_y), torch.zeros_like(from_y)
    for drop in range(settings.most_drops):
        at_y, at_x, size, stretch, power = (value.view(count, 1, 1) for value in places[:, drop].unbind(-1))
        at_y, at_x = at_y * height, at_x * width
        radius = (settings.radius[0] + (settings.radius[1] - settings.radius[0]) * size**2) * settings.scale
        offset_y, offset_x = y - at_y, x - at_x
        away = ((offset_y / (1 + 0.5 * stretch)) ** 2 + offset_x**2).sqrt() / radius
        here = ((1 - away) * 3).clamp(0, 1) * (shown >= drop)
        inside = here > 0
        # Refraction grows towards the rim.
        bend = -(3 + 5 * power) * (1 + away**2)
        from_y = torch.where(inside, at_y + bend * offset_y, from_y)
        from_x = torch.where(inside, at_x + bend * offset_x, from_x)
        covered = torch.maximum(covered, here)
        rim = torch.where(inside, away**4, rim)
    grid = torch.stack([(from_x + 0.5) / width * 2 - 1, (from_y + 0.5) / height * 2 - 1], dim=-1)
    defocused = functional.avg_pool2d(picture, 9, 1, 4, count_include_pad=False)
    seen = functional.grid_sample(defocused, grid, padding_mode="reflection", align_corners=False)
    covered, rim = covered[:, None], rim[:, None]
    return picture + covered * (seen * (1 - 0.35 * rim) - picture), covered


def _draw_streaks(count: int, settings: RainSettings, generator: Generator, like: Tensor) -> tuple[Tensor, ...]:
    """Angle, length, width, coverage and strength of the nearest layer, N x 1 x 1 x 1 each."""
    angle = uniform(count, (-settings.angle, settings.angle), generator, like)
    length = log_uniform(count, settings.length, generator, like) * settings.scale
    width = uniform(count, settings.width, generator, like) * settings.scale
    coverage = log_uniform(count, settings.coverage, generator, like)
    return angle, length, width, coverage, uniform(count, settings.strength, generator, like)


def _blurred(seeds: Tensor, angle: Tensor, length: Tensor, width: Tensor, coverage: Tensor) -> Tensor:
    """Streaks of one layer, N x 1 x H x W in [0,1], from uniform noise; the other arguments are N x 1 x 1 x 1."""
    height, across = seeds.shape[-2:]
    # The density of seeds for which streaks of this area, placed at random, leave 1 - coverage of the picture bare.
    share = -torch.log1p(-coverage) / (length * width).clamp_min(1)
    # Among the seeds the noise is uniform again: it becomes the brightness of the streak.
    seeds = torch.where(seeds < share, 0.25 + 0.75 * seeds / share, torch.zeros_like(seeds))
    y = _centred(height, seeds).view(1, 1, height, 1)
    x = _centred(across, seeds).view(1, 1, 1, across)
    slant = angle * (torch.pi / 180)
    along, aside = x * slant.sin() + y * slant.cos(), x * slant.cos() - y * slant.sin()
    sigma = width.clamp_min(1) / 2.355
    # Streaks thinner than a pixel are fainter.
    profile = (-0.5 * (aside / sigma).square()).exp() * width.clamp_max(1)
    taper = ((length / 2 - along.abs()) / (0.4 * length) + 0.5).clamp(0, 1)
    # The Fourier transform is periodic: a streak that leaves on one side enters on the other.
    spectrum = torch.fft.rfft2(seeds) * torch.fft.rfft2(profile * taper)
    layer: Tensor = torch.fft.irfft2(spectrum, s=(height, across))
    return layer.clamp(0, 1)


def _centred(side: int, like: Tensor) -> Tensor:
    """0, 1, ..., -2, -1: distances from the first pixel of a periodic row."""
    places = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.where(places < (side + 1) // 2, places, places - side)


def _centres(side: int, like: Tensor) -> Tensor:
    """The centres of a row of pixels in the coordinates of `grid_sample`."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) * 2 + 1) / side - 1
