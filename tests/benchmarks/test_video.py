"""The tables of films: made from real, small ones, and every aim can be reached and missed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra video is not installed")
pytest.importorskip("torch", reason="the extra train is not installed")

import video

from tests.video.conftest import make


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")][2:]


def test_speed_is_of_every_model_and_of_pyav_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "TURNS", 1)
    film = make(tmp_path / "film.mp4", count=5)
    table = video.speed(film, ["dehaze-fast"], 4, tmp_path)
    assert "4 frames of 1280 x 720" in table
    (alone, *_), (model, seconds, each, _, times, aim, said) = rows(table)
    assert (alone, model, aim) == ("PyAV alone", "dehaze-fast", "≤ 2 x")
    assert float(each) == pytest.approx(1000 * float(seconds) / 4, abs=3)
    assert said == ("reached" if float(times.split()[0]) <= 2 else "missed")


def test_stability_is_measured_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make(tmp_path / "film.mp4", count=6, size=(160, 96))
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    given = [(0.04, np.clip(pixels // 2 + 90 + number, 0, 255).astype(np.uint8), pixels) for number in range(4)]
    monkeypatch.setattr(video, "synthetic", lambda photo: iter(given))
    found = rows(video.stability(film, tmp_path / "none.png", ["dehaze-fast"], 4))
    assert [row[:3] for row in found] == [
        [name, "dehaze-fast", yes] for name in ("film", "synthetic") for yes in ("yes", "no")
    ]
    assert [bool(row[7]) for row in found] == [False, False, True, True], "PSNR where there is a truth"
    assert [bool(row[8]) for row in found] == [True, False, True, False]


def test_memory_of_two_lengths(tmp_path: Path) -> None:
    short, long = rows(video.memory("dehaze-fast", tmp_path, (1, 2)))
    assert (short[1], long[1]) == ("25", "50")
    assert 50 < float(short[2]) < 1000
    assert "x, aim ≤ 1.05 x" in long[3]
