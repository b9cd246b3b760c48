"""Settings from files and arguments: who wins, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairweather.errors import BadFolder, BadSettings, UnknownName
from fairweather.recipes import RECIPES
from fairweather.training.config import (
    DataConfig,
    RunConfig,
    TrainingConfig,
    collect_tables,
    complete_config,
    dataclass_from,
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


def gathered(path: Path, text: str = BASE, recipe: str | None = None, **given: dict[str, Any]) -> TrainingConfig:
    path = path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return complete_config(*collect_tables(recipe, path, given))


def test_the_file_gives_defaults_and_arguments_win(tmp_path: Path) -> None:
    plain = gathered(tmp_path)
    assert (plain.run.steps, plain.run.seed, plain.run.batch) == (10, 3, 16)
    assert plain.recipe.settings["lr"] == 1e-4
    assert plain.recipe.settings["charbonnier"] == 1.0
    assert plain.generator.settings["levels"] == 3
    assert plain.generator.settings["width"] == 64
    won = gathered(tmp_path, run={"seed": 4, "batch": None}, data={"crop": 32})
    assert (won.run.seed, won.run.batch, won.data.crop) == (4, 16, 32)


def test_auto_is_an_argument_like_any_other(tmp_path: Path) -> None:
    file = '[run]\nprecision = "bf16"\ndevice = "cuda"\n[recipe]\nname = "supervised"\n'
    run = gathered(tmp_path, file, run={"precision": "auto", "device": "auto"}).run
    assert (run.precision, run.device) == ("auto", "auto")


def test_a_length_takes_the_place_of_another(tmp_path: Path) -> None:
    run = gathered(tmp_path, run={"minutes": 2}).run
    assert (run.steps, run.minutes) == (None, 2.0)


def test_another_generator_drops_the_files_arguments(tmp_path: Path) -> None:
    generator = gathered(tmp_path, generator={"name": "resnet6"}).generator
    assert generator.name == "resnet6"
    assert "levels" not in generator.settings
    assert gathered(tmp_path, generator={"name": "unet", "width": 8}).generator.settings["levels"] == 3


def test_the_recipe_has_a_say_in_its_own_generator(tmp_path: Path) -> None:
    """derain's U-Net comes without dropout, and its card says rain, unless something else is asked for."""

    def settings(recipe: str, **given: dict[str, Any]) -> TrainingConfig:
        return complete_config(*collect_tables(recipe, None, given))

    assert settings("pix2pix").generator.settings["dropout"] == 0.5
    for named in ({}, {"name": "unet"}):
        assert settings("derain", generator=named).generator.settings["dropout"] == 0.0
    assert settings("derain", generator={"dropout": 0.25}).generator.settings["dropout"] == 0.25
    assert "dropout" not in settings("derain", generator={"name": "mbconv_unet"}).generator.settings
    weathers = {name: settings(name).data.weather for name in RECIPES}
    assert weathers.pop("derain") == "rain"
    assert set(weathers.values()) == {"haze"}
    assert settings("derain", data={"weather": "snow"}).data.weather == "snow"


def test_without_a_length_the_recipe_has_one(tmp_path: Path) -> None:
    assert gathered(tmp_path, '[recipe]\nname = "cyclegan"\n').run.epochs == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nstep = 3", ["settings.toml", "[run]", "'step'", "'steps'"]),
        ("[rum]\nsteps = 3", ["settings.toml", "'rum'", "'run'"]),
        ("[recipe]\nname = 'supervised'\ncharbonier = 2", ["settings.toml", "'charbonier'", "'charbonnier'"]),
        ("[recipe]\nname='pix2pix'\n[generator]\nname = 'unet'\nlevel = 2", ["settings.toml", "'level'", "'levels'"]),
        ("[recipe]\nname='pix2pix'\n[data]\nfoldr = 'x'", ["settings.toml", "'foldr'", "'folder'"]),
        ("[recipe]\nname='pix2pix'\n[run]\nsteps = '3'", ["steps is '3'", "int"]),
        ("[recipe]\nname='pix2pix'\n[run]\nprecision = 'fp8'", ["precision is 'fp8'", "'bf16'"]),
        ("[recipe]\nname='pix2pix'\n[run]\nsteps = 3\nepochs = 2", ["steps and epochs"]),
        ("[recipe]\nname='pix2pix'\n[run]\nsteps = 0", ["steps is 0"]),
        ("[run]\nsteps = 3", ["no recipe is named", "cyclegan"]),
        ("[run\nsteps = 3", ["settings.toml"]),
        ("run = 3", ["[run]"]),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BadSettings) as caught:
        gathered(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="'cyclegan'"):
        gathered(tmp_path, "[recipe]\nname = 'cyclegam'")
    with pytest.raises(UnknownName, match="'unet'"):
        gathered(tmp_path, "[recipe]\nname = 'pix2pix'\n[generator]\nname = 'unett'")


def test_the_files_recipe_must_be_the_one_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="'pix2pix' was asked for"):
        gathered(tmp_path, recipe="pix2pix")


def test_a_missing_file() -> None:
    with pytest.raises(BadFolder, match=r"nowhere\.toml"):
        collect_tables(None, "nowhere.toml", {})


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
kind = "pairs"
path = "a"

[[data.sources]]
kind = "clear"
path = "b"
"""


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(PARENT)
    (tmp_path / "deep").mkdir()
    first, second = tmp_path / "deep" / "first.toml", tmp_path / "deep" / "second.toml"
    first.write_text('extends = "../base.toml"\n[run]\nsteps = 7\n[generator]\nwidths = [8]\n[data.augment]\ncrop = 32')
    second.write_text(
        'extends = "first.toml"\n[generator]\nname = "unet"\n[[data.sources]]\nkind = "pairs"\npath = "c"'
    )
    found = read_toml(first)
    assert found["run"] == {"seed": 5, "steps": 7}, "one length takes the place of another"
    assert found["recipe"] == {"name": "supervised", "charbonnier": 2.0}
    assert found["generator"] == {"name": "conv_unet", "widths": [8]}, "a list is taken as a whole"
    assert found["data"]["augment"] == {"crop": 32, "noise": 0.02}
    assert [source["path"] for source in found["data"]["sources"]] == ["a", "b"]
    again = read_toml(second)
    assert again["generator"] == {"name": "unet"}, "another generator has other settings"
    assert again["run"] == found["run"]
    assert again["data"] == {"augment": {"crop": 32, "noise": 0.02}, "sources": [{"kind": "pairs", "path": "c"}]}
    assert read_toml(first) == found, "nothing is changed by being read"


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        ('extends = "own.toml"', BadSettings, ["own.toml", "extends itself"]),
        ("[run\n", BadSettings, ["base.toml"]),
        ("[rum]\nsteps = 3", BadSettings, ["base.toml", "'rum'"]),
        ("extends = 3", BadSettings, ["base.toml", "extends is 3"]),
        (None, BadFolder, ["base.toml", "own.toml", "extends"]),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, base: str | None, error: type[Exception], words: list[str]) -> None:
    if base is not None:
        (tmp_path / "base.toml").write_text(base)
    own = tmp_path / "own.toml"
    own.write_text('extends = "base.toml"')
    with pytest.raises(error) as caught:
        read_toml(own)
    for word in words:
        assert word in str(caught.value)


def test_values_are_checked_deeply() -> None:
    assert dataclass_from(RunConfig, {"minutes": 3}, where="x").minutes == 3.0
    with pytest.raises(BadSettings, match="seed is True"):
        dataclass_from(RunConfig, {"seed": True}, where="x")
    with pytest.raises(BadSettings, match="sources"):
        dataclass_from(DataConfig, {"sources": ["pairs"]}, where="x")


def test_flat_is_what_json_gives_back(tmp_path: Path) -> None:
    flat = gathered(tmp_path).flat()
    assert json.loads(json.dumps(flat)) == flat
    assert flat["generator.name"] == "unet"


@pytest.mark.parametrize("key", ["sample_steps", "sample_epochs", "validate_steps", "log_steps", "workers"])
def test_a_cadence_below_zero_is_refused(key: str, tmp_path: Path) -> None:
    assert getattr(gathered(tmp_path, run={key: 0}).run, key) == 0
    with pytest.raises(BadSettings, match=f"{key} is -1; it must be 0"):
        gathered(tmp_path, run={key: -1})
