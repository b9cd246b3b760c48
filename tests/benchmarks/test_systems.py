"""The five systems' benchmark, from training to its table, at a size of two steps."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import measuring
import numpy as np
import pytest
import systems

from fairweather import cli
from fairweather.commands.train import parse

TINY = """
[run]
steps = 2
batch = 1
precision = "fp32"
tensorboard = false
[recipe]
name = "{recipe}"
width = 4
[generator]
name = "unet"
levels = 2
width = 4
dropout = 0.0
[data]
crop = 32
"""


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    """train/ and test/ as the benchmark wants them: two pairs a set, the degraded one paler."""
    sets = [f"train/{place}" for place in ("sots_outdoor/hazy", "sots_outdoor/clear")]
    sets += [f"test/{name}/{side}" for name in systems.HAZE for side in ("hazy", "clear")]
    for place in sets:
        (tmp_path / place).mkdir(parents=True)
        for at in range(2):
            shown = np.roll(photo, 9 * at, axis=1)
            pale = shown // 2 + 100 if place.endswith("hazy") else shown
            cv2.imwrite(str(tmp_path / place / f"{at}.png"), pale)
    return tmp_path


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_the_words_that_train_a_system_are_understood(name: str, tmp_path: Path) -> None:
    options = systems.parser().parse_args(["--out", str(tmp_path), "--threads", "1", "--minutes", "3"])
    words = systems.command(name, tmp_path, tmp_path / "run", options)
    assert words[1:4] == ["-m", "fairweather", "train"]
    assert callable(parse(words[4:], "fairweather train"))


def test_minutes_are_of_all_sittings(tmp_path: Path) -> None:
    (tmp_path / "run.seconds").write_text("90.0\n30.0\n")
    assert measuring.cpu_minutes(tmp_path / "run.seconds") == pytest.approx(2.0)


def test_a_process_is_run_to_its_end_and_timed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import os; print('from', os.environ['PLACE'], sum(range(10**6)))"]
    for place in ("here", "there"):
        measuring.run_training(words, tmp_path / "run.log", PLACE=place)
    assert (tmp_path / "run.log").read_text().splitlines() == ["from here 499999500000", "from there 499999500000"]
    seconds = [float(line) for line in (tmp_path / "run.seconds").read_text().splitlines()]
    assert len(seconds) == 2
    assert all(0.001 < one < 20 for one in seconds)


def test_it_trains_and_scores_and_says_what_failed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pix2pix-laptop.toml").write_text(TINY.format(recipe="pix2pix"))
    (tmp_path / "runs" / "cyclegan-laptop.toml").write_text(TINY.format(recipe="no such recipe"))
    monkeypatch.setattr(systems, "ROOT", tmp_path)
    run_training = systems.run_training

    def here(words: list[str], path: Path, **environment: str) -> None:
        """The same words, without the seconds that a new process needs to import everything, but for what fails."""
        if path.stem != "pix2pix":
            return run_training(words, path, **environment)
        assert words[1:3] == ["-m", "fairweather"]
        assert cli.main(words[3:]) == 0
        path.with_suffix(".seconds").write_text("90.0\n")
        return None

    monkeypatch.setattr(systems, "run_training", here)
    words = ["--data", str(photos), "--out", str(tmp_path / "out"), "--only", "pix2pix", "cyclegan", "--jobs", "1"]
    assert systems.main(words) == 1
    said = capsys.readouterr()
    rows = [line for line in said.out.splitlines() if line.startswith("| pix2pix | unet | ")]
    assert [row.split(" | ")[5] for row in rows] == list(systems.HAZE)
    assert "| 2 |" in rows[0]
    assert "cyclegan: training ended with code" in said.err  # and the other one was done all the same
    assert "pix2pix does not improve sots_outdoor" in said.err  # two steps cannot
    assert (tmp_path / "out" / "pix2pix-scores" / "sots_outdoor.jpg").exists()
    assert rows[0].split(" | ")[4] == "2", "minutes, of 90 seconds"
    trained = (tmp_path / "out" / "pix2pix" / "checkpoints" / "latest.pt").stat().st_mtime_ns
    systems.main([*words[:6], "--jobs", "1"])  # an ended run is scored again, not trained again
    assert (tmp_path / "out" / "pix2pix" / "checkpoints" / "latest.pt").stat().st_mtime_ns == trained
