"""What the audit can find: one line a kind, with how bad it is, what it is called and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    severity: str
    """error: training refuses it, or a score on it means nothing; warning: look at it; note: good to know."""
    title: str
    remedy: str


KINDS = MappingProxyType(
    {
        "unreadable": Kind("error", "cannot be read", "get a whole copy, or take it out"),
        "partner": Kind("error", "no pairs can be made of", "rename, add or take out what is named"),
        "size": Kind("error", "pairs whose two sides differ in size", "crop or resize one side, or take the pair out"),
        "wrong": Kind("error", "pairs that show two different scenes", "find the right partner, or take the pair out"),
        "mirrored": Kind("error", "pairs with one side mirrored or turned", "turn it back"),
        "leak": Kind(
            "error", "the same picture on both sides of a split", "keep it on one: its score is worth nothing"
        ),
        "unlike": Kind(
            "warning",
            "pairs whose two sides have no detail in common",
            "look at them: another scene, one side turned, or no detail left",
        ),
        "shifted": Kind("warning", "pairs whose two sides are shifted", "align them, or take them out: losses blur"),
        "view": Kind("warning", "the same view on both sides of a split", "scores on it say little of new places"),
        "copy": Kind("warning", "the same picture more than once", "keep one: it weighs double"),
        "same": Kind("warning", "pairs whose two sides are the same picture", "nothing can be learned from these"),
        "border": Kind("warning", "a frame of one colour", "crop it away: a network learns to draw it"),
        "blank": Kind("warning", "a single colour all over", "take it out"),
        "grey": Kind("warning", "no colour", "take these out where the other photos have colour"),
        "inks": Kind("warning", "CMYK, converted to RGB without its profile", "save it as RGB, and look at it"),
        "see-through": Kind(
            "warning", "transparent pixels; what lies beneath them is used", "flatten it on a background of your choice"
        ),
        "tiny": Kind("warning", "smaller than a training crop, and enlarged to it", "lower --crop, or take these out"),
        "lonely": Kind("warning", "a degraded side without a clear one beside it", "add it, or rename one: clear, gt"),
        "alpha": Kind("note", "an alpha channel, which is ignored", "nothing, if nothing is transparent"),
        "palette": Kind("note", "a palette, converted to RGB", "nothing; its few colours make steps in skies"),
        "deep": Kind("note", "16 bits a channel, rounded to 8 for training", "nothing"),
        "pages": Kind("note", "several pictures in one file; the first is used", "save the others as files"),
        "misnamed": Kind("note", "another format than its suffix says; read all the same", "rename it"),
        "trimmed": Kind("note", "RESIDE's border of 10 px, cut off the clear side", "nothing"),
        "ignored": Kind("note", "pictures that are left out for their suffix", "save them as JPEG or PNG, or rename"),
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
        return KINDS[self.kind].severity

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "files": [path.as_posix() for path in self.files],
            "what": self.what or kind.title,
            "remedy": self.remedy or kind.remedy,
        }
