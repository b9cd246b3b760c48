"""The table of budgets kept: a small photo, a tiny model, and a budget that cannot be kept."""

from __future__ import annotations

from pathlib import Path

import memory
import numpy as np
import pytest
from PIL import Image


def test_a_row_has_both_peaks_and_the_difference(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--photo", "300x200.png", "--model", str(tiny_model), "--memory"]
    assert memory.main([*words, "1GB"]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert row[2] == "300x200.png"
    assert 50 < float(row[3]) < 954
    assert float(row[4]) > 50
    assert row[5] in ("0", "1")
    assert memory.main([*words, "20MB"]) == 1
    assert "too small" in capsys.readouterr().out.splitlines()[-1]


def test_the_difference_is_the_greatest_one(tmp_path: Path) -> None:
    one = np.full((9, 9, 3), 100, np.uint8)
    other = one.copy()
    other[4, 4, 1] = 93
    for name, pixels in (("one", one), ("other", other)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert memory.difference(tmp_path / "one.png", tmp_path / "other.png") == 7
    assert memory.difference(tmp_path / "one.png", tmp_path / "one.png") == 0
