"""Setup and end of a run: check everything before any work, build networks and data, write run.json, export."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import time
from dataclasses import dataclass
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
    CHANGEABLE,
    LENGTHS,
    Tables,
    TrainingConfig,
    collect_tables,
    complete_config,
    read_record,
    resume_config,
)
from fairweather.training.dataloader import check_headers, check_sources, gpu_batches, open_data
from fairweather.training.distributed import ProcessGroup
from fairweather.training.export_run import build_recipe, export_model, git_commit
from fairweather.training.initial_weights import InitialWeights, read_initial_weights
from fairweather.training.optimization import TrainingEngine, choose_device, choose_precision

log = logging.getLogger("fairweather")


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready for `loop.fit`."""

    config: TrainingConfig
    """Complete settings; "auto" is resolved."""
    engine: TrainingEngine
    dataset: Dataset
    gpu_batches: GPUBatches | None
    """Prepares the batches of the dataset on the device; None: the data loader does."""
    out: Path


def prepare(
    recipe: str | None, config: str | Path | None, given: Tables, out: Path, *, resume: bool, dataset: Dataset | None
) -> PreparedRun:
    """Check the settings, start the processes, open the photos, build the networks and write run.json.

    Args:
        recipe, config: as for `fairweather.train`.
        given: its other arguments, by table.
        out: the run folder.
        resume: continue the run in `out`.
        dataset: a dataset passed in Python, or None.
    """
    if not distributed.is_main():
        log.setLevel(logging.ERROR)
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # our own line names the precision
    check_place(out, "--out")
    with distributed.agree_on_errors():
        settings, lengths, record, start = _load_config(recipe, config, given, out, resume=resume)
        _check_out(out, settings, fresh=not resume)
        _check_exporters(settings.run.parity)
        device = choose_device(settings.run.device)
        processes = ProcessGroup(device, choose_precision(settings.run.precision, device), settings.run.devices)
    with processes.together():
        prepared = _build(settings, processes, dataset, out, start)
        groups = prepared.engine.optimizer_groups.values()
        if lengths and any(group.schedule != "constant" or group.warmup for group in groups):
            raise BadSettings(
                f"run.{lengths[0]} differs from the run's own, and its learning rates depend on the length: "
                "resume with the same length, or start another run"
            )
        if record is not None:
            _check_machine(record, prepared.config)
        if processes.main:
            for folder in (out, out / "checkpoints", out / "samples"):
                sweep(folder)
            _write_record(prepared, (record or {}).get("start") if start is None else start.training)
    _log_start(prepared)
    return prepared


def finish(prepared: PreparedRun, step: int) -> None:
    """Export the network as RUN/model, in the main process. Raises ParityFailed, BadFolder."""
    processes, out = prepared.engine.processes, prepared.out
    processes.finish()
    with processes.together():
        if processes.main:
            with disk_errors(out, out / "model"):
                export_model(prepared.engine, prepared.config, prepared.dataset, step, out, prepared.gpu_batches)
    log.info("the model is in %s", out / "model")


def check_crop(recipe: Recipe, crop: int, settings: TrainingConfig) -> None:
    """Raise BadSettings if the generator cannot process crops of this size."""
    multiple = getattr(recipe.restorer_network(), "multiple_of", 1)
    if crop % multiple:
        near = max(1, round(crop / multiple)) * multiple
        raise BadSettings(
            f"data.crop is {crop}, but {settings.generator.name} needs a multiple of {multiple}: use {near}"
        )


def _load_config(
    recipe: str | None, config: str | Path | None, given: Tables, out: Path, *, resume: bool
) -> tuple[TrainingConfig, list[str], dict[str, Any] | None, InitialWeights | None]:
    """The settings; when resuming, also the changed lengths and the run's record; otherwise the initial weights."""
    tables, origins = collect_tables(recipe, config, given)
    devices = distributed.resolve_devices(tables["run"].get("devices"), origins.get("run.devices"))
    if devices is not None:
        tables["run"]["devices"] = devices
        origins.setdefault("run.devices", "the number of processes started")
    if resume:
        record = read_record(out)
        return *resume_config(record, tables, origins), record, None
    # A run that was killed before its first checkpoint cannot be resumed, and a restart loses nothing.
    results = (out / "stats.jsonl", out / "model", *(out / "checkpoints").glob("*.pt"))
    if (out / "run.json").exists() and any(path.exists() for path in results):
        raise BadFolder(f"{out} already contains a run: resume it (--resume), or use another folder (--out)")
    start = None
    if tables["run"].get("start") is not None:
        start = read_initial_weights(str(tables["run"]["start"]))
        tables["generator"] = start.completed(tables["generator"])
    settings = complete_config(tables, origins)
    if start is not None:
        start.check(settings.generator)
    return settings, [], None, start


def _build(
    settings: TrainingConfig, processes: ProcessGroup, dataset: Dataset | None, out: Path, start: InitialWeights | None
) -> PreparedRun:
    """Open the photos and build the networks."""
    run, crop = settings.run, settings.data.crop
    assert crop is not None
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    seed_everything(run.seed)
    kind = RECIPES[settings.recipe.name]
    recipe = build_recipe(settings)
    if start is not None:
        start.load(recipe.restorer_network())
        log.info("initial weights: %s", start.place)
    check_crop(recipe, crop, settings)
    if dataset is None:
        check_sources(settings.data, kind, settings.recipe.name)
        check_headers(settings.data, kind, crop, quiet=not processes.main)
        # Each process decodes its own photos.
        data = dataclasses.replace(settings.data, memory_gib=settings.data.memory_gib / processes.local)
        dataset = open_data(data, kind, settings.recipe.name, crop)
    engine = TrainingEngine(
        recipe,
        device=run.device,
        precision=run.precision,
        seed=run.seed,
        processes=processes,
        compiled=run.compile,
    )
    if not processes.main:
        seed_everything(processes.seed(run.seed))  # for dropout; the weights are the main process's
    batches = gpu_batches(settings.data, dataset, engine.fabric.device)
    settings = dataclasses.replace(
        settings,
        run=dataclasses.replace(run, device=engine.device, precision=engine.precision),
        data=dataclasses.replace(settings.data, on_device=batches is not None),
    )
    return PreparedRun(settings, engine, dataset, batches, out)


def _log_start(prepared: PreparedRun) -> None:
    config, run, engine = prepared.config, prepared.config.run, prepared.engine
    if (batches := prepared.gpu_batches) is not None:
        log.info("batches are prepared on %s; the photos take %.2f GiB there", batches.device, batches.used / 2**30)
    size = engine.processes.size
    log.info(
        "%s with %s on %s (%s), %d photos per epoch, batch %s, %s",
        *(config.recipe.name, config.generator.name),
        engine.device if size == 1 else f"{size} x {engine.device}",
        *(engine.precision, len(prepared.dataset), size * (run.batch or 0)),
        next(f"{value} {key}" for key in LENGTHS if (value := getattr(run, key)) is not None),
    )
    if engine.device == "cpu" and not tuned(os.environ):
        variables = " ".join(f"{key}={value}" for key, value in MALLOC.items())
        log.info("training on this CPU is nearly twice as fast in a process started with %s", variables)


def _check_out(out: Path, settings: TrainingConfig, *, fresh: bool) -> None:
    """Raise BadFolder if the run would overwrite its inputs, or a folder that is not a run's."""
    data = settings.data
    inputs = [place for place in (data.folder, data.degraded, data.clear) if place is not None]
    if os.path.realpath(out) in map(os.path.realpath, inputs):
        raise BadFolder(f"{out} is the folder of the photos: choose another with --out")
    for name in ("samples", "checkpoints"):
        refuse_within(out / name, inputs, "--out")
    start = settings.run.start if fresh else None  # a resumed run has read its initial weights already
    if start is not None and start not in model_folder.shipped():
        inputs += [
            place for place in (start, f"{start}/model") if os.path.isfile(os.path.join(place, model_folder.CARD))
        ]
    refuse_within(out / "model", inputs, "--out")
    refuse_other_than_model(out / "model", "--out")


def _check_exporters(parity: str) -> None:
    """Raise MissingExtra before training rather than after it."""
    for module, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "train"), ("openvino", None)):
        if find_spec(module) is None and not (module == "openvino" and parity == "installed"):
            raise MissingExtra(module, extra, "exporting the trained model")


def _check_machine(record: dict[str, Any], settings: TrainingConfig) -> None:
    """Raise BadSettings if the device or precision changed; warn about other differences."""
    for key in ("device", "precision"):
        before, now = record["settings"]["run"].get(key), getattr(settings.run, key)
        if before != now:
            raise BadSettings(f"run.{key} is {now!r}, but the run was started with {before!r}: resume with that value")
    old, new = ({**one["versions"], "threads": one["machine"].get("threads")} for one in (record, _environment()))
    changed = [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if value != old.get(key)]
    if changed:
        log.warning("the resumed run may differ in the last bits, since these changed: %s", ", ".join(changed))


def _write_record(prepared: PreparedRun, start: dict[str, Any] | None) -> None:
    """Write run.json: every setting, versions, seed, commit and the initial weights. Raises BadFolder."""
    engine, out = prepared.engine, prepared.out
    record = {
        "format": 1,
        "settings": prepared.config.tables(),
        **({} if start is None else {"start": start}),
        "may_change": sorted(CHANGEABLE),
        "channels_last": engine.channels_last,
        "parameters": {name: sum(p.numel() for p in group) for name, group in engine.parameters.items()},
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
        raise BadFolder(f"the run folder {out} cannot be written ({error}): choose another (--out)") from error


def _environment() -> dict[str, Any]:
    return {
        "versions": {
            "fairweather": fairweather.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
    }
