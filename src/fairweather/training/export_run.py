"""Model folders of runs: at the end of a run, or later from its last checkpoint."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

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

log = logging.getLogger("fairweather")

Direction = Literal["restore", "degrade"]
INPUT_SIDE: dict[Direction, Literal["degraded", "clear"]] = {"restore": "degraded", "degrade": "clear"}
"""The side of the data that is the input of a generator."""


def build_recipe(settings: TrainingConfig) -> Recipe:
    """The recipe with fresh networks."""
    kind = RECIPES[settings.recipe.name]
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.recipe.settings.items()}
    return kind(lambda: GENERATORS[settings.generator.name](**settings.generator.settings), kind.settings_type(**own))


def export_model(
    engine: TrainingEngine,
    settings: TrainingConfig,
    dataset: Dataset,
    step: int,
    out: Path,
    gpu_batches: GPUBatches | None = None,
) -> None:
    """Write RUN/model at the end of a run; the engines are compared on training crops. Raises ParityFailed."""
    run = settings.run
    assert run.batch is not None
    most = min(RECALIBRATION_SAMPLES, step * run.batch * run.devices)
    network = recalibrate_batchnorm(engine.restorer_network(), gpu_batches or dataset, seed=run.seed, most=most)
    crops = [dataset.sample(run.seed, 0, at)["degraded"] for at in range(min(3, len(dataset)))]
    start = read_record(out).get("start")
    write_model(
        network,
        settings,
        step,
        out / "model",
        name=out.resolve().name,
        facts={
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
    """Export a run's last checkpoint, whether the run has ended or not.

    Batch norm is recalibrated as at the end of a run; if the photos cannot be opened, a warning and the card say so. A
    run that has ended and has RUN/model gives a copy of that model.

    Args:
        run: the run folder.
        out: the model folder to write.
        direction: `restore` exports the generator that `train` exports, `degrade` the one for the other direction.
        photos: photos to compare the engines on (default: synthetic ones).
        dataset: for the recalibration of batch norm (default: the run's own).
        choice: for the card: why this model was selected among several.
        half: round weights to float16.

    Returns:
        The model's card.

    Raises:
        BadFolder: there is no run or no checkpoint, or the run has not taken a step.
        BadSettings: the recipe has no generator for this direction.
        ParityFailed: an engine and the trained network disagree.
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
        raise BadFolder(f"{run} has no checkpoint to export ({error}): train it first") from error
    step = saved["step"]
    ended = has_ended(run, step)
    if direction == "restore" and ended:
        return export_model_folder(shipped, out, photos=photos, choice=choice, half=half)
    if step == 0:
        raise BadFolder(f"{run} has not taken a step, so there is nothing to export: train it first (--resume)")
    settings = settings_of(record, run)
    kind = RECIPES[settings.recipe.name]
    network = trained_network(settings, saved["engine"], direction)
    facts = run_facts(record, ended=ended)
    if has_batch_norm(network):
        try:
            if dataset is None:
                dataset = _open_data(settings, kind)
            own = settings.run
            most = min(RECALIBRATION_SAMPLES, step * (own.batch or kind.batch) * own.devices)
            network = recalibrate_batchnorm(network, dataset, seed=own.seed, most=most, side=INPUT_SIDE[direction])
        except FairweatherError as error:
            facts["batch_norm"] = "running averages of training, not recalibrated"
            log.warning(
                "batch norm keeps the running averages of training, which are less accurate, since the run's photos "
                "cannot be opened to recalibrate it (%s)",
                error,
            )
    log.info("exporting the network of step %d (%s)", step, direction)
    name = run.resolve().name if direction == "restore" else f"{run.resolve().name}-{direction}"
    return write_model(
        network,
        settings,
        step,
        Path(out),
        name=name,
        direction=direction,
        facts=facts,
        photos=photos,
        choice=choice or "",
        half=bool(half),
    )


def has_ended(run: Path, step: int | None) -> bool:
    """Whether RUN/model exists and belongs to the checkpoint of `step` (None: any); if not, the run was resumed."""
    model = run / "model"
    recover(model)
    if not (model / model_folder.CARD).is_file():
        return False
    return step is None or model_folder.read_card(model, verify=False).training.get("steps") == step


def run_facts(record: Mapping[str, Any], *, ended: bool) -> dict[str, Any]:
    """Facts for the card from a run's record: versions, commit, notes and initial weights."""
    return {
        **{key: record[key] for key in ("start",) if key in record},
        **{key: record.get("versions", {}).get(key) for key in ("fairweather", "torch")},
        "commit": record.get("commit"),
        **record.get("notes", {}),
        **({} if ended else {"exported": "from a checkpoint before the end of the run"}),
    }


def write_model(
    network: nn.Module,
    settings: TrainingConfig,
    step: int,
    folder: Path,
    *,
    name: str,
    facts: Mapping[str, Any],
    direction: Direction = "restore",
    photos: Sequence[NDArray[Any]] = (),
    choice: str = "",
    half: bool = False,
) -> model_folder.Card:
    """Write a network as a model folder; `facts` complete those of the settings on the card."""
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
        training=training_facts(settings, step, facts),
        description=data.description,
        direction=direction,
        choice=choice,
        most_pixels=data.most_pixels or 0,
        half=half,
        photos=photos,
        engines=[name for name in PARITY_ENGINES if run.parity == "all" or find_spec(name) is not None],
    )


def training_facts(settings: TrainingConfig, step: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The card's `training` field: the settings of the run, completed with `facts`."""
    data, run = settings.data, settings.run
    listed = ("kind", "path", "weight", "fog", "streaks")
    sources = [{key: source[key] for key in listed if key in source} for source in data.sources]
    # Names of folders without their paths, which are meaningless on other machines.
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
        **facts,
    }


def git_commit() -> str | None:
    """The commit of this source, with `+` if it has uncommitted changes; None outside of git."""
    here = Path(__file__).parent
    try:
        done = [
            subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return done[0].stdout.strip() + ("+" if done[1].stdout.strip() else "")


def settings_of(record: dict[str, Any], run: Path) -> TrainingConfig:
    """The settings in a run's record. Raises BadSettings if another release wrote them."""
    try:
        return complete_config(record["settings"], {})
    except (KeyError, BadSettings) as error:
        raise BadSettings(
            f"{run / 'run.json'} has settings that this release does not know ({error}): use the release that wrote it"
        ) from None


def trained_network(settings: TrainingConfig, saved: dict[str, Any], direction: Direction) -> nn.Module:
    """The generator of a direction with the checkpoint's weights, in evaluation mode."""
    level = log.level
    log.setLevel(logging.ERROR)  # messages about the weights of losses do not matter here
    try:
        recipe = build_recipe(settings)
    finally:
        log.setLevel(level)
    directions = recipe.directions()
    if direction not in directions:
        weather = [name for name, kind in RECIPES.items() if kind.directions is not Recipe.directions]
        raise BadSettings(
            f"--direction {direction}: {settings.recipe.name} trains {' and '.join(directions)} only; recipes that "
            f"train degrade: {', '.join(weather) or 'none'}"
        )
    network = directions[direction]
    if saved["ema"] is not None and network is recipe.restorer_network():
        weights = saved["ema"]["weights"]
    else:
        # Only its own tensors: a loss may have state that cannot be restored on this machine.
        (prefix,) = (f"{name}." for name, module in recipe.named_modules() if module is network)
        tensors = saved["recipe"].items()
        weights = {key.removeprefix(prefix): tensor for key, tensor in tensors if key.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()


def _open_data(settings: TrainingConfig, kind: type[Recipe]) -> Dataset:
    data = settings.data
    if (data.folder or "").startswith("("):
        raise BadFolder("the dataset was given in Python")
    assert data.crop is not None
    return open_data(data, kind, settings.recipe.name, data.crop)


def _file_name(value: Any) -> Any:
    """A setting for the card; a path is reduced to the file name."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
