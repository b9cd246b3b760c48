"""What the audit can find: one line a kind, with how bad it is, what it is called and what to do about it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import images
from fairweather.data.datasets import RESIDE_BORDER, PhotoPixels, to_eight_bits
from fairweather.data.image_matching import (
    MIN_RESPONSE,
    MIRROR,
    Detail,
    PixelFacts,
    correlation,
    part_of,
    pixel_facts,
    relation,
    same_view,
)
from fairweather.data.synthetic import DISPARITY
from fairweather.errors import BadFolder, BadImage, FairweatherError, MissingExtra
from fairweather.images.codecs import Header, sniff
from fairweather.images.formats import FORMATS
from fairweather.images.io import SUFFIXES
from fairweather.pairs import SIDES, Pair, Surveyed, pictures, survey

SEVERITIES = ("error", "warning", "note")


class FindingKind(NamedTuple):
    severity: str
    """error: training refuses it, or a score on it means nothing; warning: look at it; note: good to know."""
    title: str
    remedy: str


FINDING_KINDS = MappingProxyType(
    {
        "unreadable": FindingKind("error", "cannot be read", "get a whole copy, or take it out"),
        "partner": FindingKind("error", "no pairs can be made of", "rename, add or take out what is named"),
        "size": FindingKind(
            "error", "pairs whose two sides differ in size", "crop or resize one side, or take the pair out"
        ),
        "wrong": FindingKind(
            "error", "pairs that show two different scenes", "find the right partner, or take the pair out"
        ),
        "mirrored": FindingKind("error", "pairs with one side mirrored or turned", "turn it back"),
        "leak": FindingKind(
            "error", "the same picture on both sides of a split", "keep it on one: its score is worth nothing"
        ),
        "unlike": FindingKind(
            "warning",
            "pairs whose two sides have no detail in common",
            "look at them: another scene, one side turned, or no detail left",
        ),
        "shifted": FindingKind(
            "warning", "pairs whose two sides are shifted", "align them, or take them out: losses blur"
        ),
        "view": FindingKind(
            "warning", "the same view on both sides of a split", "scores on it say little of new places"
        ),
        "copy": FindingKind("warning", "the same picture more than once", "keep one: it weighs double"),
        "same": FindingKind(
            "warning", "pairs whose two sides are the same picture", "nothing can be learned from these"
        ),
        "border": FindingKind("warning", "a frame of one colour", "crop it away: a network learns to draw it"),
        "blank": FindingKind("warning", "a single colour all over", "take it out"),
        "grey": FindingKind("warning", "no colour", "take these out where the other photos have colour"),
        "inks": FindingKind("warning", "CMYK, converted to RGB without its profile", "save it as RGB, and look at it"),
        "see-through": FindingKind(
            "warning", "transparent pixels; what lies beneath them is used", "flatten it on a background of your choice"
        ),
        "tiny": FindingKind(
            "warning", "smaller than a training crop, and enlarged to it", "lower --crop, or take these out"
        ),
        "lonely": FindingKind(
            "warning", "a degraded side without a clear one beside it", "add it, or rename one: clear, gt"
        ),
        "alpha": FindingKind("note", "an alpha channel, which is ignored", "nothing, if nothing is transparent"),
        "palette": FindingKind("note", "a palette, converted to RGB", "nothing; its few colours make steps in skies"),
        "deep": FindingKind("note", "16 bits a channel, rounded to 8 for training", "nothing"),
        "pages": FindingKind("note", "several pictures in one file; the first is used", "save the others as files"),
        "misnamed": FindingKind("note", "another format than its suffix says; read all the same", "rename it"),
        "trimmed": FindingKind("note", "RESIDE's border of 10 px, cut off the clear side", "nothing"),
        "ignored": FindingKind(
            "note", "pictures that are left out for their suffix", "save them as JPEG or PNG, or rename"
        ),
    }
)


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    kind: str
    """A key of KINDS."""
    files: tuple[Path, ...]
    what: str
    """What is so about these files, in a few words; empty where the kind says it all."""
    remedy: str = ""
    """Where it is another than the kind's."""

    @property
    def severity(self) -> str:
        return FINDING_KINDS[self.kind].severity

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        kind = FINDING_KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "files": [path.as_posix() for path in self.files],
            "what": self.what or kind.title,
            "remedy": self.remedy or kind.remedy,
        }


# The fast part of the audit: what names and headers tell. No pixel is decoded; `train` does this before it starts.

Headers = Mapping[Path, Header]


def read_headers(photos: Iterable[Path], crop: int) -> tuple[dict[Path, Header], list[Finding]]:
    """The headers of all that can be read, and what they tell. `crop`: side of the training crops in pixels."""
    headers: dict[Path, Header] = {}
    findings: list[Finding] = []
    for path in photos:
        try:
            header = headers[path] = images.header(path)
        except (BadImage, MissingExtra) as error:
            findings.append(unreadable(path, error))
            continue
        if header.frames > 1 and header.format not in ("TIFF", "HEIF"):
            del headers[path]
            findings.append(Finding("unreadable", (path,), f"an animation of {header.frames} frames", "save one frame"))
            continue
        findings += _describe_header(path, header, crop)
    return headers, findings


def unreadable(path: Path, error: Exception) -> Finding:
    """A finding of an error that names the file, says what, and after a semicolon the remedy."""
    what, _, remedy = " ".join(str(error).split()).removeprefix(f"{path}: ").partition("; ")
    return Finding("unreadable", (path,), what, remedy)


def _describe_header(path: Path, header: Header, crop: int) -> list[Finding]:
    said = {
        "grey": header.grey,
        "inks": header.inks,
        "alpha": header.alpha,
        "palette": header.palette,
        "deep": header.deep,
    }
    found = [Finding(kind, (path,), "") for kind, so in said.items() if so]
    if header.frames > 1:
        found.append(Finding("pages", (path,), f"{header.frames} pictures"))
    if min(header.width, header.height) < crop:
        found.append(Finding("tiny", (path,), f"{header.width} x {header.height}, the crop is {crop}"))
    if FORMATS[path.suffix.lower()] != header.format:
        found.append(Finding("misnamed", (path,), f"holds {header.format}"))
    return found


def compare_sizes(pairs: Iterable[Pair], headers: Headers) -> list[Finding]:
    """Pairs that training cannot take, or takes after trimming; those of which a side is unreadable are left out."""
    findings: dict[tuple[Path, ...], Finding] = {}
    for pair in pairs:
        if pair.degraded not in headers or pair.clear not in headers:
            continue
        degraded, clear = headers[pair.degraded], headers[pair.clear]
        files = (pair.degraded, pair.clear)
        if (degraded.width, degraded.height) == (clear.width, clear.height):
            continue
        if trimmed(degraded, clear):
            findings[pair.clear,] = Finding("trimmed", (pair.clear,), f"{clear.width} x {clear.height}")
        else:
            findings[files] = Finding("size", files, _difference(degraded, clear))
    return list(findings.values())


def trimmed(degraded: Header, clear: Header) -> bool:
    """Whether the clear side is larger by RESIDE's border, which training cuts off."""
    more = 2 * RESIDE_BORDER
    return (clear.width, clear.height) == (degraded.width + more, degraded.height + more)


def _difference(degraded: Header, clear: Header) -> str:
    sizes = f"{degraded.width} x {degraded.height} and {clear.width} x {clear.height}"
    if (degraded.width, degraded.height) == (clear.height, clear.width):
        return f"{sizes}: one is turned by 90 degrees"
    wider, higher = clear.width / degraded.width, clear.height / degraded.height
    if abs(wider / higher - 1) < 0.01:
        return f"{sizes}: the same shape, scaled by {wider:.3g}"
    return f"{sizes}: another shape, so one was cropped or squeezed"


def disparity_maps(photos: Iterable[Path]) -> set[Path]:
    """Disparity maps beside their photos: data, but no photos."""
    photos = list(photos)
    stems = {path.with_suffix("") for path in photos}
    return {
        path
        for path in photos
        if path.stem.endswith(DISPARITY) and path.with_name(path.stem.removesuffix(DISPARITY)) in stems
    }


def check_before_training(folders: Iterable[str], photos: Iterable[Path], pairs: Iterable[Pair], crop: int) -> str:
    """What headers tell of the photos that a run is to learn from: one line of warnings, "" where there are none.

    `folders`: what to hand to `check-data` for all of it. Raises BadFolder on errors, which names the first few.
    """
    told = " and ".join(f"`fairweather check-data {folder}`" for folder in folders)
    wanted = list(dict.fromkeys(photos))
    maps = disparity_maps(wanted)
    headers, findings = read_headers(wanted, crop)
    findings += compare_sizes(pairs, headers)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = "; ".join(f"{' and '.join(map(str, one.files))}: {one.what}" for one in errors[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        raise BadFolder(f"{len(errors)} of the photos or pairs cannot be trained on: {first}{more}; {told} lists all")
    kinds = Counter(one.kind for one in findings if one.severity == "warning" and not maps & {*one.files})
    words = {"grey": "without colour", "inks": "in CMYK", "tiny": f"smaller than the crop of {crop}"}
    counts = ", ".join(f"{number} {words[kind]}" for kind, number in kinds.items())
    return f"photos: {counts}; {told} says which" if counts else ""


# Pictures that are there twice: recompressed, resized or mirrored copies, and the same view taken at another time.
#
# Candidates come from the perceptual hashes (one matrix product for all pairs of photos); each is then checked on the
# pixels, so that two blue skies over two green meadows are not called copies.

COPY_HASH, SAME_PICTURE = 0.8, 0.88
"""Products of hashes from which on, and correlations of thumbnails' detail above which, two photos are copies."""
VIEW_HASH, SAME_VIEW = 0.5, 0.15
"""The same for views: the second is the response of phase correlation (`alignment.same_view`)."""
_NEAREST = 8
"""Photos of the other split that a photo is compared with, to see whether they show the same view."""
_BLOCK = 1024


@dataclass(frozen=True)
class Fingerprint:
    """A photo in the search."""

    path: Path
    looks: PixelFacts
    scene: Path
    """The clear photo that it belongs to, or itself: versions of one scene are no copies."""
    split: str
    """train, test, ..., or "" outside of any split."""

    @property
    def degraded(self) -> bool:
        return self.scene != self.path


class Match(NamedTuple):
    product: float
    one: int
    other: int
    mirrored: bool


def find_copies(photos: Sequence[Fingerprint], read: Callable[[Path], PhotoPixels]) -> list[Finding]:
    """Copies among the photos, and views on both sides of a split. `read` gives the few that are looked at again."""
    photos = [photo for photo in photos if not photo.looks.blank]
    clear = [photo for photo in photos if not photo.degraded]
    groups = _groups(clear, {})
    # of two scenes that are copies, the degraded versions are not told again
    known = {photo.scene: number for number, (group, _) in enumerate(groups) for photo in group}
    groups += _groups(photos, known)
    findings = [_describe(group, mirrored) for group, mirrored in groups]
    copied = {photo.path: number for number, (group, _) in enumerate(groups) for photo in group}
    for one, other, response in _views(clear, read):
        if one not in copied or copied[one] != copied.get(other):
            findings.append(Finding("view", (one, other), f"likeness {response:.2f} of 1"))
    return findings


def thumb_detail(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A thumbnail's detail over its local strength: what two photos of like composition do not share."""
    grey = thumb.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    return np.asarray(fine / (cv2.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6)) + 2), dtype=np.float32)


def _groups(photos: Sequence[Fingerprint], known: Mapping[Path, Hashable]) -> list[tuple[list[Fingerprint], bool]]:
    """Copies of one another, and whether there are mirrored ones. `known`: scenes that are known to be the same."""
    detail = lru_cache(maxsize=4096)(lambda at: thumb_detail(photos[at].looks.thumb))
    parent = list(range(len(photos)))
    mirrored: set[int] = set()

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for _, one, other, mirror in _matches(photos, COPY_HASH, mirrors=True):
        first, second = photos[one].scene, photos[other].scene
        if known.get(first, first) == known.get(second, second) or root(one) == root(other):
            continue
        there = detail(other)[:, ::-1] if mirror else detail(other)
        if correlation(detail(one), there) >= SAME_PICTURE:
            parent[root(other)] = root(one)
            mirrored |= {one, other} if mirror else set()
    groups = defaultdict[int, list[int]](list)
    for at in range(len(photos)):
        groups[root(at)].append(at)
    return [([photos[at] for at in group], bool(mirrored & {*group})) for group in groups.values() if len(group) > 1]


def _describe(group: Sequence[Fingerprint], mirrored: bool) -> Finding:
    splits = sorted({photo.split for photo in group} - {""})
    what = ["in " + " and ".join(splits)] if len(splits) > 1 else []
    what += ["mirrored"] if mirrored else []
    return Finding("leak" if len(splits) > 1 else "copy", tuple(photo.path for photo in group), ", ".join(what))


def _views(photos: Sequence[Fingerprint], read: Callable[[Path], PhotoPixels]) -> Iterator[tuple[Path, Path, float]]:
    splits = {photo.split for photo in photos} - {""}
    if len(splits) < 2:
        return
    nearest = defaultdict[int, list[Match]](list)
    for match in _matches(photos, VIEW_HASH, across=True):
        nearest[match.one].append(match)
        nearest[match.other].append(match)
    tried = {match for found in nearest.values() for match in sorted(found, reverse=True)[:_NEAREST]}
    kept = lru_cache(maxsize=64)(read)
    for match in sorted(tried, key=lambda match: match[1:]):
        one, other = photos[match.one].path, photos[match.other].path
        response = same_view(kept(one), kept(other))
        if response >= SAME_VIEW:
            yield one, other, response


def _matches(
    photos: Sequence[Fingerprint], least: float, *, mirrors: bool = False, across: bool = False
) -> Iterator[Match]:
    """Photos whose hashes have a product of at least `least`: each two once, and once more where one is mirrored.

    `across`: only where both are in a split, and not in the same one.
    """
    if len(photos) < 2:
        return
    hashes = np.stack([photo.looks.waves for photo in photos])
    names, split = np.unique([photo.split for photo in photos], return_inverse=True)
    named = (names != "")[split]
    numbers = np.arange(len(photos))
    for start in range(0, len(photos), _BLOCK):
        block = slice(start, start + _BLOCK)
        wanted = numbers[block, None] < numbers
        if across:
            wanted &= (split[block, None] != split) & named[block, None] & named
        for mirrored, others in ((False, hashes), (True, hashes * MIRROR))[: 1 + mirrors]:
            products = hashes[block] @ others.T
            for row, other in zip(*np.nonzero(wanted & (products >= least)), strict=True):
                yield Match(float(products[row, other]), start + int(row), int(other), mirrored)


# One scene, decoded: a clear photo with its degraded versions, or a photo on its own.

_ALIKE = 2
"""Levels of 255, averaged over a hundredth of the side, that two pictures that look the same may differ by."""


@dataclass(frozen=True)
class Scene:
    """What is decoded together."""

    clear: Path
    pairs: tuple[Pair, ...] = ()


@dataclass
class Examined:
    """What a scene showed."""

    looks: dict[Path, PixelFacts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unlike: list[tuple[Pair, bool]] = field(default_factory=list)
    """Pairs that have no detail in common, and whether one side has none at all."""
    photos: int = 0
    """Photos of the scene."""


def examine(scene: Scene, headers: Headers) -> Examined:
    """Decodes the scene's photos and compares them; what cannot be decoded is a finding."""
    done = Examined(photos=1 + len(scene.pairs))
    clear = _look_at(scene.clear, headers, done)
    sizes = compare_sizes(scene.pairs, headers)
    for pair in scene.pairs:
        degraded = _look_at(pair.degraded, headers, done)
        if degraded is None or clear is None:
            continue
        here = clear
        if trimmed(headers[pair.degraded], headers[pair.clear]):
            here = clear[RESIDE_BORDER:-RESIDE_BORDER, RESIDE_BORDER:-RESIDE_BORDER]
        if degraded.shape == here.shape:
            _compare(pair, degraded, here, done)
        else:
            sizes = [_explained(one, pair, degraded, clear) for one in sizes]
    done.findings += sizes
    done.findings += _frames(scene, done.looks)
    done.findings += _twins(scene, done.looks)
    return done


def read_pixels(path: Path) -> PhotoPixels:
    """H x W x 3 uint8, as training sees it."""
    return to_eight_bits(images.read(path).pixels)


def _look_at(path: Path, headers: Headers, done: Examined) -> PhotoPixels | None:
    try:
        photo = images.read(path)
        pixels = to_eight_bits(photo.pixels)
        looks = done.looks[path] = pixel_facts(pixels)
    except FairweatherError as error:
        done.findings.append(unreadable(path, error))
        return None
    except Exception as error:  # one photo, however odd, does not end the audit of thousands
        done.findings.append(Finding("unreadable", (path,), f"{type(error).__name__}: {error}"))
        return None
    if photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
        done.findings.append(Finding("see-through", (path,), ""))
    if looks.blank:
        done.findings.append(Finding("blank", (path,), ""))
    elif looks.colourless and not (path in headers and headers[path].grey):
        done.findings.append(Finding("grey", (path,), "red, green and blue are the same"))
    return pixels


def _compare(pair: Pair, degraded: PhotoPixels, clear: PhotoPixels, done: Examined) -> None:
    files = (pair.degraded, pair.clear)
    first, second = done.looks[pair.degraded], done.looks[pair.clear]
    if first.blank or second.blank:
        return
    if degraded.shape == clear.shape and np.array_equal(degraded, clear):
        done.findings.append(Finding("same", files, "pixel for pixel"))
        return
    found = relation(degraded, clear)
    if found.turn:
        done.findings.append(Finding("mirrored", files, f"the degraded one is {found.turn}"))
    elif found.response < MIN_RESPONSE:
        done.unlike.append((pair, found.flat))
    elif found.shifted:
        what = f"the degraded one lies {_moved(found.right, 'right', 'left')}, {_moved(found.down, 'down', 'up')}"
        done.findings.append(Finding("shifted", files, f"{what} (response {found.response:.2f} of 1)"))
    elif np.abs(first.thumb.astype(np.int16) - second.thumb).max() <= _ALIKE:
        done.findings.append(Finding("same", files, "no visible difference"))


def _moved(pixels: float, positive: str, negative: str) -> str:
    return f"{abs(pixels):.1f} px {positive if pixels > 0 else negative}"


def _explained(finding: Finding, pair: Pair, degraded: PhotoPixels, clear: PhotoPixels) -> Finding:
    """A finding of two sizes, with what the pixels tell of it."""
    if finding.files != (pair.degraded, pair.clear):
        return finding
    sides = (("degraded", degraded, clear), ("clear", clear, degraded))
    for name, smaller, larger in sides:
        place = part_of(smaller, larger)
        if place is not None:
            size = f"{degraded.shape[1]} x {degraded.shape[0]} and {clear.shape[1]} x {clear.shape[0]}"
            what = f"{size}: the {name} one is the other, cut out at ({place[0]}, {place[1]})"
            return replace(finding, what=what, remedy="cut the larger one alike")
    return finding


def _frames(scene: Scene, looks: Mapping[Path, PixelFacts]) -> list[Finding]:
    findings = []
    clear = looks.get(scene.clear)
    for path in (scene.clear, *(pair.degraded for pair in scene.pairs)):
        found = looks[path].frame if path in looks else None
        if found is None:
            continue
        alone = path != scene.clear and clear is not None and clear.frame is None
        if alone and sum(depth > 0 for depth in found) == 1:
            continue  # a dark wall at the edge, made flat by haze
        edges = ", ".join(f"{name} {depth}" for name, depth in found._asdict().items() if depth)
        findings.append(Finding("border", (path,), f"{edges} px"))
    return findings


def _twins(scene: Scene, looks: Mapping[Path, PixelFacts]) -> list[Finding]:
    """Degraded versions of the scene that are one and the same picture."""
    seen: dict[bytes, list[Path]] = {}
    for pair in scene.pairs:
        if pair.degraded in looks:
            seen.setdefault(looks[pair.degraded].digest, []).append(pair.degraded)
    return [Finding("copy", tuple(files), "pixel for pixel") for files in seen.values() if len(files) > 1]


MAX_PARTNERS = 50
"""Pairs for whose partner all others are searched."""


def find_partners(
    unlike: Sequence[tuple[Pair, bool]], clear: Iterable[Path], looks: Mapping[Path, PixelFacts]
) -> list[Finding]:
    """Of pairs that have no detail in common: what they are, and which clear photo would fit, if one does."""
    if not unlike:
        return []
    details = {path: thumb_detail(looks[path].thumb) for path in clear if path in looks}
    findings = []
    for number, (pair, flat) in enumerate(unlike):
        files = (pair.degraded, pair.clear)
        partner = None if flat or number >= MAX_PARTNERS else _partner(pair, details, looks)
        if partner is not None:
            findings.append(Finding("wrong", files, f"the degraded one fits {partner}", "rename it to match that one"))
        elif flat:
            findings.append(Finding("unlike", files, "one of them has hardly any detail"))
        else:
            findings.append(Finding("unlike", files, ""))
    return findings


def _partner(pair: Pair, details: Mapping[Path, Detail], looks: Mapping[Path, PixelFacts]) -> Path | None:
    own = thumb_detail(looks[pair.degraded].thumb)
    scores = {path: correlation(own, there) for path, there in details.items() if path != pair.clear}
    for path in sorted(scores, key=lambda path: -scores[path])[:3]:
        degraded, clear = read_pixels(pair.degraded), read_pixels(path)
        if scores[path] > 0.2 and degraded.shape == clear.shape:
            found = relation(degraded, clear)
            if found.response >= 2 * MIN_RESPONSE and not found.turn:
                return path
    return None


# What is wrong with a folder of training data, before a night of training finds out: `fairweather check-data`.

__all__ = ["Audit", "Finding", "FINDING_KINDS", "SEVERITIES", "audit", "check_before_training"]

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
        seen = _fingerprints(looks, pairs, _split_below(folder, "" if against is None else folder.resolve().name))
        if against is not None:
            there = {path: one for each in seconds for path, one in each.looks.items()}
            name = Path(against).resolve().name
            seen |= _fingerprints(
                there, [p for one in survey(against) for p in one.pairs], lambda path: f"{name} (--against)"
            )
        findings += find_copies(list(seen.values()), read_pixels)
    transparent = {finding.files for finding in findings if finding.kind == "see-through"}
    order = list(FINDING_KINDS)
    done.findings += [one for one in findings if one.kind != "alpha" or one.files not in transparent]
    done.findings.sort(key=lambda one: (order.index(one.kind), one.files))
    return done


def _fingerprints(
    looks: Mapping[Path, PixelFacts], pairs: Iterable[Pair], split: Callable[[Path], str]
) -> dict[Path, Fingerprint]:
    scene = {pair.degraded: pair.clear for pair in pairs}
    return {path: Fingerprint(path, one, scene.get(path, path), split(path)) for path, one in looks.items()}


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
