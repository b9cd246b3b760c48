"""Engines that find no memory, and memory that changes from photo to photo: tiles follow."""

from __future__ import annotations

import numpy as np
import pytest

from fairweather.errors import BadImage
from fairweather.inference.restorer import Restorer
from tests.inference.test_restorer import GLOBAL, LOCAL, MAPS, PER_PIXEL, photo_of


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("could not allocate 4 GB"), Exception("bad_alloc")])
def test_where_an_engine_finds_no_memory_tiles_become_smaller(raised: Exception, rng: np.random.Generator) -> None:
    shapes: list[tuple[int, int]] = []

    def scarce(picture: np.ndarray) -> np.ndarray:
        shapes.append(picture.shape[2:])
        if picture.shape[2] * picture.shape[3] > 30_000:
            raise raised
        return 1 - picture

    photo = photo_of(400, 300, "uint8", rng)
    restorer = Restorer(LOCAL, scarce, memory=1 << 40)
    assert (restorer(photo, guard=False) == 255 - photo).all()
    assert shapes[0] == (400, 304)
    failed = [shape for shape in shapes if shape[0] * shape[1] > 30_000]
    assert len(failed) <= 3, "half the pixels each time"
    shapes.clear()
    restorer(photo)
    assert all(height * width <= 30_000 for height, width in shapes), "it is remembered for the next photo"


def test_without_any_memory_it_ends_with_a_clear_error(rng: np.random.Generator) -> None:
    sizes: list[int] = []

    def never(picture: np.ndarray) -> np.ndarray:
        sizes.append(picture.shape[2] * picture.shape[3])
        raise MemoryError("no memory at all")

    photo = photo_of(400, 300, "uint8", rng)
    with pytest.raises(BadImage, match=r"tiny failed on .* pixels .no memory at all.*smaller photo"):
        Restorer(LOCAL, never)(photo)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) > 2
    for card, words in ((GLOBAL, "304 x 400"), (MAPS, "want of memory")):
        sizes.clear()
        with pytest.raises(BadImage, match=words):
            Restorer(card, never)(photo)
        assert len(sizes) == 1, "what sees the whole is not asked again"
    with pytest.raises(BadImage, match="smaller tiles"):
        Restorer(LOCAL, never, tile=64)(photo)


def test_memory_may_be_a_function_that_is_asked_for_each_photo(rng: np.random.Generator) -> None:
    left = [int(400 * 304 * PER_PIXEL), int(200 * 200 * PER_PIXEL)]
    shapes: list[tuple[int, ...]] = []

    def engine(picture: np.ndarray) -> np.ndarray:
        shapes.append(picture.shape[2:])
        return picture

    restorer = Restorer(LOCAL, engine, memory=lambda: left.pop(0))
    photo = photo_of(400, 300, "uint8", rng)
    restorer(photo)
    assert shapes == [(400, 304)]
    restorer(photo)
    assert all(height * width <= 200 * 200 for height, width in shapes[1:])
