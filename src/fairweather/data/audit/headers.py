"""The fast part of the audit: what names and headers tell. No pixel is decoded; `train` does this before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from fairweather import images
from fairweather.data.audit.findings import Finding
from fairweather.data.photos import RESIDE_BORDER
from fairweather.data.synthetic import DISPARITY
from fairweather.errors import BadFolder, BadImage, MissingExtra
from fairweather.images.formats import FORMATS
from fairweather.images.headers import Header
from fairweather.pairs import Pair

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
        findings += _told(path, header, crop)
    return headers, findings


def unreadable(path: Path, error: Exception) -> Finding:
    """A finding of an error that names the file, says what, and after a semicolon the remedy."""
    what, _, remedy = " ".join(str(error).split()).removeprefix(f"{path}: ").partition("; ")
    return Finding("unreadable", (path,), what, remedy)


def _told(path: Path, header: Header, crop: int) -> list[Finding]:
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
