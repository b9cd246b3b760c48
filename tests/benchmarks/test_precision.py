"""Mixed precision beside fp32: which runs there are, that finished ones stay, and the arithmetic of the table."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import precision
import pytest

from fairweather.training.config import read_toml


def options(out: Path, *words: str) -> Any:
    return precision.parser().parse_args(["--out", str(out), *words])


def test_it_is_about_the_paired_recipes() -> None:
    assert precision.PAIRED == ("pix2pix", "hazeheal")


def test_the_command_is_the_laptop_run_shortened(tmp_path: Path) -> None:
    words = precision.command(precision.One("pix2pix", "bf16", 2), options(tmp_path, "--steps", "7", "--data", "DATA"))
    said = dict(zip(words[4::2], words[5::2], strict=True))
    assert read_toml(said["--config"])["recipe"]["name"] == "pix2pix"
    assert (said["--steps"], said["--seed"], said["--precision"], said["--threads"]) == ("7", "2", "bf16", "1")
    assert said["--data"] == str(Path("DATA/train/sots_outdoor"))
    assert said["--out"] == str(tmp_path / "pix2pix-bf16-2")
    (tmp_path / "pix2pix-bf16-2").mkdir()
    (tmp_path / "pix2pix-bf16-2" / "run.json").write_text("{}")
    assert precision.command(precision.One("pix2pix", "bf16", 2), options(tmp_path))[-1] == "--resume"


def finished(out: Path, one: precision.One, steps: int, score: float) -> None:
    run = out / one.name
    (run / "model").mkdir(parents=True)
    card = run / "model" / "card.json"
    card.write_text("{}")
    (run / "run.json").write_text(json.dumps({"settings": {"run": {"steps": steps}}}))
    key = f"{out} {card.stat().st_mtime_ns}"
    (run / "score.json").write_text(json.dumps({key: score}))


def test_finished_runs_are_read_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "run_training", lambda *_, **__: pytest.fail("a finished run was trained again"))
    values = {"fp32": (18.0, 18.2, 18.4), "bf16": (18.1, 18.2, 18.0)}
    for p, scores in values.items():
        for seed, value in enumerate(scores, 1):
            finished(tmp_path, precision.One("pix2pix", p, seed), 240, value)
    words = ["--out", str(tmp_path), "--recipe", "pix2pix", "--test", str(tmp_path)]
    assert precision.main(words) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    cells = "| pix2pix | 18.00 | 18.20 | 18.40 | 18.10 | 18.20 | 18.00 | 18.20 | 18.10 | -0.10 | 0.15 |"
    assert line == cells
    assert precision.main([*words, "--steps", "100"]) == 1
    assert "take --steps 240" in capsys.readouterr().err
    monkeypatch.setattr(precision, "MOST", 0.05)
    assert precision.main(words) == 1
    assert "apart: pix2pix" in capsys.readouterr().err


def test_what_training_said_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "raise SystemExit('fairweather: error: no photos')"]
    monkeypatch.setattr(precision, "command", lambda *_: failing)
    with pytest.raises(RuntimeError, match="pix2pix-bf16-2: training ended with code 1: fairweather: error: no photos"):
        precision.train(precision.One("pix2pix", "bf16", 2), options(tmp_path))


def test_the_difference_is_taken_seed_by_seed() -> None:
    mean, error = precision.compare([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert (mean, error) == (0.5, 0.0)
    assert math.isnan(precision.compare([1.0], [2.0])[1])
