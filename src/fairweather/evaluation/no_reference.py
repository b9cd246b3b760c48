"""Evaluation without a reference: what a restorer changes in photos whose clear version is unknown.

The measures do not show whether a result is correct, only whether contrast increased, and at what cost: clipping, a
colour cast or noise. `haze_density` estimates how hazy a photo looks. Following FADE (Choi, You & Bovik, "Referenceless
prediction of perceptual fog density and perceptual image defogging", TIP 2015) it uses statistics in which hazy and
clear photos differ, but in a regression on computed haze of known density (`benchmarks/haze_density.py` fits the
weights and reports the accuracy). Its values and FADE's cannot be compared.
"""

from __future__ import annotations

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
from fairweather.evaluation.report import csv_writer, make_report_folder
from fairweather.evaluation.sheets import Count, cell, checked_count, paste_up, row, short
from fairweather.images.io import read, to_float
from fairweather.pairs import pictures

if TYPE_CHECKING:
    from rich.table import Table

Floats = NDArray[np.float32]

DENSITY_SIDE = 256
"""Longer side to which photos are reduced, so that the estimate does not depend on the resolution."""
DENSITY_WINDOW = 9
"""Side of the neighbourhood of local statistics, in pixels of the reduced photo."""
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


WINDOW = 0.02
"""Side of the window of local contrast, relative to the longer side; 7 pixels at least."""
BLOCK = 16
"""Side of the blocks in which noise is measured."""
FLAT = 0.1
"""Share of the blocks, the flattest ones, in which noise is measured."""
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
"""Field of `PhotoChange` -> name, format, and a key by which the highest value is the worst."""


@dataclass(frozen=True)
class PhotoChange:
    """The change from a photo to its restored version."""

    contrast: float
    """Ratio of mean local contrast, after to before: 1 is unchanged, 2 is twice as much."""
    saturated: float
    """Change of the share of pixels with a channel at 0 or 255, in percentage points."""
    cast: float
    """Length of the shift (a*, b*), in units of CIELAB: visible side by side from 2 or 3."""
    cast_a: float
    """Shift of mean a*: positive towards red, negative towards green."""
    cast_b: float
    """Shift of mean b*: positive towards yellow, negative towards blue."""
    noise: float
    """Change of the noise's standard deviation in flat blocks, in levels of 255."""
    density: float
    """Change of `haze_density`: negative for less haze."""

    def as_dict(self) -> dict[str, float]:
        """Return name -> value with four decimals."""
        return {field.name: round(float(getattr(self, field.name)), 4) for field in fields(self)}


@dataclass(frozen=True)
class NoReferenceReport:
    """The changes in a folder of photos."""

    data: str
    """Name of the folder."""
    photos: dict[str, PhotoChange]
    """Path of a photo below the folder, without suffix -> its change."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a photo that could not be measured -> the reason."""

    def mean(self, measure: str) -> float:
        """Return the mean of one of `MEASURES` over the photos."""
        values = [getattr(one, measure) for one in self.photos.values()]
        return float(sum(values) / len(values))

    def worst(self, measure: str) -> tuple[str, float]:
        """Return the worst photo by one of `MEASURES`, and its value."""
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
    """Restore every photo in a folder and measure what changed.

    Args:
        restorer: H x W x 3 pixels with the dtype of the file -> the same: `fairweather.load(...)` or any function.
        folder: the photos.
        out: a folder for `changes.csv` and sheets of `ROWS` photos each, before | after; created if missing.
        sheet: how many photos, in the order of their names, the sheets show. Sheets of an earlier evaluation are
            removed.
        progress: called after each photo with the folder's name and the photo's path.

    Returns:
        The changes; a photo that fails is in `failed`.

    Raises:
        BadFolder: there are no photos, or `out` cannot be written.
        BadSettings: `sheet` is below 1.
    """
    most, paths = checked_count(sheet), pictures(folder)
    if not paths:
        raise BadFolder(f"{folder} contains no pictures: give a folder of photos")
    place = None if out is None else make_report_folder(Path(out), paths)
    data = Path(folder).resolve().name
    result, rows = NoReferenceReport(data, {}), list[tuple[str, Image.Image, Image.Image]]()
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in result.photos:  # a.jpg and a.png
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


def measure_change(before: NDArray[Any], after: NDArray[Any]) -> PhotoChange:
    """Measure the change from a photo to its restored version.

    Args:
        before: H x W x 3 floats in [0, 1].
        after: the same.

    Raises:
        BadImage: the sizes differ.
    """
    if before.shape != after.shape:
        raise BadImage(f"a photo of {size(before)} cannot be compared with one of {size(after)}: use equal sizes")
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


def haze_density(picture: NDArray[Any]) -> float:
    """Estimate the mean share of airlight, 1 - t: 0 in clear air, 1 in haze that hides everything.

    Args:
        picture: H x W x 3 floats in [0, 1], sRGB.
    """
    x = (density_features(picture) - np.array(FEATURE_CENTRE)) / np.array(FEATURE_SCALE)
    return float(1 / (1 + np.exp(-(x @ np.array(FEATURE_WEIGHTS) + INTERCEPT))))


def density_features(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return the features of the regression: `QUANTILES` of six local statistics, and two global ones."""
    small = reduce_for_density(picture)
    light = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    low, high = small.min(2), small.max(2)
    kernel = np.ones((DENSITY_WINDOW, DENSITY_WINDOW), np.uint8)
    mean = cv2.blur(light, (DENSITY_WINDOW, DENSITY_WINDOW))
    spread = np.sqrt((cv2.blur(light * light, (DENSITY_WINDOW, DENSITY_WINDOW)) - mean * mean).clip(0))
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    local = (
        cv2.erode(low, kernel),  # dark channel: haze raises it
        cv2.blur((high - low) / (high + 0.02), (DENSITY_WINDOW, DENSITY_WINDOW)),  # saturation: haze lowers it
        np.log(spread + 0.004),  # contrast: haze lowers it
        np.log((spread + 0.004) / (mean + 0.02)),  # contrast relative to brightness
        cv2.blur(np.hypot(lab[..., 1], lab[..., 2]), (DENSITY_WINDOW, DENSITY_WINDOW)) / 50,  # colourfulness
        cv2.dilate(high, kernel) - cv2.erode(low, kernel),  # local range
    )
    counts = np.histogram(light, 64, (0, 1))[0] / light.size
    entropy = -(counts * np.log(counts + 1e-9)).sum()
    every_other = np.stack([values[::2, ::2].ravel() for values in local])  # neighbours are nearly equal
    quantiles = np.quantile(every_other, QUANTILES, axis=1)
    return np.array([*quantiles.T.ravel(), entropy, mean.mean()])


def reduce_for_density(picture: NDArray[Any]) -> Floats:
    """Return the photo with at most `DENSITY_SIDE` pixels along its longer side, float32 in [0, 1]."""
    picture = picture.astype(np.float32, copy=False).clip(0, 1)
    ratio = DENSITY_SIDE / max(picture.shape[:2])
    if ratio >= 1:
        return np.ascontiguousarray(picture)
    width, height = (max(1, round(side * ratio)) for side in (picture.shape[1], picture.shape[0]))
    small: Floats = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return small


def local_contrast(picture: Floats) -> float:
    """Return the mean standard deviation of luma in a square window around each pixel; H x W x 3 in [0, 1].

    The window's side is `WINDOW` times the longer side; borders are reflected.
    """
    light = _luma(picture)
    side = max(7, round(WINDOW * max(light.shape)) // 2 * 2 + 1)
    mean = cv2.blur(light, (side, side))
    variance = cv2.blur(light * light, (side, side)) - mean * mean
    return float(np.sqrt(variance.clip(0)).mean())


def saturated_share(picture: Floats) -> float:
    """Return the share of pixels with a channel that is 0 or 255 in 8 bits; H x W x 3 in [0, 1]."""
    levels = eight_bit(picture)
    return float(((levels == 0) | (levels == 255)).any(axis=2).mean())


def mean_chroma(picture: Floats) -> NDArray[np.float64]:
    """Return mean a* and b* (CIELAB, D65); H x W x 3 sRGB in [0, 1]."""
    lab: NDArray[np.float64] = cv2.cvtColor(picture.clip(0, 1), cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64)
    return lab


def noise_level(picture: Floats, flat: NDArray[np.bool_] | None = None) -> float:
    """Return the standard deviation of noise in luma, in units of [0, 1].

    Immerkaer, "Fast noise variance estimation", CVIU 1996: a normalized mask that ignores planes and straight edges,
    applied per block here, with the median over flat blocks.
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
    """Return a mask of the flattest blocks, excluding clipped ones, which hide noise (unless all are clipped)."""
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
    """Return the mean of each complete block."""
    rows, columns = values.shape[0] // BLOCK, values.shape[1] // BLOCK
    whole = values[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    mean: Floats = whole.mean((1, 3))
    return mean


def _luma(picture: Floats) -> Floats:
    light: Floats = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return light


def write_changes(path: Path, result: NoReferenceReport) -> None:
    """Write one row for each photo: its name and its `PhotoChange`; then those that failed, with the reason."""
    with csv_writer(path, ["photo", *PhotoChange.__dataclass_fields__, "failed"]) as writer:
        for name, one in result.photos.items():
            writer.writerow({"photo": name, **one.as_dict()})
        for name, reason in result.failed.items():
            writer.writerow({"photo": name, "failed": reason})


def changes_table(result: NoReferenceReport, title: str = "") -> Table:
    """Return the mean and worst of each measure, as a table for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    caption = f"{len(result.photos)} photos of {result.data}, each a change from the degraded photo"
    table = Table(title=title or None, caption=caption, box=SIMPLE_HEAD)
    table.add_column("change of", no_wrap=True)
    for heading in ("mean", "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("in", no_wrap=True)
    for measure, (label, form, _) in MEASURES.items():
        if result.photos:
            name, value = result.worst(measure)
            table.add_row(label, form.format(result.mean(measure)), form.format(value), Text(short(name)))
    return table


def changes_by_photo(result: NoReferenceReport) -> Table:
    """Return the measures of every photo as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("photo", no_wrap=True)
    for measure in MEASURES:
        table.add_column(measure, justify="right", no_wrap=True)
    for name, one in result.photos.items():
        cells = [form.format(getattr(one, measure)) for measure, (_, form, _) in MEASURES.items()]
        table.add_row(Text(short(name, 21)), *cells)
    return table


def _write_sheets(
    folder: Path, result: NoReferenceReport, rows: Sequence[tuple[str, Image.Image, Image.Image]]
) -> None:
    stem = result.data or "photos"
    for old in folder.glob("*-[0-9][0-9]*.jpg"):
        if old.stem.rpartition("-")[0] == stem and old.stem.rpartition("-")[2].isdigit():
            old.unlink()
    pages = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    for number, page in enumerate(pages, start=1):
        title = f"{result.data}, sheet {number} of {len(pages)}: degraded and restored"
        lines = [row(pair, [short(name, 40), _caption(result.photos[name])], NO_REFERENCE_SIDE) for name, *pair in page]
        paste_up(folder / f"{stem}-{number:02d}.jpg", title, lines)


def _caption(one: PhotoChange) -> str:
    labels = {key: "haze" if key == "density" else key for key in MEASURES}
    return "   ".join(f"{label} {MEASURES[key][1].format(getattr(one, key))}" for key, label in labels.items())
