"""Draw the data flow of each system, and two of the networks, as NAME.svg: `python docs/systems/draw.py`.

In the systems each arrow is a line of `step` in `src/fairweather/recipes/NAME.py`, and terms have their names in the
log. Standard library only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from canvas import Box, Figure
from networks import mbconv_unet, multipath_unet

COLUMNS = [18, 134, 250, 366, 482, 598]
"""Left edges of the columns: photo, network, photo, network, photo, term."""
SIDE, PATCHGAN, TERM = 84, 140, 184
"""Widths of a box, a discriminator and a term."""


def chain(figure: Figure, y: float, *boxes: tuple[str, ...]) -> list[Box]:
    """A row of boxes (kind, line, line) from the left, connected by arrows."""
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
    """A dashed line above a row, from a photo to the term that compares with it."""
    start, end = photo.at("top", 0.25), with_.at("top")
    figure.arrow(start, (start[0], photo.y - 10), (end[0], photo.y - 10), end, compared=True)


def discriminator_of(figure: Figure, y: float, photo: str) -> Box:
    """A discriminator of one domain."""
    return figure.box("discriminator", COLUMNS[3], y, PATCHGAN, "PatchGAN 70 × 70", f"on {photo} photos")


def down(figure: Figure, box: Box, to: Box, share: float = 0.5, *, start: float = 0.5, compared: bool = False) -> None:
    """An arrow from the bottom of a box (at the fraction `start`) to the left side of another."""
    first, last = box.at("bottom", start), to.at("left", share)
    figure.arrow(first, (first[0], last[1]), last, compared=compared)


def cycle(title: str, network: str, *, features: bool = False) -> Figure:
    """The systems for unpaired photos: both cycles, identity and discriminators."""
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
            ("made", "generated", other),
            ("generator", back, network),
            ("made", photo, "cycled"),
        )
        compare(figure, row[0], term(figure, y, f"cycle_{photo}", "10 × L1", row[4]))
        under = y + 58
        if features:
            vgg = figure.box("fixed", COLUMNS[4], under, SIDE, "VGG-19", "features")
            figure.arrow(row[4].at("bottom"), vgg.at("top"))
            term(figure, under, f"perceptual_{photo}", "1 × mean square", vgg)
            under += 58
        discriminator = discriminator_of(figure, under, other)
        down(figure, row[2], discriminator)
        term(figure, under, f"adversarial_{other}", "LSGAN: classified as real", discriminator)
        if features:
            down(figure, row[0], vgg, compared=True)
        y += tall
    for photo, name in (("clear", "restore"), ("degraded", "degrade")):
        row = chain(figure, y, ("photo", photo, "photo"), ("generator", name, network), ("made", "generated", photo))
        compare(figure, row[0], term(figure, y, f"identity_{photo}", "5 × L1", row[2]))
        y += 66
    y = figure.height + 8
    figure.panel(y, 250, 'update("discriminators"): the sum of two terms')
    y += 34
    for photo in ("clear", "degraded"):
        real = figure.box("photo", COLUMNS[2], y, SIDE, photo, "photo")
        fake = figure.box("made", COLUMNS[1], y + 54, SIDE, "generated", photo)
        pool = figure.box("fixed", COLUMNS[2], y + 54, SIDE, "history", "of 50")
        discriminator = figure.box(
            "discriminator", COLUMNS[3], y, PATCHGAN, "PatchGAN 70 × 70", f"on {photo} photos", h=94
        )
        figure.arrow(fake.at("right"), pool.at("left"))
        for box in (real, pool):
            figure.arrow(box.at("right"), (discriminator.x, box.at("right")[1]))
        term(figure, y + 27, f"discriminator_{photo}", "half of LSGAN", discriminator)
        y += 108
    return figure


def cyclegan() -> Figure:
    return cycle("cyclegan: unpaired photos, translated and back", "ResNet")


def claritygan() -> Figure:
    return cycle("claritygan: cyclegan with feature losses on the cycles", "ResNet", features=True)


def derain() -> Figure:
    return cycle("derain: cyclegan with U-Nets", "U-Net")


def pair_discriminator(
    figure: Figure, heading: str, network: tuple[str, ...], labels: tuple[str, ...], words: str
) -> None:
    """The update of a conditional discriminator."""
    y = figure.height + (8 if figure.boxes else 0)
    figure.panel(y, 184, heading)
    y += 34
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", *network), ("made", "generated", "clear")
    )
    clear = figure.box("photo", COLUMNS[2], y + 52, SIDE, "clear", "photo")
    discriminator = figure.box("discriminator", COLUMNS[3], y, PATCHGAN, *labels, h=136)
    for box in (made, clear):
        figure.arrow(box.at("right"), (discriminator.x, box.at("right")[1]))
    start = degraded.at("bottom")
    figure.arrow(start, (start[0], y + 118), (discriminator.x, y + 118))
    term(figure, y + 48, "discriminator", words, discriminator)


def pix2pix() -> Figure:
    figure = Figure("pix2pix: pairs, and a discriminator that sees the degraded photo too")
    labels = (
        "PatchGAN",
        "70 × 70, batch norm",
        "",
        "sees the degraded",
        "photo and one of",
        "the two others",
    )
    pair_discriminator(
        figure,
        'first update("discriminator"): the generated photo is detached',
        ("restore", "U-Net"),
        labels,
        "half of BCE",
    )
    y = figure.height + 8
    figure.panel(y, 194, 'then update("generator"): the sum of two terms')
    y += 30
    clear = figure.box("photo", COLUMNS[0], y, SIDE, "clear", "photo")
    y += 52
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", "restore", "U-Net"), ("made", "generated", "clear")
    )
    difference = term(figure, y, "l1", "100 × L1", made)
    figure.arrow(
        clear.at("right"), (difference.at("top")[0], clear.at("right")[1]), difference.at("top"), compared=True
    )
    y += 60
    discriminator = figure.box("discriminator", COLUMNS[3], y, PATCHGAN, *labels[:2])
    down(figure, made, discriminator, 0.3)
    down(figure, degraded, discriminator, 0.7)
    term(figure, y, "adversarial", "BCE: classified as real", discriminator)
    return figure


def hazeheal() -> Figure:
    figure = Figure("hazeheal: pairs, with a second loss inside the haze mask")
    network = ("restore", "MBConv", "U-Net")
    figure.panel(40, 346, 'first update("generator"): the sum of four terms')
    y = 74.0
    hazy = figure.box("photo", COLUMNS[0], y, SIDE, "degraded", "photo")
    mask = figure.box("fixed", COLUMNS[1], y, PATCHGAN, "haze mask", "of the dark channel")
    figure.arrow(hazy.at("right"), mask.at("left"))
    masked = term(figure, y, "haze_aware", "150 × 0.3 × mean in mask", mask)
    y += 66
    degraded, _, made = chain(
        figure, y, ("photo", "degraded", "photo"), ("generator", *network), ("made", "generated", "clear")
    )
    difference = figure.box("fixed", COLUMNS[3], y, PATCHGAN, "Charbonnier", "difference per pixel")
    figure.arrow(made.at("right"), difference.at("left"))
    term(figure, y, "charbonnier", "150 × 0.7 × mean", difference)
    start, end = difference.at("top"), masked.at("left", 0.8)
    figure.arrow(start, (start[0], end[1]), end)
    y += 60
    clear = figure.box("photo", COLUMNS[3] + (PATCHGAN - SIDE) / 2, y, SIDE, "clear", "photo")
    figure.arrow(clear.at("top"), difference.at("bottom"), compared=True)
    y += 60
    vgg = figure.box("fixed", COLUMNS[4], y, SIDE, "VGG-19", "features")
    down(figure, clear, vgg, 0.3, compared=True)
    down(figure, made, vgg, 0.7, start=0.65)
    term(figure, y, "perceptual", "0.005 × mean square", vgg)
    y += 60
    discriminator = figure.box("discriminator", COLUMNS[3], y, PATCHGAN, "PatchGAN", "spectral norm")
    down(figure, made, discriminator, 0.3, start=0.35)
    down(figure, degraded, discriminator, 0.7)
    term(figure, y, "adversarial", "BCE: classified as real", discriminator)
    labels = ("PatchGAN", "spectral norm", "", "sees the degraded", "photo and one of", "the two others")
    pair_discriminator(figure, 'then update("discriminator"): the generated photo is detached', network, labels, "BCE")
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
