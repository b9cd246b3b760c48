"""From settings to a finished run folder: check everything, build, train, export."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fairweather
from fairweather.data.source import Dataset
from fairweather.errors import BadFolder, BadSettings, MissingExtra
from fairweather.generators import GENERATORS
from fairweather.images import atomic
from fairweather.recipes import RECIPES, Recipe
from fairweather.training.allocator import MALLOC, tuned
from fairweather.training.datasets import open_data
from fairweather.training.engine import Engine
from fairweather.training.gather import Tables, complete, gather, read_record, resumed
from fairweather.training.loop import fit
from fairweather.training.precise import SAMPLES, with_precise_statistics
from fairweather.training.run import Run
from fairweather.training.settings import CADENCE, LENGTHS, Settings
from fairweather.training.state import seed_everything

log = logging.getLogger("fairweather")


def conduct(
    recipe: str | None, config: str | Path | None, given: Tables, out: Path, *, resume: bool, dataset: Dataset | None
) -> Run:
    """`train`, with its arguments sorted into tables."""
    tables, said = gather(recipe, config, given)
    lengths: list[str] = []
    if resume:
        record = read_record(out)
        settings, lengths = resumed(record, tables, said)
    else:
        if (out / "run.json").exists():
            raise BadFolder(f"{out} holds a run already: go on with it (--resume) or take another folder (--out)")
        settings = complete(tables, said)

    check_exporters(settings.run.parity)
    run, crop = settings.run, settings.data.crop
    assert crop is not None
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    seed_everything(run.seed)
    kind = RECIPES[settings.recipe.name]
    network = kind(lambda: build(settings), kind.settings_type(**_tuples(kind, settings.recipe.settings)))
    check_crop(network, crop, settings)
    if dataset is None:
        dataset = open_data(settings.data, kind, settings.recipe.name, crop)
    engine = Engine(network, device=run.device, precision=run.precision, seed=run.seed)
    if lengths and any(p.schedule != "constant" or p.warmup for p in engine.players.values()):
        raise BadSettings(
            f"run.{lengths[0]} differs from the run's own, and its learning rates depend on the length; "
            "resume with the same length, or start another run"
        )
    settings = dataclasses.replace(
        settings, run=dataclasses.replace(run, device=engine.device, precision=engine.precision)
    )
    if resume:
        _same_machine(record, settings)
        _compare_versions(record)
    write_record(out, settings, engine)
    log.info(
        "%s with %s on %s (%s), %d photos an epoch, batch %s, %s",
        *(settings.recipe.name, settings.generator.name, engine.device, engine.precision, len(dataset), run.batch),
        next(f"{value} {key}" for key in LENGTHS if (value := getattr(run, key)) is not None),
    )
    if engine.device == "cpu" and not tuned(os.environ):
        words = " ".join(f"{key}={value}" for key, value in MALLOC.items())
        log.info("training on this CPU is nearly twice as fast in a process started with %s", words)
    step = fit(engine, dataset, settings.run, out, crop=crop, paired=kind.paired, resume=resume)
    export_model(engine, settings, dataset, step, out)
    log.info("the model is in %s", out / "model")
    return Run(out)


def build(settings: Settings) -> torch.nn.Module:
    """A fresh generator. Raises BadSettings where its arguments do not make one."""
    name, arguments = settings.generator.name, settings.generator.settings
    try:
        return GENERATORS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise BadSettings(f"generator {name} with {arguments}: {error}") from error


def check_crop(recipe: Recipe, crop: int, settings: Settings) -> None:
    """Raises BadSettings where the generator cannot take crops of this size."""
    multiple = getattr(recipe.shipped(), "multiple_of", 1)
    if crop % multiple:
        near = max(1, round(crop / multiple)) * multiple
        raise BadSettings(
            f"data.crop is {crop}, but {settings.generator.name} needs a multiple of {multiple}; {near} is the nearest"
        )


def _tuples(kind: type[Recipe], values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _same_machine(record: dict[str, Any], settings: Settings) -> None:
    for key in ("device", "precision"):
        before, now = record["settings"]["run"][key], getattr(settings.run, key)
        if before != now:
            raise BadSettings(f"run.{key} is {now!r}, but the run was started with {before!r}; resume it with that one")


def _compare_versions(record: dict[str, Any]) -> None:
    before, now = ({**one["versions"], "threads": one["machine"]["threads"]} for one in (record, _surroundings()))
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if value != before.get(key)]
    if changed:
        log.warning("resuming is not exact to the bit, since something changed: %s", ", ".join(changed))


def _surroundings() -> dict[str, Any]:
    return {
        "versions": {
            "fairweather": fairweather.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
    }


def check_exporters(parity: str) -> None:
    """Raises MissingExtra now rather than after hours of training."""
    for module, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "train"), ("openvino", None)):
        if find_spec(module) is None and not (module == "openvino" and parity == "installed"):
            raise MissingExtra(module, extra, "exporting the trained model")


def write_record(out: Path, settings: Settings, engine: Engine) -> None:
    """run.json: every setting, versions, seed, commit. Raises BadFolder where the folder cannot be written."""
    tree: Tables = {}
    for key, value in settings.flat().items():
        table, _, name = key.partition(".")
        tree.setdefault(table, {})[name] = value
    record = {
        "format": 1,
        "settings": tree,
        "may_change": sorted(CADENCE),
        "channels_last": engine.channels_last,
        "parameters": {name: sum(p.numel() for p in player.parameters()) for name, player in engine.players.items()},
        **_surroundings(),
        "commit": commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / "run.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFolder(f"{out}: the run folder cannot be written ({error}); take another one (--out)") from error


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


def export_model(engine: Engine, settings: Settings, dataset: Dataset, step: int, out: Path) -> None:
    """RUN/model: the network that ships as a model folder, compared on training crops. Raises ParityFailed."""
    from fairweather.deploy.export import export
    from fairweather.deploy.parity import ENGINES

    data, run = settings.data, settings.run
    assert run.batch is not None
    network = with_precise_statistics(engine.shipped(), dataset, seed=run.seed, most=min(SAMPLES, step * run.batch))
    crops = [dataset.sample(run.seed, 0, at)["degraded"] for at in range(min(3, len(dataset)))]
    sources = [{key: source[key] for key in ("kind", "path", "weight") if key in source} for source in data.sources]
    # Names of folders, not where they lie: a card travels.
    folders = {key: Path(value).name for key in ("folder", "degraded", "clear") if (value := getattr(data, key))}
    export(
        network,
        out / "model",
        name=out.resolve().name,
        weather=data.weather,
        generator_name=settings.generator.name,
        arguments=settings.generator.settings,
        licence=data.licence,
        terms=data.terms,
        training={
            "recipe": settings.recipe.name,
            "settings": settings.recipe.settings,
            "data": {**folders, **({"sources": sources} if sources else {})},
            "steps": step,
            "batch": run.batch,
            "crop": data.crop,
            "seed": run.seed,
            "precision": run.precision,
            "device": engine.device,
            "commit": commit(),
            "fairweather": fairweather.__version__,
            "torch": torch.__version__,
        },
        description=data.description,
        photos=[crop.permute(1, 2, 0).numpy() for crop in crops],
        engines=[name for name in ENGINES if run.parity == "all" or find_spec(name) is not None],
    )
