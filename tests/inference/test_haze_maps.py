"""Haze maps: the equation at full size, agreement with PyTorch, and work in strips."""

from __future__ import annotations

import os
import signal
import threading

import cv2
import numpy as np
import pytest

from fairweather.inference.haze_maps import (
    Scratch,
    _guided_gain,
    add_change,
    apply_maps,
    reduce_photo,
    run_in_strips,
)
from fairweather.model_folder import MapsSpec

SPEC = MapsSpec(size=64, radius=2, eps=1e-3)


def flat_maps(t: float, airlight: float, offset: float = 0.0, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    maps = np.empty((1, 7, *size), np.float32)
    maps[:, 0], maps[:, 1:4], maps[:, 4:] = t, airlight, offset
    return maps


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_type_gives_the_same_picture(photo: np.ndarray, dtype: type, rng: np.random.Generator) -> None:
    units = {np.uint8: 255, np.uint16: 65535, np.float32: 1}
    picture = (photo.astype(np.float64) / 255 * units[dtype]).astype(dtype)
    maps = flat_maps(0.6, 0.9)
    maps[:, 0] += rng.uniform(-0.3, 0.3, (16, 16))
    reduced = reduce_photo(photo, SPEC, 32)
    restored = apply_maps(picture, reduced, maps, SPEC)
    assert restored.dtype == dtype
    assert restored.shape == picture.shape
    reference = apply_maps(photo.astype(np.float32) / 255, reduced, maps, SPEC)
    assert np.abs(restored / units[dtype] - reference).max() <= 0.51 / min(255, units[dtype]) + 1e-5


def test_gain_follows_the_photos_edges() -> None:
    """A far bright half and a near dark half: the gain jumps where the photo does, not where the coarse map does."""
    picture = np.full((256, 256, 3), 0.2, np.float32)
    picture[:, 128:] = 0.8
    spec = MapsSpec(size=64, radius=2, eps=1e-4)
    reduced = reduce_photo(picture, spec, 32)
    maps = flat_maps(0.9, 1.0, size=(32, 32))
    maps[:, 0, :, 16:] = 0.3
    restored = apply_maps(picture, reduced, maps, spec)
    near, far = 1 + (0.2 - 1) / 0.9, 1 + (0.8 - 1) / 0.3
    error = np.abs(restored - np.where(picture < 0.5, np.float32(near), np.float32(far)))
    # One cell of the map is 8 pixels: beyond it nothing leaks, within it little does.
    assert error[:, :120].max() < 0.01
    assert error[:, 136:].max() < 0.01
    plain = cv2.resize(1 / maps[0, 0], (256, 256), interpolation=cv2.INTER_LINEAR)[..., None]
    unguided = np.abs(1 + plain * (picture - 1) - np.where(picture < 0.5, np.float32(near), np.float32(far)))
    assert error[:, 120:136].mean() < 0.2 * unguided[:, 120:136].mean()


def test_reduced_sides_are_multiples_and_about_the_size() -> None:
    for height, width in [(3000, 4000), (413, 550), (1, 1), (10, 5000), (64, 64), (640, 3)]:
        h, w = reduce_photo(np.zeros((height, width, 3), np.uint8), SPEC, 32).shape[2:]
        assert h % 32 == 0
        assert w % 32 == 0
        assert min(h, w) >= 32
    assert reduce_photo(np.zeros((999, 999, 3), np.uint8), MapsSpec(256, 2, 1e-3), 32).shape == (1, 3, 256, 256)


def test_halving_first_changes_little(rng: np.random.Generator) -> None:
    """Beside one reduction by area: 8 bits round twice, and cells at the edge of a pixel of the target lie in one."""
    coarse = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    photo = cv2.resize(coarse, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    reduced = reduce_photo(photo, SPEC, 32)
    height, width = reduced.shape[2:]
    once = cv2.resize(photo.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_AREA)
    difference = np.abs(reduced[0].transpose(1, 2, 0) - once)
    assert difference.max() > 0, "nothing was halved"
    assert difference.max() < 3 / 255
    assert difference.mean() < 0.7 / 255


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (97, 131), (512, 384), (33, 17), (390, 514)])
def test_numpy_does_what_torch_does(size: tuple[int, int], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from fairweather.generators import ScatteringMaps

    torch.manual_seed(1)
    network = ScatteringMaps(size=96, widths=(8, 8, 8, 8)).eval()
    torch.nn.init.normal_(network.maps_module.transmission.weight, std=1.0)
    torch.nn.init.normal_(network.maps_module.colour.weight, std=1.0)
    spec = MapsSpec(size=network.size, radius=network.radius, eps=network.eps)
    # Smooth as photos are: of white noise little is left when it is reduced, and the filter divides by that.
    coarse = rng.random((size[0] // 6 + 2, size[1] // 6 + 2, 3), dtype=np.float32)
    picture = cv2.resize(coarse, (size[1], size[0])).reshape(*size, 3)
    reduced = reduce_photo(picture, spec, 32)
    with torch.no_grad():
        maps = network.maps_module(torch.from_numpy(reduced)).numpy()
        expected = network(torch.from_numpy(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert maps[:, 0].std() > 0.003  # the maps are not flat, or the comparison would be of nothing
    np.testing.assert_allclose(apply_maps(picture, reduced, maps, spec), expected, atol=1e-4)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (70, 1), (97, 131), (330, 210)])
def test_strips_give_the_plain_formula(size: tuple[int, int], strength: float, rng: np.random.Generator) -> None:
    """All maps vary, and the answer is the equation of the docstring, written down once more in float64."""
    photo = rng.integers(0, 256, (*size, 3), np.uint8)
    reduced = reduce_photo(photo, SPEC, 32)
    maps = rng.random((1, 7, reduced.shape[2] // 2, reduced.shape[3] // 2), dtype=np.float32)
    maps[:, 0] = 0.1 + 0.9 * maps[:, 0]
    maps[:, 4:] -= 0.5
    slope, intercept = (enlarged(part, size) for part in _guided_gain(reduced, maps, SPEC))
    picture = photo / 255.0
    gain = (slope * (picture @ [0.299, 0.587, 0.114]) + intercept).clip(1, 10)[..., None]
    airlight, offset = (np.stack([enlarged(part, size) for part in maps[0, k : k + 3]], -1) for k in (1, 4))
    whole = airlight + gain * (picture - airlight) + offset
    expected = (picture + strength * (whole - picture)).clip(0, 1) * 255
    restored = apply_maps(photo, reduced, maps, SPEC, strength)
    assert np.abs(restored - expected).max() <= 0.51


def test_a_change_is_enlarged_and_added(rng: np.random.Generator) -> None:
    photo = rng.integers(0, 256, (150, 240, 3), np.uint8)
    change = rng.uniform(-0.4, 0.4, (60, 77, 3)).astype(np.float32)
    wide = np.stack([enlarged(change[..., k], (150, 240)) for k in range(3)], -1)
    expected = (photo + 0.5 * 255 * wide).clip(0, 255)
    assert np.abs(add_change(photo, change, 0.5) - expected).max() <= 0.51


def enlarged(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, centres aligned, the border repeated: one axis after the other, as a matrix product."""

    def weights(many: int, few: int) -> np.ndarray:
        at = ((np.arange(many) + 0.5) * few / many - 0.5).clip(0, few - 1)
        return (1 - np.abs(at[:, None] - np.arange(few))).clip(0)

    return weights(size[0], small.shape[0]) @ small.astype(float) @ weights(size[1], small.shape[1]).T


@pytest.mark.parametrize(("height", "width", "pixels"), [(1, 1, 1), (7, 5, 10), (64, 3, 1000), (100, 2000, 50)])
def test_every_row_is_worked_once(height: int, width: int, pixels: int) -> None:
    seen = np.zeros(height, int)

    def work(top: int, bottom: int) -> None:
        assert (bottom - top) * width <= max(pixels, width)
        seen[top:bottom] += 1

    run_in_strips(height, width, work, pixels)
    assert (seen == 1).all()


def test_what_a_strip_raises_comes_out() -> None:
    def work(top: int, bottom: int) -> None:
        if top == 3:
            raise ZeroDivisionError("in the fourth row")

    with pytest.raises(ZeroDivisionError, match="fourth"):
        run_in_strips(9, 10, work, 10)


def test_scratch_is_the_threads_own_and_is_used_again() -> None:
    scratch = Scratch()
    first = scratch("a", (4, 6))
    assert first.shape == (4, 6)
    assert first.dtype == np.float32
    assert np.shares_memory(first, scratch("a", (3, 2))), "smaller: the same memory"
    assert not np.shares_memory(first, scratch("b", (4, 6)))
    assert not np.shares_memory(first, scratch("a", (4, 6), np.uint8)), "of another type"
    mine = scratch("a", (2, 2))
    theirs: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: theirs.append(scratch("a", (2, 2))))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    run_in_strips(4, 4, lambda top, bottom: None, 4)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a pool without threads would never answer
        run_in_strips(4, 4, lambda top, bottom: None, 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
