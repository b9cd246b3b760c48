"""Weather over whole photos, written as files: `fairweather synthesize haze|rain IN -o OUT`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairweather import images
from fairweather.data.source import stream, to_tensor, torch_generator
from fairweather.data.synthetic import DISPARITY, depth_of_disparity, map_tensor, to_picture
from fairweather.errors import BadFolder, BadImage, UnknownName
from fairweather.files import sweep
from fairweather.outputs import check_place, make_folder, refuse_inputs
from fairweather.pairs import pictures
from fairweather.weather.haze import HazeSettings
from fairweather.weather.haze import haze as add_haze
from fairweather.weather.rain import RainSettings
from fairweather.weather.rain import rain as add_rain

KINDS = ("haze", "rain")


@dataclass(frozen=True)
class Synthesized:
    """What became of the photos."""

    written: list[Path] = field(default_factory=list)
    """The new files."""
    failed: dict[Path, str] = field(default_factory=dict)
    """The photos that could not be read or written, with the reason, which names them; the others were done."""


def synthesize(
    kind: str,
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    haze: HazeSettings | None = None,
    rain: RainSettings | None = None,
    depth: str | Path | None = None,
    learned: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> Synthesized:
    """Put weather over clear photos, at their full size; names and kinds of the files are kept.

    `inputs`: photos or folders (searched through, their structure kept). `out`: a folder, or for one photo a picture's
    path. What a photo gets depends on `seed` and its file name, not on the other photos. `depth`: a folder with
    `NAME_disparity.png` for the photos that have one; without it, such files are looked for beside the photos, and
    the depth of all others is invented. `learned` gives the weather in place of the physics: a network from clear to
    degraded, H x W x 3 of any type -> the same size and type; then nothing is drawn, and the rest is of no account.

    Raises UnknownName, BadFolder (nothing to do, two photos that would write the same file, or one over its own input,
    a place that cannot be written).
    """
    if kind not in KINDS:
        raise UnknownName("weather", kind, KINDS)
    report, planned = Synthesized(), plan(inputs, Path(out))
    maps = {path for source, _ in planned if (path := _disparity(source, depth)).is_file()}
    refuse_inputs([target for _, target in planned], maps)
    for place in {target.parent for _, target in planned}:
        sweep(place)
    for source, target in planned:
        try:
            photo = images.read(source)
            if learned is not None:
                pixels = learned(photo.pixels)
            else:
                clear = images.to_float(photo.pixels)
                rng = stream(seed, int.from_bytes(sha256(os.fsencode(source.name)).digest()[:8], "little"))
                weather = _settings(kind, haze, rain, clear.shape)
                made = _weathered(clear, _depth(source, depth, clear.shape), torch_generator(rng), weather)
                pixels = images.from_float(made, photo.pixels.dtype)
            make_folder(target.parent)
            images.write(target, photo.replaced(pixels))
        except BadImage as error:
            report.failed[source] = str(error)
        else:
            report.written.append(target)
    return report


def plan(inputs: str | Path | Iterable[str | Path], out: Path) -> list[tuple[Path, Path]]:
    """(photo, new file) for every photo; BadFolder before any work starts."""
    given = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(one) for one in inputs]
    found: list[tuple[Path, Path]] = []
    for one in given:
        if one.is_dir():
            found += [(path, out / path.relative_to(one)) for path in _photos(one)]
        elif not one.is_file():
            raise BadFolder(f"{one} does not exist; give photos or folders of photos")
        elif len(given) == 1 and out.suffix.lower() in images.SUFFIXES:
            found.append((one, out))
        else:
            found.append((one, out / one.name))
    if not found:
        raise BadFolder(f"{', '.join(map(str, given)) or 'nothing'} holds no photos; give photos or folders of photos")
    targets: dict[Path, Path] = {}
    for source, target in found:
        check_place(target)
        if target in targets:
            raise BadFolder(f"{targets[target]} and {source} would both be written to {target}; do them one by one")
        targets[target] = source
    refuse_inputs(targets, targets.values())
    return found


def _photos(folder: Path) -> Sequence[Path]:
    paths = pictures(folder)
    stems = {path.with_suffix("") for path in paths}
    # a disparity map is no photo where its photo lies beside it
    return [
        path
        for path in paths
        if not (path.stem.endswith(DISPARITY) and path.with_name(path.stem.removesuffix(DISPARITY)) in stems)
    ]


def _depth(source: Path, folder: str | Path | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    disparity = _disparity(source, folder)
    return map_tensor(depth_of_disparity(disparity, shape[:2])) if disparity.is_file() else None


def _disparity(source: Path, folder: str | Path | None) -> Path:
    return (source.parent if folder is None else Path(folder)) / f"{source.stem}{DISPARITY}.png"


def _settings(
    kind: str, haze: HazeSettings | None, rain: RainSettings | None, shape: tuple[int, ...]
) -> HazeSettings | RainSettings:
    if kind == "haze":
        return haze or HazeSettings()
    rain = rain or RainSettings()
    # lengths are those of a photo of about 400 px: a larger one has larger streaks
    return replace(rain, scale=rain.scale * max(0.5, min(shape[:2]) / 400))


def _weathered(
    clear: NDArray[np.float32],
    depth: torch.Tensor | None,
    generator: torch.Generator,
    settings: HazeSettings | RainSettings,
) -> NDArray[np.float32]:
    with torch.inference_mode():
        batch = to_tensor(clear)[None]
        if isinstance(settings, HazeSettings):
            made, _ = add_haze(batch, generator, settings, depth)
        else:
            made, _ = add_rain(batch, generator, settings, depth=depth)
    return to_picture(made)
