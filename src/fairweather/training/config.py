"""The settings of a run: one tree of dataclasses that a TOML file and the command line fill, and `run.json` keeps.

    [run]        RunSettings        how long, how precise, how often things are kept
    [data]       DataSettings       which photos; further keys describe sources (see fairweather.data)
    [recipe]     name, and the fields of the recipe's own settings
    [generator]  name, and the generator's own arguments

Before its first table, `extends = "other.toml"` begins with another file's.

Imports no torch, so that the command line can show it at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fairweather import model_folder
from fairweather.errors import BadFolder, BadSettings, UnknownName

if TYPE_CHECKING:
    from fairweather.recipes import Recipe

T = TypeVar("T")
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
LENGTHS = ("steps", "epochs", "minutes")
CADENCE = frozenset(
    {
        "run.checkpoint_steps",
        "run.checkpoint_minutes",
        "run.sample_steps",
        "run.sample_epochs",
        "run.validate_steps",
        "run.log_steps",
        "run.tensorboard",
        "run.parity",
        "run.workers",
        "run.strategy",
    }
)
"""What a resumed run may change: none of it touches a weight."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how precise, how often things are kept."""

    steps: int | None = None
    """Length in steps. One of steps, epochs, minutes; without any, the recipe's own number of epochs."""
    epochs: int | None = None
    """Length in passes over the data."""
    minutes: float | None = None
    """Length by the wall clock; learning rates follow it too, so that such a run cannot be repeated bit by bit."""
    batch: int | None = None
    """Photos (or pairs) a step, in each process; the recipe's own number where none is given."""
    seed: int = 0
    """Decides weights, order and every random draw."""
    start: str | None = None
    """A run folder, a model folder or a shipped model's name: the network that restores begins with its weights (of a
    run those that ship, its moving average). It must be the same generator with the same arguments, which are taken
    from there where no generator is named. Optimizers and schedules begin anew. Resuming does not look at it."""
    precision: Precision = "auto"
    """fp32, bf16 (mixed), fp16 (mixed, CUDA only); auto is bf16 where the device has it in hardware, else fp32."""
    device: Device = "auto"
    """cpu, cuda, mps; auto is the best there is."""
    devices: int = 1
    """Processes that train together, each on a GPU of its own or a share of the CPU. They move by the mean of their
    gradients; batch statistics, dropout and history of fakes are each process's own. Under torchrun as many as it
    starts."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes share the work: ddp, every process with the whole networks; auto is the same."""
    compile: bool = False
    """Compile the generators (torch.compile) for the size of the batches: the first step then takes a minute or more,
    the others less than before. Needs a compiler on the machine; what is trained differs in its last bits."""
    threads: int | None = None
    """CPU threads of the networks, in each process; PyTorch's own choice, shared out, where none is given."""
    workers: int | None = None
    """Processes that prepare data, beside each that trains; 0 does it between steps. None: 1 on a CPU, up to 8 beside
    GPUs (Linux)."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints; 5 where neither cadence is given."""
    sample_steps: int = 500
    """Steps between sample sheets (input | output | target) in samples/; 0 draws none."""
    sample_epochs: int = 0
    """Epochs between sample sheets, of the same photos every time; 0 draws none by epochs."""
    validate_steps: int = 0
    """Steps between measurements of PSNR on held-back pairs; 0 measures at the end alone."""
    log_steps: int = 50
    """Steps between lines in the log where there is no terminal for a progress bar."""
    parity: Literal["all", "installed"] = "all"
    """Which engines must agree with PyTorch before RUN/model is kept: all, or those that are installed. The second is
    for machines that cannot have all; `fairweather export RUN/model -o DIR` compares the rest elsewhere."""
    tensorboard: bool = True
    """Write TensorBoard's files beside stats.jsonl where the package is installed."""


@dataclass(frozen=True)
class DataConfig:
    """Which photos. Either `folder` (pairs, or what `sources` are relative to), or `degraded` and `clear`."""

    folder: str | None = None
    """Folder of pairs; with `sources`, the folder that their paths are relative to."""
    degraded: str | None = None
    """Folder of degraded photos (unpaired)."""
    clear: str | None = None
    """Folder of clear photos (unpaired)."""
    crop: int | None = None
    """Side of the training crops in pixels; augment.crop, else the recipe's own where none is given."""
    on_device: bool | None = None
    """Of a mixture: decode every photo once into the device's memory (at most `memory_gib` there, too) and make whole
    batches on it, instead of sample by sample on the CPU; `run.workers` then has no say. Where nothing is said: on
    CUDA, if the photos fit."""
    hold_back: float = 0.0
    """Share of the scenes kept out of training; their PSNR is measured every `validate_steps` and at the end."""
    memory_gib: float = 4.0
    """The most memory for decoded photos."""
    augment: dict[str, Any] = field(default_factory=dict)
    """Fields of fairweather.data.Augment; without any, pix2pix and cyclegan do as their papers did."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """A weighted mixture: one table a source (kind, path, weight, ...; see fairweather.data.SourceSettings)."""
    samples: int | None = None
    """Of a mixture: samples an epoch."""
    frames: int | None = None
    """Of a mixture, for a recipe that learns from clips: each sample is so many frames, by a camera that moves."""
    short_side: int | None = None
    """Of a mixture: photos are kept reduced to this short side."""
    most_pixels: int | None = None
    """Of a network that gives a picture, for its card: it sees photos of more pixels reduced to about so many, and what
    it changes is enlarged. For weather whose size in pixels is learned, as that of streaks; no part in training."""
    weather: str | None = None
    """What is in the way on the degraded photos; goes onto the card. The recipe's own where none is given."""
    terms: str = "not stated"
    """On what terms the photos may be used; goes onto the card."""
    licence: str = "not stated"
    """Licence of the model that comes out; goes onto the card."""
    description: str = ""
    """A sentence about the model, for its card."""


@dataclass(frozen=True)
class NamedArguments:
    """A recipe or a generator: its name and the settings that are its own."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig:
    """All of it."""

    recipe: NamedArguments
    generator: NamedArguments
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def flat(self) -> dict[str, Any]:
        """Dotted name -> plain value."""
        tree = {"run": dataclasses.asdict(self.run), "data": dataclasses.asdict(self.data)}
        for key, named in (("recipe", self.recipe), ("generator", self.generator)):
            tree[key] = {"name": named.name, **named.settings}
        return {f"{table}.{key}": to_plain(value) for table, rows in tree.items() for key, value in rows.items()}


def to_plain(value: Any) -> Any:
    """`value` as JSON gives it back: tuples as lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_toml(path: str | Path) -> dict[str, dict[str, Any]]:
    """The tables of a settings file, over those of the file that it `extends`, whose path is relative to its own.

    Tables are merged key by key, at any depth; any other value takes the other's place, a list as a whole. So do the
    settings of another recipe or generator, and a run's length. Raises BadFolder where there is no such file,
    BadSettings where it cannot be read or extends itself.
    """
    return _read_toml(Path(path), ())


def _read_toml(path: Path, extending: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    if path.resolve() in extending:
        raise BadSettings(f"{path}: it extends itself, by way of {extending[-1]}: take extends out of one of them")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        named = f"extends, in {extending[-1]}" if extending else "--config"
        raise BadFolder(f"{path}: there is no such settings file ({named})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: {error}") from None
    extended = tables.pop("extends", None)
    check_keys(tables, ("run", "data", "recipe", "generator"), where=str(path), kind="table")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise BadSettings(f"{path}: {name} is a table: write [{name}] and its keys below it")
    if extended is None:
        return tables
    if not isinstance(extended, str):
        raise BadSettings(f"{path}: extends is {extended!r}: write the path of another settings file, in quotes")
    base = _read_toml(path.parent / extended, (*extending, path.resolve()))
    recipe = base.get("recipe", {}).get("name")
    if tables.get("recipe", {}).get("name", recipe) != recipe:
        base["recipe"] = {}
    drop_overridden(base, tables)
    return _merged(base, tables)


def drop_overridden(tables: dict[str, dict[str, Any]], over: Mapping[str, Mapping[str, Any]]) -> None:
    """Take out of `tables` what no longer holds once `over` is laid over them: any length of a run beside another
    length, and the arguments of another generator."""
    if any(key in LENGTHS for key in over.get("run", {})):
        tables["run"] = {key: value for key, value in tables.get("run", {}).items() if key not in LENGTHS}
    generator = tables.get("generator", {}).get("name")
    if over.get("generator", {}).get("name", generator) != generator:
        tables["generator"] = {}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in over if _are_tables(base.get(key), over[key])}
    return {**base, **over, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def check_keys(given: Iterable[str], known: Iterable[str], *, where: str, kind: str = "key") -> None:
    """Raises BadSettings naming the first unknown key, where it stands and the nearest known one."""
    known = sorted(known)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
            raise BadSettings(f"{where}: no {kind} is called {key!r}; {hint}")


def dataclass_from(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """A dataclass from plain values. Raises BadSettings for an unknown key or a value of the wrong kind."""
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(values, fields, where=where)
    hints = typing.get_type_hints(cls)
    checked = {key: _checked(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    return cls(**checked)


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _checked(value, option, where)
            except BadSettings:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        variadic = arguments[1:] == (Ellipsis,)
        kinds = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(kinds) == len(value):
            return tuple(_checked(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif origin is list and isinstance(value, (list, tuple)):
        return [_checked(item, arguments[0], where) for item in value]
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BadSettings(f"{where} is {value!r}; it must be {_describe_type(hint)}")


def _describe_type(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")  # type: ignore[return-value]


# From a settings file, arguments and (to resume) a run's own record to one complete tree of settings.

log = logging.getLogger("fairweather")

Tables = dict[str, dict[str, Any]]


def collect_tables(recipe: str | None, config: str | Path | None, given: Tables) -> tuple[Tables, dict[str, str]]:
    """What has been said: the settings file's tables, and over them the arguments that are not None.

    Returns the tables and, by dotted name, where each setting was said. Raises BadSettings or BadFolder.
    """
    tables: Tables = {"run": {}, "data": {}, "recipe": {}, "generator": {}}
    said: dict[str, str] = {}
    if config is not None:
        for table, rows in read_toml(config).items():
            tables[table] |= rows
            said |= {f"{table}.{key}": str(config) for key in rows}
    named = tables["recipe"].get("name")
    if recipe is not None:
        if named is not None and named != recipe:
            raise BadSettings(f"{config}: recipe.name is {named!r}, but {recipe!r} was asked for; take one of them out")
        given = {**given, "recipe": {**given.get("recipe", {}), "name": recipe}}
    given = {table: {key: value for key, value in rows.items() if value is not None} for table, rows in given.items()}
    drop_overridden(tables, given)
    for table, rows in given.items():
        tables[table] |= rows
        said |= {f"{table}.{key}": "the arguments" for key in rows}
    return tables, said


def complete_config(tables: Tables, said: Mapping[str, str]) -> TrainingConfig:
    """The whole tree, defaults filled in. Raises BadSettings naming the file, the key and the nearest known key."""
    from fairweather.recipes import RECIPES

    where = {table: _origin(table, said) for table in tables}
    if tables["run"].get("strategy") == "fsdp":
        raise BadSettings(
            f"{where['run']}: strategy 'fsdp' shards networks that do not fit on one device, and its hooks need one "
            "backward pass for all; networks of this size fit, and a step makes a pass for each group: take 'ddp'"
        )
    run = dataclass_from(RunConfig, tables["run"], where=where["run"])
    run = dataclasses.replace(run, start=initial_weights_path(run.start))
    data = dataclass_from(DataConfig, tables["data"], where=where["data"])
    name = tables["recipe"].get("name")
    if name is None:
        raise BadSettings(f"{where['recipe']}: no recipe is named; there are: {', '.join(sorted(RECIPES))}")
    if name not in RECIPES:
        raise UnknownName("recipe", str(name), RECIPES)
    recipe: type[Recipe] = RECIPES[name]
    given = [key for key in LENGTHS if getattr(run, key) is not None]
    if len(given) > 1:
        raise BadSettings(f"{where['run']}: {' and '.join(given)} are given; a run has one length")
    if not given:
        run = dataclasses.replace(run, epochs=recipe.epochs)
    for key in (*LENGTHS, "batch", "checkpoint_steps", "checkpoint_minutes", "threads", "devices"):
        if (value := getattr(run, key)) is not None and value <= 0:
            raise BadSettings(f"{where['run']}: {key} is {value}; it must be above 0")
    for key in ("sample_steps", "sample_epochs", "validate_steps", "log_steps", "workers"):
        if (value := getattr(run, key)) is not None and value < 0:
            raise BadSettings(f"{where['run']}: {key} is {value}; it must be 0 (never, or none) or above")
    data = dataclasses.replace(
        data,
        crop=data.crop or data.augment.get("crop") or recipe.crop,
        folder=_absolute(data.folder),
        degraded=_absolute(data.degraded),
        clear=_absolute(data.clear),
        weather=data.weather or recipe.weather,
    )
    own = {key: value for key, value in tables["recipe"].items() if key != "name"}
    settings = dataclass_from(recipe.settings_type, own, where=where["recipe"])
    return TrainingConfig(
        NamedArguments(name, to_plain(dataclasses.asdict(settings))),
        _generator(tables["generator"], recipe, where["generator"]),
        dataclasses.replace(run, batch=run.batch or recipe.batch),
        data,
    )


def initial_weights_path(start: str | None) -> str | None:
    """run.start as it is kept: a shipped model's name, or a whole path."""
    return start if start is None or start in model_folder.shipped() else _absolute(start)


def _absolute(folder: str | None) -> str | None:
    # Parentheses stand for a dataset that was given in Python.
    return folder if folder is None or folder.startswith("(") else str(Path(folder).resolve())


def _origin(table: str, said: Mapping[str, str]) -> str:
    files = {source for key, source in said.items() if key.startswith(f"{table}.")}
    return f"{', '.join(sorted(files))}: [{table}]" if files else f"[{table}]"


def _generator(table: dict[str, Any], recipe: type[Recipe], where: str) -> NamedArguments:
    from fairweather.generators import GENERATORS

    name = table.get("name", recipe.generator)
    if name not in GENERATORS:
        raise UnknownName("generator", str(name), GENERATORS)
    own = {key: value for key, value in table.items() if key != "name"}
    parameters = inspect.signature(GENERATORS[name]).parameters
    check_keys(own, parameters, where=f"{where} (the arguments of {name})")
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    if name == recipe.generator:
        defaults |= recipe.arguments
    return NamedArguments(name, to_plain({**defaults, **own}))


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run folder. Raises BadFolder where it is missing or cannot be read."""
    path = folder / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFolder(f"{path}: not there, so {folder} is no run folder") from None
    except json.JSONDecodeError as error:
        raise BadFolder(f"{path}: {error}") from None
    return record


def resume_config(record: dict[str, Any], tables: Tables, said: Mapping[str, str]) -> tuple[TrainingConfig, list[str]]:
    """The settings of a run that goes on: its own, with the cadence that is asked for now.

    Returns them and which lengths differ (whether those may is a question to the schedules).
    Raises BadSettings naming the first other setting that is said now and was not so before.
    """
    own: Tables = record["settings"]
    # The record holds what "auto" came to, which is compared once the machine has been asked.
    asked = {key: value for key, value in tables["run"].items() if value != "auto"}
    if initial_weights_path(asked.pop("start", None)) not in (None, own["run"].get("start")):
        words = (said.get("run.start"), own["run"].get("start") or "fresh weights")
        log.warning("run.start (%s) is not looked at: the run began with %s and goes on from its checkpoint", *words)
    tables = {**tables, "run": asked}
    # What is said is completed with what the run has, so that both are compared in the same words.
    merged = {table: {**own[table], **tables.get(table, {})} for table in own}
    lengths = [key for key in LENGTHS if key in tables["run"]]
    if lengths:
        merged["run"] |= {key: tables["run"].get(key) for key in LENGTHS}
    if tables["generator"].get("name", own["generator"]["name"]) != own["generator"]["name"]:
        merged["generator"] = dict(tables["generator"])
    if tables["recipe"].get("name", own["recipe"]["name"]) != own["recipe"]["name"]:
        before, now = own["recipe"]["name"], tables["recipe"]["name"]
        raise BadSettings(f"recipe is {now!r}, but the run was started with {before!r}; take another folder (--out)")
    settings = complete_config(merged, said)
    kept = {f"{table}.{key}": value for table, rows in own.items() for key, value in rows.items()}
    differing = []
    for key, value in settings.flat().items():
        if value == kept.get(key) or (key not in kept and key not in said):
            continue  # a setting that is younger than the run has the default that the run had
        if key in {f"run.{name}" for name in LENGTHS}:
            differing.append(key.removeprefix("run."))
        elif key not in CADENCE:
            raise BadSettings(
                f"{key} is {value!r} ({said.get(key, 'by default')}), but the run was started with "
                f"{kept.get(key)!r}; resume without it, or start another run in another folder"
            )
    return settings, differing
