"""The table of int8: what stands in it, what is marked, and that nothing is quantized twice."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import quantized
from PIL import Image

from fairweather import model_folder

LINE = quantized.Line(
    model="derain",
    method="static",
    floats="1 of 36",
    passed=True,
    ms={"f32": 90.0, "bf16": 60.0, "int8": 40.0},
    megabytes=(7.02, 3.66),
    decibels={"light": (17, 34.37, 34.27), "heavy": (17, 24.56, 24.36)},
)


def test_the_table_marks_what_loses_too_much() -> None:
    table = quantized.markdown([LINE, dataclasses.replace(LINE, method="qat", passed=False)])
    head, rule, first, second = table.splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert "| derain | static | 1 of 36 | 90.0 | 60.0 | 40.0 | 2.25 | 1.50 | 7.02 | 3.66 |" in first
    assert "light (17) 34.37 -0.10, heavy (17) 24.56 **-0.20** |" in first
    assert "qat (below the bar, forced)" in second


def test_photos_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for _ in range(2):  # a second call finds the links there
        folder = quantized.linked(tmp_path / "data", ("one", "three"), tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["one", "three"]
    assert (folder / "one").resolve() == tmp_path / "data" / "one"


def test_a_line_is_measured_from_what_is_there(
    tiny_model: Path, tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairweather.deploy.quantization import quantize_model

    pytest.importorskip("skimage")
    monkeypatch.setattr(quantized, "TEST", {"haze": ("set",)})
    for side, pixels in (("hazy", photo // 2 + 100), ("clear", photo)):
        (tmp_path / "test" / "set" / side).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "test" / "set" / side / "1.png")
    quantize_model(tiny_model, tmp_path / "made", method="dynamic", timed_at=(64, 64))
    copytree(tmp_path / "made", tmp_path / "out" / "tiny-dynamic")
    options = argparse.Namespace(out=tmp_path / "out", data=tmp_path, steps=1, photos=0, size=(64, 64), runs=1)
    line = quantized.measure(str(tiny_model), "dynamic", options)  # no train/: it would fail if it quantized again
    assert (line.model, line.method, line.passed) == ("tiny", "dynamic", True)
    assert set(line.ms) == set(quantized.PRECISIONS)
    (n, before, after) = line.decibels["set"]
    assert n == 1
    assert before != after
    assert abs(before - after) < 0.2
    assert line.megabytes[1] == pytest.approx((tmp_path / "made" / model_folder.INT8).stat().st_size / 1e6, abs=1e-3)
