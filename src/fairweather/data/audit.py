"""The audit of training data behind `fairweather check-data`: broken files, pairs that do not match, copies, borders.

`audit` decodes every photo; `check_before_training` reads headers only, and runs at the start of each training.
"""

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
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import images
from fairweather.data.datasets import RESIDE_BORDER, PhotoPixels, to_eight_bits
from fairweather.data.image_matching import (
    MIN_RESPONSE,
    MIRROR,
    PixelFacts,
    correlation,
    crop_position,
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

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: training rejects it, or scores on it are meaningless; warning: check it; note: for information."""
Headers = Mapping[Path, Header]


class FindingKind(NamedTuple):
    severity: Severity
    title: str
    remedy: str


FINDING_KINDS: Mapping[str, FindingKind] = MappingProxyType(
    {
        "unreadable": FindingKind("error", "cannot be read", "get a complete copy, or remove it"),
        "unpaired": FindingKind(
            "error", "photos without exactly one partner", "rename, add or remove the named photos"
        ),
        "size": FindingKind("error", "pairs of two sizes", "crop or resize one side, or remove the pair"),
        "different": FindingKind(
            "error", "pairs of two different scenes", "find the right partner, or remove the pair"
        ),
        "mirrored": FindingKind("error", "pairs with one side mirrored or rotated", "turn it back"),
        "leak": FindingKind(
            "error", "the same picture on both sides of a split", "remove it from one side: its score is meaningless"
        ),
        "dissimilar": FindingKind(
            "warning", "pairs without common detail", "check for different scenes, a rotated side, or a blank one"
        ),
        "shifted": FindingKind("warning", "pairs with one side shifted", "align them, or remove them: they cause blur"),
        "view": FindingKind(
            "warning", "the same view on both sides of a split", "scores on it say little about new places"
        ),
        "copy": FindingKind("warning", "the same picture more than once", "keep one, so that it counts once"),
        "same": FindingKind("warning", "pairs of identical pictures", "remove them: there is nothing to learn"),
        "border": FindingKind("warning", "a border of one colour", "crop it: otherwise the network learns to draw it"),
        "blank": FindingKind("warning", "a single colour", "remove it"),
        "grey": FindingKind("warning", "no colour", "remove these if the other photos have colour"),
        "cmyk": FindingKind(
            "warning", "CMYK, converted to RGB without its profile", "save it as RGB, and check its colours"
        ),
        "transparent": FindingKind(
            "warning", "transparent pixels, whose hidden colours are used", "flatten it on a background"
        ),
        "small": FindingKind(
            "warning", "photos smaller than a training crop, which are enlarged", "lower --crop, or remove these"
        ),
        "one-sided": FindingKind(
            "warning", "a degraded side without a clear side", "add it, or rename a folder to clear or gt"
        ),
        "alpha": FindingKind("note", "an alpha channel, which is ignored", "nothing to do if nothing is transparent"),
        "palette": FindingKind("note", "a palette, converted to RGB", "nothing to do, unless skies show banding"),
        "16-bit": FindingKind("note", "16 bits per channel, rounded to 8 for training", "nothing to do"),
        "pages": FindingKind(
            "note", "several pictures in one file; only the first is used", "save the others as separate files"
        ),
        "misnamed": FindingKind("note", "a suffix of another format, which is ignored", "rename it"),
        "trimmed": FindingKind("note", "RESIDE's border of 10 px, cropped from the clear side", "nothing to do"),
        "ignored": FindingKind("note", "pictures with an unsupported suffix", "save them as JPEG or PNG, or rename"),
    }
)
"""Name -> kind of finding, the most serious first."""

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
"""Name of a folder -> the part of a split in it."""

COPY_HASH, COPY_CORRELATION = 0.8, 0.88
"""Minimum product of hashes, and minimum correlation of the thumbnails' detail, of two copies."""
VIEW_HASH, VIEW_RESPONSE = 0.5, 0.15
"""Minimum product of hashes, and minimum response of phase correlation, of two photos of one view."""
VIEW_CANDIDATES = 8
"""Number of photos of the other split with which a photo is compared to find the same view."""
SAME_LEVELS = 2
"""Largest difference of the thumbnails, in levels of 255, of two pictures that look the same."""
MAX_PARTNERS = 50
"""Pairs for which the right partner is searched among all photos."""


@dataclass(frozen=True)
class Finding:
    """One finding."""

    kind: str
    """A key of FINDING_KINDS."""
    files: tuple[Path, ...]
    what: str = ""
    """Details in a few words; may be empty."""
    remedy: str = ""
    """How to fix it, if that differs from the kind's remedy."""

    @property
    def severity(self) -> Severity:
        return FINDING_KINDS[self.kind].severity

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        kind = FINDING_KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "files": [path.as_posix() for path in self.files],
            "what": self.what or kind.title,
            "remedy": self.remedy or kind.remedy,
        }


@dataclass
class Audit:
    """The result of an audit."""

    folder: Path
    sets: dict[str, int]
    """Set -> number of pairs."""
    photos: int
    unpaired: int
    """Photos in no pair."""
    findings: list[Finding] = field(default_factory=list)

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "folder": self.folder.as_posix(),
            "sets": self.sets,
            "photos": self.photos,
            "unpaired": self.unpaired,
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Search a folder of training data for all kinds of faults. A broken photo is a finding, not an error.

    Args:
        folder: pairs, a folder of sets of pairs, or photos.
        against: a second folder; its pictures should not be in the first.
        fast: read names and headers only.
        crop: side of the training crops in pixels.
        progress: called with the number of photos done and of all photos.

    Returns:
        The findings, the most serious kinds first.

    Raises:
        BadFolder: `folder` or `against` is not a folder.
    """
    folder = Path(folder)
    everything, surveyed = pictures(folder), survey(folder)
    maps = disparity_maps(everything)
    photos = [path for path in everything if path not in maps]
    pairs = [pair for one in surveyed for pair in one.pairs]
    paired = {path for pair in pairs for path in (pair.degraded, pair.clear)}
    headers, findings = read_headers(photos, crop)
    findings += [*_unpaired(surveyed), *_one_sided(folder, photos, paired), *_ignored(folder)]
    findings += [finding for finding in read_headers(maps, 0)[1] if finding.kind == "unreadable"]
    if fast:
        findings += compare_sizes(pairs, headers)
    else:
        findings += _pixel_findings(folder, against, photos, pairs, headers, progress)
    transparent = {finding.files for finding in findings if finding.kind == "transparent"}
    findings = [one for one in findings if one.kind != "alpha" or one.files not in transparent]
    order = list(FINDING_KINDS)
    findings.sort(key=lambda one: (order.index(one.kind), one.files))
    sets = {one.name: len(one.pairs) for one in surveyed}
    return Audit(folder, sets, len(photos), len(set(photos) - paired), findings)


def check_before_training(folders: Iterable[str], photos: Iterable[Path], pairs: Iterable[Pair], crop: int) -> str:
    """Check the headers of the photos of a run.

    Args:
        folders: folders to name in the advice to run `check-data`.
        photos: all photos of the run.
        pairs: its pairs.
        crop: side of the training crops in pixels.

    Returns:
        One line of warnings, or "".

    Raises:
        BadFolder: photos or pairs cannot be used; the message names the first three.
    """
    commands = " and ".join(f"`fairweather check-data {folder}`" for folder in folders)
    wanted = list(dict.fromkeys(photos))
    maps = disparity_maps(wanted)
    headers, findings = read_headers(wanted, crop)
    findings += compare_sizes(pairs, headers)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = "; ".join(f"{' and '.join(map(str, one.files))}: {one.what}" for one in errors[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        raise BadFolder(f"cannot train on {len(errors)} of the photos or pairs: {first}{more}; {commands} lists all")
    kinds = Counter(one.kind for one in findings if one.severity == "warning" and not maps & {*one.files})
    words = {"grey": "without colour", "cmyk": "in CMYK", "small": f"smaller than the crop of {crop}"}
    counts = ", ".join(f"{number} {words[kind]}" for kind, number in kinds.items())
    return f"photos: {counts}; {commands} lists them" if counts else ""


def read_headers(photos: Iterable[Path], crop: int) -> tuple[dict[Path, Header], list[Finding]]:
    """Read the headers of all readable photos, and return them with their findings."""
    headers: dict[Path, Header] = {}
    findings: list[Finding] = []
    for path in photos:
        try:
            header = images.header(path)
        except (BadImage, MissingExtra) as error:
            findings.append(_unreadable(path, error))
            continue
        if header.frames > 1 and header.format not in ("TIFF", "HEIF"):
            findings.append(Finding("unreadable", (path,), f"an animation of {header.frames} frames", "save one frame"))
            continue
        headers[path] = header
        facts = {
            "grey": header.grey,
            "cmyk": header.inks,
            "alpha": header.alpha,
            "palette": header.palette,
            "16-bit": header.deep,
        }
        findings += [Finding(kind, (path,)) for kind, present in facts.items() if present]
        if header.frames > 1:
            findings.append(Finding("pages", (path,), f"{header.frames} pictures"))
        if min(header.width, header.height) < crop:
            findings.append(Finding("small", (path,), f"{header.width} x {header.height}, the crop is {crop}"))
        if FORMATS[path.suffix.lower()] != header.format:
            findings.append(Finding("misnamed", (path,), f"contains {header.format}"))
    return headers, findings


def compare_sizes(pairs: Iterable[Pair], headers: Headers) -> list[Finding]:
    """Find pairs of readable photos whose sizes differ, or are trimmed by training to be the same."""
    findings: dict[tuple[Path, ...], Finding] = {}
    for pair in pairs:
        files = (pair.degraded, pair.clear)
        if not all(path in headers for path in files):
            continue
        degraded, clear = (headers[path] for path in files)
        if (degraded.width, degraded.height) == (clear.width, clear.height):
            continue
        if _has_reside_border(degraded, clear):
            findings[pair.clear,] = Finding("trimmed", (pair.clear,), f"{clear.width} x {clear.height}")
            continue
        sizes = f"{degraded.width} x {degraded.height} and {clear.width} x {clear.height}"
        wider, higher = clear.width / degraded.width, clear.height / degraded.height
        if (degraded.width, degraded.height) == (clear.height, clear.width):
            reason = "one is rotated by 90 degrees"
        elif abs(wider / higher - 1) < 0.01:
            reason = f"the same shape, scaled by {wider:.3g}"
        else:
            reason = "another shape, so one was cropped or stretched"
        findings[files] = Finding("size", files, f"{sizes}: {reason}")
    return list(findings.values())


def disparity_maps(photos: Iterable[Path]) -> set[Path]:
    """The disparity maps next to their photos, which are not photos themselves."""
    photos = list(photos)
    stems = {path.with_suffix("") for path in photos}
    return {
        path
        for path in photos
        if path.stem.endswith(DISPARITY) and path.with_name(path.stem.removesuffix(DISPARITY)) in stems
    }


def read_pixels(path: Path) -> PhotoPixels:
    """Read a photo as training does, H x W x 3 uint8."""
    return to_eight_bits(images.read(path).pixels)


def _has_reside_border(degraded: Header, clear: Header) -> bool:
    more = 2 * RESIDE_BORDER
    return (clear.width, clear.height) == (degraded.width + more, degraded.height + more)


def _unreadable(path: Path, error: Exception) -> Finding:
    """The finding for an error whose message is "FILE: problem: remedy" or "FILE is ...: remedy"."""
    text = " ".join(str(error).split()).removeprefix(str(path)).lstrip(": ")
    what, _, remedy = text.rpartition(": ")
    return Finding("unreadable", (path,), what or text, remedy if what else "")


def _unpaired(surveyed: Iterable[Surveyed]) -> Iterator[Finding]:
    faults = {fault.message: (fault, one) for one in surveyed for fault in one.faults}
    for message, (fault, one) in faults.items():
        what, _, remedy = message.removeprefix(f"{one.folder}: ").rpartition(": ")
        yield Finding("unpaired", fault.files, what.partition(": ")[0], remedy)


def _one_sided(folder: Path, photos: Iterable[Path], paired: Container[Path]) -> Iterator[Finding]:
    """Folders called hazy or rainy whose photos are in no pair; names such as a and b alone are not evidence."""
    names = {name for degraded, _ in SIDES for name in degraded if len(name) > 1} - {"input", "light", "heavy"}
    counts = Counter(path.parent for path in photos if path not in paired and path.parent != folder)
    for place, count in sorted(counts.items()):
        neighbours = {path.name.lower() for path in place.parent.iterdir()}
        clear = {name for degraded, clear in SIDES for name in clear if place.name.lower() in degraded}
        if place.name.lower() in names and not neighbours & clear:
            yield Finding("one-sided", (place,), f"{count} photos")


def _ignored(folder: Path) -> Iterator[Finding]:
    """Files that are pictures by their first bytes, but not by their suffix."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() in SUFFIXES or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                format = sniff(file.read(64))
        except OSError:
            continue
        if format not in ("", "BMP", "PPM"):  # their two-byte signatures also occur in text files
            yield Finding("ignored", (path,), format)


# Pixels: each scene (a clear photo with its degraded versions, or a single photo) is decoded and compared.


@dataclass(frozen=True)
class Scene:
    """Photos that are compared with each other."""

    clear: Path
    pairs: tuple[Pair, ...] = ()


@dataclass
class SceneFacts:
    """Facts about the pixels of a scene's photos."""

    facts: dict[Path, PixelFacts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    dissimilar: list[tuple[Pair, bool]] = field(default_factory=list)
    """Pairs without common detail, and whether one side has no detail at all."""


@dataclass(frozen=True)
class IndexedPhoto:
    """A photo in the search for copies."""

    path: Path
    facts: PixelFacts
    scene: Path
    """Its clear photo, or itself. Versions of one scene are not copies."""
    split: str
    """train, test, ..., or ""."""


def _pixel_findings(
    folder: Path,
    against: str | Path | None,
    photos: Sequence[Path],
    pairs: Sequence[Pair],
    headers: Headers,
    progress: Callable[[int, int], None],
) -> list[Finding]:
    versions = defaultdict[Path, list[Pair]](list)
    for pair in pairs:
        if pair.degraded in headers and pair.clear in headers:
            versions[pair.clear].append(pair)
    degraded = {pair.degraded for found in versions.values() for pair in found}
    scenes = [Scene(path, tuple(versions[path])) for path in photos if path in headers and path not in degraded]
    others = [] if against is None else pictures(against)
    total, done, lock = len(headers) + len(others), 0, Lock()

    def examined(scene: Scene) -> SceneFacts:
        nonlocal done
        result = examine(scene, headers)
        with lock:
            done += 1 + len(scene.pairs)
            progress(done, total)
        return result

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, _single_threaded_opencv():
        ours = list(pool.map(examined, scenes))
        theirs = list(pool.map(lambda path: examined(Scene(path)), others))
    findings = [finding for one in ours for finding in one.findings]
    findings += [finding for one in theirs for finding in one.findings if finding.kind == "unreadable"]
    facts = {path: facts for one in ours for path, facts in one.facts.items()}
    dissimilar = [pair for one in ours for pair in one.dissimilar]
    findings += find_partners(dissimilar, {pair.clear for pair in pairs}, facts)
    excluded = {pair.degraded for pair, _ in dissimilar}  # of another scene than their names say
    split = _split_below(folder, "" if against is None else folder.resolve().name)
    indexed = _indexed({path: one for path, one in facts.items() if path not in excluded}, pairs, split)
    if against is not None:
        their_facts = {path: facts for one in theirs for path, facts in one.facts.items()}
        their_pairs = [pair for one in survey(against) for pair in one.pairs]
        name = f"{Path(against).resolve().name} (--against)"
        indexed |= _indexed(their_facts, their_pairs, lambda path: name)
    return findings + find_copies(list(indexed.values()), read_pixels)


def _indexed(
    facts: Mapping[Path, PixelFacts], pairs: Iterable[Pair], split: Callable[[Path], str]
) -> dict[Path, IndexedPhoto]:
    scene = {pair.degraded: pair.clear for pair in pairs}
    return {path: IndexedPhoto(path, one, scene.get(path, path), split(path)) for path, one in facts.items()}


def _split_below(folder: Path, otherwise: str) -> Callable[[Path], str]:
    def split(path: Path) -> str:
        parts = path.relative_to(folder).parts[:-1]
        return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), otherwise)

    return split


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Turn off OpenCV's threads, since our own threads use all processors."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def examine(scene: Scene, headers: Headers) -> SceneFacts:
    """Decode the photos of a scene and compare them."""
    result = SceneFacts()
    clear = _decode(scene.clear, headers, result)
    sizes = compare_sizes(scene.pairs, headers)
    for pair in scene.pairs:
        degraded = _decode(pair.degraded, headers, result)
        if degraded is None or clear is None:
            continue
        target = clear
        if _has_reside_border(headers[pair.degraded], headers[pair.clear]):
            target = clear[RESIDE_BORDER:-RESIDE_BORDER, RESIDE_BORDER:-RESIDE_BORDER]
        if degraded.shape == target.shape:
            _compare(pair, degraded, target, result)
        else:
            files = (pair.degraded, pair.clear)
            sizes = [_find_crop(one, degraded, clear) if one.files == files else one for one in sizes]
    result.findings += [*sizes, *_borders(scene, result.facts)]
    equal: dict[bytes, list[Path]] = {}
    for pair in scene.pairs:
        if pair.degraded in result.facts:
            equal.setdefault(result.facts[pair.degraded].digest, []).append(pair.degraded)
    result.findings += [Finding("copy", tuple(files), "pixel for pixel") for files in equal.values() if len(files) > 1]
    return result


def _decode(path: Path, headers: Headers, result: SceneFacts) -> PhotoPixels | None:
    try:
        photo = images.read(path)
        pixels = to_eight_bits(photo.pixels)
        facts = result.facts[path] = pixel_facts(pixels)
    except FairweatherError as error:
        result.findings.append(_unreadable(path, error))
        return None
    except Exception as error:  # one odd photo does not end the audit of thousands
        result.findings.append(Finding("unreadable", (path,), f"{type(error).__name__}: {error}"))
        return None
    if photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
        result.findings.append(Finding("transparent", (path,)))
    if facts.blank:
        result.findings.append(Finding("blank", (path,)))
    elif facts.colourless and not (path in headers and headers[path].grey):
        result.findings.append(Finding("grey", (path,), "red, green and blue are the same"))
    return pixels


def _compare(pair: Pair, degraded: PhotoPixels, clear: PhotoPixels, result: SceneFacts) -> None:
    files = (pair.degraded, pair.clear)
    first, second = result.facts[pair.degraded], result.facts[pair.clear]
    if first.blank or second.blank:
        return
    if np.array_equal(degraded, clear):
        result.findings.append(Finding("same", files, "pixel for pixel"))
        return
    found = relation(degraded, clear)
    if found.flip:
        result.findings.append(Finding("mirrored", files, f"the degraded one is {found.flip}"))
    elif found.response < MIN_RESPONSE:
        result.dissimilar.append((pair, found.flat))
    elif found.shifted:
        across = f"{abs(found.right):.1f} px {'right' if found.right > 0 else 'left'}"
        along = f"{abs(found.down):.1f} px {'down' if found.down > 0 else 'up'}"
        what = f"the degraded one is shifted {across}, {along} (response {found.response:.2f} of 1)"
        result.findings.append(Finding("shifted", files, what))
    elif np.abs(first.thumb.astype(np.int16) - second.thumb).max() <= SAME_LEVELS:
        result.findings.append(Finding("same", files, "no visible difference"))


def _find_crop(finding: Finding, degraded: PhotoPixels, clear: PhotoPixels) -> Finding:
    """Complete a finding of two sizes if one side is a crop of the other."""
    for name, smaller, larger in (("degraded", degraded, clear), ("clear", clear, degraded)):
        place = crop_position(smaller, larger)
        if place is not None:
            sizes = finding.what.partition(":")[0]
            what = f"{sizes}: the {name} one is a crop of the other, at ({place[0]}, {place[1]})"
            return replace(finding, what=what, remedy="crop the larger one in the same way")
    return finding


def _borders(scene: Scene, facts: Mapping[Path, PixelFacts]) -> Iterator[Finding]:
    clear = facts.get(scene.clear)
    for path in (scene.clear, *(pair.degraded for pair in scene.pairs)):
        border = facts[path].border if path in facts else None
        if border is None:
            continue
        degraded_only = path != scene.clear and clear is not None and clear.border is None
        if degraded_only and sum(depth > 0 for depth in border) == 1:
            continue  # a dark wall at the edge, made uniform by haze
        edges = ", ".join(f"{name} {depth}" for name, depth in border._asdict().items() if depth)
        yield Finding("border", (path,), f"{edges} px")


def find_partners(
    dissimilar: Sequence[tuple[Pair, bool]], clear: Iterable[Path], facts: Mapping[Path, PixelFacts]
) -> list[Finding]:
    """Search the clear photos that fit the degraded side of pairs without common detail."""
    if not dissimilar:
        return []
    details = {path: thumb_detail(facts[path].thumb) for path in clear if path in facts}
    findings = []
    for number, (pair, flat) in enumerate(dissimilar):
        files = (pair.degraded, pair.clear)
        partner = None if flat or number >= MAX_PARTNERS else _partner(pair, details, facts)
        if partner is not None:
            what = f"the degraded one fits {partner}"
            findings.append(Finding("different", files, what, "rename it to match that one"))
        else:
            findings.append(Finding("dissimilar", files, "one of them has hardly any detail" if flat else ""))
    return findings


def _partner(pair: Pair, details: Mapping[Path, NDArray[np.float32]], facts: Mapping[Path, PixelFacts]) -> Path | None:
    own = thumb_detail(facts[pair.degraded].thumb)
    scores = {path: correlation(own, other) for path, other in details.items() if path != pair.clear}
    for path in sorted(scores, key=lambda path: -scores[path])[:3]:
        degraded, clear = read_pixels(pair.degraded), read_pixels(path)
        if scores[path] > 0.2 and degraded.shape == clear.shape:
            found = relation(degraded, clear)
            if found.response >= 2 * MIN_RESPONSE and not found.flip:
                return path
    return None


# Copies: candidates come from the perceptual hashes, by one matrix product; each is then verified on pixels, since two
# blue skies over green meadows have similar hashes.


class Match(NamedTuple):
    product: float
    one: int
    other: int
    mirrored: bool


def find_copies(photos: Sequence[IndexedPhoto], read: Callable[[Path], PhotoPixels]) -> list[Finding]:
    """Find copies among photos, and the same view on both sides of a split.

    Args:
        photos: all photos.
        read: decodes a photo again, H x W x 3 uint8.
    """
    photos = [photo for photo in photos if not photo.facts.blank]
    clear = [photo for photo in photos if photo.scene == photo.path]
    groups = _copy_groups(clear, {})
    # the degraded versions of two scenes that are copies need no separate finding
    known = {photo.scene: number for number, (group, _) in enumerate(groups) for photo in group}
    groups += _copy_groups(photos, known)
    findings = []
    for group, mirrored in groups:
        splits = sorted({photo.split for photo in group} - {""})
        what = ["in " + " and ".join(splits)] if len(splits) > 1 else []
        what += ["mirrored"] if mirrored else []
        kind = "leak" if len(splits) > 1 else "copy"
        findings.append(Finding(kind, tuple(photo.path for photo in group), ", ".join(what)))
    copied = {photo.path: number for number, (group, _) in enumerate(groups) for photo in group}
    for one, other, response in _same_views(clear, read):
        if one not in copied or copied[one] != copied.get(other):
            findings.append(Finding("view", (one, other), f"similarity {response:.2f} of 1"))
    return findings


def thumb_detail(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A thumbnail's detail over its local strength, which photos of similar composition do not share."""
    grey = thumb.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    return np.asarray(fine / (cv2.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6)) + 2), dtype=np.float32)


def _copy_groups(
    photos: Sequence[IndexedPhoto], known: Mapping[Path, Hashable]
) -> list[tuple[list[IndexedPhoto], bool]]:
    """Groups of copies, and whether some are mirrored. `known`: scene -> the group it is known to be in."""
    detail = lru_cache(maxsize=4096)(lambda at: thumb_detail(photos[at].facts.thumb))
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
        other_detail = detail(other)[:, ::-1] if mirror else detail(other)
        if correlation(detail(one), other_detail) >= COPY_CORRELATION:
            parent[root(other)] = root(one)
            mirrored |= {one, other} if mirror else set()
    groups = defaultdict[int, list[int]](list)
    for at in range(len(photos)):
        groups[root(at)].append(at)
    return [([photos[at] for at in group], bool(mirrored & {*group})) for group in groups.values() if len(group) > 1]


def _same_views(
    photos: Sequence[IndexedPhoto], read: Callable[[Path], PhotoPixels]
) -> Iterator[tuple[Path, Path, float]]:
    if len({photo.split for photo in photos} - {""}) < 2:
        return
    nearest = defaultdict[int, list[Match]](list)
    for match in _matches(photos, VIEW_HASH, across_splits=True):
        nearest[match.one].append(match)
        nearest[match.other].append(match)
    candidates = {match for found in nearest.values() for match in sorted(found, reverse=True)[:VIEW_CANDIDATES]}
    cached = lru_cache(maxsize=64)(read)
    for match in sorted(candidates, key=lambda match: match[1:]):
        one, other = photos[match.one].path, photos[match.other].path
        response = same_view(cached(one), cached(other))
        if response >= VIEW_RESPONSE:
            yield one, other, response


def _matches(
    photos: Sequence[IndexedPhoto], least: float, *, mirrors: bool = False, across_splits: bool = False
) -> Iterator[Match]:
    """Pairs of photos whose hashes have a product of at least `least`, and with `mirrors` those of mirrored hashes.

    `across_splits`: only photos of two different splits.
    """
    if len(photos) < 2:
        return
    hashes = np.stack([photo.facts.fingerprint for photo in photos])
    names, split = np.unique([photo.split for photo in photos], return_inverse=True)
    named = (names != "")[split]
    numbers = np.arange(len(photos))
    for start in range(0, len(photos), 1024):
        block = slice(start, start + 1024)
        wanted = numbers[block, None] < numbers
        if across_splits:
            wanted &= (split[block, None] != split) & named[block, None] & named
        for mirrored, others in ((False, hashes), (True, hashes * MIRROR))[: 1 + mirrors]:
            products = hashes[block] @ others.T
            for row, other in zip(*np.nonzero(wanted & (products >= least)), strict=True):
                yield Match(float(products[row, other]), start + int(row), int(other), mirrored)
