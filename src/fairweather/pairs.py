"""Pairs of degraded and clear photos in folders.

A *set* is a folder with a degraded and a clear subfolder (`SIDES`), or one folder whose file names state the side
(`01_hazy.png` and `01_GT.png`, as in NH-HAZE). Two photos are a pair if their names are equal without the suffix; else
if they are equal without a word for the side at either end (`norain-1` and `rain-1`); else if they are equal without
numbers after underscores (RESIDE: `1400_1` and `1400`, `0001_0.8_0.2` and `0001`). Several degraded photos may share a
clear one. A photo without a partner, or with two, is an error before any work starts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairweather.errors import BadFolder
from fairweather.images.io import SUFFIXES

SIDES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("hazy", "haze", "foggy"), ("gt", "clear", "clean", "ground_truth")),
    (("degraded",), ("clear", "clean", "gt")),
    (("input",), ("target", "gt", "ground_truth")),
    (("rain", "rainy", "rainy_image"), ("norain", "clear", "clean", "gt", "ground_truth")),
    (("light", "heavy"), ("clear", "norain")),
    (("a",), ("b",)),
)
"""(names of the degraded folder, names of the clear folders that it is paired with), in any case."""

DEPTH = 2
"""Levels below a folder of sets that are searched for sets."""

_DEGRADED_WORDS = ("hazy", "haze", "foggy", "degraded", "input", "rain", "rainy")
_CLEAR_WORDS = ("gt", "clear", "clean", "target", "norain")
_NUMBERS = re.compile(r"_[0-9]+(\.[0-9]+)?$")


def _word(words: Iterable[str]) -> re.Pattern[str]:
    any_word = "|".join(words)
    return re.compile(rf"^(?:{any_word})[-_ ]|[-_ ](?:{any_word})$")


_DEGRADED, _CLEAR, _EITHER = _word(_DEGRADED_WORDS), _word(_CLEAR_WORDS), _word(_DEGRADED_WORDS + _CLEAR_WORDS)


@dataclass(frozen=True)
class Pair:
    """A degraded photo and its clear version."""

    degraded: Path
    clear: Path
    name: str
    """The degraded photo's path in its set, without suffix; unique."""


@dataclass(frozen=True)
class Fault:
    """Why some photos of a set are not pairs."""

    message: str
    """The message of the BadFolder that `find_sets` raises."""
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Surveyed:
    """A set, or one degraded side of it: its valid pairs, sorted, and what is wrong with the other photos."""

    name: str
    folder: Path
    pairs: list[Pair]
    faults: list[Fault]


def find_pairs(folder: str | Path) -> list[Pair]:
    """Return all pairs of a single set, sorted by name.

    Args:
        folder: the set, or a folder with one set. If two degraded sides share a clear one (`light`, `heavy`), the
            names begin with the side.

    Raises:
        BadFolder: there is no set or more than one (`train` and `test` are never mixed), or a photo has no partner or
            several.
    """
    folder = Path(folder)
    sets = _set_folders(folder)
    if len(sets) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in sets)
        raise BadFolder(f"{folder} contains {len(sets)} sets of pairs where one is needed: name one of {names}")
    sides = {one.name.rpartition("/")[2]: _valid_pairs(one) for one in _survey(sets[0], folder.name)}
    if len(sides) == 1:
        return next(iter(sides.values()))
    return [Pair(p.degraded, p.clear, f"{side}/{p.name}") for side, pairs in sides.items() for p in pairs]


def find_sets(folder: str | Path) -> dict[str, list[Pair]]:
    """Return every set in a folder: name -> pairs, both sorted.

    Args:
        folder: a set, or a folder of sets (down to `DEPTH` levels below it). A set is named by its path below `folder`;
            with two degraded sides it becomes two sets, e.g. `rain100/light` and `rain100/heavy`.

    Raises:
        BadFolder: there is no set, or a photo has no partner or several.
    """
    folder = Path(folder)
    found = [one for path in _set_folders(folder) for one in _survey(path, _name(path, folder))]
    return {one.name: _valid_pairs(one) for one in sorted(found, key=lambda one: one.name)}


def survey(folder: str | Path) -> list[Surveyed]:
    """Return every set that `find_sets` would find, sorted by name, with its faults instead of errors; may be empty.

    Raises:
        BadFolder: `folder` is not a folder.
    """
    folder = Path(folder)
    found = [one for path in _walk(folder) for one in _survey(path, _name(path, folder))]
    return sorted(found, key=lambda one: one.name)


def _name(path: Path, folder: Path) -> str:
    return path.resolve().name if path == folder else path.relative_to(folder).as_posix()


def _survey(path: Path, name: str) -> list[Surveyed]:
    try:
        sides = _pairs_by_side(path)
    except BadFolder as error:
        return [Surveyed(name, path, [], [Fault(str(error), (path,))])]
    return [
        Surveyed(f"{name}/{side}" if len(sides) > 1 else name, path, pairs, faults)
        for side, (pairs, faults) in sides.items()
    ]


def _valid_pairs(surveyed: Surveyed) -> list[Pair]:
    if surveyed.faults:
        raise BadFolder(surveyed.faults[0].message)
    return surveyed.pairs


def pictures(folder: str | Path) -> list[Path]:
    """Return every picture in a folder and below, sorted, without hidden files.

    Raises:
        BadFolder: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder: give the path of an existing one")
    return sorted(path for path in folder.rglob("*") if _is_picture(path, folder))


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _set_folders(folder: Path) -> list[Path]:
    found = _walk(folder)
    if not found:
        raise BadFolder(
            f"{folder} contains no pairs: put the photos into two folders in it, e.g. hazy and clear, rain and norain, "
            "input and target, or A and B"
        )
    return found


def _walk(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder: give the path of a set of pairs or of a folder of sets")
    found, level = [], [folder]
    for _ in range(DEPTH + 1):
        below = []
        for path in level:
            if _is_set(path):
                found.append(path)
            else:
                below += sorted(child for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
        level = below
    return sorted(found)


def _is_set(folder: Path) -> bool:
    try:
        return bool(_sides(folder)) or _is_flat(folder)
    except BadFolder:
        return True  # two clear sides: an error when its pairs are read


def _sides(folder: Path) -> dict[Path, Path]:
    """Return the degraded sides of a set, each with its clear side; empty if `folder` is not a set."""
    children = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    found: dict[Path, Path] = {}
    for degraded_names, clear_names in SIDES:
        clear = [children[name] for name in clear_names if name in children]
        for name in degraded_names:
            if name in children and clear:
                if len(clear) > 1:
                    both = " and ".join(path.name for path in clear)
                    raise BadFolder(f"{folder}: {both} could both be the clear side of {name}: rename or move one")
                found[children[name]] = clear[0]
    return found


def _is_flat(folder: Path) -> bool:
    """Whether every picture directly in `folder` names its side, and both sides exist."""
    stems = [path.stem.lower() for path in folder.iterdir() if _is_picture(path, folder)]
    degraded = [bool(_DEGRADED.search(stem)) for stem in stems]
    clear = [bool(_CLEAR.search(stem)) for stem in stems]
    return any(degraded) and any(clear) and all(d != c for d, c in zip(degraded, clear, strict=True))


def _pairs_by_side(folder: Path) -> dict[str, tuple[list[Pair], list[Fault]]]:
    sides = _sides(folder)
    if sides:
        return {d.name: _match(folder, d, pictures(d), c, pictures(c)) for d, c in sorted(sides.items())}
    photos = sorted(path for path in folder.iterdir() if _is_picture(path, folder))
    degraded = [path for path in photos if _DEGRADED.search(path.stem.lower())]
    clear = [path for path in photos if not _DEGRADED.search(path.stem.lower())]
    return {folder.name: _match(folder, folder, degraded, folder, clear)}


def _key(path: Path, side: Path) -> str:
    return (path.relative_to(side).parent / path.stem).as_posix().lower()


def _bare(key: str) -> str:
    """Remove a word for the side at either end of the last part of a name."""
    parent, _, stem = key.rpartition("/")
    return f"{parent}/{_EITHER.sub('', stem)}"


def _candidates(key: str, exact: dict[str, list[Path]], bare: dict[str, list[Path]]) -> list[Path]:
    if key in exact:
        return exact[key]
    key = _bare(key)
    while key not in bare and _NUMBERS.search(key):
        key = _NUMBERS.sub("", key)
    return bare.get(key, [])


def _match(
    folder: Path, degraded_side: Path, degraded: list[Path], clear_side: Path, clear: list[Path]
) -> tuple[list[Pair], list[Fault]]:
    for side, photos in ((degraded_side, degraded), (clear_side, clear)):
        if not photos:
            return [], [Fault(f"{side} contains no pictures, but is one side of the set {folder}: add them", (side,))]
    exact, bare, own = (defaultdict[str, list[Path]](list) for _ in range(3))
    for path in clear:
        exact[_key(path, clear_side)].append(path)
        bare[_bare(_key(path, clear_side))].append(path)
    for path in degraded:
        own[_key(path, degraded_side)].append(path)
    partners = {path: _candidates(_key(path, degraded_side), exact, bare) for path in degraded}
    used = {path for found in partners.values() for path in found}
    unmatched = [path for path, found in partners.items() if not found] + [path for path in clear if path not in used]
    ambiguous = [path for path, found in partners.items() if len(found) > 1]
    duplicates = [path for found in own.values() if len(found) > 1 for path in found]
    faults = [
        *_fault(
            folder,
            unmatched,
            "have no partner on the other side",
            "add the missing photos, rename these, or move them elsewhere",
        ),
        *_fault(folder, ambiguous, "match more than one clear photo", "keep one clear photo of each name"),
        *_fault(folder, duplicates, "share a name and differ only in their suffix", "keep one of each name"),
    ]
    pairs, excluded = [], set(duplicates)
    for path, found in partners.items():
        if len(found) == 1 and path not in excluded:
            name = (path.relative_to(degraded_side).parent / path.stem).as_posix()
            pairs.append(Pair(path, found[0], name))
    return sorted(pairs, key=lambda pair: pair.name), faults


def _fault(folder: Path, photos: list[Path], what: str, remedy: str) -> list[Fault]:
    if not photos:
        return []
    first = ", ".join(path.relative_to(folder).as_posix() for path in photos[:3])
    more = f" and {len(photos) - 3} more" if len(photos) > 3 else ""
    return [Fault(f"{folder}: {len(photos)} of its photos {what}: {first}{more}: {remedy}", tuple(photos))]
