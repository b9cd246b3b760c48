"""Weather over whole photos, written as files: `fairweather synthesize haze|rain IN -o OUT`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fairweather import images
from fairweather.data.audit import disparity_maps
from fairweather.data.datasets import item_rng, to_tensor, torch_generator
from fairweather.data.synthetic import DISPARITY, depth_of_disparity, map_tensor, to_picture
from fairweather.errors import BadFolder, BadImage, UnknownName
from fairweather.files import check_place, make_folder, refuse_inputs, sweep
from fairweather.pairs import pictures
from fairweather.weather.haze import HazeSettings
from fairweather.weather.haze import haze as add_haze
from fairweather.weather.rain import RainSettings
from fairweather.weather.rain import rain as add_rain

SynthesisKind = Literal["haze", "rain"]


@dataclass(frozen=True)
class Synthesized:
    """The result for each photo."""

    written: list[Path] = field(default_factory=list)
    """The new files."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Photos that could not be read or written -> the reason, which names the photo."""


def synthesize(
    kind: SynthesisKind,
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    haze: HazeSettings | None = None,
    rain: RainSettings | None = None,
    depth: str | Path | None = None,
    model: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> Synthesized:
    """Add weather to clear photos at full size; file names, formats and bit depths are preserved.

    Args:
        kind: haze or rain.
        inputs: photos or folders (with their subfolders).
        out: a folder, or for one photo the path of a picture.
        seed: a photo's weather depends only on this and on its file name.
        haze: ranges of the haze.
        rain: ranges of the rain.
        depth: a folder with `NAME_disparity.png` for photos of known depth; by default, the folder of the photo.
            Other photos get a random plausible depth.
        model: a network from clear to degraded photos, H x W x 3 of any type, instead of the physics; the other
            options have no effect then.

    Raises:
        UnknownName: there is no such kind of weather.
        BadFolder: there are no photos, an output is an input or cannot be written, or two photos have the same output.
    """
    if kind not in get_args(SynthesisKind):
        raise UnknownName("weather", kind, get_args(SynthesisKind))
    result, planned = Synthesized(), plan_synthesis(inputs, Path(out))
    disparities = {
        source: path
        for source, _ in planned
        if (path := (source.parent if depth is None else Path(depth)) / f"{source.stem}{DISPARITY}.png").is_file()
    }
    refuse_inputs([target for _, target in planned], disparities.values())
    for folder in {target.parent for _, target in planned}:
        sweep(folder)
    for source, target in planned:
        try:
            photo = images.read(source)
            if model is not None:
                pixels = model(photo.pixels)
            else:
                clear = images.to_float(photo.pixels)
                known = None
                if source in disparities:
                    known = map_tensor(depth_of_disparity(disparities[source], clear.shape[:2]))
                rng = item_rng(seed, int.from_bytes(sha256(os.fsencode(source.name)).digest()[:8], "little"))
                settings = haze or HazeSettings() if kind == "haze" else rain or RainSettings()
                pixels = images.from_float(_weathered(clear, torch_generator(rng), settings, known), photo.pixels.dtype)
            make_folder(target.parent)
            images.write(target, photo.replaced(pixels))
        except BadImage as error:
            result.failed[source] = str(error)
        else:
            result.written.append(target)
    return result


def plan_synthesis(inputs: str | Path | Iterable[str | Path], out: Path) -> list[tuple[Path, Path]]:
    """List (photo, new file) for every photo, and check them before any work; see `synthesize`."""
    given = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(one) for one in inputs]
    planned: list[tuple[Path, Path]] = []
    for one in given:
        if one.is_dir():
            photos = pictures(one)
            maps = disparity_maps(photos)
            planned += [(path, out / path.relative_to(one)) for path in photos if path not in maps]
        elif not one.is_file():
            raise BadFolder(f"{one} does not exist: give photos or folders of photos")
        elif len(given) == 1 and out.suffix.lower() in images.SUFFIXES:
            planned.append((one, out))
        else:
            planned.append((one, out / one.name))
    if not planned:
        raise BadFolder(f"no photos in {', '.join(map(str, given)) or 'the inputs'}: give photos or folders of photos")
    targets: dict[Path, Path] = {}
    for source, target in planned:
        check_place(target)
        if target in targets:
            raise BadFolder(f"{targets[target]} and {source} would both be written to {target}: use two output folders")
        targets[target] = source
    refuse_inputs(targets, targets.values())
    return planned


def _weathered(
    clear: NDArray[np.float32],
    generator: torch.Generator,
    settings: HazeSettings | RainSettings,
    depth: torch.Tensor | None,
) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = to_tensor(clear)[None]
        if isinstance(settings, HazeSettings):
            degraded, _ = add_haze(batch, generator, settings, depth)
        else:
            # lengths are those of a photo of about 400 px
            settings = replace(settings, scale=settings.scale * max(0.5, min(clear.shape[:2]) / 400))
            degraded, _ = add_rain(batch, generator, settings, depth=depth)
    return to_picture(degraded)
