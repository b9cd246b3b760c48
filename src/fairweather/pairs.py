"""Which degraded photo belongs to which clear one: sets of pairs on disk, under the names that people give them.

A *set* is a folder with a degraded and a clear side (``SIDES``), or one folder in which every photo's own name says its
side (``01_hazy.png`` with ``01_GT.png``, as NH-HAZE comes). Two photos are a pair when their names are equal but for
the suffix; else when they are equal less a word for the side at either end (``norain-1`` with ``rain-1``); else when
they are equal less numbers behind underscores (RESIDE: ``1400_1`` with ``1400``, ``0001_0.8_0.2`` with ``0001``).
Several degraded photos may share a clear one. Whatever has no partner, or two, is an error before any work starts.
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
"""(names of the degraded side, names of the clear sides it goes with); upper and lower case are the same."""

DEPTH = 2
"""How many levels below a folder of sets a set may lie."""

_DEGRADED_WORDS = ("hazy", "haze", "foggy", "degraded", "input", "rain", "rainy")
_CLEAR_WORDS = ("gt", "clear", "clean", "target", "norain")
_NUMBERS = re.compile(r"_[0-9]+(\.[0-9]+)?$")


def _word(words: Iterable[str]) -> re.Pattern[str]:
    any_word = "|".join(words)
    return re.compile(rf"^(?:{any_word})[-_ ]|[-_ ](?:{any_word})$")


_DEGRADED, _CLEAR, _EITHER = _word(_DEGRADED_WORDS), _word(_CLEAR_WORDS), _word(_DEGRADED_WORDS + _CLEAR_WORDS)


@dataclass(frozen=True)
class Pair:
    """A degraded photo and what it should look like; ``name`` is the degraded one's without suffix, unique in a set."""

    degraded: Path
    clear: Path
    name: str


@dataclass(frozen=True)
class Fault:
    """Why some photos of a set are not pairs; ``message`` is what ``find_sets`` raises for it."""

    message: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Surveyed:
    """A set, or one degraded side of it: its sound pairs, sorted, and all that is wrong with the rest."""

    name: str
    folder: Path
    pairs: list[Pair]
    faults: list[Fault]


def find_pairs(folder: str | Path) -> list[Pair]:
    """All pairs of the one set that ``folder`` is or holds, sorted by name.

    Where two degraded sides share a clear one (``light`` and ``heavy``), the names begin with the side. Raises
    BadFolder when there is no set, more than one (a folder that holds ``train`` and ``test`` is never mixed silently),
    or when a photo has no partner or several.
    """
    folder = Path(folder)
    sets = _set_folders(folder)
    if len(sets) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in sets)
        raise BadFolder(f"{folder} holds {len(sets)} sets of pairs where one is needed; name one of them: {names}")
    sides = {one.name.rpartition("/")[2]: _sound(one) for one in _survey(sets[0], folder.name)}
    if len(sides) == 1:
        return next(iter(sides.values()))
    return [Pair(p.degraded, p.clear, f"{side}/{p.name}") for side, pairs in sides.items() for p in pairs]


def find_sets(folder: str | Path) -> dict[str, list[Pair]]:
    """Every set that ``folder`` is or holds (down to ``DEPTH`` levels below it): name -> pairs, both sorted.

    A set is named by its folder, relative to ``folder``; with two degraded sides it becomes two sets, ``rain100/light``
    and ``rain100/heavy``. Raises BadFolder as ``find_pairs`` does.
    """
    folder = Path(folder)
    found = [one for path in _set_folders(folder) for one in _survey(path, _name(path, folder))]
    return {one.name: _sound(one) for one in sorted(found, key=lambda one: one.name)}


def survey(folder: str | Path) -> list[Surveyed]:
    """Every set that ``find_sets`` would look at, sorted by name, its faults listed rather than raised; may be empty.

    Raises BadFolder where ``folder`` is none.
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


def _sound(surveyed: Surveyed) -> list[Pair]:
    if surveyed.faults:
        raise BadFolder(surveyed.faults[0].message)
    return surveyed.pairs


def pictures(folder: str | Path) -> list[Path]:
    """Every readable picture in ``folder`` and below, sorted; hidden files are left out. Raises BadFolder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder; give the path of an existing one")
    return sorted(path for path in folder.rglob("*") if _is_picture(path, folder))


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _set_folders(folder: Path) -> list[Path]:
    found = _walk(folder)
    if not found:
        raise BadFolder(
            f"{folder} holds no pairs: put the photos into two folders there, such as hazy and clear, rain and norain, "
            "input and target, or A and B"
        )
    return found


def _walk(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadFolder(f"{folder} is not a folder; give the path of a set of pairs or of a folder of sets")
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
        return True  # two clear sides: said where the pairs are looked for


def _sides(folder: Path) -> dict[Path, Path]:
    """The degraded sides of a set, each with its clear side; empty when ``folder`` is no set."""
    children = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    found: dict[Path, Path] = {}
    for degraded_names, clear_names in SIDES:
        clear = [children[name] for name in clear_names if name in children]
        for name in degraded_names:
            if name in children and clear:
                if len(clear) > 1:
                    both = " and ".join(path.name for path in clear)
                    raise BadFolder(f"{folder}: {both} could both be the clear side of {name}; rename or move one")
                found[children[name]] = clear[0]
    return found


def _is_flat(folder: Path) -> bool:
    """Whether every picture right in ``folder`` says its side in its own name, and both sides are there."""
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
    """The name less a word for its side at either end of its last part."""
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
            return [], [Fault(f"{side} holds no pictures; it is one side of the set {folder}", (side,))]
    exact, bare, own = (defaultdict[str, list[Path]](list) for _ in range(3))
    for path in clear:
        exact[_key(path, clear_side)].append(path)
        bare[_bare(_key(path, clear_side))].append(path)
    for path in degraded:
        own[_key(path, degraded_side)].append(path)
    partners = {path: _candidates(_key(path, degraded_side), exact, bare) for path in degraded}
    used = {path for found in partners.values() for path in found}
    alone = [path for path, found in partners.items() if not found] + [path for path in clear if path not in used]
    torn = [path for path, found in partners.items() if len(found) > 1]
    twins = [path for found in own.values() if len(found) > 1 for path in found]
    faults = [
        *_fault(
            folder, alone, "have no partner on the other side", "add the missing ones, rename them, or move these away"
        ),
        *_fault(folder, torn, "match more than one clear photo", "keep one clear photo of each name"),
        *_fault(folder, twins, "share a name and differ only in their suffix", "keep one of each name"),
    ]
    pairs, twice = [], set(twins)
    for path, found in partners.items():
        if len(found) == 1 and path not in twice:
            name = (path.relative_to(degraded_side).parent / path.stem).as_posix()
            pairs.append(Pair(path, found[0], name))
    return sorted(pairs, key=lambda pair: pair.name), faults


def _fault(folder: Path, photos: list[Path], what: str, remedy: str) -> list[Fault]:
    if not photos:
        return []
    first = ", ".join(path.relative_to(folder).as_posix() for path in photos[:3])
    more = f" and {len(photos) - 3} more" if len(photos) > 3 else ""
    return [Fault(f"{folder}: {len(photos)} of its photos {what}: {first}{more}; {remedy}", tuple(photos))]
