"""Draws NAME.svg beside itself, the data flow of each system and two of the networks: `python docs/systems/draw.py`.
Standard library only.

In the systems every arrow is a line of the `step` in `src/fairweather/recipes/NAME.py`; every term has the name that
it is logged by.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from canvas import Box, Figure
from networks import mbconv_unet, multipath_unet

COLUMNS = [18, 134, 250, 366, 482, 598]
"""Left edges: photo, network, photo, network, photo, term."""
SIDE, JUDGE, TERM = 84, 140, 184
"""Widths of a box, a discriminator and a term."""


def chain(figure: Figure, y: float, *boxes: tuple[str, ...]) -> list[Box]:
    """Boxes (kind, line, line) in a row from the left, an arrow from each to the next."""
    row: list[Box] = []
    for number, (kind, *lines) in enumerate(boxes):
        taller = max(0, 15 * len(lines) + 6 - 40)
        row.append(figure.box(kind, COLUMNS[number], y - taller / 2, SIDE, *lines, h=40 + taller))
        if number:
            figure.arrow(row[-2].at("right"), row[-1].at("left"))
    return row


def term(figure: Figure, y: float, name: str, words: str, source: Box) -> Box:
    """A logged term in the last column, with an arrow from its source in the same row."""
    made = figure.box("term", COLUMNS[5], y, TERM, name, words)
    figure.arrow(source.at("right"), made.at("left"))
    return made


def compare(figure: Figure, photo: Box, with_: Box) -> None:
    """The dashed line over a row, from a photo to the term that compares with it."""
    start, end = photo.at("top", 0.25), with_.at("top")
    figure.arrow(start, (start[0], photo.y - 10), (end[0], photo.y - 10), end, compared=True)


def judge_of(figure: Figure, y: float, photo: str) -> Box:
    """A discriminator that looks at photos of one domain."""
    return figure.box("discriminator", COLUMNS[3], y, JUDGE, f"judge_{photo}", "PatchGAN 70 × 70")


def down(figure: Figure, box: Box, to: Box, share: float = 0.5, *, start: float = 0.5, compared: bool = False) -> None:
    """Down from a box, `start` of the way along its bottom, and into the left side of another one."""
    first, last = box.at("bottom", start), to.at("left", share)
    figure.arrow(first, (first[0], last[1]), last, compared=compared)


def cycle(title: str, network: str, *, features: bool = False) -> Figure:
    """The systems that learn from unpaired photos: there and back, both ways."""
    figure = Figure(title)
    tall = 180 if features else 122
    count = "eight" if features else "six"
    figure.panel(40, 2 * tall + 156, f'update("generators"): the sum of {count} terms')
    y = 82.0
    for photo, forth, other, back in (
        ("degraded", "restore", "clear", "degrade"),
        ("clear", "degrade", "degraded", "restore"),
    ):
        row = chain(
            figure,
            y,
            ("photo", photo, "photo"),
            ("generator", forth, network),
            ("made", "made", other),
            ("generator", back, network),
            ("made", photo, "again"),
        )
        compare(figure, row[0], term(figure, y, f"cycle_{photo}", "10 × L1", row[4]))
        under = y + 58
        if features:
            vgg = figure.box("fixed", COLUMNS[4], under, SIDE, "VGG-19", "features")
            figure.arrow(row[4].at("bottom"), vgg.at("top"))
            term(figure, under, f"perceptual_{photo}", "1 × mean square", vgg)
            under += 58
        judge = judge_of(figure, under, other)
        down(figure, row[2], judge)
        term(figure, under, f"adversarial_{other}", "LSGAN: taken for real?", judge)
        if features:
            down(figure, row[0], vgg, compared=True)
        y += tall
    for photo, name in (("clear", "restore"), ("degraded", "degrade")):
        row = chain(figure, y, ("photo", photo, "photo"), ("generator", name, network), ("made", "made", photo))
        compare(figure, row[0], term(figure, y, f"identity_{photo}", "5 × L1", row[2]))
        y += 66
    y = figure.height + 8
    figure.panel(y, 250, 'update("discriminators"): the sum of two terms')
    y += 34
    for photo in ("clear", "degraded"):
        real = figure.box("photo", COLUMNS[2], y, SIDE, photo, "photo")
        fake = figure.box("made", COLUMNS[1], y + 54, SIDE, "made", photo)
        pool = figure.box("fixed", COLUMNS[2], y + 54, SIDE, "history", "of 50")
        judge = figure.box("discriminator", COLUMNS[3], y, JUDGE, f"judge_{photo}", "PatchGAN 70 × 70", h=94)
        figure.arrow(fake.at("right"), pool.at("left"))
        for box in (real, pool):
            figure.arrow(box.at("right"), (judge.x, box.at("right")[1]))
        term(figure, y + 27, f"discriminator_{photo}", "half of LSGAN", judge)
        y += 108
    return figure


def cyclegan() -> Figure:
    return cycle("cyclegan: unpaired photos, there and back", "ResNet")


def claritygan() -> Figure:
    return cycle("claritygan: there and back, compared by features too", "ResNet", features=True)


def derain() -> Figure:
    return cycle("derain: unpaired photos and U-Nets, there and back", "U-Net")


def pair_game(figure: Figure, heading: str, network: tuple[str, ...], judge_words: tuple[str, ...], words: str) -> None:
    """The move of a discriminator that sees the degraded photo beside another one."""
    y = figure.height + (8 if figure.boxes else 0)
    figure.panel(y, 184, heading)
    y += 34
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", *network), ("made", "made", "clear")
    )
    clear = figure.box("photo", COLUMNS[2], y + 52, SIDE, "clear", "photo")
    judge = figure.box("discriminator", COLUMNS[3], y, JUDGE, *judge_words, h=136)
    for box in (made, clear):
        figure.arrow(box.at("right"), (judge.x, box.at("right")[1]))
    start = degraded.at("bottom")
    figure.arrow(start, (start[0], y + 118), (judge.x, y + 118))
    term(figure, y + 48, "discriminator", words, judge)


def pix2pix() -> Figure:
    figure = Figure("pix2pix: pairs, and a discriminator that sees the degraded photo too")
    judge_words = (
        "judge: PatchGAN",
        "70 × 70, batch norm",
        "",
        "sees the degraded",
        "photo beside one",
        "of the others",
    )
    pair_game(
        figure,
        'first update("discriminator"): the made photo is detached',
        ("restore", "U-Net"),
        judge_words,
        "half of BCE",
    )
    y = figure.height + 8
    figure.panel(y, 194, 'then update("generator"): the sum of two terms')
    y += 30
    clear = figure.box("photo", COLUMNS[0], y, SIDE, "clear", "photo")
    y += 52
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", "restore", "U-Net"), ("made", "made", "clear")
    )
    difference = term(figure, y, "l1", "100 × L1", made)
    figure.arrow(
        clear.at("right"), (difference.at("top")[0], clear.at("right")[1]), difference.at("top"), compared=True
    )
    y += 60
    judge = figure.box("discriminator", COLUMNS[3], y, JUDGE, *judge_words[:2])
    down(figure, made, judge, 0.3)
    down(figure, degraded, judge, 0.7)
    term(figure, y, "adversarial", "BCE: taken for real?", judge)
    return figure


def hazeheal() -> Figure:
    figure = Figure("hazeheal: pairs, and a second look where the haze is")
    network = ("restore", "MBConv", "U-Net")
    figure.panel(40, 346, 'first update("generator"): the sum of four terms')
    y = 74.0
    hazy = figure.box("photo", COLUMNS[0], y, SIDE, "degraded", "photo")
    mask = figure.box("fixed", COLUMNS[1], y, JUDGE, "haze mask", "of the dark channel")
    figure.arrow(hazy.at("right"), mask.at("left"))
    masked = term(figure, y, "haze_aware", "150 × 0.3 × mean in mask", mask)
    y += 66
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", *network), ("made", "made", "clear")
    )
    difference = figure.box("fixed", COLUMNS[3], y, JUDGE, "Charbonnier", "difference per pixel")
    figure.arrow(made.at("right"), difference.at("left"))
    term(figure, y, "charbonnier", "150 × 0.7 × mean", difference)
    start, end = difference.at("top"), masked.at("left", 0.8)
    figure.arrow(start, (start[0], end[1]), end)
    y += 60
    clear = figure.box("photo", COLUMNS[3] + (JUDGE - SIDE) / 2, y, SIDE, "clear", "photo")
    figure.arrow(clear.at("top"), difference.at("bottom"), compared=True)
    y += 60
    vgg = figure.box("fixed", COLUMNS[4], y, SIDE, "VGG-19", "features")
    down(figure, clear, vgg, 0.3, compared=True)
    down(figure, made, vgg, 0.7, start=0.65)
    term(figure, y, "perceptual", "0.005 × mean square", vgg)
    y += 60
    judge = figure.box("discriminator", COLUMNS[3], y, JUDGE, "judge: PatchGAN", "spectral norm")
    down(figure, made, judge, 0.3, start=0.35)
    down(figure, degraded, judge, 0.7)
    term(figure, y, "adversarial", "BCE: taken for real?", judge)
    judge_words = ("judge: PatchGAN", "spectral norm", "", "sees the degraded", "photo beside one", "of the others")
    pair_game(figure, 'then update("discriminator"): the made photo is detached', network, judge_words, "BCE")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "cyclegan": cyclegan,
    "pix2pix": pix2pix,
    "claritygan": claritygan,
    "hazeheal": hazeheal,
    "derain": derain,
    "mbconv_unet": mbconv_unet,
    "multipath_unet": multipath_unet,
}


def main() -> None:
    for name, draw in FIGURES.items():
        figure = draw()
        for problem in figure.problems():
            print(f"{name}: {problem}", file=sys.stderr)
        (Path(__file__).parent / f"{name}.svg").write_text(figure.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
