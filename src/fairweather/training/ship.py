"""From a run to a model folder: at its end, or later and elsewhere, from its last checkpoint."""

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
from fairweather import cards
from fairweather.data.batched import Batched
from fairweather.data.source import Dataset
from fairweather.errors import BadFolder, BadSettings, FairweatherError
from fairweather.files import recover
from fairweather.generators import GENERATORS
from fairweather.outputs import refuse_within
from fairweather.recipes import RECIPES, Recipe
from fairweather.training import state
from fairweather.training.datasets import open_data
from fairweather.training.engine import Engine
from fairweather.training.gather import complete, read_record
from fairweather.training.precise import SAMPLES, has_batch_norm, with_precise_statistics
from fairweather.training.settings import Settings

log = logging.getLogger("fairweather")

Direction = Literal["restore", "degrade"]
SEES: dict[Direction, Literal["degraded", "clear"]] = {"restore": "degraded", "degrade": "clear"}
"""Which side of the data goes into a generator of each direction."""


def recipe_of(settings: Settings) -> Recipe:
    """The recipe with fresh networks. Raises BadSettings."""
    kind = RECIPES[settings.recipe.name]
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.recipe.settings.items()}
    return kind(lambda: build(settings), kind.settings_type(**own))


def build(settings: Settings) -> nn.Module:
    """A fresh generator. Raises BadSettings where its arguments do not make one."""
    name, arguments = settings.generator.name, settings.generator.settings
    try:
        return GENERATORS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise BadSettings(f"generator {name} with {arguments}: {error}") from error


def export_model(
    engine: Engine, settings: Settings, dataset: Dataset, step: int, out: Path, batched: Batched | None = None
) -> None:
    """RUN/model: the network that ships as a model folder, compared on training crops. Raises ParityFailed."""
    run = settings.run
    assert run.batch is not None
    most = min(SAMPLES, step * run.batch * run.devices)
    network = with_precise_statistics(engine.shipped(), batched or dataset, seed=run.seed, most=most)
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
            "commit": commit(),
            "fairweather": fairweather.__version__,
            "torch": torch.__version__,
            **engine.recipe.remarks(),
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
) -> cards.Card:
    """A model folder of a run's last checkpoint, whether the run has ended or not, and its card.

    `restore` is the generator that `train` ships (its moving average where it ships that), `degrade` the one that
    makes clear photos degraded. Batch norm is measured anew as at a run's end, on `dataset` or on the run's own photos;
    where those cannot be opened, the log and the card say that it is not. A run that has ended, with its RUN/model,
    gives that model again. `photos` are what the engines are compared on, invented pictures where there are none.
    `choice` goes onto the card: why this model of those that were kept. `half` rounds weights to float16.

    Raises BadFolder (no run, no checkpoint, no step taken yet), BadSettings (a recipe that learns no weather) and what
    `fairweather.deploy.export.export` raises.
    """
    from fairweather.deploy.export import reexport

    run = Path(run)
    refuse_within(out, [run])
    record, shipped = read_record(run), run / "model"
    try:
        saved = state.load(run / "state")
    except BadFolder as error:
        if direction == "restore" and has_ended(run, None):
            return reexport(shipped, out, photos=photos, choice=choice, half=half)
        raise BadFolder(f"{run}: its networks are in its checkpoint, and there is none to be read ({error})") from error
    step = saved["step"]
    ended = has_ended(run, step)
    if direction == "restore" and ended:
        return reexport(shipped, out, photos=photos, choice=choice, half=half)
    if step == 0:
        raise BadFolder(f"{run} holds no trained network yet: its last checkpoint was written before the first step")
    settings = settings_of(record, run)
    kind = RECIPES[settings.recipe.name]
    network = trained_network(settings, saved["engine"], direction)
    noted = noted_in(record, ended=ended)
    if has_batch_norm(network):
        try:
            if dataset is None:
                dataset = _opened(settings, kind)
            own = settings.run
            most = min(SAMPLES, step * (own.batch or kind.batch) * own.devices)
            network = with_precise_statistics(network, dataset, seed=own.seed, most=most, side=SEES[direction])
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
    if not (model / cards.CARD).is_file():
        return False
    return step is None or cards.read_card(model, verify=False).training.get("steps") == step


def noted_in(record: Mapping[str, Any], *, ended: bool) -> dict[str, Any]:
    """What a run's record says of the machine and the versions that trained it, and of what it started from."""
    return {
        **{key: record[key] for key in ("start",) if key in record},
        **{key: record.get("versions", {}).get(key) for key in ("fairweather", "torch")},
        "commit": record.get("commit"),
        **record.get("remarks", {}),
        **({} if ended else {"exported": "from a checkpoint, before the run's end"}),
    }


def write_model(
    network: nn.Module,
    settings: Settings,
    step: int,
    folder: Path,
    *,
    name: str,
    noted: Mapping[str, Any],
    direction: Direction = "restore",
    photos: Sequence[NDArray[Any]] = (),
    choice: str = "",
    half: bool = False,
) -> cards.Card:
    """The network as a model folder, with what the settings say of it; `noted` goes among its training's facts."""
    from fairweather.deploy.export import export
    from fairweather.deploy.parity import ENGINES

    data, run = settings.data, settings.run
    assert data.weather is not None
    return export(
        network,
        folder,
        name=name,
        weather=data.weather,
        generator_name=settings.generator.name,
        arguments=settings.generator.settings,
        licence=data.licence,
        terms=data.terms,
        training=facts(settings, step, noted),
        description=data.description,
        direction=direction,
        choice=choice,
        most_pixels=data.most_pixels or 0,
        half=half,
        photos=photos,
        engines=[name for name in ENGINES if run.parity == "all" or find_spec(name) is not None],
    )


def facts(settings: Settings, step: int, noted: Mapping[str, Any]) -> dict[str, Any]:
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


def commit() -> str | None:
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


def settings_of(record: dict[str, Any], run: Path) -> Settings:
    """The settings in a run's record. Raises BadSettings where they are another release's."""
    try:
        return complete(record["settings"], {})
    except (KeyError, BadSettings) as error:
        raise BadSettings(
            f"{run / 'run.json'} is not one that this release understands ({error}): install the release that wrote it"
        ) from None


def trained_network(settings: Settings, saved: dict[str, Any], direction: Direction) -> nn.Module:
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
    if saved["ema"] is not None and network is recipe.shipped():
        weights = saved["ema"]["weights"]
    else:
        # Its own tensors alone: a loss may have state that could not be restored on this machine.
        (prefix,) = (f"{name}." for name, module in recipe.named_modules() if module is network)
        state_of = saved["recipe"].items()
        weights = {key.removeprefix(prefix): tensor for key, tensor in state_of if key.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()


def _opened(settings: Settings, kind: type[Recipe]) -> Dataset:
    data = settings.data
    if (data.folder or "").startswith("("):
        raise BadFolder("they were given in Python")
    assert data.crop is not None
    return open_data(data, kind, settings.recipe.name, data.crop)


def _file_name(value: Any) -> Any:
    """A setting as a card shows it: of the path of a file, its name."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
