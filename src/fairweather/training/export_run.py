"""From a run to a model folder: at its end, or later and elsewhere, from its last checkpoint."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import nn

import fairweather
from fairweather import model_folder
from fairweather.data.datasets import Dataset
from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadFolder, BadSettings, FairweatherError
from fairweather.files import recover, refuse_within
from fairweather.generators import GENERATORS
from fairweather.recipes import RECIPES, Recipe
from fairweather.training import checkpoint
from fairweather.training.config import TrainingConfig, complete_config, read_record
from fairweather.training.dataloader import open_data
from fairweather.training.optimization import (
    RECALIBRATION_SAMPLES,
    TrainingEngine,
    has_batch_norm,
    recalibrate_batchnorm,
)

if TYPE_CHECKING:
    pass


log = logging.getLogger("fairweather")

Direction = Literal["restore", "degrade"]
SEES_SENTENCE: dict[Direction, Literal["degraded", "clear"]] = {"restore": "degraded", "degrade": "clear"}
"""Which side of the data goes into a generator of each direction."""


def recipe_of(settings: TrainingConfig) -> Recipe:
    """The recipe with fresh networks. Raises BadSettings."""
    kind = RECIPES[settings.recipe.name]
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.recipe.settings.items()}
    return kind(lambda: build(settings), kind.settings_type(**own))


def build(settings: TrainingConfig) -> nn.Module:
    """A fresh generator. Raises BadSettings where its arguments do not make one."""
    name, arguments = settings.generator.name, settings.generator.settings
    try:
        return GENERATORS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise BadSettings(f"generator {name} with {arguments}: {error}") from error


def export_model(
    engine: TrainingEngine,
    settings: TrainingConfig,
    dataset: Dataset,
    step: int,
    out: Path,
    batched: GPUBatches | None = None,
) -> None:
    """RUN/model: the network that ships as a model folder, compared on training crops. Raises ParityFailed."""
    run = settings.run
    assert run.batch is not None
    most = min(RECALIBRATION_SAMPLES, step * run.batch * run.devices)
    network = recalibrate_batchnorm(engine.restorer_network(), batched or dataset, seed=run.seed, most=most)
    crops = [dataset.sample(run.seed, 0, at)["degraded"] for at in range(min(3, len(dataset)))]
    start = read_record(out).get("start")
    write_model(
        network,
        settings,
        step,
        out / "model",
        name=out.resolve().name,
        noted={
            **({} if start is None else {"start": start}),
            "commit": git_commit(),
            "fairweather": fairweather.__version__,
            "torch": torch.__version__,
            **engine.recipe.notes(),
        },
        photos=[crop.permute(1, 2, 0).numpy() for crop in crops],
    )


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    direction: Direction = "restore",
    photos: Sequence[NDArray[Any]] = (),
    dataset: Dataset | None = None,
    choice: str | None = None,
    half: bool | None = None,
) -> model_folder.Card:
    """A model folder of a run's last checkpoint, whether the run has ended or not, and its card.

    `restore` is the generator that `train` ships (its moving average where it ships that), `degrade` the one that
    makes clear photos degraded. Batch norm is measured anew as at a run's end, on `dataset` or on the run's own photos;
    where those cannot be opened, the log and the card say that it is not. A run that has ended, with its RUN/model,
    gives that model again. `photos` are what the engines are compared on, invented pictures where there are none.
    `choice` goes onto the card: why this model of those that were kept. `half` rounds weights to float16.

    Raises BadFolder (no run, no checkpoint, no step taken yet), BadSettings (a recipe that learns no weather) and what
    `fairweather.deploy.onnx_export.export_generator` raises.
    """
    from fairweather.deploy.onnx_export import export_model_folder

    run = Path(run)
    refuse_within(out, [run])
    record, shipped = read_record(run), run / "model"
    try:
        saved = checkpoint.load_checkpoint(run / "checkpoints")
    except BadFolder as error:
        if direction == "restore" and has_ended(run, None):
            return export_model_folder(shipped, out, photos=photos, choice=choice, half=half)
        raise BadFolder(f"{run}: its networks are in its checkpoint, and there is none to be read ({error})") from error
    step = saved["step"]
    ended = has_ended(run, step)
    if direction == "restore" and ended:
        return export_model_folder(shipped, out, photos=photos, choice=choice, half=half)
    if step == 0:
        raise BadFolder(f"{run} holds no trained network yet: its last checkpoint was written before the first step")
    settings = settings_of(record, run)
    kind = RECIPES[settings.recipe.name]
    network = trained_network(settings, saved["engine"], direction)
    noted = note_export(record, ended=ended)
    if has_batch_norm(network):
        try:
            if dataset is None:
                dataset = _opened(settings, kind)
            own = settings.run
            most = min(RECALIBRATION_SAMPLES, step * (own.batch or kind.batch) * own.devices)
            network = recalibrate_batchnorm(network, dataset, seed=own.seed, most=most, side=SEES_SENTENCE[direction])
        except FairweatherError as error:
            noted["batch_norm"] = "running averages of training, not measured anew"
            log.warning(
                "batch norm keeps the running averages of training, which are less exact: they are measured anew on "
                "the run's photos, and those cannot be opened (%s)",
                error,
            )
    log.info("exporting the network as it was after step %d (%s)", step, direction)
    name = run.resolve().name if direction == "restore" else f"{run.resolve().name}-{direction}"
    return write_model(
        network,
        settings,
        step,
        Path(out),
        name=name,
        direction=direction,
        noted=noted,
        photos=photos,
        choice=choice or "",
        half=bool(half),
    )


def has_ended(run: Path, step: int | None) -> bool:
    """Whether RUN/model is there and of the checkpoint after `step` (None: there is none): else it was gone on with."""
    model = run / "model"
    recover(model)
    if not (model / model_folder.CARD).is_file():
        return False
    return step is None or model_folder.read_card(model, verify=False).training.get("steps") == step


def note_export(record: Mapping[str, Any], *, ended: bool) -> dict[str, Any]:
    """What a run's record says of the machine and the versions that trained it, and of what it started from."""
    return {
        **{key: record[key] for key in ("start",) if key in record},
        **{key: record.get("versions", {}).get(key) for key in ("fairweather", "torch")},
        "commit": record.get("commit"),
        **record.get("notes", {}),
        **({} if ended else {"exported": "from a checkpoint, before the run's end"}),
    }


def write_model(
    network: nn.Module,
    settings: TrainingConfig,
    step: int,
    folder: Path,
    *,
    name: str,
    noted: Mapping[str, Any],
    direction: Direction = "restore",
    photos: Sequence[NDArray[Any]] = (),
    choice: str = "",
    half: bool = False,
) -> model_folder.Card:
    """The network as a model folder, with what the settings say of it; `noted` goes among its training's facts."""
    from fairweather.deploy.onnx_export import export_generator
    from fairweather.deploy.parity import PARITY_ENGINES

    data, run = settings.data, settings.run
    assert data.weather is not None
    return export_generator(
        network,
        folder,
        name=name,
        weather=data.weather,
        generator_name=settings.generator.name,
        arguments=settings.generator.settings,
        licence=data.licence,
        terms=data.terms,
        training=training_facts(settings, step, noted),
        description=data.description,
        direction=direction,
        choice=choice,
        most_pixels=data.most_pixels or 0,
        half=half,
        photos=photos,
        engines=[name for name in PARITY_ENGINES if run.parity == "all" or find_spec(name) is not None],
    )


def training_facts(settings: TrainingConfig, step: int, noted: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of the training."""
    data, run = settings.data, settings.run
    told = ("kind", "path", "weight", "fog", "streaks")
    sources = [{key: source[key] for key in told if key in source} for source in data.sources]
    # Names of folders, not where they lie: a card travels.
    folders = {key: Path(value).name for key in ("folder", "degraded", "clear") if (value := getattr(data, key))}
    return {
        "recipe": settings.recipe.name,
        "settings": {key: _file_name(value) for key, value in settings.recipe.settings.items()},
        "data": {**folders, **({"sources": sources} if sources else {}), "hold_back": data.hold_back},
        "steps": step,
        "batch": run.batch,
        **({"devices": run.devices} if run.devices > 1 else {}),
        "crop": data.crop,
        "seed": run.seed,
        "precision": run.precision,
        "device": run.device,
        **noted,
    }


def git_commit() -> str | None:
    """The commit of the source that runs, with `+` where it was changed since; None outside of git."""
    here = Path(__file__).parent
    try:
        words = [
            subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return words[0].stdout.strip() + ("+" if words[1].stdout.strip() else "")


def settings_of(record: dict[str, Any], run: Path) -> TrainingConfig:
    """The settings in a run's record. Raises BadSettings where they are another release's."""
    try:
        return complete_config(record["settings"], {})
    except (KeyError, BadSettings) as error:
        raise BadSettings(
            f"{run / 'run.json'} is not one that this release understands ({error}): install the release that wrote it"
        ) from None


def trained_network(settings: TrainingConfig, saved: dict[str, Any], direction: Direction) -> nn.Module:
    """The generator of that direction with the checkpoint's weights, in evaluation mode."""
    level = log.level
    log.setLevel(logging.ERROR)  # what a recipe says of its losses' own weights is of no account here
    try:
        recipe = recipe_of(settings)
    finally:
        log.setLevel(level)
    directions = recipe.directions()
    if direction not in directions:
        weather = [name for name, kind in RECIPES.items() if kind.directions is not Recipe.directions]
        raise BadSettings(
            f"--direction {direction}: {settings.recipe.name} learns to {' and to '.join(directions)} alone; "
            f"recipes that learn weather: {', '.join(weather) or 'none'}"
        )
    network = directions[direction]
    if saved["ema"] is not None and network is recipe.restorer_network():
        weights = saved["ema"]["weights"]
    else:
        # Its own tensors alone: a loss may have state that could not be restored on this machine.
        (prefix,) = (f"{name}." for name, module in recipe.named_modules() if module is network)
        state_of = saved["recipe"].items()
        weights = {key.removeprefix(prefix): tensor for key, tensor in state_of if key.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()


def _opened(settings: TrainingConfig, kind: type[Recipe]) -> Dataset:
    data = settings.data
    if (data.folder or "").startswith("("):
        raise BadFolder("they were given in Python")
    assert data.crop is not None
    return open_data(data, kind, settings.recipe.name, data.crop)


def _file_name(value: Any) -> Any:
    """A setting as a card shows it: of the path of a file, its name."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
