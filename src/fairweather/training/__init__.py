"""Training: `train` runs a recipe to its end and leaves a run folder with a model in it.

This file imports no torch: the command line's help needs the signature alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairweather.errors import MissingExtra
from fairweather.training.config import Device, Precision
from fairweather.training.run_folder import Run

if TYPE_CHECKING:
    from fairweather.data.datasets import Dataset

__all__ = ["Run", "train"]


def train(
    recipe: str | None = None,
    *,
    data: str | Path | Dataset | None = None,
    degraded: str | Path | None = None,
    clear: str | Path | None = None,
    generator: str | None = None,
    generator_arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    config: str | Path | None = None,
    out: str | Path = "run",
    start: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    crop: int | None = None,
    hold_back: float | None = None,
    depths: str | Path | None = None,
    seed: int | None = None,
    precision: Precision | None = None,
    device: Device | None = None,
    devices: int | None = None,
    strategy: str | None = None,
    compile: bool | None = None,
    on_device: bool | None = None,
    threads: int | None = None,
    workers: int | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = None,
    sample_steps: int | None = None,
    sample_epochs: int | None = None,
    validate_steps: int | None = None,
    log_steps: int | None = None,
    parity: str | None = None,
    tensorboard: bool | None = None,
) -> Run:
    """Train a recipe on photos and return the run, whose `restorer()` clears photos.

    `data` is a folder of pairs, or where the paths of a mixture begin, or a dataset of your own; `degraded` and
    `clear` are two folders of unpaired photos. `settings` are the recipe's, `generator_arguments` the generator's.
    `depths`: a folder of estimated depth maps for the synthetic haze of a mixture.
    Everything that is not given comes from the TOML file `config`, then from defaults. `start`: a run, a model folder
    or a shipped model's name whose weights the network begins with. `resume` goes on with the run in `out`: exactly,
    where its length is in steps or epochs. With `devices` above 1 this program is started as many
    times, and each of them trains; none returns before the main one has written the model.

    Raises BadSettings, UnknownName, BadFolder and BadImage before any work; BadSettings when a loss is NaN;
    ParityFailed when the engines do not agree on the trained network; MissingExtra without the `train` extra.
    KeyboardInterrupt leaves a last checkpoint.
    """
    try:
        from fairweather.training.trainer import run_training
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("torch", "lightning"):
            raise
        raise MissingExtra(str(missing.name), "train", "training") from None
    own = data is not None and not isinstance(data, (str, Path))
    run = {
        "start": None if start is None else str(start),
        "steps": steps,
        "epochs": epochs,
        "minutes": minutes,
        "batch": batch,
        "seed": seed,
        "precision": precision,
        "device": device,
        "devices": devices,
        "strategy": strategy,
        "compile": compile,
        "threads": threads,
        "workers": workers,
        "checkpoint_steps": checkpoint_steps,
        "checkpoint_minutes": checkpoint_minutes,
        "sample_steps": sample_steps,
        "sample_epochs": sample_epochs,
        "validate_steps": validate_steps,
        "log_steps": log_steps,
        "parity": parity,
        "tensorboard": tensorboard,
    }
    photos = {
        "folder": f"({type(data).__name__} given in Python)" if own else data,
        "degraded": degraded,
        "clear": clear,
        "crop": crop,
        "on_device": on_device,
        "hold_back": hold_back,
        "depths": None if depths is None else Path(depths).resolve(),
    }
    photos = {key: str(value) if isinstance(value, Path) else value for key, value in photos.items()}
    given = {
        "run": run,
        "data": photos,
        "recipe": settings or {},
        "generator": {"name": generator, **(generator_arguments or {})},
    }
    return run_training(recipe, config, given, Path(out), resume=resume, dataset=data if own else None)  # type: ignore[arg-type]
