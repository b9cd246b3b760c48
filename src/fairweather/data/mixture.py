"""Mixtures: several sources of training pairs, drawn by weight, described by the `[data]` table of a TOML file."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from fairweather.data.augment import Augment
from fairweather.data.datasets import (
    GIB,
    PhotoCache,
    PhotoPairs,
    Sample,
    Source,
    all_pairs,
    cached_short_side,
    check_index,
    item_rng,
    photos_in,
    scene_of_pair,
    scene_of_photo,
    split_holdout,
)
from fairweather.data.synthetic import (
    DISPARITY,
    ClearPhotos,
    RehazedPairs,
    RGBDHaze,
    SyntheticHaze,
    SyntheticRain,
    block_of_photo,
    estimated_depths,
    matching,
    rgbd_in,
)
from fairweather.data.video_clips import MovingCamera
from fairweather.errors import BadFolder, BadSettings, UnknownName
from fairweather.pairs import Pair, find_sets
from fairweather.weather.draws import check_number
from fairweather.weather.haze import HazeSettings
from fairweather.weather.rain import RainSettings

SourceKind = Literal["pairs", "rehazed", "synthetic", "rgbd", "clear"]
Weather = Literal["haze", "rain"]


@dataclass(frozen=True)
class SourceSettings:
    """One source of a mixture, a `[[data.sources]]` table."""

    kind: SourceKind
    """`pairs`: pairs, unchanged. `rehazed`: pairs whose haze is measured and varied. `synthetic`: computed weather over
    clear photos. `rgbd`: haze over the photos of a folder with clear/ and depth/, along that depth, by default RESIDE's
    indoor haze. `clear`: clear photos on both sides."""
    path: str
    """The folder, relative to the data folder."""
    match: tuple[str, ...] = ()
    """Use only the clear photos whose file name matches one of these patterns (`div2k_*`); all, if empty. It does not
    change which scenes are held back."""
    weight: float = 1.0
    """Frequency relative to the other sources."""
    weather: Weather = "haze"
    """Weather of a synthetic source. Haze follows `NAME_disparity.png` where that file is next to the photo."""
    streaks: str | None = None
    """For rain: a folder of rain pairs, relative to the data folder, whose streaks (rain - clear) are reused."""
    fog: str | None = None
    """For synthetic haze: a folder of pairs of real fog, relative to the data folder, whose transmission is reused."""
    depths: str | None = None
    """For synthetic haze: a folder of estimated depth maps, absolute or relative to the data folder; by default the
    mixture's own `depths`."""
    validate: str | None = None
    """For synthetic haze: validate on the holdout photos, with fixed haze, under this name. An `rgbd` source always
    does."""
    haze: HazeSettings = field(default_factory=HazeSettings)
    """Ranges of the haze of this source."""
    rain: RainSettings = field(default_factory=RainSettings)
    """Ranges of the rain of this source."""
    moving: bool = False
    """For clips: the photos are video frames, one folder per video, sorted by name. They are never held out."""
    speed: float = 3.0
    """For clips: largest speed of the camera in pixels a frame, approximately; each clip's is drawn from 0 to this."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Fields of the mixture's `augment` to change for this source."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(SourceKind):
            raise UnknownName("kind of data source", self.kind, get_args(SourceKind))
        if self.weather not in get_args(Weather):
            raise UnknownName("weather", self.weather, get_args(Weather))
        source = f"the source {self.path}"
        check_number(f"weight of {source}", self.weight, above=True)
        check_number(f"speed of {source}", self.speed)
        if "crop" in self.augment:
            raise BadSettings(f"{source} sets its own crop, but all sources share one: set data.augment.crop instead")
        hazed = self.kind == "synthetic" and self.weather == "haze" and self.fog is None
        if self.depths is not None and not hazed:
            raise BadSettings(f"{source} has depths, which is for synthetic haze only: remove depths")
        if self.validate is not None and not (hazed or self.kind == "rgbd"):
            raise BadSettings(f"{source} has validate, which is for synthetic haze only: remove validate")
        if self.match and self.kind in ("pairs", "rehazed"):
            raise BadSettings(f"{source} has match, which is for clear photos only: remove match")


@dataclass(frozen=True)
class MixtureSettings:
    """A mixture, the `[data]` table of a TOML file."""

    sources: tuple[SourceSettings, ...] = ()
    """The sources."""
    samples: int | None = None
    """Samples per epoch; by default the number of photos of all sources."""
    hold_back: float = 0.0
    """Share of the scenes of each source kept out of training for validation; `1400_1` and `1400_2` are one scene."""
    frames: int | None = None
    """Frames per clip: each sample is a clip instead of a photo (see `fairweather.data.video_clips`)."""
    memory_gib: float = 4.0
    """Limit for cached photos in GiB; photos beyond it are decoded again on each access."""
    short_side: int | None = None
    """Photos are cached reduced to this short side; by default twice the crop."""
    depths: str | None = None
    """A folder of estimated depth maps for synthetic haze, absolute or relative to the data folder: 16-bit PNG, 0 near
    to 65535 far, of any size; clear/a.jpg has clear/a.jpg.png. Photos without one get invented depth."""
    augment: Augment = field(default_factory=Augment)
    """Crops, flips, tone, noise and JPEG."""

    def __post_init__(self) -> None:
        for name, most in (("samples", 2**40), ("frames", 10_000), ("short_side", 2**20)):
            if getattr(self, name) is not None:
                check_number(f"data.{name}", getattr(self, name), 1, most)
        check_number("data.memory_gib", self.memory_gib)
        check_number("data.hold_back", self.hold_back, 0, 1)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MixtureSettings:
        """Build settings from the parsed `[data]` table.

        Raises:
            BadSettings, UnknownName: a key that does not exist (the message suggests the nearest), or an invalid value.
        """
        built: MixtureSettings = _dataclass_from(cls, table, "data")
        return built


class Mixture:
    """A dataset of weighted sources. A sample's source, item and all other draws depend on (seed, epoch, index)."""

    def __init__(self, settings: MixtureSettings, root: str | Path) -> None:
        """Open all sources below the folder `root`.

        Raises:
            BadFolder, BadImage: photos are broken or unmatched; every file is decoded once to find out.
            BadSettings: there are no sources.
        """
        if not settings.sources:
            raise BadSettings("data.sources is empty: give at least one [[data.sources]] table with kind and path")
        short_side = cached_short_side(settings.augment) if settings.short_side is None else settings.short_side
        self.settings = settings
        # one cache for all sources, which may share folders
        self.photos = PhotoCache(short_side, int(settings.memory_gib * GIB))
        self.sources = [open_source(one, Path(root), self.photos, settings) for one in settings.sources]
        weights = np.array([source.weight for source in settings.sources], dtype=np.float64)
        self.edges = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self.settings.samples or sum(source.items for source in self.sources)

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        rng = item_rng(seed, epoch, index)
        number, item = self.draw_item(rng)
        return self.sources[number].make(item, rng)

    def draw_item(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the number of a source, by weight, and the number of one of its items."""
        drawn = int(np.searchsorted(self.edges, rng.random(), side="right"))
        number = min(drawn, len(self.sources) - 1)
        return number, int(rng.integers(self.sources[number].items))

    def holdout(self) -> dict[str, list[Pair]]:
        """The pairs kept out of training by the name of their source; clear photos are their own partners."""
        return {
            one.validate or f"{one.kind}:{one.path}": source.holdout
            for one, source in zip(self.settings.sources, self.sources, strict=True)
            if source.holdout
        }


def open_source(one: SourceSettings, root: Path, photos: PhotoCache, mixture: MixtureSettings) -> Source:
    """Open the source that a `[[data.sources]]` table describes."""
    source = _photo_source(one, root, photos, mixture)
    if mixture.frames is None:
        return source
    if one.haze.night > 0:
        raise BadSettings(f"the source {one.path} has haze.night, which clips do not support: remove one of the two")
    return MovingCamera(source, mixture.frames, speed=one.speed, moving=one.moving)


def _photo_source(
    one: SourceSettings, root: Path, photos: PhotoCache, mixture: MixtureSettings
) -> PhotoPairs | RehazedPairs | ClearPhotos:
    path, hold_back = root / one.path, 0.0 if one.moving else mixture.hold_back
    shared = {known.name: getattr(mixture.augment, known.name) for known in fields(Augment)}
    changed = {key: value for key, value in (shared | one.augment).items() if value is not None}
    augment: Augment = _dataclass_from(Augment, changed, f"the augment table of the source {one.path}")
    if one.kind == "pairs":
        return PhotoPairs(all_pairs(path), photos, augment, hold_back)
    if one.kind == "rehazed":
        return RehazedPairs(all_pairs(path), photos, augment, hold_back, one.haze)
    if one.kind == "clear":
        return ClearPhotos(photos_in(path), photos, augment, hold_back, one.match)
    if one.kind == "rgbd":
        haze = None if one.haze == HazeSettings() else one.haze
        return RGBDHaze(*rgbd_in(path), photos, augment, hold_back, haze, match=one.match)

    def weather_pairs(folder: str | None) -> list[Pair]:  # scenes in the holdout do not provide weather either
        return split_holdout(all_pairs(root / folder), scene_of_pair, hold_back)[0] if folder else []

    paths = photos_in(path)
    if one.weather == "rain":
        streaks = weather_pairs(one.streaks)
        return SyntheticRain(paths, photos, augment, hold_back, one.rain, streaks, match=one.match)
    fog, folder = weather_pairs(one.fog), one.depths or mixture.depths
    depths = estimated_depths(paths, root, root / folder, required=one.depths is not None) if folder and not fog else {}
    validated = one.validate is not None
    return SyntheticHaze(paths, photos, augment, hold_back, one.haze, fog, depths, validated=validated, match=one.match)


CLEAR_SUFFIX = " (clear)"
"""Suffix of the name of a holdout set of clear photos, each its own partner."""


@dataclass(frozen=True)
class HoldoutDivision:
    """The photos of a run's sources."""

    trained: frozenset[Path]
    """Files used for training."""
    holdout: dict[str, list[Pair]]
    """Set -> the pairs kept out of training; clear photos are their own partners."""


def divide_holdout(sources: Sequence[Mapping[str, Any]], root: str | Path, hold_back: float) -> HoldoutDivision:
    """Divide the photos of a run as its training does, using only its settings: nothing is decoded.

    Args:
        sources: `[[data.sources]]` tables; without any, `root` itself is a folder of pairs.
        root: the data folder.
        hold_back: share of the scenes kept out of training.

    Raises:
        BadFolder: the folder of a source does not exist.
    """
    root = Path(root)
    trained: set[Path] = set()
    holdout: dict[str, list[Pair]] = {}
    for source in sources or ({"kind": "pairs", "path": "."},):
        path, kind = root / source["path"], source["kind"]
        if not path.is_dir():
            raise BadFolder(f"{path} does not exist: give the data folder of the run's sources (--data)")
        name = path.resolve().name if source["path"] == "." else Path(source["path"]).as_posix()
        used_pairs: list[Pair] = []
        if kind in ("pairs", "rehazed"):
            used_pairs, left = split_holdout(all_pairs(path), scene_of_pair, hold_back)
            holdout |= _by_set(path, name, {pair.degraded for pair in left})
        else:
            if kind == "rgbd":
                path, name, scene = path / "clear", f"{name}/clear", block_of_photo
            else:
                scene = scene_of_photo
            photos = photos_in(path)
            if kind == "synthetic":
                photos = [photo for photo in photos if not photo.stem.endswith(DISPARITY)]
            patterns = source.get("match", ())
            used, unused = (matching(some, patterns) for some in split_holdout(photos, scene, hold_back))
            trained |= set(used)
            for folder in filter(None, (source.get("fog"), source.get("streaks"))):
                used_pairs += split_holdout(all_pairs(root / folder), scene_of_pair, hold_back)[0]
            # sources of one folder with different patterns share a set
            found = holdout.setdefault(name + CLEAR_SUFFIX, [])
            known = {pair.clear for pair in found}
            found += [Pair(one, one, one.stem) for one in unused if one not in known]
        trained |= {photo for pair in used_pairs for photo in (pair.degraded, pair.clear)}
    return HoldoutDivision(frozenset(trained), {name: pairs for name, pairs in holdout.items() if pairs})


def _by_set(path: Path, name: str, degraded: set[Path]) -> dict[str, list[Pair]]:
    """The pairs with these degraded photos, by the sets (light, heavy) of their folder."""

    def below(set_name: str) -> str:  # two degraded sides of one folder have its name already
        return set_name if set_name.split("/")[0] == Path(name).name else f"{name}/{set_name}"

    sets = find_sets(path)
    return {
        name if len(sets) == 1 else below(one): [pair for pair in pairs if pair.degraded in degraded]
        for one, pairs in sets.items()
    }


def _dataclass_from(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from a TOML table; unknown keys and values of another type are BadSettings."""
    if not isinstance(table, Mapping):
        raise BadSettings(f"{where} must be a table, not {table!r}")
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    for key in table:
        if key not in known:
            raise BadSettings(str(UnknownName(f"setting of {where}", key, known)))
    try:
        return kind(**{key: _checked(hints[key], value, f"{where}.{key}") for key, value in table.items()})
    except TypeError as error:
        raise BadSettings(f"{where}: {error}") from error


def _checked(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _dataclass_from(hint, value, where)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise BadSettings(f"{where} must be a list, not {value!r}")
        if parts[-1] is Ellipsis:
            return tuple(_checked(parts[0], one, f"{where}[{n}]") for n, one in enumerate(value))
        if len(parts) != len(value):
            raise BadSettings(f"{where} must have {len(parts)} values, not {len(value)}")
        return tuple(_checked(part, one, where) for part, one in zip(parts, value, strict=True))
    hint = {dict: dict, Literal: str}.get(get_origin(hint), hint)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if hint in (int, float, str, bool, dict) and type(value) is not hint:
        raise BadSettings(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
