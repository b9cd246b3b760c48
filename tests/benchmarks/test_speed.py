"""The stopwatch of the speed table: what is counted to which stage, the photo it builds, a child's answer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import speed
from PIL import Image

from fairweather.cards import Card
from fairweather.restoring import Restorer


@pytest.fixture
def example(tmp_path: Path, photo: np.ndarray) -> Path:
    path = tmp_path / "example.jpg"
    Image.fromarray(photo).save(path)
    return path


def restorer(delay: float, **changes: object) -> Restorer:
    def engine(picture: np.ndarray) -> np.ndarray:
        time.sleep(delay)
        return picture * 0.5

    fields = {"arguments": {}, "output": "image", "multiple_of": 4, "receptive_field": 9, "maps": None, "training": {}}
    fields |= {"name": "half", "weather": "haze", "generator": "unet", "scores": [], "licence": "", "terms": ""}
    return Restorer(Card(**(fields | changes)), engine)  # type: ignore[arg-type]


def test_each_stage_has_its_own_time(tmp_path: Path, example: Path, photo: np.ndarray) -> None:
    ours = restorer(0.2)
    engine = ours.engine
    start = time.perf_counter()
    times = speed.file_to_file(speed.timed_restorer(ours), example, tmp_path / "out.jpg")
    whole = time.perf_counter() - start
    assert tuple(times) == speed.STAGES
    assert 0.2 <= times["network"] < 0.2 + (whole - sum(times.values())) + 0.2
    assert all(seconds > 0 for seconds in times.values())
    assert sum(times.values()) <= whole
    assert ours.engine is engine, "the restorer is left as it was"
    result = np.asarray(Image.open(tmp_path / "out.jpg")).astype(int)
    assert abs(result - photo // 2).mean() < 3


def test_a_network_that_is_asked_tile_by_tile_adds_up(photo: np.ndarray) -> None:
    ours = restorer(0.05)
    ours.tile = 64
    watch = speed.Stopwatch()
    speed.timed_restorer(ours)(photo, watch)
    assert watch.times["network"] > 0.05 * 3


def test_the_mosaic_is_filled_and_the_same_each_time(example: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 130), (200, 90, 40)).save(tmp_path / "tall.png")
    first, second = (speed.mosaic([example, tmp_path / "tall.png"], 700, 500) for _ in range(2))
    assert first.shape == (500, 700, 3)
    assert np.array_equal(first, second)
    assert (first.max(axis=2) > 0).mean() > 0.99
    assert (first[:96, 128:178] == (200, 90, 40)).all()
    assert np.array_equal(first[:96, :128], first[:96, 178:306][:, ::-1]), "mirrored the second time round"


def test_a_child_measures_the_prior(example: Path, tmp_path: Path) -> None:
    """A process of its own, whose peak is that process's."""
    found = json.loads(speed.child("--measure", speed.PRIOR, str(example), "--runs", "1"))
    assert set(found["times"]) == set(speed.STAGES)
    assert found["total"] == pytest.approx(sum(found["times"].values()))
    assert found["first"] > found["total"]
    assert 30e6 < found["peak"] < 1e9
    table = speed.markdown([("128x96", found)])
    assert "| dark channel prior | 128 x 96 | " in table
    shares = [int(part.split("%")[0]) for part in table.splitlines()[-1].split("(")[1:]]
    assert len(shares) == len(speed.STAGES)
    assert sum(shares) == pytest.approx(100, abs=3)


def test_a_child_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"speed.py: .*absent\.jpg"):
        speed.child("--measure", speed.PRIOR, str(tmp_path / "absent.jpg"))
