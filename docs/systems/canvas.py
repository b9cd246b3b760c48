"""Boxes and arrows as SVG, for the figures of the systems. Standard library only.

A figure is 800 units wide. Boxes and arrows have absolute positions. `Figure.problems` lists text wider than its box,
overlapping boxes, arrows through boxes, and anything outside the figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import combinations, pairwise

WIDTH = 800
SIZE = 12
SANS = "'DejaVu Sans', Verdana, Arial, Helvetica, sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
INK, FAINT, PAPER, PANEL = "#1f2933", "#52606d", "#ffffff", "#f1f4f7"

FILL = {
    "photo": ("#d6e8fa", "#2f6fab"),
    "made": ("#eef6fd", "#2f6fab"),
    "generator": ("#d8efd9", "#2e7d45"),
    "discriminator": ("#fde7c4", "#b06a00"),
    "fixed": ("#e6e8eb", "#6b7480"),
    "term": ("#ffffff", "#1f2933"),
}
"""Kind of box -> fill and outline."""
LEGEND = {
    "photo": "photo",
    "made": "network output",
    "generator": "generator",
    "discriminator": "discriminator",
    "fixed": "not trained",
    "term": "logged term",
}
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A labelled rectangle. The first line of a `term` box is the name of a logged term."""

    kind: str
    x: float
    y: float
    w: float
    h: float
    lines: tuple[str, ...]

    def at(self, side: str, share: float = 0.5) -> Point:
        """A point on a side (left, right, top, bottom), at the fraction `share` of its length."""
        if side in ("left", "right"):
            return self.x + (self.w if side == "right" else 0), self.y + share * self.h
        return self.x + share * self.w, self.y + (self.h if side == "bottom" else 0)

    def svg(self) -> list[str]:
        paper, rim = FILL[self.kind]
        dash = ' stroke-dasharray="4 2"' if self.kind == "made" else ""
        group = f'<g id="term-{escape(self.lines[0])}">' if self.kind == "term" else "<g>"
        parts = [
            group,
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.w:g}" height="{self.h:g}" rx="5" '
            f'fill="{paper}" stroke="{rim}" stroke-width="1.4"{dash}/>',
        ]
        middle = self.y + self.h / 2 - 7.5 * (len(self.lines) - 1)
        for number, line in enumerate(self.lines):
            if not line:
                continue
            style = f' font-family="{MONO}" font-weight="bold"' if self.kind == "term" and number == 0 else ""
            x, y = self.x + self.w / 2, middle + 15 * number + 4.3
            parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{style}>{escape(line)}</text>')
        return [*parts, "</g>"]


@dataclass
class Figure:
    """A figure, drawn from top to bottom."""

    title: str
    legend: dict[str, str] = field(default_factory=lambda: LEGEND)
    boxes: list[Box] = field(default_factory=list)
    arrows: list[tuple[tuple[Point, ...], bool]] = field(default_factory=list)
    panels: list[tuple[float, float, str]] = field(default_factory=list)
    height: float = 40

    def box(self, kind: str, x: float, y: float, w: float, *lines: str, h: float = 40) -> Box:
        made = Box(kind, x, y, w, h, lines)
        self.boxes.append(made)
        return made

    def arrow(self, *points: Point, compared: bool = False) -> None:
        """A line through the points with an arrow head; dashed for the target of a comparison."""
        self.arrows.append((points, compared))

    def panel(self, y: float, height: float, heading: str) -> None:
        self.panels.append((y, height, heading))
        self.height = y + height

    def svg(self) -> str:
        height = self.height + 36
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img" font-family="{SANS}" font-size="{SIZE}" fill="{INK}">',
            f"<title>{escape(self.title)}</title>",
            f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5 L8 4 L0 7.5 Z" fill="{INK}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="{PAPER}"/>',
            f'<text x="16" y="26" font-size="15" font-weight="bold">{escape(self.title)}</text>',
        ]
        for y, tall, heading in self.panels:
            parts.append(f'<rect x="8" y="{y:g}" width="{WIDTH - 16}" height="{tall:g}" rx="6" fill="{PANEL}"/>')
            parts.append(f'<text x="18" y="{y + 18:g}" font-size="13" fill="{FAINT}">{escape(heading)}</text>')
        for points, compared in self.arrows:
            line = " ".join(f"{x:g},{y:g}" for x, y in points)
            # an outline in the panel's colour, so that crossing lines are distinguishable
            parts.append(f'<polyline points="{line}" fill="none" stroke="{PANEL}" stroke-width="6"/>')
            look = f'stroke="{INK}" stroke-width="1.4"' + (' stroke-dasharray="5 3"' if compared else "")
            parts.append(f'<polyline points="{line}" fill="none" {look} marker-end="url(#head)"/>')
        for box in self.boxes:
            parts += box.svg()
        parts += self._legend(self.height + 22)
        return "\n".join([*parts, "</svg>", ""])

    def _legend(self, y: float) -> list[str]:
        there = {box.kind for box in self.boxes}
        parts, x = [], 16.0
        for kind, words in self.legend.items():
            if kind not in there:
                continue
            paper, rim = FILL[kind]
            dash = ' stroke-dasharray="4 2"' if kind == "made" else ""
            parts.append(
                f'<rect x="{x:g}" y="{y - 10:g}" width="14" height="12" rx="2" fill="{paper}" stroke="{rim}"{dash}/>'
            )
            parts.append(f'<text x="{x + 19:g}" y="{y:g}" font-size="11" fill="{FAINT}">{words}</text>')
            x += 19 + span(words, 11) + 14
        if any(compared for _, compared in self.arrows):
            end = f"{x + 26:g} {y - 4:g}"
            parts.append(
                f'<path d="M{x:g} {y - 4:g} L{end}" stroke="{INK}" stroke-width="1.4" stroke-dasharray="5 3" '
                'marker-end="url(#head)"/>'
            )
            parts.append(f'<text x="{x + 32:g}" y="{y:g}" font-size="11" fill="{FAINT}">compared with</text>')
        return parts

    def problems(self) -> list[str]:
        """Layout problems; empty in a finished figure."""
        found = []
        for box in self.boxes:
            for number, line in enumerate(box.lines):
                mono = box.kind == "term" and number == 0
                if span(line, SIZE, mono=mono) > box.w - 6:
                    found.append(f"{line!r} is wider than its box")
            if not (box.x > 8 and box.x + box.w < WIDTH - 8 and box.y + box.h < self.height):
                found.append(f"{box.lines} lies outside")
            if 15 * len(box.lines) > box.h - 4:
                found.append(f"{box.lines} is taller than its box")
        for one, two in combinations(self.boxes, 2):
            if abs(_middle(one)[0] - _middle(two)[0]) < (one.w + two.w) / 2 + 4 and (
                abs(_middle(one)[1] - _middle(two)[1]) < (one.h + two.h) / 2 + 4
            ):
                found.append(f"{one.lines} and {two.lines} touch")
        for points, _ in self.arrows:
            for start, end in pairwise(points):
                if start[0] != end[0] and start[1] != end[1]:
                    found.append(f"the arrow from {points[0]} is not straight at {start}")
                for box in self.boxes:
                    if _through(start, end, box):
                        found.append(f"the arrow from {points[0]} to {points[-1]} runs through {box.lines}")
            for end in (points[0], points[-1]):
                if not any(_on_rim(end, box) for box in self.boxes):
                    found.append(f"the arrow's end {end} touches no box")
        return found


def span(words: str, size: float, *, mono: bool = False) -> float:
    """Maximum width of a text, in DejaVu, the widest of the fonts."""
    if mono:
        return 0.603 * size * len(words)
    narrow, wide = "ijlft.,:;|!'()[] 1", "mwMW%@"
    each = (0.4 if letter in narrow else 0.98 if letter in wide else 0.66 for letter in words)
    return size * sum(each) * 0.97


def _middle(box: Box) -> Point:
    return box.x + box.w / 2, box.y + box.h / 2


def _through(start: Point, end: Point, box: Box) -> bool:
    """True if a straight line crosses the inside of a box."""
    low, high = (min(start[0], end[0]), min(start[1], end[1])), (max(start[0], end[0]), max(start[1], end[1]))
    return low[0] < box.x + box.w and high[0] > box.x and low[1] < box.y + box.h and high[1] > box.y


def _on_rim(point: Point, box: Box) -> bool:
    x, y = point
    across = box.x <= x <= box.x + box.w and y in (box.y, box.y + box.h)
    along = box.y <= y <= box.y + box.h and x in (box.x, box.x + box.w)
    return across or along
