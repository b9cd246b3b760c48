"""The border to [0,1], and arrays that are no pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather import images
from fairweather.errors import BadImage


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_the_border(dtype: type[np.unsignedinteger[Any]]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    floats = images.to_float(values)
    assert floats.dtype == np.float32
    assert floats[0] == 0.0
    assert abs(floats[-1] - 1.0) < 1e-6
    assert np.array_equal(images.from_float(floats, dtype), values)


def test_from_float_rounds_and_clips() -> None:
    given = np.array([-0.2, 0.4 / 255, 0.6 / 255, 1.0, 1.7, np.inf], np.float32)
    assert images.from_float(given, np.uint8).tolist() == [0, 0, 1, 255, 255, 255]
    assert images.from_float(given, np.float32).max() == 1.0


def test_replaced_refuses_another_shape(photo: np.ndarray) -> None:
    held = images.Photo(photo)
    assert held.replaced(photo // 2).pixels.mean() < photo.mean()
    for wrong in (photo[:-1], photo.astype(np.uint16), photo[..., 0]):
        with pytest.raises(BadImage, match="cannot replace"):
            held.replaced(wrong)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_write_refuses_what_is_no_picture(wrong: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="is not a picture"):
        images.write(tmp_path / "a.png", wrong)
    assert list(tmp_path.iterdir()) == []
