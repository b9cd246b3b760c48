"""`fairweather quantize MODEL`: add an int8 network to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def quantize(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    method: Literal["dynamic", "static", "qat"],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])],
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 200,
    force: bool = False,
) -> None:
    """Add an int8 network to a model and report its quality, speed and size.

    Layers that lose too much quality in int8 stay in float. The result is rejected if PSNR to the ground truth falls
    by more than 0.15 dB (qat: 0.1 dB) on photos that were not used for calibration. The float network is unchanged;
    run the int8 network with `restore --precision int8`.

    Args:
        model: Name of a shipped model, or path of a model folder or run folder.
        method: dynamic stores int8 weights and computes in float; static also computes in int8, with ranges calibrated
            on photos; qat is static after quantization-aware fine-tuning (needs the extra "quantize").
        out: Model folder to write; an existing model folder is replaced.
        data: Folder of pairs or of degraded photos for calibration; required for static and qat.
        steps: Number of fine-tuning steps (qat).
        force: Write the result even below the quality bar, and record that on the card.
    """
    from fairweather.commands.models import quantized_lines
    from fairweather.deploy.quantization import quantize_model

    card = quantize_model(model, out, method=method, data=data, steps=steps, force=force)
    print("\n".join(quantized_lines(card)))
    print(f"{card.name} with int8 is in {out}: fairweather restore PHOTO --model {out} --precision int8")
