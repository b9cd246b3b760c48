"""Lines through points, what the table says of them, the picture, and real points of a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scaling
from PIL import Image


def test_a_line_and_what_lies_off_it() -> None:
    straight = scaling.line([(1, 5.0), (2, 7.0), (4, 11.0)])
    assert (straight.base, straight.slope, straight.fit) == (pytest.approx(3), pytest.approx(2), pytest.approx(1))
    assert straight.furthest == pytest.approx(0, abs=1e-12)
    points = [(1.0, 2.0), (2.0, 3.0), (3.0, 4.5), (4.0, 7.0)]
    bent = scaling.line(points)
    slope, base = np.polyfit(*np.transpose(points), 1)
    assert (bent.slope, bent.base) == (pytest.approx(slope), pytest.approx(base))
    correlation = np.corrcoef(*np.transpose(points))[0, 1]
    assert bent.fit == pytest.approx(correlation**2)
    assert bent.furthest == pytest.approx(max(abs(y / (base + slope * x) - 1) for x, y in points))
    assert bent.furthest > 0.1
    assert scaling.line([(1, 6.0), (5, 6.0)]).fit == 1


def test_sides_are_of_4_to_3() -> None:
    for megapixels in (1, 12, 48):
        width, height = scaling.sides(megapixels)
        assert width * height == pytest.approx(megapixels * 1e6, rel=0.003)
        assert width / height == pytest.approx(4 / 3, rel=0.002)


SERIES = {
    "megapixels": [(1.0, 0.2, 150.0), (2.0, 0.3, 160.0), (3.0, 0.4, 170.0)],
    "photos": [(4.0, 1.0, 200.0), (8.0, 2.0, 220.0), (16.0, 4.0, 200.0)],
}


def test_table_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = scaling.markdown(SERIES)
    assert "| time against megapixels | 0.10 s | 0.100 s | 1.0000 | 0.0% |" in table
    assert "| time against photos | 0.00 s | 0.250 s | 1.0000 | 0.0% |" in table
    assert "| 8 | 2.00 | 220 |" in table
    scaling.draw(SERIES, "a title", tmp_path / "scaling.png")
    assert min(Image.open(tmp_path / "scaling.png").size) > 300
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.png"]


def test_points_are_measured(tiny_model: Path, tmp_path: Path, photo: np.ndarray) -> None:
    source = tmp_path / "photo.jpg"
    Image.fromarray(photo).save(source)
    for number in (0, 3):
        model = ("--model", str(tiny_model), "--engine", "openvino", "--runs", "1")
        found = scaling.child("--measure", str(source), str(number), *model)
        assert found[0] == number
        assert 0 < found[1] < 60
        assert 30 < found[2] < 2000


def test_two_points_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--photos", "4", "8"])
    assert "at least three" in capsys.readouterr().err


def test_a_child_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"scaling.py: .*absent\.jpg"):
        scaling.child("--measure", str(tmp_path / "absent.jpg"), "0", "--runs", "1")
