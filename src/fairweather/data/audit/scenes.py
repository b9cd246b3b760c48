"""One scene, decoded: a clear photo with its degraded versions, or a photo on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fairweather import images
from fairweather.data.audit.alignment import SAME, Detail, likeness, part_of, relation
from fairweather.data.audit.copies import thumb_detail
from fairweather.data.audit.findings import Finding
from fairweather.data.audit.headers import Headers, compare_sizes, trimmed, unreadable
from fairweather.data.audit.looks import Looks, look
from fairweather.data.photos import RESIDE_BORDER, Pixels, eight_bits
from fairweather.errors import FairweatherError
from fairweather.pairs import Pair

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

    looks: dict[Path, Looks] = field(default_factory=dict)
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


def read_pixels(path: Path) -> Pixels:
    """H x W x 3 uint8, as training sees it."""
    return eight_bits(images.read(path).pixels)


def _look_at(path: Path, headers: Headers, done: Examined) -> Pixels | None:
    try:
        photo = images.read(path)
        pixels = eight_bits(photo.pixels)
        looks = done.looks[path] = look(pixels)
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


def _compare(pair: Pair, degraded: Pixels, clear: Pixels, done: Examined) -> None:
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
    elif found.response < SAME:
        done.unlike.append((pair, found.flat))
    elif found.shifted:
        what = f"the degraded one lies {_moved(found.right, 'right', 'left')}, {_moved(found.down, 'down', 'up')}"
        done.findings.append(Finding("shifted", files, f"{what} (response {found.response:.2f} of 1)"))
    elif np.abs(first.thumb.astype(np.int16) - second.thumb).max() <= _ALIKE:
        done.findings.append(Finding("same", files, "no visible difference"))


def _moved(pixels: float, positive: str, negative: str) -> str:
    return f"{abs(pixels):.1f} px {positive if pixels > 0 else negative}"


def _explained(finding: Finding, pair: Pair, degraded: Pixels, clear: Pixels) -> Finding:
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


def _frames(scene: Scene, looks: Mapping[Path, Looks]) -> list[Finding]:
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


def _twins(scene: Scene, looks: Mapping[Path, Looks]) -> list[Finding]:
    """Degraded versions of the scene that are one and the same picture."""
    seen: dict[bytes, list[Path]] = {}
    for pair in scene.pairs:
        if pair.degraded in looks:
            seen.setdefault(looks[pair.degraded].digest, []).append(pair.degraded)
    return [Finding("copy", tuple(files), "pixel for pixel") for files in seen.values() if len(files) > 1]


MOST = 50
"""Pairs for whose partner all others are searched."""


def find_partners(
    unlike: Sequence[tuple[Pair, bool]], clear: Iterable[Path], looks: Mapping[Path, Looks]
) -> list[Finding]:
    """Of pairs that have no detail in common: what they are, and which clear photo would fit, if one does."""
    if not unlike:
        return []
    details = {path: thumb_detail(looks[path].thumb) for path in clear if path in looks}
    findings = []
    for number, (pair, flat) in enumerate(unlike):
        files = (pair.degraded, pair.clear)
        partner = None if flat or number >= MOST else _partner(pair, details, looks)
        if partner is not None:
            findings.append(Finding("wrong", files, f"the degraded one fits {partner}", "rename it to match that one"))
        elif flat:
            findings.append(Finding("unlike", files, "one of them has hardly any detail"))
        else:
            findings.append(Finding("unlike", files, ""))
    return findings


def _partner(pair: Pair, details: Mapping[Path, Detail], looks: Mapping[Path, Looks]) -> Path | None:
    own = thumb_detail(looks[pair.degraded].thumb)
    scores = {path: likeness(own, there) for path, there in details.items() if path != pair.clear}
    for path in sorted(scores, key=lambda path: -scores[path])[:3]:
        degraded, clear = read_pixels(pair.degraded), read_pixels(path)
        if scores[path] > 0.2 and degraded.shape == clear.shape:
            found = relation(degraded, clear)
            if found.response >= 2 * SAME and not found.turn:
                return path
    return None
