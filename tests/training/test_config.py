"""Settings from files and arguments: which wins, and which are refused, by name."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

import fairweather
from fairweather import model_folder
from fairweather.errors import BadCard, BadFolder, BadSettings, FairweatherError, UnknownName
from fairweather.generators import ARGUMENT_BOUNDS, GENERATORS, check_generator_arguments
from fairweather.inference.engines import load_generator
from fairweather.recipes import RECIPES
from fairweather.training.config import (
    OPTIONS,
    RECIPE_NAMES,
    TABLES,
    TrainingConfig,
    collect_tables,
    complete_config,
    read_record,
    read_toml,
)

BASE = """
[run]
steps = 10
seed = 3
[data]
folder = "pairs"
crop = 64
[recipe]
name = "supervised"
lr = 1e-4
[generator]
name = "unet"
levels = 3
"""
RECORD: dict[str, Any] = {
    "settings": {"run": {}, "data": {}, "recipe": {"name": "pix2pix"}, "generator": {"name": "unet"}},
    "versions": {},
    "machine": {},
}


def read(folder: Path, text: str = BASE, recipe: str | None = None, **given: dict[str, Any]) -> TrainingConfig:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return complete_config(*collect_tables(recipe, path, given))


def test_arguments_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    plain = read(tmp_path)
    assert (plain.run.steps, plain.run.seed, plain.run.batch) == (10, 3, 16)
    assert (plain.recipe.settings["lr"], plain.recipe.settings["charbonnier"]) == (1e-4, 1.0)
    assert (plain.generator.settings["levels"], plain.generator.settings["width"]) == (3, 64)
    won = read(tmp_path, run={"seed": 4, "batch": None, "minutes": 2, "precision": "auto"}, data={"crop": 32})
    assert (won.run.seed, won.run.batch, won.data.crop, won.run.precision) == (4, 16, 32, "auto")
    assert (won.run.steps, won.run.minutes) == (None, 2.0), "one length replaces another"
    other = read(tmp_path, generator={"name": "resnet6"}).generator
    assert "levels" not in other.settings, "another generator drops the file's arguments"
    assert read(tmp_path, '[recipe]\nname = "cyclegan"\n').run.epochs == 200
    tables = plain.tables()
    assert json.loads(json.dumps(tables)) == tables


def test_recipes_have_defaults_for_their_own_generator_and_weather() -> None:
    def settings(recipe: str, **given: dict[str, Any]) -> TrainingConfig:
        return complete_config(*collect_tables(recipe, None, given))

    assert settings("pix2pix").generator.settings["dropout"] == 0.5
    assert settings("derain", generator={"name": "unet"}).generator.settings["dropout"] == 0.0
    assert settings("derain", generator={"dropout": 0.25}).generator.settings["dropout"] == 0.25
    assert "dropout" not in settings("derain", generator={"name": "mbconv_unet"}).generator.settings
    weathers = {name: settings(name).data.weather for name in RECIPES}
    assert weathers.pop("derain") == "rain"
    assert set(weathers.values()) == {"haze"}
    assert settings("derain", data={"weather": "snow"}).data.weather == "snow"


def test_names_are_known_without_torch() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES


# Every bad value, and what its message must name.

NAME = "[recipe]\nname = 'pix2pix'\n"
BAD_RUN: dict[str, tuple[Any, ...]] = {
    "steps": (0, -1, 10**23, "3", 2.5, True),
    "epochs": (0, 10**9),
    "minutes": (0, -1.0, float("nan"), float("inf"), "1"),
    "batch": (0, 10**6),
    "seed": (-1, 99999999999999999999, 1.5, True),
    "start": ("", "a\0b", 3),
    "precision": ("fp8", 16),
    "device": ("tpu",),
    "devices": (0, 10**6),
    "compile": (1, "yes"),
    "threads": (0, 100_000),
    "workers": (-1, 100_000),
    "checkpoint_steps": (0, -5),
    "checkpoint_minutes": (0, float("nan")),
    "sample_steps": (-1, 10**12),
    "sample_epochs": (-1,),
    "validate_steps": (-1,),
    "log_steps": (-1,),
    "parity": ("some",),
    "tensorboard": ("no",),
}
BAD_DATA: dict[str, tuple[Any, ...]] = {
    "folder": ("", "a\0b", 3, []),
    "degraded": ("",),
    "clear": ([],),
    "crop": (0, -64, 10**6, "64"),
    "on_device": ("yes",),
    "hold_back": (-0.1, 1, float("nan")),
    "memory_gib": (0, -1, float("nan"), float("inf")),
    "augment": (3, [], {"crop": "x"}),
    "sources": (3, ["pairs"]),
    "samples": (0,),
    "frames": (0, 10**6),
    "short_side": (0,),
    "depths": ("", 3),
    "most_pixels": (0,),
    "weather": ("", 3),
    "terms": (3,),
    "licence": (None, 3),
    "description": (3,),
}
BAD_RECIPE: dict[str, tuple[Any, ...]] = {
    "l1": (-1, "x", float("nan")),
    "lr": (-1, 1e9),
    "beta1": (1, -0.1),
    "hold": (1.1,),
    "width": (0, 10**6, 1.5),
}
CASES = [
    (table, key, value)
    for table, keys in (("run", BAD_RUN), ("data", BAD_DATA), ("recipe", BAD_RECIPE))
    for key, values in keys.items()
    for value in values
]


@pytest.mark.parametrize(("table", "key", "value"), CASES, ids=lambda value: str(value)[:20].replace("\0", "0"))
def test_bad_values_are_named(table: str, key: str, value: Any) -> None:
    tables: dict[str, dict[str, Any]] = {"run": {}, "data": {}, "recipe": {"name": "pix2pix"}, "generator": {}}
    tables[table][key] = value
    with pytest.raises(BadSettings, match=rf"(?s)^\[{table}\]: ({key}|{key}\.crop) is .*must be"):
        complete_config(tables, {})


def test_every_number_is_bounded() -> None:
    assert {key for key, (table, _) in OPTIONS.items()} == {"data", *BAD_RUN, *BAD_DATA} - {"folder"}


@pytest.mark.parametrize(
    ("generator", "key", "value"),
    [
        *(("scattering_maps", "size", value) for value in ([], "a", -5, 10**9, None)),
        *(("scattering_maps", "radius", value) for value in (-1, 1e-320, 10**9)),
        *(("scattering_maps", "offset", value) for value in ("", None, float("nan"))),
        *(("scattering_maps", "eps", value) for value in ("x", 0, float("inf"))),
        *(("scattering_maps", "widths", value) for value in ([], [-1] * 4, [1_000_000, 1, 1, 1], "abcd", 5)),
        *(("resnet9", "blocks", value) for value in (1_000_000, -1, 2.5)),
        *(("unet", key, value) for key, value in (("levels", 0), ("norm", "group"), ("dropout", 1), ("residual", 1))),
        ("conv_unet", "widths", [4096] * 16),
        ("multipath_unet", "paths", []),
        ("gunet", "kernel", 4),
        ("recurrent_maps", "heads", 3),
    ],
)
def test_bad_generator_arguments_are_named(generator: str, key: str, value: Any) -> None:
    with pytest.raises(BadSettings, match=rf"card\.json.*{key}|card\.json.*{generator}"):
        check_generator_arguments(generator, {key: value}, where="card.json: arguments")
    tables = {"run": {}, "data": {}, "recipe": {"name": "pix2pix"}, "generator": {"name": generator, key: value}}
    with pytest.raises(BadSettings, match=r"^\[generator\]"):
        complete_config(tables, {})


@pytest.mark.parametrize(("key", "value"), [("widths", []), ("widths", [10**6, 1, 1]), ("shuffle", "x"), ("width", 3)])
def test_bad_arguments_on_a_card_are_named(key: str, value: Any) -> None:
    folder = model_folder.find("derain-fast")
    card = model_folder.read_card(folder, verify=False)
    with pytest.raises(BadCard, match=rf"card\.json: arguments.*{key}"):
        load_generator(folder, dataclasses.replace(card, arguments={**card.arguments, key: value}))


def test_every_generator_argument_has_bounds() -> None:
    import inspect

    for name, kind in GENERATORS.items():
        check_generator_arguments(name, {})
        for key, parameter in inspect.signature(kind).parameters.items():
            number = not isinstance(parameter.default, (bool, str))
            assert (key in ARGUMENT_BOUNDS) == number, f"{name}.{key}"


def test_a_network_too_large_is_refused_without_memory() -> None:
    with pytest.raises(BadSettings, match=r"parameters.*limit"):
        check_generator_arguments("resnet9", {"width": 1024, "blocks": 64})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nstep = 3", ["settings.toml", "[run]", "'step'", "'steps'"]),
        ("[rum]\nsteps = 3", ["settings.toml", "'rum'", "'run'"]),
        ("[recipe]\nname = 'supervised'\ncharbonier = 2", ["settings.toml", "'charbonier'", "'charbonnier'"]),
        (NAME + "[generator]\nname = 'unet'\nlevel = 2", ["settings.toml", "'level'", "'levels'"]),
        (NAME + "[data]\nfoldr = 'x'", ["settings.toml", "'foldr'", "'folder'"]),
        (NAME + "[run]\nsteps = '3'", ["settings.toml", "steps is '3'", "int"]),
        (NAME + "[run]\nprecision = 'fp8'", ["precision is 'fp8'", "'bf16'"]),
        (NAME + "[run]\nsteps = 3\nepochs = 2", ["steps and epochs"]),
        (NAME + "[generator]\nname = [1]", ["[1]"]),
        ("[recipe]\nname = 'cyclegam'", ["'cyclegan'"]),
        ("[recipe]\nname = 3", ["recipe", "cyclegan"]),
        ("[run]\nsteps = 3", ["no recipe is given", "cyclegan"]),
        ("[run\nsteps = 3", ["settings.toml"]),
        ("run = 3", ["[run]"]),
        ("a = " + "[" * 10_000 + "]" * 10_000, ["settings.toml", "nested too deeply"]),
        ("[run]\nseed = " + "9" * 5000, ["settings.toml", "digits"]),
        ("[run]\nseed = 0x" + "f" * 5000 + "\n[recipe]\nname = 'pix2pix'", ["seed", "too large"]),
        ('extends = "a\\u0000b"', ["settings.toml", "extends", "path"]),
        ('extends = ""', ["settings.toml", "extends", "path"]),
        ("extends = 3", ["settings.toml", "extends is 3"]),
        ("[run]\nsteps = 3 \0", ["settings.toml"]),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_bad_files_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises((BadSettings, UnknownName)) as caught:
        read(tmp_path, text)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_files_that_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes("[run]\n# \xe9".encode("latin-1"))
    for path, kind in (("fifo", BadSettings), ("latin", BadSettings), ("nowhere", BadFolder), (".", BadFolder)):
        with pytest.raises(kind, match=path):
            read_toml(tmp_path / path)
    with pytest.raises(BadSettings, match="'pix2pix' is requested"):
        read(tmp_path, recipe="pix2pix")


PARENT = """
[run]
epochs = 3
seed = 5
[recipe]
name = "supervised"
charbonnier = 2.0
[generator]
name = "conv_unet"
widths = [4, 8, 16]
[data.augment]
crop = 64
noise = 0.02
[[data.sources]]
path = "a"
[[data.sources]]
path = "b"
"""


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(PARENT)
    (tmp_path / "deep").mkdir()
    first, second = tmp_path / "deep" / "first.toml", tmp_path / "deep" / "second.toml"
    first.write_text('extends = "../base.toml"\n[run]\nsteps = 7\n[generator]\nwidths = [8]\n[data.augment]\ncrop = 32')
    second.write_text('extends = "first.toml"\n[generator]\nname = "unet"\n[[data.sources]]\npath = "c"')
    found, again = read_toml(first), read_toml(second)
    assert found["run"] == again["run"] == {"seed": 5, "steps": 7}, "one length replaces another"
    assert found["recipe"] == {"name": "supervised", "charbonnier": 2.0}
    assert found["generator"] == {"name": "conv_unet", "widths": [8]}, "lists are replaced"
    assert found["data"] == {"augment": {"crop": 32, "noise": 0.02}, "sources": [{"path": "a"}, {"path": "b"}]}
    assert again["generator"] == {"name": "unet"}, "another generator has other arguments"
    assert again["data"]["sources"] == [{"path": "c"}]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ('extends = "own.toml"', ["own.toml", "extends itself"]),
        ("[run\n", ["base.toml"]),
        ("[rum]\nsteps = 3", ["base.toml", "'rum'"]),
        (None, ["base.toml", "own.toml", "extends"]),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, base: str | None, words: list[str]) -> None:
    if base is not None:
        (tmp_path / "base.toml").write_text(base)
    (tmp_path / "own.toml").write_text('extends = "base.toml"')
    with pytest.raises(FairweatherError) as caught:
        read_toml(tmp_path / "own.toml")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"3", b"null", b'"x"', b"", b"{", b'{"a": "\xe9"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"),
        *(json.dumps({**RECORD, key: value}).encode() for key in RECORD for value in ("", None, [])),
        *(json.dumps({**RECORD, "settings": {**RECORD["settings"], table: ""}}).encode() for table in TABLES),
        json.dumps({**RECORD, "settings": {**RECORD["settings"], "recipe": {"name": [1]}}}).encode(),
        json.dumps({"settings": RECORD["settings"]}).encode(),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_bad_run_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(BadFolder, match=r"run\.json"):
        read_record(tmp_path)
    with pytest.raises(BadFolder, match=r"run\.json"):
        fairweather.train("pix2pix", data="x", out=tmp_path, resume=True)


def test_a_good_run_record_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path) == RECORD


def test_the_functions_options_are_those_of_the_tree(tmp_path: Path) -> None:
    import inspect

    names = set(inspect.signature(fairweather.train).parameters)
    own = {"recipe", "data", "generator", "generator_arguments", "settings", "config", "out", "resume"}
    assert names == own | set(OPTIONS)
    with pytest.raises(BadSettings, match=r"'step': did you mean 'steps'"):
        fairweather.train("pix2pix", data=tmp_path, step=3)
