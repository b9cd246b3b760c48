"""Several sources drawn by weight: the data of a model that must meet every kind of weather, written down in TOML."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from fairweather.data.augment import Augment
from fairweather.data.datasets import (
    PairDataset,
    PhotoCache,
    Sample,
    Source,
    all_pairs,
    check_index,
    item_rng,
    photos_in,
    scene_of_pair,
    scene_of_photo,
    split_holdout,
    stored_short_side,
)
from fairweather.data.synthetic import (
    DISPARITY,
    RGBD,
    ClearPhotos,
    Hazy,
    Rainy,
    Rehazed,
    block_of_photo,
    depths_of,
    matching,
    rgbd_in,
)
from fairweather.data.video_clips import MovingCamera
from fairweather.errors import BadFolder, BadSettings, UnknownName
from fairweather.pairs import Pair, find_sets
from fairweather.weather.haze import HazeSettings
from fairweather.weather.rain import RainSettings

SOURCE_KINDS = ("pairs", "rehazed", "synthetic", "rgbd", "clear")


@dataclass(frozen=True)
class SourceSettings:
    """One source of a mixture, a `[[data.sources]]` table of the TOML file."""

    kind: str
    """`pairs`: folders of pairs. `rehazed`: pairs whose own transmission is used again at another density. `synthetic`:
    weather over clear photos. `rgbd`: haze over the photos of a folder with clear/ and depth/, along that depth; unless
    `haze` is given, by the recipe of RESIDE's indoor training set. `clear`: clear photos on both sides."""
    path: str
    """The folder, relative to the data folder."""
    match: tuple[str, ...] = ()
    """Of clear photos: use only those whose file name matches one of these patterns (`div2k_*`); all where empty. Which
    scenes are held back does not depend on it."""
    weight: float = 1.0
    """How often it is drawn, relative to the others."""
    weather: str = "haze"
    """What a synthetic source adds: `haze` (along `NAME_disparity.png` where that lies beside the photo) or `rain`."""
    streaks: str | None = None
    """For rain: a folder of rain pairs, relative to the data folder, whose streak layers (rain - clear) are taken."""
    fog: str | None = None
    """For synthetic haze: a folder of pairs of real fog, relative to the data folder, whose transmissions are laid over
    the photos."""
    depths: str | None = None
    """For synthetic haze: a folder of estimated depth maps, absolute or relative to the data folder; the mixture's own
    `depths` where not given."""
    validate: str | None = None
    """For synthetic haze: validate on the photos that are held back, under a haze that stays the same, by this name. An
    `rgbd` source does so anyway."""
    haze: HazeSettings = field(default_factory=HazeSettings)
    """Ranges of the haze of this source."""
    rain: RainSettings = field(default_factory=RainSettings)
    """Ranges of the rain of this source."""
    moving: bool = False
    """The photos are frames of films, a folder each, in the order of their names; for clips, and never held back."""
    speed: float = 3.0
    """Of clips: how far the camera moves from frame to frame, in pixels of the frame, at most about; each clip's is
    drawn from 0 to this."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Fields of the mixture's own `augment` that are different for this source."""

    def __post_init__(self) -> None:
        if self.kind not in SOURCE_KINDS:
            raise UnknownName("kind of data source", self.kind, SOURCE_KINDS)
        if self.weather not in ("haze", "rain"):
            raise UnknownName("weather", self.weather, ("haze", "rain"))
        if "crop" in self.augment:
            raise BadSettings(f"the source {self.path} has a crop of its own: batches need one, data.augment.crop")
        hazed = self.kind == "synthetic" and self.weather == "haze" and self.fog is None
        if self.depths is not None and not hazed:
            raise BadSettings(f"the source {self.path} has depths, which only synthetic haze uses: remove depths")
        if self.validate is not None and not (hazed or self.kind == "rgbd"):
            raise BadSettings(f"the source {self.path} has validate, which only synthetic haze uses: remove validate")
        if self.match and self.kind in ("pairs", "rehazed"):
            raise BadSettings(f"the source {self.path} has match, which only clear photos use: remove match")
        if self.speed < 0:
            raise BadSettings(f"the source {self.path} has speed {self.speed}: give 0 (a camera that stands) or more")
        if not self.weight > 0:
            raise BadSettings(f"the source {self.path} has weight {self.weight}: give one above 0, or take it out")


@dataclass(frozen=True)
class MixtureSettings:
    """What a model is trained on, the `[data]` table of a TOML file."""

    sources: tuple[SourceSettings, ...] = ()
    """The sources, each drawn as often as its weight says."""
    samples: int | None = None
    """Samples per epoch; as many as all sources have photos where not given."""
    hold_back: float = 0.0
    """Share of the scenes of each source kept out of training, to choose by: `1400_1` and `1400_2` are one scene."""
    frames: int | None = None
    """Where given, each sample is a clip of so many frames, as a strip (see `fairweather.data.video_clips`)."""
    memory_gib: float = 4.0
    """The most memory for decoded photos; what does not fit is decoded again each time."""
    short_side: int | None = None
    """Photos are kept reduced to this short side; twice the crop where not given."""
    depths: str | None = None
    """A folder of estimated depth maps for synthetic haze, absolute or relative to the data folder: 16-bit PNG, 0 near
    to 65535 far, of any size; for clear/a.jpg it is clear/a.jpg.png. Photos without one get an invented depth."""
    augment: Augment = field(default_factory=Augment)
    """Crops, flips, tone, noise and JPEG."""

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MixtureSettings:
        """From the parsed `[data]` table; BadSettings for a key that does not exist, naming the nearest."""
        built: MixtureSettings = _build(cls, table, "data")
        return built


class Mixture:
    """A dataset of weighted sources. A sample's source, photo and everything else come from (seed, epoch, index)."""

    def __init__(self, settings: MixtureSettings, root: str | Path) -> None:
        """Opens and checks every file under `root`; BadFolder or BadImage name those that are broken or unmatched."""
        if not settings.sources:
            raise BadSettings("data.sources is empty: give at least one [[data.sources]] table with kind and path")
        short_side = stored_short_side(settings.augment) if settings.short_side is None else settings.short_side
        self.settings = settings
        # one store: folders that several sources share are decoded once
        self.photos = PhotoCache(short_side, int(settings.memory_gib * 2**30))
        self.sources = [open_source(one, Path(root), self.photos, settings) for one in settings.sources]
        weights = np.array([source.weight for source in settings.sources], dtype=np.float64)
        self.edges = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self.settings.samples or sum(source.items for source in self.sources)

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        rng = item_rng(seed, epoch, index)
        number, item = self.drawn(rng)
        return self.sources[number].make(item, rng)

    def drawn(self, rng: np.random.Generator) -> tuple[int, int]:
        """The number of a source, drawn by weight, and the number of one of its items."""
        drawn = int(np.searchsorted(self.edges, rng.random(), side="right"))
        number = min(drawn, len(self.sources) - 1)
        return number, int(rng.integers(self.sources[number].items))

    def held_back(self) -> dict[str, list[Pair]]:
        """The pairs kept out of training: real ones, and clear photos as their own partner."""
        held: dict[str, list[Pair]] = {}
        for settings, source in zip(self.settings.sources, self.sources, strict=True):
            if source.held:
                held[settings.validate or f"{settings.kind}:{settings.path}"] = source.held
        return held


def open_source(one: SourceSettings, root: Path, photos: PhotoCache, settings: MixtureSettings) -> Source:
    """The source that one table describes."""
    if settings.frames is not None and one.haze.night > 0:
        raise BadSettings(f"the source {one.path} has haze.night, which clips do not support: remove one of the two")
    if settings.frames is None:
        return _photos_of(one, root, photos, settings)
    return MovingCamera(_photos_of(one, root, photos, settings), settings.frames, speed=one.speed, moving=one.moving)


def _photos_of(
    one: SourceSettings, root: Path, photos: PhotoCache, settings: MixtureSettings
) -> PairDataset | Rehazed | ClearPhotos:
    path, hold_back = root / one.path, 0.0 if one.moving else settings.hold_back
    shared = {known.name: getattr(settings.augment, known.name) for known in fields(Augment)}
    mixed = {key: value for key, value in (shared | one.augment).items() if value is not None}
    augment: Augment = _build(Augment, mixed, f"the augment table of the source {one.path}")
    if one.kind == "pairs":
        return PairDataset(all_pairs(path), photos, augment, hold_back)
    if one.kind == "rehazed":
        return Rehazed(all_pairs(path), photos, augment, hold_back, one.haze)
    if one.kind == "clear":
        return ClearPhotos(photos_in(path), photos, augment, hold_back, one.match)
    if one.kind == "rgbd":
        haze = None if one.haze == HazeSettings() else one.haze
        return RGBD(*rgbd_in(path), photos, augment, hold_back, haze, match=one.match)
    if one.weather == "haze":
        fog, paths, folder = _shared_photos(root, one.fog, hold_back), photos_in(path), one.depths or settings.depths
        depths = depths_of(paths, root, root / folder, required=one.depths is not None) if folder and not fog else {}
        validated = one.validate is not None
        return Hazy(paths, photos, augment, hold_back, one.haze, fog, depths, validated=validated, match=one.match)
    streaks = _shared_photos(root, one.streaks, hold_back)
    return Rainy(photos_in(path), photos, augment, hold_back, one.rain, streaks, match=one.match)


def _shared_photos(root: Path, path: str | None, hold_back: float) -> list[Pair]:
    """The pairs that lend their weather to other photos; those of scenes that are held back stay out of training."""
    return split_holdout(all_pairs(root / path), scene_of_pair, hold_back)[0] if path else []


def _build(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from a TOML table, strictly: unknown keys and wrong shapes are BadSettings."""
    if not isinstance(table, Mapping):
        raise BadSettings(f"{where} must be a table, not {table!r}")
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    for key in table:
        if key not in known:
            raise BadSettings(str(UnknownName(f"setting of {where}", key, known)))
    try:
        return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in table.items()})
    except TypeError as error:
        raise BadSettings(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise BadSettings(f"{where} must be a list, not {value!r}")
        if parts[-1] is Ellipsis:
            return tuple(_value(parts[0], one, f"{where}[{n}]") for n, one in enumerate(value))
        if len(parts) != len(value):
            raise BadSettings(f"{where} needs {len(parts)} values, not {len(value)}")
        return tuple(_value(part, one, where) for part, one in zip(parts, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise BadSettings(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


# Which photos a run has learned from and which it held back, told from its settings: nothing is decoded.

CLEAR_SUFFIX = " (clear)"
"""Behind the name of a set of clear photos, each its own partner."""


@dataclass(frozen=True)
class HoldoutDivision:
    """The photos of a run's sources."""

    trained: frozenset[Path]
    """Files that were trained on."""
    held: dict[str, list[Pair]]
    """Set -> the pairs kept out of training; clear photos are their own partners."""


def divide_holdout(sources: Sequence[Mapping[str, Any]], root: str | Path, hold_back: float) -> HoldoutDivision:
    """What `[[data.sources]]` tables (kind, path relative to `root`, fog, streaks) leave out, as training does it.

    Without any source, `root` itself is a folder of pairs. Raises BadFolder where a source is not there.
    """
    root = Path(root)
    trained: set[Path] = set()
    held: dict[str, list[Pair]] = {}
    for source in sources or ({"kind": "pairs", "path": "."},):
        path = root / source["path"]
        if not path.is_dir():
            raise BadFolder(f"{path} is not there: the sources of a run lie below its data folder (--data)")
        name = path.resolve().name if source["path"] == "." else Path(source["path"]).as_posix()
        if source["kind"] in ("pairs", "rehazed"):
            seen, kept = split_holdout(all_pairs(path), scene_of_pair, hold_back)
            trained |= {photo for pair in seen for photo in (pair.degraded, pair.clear)}
            held |= _by_set(path, name, {pair.degraded for pair in kept})
        elif source["kind"] == "rgbd":
            used, left = split_holdout(photos_in(path / "clear"), block_of_photo, hold_back)
            used, left = (matching(some, source.get("match", ())) for some in (used, left))
            trained |= set(used)
            held[f"{name}/clear{CLEAR_SUFFIX}"] = [Pair(photo, photo, photo.stem) for photo in left]
        else:
            photos = photos_in(path)
            if source["kind"] == "synthetic":
                photos = [photo for photo in photos if not photo.stem.endswith(DISPARITY)]
            used, left = split_holdout(photos, scene_of_photo, hold_back)
            used, left = (matching(some, source.get("match", ())) for some in (used, left))
            trained |= set(used)
            for lent in (source.get("fog"), source.get("streaks")):
                if lent:  # pairs whose weather is laid over these photos
                    seen, _ = split_holdout(all_pairs(root / lent), scene_of_pair, hold_back)
                    trained |= {photo for pair in seen for photo in (pair.degraded, pair.clear)}
            # sources of one folder that differ in `match` add to one set
            known = {pair.clear for pair in held.get(name + CLEAR_SUFFIX, ())}
            held.setdefault(name + CLEAR_SUFFIX, []).extend(
                Pair(one, one, one.stem) for one in left if one not in known
            )
    return HoldoutDivision(frozenset(trained), {name: pairs for name, pairs in held.items() if pairs})


def _by_set(path: Path, name: str, kept: set[Path]) -> dict[str, list[Pair]]:
    """The pairs whose degraded photo is in `kept`; where a folder holds several sets (light, heavy), set by set."""
    sets = find_sets(path)
    named = {name: next(iter(sets.values()))} if len(sets) == 1 else {_below(name, one): p for one, p in sets.items()}
    return {one: [pair for pair in pairs if pair.degraded in kept] for one, pairs in named.items()}


def _below(name: str, one: str) -> str:
    # two degraded sides of one folder are named after it already
    return one if one.split("/")[0] == Path(name).name else f"{name}/{one}"
