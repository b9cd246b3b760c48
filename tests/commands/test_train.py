"""`fairweather train`: flags, files, which of them wins, and the errors that a person meets first."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fairweather
from fairweather import cli
from fairweather.commands import train as verb


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments that fairweather.train would have been called with."""
    calls: list[dict[str, Any]] = []

    def train(**settings: Any) -> None:
        calls.append(settings)

    monkeypatch.setattr(fairweather, "train", train)
    return calls


def test_the_options_are_those_of_the_function() -> None:
    from fairweather.training import train

    options = {field.name for field in dataclasses.fields(verb.Options)}
    assert options | {"settings", "generator_arguments"} == set(inspect.signature(train).parameters)


def test_flags_arrive(called: list[dict[str, Any]]) -> None:
    words = "train cyclegan --degraded foggy --clear sunny --steps 50 --out r --recipe.pool 3 --recipe.identity=0"
    assert cli.main([*words.split(), "--generator", "unet", "--generator.norm", "instance", "--resume"]) == 0
    given = {key: value for key, value in called[0].items() if value is not None}
    assert given == {
        "recipe": "cyclegan",
        "degraded": Path("foggy"),
        "clear": Path("sunny"),
        "steps": 50,
        "out": Path("r"),
        "resume": True,
        "generator": "unet",
        "settings": {"pool": 3, "identity": 0.0},
        "generator_arguments": {"norm": "instance"},
    }


def test_help_tells_the_recipes_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """derain takes pix2pix's U-Net without its dropout; inherited settings are explained too."""
    shown = {}
    for recipe in ("derain", "pix2pix"):
        assert cli.main(["train", recipe, "--help"]) == 0
        words = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
        shown[recipe] = words.split("--generator.dropout", 1)[1].split("default: ", 1)[1].split(")", 1)[0]
        assert f"--recipe.{'cycle' if recipe == 'derain' else 'l1'} FLOAT Weight of the L1 difference" in words
    assert shown == {"derain": "0.0", "pix2pix": "0.5"}


def test_only_what_is_said_is_passed_on(called: list[dict[str, Any]]) -> None:
    """A default that was passed on would win over the settings file."""
    assert cli.main(["train", "pix2pix", "--data", "d", "--recipe.l1", "100"]) == 0
    assert called[0]["settings"] == {"l1": 100.0}, "said, though it is the default"
    assert called[0]["generator_arguments"] is None
    assert called[0]["seed"] is None


def test_the_recipe_may_stand_anywhere_or_in_the_file(called: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli.main(["train", "--data", "d", "pix2pix", "--recipe.lr", "1e-3"]) == 0
    assert called[0]["recipe"] == "pix2pix"
    assert called[0]["settings"] == {"lr": 1e-3}
    (tmp_path / "run.toml").write_text('[recipe]\nname = "cyclegan"\n')
    assert cli.main(["train", "--config", str(tmp_path / "run.toml"), "--recipe.cycle", "5"]) == 0
    assert called[1]["recipe"] is None
    assert called[1]["settings"] == {"cycle": 5.0}


def test_help_lists_the_recipe_s_and_the_generator_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "cyclegan", "--generator", "unet", "--help"]) == 0
    page = capsys.readouterr().out
    assert "--recipe.identity" in page
    assert "--generator.levels" in page
    assert "--recipe.l1" not in page


def test_help_alone_loads_no_torch() -> None:
    from tests.architecture.test_surface import modules_after

    loaded = modules_after("from fairweather.cli import main; main(['train', '--help'])")
    assert "tyro" in loaded
    assert "torch" not in loaded


def error(words: str, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    assert cli.main(["train", *words.split()]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("fairweather: error: ")]) == 1, lines
    return lines[-1]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for side in ("hazy", "clear"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pairs" / side / f"{number}.png")
    return tmp_path / "pairs"


def test_names_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'cyclegan'" in error("cyclegna --data d", capsys)
    assert "resnet9" in error("cyclegan --data d --generator resnt9", capsys)
    assert cli.main(["train", "cyclegan", "--recipe.l1", "3", "--data", "d"]) == 2


def test_a_misspelt_key_in_the_file(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[run]\nstepz = 10\n")
    message = error(f"pix2pix --data {pairs} --config {config} --out {tmp_path / 'r'}", capsys)
    assert all(word in message for word in (str(config), "stepz", "steps"))
    config.write_text('[recipe]\nname = "pix2pix"\nwidht = 10\n')
    message = error(f"--data {pairs} --config {config} --out {tmp_path / 'r'}", capsys)
    assert all(word in message for word in (str(config), "'widht'", "'width'"))
    assert "no such settings file" in error(f"pix2pix --config {tmp_path / 'no.toml'}", capsys)
    assert not (tmp_path / "r").exists()


def test_an_unmatched_photo_is_named_before_training(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "clear" / "1.png").rename(pairs / "clear" / "seven.png")
    message = error(f"pix2pix --data {pairs} --out {tmp_path / 'r'} --steps 1", capsys)
    assert "1.png" in message
    assert not (tmp_path / "r").exists()


SMALL = (
    "pix2pix --generator.levels 3 --generator.width 4 --recipe.width 4 --crop 32 --batch 1 --workers 0 --threads 1 "
    "--sample-steps 0 --tensorboard False --precision fp32 --device cpu"
)


def test_train_resume_restore(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way on the command line: a run, its resumption with other settings refused, its model put to work."""
    run = tmp_path / "run"
    assert cli.main(["train", *SMALL.split(), "--data", str(pairs), "--steps", "2", "--out", str(run)]) == 0
    capsys.readouterr()
    assert len((run / "stats.jsonl").read_text().splitlines()) == 2
    message = error(f"{SMALL} --data {pairs} --steps 2 --out {run} --resume --recipe.l1 50", capsys)
    assert "recipe.l1" in message
    assert "--resume" in error(f"{SMALL} --data {pairs} --steps 2 --out {run}", capsys)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["restore", "pairs/hazy", "--model", str(run)]) == 0
    assert len(list((tmp_path / "restored").iterdir())) == 2
    capsys.readouterr()
    assert cli.main(["info", str(run)]) == 0
    assert "pix2pix" in capsys.readouterr().out
