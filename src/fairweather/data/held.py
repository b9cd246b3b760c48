"""Which photos a run has learned from and which it held back, told from its settings: nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairweather.data.folders import all_pairs, photos_in, scene_of_pair, scene_of_photo, split
from fairweather.data.synthetic import DISPARITY, block_of_photo, matching
from fairweather.errors import BadFolder
from fairweather.pairs import Pair, find_sets

CLEAR = " (clear)"
"""Behind the name of a set of clear photos, each its own partner."""


@dataclass(frozen=True)
class Division:
    """The photos of a run's sources."""

    trained: frozenset[Path]
    """Files that were trained on."""
    held: dict[str, list[Pair]]
    """Set -> the pairs kept out of training; clear photos are their own partners."""


def divide(sources: Sequence[Mapping[str, Any]], root: str | Path, hold_back: float) -> Division:
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
            seen, kept = split(all_pairs(path), scene_of_pair, hold_back)
            trained |= {photo for pair in seen for photo in (pair.degraded, pair.clear)}
            held |= _by_set(path, name, {pair.degraded for pair in kept})
        elif source["kind"] == "rgbd":
            used, left = split(photos_in(path / "clear"), block_of_photo, hold_back)
            used, left = (matching(some, source.get("match", ())) for some in (used, left))
            trained |= set(used)
            held[f"{name}/clear{CLEAR}"] = [Pair(photo, photo, photo.stem) for photo in left]
        else:
            photos = photos_in(path)
            if source["kind"] == "synthetic":
                photos = [photo for photo in photos if not photo.stem.endswith(DISPARITY)]
            used, left = split(photos, scene_of_photo, hold_back)
            used, left = (matching(some, source.get("match", ())) for some in (used, left))
            trained |= set(used)
            for lent in (source.get("fog"), source.get("streaks")):
                if lent:  # pairs whose weather is laid over these photos
                    seen, _ = split(all_pairs(root / lent), scene_of_pair, hold_back)
                    trained |= {photo for pair in seen for photo in (pair.degraded, pair.clear)}
            # sources of one folder that differ in `match` add to one set
            known = {pair.clear for pair in held.get(name + CLEAR, ())}
            held.setdefault(name + CLEAR, []).extend(Pair(one, one, one.stem) for one in left if one not in known)
    return Division(frozenset(trained), {name: pairs for name, pairs in held.items() if pairs})


def _by_set(path: Path, name: str, kept: set[Path]) -> dict[str, list[Pair]]:
    """The pairs whose degraded photo is in `kept`; where a folder holds several sets (light, heavy), set by set."""
    sets = find_sets(path)
    named = {name: next(iter(sets.values()))} if len(sets) == 1 else {_below(name, one): p for one, p in sets.items()}
    return {one: [pair for pair in pairs if pair.degraded in kept] for one, pairs in named.items()}


def _below(name: str, one: str) -> str:
    # two degraded sides of one folder are named after it already
    return one if one.split("/")[0] == Path(name).name else f"{name}/{one}"
