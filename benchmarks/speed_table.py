"""The table of speed.py, and its targets on two cores with photos of two sizes.

Times from pixels to pixels are warm and without guards (reduce, network, edge-aware apply). Other networks count with
their network alone, in PyTorch eager; gUNet-T's time is scaled to the work stated in its paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STAGES = ("decode", "prepare", "network", "apply", "encode")
FULL_HD, TWELVE = "1920x1080", "4000x3000"
ENGINE = "openvino"
GUNET_T_SHARE = 2.60 / 2.758
"""As in opponents.py, which needs PyTorch."""

PIXELS_TO_PIXELS = {"dehaze-fast": 0.035, "dehaze": 0.100, "derain": 0.100, "derain-fast": 0.100}
"""Model -> maximum seconds at FULL_HD."""
FILE_TO_FILE = {"dehaze-fast": 1.2, "dehaze": 3.0}
"""Model -> maximum seconds at TWELVE megapixels."""
FASTER = [
    ("dehaze-fast", "gUNet-T", 60.0),
    ("dehaze-fast", "AOD-Net", 15.0),
    ("dehaze-fast", "dark channel prior", 8.0),
    ("dehaze", "gUNet-T", 10.0),
]
"""Model, compared system, minimum speed-up at FULL_HD."""
Rows = Sequence[tuple[str, Mapping[str, Any]]]


def markdown(rows: Rows, limits: Mapping[str, float] | None = None) -> str:
    """One line per measurement; shares of the machine's limits if known."""
    heads = [*(f"{stage} ms" for stage in STAGES), "memory ms", "bare ms", "whole s", "first s", "peak MiB"]
    heads += ["of limit", "of copy"]
    lines = ["| system | engine | photo | " + " | ".join(heads) + " |", "|---|---|--:|" + "--:|" * len(heads)]
    work = {(size, found["system"]): found["macs"] for size, found in rows if "macs" in found}
    for size, found in rows:
        times, total = found["times"], sum(found["times"].values())
        parts = [f"{times[stage] * 1000:.0f} ({times[stage] / total:.0%})" for stage in STAGES]
        bare = "-" if found["bare"] is None else f"{found['bare'] * 1000:.1f}"
        parts += [f"{in_memory(found) * 1000:.1f}", bare, f"{found['total']:.2f}", f"{found['first']:.2f}"]
        parts.append(f"{found['peak'] / 2**20:.0f}")
        of_limit = of_copy = "-"
        if limits and (macs := work.get((size, found["system"]))) is not None:
            precisions = ("f32", "bf16") if found["engine"] in ("openvino", "auto") else ("f32",)
            most = max(limits[f"{kind} {precision}"] for kind in ("convolution", "product") for precision in precisions)
            of_limit = f"{macs / times['network'] / most:.0%}"
        if limits and found["bare"] is not None:
            of_copy = f"{6 * pixels(size) / times['apply'] / limits['copy']:.0%}"
        name = found["system"] + (" (1x)" if found["once"] else "")
        lines.append(
            "| " + " | ".join([name, found["engine"], size.replace("x", " x "), *parts, of_limit, of_copy]) + " |"
        )
    return "\n".join(lines)


def in_memory(found: Mapping[str, Any]) -> float:
    """Seconds from pixels to pixels."""
    return float(sum(found["times"][stage] for stage in ("prepare", "network", "apply")))


def pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height


def bars(rows: Rows) -> list[tuple[str, str, str, bool]]:
    """(target, bound, result, reached) of all targets that were measured."""
    ours = {(size, row["system"]): row for size, row in rows if row["bare"] is not None and row["engine"] == ENGINE}
    others = {(size, row["system"]): row["times"]["network"] for size, row in rows if row["bare"] is None}
    if (FULL_HD, "gUNet-T") in others:
        others[FULL_HD, "gUNet-T"] *= GUNET_T_SHARE
    found = []
    for model, most in PIXELS_TO_PIXELS.items():
        if row := ours.get((FULL_HD, model)):
            bound, value = f"< {most * 1000:.0f} ms", f"{row['bare'] * 1000:.1f} ms"
            found.append((f"`{model}`, {FULL_HD}, pixels to pixels", bound, value, row["bare"] < most))
    for model, most in FILE_TO_FILE.items():
        if row := ours.get((TWELVE, model)):
            aim = f"`{model}`, {TWELVE} JPEG, file to file"
            found.append((aim, f"< {most:.1f} s", f"{row['total']:.2f} s", row["total"] < most))
    for model, other, least in FASTER:
        if (row := ours.get((FULL_HD, model))) and (taken := others.get((FULL_HD, other))):
            times = taken / row["bare"]
            found.append((f"`{model}` against {other}, {FULL_HD}", f">= {least:g} x", f"{times:.1f} x", times >= least))
    return found


def bars_markdown(rows: Rows) -> str:
    lines = ["| aim | bound | found | |", "|---|--:|--:|---|"]
    lines += [
        f"| {aim} | {bound} | {found} | {'reached' if yes else 'missed'} |" for aim, bound, found, yes in bars(rows)
    ]
    return "\n".join(lines) if len(lines) > 2 else "There is no target for these measurements."
