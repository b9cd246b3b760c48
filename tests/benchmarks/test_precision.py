"""The benchmark of fp32 beside bf16: its verdict, and a run of two steps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import precision
import pytest

TINY = """
[run]
batch = 2
tensorboard = false
[recipe]
name = "pix2pix"
width = 4
[generator]
name = "unet"
levels = 2
width = 4
[data]
crop = 32
"""


def test_the_verdict_is_about_the_means() -> None:
    near, good = precision.table({"pix2pix": {"fp32": [20.0, 21.0, 22.0], "bf16": [21.2, 20.2, 22.2]}})
    assert good
    assert "| pix2pix | 20.00 21.00 22.00 | 21.20 20.20 22.20 | 21.00 | 21.20 | +0.20 | 1.00 |" in near
    assert not precision.table({"pix2pix": {"fp32": [20.0, 21.0], "bf16": [20.4, 21.4]}})[1]


def test_it_trains_in_both_and_scores(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for side in ("hazy", "clear"):
            folder = tmp_path / part / "sots_outdoor" / side
            folder.mkdir(parents=True)
            for at in range(2):
                shown = np.roll(photo, 9 * at + 40 * (part == "test"), axis=1)
                cv2.imwrite(str(folder / f"{at}.png"), shown // 2 + 100 if side == "hazy" else shown)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pix2pix-laptop.toml").write_text(TINY)
    monkeypatch.setattr(precision, "ROOT", tmp_path)
    words = ["--out", str(tmp_path / "out"), "--data", str(tmp_path), "--only", "pix2pix", "--jobs", "1"]
    assert precision.main([*words, "--steps", "2", "--seeds", "1"]) in (0, 1)
    assert "| pix2pix | " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"pix2pix-fp32-1", "pix2pix-bf16-1"}
    monkeypatch.setattr(precision, "ROOT", tmp_path / "nowhere")  # what has ended is not trained again
    assert precision.main([*words, "--steps", "2", "--seeds", "1"]) in (0, 1)
