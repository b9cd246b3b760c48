"""Changes in photos without clear versions: every measure, the table, changes.csv and the sheets."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.evaluation import evaluate_unpaired, measure_change, no_reference


@pytest.fixture
def scene(rng: np.random.Generator) -> np.ndarray:
    """Coloured patches with soft shading and a flat sky above: 120 x 160 x 3 floats, nothing clipped."""
    picture = cv2.resize(rng.random((12, 16, 3), np.float32), (160, 120), interpolation=cv2.INTER_NEAREST)
    picture[40:] = 0.15 + 0.6 * picture[40:]
    picture[:40] = (0.6, 0.65, 0.7)
    return picture


def hazed(picture: np.ndarray, t: float) -> np.ndarray:
    return (picture * t + 0.8 * (1 - t)).astype(np.float32)


def test_nothing_changed(scene: np.ndarray) -> None:
    same = measure_change(scene, scene.copy())
    assert same.contrast == 1
    assert {value for name, value in same.as_dict().items() if name != "contrast"} == {0}


def test_contrast_is_the_ratio_of_gains(scene: np.ndarray) -> None:
    assert measure_change(hazed(scene, 0.5), scene).contrast == pytest.approx(2, rel=1e-3)
    assert measure_change(scene, hazed(scene, 0.5)).contrast == pytest.approx(0.5, rel=1e-3)
    assert measure_change(np.full_like(scene, 0.5), scene).contrast > 100, "from nothing: large, not infinite"


def test_local_contrast_is_that_of_a_window() -> None:
    stripes = np.zeros((100, 700, 3), np.float32)
    stripes[:, ::2] = 0.4  # a standard deviation of 0.2 in every window, whichever its size
    assert no_reference.local_contrast(stripes) == pytest.approx(0.2, abs=0.005)
    slope = np.repeat(np.tile(np.linspace(0, 1, 700, dtype=np.float32), (100, 1))[..., None], 3, axis=2)
    assert no_reference.local_contrast(slope) < 0.01, "a slow change is not local contrast"


def test_saturated_pixels_count_by_any_channel(scene: np.ndarray) -> None:
    after = scene.copy()
    after[0, :80, 0] = 1.0
    after[1, :80, 2] = 0.0
    after[2, :, 1] = 254 / 255
    assert measure_change(scene, after).saturated == pytest.approx(100 * 160 / (120 * 160))
    assert measure_change(after, scene).saturated == pytest.approx(-100 * 160 / (120 * 160))


def test_cast_has_a_direction(scene: np.ndarray) -> None:
    red, blue = (scene + np.array(tint, np.float32) for tint in ([0.08, 0, 0], [0, 0, 0.08]))
    assert measure_change(scene, red).cast_a > 2
    assert measure_change(scene, blue).cast_b < -2
    assert measure_change(scene, red).cast == pytest.approx(
        np.hypot(measure_change(scene, red).cast_a, measure_change(scene, red).cast_b)
    )
    assert measure_change(scene, scene * 0.9).cast < 1.5, "darker is no colour"


def test_noise_is_found_in_its_size_and_texture_is_not(scene: np.ndarray, rng: np.random.Generator) -> None:
    grain = rng.normal(0, 3 / 255, scene.shape[:2]).astype(np.float32)[..., None]
    assert 255 * no_reference.noise_level(scene) < 0.1, "edges of patches are no noise"
    assert measure_change(scene, scene + grain).noise == pytest.approx(3, rel=0.15)
    noisy = scene + grain
    assert measure_change(noisy, noisy.mean() + (noisy - noisy.mean()) * 2).noise == pytest.approx(3, rel=0.2)
    checks = scene.copy()
    checks[60:] += 0.2 * (np.indices((60, 160)).sum(0) % 2)[..., None].astype(np.float32)
    assert abs(measure_change(checks, checks * 0.9).noise) < 0.1, "texture outside of flat places does not count"


def test_flat_places_are_not_clipped_ones(rng: np.random.Generator) -> None:
    picture = np.full((64, 160, 3), 1.0, np.float32)
    picture[:, 80:] = 0.5 + rng.normal(0, 0.02, (64, 80, 1))
    flat = no_reference.flat_blocks(picture)
    assert flat.shape == (4, 10)
    assert flat.any()
    assert not flat[:, :5].any()
    assert no_reference.flat_blocks(np.ones_like(picture)).any(), "even if all blocks are clipped"


def test_small_photos_are_measured(rng: np.random.Generator) -> None:
    for size in [(1, 1), (3, 40), (15, 15), (16, 17)]:
        picture = rng.random((*size, 3), np.float32)
        assert np.isfinite(list(measure_change(picture, picture * 0.5).as_dict().values())).all()


def test_sizes_must_agree(scene: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"160 x 120.*159 x 120"):
        measure_change(scene, scene[:, 1:])


def test_more_haze_is_estimated_as_more(scene: np.ndarray) -> None:
    densities = [no_reference.haze_density(hazed(scene, t)) for t in (1, 0.8, 0.6, 0.4, 0.2)]
    assert densities == sorted(densities)
    assert densities[0] < 0.2
    assert densities[-1] > 0.6
    assert measure_change(hazed(scene, 0.5), scene).density < -0.2


def test_density_hardly_depends_on_the_pixels(scene: np.ndarray) -> None:
    hazy = hazed(scene, 0.5)
    large = cv2.resize(hazy, (640, 480), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(hazy, (256, 192), interpolation=cv2.INTER_CUBIC)
    assert no_reference.haze_density(large) == pytest.approx(no_reference.haze_density(small), abs=0.05)


def test_the_weights_fit_the_features(scene: np.ndarray) -> None:
    count = len(no_reference.density_features(scene))
    assert (
        len(no_reference.FEATURE_CENTRE)
        == len(no_reference.FEATURE_SCALE)
        == len(no_reference.FEATURE_WEIGHTS)
        == count
    )


def test_hazy_photos_of_real_pairs_are_hazier(shared_data) -> None:  # type: ignore[no-untyped-def]
    from fairweather.images.io import read, to_float
    from fairweather.pairs import find_sets

    pairs = next(iter(find_sets(shared_data / "train" / "o_haze").values()))[:6]
    sides = [[no_reference.haze_density(to_float(read(p).pixels)) for p in (q.degraded, q.clear)] for q in pairs]
    assert sum(hazy > clear for hazy, clear in sides) >= 5


@pytest.fixture
def photos(tmp_path: Path, photo: np.ndarray) -> Path:
    """Six hazy photos, one of them in a folder below, one of 16 bits."""
    folder = tmp_path / "hazy"
    (folder / "more").mkdir(parents=True)
    for at in range(5):
        hazy = photo * (0.8 - 0.1 * at) + 255 * (0.1 + 0.1 * at)
        Image.fromarray(hazy.round().clip(0, 255).astype(np.uint8)).save(folder / f"photo{at}.png")
    Image.fromarray(photo[..., 1].astype(np.uint16) * 200).save(folder / "more" / "sixteen.png")
    return folder


def stretch(pixels: np.ndarray) -> np.ndarray:
    full = np.iinfo(pixels.dtype).max
    return ((pixels / full - 0.5) * 1.5 + 0.5).clip(0, 1).__mul__(full).round().astype(pixels.dtype)


def test_every_photo_is_measured_in_its_own_type(photos: Path) -> None:
    seen = []

    def restorer(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.dtype)
        return stretch(pixels)

    result = evaluate_unpaired(restorer, photos)
    assert set(result.photos) == {*(f"photo{at}" for at in range(5)), "more/sixteen"}
    assert set(seen) == {np.dtype(np.uint8), np.dtype(np.uint16)}
    assert 1.3 < result.mean("contrast") < 1.6
    name, value = result.worst("saturated")
    assert value == max(one.saturated for one in result.photos.values())
    assert result.photos[name].saturated == value
    assert result.worst("contrast")[1] == min(one.contrast for one in result.photos.values())


def test_files(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate_unpaired(stretch, photos, out)
    with open(out / no_reference.CHANGES_CSV, newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(result.photos)
    assert float(rows["photo1"]["contrast"]) == pytest.approx(result.photos["photo1"].contrast, abs=1e-4)
    sheets = sorted(path.name for path in out.glob("*.jpg"))
    assert sheets == ["hazy-01.jpg", "hazy-02.jpg"]
    with Image.open(out / "hazy-01.jpg") as first, Image.open(out / "hazy-02.jpg") as second:
        assert first.width > 2 * 500
        assert first.height > 1.8 * second.height, "four photos, then two"
    evaluate_unpaired(stretch, photos, out, sheet=1)
    assert [path.name for path in out.glob("*.jpg")] == ["hazy-01.jpg"], "sheets of an earlier evaluation go"


def test_a_broken_photo_is_named_and_the_others_go_on(photos: Path, tmp_path: Path) -> None:
    (photos / "photo2.png").write_bytes(b"no picture")
    result = evaluate_unpaired(stretch, photos, tmp_path / "out")
    assert list(result.failed) == ["photo2"]
    assert len(result.photos) == 5
    assert "no picture" not in (tmp_path / "out" / no_reference.CHANGES_CSV).read_text().splitlines()[0]
    assert "photo2.png" in (tmp_path / "out" / no_reference.CHANGES_CSV).read_text()

    def refuses(pixels: np.ndarray) -> np.ndarray:
        raise BadImage("too large")

    assert len(evaluate_unpaired(refuses, photos, tmp_path / "none").failed) == 6


def test_refusals(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFolder, match="no pictures"):
        evaluate_unpaired(stretch, tmp_path / "empty")
    with pytest.raises(BadSettings, match="at least 1"):
        evaluate_unpaired(stretch, photos, sheet=0)


def test_tables_fit_a_terminal(photos: Path) -> None:
    result = evaluate_unpaired(stretch, photos)
    for grid in (no_reference.changes_table(result, "some model"), no_reference.changes_by_photo(result)):
        console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(grid)
        text = console.export_text()
        assert "…" not in text
        assert "photo4" in text
