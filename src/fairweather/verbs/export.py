"""`fairweather export RUN|MODEL -o DIR`: a model folder, compared with the network that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from fairweather import cards


def export(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])],
    direction: Annotated[Literal["restore", "degrade"] | None, tyro.conf.arg(help_behavior_hint="")] = None,
    photos: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    choice: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None,
    half: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None,
) -> None:
    """Export a run's or a model's network anew: weights, ONNX with free height and width, and the card.

    Of a run that has not ended, the network of its last checkpoint. Refused unless ONNX Runtime and OpenVINO give
    PyTorch's pictures, to 1e-4.

    Args:
        model: path of a run folder or a model folder, or a shipped model's name.
        out: the model folder to write; one that is there already is replaced.
        direction: of a run that learned both: restore (the default), or degrade, which puts the weather into clear
            photos.
        photos: folder of photos to compare on (the first three); invented pictures by default.
        choice: for the card: which of what was trained this is, chosen by what, and why; as the model has it by
            default.
        half: weights rounded to float16, which halves their file; of a model, as it is by default.
    """
    from fairweather import cards, images
    from fairweather.outputs import refuse_within
    from fairweather.pairs import pictures

    refuse_within(out, () if photos is None else (photos,))
    seen = [] if photos is None else [images.read(path).pixels for path in pictures(photos)[:3]]
    if model not in cards.shipped() and (Path(model) / "run.json").is_file():
        from fairweather.training.ship import export_run

        card = export_run(model, out, direction=direction or "restore", photos=seen, choice=choice, half=half)
    else:
        from fairweather.deploy.export import reexport

        _same(model, direction)
        card = reexport(model, out, photos=seen, choice=choice, half=half)
    print(f"{card.name} ({card.generator}) is in {out}: {_use(card, out)}")


def _same(model: str, direction: str | None) -> None:
    from fairweather import cards
    from fairweather.errors import BadSettings

    card = cards.read_card(cards.find(model), verify=False)
    if direction not in (None, card.direction):
        raise BadSettings(
            f"--direction {direction}: {model} is a model, which goes one way ({card.direction}); "
            "give the run folder that it came from"
        )


def _use(card: cards.Card, out: Path) -> str:
    if card.direction == "degrade":
        return f"fairweather synthesize {card.weather} PHOTOS -o OUT --model {out}"
    return f"fairweather restore PHOTO --model {out}"
