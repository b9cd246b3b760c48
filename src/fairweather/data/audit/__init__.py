"""What is wrong with a folder of training data, before a night of training finds out: `fairweather check-data`."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import cv2

from fairweather.data.audit.copies import Seen, find_copies
from fairweather.data.audit.findings import KINDS, SEVERITIES, Finding
from fairweather.data.audit.headers import check_before_training, compare_sizes, disparity_maps, read_headers
from fairweather.data.audit.looks import Looks
from fairweather.data.audit.scenes import Examined, Scene, examine, find_partners, read_pixels
from fairweather.images import SUFFIXES
from fairweather.images.decoding import sniff
from fairweather.pairs import SIDES, Pair, Surveyed, pictures, survey

__all__ = ["Audit", "Finding", "KINDS", "SEVERITIES", "audit", "check_before_training"]

Progress = Callable[[int, int], None]

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
"""Folder names -> the part of a split that lies there."""


@dataclass
class Audit:
    """All that was found, and what was looked at."""

    folder: Path
    sets: dict[str, int]
    """Set -> pairs."""
    photos: int
    alone: int
    """Photos that are in no pair."""
    findings: list[Finding] = field(default_factory=list)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "folder": self.folder.as_posix(),
            "sets": self.sets,
            "photos": self.photos,
            "alone": self.alone,
            "counts": {f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "kinds": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def audit(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    fast: bool = False,
    crop: int = 256,
    progress: Progress = lambda done, total: None,
) -> Audit:
    """Look for all kinds of faults (`findings.KINDS`) in pairs, sets of pairs or photos below `folder`.

    `against`: a second folder, none of whose pictures should be in the first. `fast`: names and headers alone.
    `crop`: side of the training crops in pixels. `progress` is told how many photos are done, and of how many.
    One bad photo is one finding. Raises BadFolder where a folder is none.
    """
    folder = Path(folder)
    everything, surveyed = pictures(folder), survey(folder)
    maps = disparity_maps(everything)
    photos = [path for path in everything if path not in maps]
    pairs = [pair for one in surveyed for pair in one.pairs]
    paired = {path for pair in pairs for path in (pair.degraded, pair.clear)}
    done = Audit(folder, {one.name: len(one.pairs) for one in surveyed}, len(photos), len(set(photos) - paired))
    headers, findings = read_headers(photos, crop)
    findings += [*_partners(surveyed), *_lonely(folder, photos, paired), *_left_out(folder)]
    findings += [finding for finding in read_headers(maps, 0)[1] if finding.kind == "unreadable"]
    if fast:
        findings += compare_sizes(pairs, headers)
    else:
        others = [] if against is None else pictures(against)
        scenes = _scenes(photos, pairs, headers)
        counted = _Counted(progress, len(headers) + len(others))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool, _one_thread():
            examined = list(pool.map(lambda scene: counted(examine(scene, headers)), scenes))
            seconds = list(pool.map(lambda path: counted(examine(Scene(path), {})), others))
        looks = {path: one for each in examined for path, one in each.looks.items()}
        unlike = [pair for each in examined for pair in each.unlike]
        findings += [finding for each in examined for finding in each.findings]
        findings += [finding for each in seconds for finding in each.findings if finding.kind == "unreadable"]
        findings += find_partners(unlike, {pair.clear for pair in pairs}, looks)
        strange = {pair.degraded for pair, _ in unlike}  # of another scene than their names say: told already
        looks = {path: one for path, one in looks.items() if path not in strange}
        seen = _seen(looks, pairs, _split_below(folder, "" if against is None else folder.resolve().name))
        if against is not None:
            there = {path: one for each in seconds for path, one in each.looks.items()}
            name = Path(against).resolve().name
            seen |= _seen(there, [p for one in survey(against) for p in one.pairs], lambda path: f"{name} (--against)")
        findings += find_copies(list(seen.values()), read_pixels)
    transparent = {finding.files for finding in findings if finding.kind == "see-through"}
    order = list(KINDS)
    done.findings += [one for one in findings if one.kind != "alpha" or one.files not in transparent]
    done.findings.sort(key=lambda one: (order.index(one.kind), one.files))
    return done


def _seen(looks: Mapping[Path, Looks], pairs: Iterable[Pair], split: Callable[[Path], str]) -> dict[Path, Seen]:
    scene = {pair.degraded: pair.clear for pair in pairs}
    return {path: Seen(path, one, scene.get(path, path), split(path)) for path, one in looks.items()}


def _scenes(photos: Iterable[Path], pairs: Iterable[Pair], readable: Container[Path]) -> list[Scene]:
    """All readable photos, each clear one with the degraded ones that belong to it."""
    versions = defaultdict[Path, list[Pair]](list)
    for pair in pairs:
        if pair.degraded in readable and pair.clear in readable:
            versions[pair.clear].append(pair)
    inside = {pair.degraded for found in versions.values() for pair in found}
    return [Scene(path, tuple(versions[path])) for path in photos if path in readable and path not in inside]


class _Counted:
    """Tells of progress as scenes come out of the threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done, self.lock = progress, total, 0, Lock()

    def __call__(self, examined: Examined) -> Examined:
        with self.lock:
            self.done += examined.photos
            self.progress(self.done, self.total)
        return examined


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV without threads of its own: there are as many of ours as processors."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _partners(surveyed: Iterable[Surveyed]) -> Iterator[Finding]:
    """What `pairs` refuses, in its own words."""
    faults = {fault.message: (fault, one) for one in surveyed for fault in one.faults}
    for message, (fault, one) in faults.items():
        what, _, remedy = message.removeprefix(f"{one.folder}: ").rpartition("; ")
        yield Finding("partner", fault.files, what.partition(": ")[0], remedy)


def _lonely(folder: Path, photos: Iterable[Path], paired: Container[Path]) -> Iterator[Finding]:
    """Folders called hazy or rainy whose photos are in no pair; a and b say too little by themselves."""
    names = {name for degraded, _ in SIDES for name in degraded if len(name) > 1} - {"input", "light", "heavy"}
    counts = Counter(path.parent for path in photos if path not in paired and path.parent != folder)
    for place, count in sorted(counts.items()):
        beside = {name.name.lower() for name in place.parent.iterdir()}
        clear = {name for degraded, clear in SIDES for name in clear if place.name.lower() in degraded}
        if place.name.lower() in names and not beside & clear:
            yield Finding("lonely", (place,), f"{count} photos")


def _left_out(folder: Path) -> Iterator[Finding]:
    """Files that are pictures by their first bytes, and are not looked at for their suffix."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() in SUFFIXES or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                format = sniff(file.read(64))
        except OSError:
            continue
        if format not in ("", "BMP", "PPM"):  # two bytes that begin a text, too
            yield Finding("ignored", (path,), format)


def _split_below(folder: Path, otherwise: str) -> Callable[[Path], str]:
    def split(path: Path) -> str:
        parts = path.relative_to(folder).parts[:-1]
        return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), otherwise)

    return split
