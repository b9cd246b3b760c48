"""A memory beside smoothing: the table from a small network and a small clip, and what makes a model ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra video is not installed")
pytest.importorskip("torch", reason="the extra train is not installed")

import sequence

import fairweather
from fairweather.evaluation.temporal_consistency import TemporalScore
from fairweather.images.io import Photo, write
from fairweather.inference.engines import RecurrentEngine
from fairweather.inference.restorer import Restorer
from fairweather.model_folder import StateSpec


def test_six_ways_of_one_clip(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 14, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    write(tmp_path / "photo.png", Photo(pixels))
    against = fairweather.load("dehaze-fast")

    def holding(picture: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        """Half of what dehaze-fast sees now, half of what it saw before."""
        seen = against.engine(picture)
        held = np.where(state.any(), state, seen)
        return [0.5 * seen + 0.5 * held, seen]

    spec = StateSpec(channels=7, stride=2)
    model = Restorer(replace(against.card, state=spec), RecurrentEngine(holding, spec))
    frames = sequence.synthetic(tmp_path / "photo.png", 5, 1000)
    clip = sequence.scored(frames, sequence.ways(model, against))
    lines = sequence.table([clip, clip], clip).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:8]]
    assert [row[0] for row in rows] == list(sequence.ways(model, against))
    assert len({row[1] for row in rows}) == 6, "six ways, six results"
    assert all(row[5] == row[1] for row in rows), "the film, which is the same clip here"
    assert lines[-1].startswith("memory: ")


@pytest.mark.parametrize(
    ("ratio", "flicker", "psnr", "ships"),
    [(0.9, 0.1, 20.0, True), (1.1, 0.1, 20.0, False), (0.9, 0.3, 20.0, False), (0.9, 0.1, 19.9, False)],
)
def test_steadier_by_both_at_no_lower_psnr(ratio: float, flicker: float, psnr: float, ships: bool) -> None:
    counts: dict[str, Any] = {"frames": 9, "cuts": 0, "visible": 1.0, "input": 1.0, "restored": 1.0, "gain": 1.0}
    rest: dict[str, Any] = {"normalised": 1.0, "input_flicker": 0.0, "cast": 0.0, "input_cast": 0.0}
    base = TemporalScore(**counts, **rest, ratio=1.0, flicker=0.2, psnr=20.0, input_psnr=10.0, truth=0.0)
    ours = replace(base, ratio=ratio, flicker=flicker, psnr=psnr)
    assert sequence.beats([ours], [base]) == ships
