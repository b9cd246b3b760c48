"""`fairweather export RUN|MODEL`: write a model folder and compare it with its source network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


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
    """Export a run or a model as a model folder: weights, ONNX with free height and width, card.

    For an unfinished run, the last checkpoint is exported. The export is rejected unless ONNX Runtime and OpenVINO
    agree with PyTorch to 1e-4.

    Args:
        model: Path of a run folder or a model folder, or name of a shipped model.
        out: Model folder to write; an existing model folder is replaced.
        direction: Generator of an unpaired run: restore (default), or degrade, which adds weather to clear photos.
        photos: Folder of photos for the comparison (the first three are used); default: synthetic pictures.
        choice: Text for the card: why this model was selected; default: unchanged.
        half: Round the weights to float16, which halves the file size; default: only if the model's are float16.
    """
    from fairweather import images, model_folder
    from fairweather.errors import BadSettings
    from fairweather.files import refuse_within
    from fairweather.pairs import pictures

    refuse_within(out, () if photos is None else (photos,))
    samples = [] if photos is None else [images.read(path).pixels for path in pictures(photos)[:3]]
    if model not in model_folder.shipped() and (Path(model) / "run.json").is_file():
        from fairweather.training.export_run import export_run

        card = export_run(model, out, direction=direction or "restore", photos=samples, choice=choice, half=half)
    else:
        from fairweather.deploy.onnx_export import export_model_folder

        source = model_folder.read_card(model_folder.find(model), verify=False)
        if direction not in (None, source.direction):
            raise BadSettings(
                f"--direction {direction}: the model {model} has one direction, {source.direction}: "
                "give the run folder that it was exported from"
            )
        card = export_model_folder(model, out, photos=samples, choice=choice, half=half)
    command = "restore PHOTO" if card.direction == "restore" else f"synthesize {card.weather} PHOTOS -o OUT"
    print(f"{card.name} ({card.generator}) is in {out}: fairweather {command} --model {out}")
