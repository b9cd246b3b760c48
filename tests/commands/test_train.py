"""`fairweather train`: flags, config files, and the most common errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fairweather
from fairweather import cli
from fairweather.model_folder import GENERATOR_NAMES
from fairweather.training import Run
from fairweather.training.config import OPTIONS, RECIPE_NAMES


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of calls of fairweather.train, which is replaced."""
    calls: list[dict[str, Any]] = []

    def train(**options: Any) -> Run:
        calls.append(options)
        return Run(Path("run"))

    monkeypatch.setattr(fairweather, "train", train)
    return calls


def test_flags_arrive(called: list[dict[str, Any]]) -> None:
    words = "train cyclegan --degraded foggy --clear sunny --steps 50 --out r --recipe.pool 3 --recipe.identity=0"
    assert cli.main([*words.split(), "--generator", "unet", "--generator.norm", "instance", "--resume"]) == 0
    assert called[0] == {
        "recipe": "cyclegan",
        "degraded": "foggy",
        "clear": "sunny",
        "steps": 50,
        "out": Path("r"),
        "resume": True,
        "generator": "unet",
        "settings": {"pool": 3, "identity": 0.0},
        "generator_arguments": {"norm": "instance"},
    }


def test_help_shows_the_recipes_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """derain uses pix2pix's U-Net without dropout; inherited settings are documented too."""
    shown = {}
    for recipe in ("derain", "pix2pix"):
        assert cli.main(["train", recipe, "--help"]) == 0
        words = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
        shown[recipe] = words.split("--generator.dropout", 1)[1].split("default: ", 1)[1].split(")", 1)[0]
        assert f"--recipe.{'cycle' if recipe == 'derain' else 'l1'} X Weight of the L1" in words
    assert shown == {"derain": "0.0", "pix2pix": "0.5"}


def test_only_given_flags_are_passed_on(called: list[dict[str, Any]]) -> None:
    """Defaults would win over the config file."""
    assert cli.main(["train", "pix2pix", "--data", "d", "--recipe.l1", "100", "--seed=0", "--no-tensorboard"]) == 0
    assert called[0] == {
        **{"recipe": "pix2pix", "data": "d", "settings": {"l1": 100.0}, "seed": 0, "tensorboard": False},
        **{"out": Path("run"), "resume": False},
    }


def test_the_recipe_may_stand_anywhere_or_in_the_file(called: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli.main(["train", "--data", "d", "pix2pix", "--recipe.lr", "1e-3"]) == 0
    assert called[0]["recipe"] == "pix2pix"
    assert called[0]["settings"] == {"lr": 1e-3}
    (tmp_path / "run.toml").write_text('[recipe]\nname = "cyclegan"\n')
    assert cli.main(["train", "--config", str(tmp_path / "run.toml"), "--recipe.cycle", "5"]) == 0
    assert "recipe" not in called[1]
    assert called[1]["settings"] == {"cycle": 5.0}


def test_help_lists_the_recipe_s_and_the_generator_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "cyclegan", "--generator", "unet", "--help"]) == 0
    page = capsys.readouterr().out
    assert "--recipe.identity" in page
    assert "--generator.levels" in page
    assert "--recipe.l1" not in page


def test_help_lists_every_name_and_option_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.architecture.test_surface import modules_after

    loaded = modules_after("from fairweather.cli import main; main(['train', '--help'])")
    assert "tyro" in loaded
    assert "torch" not in loaded
    assert cli.main(["train", "--help"]) == 0
    page = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert not [name for name in (*GENERATOR_NAMES, *RECIPE_NAMES) if name not in page]
    flags = {name.replace("_", "-") for name in OPTIONS} - {"augment", "sources"}
    assert not [flag for flag in flags if f"--{flag} " not in page and f"--{flag}, " not in page]
    assert "Initial weights for fine-tuning" in page


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
    assert "no such file (--config)" in error(f"pix2pix --config {tmp_path / 'no.toml'}", capsys)
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
    "--sample-steps 0 --no-tensorboard --precision fp32 --device cpu"
)


def test_train_resume_restore(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run, resuming with other settings (refused), restoring with its model."""
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
