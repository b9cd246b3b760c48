"""`fairweather export RUN|MODEL -o DIR`: a model folder, compared with the network that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def export(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])],
    photos: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
) -> None:
    """Export a run's or a model's network anew: weights, ONNX with free height and width, and the card.

    Refused unless ONNX Runtime and OpenVINO give PyTorch's pictures, to 1e-4.

    Args:
        model: path of a run folder or a model folder, or a shipped model's name.
        out: the model folder to write; one that is there already is replaced.
        photos: folder of photos to compare on (the first three); invented pictures by default.
    """
    from fairweather import images
    from fairweather.deploy.export import reexport
    from fairweather.pairs import pictures

    seen = [] if photos is None else [images.read(path).pixels for path in pictures(photos)[:3]]
    card = reexport(model, out, photos=seen)
    print(f"{card.name} ({card.generator}) is in {out}: fairweather restore PHOTO --model {out}")
