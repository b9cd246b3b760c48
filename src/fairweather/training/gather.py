"""From a settings file, arguments and (to resume) a run's own record to one complete tree of settings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairweather import cards
from fairweather.errors import BadFolder, BadSettings, UnknownName
from fairweather.generators import GENERATORS
from fairweather.recipes import RECIPES, Recipe
from fairweather.training.settings import (
    CADENCE,
    LENGTHS,
    DataSettings,
    Named,
    RunSettings,
    Settings,
    fill,
    known_keys,
    make_way,
    plain,
    read_toml,
)

log = logging.getLogger("fairweather")

Tables = dict[str, dict[str, Any]]


def gather(recipe: str | None, config: str | Path | None, given: Tables) -> tuple[Tables, dict[str, str]]:
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
    make_way(tables, given)
    for table, rows in given.items():
        tables[table] |= rows
        said |= {f"{table}.{key}": "the arguments" for key in rows}
    return tables, said


def complete(tables: Tables, said: Mapping[str, str]) -> Settings:
    """The whole tree, defaults filled in. Raises BadSettings naming the file, the key and the nearest known key."""
    where = {table: _where(table, said) for table in tables}
    if tables["run"].get("strategy") == "fsdp":
        raise BadSettings(
            f"{where['run']}: strategy 'fsdp' shards networks that do not fit on one device, and its hooks need one "
            "backward pass for all; networks of this size fit, and a step makes a pass for each player: take 'ddp'"
        )
    run = fill(RunSettings, tables["run"], where=where["run"])
    run = dataclasses.replace(run, start=start_place(run.start))
    data = fill(DataSettings, tables["data"], where=where["data"])
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
    settings = fill(recipe.settings_type, own, where=where["recipe"])
    return Settings(
        Named(name, plain(dataclasses.asdict(settings))),
        _generator(tables["generator"], recipe, where["generator"]),
        dataclasses.replace(run, batch=run.batch or recipe.batch),
        data,
    )


def start_place(start: str | None) -> str | None:
    """run.start as it is kept: a shipped model's name, or a whole path."""
    return start if start is None or start in cards.shipped() else _absolute(start)


def _absolute(folder: str | None) -> str | None:
    # Parentheses stand for a dataset that was given in Python.
    return folder if folder is None or folder.startswith("(") else str(Path(folder).resolve())


def _where(table: str, said: Mapping[str, str]) -> str:
    files = {source for key, source in said.items() if key.startswith(f"{table}.")}
    return f"{', '.join(sorted(files))}: [{table}]" if files else f"[{table}]"


def _generator(table: dict[str, Any], recipe: type[Recipe], where: str) -> Named:
    name = table.get("name", recipe.generator)
    if name not in GENERATORS:
        raise UnknownName("generator", str(name), GENERATORS)
    own = {key: value for key, value in table.items() if key != "name"}
    parameters = inspect.signature(GENERATORS[name]).parameters
    known_keys(own, parameters, where=f"{where} (the arguments of {name})")
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    if name == recipe.generator:
        defaults |= recipe.arguments
    return Named(name, plain({**defaults, **own}))


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


def resumed(record: dict[str, Any], tables: Tables, said: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """The settings of a run that goes on: its own, with the cadence that is asked for now.

    Returns them and which lengths differ (whether those may is a question to the schedules).
    Raises BadSettings naming the first other setting that is said now and was not so before.
    """
    own: Tables = record["settings"]
    # The record holds what "auto" came to, which is compared once the machine has been asked.
    asked = {key: value for key, value in tables["run"].items() if value != "auto"}
    if start_place(asked.pop("start", None)) not in (None, own["run"].get("start")):
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
    settings = complete(merged, said)
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
