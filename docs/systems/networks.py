"""Figures of two generators at their default sizes."""

from __future__ import annotations

from itertools import pairwise

from canvas import Figure

LEGEND = {"photo": "photo", "made": "network output", "generator": "trained layers", "fixed": "sum"}


def mbconv_unet() -> Figure:
    figure = Figure("mbconv_unet: bottlenecks and plain convolutions at five scales", LEGEND)
    figure.panel(40, 372, "the network: encoder, skip connections, decoder with transposed convolutions")
    y = 72.0
    above = photo = figure.box("photo", 60, y, 240, "photo", "3 channels, full size")
    top = figure.box("generator", 380, y, 240, "up; join the photo; conv 3 × 3", "tanh")
    figure.arrow(photo.at("right"), top.at("left"))
    made = figure.box("made", 680, y, 100, "output", "clear")
    figure.arrow(top.at("right"), made.at("left"))
    over = top
    for level, channels in enumerate((48, 96, 192, 384, 384), 1):
        y += 56
        scale = figure.box("generator", 60, y, 240, f"scale {level}", f"{channels} channels, 1/{2**level} of the size")
        figure.arrow(above.at("bottom"), scale.at("top"))
        above = scale
        if level < 5:
            rise = figure.box("generator", 380, y, 240, "up; join the skip: conv 3 × 3", f"{channels} channels")
            figure.arrow(scale.at("right"), rise.at("left"))
            figure.arrow(rise.at("top"), over.at("bottom"))
            over = rise
        else:
            end = over.at("bottom")
            figure.arrow(scale.at("right"), (end[0], scale.at("right")[1]), end)
    y = figure.height + 8
    figure.panel(y, 176, "one scale: two parallel branches, fused; the lower branch is MBConv")
    y += 32
    start = figure.box("generator", 18, y, 84, "conv 4 × 4", "stride 2", h=110)
    fuse = figure.box("generator", 698, y, 84, "fused", "by 1 × 1", h=110)
    plain = figure.box("generator", 250, y, 200, "plain conv 3 × 3", h=36)
    figure.arrow((start.at("right")[0], y + 18), plain.at("left"))
    figure.arrow(plain.at("right"), (fuse.x, y + 18))
    names = [("expand", "1 × 1, × 4"), ("depthwise", "3 × 3"), ("squeeze and", "excite"), ("project", "1 × 1")]
    row = [start]
    for place, words in enumerate(names):
        row.append(figure.box("generator", 134 + 116 * place, y + 64, 88, *words, h=46))
    row += [figure.box("fixed", 600, y + 64, 66, "plus", "its input", h=46), fuse]
    for left, right in pairwise(row):
        figure.arrow((left.at("right")[0], y + 87), (right.x, y + 87))
    low, plus = start.at("bottom"), row[-2].at("bottom")
    figure.arrow(low, (low[0], y + 124), (plus[0], y + 124), plus)
    return figure


def multipath_unet() -> Figure:
    figure = Figure("multipath_unet: three encoders with different receptive fields", LEGEND)
    figure.panel(40, 388, "encoder paths stay separate; at every scale they are fused for the decoder")
    y = 72.0
    above = figure.box("photo", 18, y, 300, "photo", "3 channels, full size")
    over = figure.box("generator", 510, y, 160, "conv 3 × 3", "tanh")
    made = figure.box("made", 698, y, 84, "output", "clear")
    figure.arrow(over.at("right"), made.at("left"))
    for level, channels in enumerate((32, 64, 128, 256, 256)):
        y += 60
        size = f"1/{2**level} of the size" if level else "full size"
        words = "dilation 1 · dilation 2 · dilation 3", f"{channels} channels each, {size}"
        paths = figure.box("generator", 18, y, 300, *words)
        for share in (1 / 6, 3 / 6, 5 / 6):
            figure.arrow(above.at("bottom", share), paths.at("top", share))
        above = paths
        fuse = figure.box("generator", 350, y, 120, "fused by 1 × 1", f"{channels} channels")
        figure.arrow(paths.at("right"), fuse.at("left"))
        if level < 4:
            rise = figure.box("generator", 510, y, 160, "up; join: conv 3 × 3", f"{channels} channels")
            figure.arrow(fuse.at("right"), rise.at("left"))
            figure.arrow(rise.at("top"), over.at("bottom"))
            over = rise
        else:
            end = over.at("bottom")
            figure.arrow(fuse.at("right"), (end[0], fuse.at("right")[1]), end)
    return figure
