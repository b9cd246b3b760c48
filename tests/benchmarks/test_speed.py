"""The stopwatch of the speed table: what is counted to which stage, the photo it builds, a child's answer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import limits
import measuring
import numpy as np
import pytest
import speed
import speed_table
from PIL import Image

from fairweather.inference import Restorer
from fairweather.model_folder import Card


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
    assert tuple(times) == speed_table.STAGES
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
    first, second = (measuring.mosaic([example, tmp_path / "tall.png"], 700, 500) for _ in range(2))
    assert first.shape == (500, 700, 3)
    assert np.array_equal(first, second)
    assert (first.max(axis=2) > 0).mean() > 0.99
    assert (first[:96, 128:178] == (200, 90, 40)).all()
    assert np.array_equal(first[:96, :128], first[:96, 178:306][:, ::-1]), "mirrored the second time round"


def test_a_child_measures_the_prior(example: Path, tmp_path: Path) -> None:
    """A process of its own, whose peak is that process's."""
    found = json.loads(speed.child("--measure", speed.PRIOR, str(example), "--runs", "1"))
    assert set(found["times"]) == set(speed_table.STAGES)
    assert found["total"] == pytest.approx(sum(found["times"].values()))
    assert found["first"] > found["total"]
    assert 30e6 < found["peak"] < 1e9
    table = speed_table.markdown([("128x96", found)])
    assert "| dark channel prior | OpenCV | 128 x 96 | " in table
    shares = [int(part.split("%")[0]) for part in table.splitlines()[-1].split("(")[1:]]
    assert len(shares) == len(speed_table.STAGES)
    assert sum(shares) == pytest.approx(100, abs=3)


def test_a_child_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"speed.py: .*absent\.jpg"):
        speed.child("--measure", speed.PRIOR, str(tmp_path / "absent.jpg"))


def found(system: str, engine: str, network: float, bare: float | None = None, **more: object) -> dict[str, object]:
    times = dict.fromkeys(speed_table.STAGES, 0.01) | {"network": network}
    whole = {"system": system, "engine": engine, "once": False, "times": times, "total": sum(times.values())}
    return whole | {"first": 1.0, "peak": 2**27, "bare": bare} | more


LIMITS = {f"{kind} {p}": 1e11 for kind in ("convolution", "product") for p in ("f32", "bf16", "int8")} | {"copy": 1e10}


def test_shares_of_the_limit_are_of_the_same_model_and_size() -> None:
    rows = [("100x100", found("a", "torch", 0.2, 0.1, macs=10**10)), ("100x100", found("a", "openvino", 0.125, 0.1))]
    rows += [("200x100", found("a", "openvino", 0.1, 0.1)), ("100x100", found("other", "torch", 0.1))]
    lines = [line.split(" | ") for line in speed_table.markdown(rows, LIMITS).splitlines()[2:]]
    assert [line[-2] for line in lines] == ["50%", "80%", "-", "-"]
    assert [line[-1].split()[0] for line in lines] == ["0%", "0%", "0%", "-"]
    assert lines[0][8:10] == ["220.0", "100.0"], "from pixels to pixels, and without guards"


def test_bars_are_reached_or_missed() -> None:
    rows = [
        ("1920x1080", found("dehaze-fast", "openvino", 0.02, 0.03)),
        ("1920x1080", found("dehaze-fast", "torch", 0.2, 0.3)),  # not the engine that the aims are for
        ("1920x1080", found("dehaze", "openvino", 0.09, 0.11)),
        ("4000x3000", found("dehaze", "openvino", 2.0, 2.9)),
        ("1920x1080", found("gUNet-T", "torch", 2.0)),
        ("1920x1080", found("AOD-Net", "torch", 0.3)),
    ]
    reached = {aim: (value, yes) for aim, _, value, yes in speed_table.bars(rows)}
    assert reached == {
        "`dehaze-fast`, 1920x1080, pixels to pixels": ("30.0 ms", True),
        "`dehaze`, 1920x1080, pixels to pixels": ("110.0 ms", False),
        "`dehaze`, 4000x3000 JPEG, file to file": ("2.04 s", True),
        "`dehaze-fast` against gUNet-T, 1920x1080": ("62.8 x", True),
        "`dehaze-fast` against AOD-Net, 1920x1080": ("10.0 x", False),
        "`dehaze` against gUNet-T, 1920x1080": ("17.1 x", True),
    }
    assert speed_table.bars_markdown(rows).count("missed") == 2
    assert speed_table.bars_markdown([]) == "There is no target for these measurements."


def test_a_child_measures_another_network(example: Path) -> None:
    pytest.importorskip("torch")
    measured = json.loads(speed.child("--measure", "AOD-Net", str(example), "--once"))
    assert measured["once"]
    assert measured["engine"] == "torch"
    assert measured["times"]["network"] > 0


def test_work_is_counted_over_tiles(tiny_model: Path, photo: np.ndarray) -> None:
    pytest.importorskip("torch")
    from fairweather.inference import load

    whole, tiled = load(tiny_model), load(tiny_model, tile=32)
    engine = tiled.engine
    counts = [speed.work_of(restorer, tiny_model, photo) for restorer in (whole, tiled)]
    assert 0 < counts[0] < counts[1], "overlaps are worked twice"
    assert tiled.engine is engine


def test_names_and_shares_are_the_opponents() -> None:
    pytest.importorskip("torch")
    import opponents

    assert tuple(opponents.OPPONENTS) == speed.OTHERS
    assert set(speed.SLOW) <= set(speed.OTHERS)
    assert opponents.GUNET_T_SHARE == speed_table.GUNET_T_SHARE


def test_the_machines_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIDE", 16)
    monkeypatch.setattr(limits, "MATRIX", 64)
    most = limits.measure(runs=1)
    assert set(most) == set(LIMITS)
    assert all(value > 1e6 for value in most.values())
    table = limits.markdown(LIMITS)
    assert "| 3 x 3 convolution, 10^9 MACs/s | 100 | 100 | 100 |" in table
    assert "10.0 GB/s" in table
