from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from fairweather.data.datasets import PhotoCache, reduce_photo, to_eight_bits
from fairweather.errors import BadFolder, BadImage
from tests.data.conftest import scene, write_photo


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.array([0, 128, 129, 257, 32896, 65535], np.uint16)
    assert to_eight_bits(values).tolist() == [0, 0, 1, 1, 128, 255]


def test_large_photos_are_reduced_and_small_ones_left() -> None:
    photo = scene(7, 100, 160)
    assert reduce_photo(photo, 50).shape == (50, 80, 3)
    assert reduce_photo(photo, None) is photo
    assert reduce_photo(photo, 200) is photo


def test_a_photo_is_decoded_once_and_cannot_be_written_to(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", scene(9))
    photos = PhotoCache()
    first = photos.get(path)
    path.unlink()
    assert photos.get(path) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1


def test_the_budget_bounds_memory_and_changes_no_pixel(tmp_path: Path) -> None:
    paths = [write_photo(tmp_path / f"{n}.png", scene(n)) for n in range(6)]
    size = scene(0).nbytes
    photos = PhotoCache(memory=2 * size)
    photos.check(paths)
    assert photos.used == 2 * size
    for number, path in enumerate(paths):
        assert (photos.get(path) == scene(number)).all()
    assert photos.used == 2 * size


def test_every_broken_file_is_named_before_work_starts(tmp_path: Path) -> None:
    good = write_photo(tmp_path / "good.jpg", scene(1))
    text, short, empty = (tmp_path / name for name in ("text.jpg", "short.jpg", "empty.png"))
    text.write_text("no photo at all")
    short.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty.write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        PhotoCache().check([good, text, short, empty])
    assert all(name in str(caught.value) for name in ("text.jpg", "short.jpg", "empty.png"))
    assert "good.jpg" not in str(caught.value)


def test_reside_borders_are_cut_off_and_other_sizes_refused(tmp_path: Path) -> None:
    whole = scene(30, 92, 116)
    clear = write_photo(tmp_path / "clear.png", whole)
    hazy = write_photo(tmp_path / "hazy.png", whole[10:-10, 10:-10])
    photos = PhotoCache()
    first, second = photos.pair(hazy, clear)
    assert (first == second).all()
    assert (photos.get(clear) == whole).all()
    wrong = write_photo(tmp_path / "wrong.png", whole[5:, 5:])
    with pytest.raises(BadFolder, match=r"clear\.png is 116 x 92, .* 111 x 87"):
        photos.check([], [(wrong, clear)])


def test_pairs_are_reduced_alike(tmp_path: Path) -> None:
    whole = scene(30, 92, 116)
    pair = write_photo(tmp_path / "hazy.png", whole[10:-10, 10:-10]), write_photo(tmp_path / "clear.png", whole)
    first, second = PhotoCache(36).pair(*pair)
    assert first.shape == second.shape == (36, 48, 3)
    assert (first == second).all()


def test_a_store_travels_to_another_process(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", scene(9))
    photos = PhotoCache()
    photos.check([path])
    copy = pickle.loads(pickle.dumps(photos))
    path.unlink()
    assert (copy.get(path) == scene(9)).all()
