"""How hazy does a photo look? An estimate of our own, fitted on haze of known density.

After the idea of FADE (Choi, You & Bovik, "Referenceless prediction of perceptual fog density and perceptual image
defogging", TIP 2015): statistics in which hazy and clear photos differ. FADE compares them with two corpora; here they
go into a regression whose truth is known, since the haze was computed (`benchmarks/haze_density.py` fits the weights
below and says how well they do). The two numbers cannot be compared.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.evaluation.metrics import eight_bit, size
from fairweather.evaluation.report import make_report_folder
from fairweather.evaluation.sheets import Count, cell, checked_count, paste_up, row, short
from fairweather.files import atomic
from fairweather.images.io import read, to_float
from fairweather.pairs import pictures

if TYPE_CHECKING:
    from rich.table import Table

Floats = NDArray[np.float32]

DENSITY_SIDE = 256
"""Photos are reduced to this longer side by area, so that the answer does not depend on the camera's pixels."""
CELL = 9
"""Local statistics are taken over CELL x CELL pixels of the reduced photo."""
QUANTILES = (0.1, 0.5, 0.9)

FEATURE_CENTRE: tuple[float, ...] = (
    *(0.1754, 0.317, 0.5216),
    *(0.1005, 0.201, 0.3487),
    *(-4.159, -3.171, -2.179),
    *(-3.489, -2.421, -1.414),
    *(0.1101, 0.2351, 0.4447),
    *(0.155, 0.3226, 0.5779),
    *(3.434, 0.5068),
)
FEATURE_SCALE: tuple[float, ...] = (
    *(0.1466, 0.1811, 0.2088),
    *(0.09179, 0.1468, 0.1967),
    *(0.6152, 0.6225, 0.4777),
    *(0.7903, 0.7497, 0.6178),
    *(0.09642, 0.1731, 0.2792),
    *(0.1017, 0.1581, 0.1831),
    *(0.4094, 0.126),
)
FEATURE_WEIGHTS: tuple[float, ...] = (
    *(0.8138, 0.4415, -0.5343),
    *(-0.1181, -0.2024, 0.03411),
    *(0.3654, 0.01603, 0.3903),
    *(-0.5723, 0.02526, -0.3365),
    *(0.1057, 0.05294, 0.138),
    *(-0.2853, 0.1317, -0.6233),
    *(0.1753, -0.2284),
)
INTERCEPT = -2.175


def haze_density(picture: NDArray[Any]) -> float:
    """The estimated mean share of airlight, 1 - t: 0 in clear air, 1 where nothing but haze is seen.

    picture: H x W x 3 floats in [0,1], sRGB.
    """
    if not FEATURE_WEIGHTS:
        return 0.0
    x = (density_features(picture) - np.array(FEATURE_CENTRE)) / np.array(FEATURE_SCALE)
    return float(1 / (1 + np.exp(-(x @ np.array(FEATURE_WEIGHTS) + INTERCEPT))))


def density_features(picture: NDArray[Any]) -> NDArray[np.float64]:
    """The statistics that the regression sees: QUANTILES of six local ones, and two of the whole picture."""
    small = reduce_for_density(picture)
    light = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    low, high = small.min(2), small.max(2)
    kernel = np.ones((CELL, CELL), np.uint8)
    mean = cv2.blur(light, (CELL, CELL))
    spread = np.sqrt((cv2.blur(light * light, (CELL, CELL)) - mean * mean).clip(0))
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    local = (
        cv2.erode(low, kernel),  # the dark channel: haze lifts it
        cv2.blur((high - low) / (high + 0.02), (CELL, CELL)),  # saturation: haze takes it
        np.log(spread + 0.004),  # contrast: haze takes it
        np.log((spread + 0.004) / (mean + 0.02)),  # contrast for the brightness, which haze brings
        cv2.blur(np.hypot(lab[..., 1], lab[..., 2]), (CELL, CELL)) / 50,  # colourfulness
        cv2.dilate(high, kernel) - cv2.erode(low, kernel),  # range from the darkest to the brightest
    )
    counts = np.histogram(light, 64, (0, 1))[0] / light.size
    entropy = -(counts * np.log(counts + 1e-9)).sum()
    every_other = np.stack([values[::2, ::2].ravel() for values in local])  # neighbours say nearly the same
    quantiles = np.quantile(every_other, QUANTILES, axis=1)
    return np.array([*quantiles.T.ravel(), entropy, mean.mean()])


def reduce_for_density(picture: NDArray[Any]) -> Floats:
    """The photo with at most SIDE pixels along its longer side, float32 in [0,1]."""
    picture = picture.astype(np.float32, copy=False).clip(0, 1)
    ratio = DENSITY_SIDE / max(picture.shape[:2])
    if ratio >= 1:
        return np.ascontiguousarray(picture)
    width, height = (max(1, round(side * ratio)) for side in (picture.shape[1], picture.shape[0]))
    small: Floats = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return small


# What can be said of a restored photo without knowing the truth: always as a change from the photo as it came.
#
# None of these numbers says that a picture is right. They say what a restorer did: whether contrast came, and whether it
# was paid for with clipped pixels, a colour cast or noise. `haze_density` has a file of its own.

WINDOW = 0.02
"""The side of a window of local contrast, as a share of the longer side; 7 pixels at least."""
BLOCK = 16
FLAT = 0.1
"""Noise is measured in this share of the input's blocks of BLOCK x BLOCK pixels, the flattest ones."""


@dataclass(frozen=True)
class PhotoChange:
    """From a photo to its restored version."""

    contrast: float
    """Ratio of the mean local contrast after to that before: 1 is unchanged, 2 is twice as much."""
    saturated: float
    """Change of the share of pixels with a channel at 0 or 255, in percentage points."""
    cast: float
    """Length of the shift (a, b) below, in units of CIELAB: from 2 or 3 a shift can be seen side by side."""
    cast_a: float
    """Shift of the mean a*: above 0 towards red, below towards green."""
    cast_b: float
    """Shift of the mean b*: above 0 towards yellow, below towards blue."""
    noise: float
    """Change of the standard deviation of the noise in flat places, in levels of 255."""
    density: float
    """Change of the estimated share of airlight, see `haze_density`: below 0 there is less haze."""

    def as_dict(self) -> dict[str, float]:
        """Name -> value, four decimals."""
        return {field.name: round(float(getattr(self, field.name)), 4) for field in fields(self)}


def measure_change(before: NDArray[Any], after: NDArray[Any]) -> PhotoChange:
    """What became of a photo: H x W x 3 floats in [0,1] twice, of one size. Raises BadImage where the sizes differ."""
    if before.shape != after.shape:
        raise BadImage(f"a photo of {size(before)} cannot be compared with one of {size(after)} pixels")
    before, after = before.astype(np.float32, copy=False), after.astype(np.float32, copy=False)
    a, b = (float(shift) for shift in mean_chroma(after) - mean_chroma(before))
    flat = flat_blocks(before)
    return PhotoChange(
        contrast=local_contrast(after) / max(local_contrast(before), 1e-4),
        saturated=100 * (saturated_share(after) - saturated_share(before)),
        cast=float(np.hypot(a, b)),
        cast_a=a,
        cast_b=b,
        noise=255 * (noise_level(after, flat) - noise_level(before, flat)),
        density=haze_density(after) - haze_density(before),
    )


def local_contrast(picture: Floats) -> float:
    """Mean over all windows of the standard deviation of luma inside; H x W x 3 in [0,1], the answer in the same unit.

    Windows are squares with a side of WINDOW times the longer side, around each pixel; at the border they reflect.
    """
    light = _luma(picture)
    side = max(7, round(WINDOW * max(light.shape)) // 2 * 2 + 1)
    mean = cv2.blur(light, (side, side))
    variance = cv2.blur(light * light, (side, side)) - mean * mean
    return float(np.sqrt(variance.clip(0)).mean())


def saturated_share(picture: Floats) -> float:
    """Share of pixels of which a channel is 0 or 255 in an 8-bit file; H x W x 3 in [0,1]."""
    levels = eight_bit(picture)
    return float(((levels == 0) | (levels == 255)).any(axis=2).mean())


def mean_chroma(picture: Floats) -> NDArray[np.float64]:
    """The mean a* and b* (CIELAB, D65) of an H x W x 3 sRGB picture in [0,1]."""
    lab: NDArray[np.float64] = cv2.cvtColor(picture.clip(0, 1), cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64)
    return lab


def noise_level(picture: Floats, flat: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of the noise in luma (in [0,1] units), measured in flat blocks.

    Immerkaer, "Fast noise variance estimation", CVIU 1996: a mask that is blind to planes and to straight edges,
    its answer divided by its own norm; here by block, and the median over the blocks that are flat.
    """
    if flat is None:
        flat = flat_blocks(picture)
    light = _luma(picture)
    if min(light.shape) < BLOCK:
        return 0.0
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    blocks = _by_block(np.square(cv2.filter2D(light, -1, mask)))
    return float(np.sqrt(np.median(blocks[flat])))


def flat_blocks(picture: Floats) -> NDArray[np.bool_]:
    """Which blocks of BLOCK x BLOCK pixels vary least, as a mask over the blocks; clipped ones do not count.

    In a clipped block noise is hidden. Of a photo of clipped blocks alone, the flattest are taken all the same.
    """
    light = _luma(picture)
    if min(light.shape) < BLOCK:
        return np.zeros((0, 0), np.bool_)
    smooth = cv2.blur(light, (3, 3))
    spread = _by_block(smooth * smooth) - np.square(_by_block(smooth))
    clipped = _by_block(((light < 2 / 255) | (light > 253 / 255)).astype(np.float32)) > 0
    if not clipped.all():
        spread[clipped] = np.inf
    count = max(1, round(FLAT * spread.size))
    flat: NDArray[np.bool_] = spread <= np.partition(spread.ravel(), count - 1)[count - 1]
    return flat


def _by_block(values: Floats) -> Floats:
    """The mean of each whole block."""
    rows, columns = values.shape[0] // BLOCK, values.shape[1] // BLOCK
    whole = values[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    mean: Floats = whole.mean((1, 3))
    return mean


def _luma(picture: Floats) -> Floats:
    light: Floats = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return light


# Photos without a truth: what a restorer changed in each, as a table, changes.csv, and sheets to look at.

CHANGES_CSV = "changes.csv"
NO_REFERENCE_SIDE = 640
"""Longest side of a picture on a sheet, in pixels."""
ROWS = 4
"""Photos on a sheet."""

MEASURES: dict[str, tuple[str, str, Callable[[float], float]]] = {
    "contrast": ("local contrast", "x {:.2f}", lambda value: -value),
    "saturated": ("saturated pixels", "{:+.2f} pp", lambda value: value),
    "cast": ("colour cast", "{:.1f}", lambda value: value),
    "noise": ("noise", "{:+.2f}", lambda value: value),
    "density": ("haze density", "{:+.3f}", lambda value: value),
}
"""Field of `Change` -> its name for people, how it is written, and a key by which the highest is the worst."""


@dataclass(frozen=True)
class NoReferenceReport:
    """A folder of photos: what became of each, and which could not be restored, with the reason."""

    data: str
    photos: dict[str, PhotoChange]
    """By the photo's path below the folder, without its suffix."""
    failed: dict[str, str] = field(default_factory=dict)

    def mean(self, measure: str) -> float:
        """The mean of one of MEASURES over the photos."""
        values = [getattr(one, measure) for one in self.photos.values()]
        return float(sum(values) / len(values))

    def worst(self, measure: str) -> tuple[str, float]:
        """The photo that fared worst by one of MEASURES, and its value."""
        key = MEASURES[measure][2]
        name = max(self.photos, key=lambda name: key(getattr(self.photos[name], measure)))
        return name, getattr(self.photos[name], measure)


def evaluate_unpaired(
    restorer: Callable[[Any], Any],
    folder: str | Path,
    out: str | Path | None = None,
    *,
    sheet: Count = "all",
    progress: Callable[[str, Path], None] | None = None,
) -> NoReferenceReport:
    """Restore every photo in a folder, as `restore` would, and measure what changed.

    restorer: H x W x 3 pixels as they are in the file -> the same; ``fairweather.load(...)`` or any function.
    out: a folder (made when missing) for ``changes.csv`` and sheets of ROWS photos each: as it came | restored.
    sheet: how many photos, in the order of their names, the sheets show. Sheets of an earlier evaluation go.
    progress: called after each photo with the folder's name and the photo's path.

    A photo that fails is in ``failed``; the rest is measured. Raises BadFolder (no photos, or an ``out`` that cannot be
    written) and BadSettings (a ``sheet`` below 1), before any work.
    """
    most, paths = checked_count(sheet), pictures(folder)
    if not paths:
        raise BadFolder(f"{folder} holds no pictures; give a folder of photos")
    place = None if out is None else make_report_folder(Path(out), paths)
    data = Path(folder).resolve().name
    result, rows = NoReferenceReport(data, {}), list[tuple[str, Image.Image, Image.Image]]()
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in result.photos:  # a.jpg beside a.png
            name = path.relative_to(folder).as_posix()
        try:
            pixels = read(path).pixels
            restored = restorer(pixels)
            before, after = to_float(pixels), to_float(restored)
            result.photos[name] = measure_change(before, after)
            if place is not None and (most is None or len(rows) < most):
                rows.append((name, cell(before, NO_REFERENCE_SIDE), cell(after, NO_REFERENCE_SIDE)))
        except (MissingExtra, BadSettings):
            raise
        except (FairweatherError, OSError) as error:
            result.failed[name] = f"{path}: {error}"
        if progress is not None:
            progress(data, path)
    if place is not None:
        write_changes(place / CHANGES_CSV, result)
        _write_sheets(place, result, rows)
    return result


def write_changes(path: Path, result: NoReferenceReport) -> None:
    """One line a photo: its name and its `Change`; then the photos that failed, with the reason."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, ["photo", *PhotoChange.__dataclass_fields__, "failed"], restval="")
        writer.writeheader()
        for name, one in result.photos.items():
            writer.writerow({"photo": name, **one.as_dict()})
        for name, reason in result.failed.items():
            writer.writerow({"photo": name, "failed": reason})


def changes_table(result: NoReferenceReport, title: str = "") -> Table:
    """Mean and worst of each measure, as a rich table that fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    caption = f"{len(result.photos)} photos of {result.data}, each a change from the photo as it came"
    grid = Table(title=title or None, caption=caption, box=SIMPLE_HEAD)
    grid.add_column("change of", no_wrap=True)
    for heading in ("mean", "worst"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("in", no_wrap=True)
    for measure, (words, form, _) in MEASURES.items():
        if result.photos:
            name, value = result.worst(measure)
            grid.add_row(words, form.format(result.mean(measure)), form.format(value), Text(short(name)))
    return grid


def all_photos(result: NoReferenceReport) -> Table:
    """Every photo's measures, as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD)
    grid.add_column("photo", no_wrap=True)
    for measure in MEASURES:
        grid.add_column(measure, justify="right", no_wrap=True)
    for name, one in result.photos.items():
        cells = [form.format(getattr(one, measure)) for measure, (_, form, _) in MEASURES.items()]
        grid.add_row(Text(short(name, 21)), *cells)
    return grid


def _write_sheets(
    folder: Path, result: NoReferenceReport, rows: Sequence[tuple[str, Image.Image, Image.Image]]
) -> None:
    stem = result.data or "photos"
    for old in folder.glob("*-[0-9][0-9]*.jpg"):
        if old.stem.rpartition("-")[0] == stem and old.stem.rpartition("-")[2].isdigit():
            old.unlink()
    pages = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    for number, page in enumerate(pages, start=1):
        title = f"{result.data}, sheet {number} of {len(pages)}: as it came, and restored"
        lines = [row(pair, [short(name, 40), _caption(result.photos[name])], NO_REFERENCE_SIDE) for name, *pair in page]
        paste_up(folder / f"{stem}-{number:02d}.jpg", title, lines)


def _caption(one: PhotoChange) -> str:
    words = {"contrast": "contrast", "saturated": "saturated", "cast": "cast", "noise": "noise", "density": "haze"}
    return "   ".join(f"{word} {MEASURES[key][1].format(getattr(one, key))}" for key, word in words.items())
