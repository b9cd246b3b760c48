"""The settings of a run: dataclasses that define the TOML schema, the command line's flags and `train`'s arguments.

    [run]        RunConfig      length, precision, hardware, checkpoints and logs
    [data]       DataConfig     the photos, and how the model's card describes them
    [recipe]     name, and the fields of the recipe's own settings
    [generator]  name, and the generator's own arguments

A TOML file may extend another one (`extends = "other.toml"`). `run.json` in a run folder records every setting.
Imports no torch, so that `fairweather train --help` is quick.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from fairweather import model_folder
from fairweather.errors import BadFolder, BadSettings, UnknownName
from fairweather.validation import check_keys, checked_value, dataclass_from, quoted

if TYPE_CHECKING:
    from fairweather.recipes import Recipe

log = logging.getLogger("fairweather")

RECIPE_NAMES = ("cyclegan", "pix2pix", "claritygan", "hazeheal", "derain", "supervised", "supervised_video")
"""The keys of `fairweather.recipes.RECIPES`, without importing torch."""
LENGTHS = ("steps", "epochs", "minutes")
TABLES = ("run", "data", "recipe", "generator")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Interval = Annotated[int, Meta(ge=0, le=10**9)]
Minutes = Annotated[float, Meta(gt=0, le=10 * 366 * 24 * 60)]
PathText = Annotated[str, Meta(min_length=1, pattern=r"\A[^\0]+\Z", description="a path")]


_CHANGEABLE = {"changeable": True}
"""Marks a field that may differ when a run resumes, since it affects no weight."""


@dataclass(frozen=True)
class RunConfig:
    """Length, precision, hardware, checkpoints and logs."""

    steps: Count | None = None
    """Length in steps. Give one of steps, epochs and minutes (default: the recipe's number of epochs)."""
    epochs: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    """Length in passes over the data."""
    minutes: Minutes | None = None
    """Length in minutes; learning rates follow the clock too, so such a run cannot be reproduced exactly."""
    batch: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Samples per step and process (default: the recipe's)."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Seed of the initial weights, the sample order and every random draw."""
    start: PathText | None = None
    """Initial weights for fine-tuning: a run folder, a model folder or a shipped model's name. The generator and its
    arguments are taken from there unless given. Optimizers and schedules start fresh. Ignored when resuming."""
    precision: Precision = "auto"
    """fp32, or mixed precision with bf16 or fp16 (CUDA only). auto: bf16 if the device supports it in hardware."""
    device: Device = "auto"
    """cpu, cuda or mps. auto: cuda if available, else mps, else cpu."""
    devices: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Number of processes, each on its own GPU or on a share of the CPU. Gradients are averaged; batch statistics,
    dropout and sample histories are separate. Under torchrun, the default is its number of processes."""
    compile: bool = False
    """Compile the generators with torch.compile: the first step takes a minute or more, later ones less. Needs a C++
    compiler; results differ in the last bits."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """CPU threads of each process (default: PyTorch's choice)."""
    workers: Annotated[int, Meta(ge=0, le=256)] | None = field(default=None, metadata=_CHANGEABLE)
    """Processes that prepare samples for each training process; 0 prepares them between steps (default: 1 on a CPU, up
    to 8 with a GPU, on Linux)."""
    checkpoint_steps: Count | None = field(default=None, metadata=_CHANGEABLE)
    """Steps between checkpoints."""
    checkpoint_minutes: Minutes | None = field(default=None, metadata=_CHANGEABLE)
    """Minutes between checkpoints (default: 5, if checkpoint_steps is not given)."""
    sample_steps: Interval = field(default=500, metadata=_CHANGEABLE)
    """Steps between sample sheets (input | output | target) in samples/; 0 disables them."""
    sample_epochs: Interval = field(default=0, metadata=_CHANGEABLE)
    """Epochs between sample sheets of the same photos; 0 disables them."""
    validate_steps: Interval = field(default=0, metadata=_CHANGEABLE)
    """Steps between PSNR measurements on the holdout; 0 measures at the end only."""
    log_steps: Interval = field(default=50, metadata=_CHANGEABLE)
    """Steps between log lines when there is no terminal for a progress bar; 0 disables them."""
    parity: Literal["all", "installed"] = field(default="all", metadata=_CHANGEABLE)
    """Engines that must agree with PyTorch before RUN/model is written: all, or those that are installed."""
    tensorboard: bool = field(default=True, metadata=_CHANGEABLE)
    """Write TensorBoard files, if tensorboard is installed."""


@dataclass(frozen=True)
class DataConfig:
    """The photos (`folder` for pairs or `sources`, else `degraded` and `clear`), and facts for the model's card."""

    folder: PathText | None = None
    """Folder of pairs (e.g. hazy/ and GT/), or the folder to which the paths of `sources` are relative."""
    degraded: PathText | None = None
    """Folder of degraded photos, for unpaired training."""
    clear: PathText | None = None
    """Folder of clear photos, for unpaired training; they need not show the same scenes."""
    crop: Annotated[int, Meta(ge=1, le=8192)] | None = None
    """Side of the training crops in pixels (default: augment.crop, else the recipe's)."""
    on_device: bool | None = None
    """Decode the photos of a mixture into device memory once, and prepare batches there, without `run.workers`
    (default: on CUDA, if the photos fit)."""
    hold_back: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of the scenes held out of training; their PSNR is measured every `validate_steps` and at the end."""
    memory_gib: Annotated[float, Meta(gt=0, le=65536)] = 4.0
    """Memory limit for decoded photos in GiB."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Fields of fairweather.data.Augment (default for pix2pix and the unpaired recipes: as in their papers)."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Weighted mixture: one table per source with the fields of fairweather.data.SourceSettings."""
    samples: Count | None = None
    """Samples per epoch of a mixture (default: the number of its photos)."""
    frames: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Frames per sample of a mixture, for recipes that train on clips."""
    short_side: Annotated[int, Meta(ge=1, le=65536)] | None = None
    """Short side in pixels to which the photos of a mixture are reduced in memory (default: twice the crop)."""
    depths: PathText | None = None
    """Folder of estimated depth maps for the synthetic haze of a mixture; in a config file relative to `folder`."""
    most_pixels: Count | None = None
    """Recorded on the card of a model that predicts images, not used in training: larger photos are reduced to about
    this many pixels, and the change is enlarged. For weather of a fixed size in pixels, such as rain streaks."""
    weather: Annotated[str, Meta(min_length=1, max_length=100, description="1 to 100 characters")] | None = None
    """Weather on the degraded photos, for the card (default: the recipe's)."""
    terms: str = "not stated"
    """Terms of use of the photos, for the card."""
    licence: str = "not stated"
    """Licence of the resulting model, for the card."""
    description: str = ""
    """A sentence about the model, for the card."""


CHANGEABLE = frozenset(f"run.{one.name}" for one in dataclasses.fields(RunConfig) if one.metadata.get("changeable"))
"""Settings that may differ when a run resumes."""

OPTIONS: dict[str, tuple[str, dataclasses.Field[Any]]] = {
    {"folder": "data"}.get(one.name, one.name): (table, one)
    for table, config in (("run", RunConfig), ("data", DataConfig))
    for one in dataclasses.fields(config)
}
"""Every option of `train` and of the command line -> its TOML table and field. `data` is `[data] folder`."""


@dataclass(frozen=True)
class NamedArguments:
    """A recipe or a generator: its name and its own settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run."""

    recipe: NamedArguments
    generator: NamedArguments
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def tables(self) -> Tables:
        """The settings as plain values, as read from JSON."""
        tree = {"run": dataclasses.asdict(self.run), "data": dataclasses.asdict(self.data)}
        for key, named in (("recipe", self.recipe), ("generator", self.generator)):
            tree[key] = {"name": named.name, **named.settings}
        plain: Tables = to_plain(tree)
        return plain


Tables = dict[str, dict[str, Any]]
"""TOML table -> key -> value."""
Origins = dict[str, str]
"""Dotted name of a setting -> where it was given: a file, or "the arguments"."""


def collect_tables(recipe: str | None, config: str | Path | None, given: Tables) -> tuple[Tables, Origins]:
    """Merge a settings file with arguments, which override it.

    Args:
        recipe: name of the recipe; must be the same as the file's, if both name one.
        config: TOML file, or None.
        given: arguments by table; None values are ignored.

    Returns:
        The tables, and where each setting was given.

    Raises:
        BadSettings: the file cannot be parsed or has an unknown key, or it names another recipe.
        BadFolder: there is no such file.
    """
    tables: Tables = {table: {} for table in TABLES}
    origins: Origins = {}
    if config is not None:
        for table, rows in read_toml(config).items():
            tables[table] |= rows
            origins |= {f"{table}.{key}": str(config) for key in rows}
    named = tables["recipe"].get("name")
    if recipe is not None:
        if named is not None and named != recipe:
            raise BadSettings(f"{config}: recipe.name is {named!r}, but {recipe!r} is requested: remove one of them")
        given = {**given, "recipe": {**given.get("recipe", {}), "name": recipe}}
    given = {table: {key: value for key, value in rows.items() if value is not None} for table, rows in given.items()}
    _drop_overridden(tables, given)
    for table, rows in given.items():
        tables[table] |= rows
        origins |= {f"{table}.{key}": "the arguments" for key in rows}
    return tables, origins


def complete_config(tables: Tables, origins: Mapping[str, str]) -> TrainingConfig:
    """Check the tables and fill in the defaults.

    Raises:
        BadSettings: an unknown key, a value of the wrong type or out of bounds, or settings that contradict each other.
        UnknownName: no such recipe or generator.
    """
    from fairweather.recipes import RECIPES

    where = {table: _where(table, origins) for table in TABLES}
    run = dataclass_from(RunConfig, tables["run"], where=where["run"])
    data = dataclass_from(DataConfig, tables["data"], where=where["data"])
    name = tables["recipe"].get("name")
    if name is None:
        raise BadSettings(f"{where['recipe']}: no recipe is given: use one of {', '.join(sorted(RECIPES))}")
    recipe: type[Recipe] = RECIPES[_known("recipe", name, RECIPES)]
    lengths = [key for key in LENGTHS if getattr(run, key) is not None]
    if len(lengths) > 1:
        raise BadSettings(f"{where['run']}: {' and '.join(lengths)} are given: give one of {', '.join(LENGTHS)}")
    crop = checked_value(data.augment.get("crop"), int | None, name=f"{where['data']}: augment.crop")
    own = {key: value for key, value in tables["recipe"].items() if key != "name"}
    settings = dataclass_from(recipe.settings_type, own, where=where["recipe"])
    return TrainingConfig(
        NamedArguments(name, to_plain(dataclasses.asdict(settings))),
        _generator(tables["generator"], recipe, where["generator"]),
        dataclasses.replace(
            run,
            epochs=run.epochs if lengths else recipe.epochs,
            batch=run.batch or recipe.batch,
            start=initial_weights_path(run.start),
        ),
        dataclasses.replace(
            data,
            crop=data.crop or crop or recipe.crop,
            folder=_absolute(data.folder),
            degraded=_absolute(data.degraded),
            clear=_absolute(data.clear),
            weather=data.weather or recipe.weather,
        ),
    )


def resume_config(
    record: dict[str, Any], tables: Tables, origins: Mapping[str, str]
) -> tuple[TrainingConfig, list[str]]:
    """The settings of a resumed run: the recorded ones, with changes to those that are `CHANGEABLE`.

    Returns:
        The settings, and which lengths differ from the recorded ones (valid only with constant learning rates).

    Raises:
        BadSettings: any other setting differs from the recorded one.
    """
    own: Tables = record["settings"]
    # The record holds what "auto" resolved to; it is compared once the hardware is known.
    run = {key: value for key, value in tables["run"].items() if value != "auto"}
    if initial_weights_path(run.pop("start", None)) not in (None, own["run"].get("start")):
        words = (origins.get("run.start"), own["run"].get("start") or "fresh weights")
        log.warning("run.start (%s) is ignored: the run started from %s and resumes from its checkpoint", *words)
    given = {**tables, "run": run}
    if given["recipe"].get("name", own["recipe"]["name"]) != own["recipe"]["name"]:
        before, now = own["recipe"]["name"], given["recipe"]["name"]
        raise BadSettings(f"recipe is {now!r}, but the run was started with {before!r}: use another folder (--out)")
    merged = {table: {**own[table], **given.get(table, {})} for table in own}
    if any(key in run for key in LENGTHS):
        merged["run"] |= {key: run.get(key) for key in LENGTHS}
    if given["generator"].get("name", own["generator"]["name"]) != own["generator"]["name"]:
        merged["generator"] = dict(given["generator"])
    config = complete_config(merged, origins)
    differing = []
    for table, rows in config.tables().items():
        for key, value in rows.items():
            name, recorded = f"{table}.{key}", own[table].get(key)
            if value == recorded or (key not in own[table] and name not in origins):
                continue  # a setting that is newer than the run has the default that the run had
            if table == "run" and key in LENGTHS:
                differing.append(key)
            elif name not in CHANGEABLE:
                raise BadSettings(
                    f"{name} is {value!r} ({origins.get(name, 'by default')}), but the run was started with "
                    f"{recorded!r}: resume without it, or start another run in another folder"
                )
    return config, differing


def read_toml(path: str | Path) -> Tables:
    """Read a settings file, merged over the file that it `extends` (a path relative to its own).

    Tables are merged key by key at any depth; other values, lists included, are replaced. Another recipe, generator or
    length replaces all settings of the old one.

    Raises:
        BadFolder: there is no such file.
        BadSettings: it cannot be parsed, has an unknown table, or extends itself.
    """
    return _read_toml(Path(path), ())


def _read_toml(path: Path, extending: tuple[Path, ...]) -> Tables:
    if path in extending:
        raise BadSettings(f"{path} extends itself through {extending[-1]}: remove `extends` from one of them")
    tables: Tables = _parsed(path, tomllib.loads, f"extends, in {extending[-1]}" if extending else "--config")
    extended: Any = tables.pop("extends", None)
    check_keys(tables, TABLES, where=str(path), kind="table")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadSettings(f"{path}: {name} is not a table: write [{name}] and its keys below it")
    if extended is None:
        return tables
    checked_value(extended, PathText, name=f"{path}: extends")
    base = _read_toml((path.parent / str(extended)).resolve(), (*extending, path.resolve()))
    recipe = base.get("recipe", {}).get("name")
    if tables.get("recipe", {}).get("name", recipe) != recipe:
        base["recipe"] = {}
    _drop_overridden(base, tables)
    return _merged(base, tables)


def read_record(folder: Path) -> dict[str, Any]:
    """Read the run.json of a run folder.

    Raises:
        BadFolder: the file is missing, cannot be parsed, or lacks a part.
    """
    path = folder / "run.json"
    try:
        record: dict[str, Any] = _parsed(path, json.loads, "a run folder has one")
    except BadSettings as error:
        raise BadFolder(str(error)) from None
    required = {"settings": dict[str, dict[str, Any]], "versions": dict[str, Any], "machine": dict[str, Any]}
    optional = {"notes": dict[str, Any], "start": dict[str, Any], "commit": str | None}
    try:
        checked_value(record, dict[str, Any], name=f"{path}: the file")
        for key, kind in (required | {key: kind for key, kind in optional.items() if key in record}).items():
            checked_value(record.get(key), kind, name=f"{path}: {key}")
        for table in TABLES:
            checked_value(record["settings"].get(table), dict[str, Any], name=f"{path}: settings.{table}")
        for key in ("recipe", "generator"):
            checked_value(record["settings"][key].get("name"), str, name=f"{path}: settings.{key}.name")
    except BadSettings as error:
        raise BadFolder(f"{error}: restore the file from a copy, or start another run") from None
    return record


def initial_weights_path(start: str | None) -> str | None:
    """`run.start` as recorded: a shipped model's name, or an absolute path."""
    return start if start is None or start in model_folder.shipped() else _absolute(start)


def to_plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parsed(path: Path, parse: Any, origin: str) -> Any:
    """The content of a TOML or JSON file. Raises BadFolder if it does not exist, BadSettings if it is invalid."""
    if not path.exists() or path.is_dir():
        raise BadFolder(f"{path}: no such file ({origin}): check the path")
    if not path.is_file():
        raise BadSettings(f"{path} is not a regular file ({origin}): check the path")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise BadSettings(f"{path} is nested too deeply: flatten it") from None
    except ValueError as error:  # not UTF-8, a syntax error, or a number of thousands of digits
        raise BadSettings(f"{path}: {error}") from None
    except OSError as error:
        raise BadFolder(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def _drop_overridden(tables: Tables, over: Mapping[str, Mapping[str, Any]]) -> None:
    """Remove from `tables` what `over` invalidates: another length, and the arguments of another generator."""
    if any(key in LENGTHS for key in over.get("run", {})):
        tables["run"] = {key: value for key, value in tables.get("run", {}).items() if key not in LENGTHS}
    generator = tables.get("generator", {}).get("name")
    if over.get("generator", {}).get("name", generator) != generator:
        tables["generator"] = {}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in over if isinstance(base.get(key), dict) and isinstance(over[key], dict)]
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in both}}


def _absolute(folder: str | None) -> str | None:
    # Parentheses mark a dataset passed in Python.
    return folder if folder is None or folder.startswith("(") else str(Path(folder).resolve())


def _where(table: str, origins: Mapping[str, str]) -> str:
    files = {source for key, source in origins.items() if key.startswith(f"{table}.")}
    return f"{', '.join(sorted(files))}: [{table}]" if files else f"[{table}]"


def _known(kind: str, name: Any, known: Mapping[str, Any]) -> str:
    if not isinstance(name, str) or name not in known:
        raise UnknownName(kind, name if isinstance(name, str) else quoted(name), known)
    return name


def _generator(table: dict[str, Any], recipe: type[Recipe], where: str) -> NamedArguments:
    from fairweather.generators import GENERATORS, check_generator_arguments

    name = _known("generator", table.get("name", recipe.generator), GENERATORS)
    own = {key: value for key, value in table.items() if key != "name"}
    parameters = inspect.signature(GENERATORS[name]).parameters
    defaults = {key: one.default for key, one in parameters.items() if one.default is not inspect.Parameter.empty}
    if name == recipe.generator:
        defaults |= recipe.arguments
    arguments = to_plain({**defaults, **own})
    check_generator_arguments(name, arguments, where=where)
    return NamedArguments(name, arguments)
