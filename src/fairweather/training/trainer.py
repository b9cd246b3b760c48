"""From settings to a finished run folder: check everything, build, train, export."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fairweather
from fairweather import model_folder
from fairweather.data.datasets import Dataset
from fairweather.data.gpu_batches import GPUBatches
from fairweather.errors import BadFolder, BadSettings, MissingExtra
from fairweather.files import atomic, check_place, refuse_other_than_model, refuse_within, sweep
from fairweather.recipes import RECIPES, Recipe
from fairweather.training import distributed
from fairweather.training.allocator import MALLOC, tuned
from fairweather.training.checkpoint import disk_errors, seed_everything
from fairweather.training.config import (
    CADENCE,
    LENGTHS,
    Tables,
    TrainingConfig,
    collect_tables,
    complete_config,
    read_record,
    resume_config,
)
from fairweather.training.dataloader import check_choice, check_headers, on_device, open_data
from fairweather.training.distributed import ProcessGroup
from fairweather.training.export_run import export_model, git_commit, recipe_of
from fairweather.training.initial_weights import InitialWeights, read_initial_weights
from fairweather.training.loop import fit
from fairweather.training.optimization import TrainingEngine, choose_device, choose_precision
from fairweather.training.run_folder import Run

log = logging.getLogger("fairweather")


def run_training(
    recipe: str | None, config: str | Path | None, given: Tables, out: Path, *, resume: bool, dataset: Dataset | None
) -> Run:
    """`train`, with its arguments sorted into tables."""
    if not distributed.is_main():
        log.setLevel(logging.ERROR)
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # our own line says which precision it is
    check_place(out, "--out")
    with distributed.agree_on_errors():
        settings, lengths, record, start = _load_config(recipe, config, given, out, resume=resume)
        check_out(out, settings, fresh=not resume)
        check_exporters(settings.run.parity)
        run = settings.run
        device = choose_device(run.device)
        precision = choose_precision(run.precision, device)
        processes = ProcessGroup(device, precision, run.devices)
    with processes.together():
        dataset, batched, settings, engine = _prepare(settings, processes, dataset, lengths, record, start)
        if processes.main:
            for place in (out, out / "checkpoints", out / "samples"):
                sweep(place)
            begun = (record or {}).get("start") if start is None else start.training
            write_record(out, settings, engine, begun)
    if batched is not None:
        log.info("batches are made on %s, of photos that take %.2f GiB there", batched.device, batched.used / 2**30)
    log.info(
        "%s with %s on %s (%s), %d photos an epoch, batch %s, %s",
        *(settings.recipe.name, settings.generator.name),
        device if processes.size == 1 else f"{processes.size} x {device}",
        *(precision, len(dataset), processes.size * (run.batch or 0)),
        next(f"{value} {key}" for key in LENGTHS if (value := getattr(run, key)) is not None),
    )
    if engine.device == "cpu" and not tuned(os.environ):
        words = " ".join(f"{key}={value}" for key, value in MALLOC.items())
        log.info("training on this CPU is nearly twice as fast in a process started with %s", words)
    crop, paired = settings.data.crop, engine.recipe.paired
    assert crop is not None
    step = fit(engine, dataset, settings.run, out, crop=crop, paired=paired, resume=resume, batched=batched)
    processes.finish()
    with processes.together():
        if processes.main:
            with disk_errors(out, out / "model"):
                export_model(engine, settings, dataset, step, out, batched)
    log.info("the model is in %s", out / "model")
    return Run(out)


def _load_config(
    recipe: str | None, config: str | Path | None, given: Tables, out: Path, *, resume: bool
) -> tuple[TrainingConfig, list[str], dict[str, Any] | None, InitialWeights | None]:
    """The settings, the lengths that differ from those of the run that goes on, the record of that run; and what a new
    run starts from."""
    tables, said = collect_tables(recipe, config, given)
    devices = distributed.resolve_devices(tables["run"].get("devices"), said.get("run.devices"))
    if devices is not None:
        tables["run"]["devices"] = devices
        said.setdefault("run.devices", "as many as were started")
    if resume:
        record = read_record(out)
        return *resume_config(record, tables, said), record, None
    if (out / "run.json").exists():
        raise BadFolder(f"{out} holds a run already: go on with it (--resume) or take another folder (--out)")
    start = None
    if tables["run"].get("start") is not None:
        start = read_initial_weights(str(tables["run"]["start"]))
        tables["generator"] = start.completed(tables["generator"])
    settings = complete_config(tables, said)
    if start is not None:
        start.check(settings.generator)
    return settings, [], None, start


def _prepare(
    settings: TrainingConfig,
    processes: ProcessGroup,
    dataset: Dataset | None,
    lengths: list[str],
    record: dict[str, Any] | None,
    start: InitialWeights | None,
) -> tuple[Dataset, GPUBatches | None, TrainingConfig, TrainingEngine]:
    """Photos (and what makes batches of them on the device) and networks, and the settings with what "auto" came to."""
    run, crop = settings.run, settings.data.crop
    assert crop is not None
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    seed_everything(run.seed)
    kind = RECIPES[settings.recipe.name]
    network = recipe_of(settings)
    if start is not None:
        start.load(network.restorer_network())
        log.info("the network begins with the weights of %s", start.place)
    check_crop(network, crop, settings)
    if dataset is None:
        check_choice(settings.data, kind, settings.recipe.name)
        check_headers(settings.data, kind, crop, quiet=not processes.main)
        # Each process keeps photos of its own.
        data = dataclasses.replace(settings.data, memory_gib=settings.data.memory_gib / processes.local)
        dataset = open_data(data, kind, settings.recipe.name, crop)
    engine = TrainingEngine(
        network,
        device=run.device,
        precision=run.precision,
        seed=run.seed,
        processes=processes,
        compiled=run.compile,
    )
    if not processes.main:
        seed_everything(processes.seed(run.seed))  # dropout of its own; the weights are the main process's
    if lengths and any(p.schedule != "constant" or p.warmup for p in engine.optimizer_groups.values()):
        raise BadSettings(
            f"run.{lengths[0]} differs from the run's own, and its learning rates depend on the length; "
            "resume with the same length, or start another run"
        )
    batched = on_device(settings.data, dataset, engine.fabric.device)
    settings = dataclasses.replace(
        settings,
        run=dataclasses.replace(run, device=engine.device, precision=engine.precision),
        data=dataclasses.replace(settings.data, on_device=batched is not None),
    )
    if record is not None:
        _same_machine(record, settings)
        _compare_versions(record)
    return dataset, batched, settings, engine


def check_out(out: Path, settings: TrainingConfig, *, fresh: bool) -> None:
    """Raises BadFolder where what a run writes would replace what it reads, or a folder that is not its own."""
    data = settings.data
    photos = [place for place in (data.folder, data.degraded, data.clear) if place is not None]
    if os.path.realpath(out) in map(os.path.realpath, photos):
        raise BadFolder(f"{out} is the folder of the photos; choose another with --out")
    for name in ("samples", "checkpoints"):
        refuse_within(out / name, photos, "--out")
    start = settings.run.start if fresh else None  # a run that goes on has read its start already
    if start is not None and start not in model_folder.shipped():
        photos += [
            place for place in (start, f"{start}/model") if os.path.isfile(os.path.join(place, model_folder.CARD))
        ]
    refuse_within(out / "model", photos, "--out")
    refuse_other_than_model(out / "model", "--out")


def check_crop(recipe: Recipe, crop: int, settings: TrainingConfig) -> None:
    """Raises BadSettings where the generator cannot take crops of this size."""
    multiple = getattr(recipe.restorer_network(), "multiple_of", 1)
    if crop % multiple:
        near = max(1, round(crop / multiple)) * multiple
        raise BadSettings(
            f"data.crop is {crop}, but {settings.generator.name} needs a multiple of {multiple}; {near} is the nearest"
        )


def _same_machine(record: dict[str, Any], settings: TrainingConfig) -> None:
    for key in ("device", "precision"):
        before, now = record["settings"]["run"][key], getattr(settings.run, key)
        if before != now:
            raise BadSettings(f"run.{key} is {now!r}, but the run was started with {before!r}; resume it with that one")


def _compare_versions(record: dict[str, Any]) -> None:
    before, now = ({**one["versions"], "threads": one["machine"]["threads"]} for one in (record, _environment()))
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if value != before.get(key)]
    if changed:
        log.warning("resuming is not exact to the bit, since something changed: %s", ", ".join(changed))


def _environment() -> dict[str, Any]:
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


def write_record(
    out: Path, settings: TrainingConfig, engine: TrainingEngine, start: dict[str, Any] | None = None
) -> None:
    """run.json: every setting, versions, seed, commit, and what the run started from. Raises BadFolder where the folder
    cannot be written."""
    tree: Tables = {}
    for key, value in settings.flat().items():
        table, _, name = key.partition(".")
        tree.setdefault(table, {})[name] = value
    record = {
        "format": 1,
        "settings": tree,
        **({} if start is None else {"start": start}),
        "may_change": sorted(CADENCE),
        "channels_last": engine.channels_last,
        "parameters": {
            name: sum(p.numel() for p in group.parameters()) for name, group in engine.optimizer_groups.items()
        },
        **_environment(),
        "commit": git_commit(),
        "notes": engine.recipe.notes(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / "run.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFolder(f"{out}: the run folder cannot be written ({error}); take another one (--out)") from error
