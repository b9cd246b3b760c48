"""Rain: streaks in layers of depth, the veil of rain too far away to be streaks, and drops on the lens.

    I = T (J + S) + (1 - T) A        Li, Cheong and Tan, Heavy Rain Image Restoration, CVPR 2019, eq. 3

J is the clear picture, S the streaks of all layers, T the transmission of the veil and A its airlight. GT-RAIN (Ba et
al., ECCV 2022) shows on real pairs that streaks and veil come together and in any proportion. Pure functions on
batches: pictures are N x 3 x H x W in [0,1], streaks and transmissions N x 1 x H x W. Every random number comes from
the generator that the caller hands in, so a seed is a picture. Lengths are in pixels of a photo of about 500 px;
`scale` adapts them to larger ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from fairweather.errors import BadSettings
from fairweather.weather.haze import fractal_noise, invented_depth

Range = tuple[float, float]


@dataclass(frozen=True)
class RainSettings:
    """The ranges that `rain` draws from for each picture, uniformly unless said otherwise.

    "Rain100" are ranges measured here on rain minus clear of Rain100L and Rain100H (Yang et al., CVPR 2017), 480 x
    320 px; "Li" is the generator of data that Li et al. published with their paper (CVPR 2019), for 720 x 480 px.
    """

    layers: tuple[int, int] = (1, 4)
    """How many layers of streaks, from near to far (Yang et al., CVPR 2017, eq. 4: streaks of several directions and
    shapes overlap in heavy rain)."""
    angle: float = 30.0
    """Largest lean of the rain in degrees from the vertical. Rain100: 28; Li: 10."""
    spread: float = 5.0
    """Largest departure of one layer from the picture's lean, in degrees."""
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
    (Garg and Nayar, Vision and Rain, IJCV 2007), so it cannot outshine white. The rest is added, J + S, as Rain100 and
    Li are."""
    tint: float = 0.02
    """Largest departure of a channel of the streaks from their grey. Rain100: 0.01."""
    gusts: Range = (0.0, 0.6)
    """How much weaker streaks are where they are weakest, by smooth noise; Rain100 and Li have none, real rain does."""
    recorded: float = 0.5
    """Share of pictures that get a recorded streak layer instead of a computed one, where the caller gives a bank."""
    veil: float = 0.5
    """Share of pictures with a veil."""
    density: Range = (0.15, 2.0)
    """Optical depth of the veil at the far end of the scene, drawn log-uniformly. Li: 3 to 4.2 along the inverse of
    disparity, which is small nearly everywhere; the depths invented here are spread evenly, hence less."""
    airlight: Range = (0.3, 0.9)
    """Brightness of the veil. Li: 0.3 to 0.9."""
    drops: float = 0.1
    """Share of pictures with drops on the lens (Qian et al., Attentive GAN for Raindrop Removal, CVPR 2018)."""
    most_drops: int = 12
    """Largest number of drops in a picture that has any."""
    radius: Range = (5.0, 28.0)
    """Radius of a drop in px."""
    clear: float = 0.0
    """Share of pictures left clear, so that a network learns to leave clear photos alone."""
    scale: float = 1.0
    """Factor on every length, width and radius: the photo's shorter side over 400 px, roughly."""

    def __post_init__(self) -> None:
        for name in ("length", "width", "coverage", "strength", "gusts", "density", "airlight", "radius"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise BadSettings(f"rain.{name} is {low} to {high}: a range goes up from 0 or more")
        for name in ("length", "width", "coverage", "density", "radius"):
            if getattr(self, name)[0] <= 0:
                raise BadSettings(f"rain.{name} starts at 0: it must be above")
        for name in ("screen", "recorded", "veil", "drops", "clear", "tint"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettings(f"rain.{name} is {getattr(self, name)}: a share lies in [0, 1]")
        if max(self.coverage[1], self.gusts[1], self.strength[1]) > 1 or self.coverage[1] == 1:
            raise BadSettings("rain.coverage ends below 1, rain.gusts and rain.strength at 1")
        if not 1 <= self.layers[0] <= self.layers[1]:
            raise BadSettings(f"rain.layers is {self.layers}: at least 1, and going up")
        if self.scale <= 0 or self.most_drops < 0:
            raise BadSettings("rain.scale must be above 0, and rain.most_drops at least 0")


def rain(
    clear: Tensor,
    generator: Generator,
    settings: RainSettings | None = None,
    *,
    layers: Tensor | None = None,
    depth: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rain on N clear pictures, each with its own draw of everything.

    `layers`, a bank of recorded streaks (M x 1 x h x w, see `streaks_of_pair`), lends some pictures its streaks;
    `depth` (N x 1 x H x W in [0,1]) places the veil, and is invented where it is not given.

    Returns the rainy pictures (N x 3 x H x W in [0,1]) and what made them: `streaks` (N x 1 x H x W), `transmission`
    (N x 1 x H x W), `drops` (N x 1 x H x W, how much of a pixel a drop covers), and `angle` (degrees), `length`,
    `width` (px), `strength`, `airlight`, `screened`, `recorded`, N each.
    """
    settings = settings or RainSettings()
    count, _, height, width = clear.shape
    streaks, record = streak_layers(count, height, width, generator, settings, like=clear)
    if layers is not None:
        record["recorded"] = _happens(count, settings.recorded, generator, clear)
        lent = recorded_streaks(layers, count, height, width, generator, settings.scale)
        streaks = torch.where(record["recorded"], lent.to(clear), streaks)
    rainy = _happens(count, 1 - settings.clear, generator, clear)
    streaks = streaks * rainy
    record["screened"] = _happens(count, settings.screen, generator, clear)
    shades = torch.rand(count, 3, 1, 1, generator=generator, device=generator.device).to(clear)
    coloured = streaks * (1 + settings.tint * (2 * shades - 1))
    degraded = torch.where(record["screened"], screened(clear, coloured), added(clear, coloured))

    record["airlight"] = _uniform(count, settings.airlight, generator, clear)
    density = _log_uniform(count, settings.density, generator, clear)
    hung = (_happens(count, settings.veil, generator, clear) & rainy).flatten().nonzero().flatten()
    transmission = torch.ones_like(streaks)
    if len(hung) > 0:
        far = invented_depth(len(hung), height, width, generator, guide=clear[hung]) if depth is None else depth[hung]
        transmission[hung] = (-density[hung] * far).exp()
        degraded[hung] = veiled(degraded[hung], transmission[hung], record["airlight"][hung])

    covered = torch.zeros_like(streaks)
    wet = (_happens(count, settings.drops, generator, clear) & rainy).flatten().nonzero().flatten()
    if len(wet) > 0:
        degraded[wet], covered[wet] = drops_on_lens(degraded[wet], generator, settings)
    flat = {name: value.flatten() for name, value in record.items()}
    return degraded.clamp(0, 1), {**flat, "streaks": streaks, "transmission": transmission, "drops": covered}


def added(clear: Tensor, streaks: Tensor) -> Tensor:
    """J + S, cut at white."""
    return (clear + streaks).clamp(0, 1)


def screened(clear: Tensor, streaks: Tensor) -> Tensor:
    """J + S (1 - J): a streak of opacity S in front of J, as bright as white."""
    return clear + streaks.clamp(0, 1) * (1 - clear)


def veiled(picture: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """T I + (1 - T) A, with A broadcast against N x 3 x H x W."""
    return airlight + (picture - airlight) * transmission


def streaks_of_pair(rainy: Tensor, clear: Tensor) -> Tensor:
    """The streak layer of real pairs, N x 3 x H x W each -> N x 1 x H x W in [0,1].

    The largest of the channels, for streaks are grey, and where one channel is at white another still tells them.
    """
    return (rainy - clear).amax(1, keepdim=True).clamp(0, 1)


def streak_layers(
    count: int, height: int, width: int, generator: Generator, settings: RainSettings, *, like: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computed streaks, N x 1 x H x W in [0,1], and what drew them, N x 1 x 1 x 1 each.

    Every layer is sparse noise blurred along the fall and across its width. From the nearest layer to the farthest
    streaks get shorter, thinner and fainter, as distance has them.
    """
    angle = _uniform(count, (-settings.angle, settings.angle), generator, like)
    length = _log_uniform(count, settings.length, generator, like) * settings.scale
    thickness = _uniform(count, settings.width, generator, like) * settings.scale
    coverage = _log_uniform(count, settings.coverage, generator, like)
    strength = _uniform(count, settings.strength, generator, like)
    drawn = _uniform(count, (settings.layers[0], settings.layers[1] + 1), generator, like).floor()
    through = torch.ones(count, 1, height, width, dtype=like.dtype, device=like.device)
    for layer in range(settings.layers[1]):
        distance = 0.7**layer * _uniform(count, (0.8, 1.2), generator, like)
        lean = angle + _uniform(count, (-settings.spread, settings.spread), generator, like)
        seeds = torch.rand(count, 1, height, width, generator=generator, device=generator.device).to(like)
        blurred = _blurred(seeds, lean, length * distance, thickness * distance, coverage)
        visible = strength * distance.clamp_max(1) * (drawn > layer)
        through = through * (1 - visible * blurred)
    weakest = _uniform(count, settings.gusts, generator, like)
    gusts = 1 - weakest * fractal_noise(count, height, width, generator, octaves=3, like=like)
    record = {"angle": angle, "length": length, "width": thickness, "strength": strength}
    record["recorded"] = torch.zeros_like(angle, dtype=torch.bool)
    return (1 - through) * gusts, record


def falling_streaks(
    frames: int, height: int, width: int, generator: Generator, settings: RainSettings, *, like: Tensor | None = None
) -> Tensor:
    """The computed streaks of a clip, T x 1 x H x W in [0,1]: each layer falls along its lean from frame to frame.

    A streak is what a drop's fall leaves on the film while the shutter is open, so that between two frames a layer
    falls by its streaks' length over the share of the time that it is open, drawn from [0.3, 1]: the nearest fastest.
    What falls out below never comes in again above.
    """
    like = torch.zeros(()) if like is None else like
    angle = _uniform(1, (-settings.angle, settings.angle), generator, like)
    length = _log_uniform(1, settings.length, generator, like) * settings.scale
    thickness = _uniform(1, settings.width, generator, like) * settings.scale
    coverage = _log_uniform(1, settings.coverage, generator, like)
    strength = _uniform(1, settings.strength, generator, like)
    shutter = _uniform(1, (0.3, 1.0), generator, like)
    drawn = int(_uniform(1, (settings.layers[0], settings.layers[1] + 1), generator, like))
    through = torch.ones(frames, 1, height, width, dtype=like.dtype, device=like.device)
    for layer in range(min(drawn, settings.layers[1])):
        distance = 0.7**layer * _uniform(1, (0.8, 1.2), generator, like)
        lean = angle + _uniform(1, (-settings.spread, settings.spread), generator, like)
        fall = length * distance / shutter
        radians = lean * (torch.pi / 180)
        down, aside = float(fall * radians.cos()), float(fall * radians.sin())
        # One sheet for the whole clip, of which each frame is a window: it moves up as the streaks fall.
        rows, columns = (math.ceil(abs(way) * (frames - 1)) for way in (down, aside))
        shape = (1, 1, height + rows, width + columns)
        seeds = torch.rand(shape, generator=generator, device=generator.device).to(like)
        sheet = _blurred(seeds, lean, length * distance, thickness * distance, coverage)
        visible = strength * distance.clamp_max(1)
        for frame in range(frames):
            top = min(rows, max(0, rows - round(down * frame)))
            left = min(columns, max(0, (columns if aside > 0 else 0) - round(aside * frame)))
            through[frame] *= 1 - visible[0] * sheet[0, :, top : top + height, left : left + width]
    weakest = _uniform(1, settings.gusts, generator, like)
    return (1 - through) * (1 - weakest * fractal_noise(1, height, width, generator, octaves=3, like=like))


def recorded_streaks(
    layers: Tensor, count: int, height: int, width: int, generator: Generator, scale: float = 1.0
) -> Tensor:
    """`count` windows (N x 1 x H x W) of a bank M x 1 x h x w: mirrored, resized and brightened or dimmed at random."""
    chosen = torch.randint(len(layers), (count,), generator=generator, device=generator.device).to(layers.device)
    zoom = _uniform(count, (0.7, 1.4), generator, layers) * scale
    # A window larger than the layer would show its mirror image; it is enlarged until it fits.
    zoom = zoom.clamp_min(max(height / layers.shape[-2], width / layers.shape[-1]))
    mirror = torch.where(_happens(count, 0.5, generator, layers), -1.0, 1.0)
    span_y, span_x = height / layers.shape[-2] / zoom, width / layers.shape[-1] / zoom
    shift_y = _uniform(count, (-1, 1), generator, layers) * (1 - span_y)
    shift_x = _uniform(count, (-1, 1), generator, layers) * (1 - span_x)
    y = _centres(height, layers).view(1, height, 1, 1) * span_y + shift_y
    x = _centres(width, layers).view(1, 1, width, 1) * span_x * mirror + shift_x
    grid = torch.cat([x.expand(-1, height, -1, -1), y.expand(-1, -1, width, -1)], dim=-1)
    windows = functional.grid_sample(layers[chosen], grid, padding_mode="reflection", align_corners=False)
    return (windows * _uniform(count, (0.5, 1.25), generator, layers)).clamp(0, 1)


def drops_on_lens(picture: Tensor, generator: Generator, settings: RainSettings) -> tuple[Tensor, Tensor]:
    """Pictures with drops on the lens, and how much of each pixel they cover (N x 1 x H x W).

    A drop is a short lens: it shows a wide piece of the scene upside down and small (Roser, Kurz and Geiger, Realistic
    Modeling of Water Droplets, ACCV 2010), out of focus and darker towards its rim.
    """
    count, _, height, width = picture.shape
    places = torch.rand(count, settings.most_drops, 5, generator=generator, device=generator.device).to(picture)
    shown = _uniform(count, (0, settings.most_drops), generator, picture).view(count, 1, 1)
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
        # The farther from the middle, the more the surface bends the view.
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


def _blurred(seeds: Tensor, angle: Tensor, length: Tensor, width: Tensor, coverage: Tensor) -> Tensor:
    """Streaks of one layer, N x 1 x H x W in [0,1], from uniform noise; the rest is N x 1 x 1 x 1."""
    height, across = seeds.shape[-2:]
    # So many seeds that streaks of this area, thrown at random, leave 1 - coverage of the picture bare.
    share = -torch.log1p(-coverage) / (length * width).clamp_min(1)
    # Among the seeds the same noise is uniform again: every streak is of its own brightness.
    seeds = torch.where(seeds < share, 0.25 + 0.75 * seeds / share, torch.zeros_like(seeds))
    y = _centred(height, seeds).view(1, 1, height, 1)
    x = _centred(across, seeds).view(1, 1, 1, across)
    lean = angle * (torch.pi / 180)
    along, aside = x * lean.sin() + y * lean.cos(), x * lean.cos() - y * lean.sin()
    sigma = width.clamp_min(1) / 2.355
    # Thinner than a pixel means fainter.
    profile = (-0.5 * (aside / sigma).square()).exp() * width.clamp_max(1)
    taper = ((length / 2 - along.abs()) / (0.4 * length) + 0.5).clamp(0, 1)
    # The picture's edges meet in a Fourier transform: a streak that leaves on one side comes in on the other.
    spectrum = torch.fft.rfft2(seeds) * torch.fft.rfft2(profile * taper)
    layer: Tensor = torch.fft.irfft2(spectrum, s=(height, across))
    return layer.clamp(0, 1)


def _centred(side: int, like: Tensor) -> Tensor:
    """0, 1, ..., -2, -1: distances from the first pixel in a picture whose edges meet."""
    places = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.where(places < (side + 1) // 2, places, places - side)


def _centres(side: int, like: Tensor) -> Tensor:
    """The middles of a row of pixels in the coordinates of `grid_sample`."""
    return (torch.arange(side, device=like.device, dtype=like.dtype) * 2 + 1) / side - 1


def _uniform(count: int, limits: Range, generator: Generator, like: Tensor) -> Tensor:
    draw = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device).to(like)
    return limits[0] + (limits[1] - limits[0]) * draw


def _log_uniform(count: int, limits: Range, generator: Generator, like: Tensor) -> Tensor:
    low, high = torch.tensor(limits, dtype=torch.float64).log().tolist()
    return _uniform(count, (low, high), generator, like).exp()


def _happens(count: int, share: float, generator: Generator, like: Tensor) -> Tensor:
    return _uniform(count, (0.0, 1.0), generator, like) < share
