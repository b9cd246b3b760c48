"""A camera over a picture: it stays inside, moves smoothly and no faster than asked, and repeats itself by its seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairweather.data.video_clips import draw_camera, draw_drift
from fairweather.errors import BadSettings


def corners(camera, frame: int) -> np.ndarray:
    rows, columns = camera.frame
    points = np.array([[0, 0, 1], [columns - 1, 0, 1], [0, rows - 1, 1], [columns - 1, rows - 1, 1]])
    return points @ camera.matrix(frame).T


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", [((400, 600), (192, 192)), ((200, 210), (192, 192)), ((90, 300), (128, 128))])
def test_it_never_looks_beyond_the_border(seed: int, sizes: tuple) -> None:
    camera = draw_camera(*sizes, np.random.default_rng(seed), speed=4, mirrored=bool(seed % 2))
    for frame in range(0, 3000, 37):
        places = corners(camera, frame)
        assert places.min() > -0.51
        assert (places.max(0) < np.array(sizes[0][::-1]) - 0.49).all()


def test_it_moves_and_no_faster_than_asked() -> None:
    fastest = []
    for seed in range(30):
        camera = draw_camera((600, 900), (200, 200), np.random.default_rng(seed), speed=3)
        middles = np.array([corners(camera, frame).mean(0) for frame in range(400)])
        fastest.append(np.linalg.norm(np.diff(middles, axis=0), axis=1).max())
        assert np.linalg.norm(middles[0] - middles, axis=1).max() > 20, "it goes somewhere"
    assert max(fastest) < 3 * 1.8 * 2**0.5  # both axes, both waves of each at once
    assert np.median(fastest) > 1
    still = draw_camera((600, 900), (200, 200), np.random.default_rng(0), speed=0)
    assert np.abs(corners(still, 0).mean(0) - corners(still, 8).mean(0)).max() < 0.1


def test_a_mirrored_one_shows_the_mirror_image() -> None:
    picture = np.random.default_rng(0).random((100, 120, 3)).astype(np.float32)
    one, other = (
        draw_camera((100, 120), (50, 60), np.random.default_rng(5), mirrored=mirrored) for mirrored in (False, True)
    )
    assert np.abs(one.render(picture, 7)[:, ::-1] - other.render(picture, 7)).max() < 1e-3
    assert np.abs(one.render(picture, 7) - other.render(picture, 7)).mean() > 0.05


@pytest.mark.parametrize("mirrored", [False, True])
def test_its_moves_lead_from_each_frame_to_the_one_before(mirrored: bool) -> None:
    """Taken along these moves, the frame before is this frame, where it was in sight; sides differ on purpose."""
    rng = np.random.default_rng(2)
    picture = cv2.GaussianBlur(rng.random((200, 300, 3)).astype(np.float32), (0, 0), 4)
    camera = draw_camera((200, 300), (60, 90), rng, speed=6, mirrored=mirrored)
    moves = camera.moves(12)
    assert moves.shape == (12, 2, 3)
    assert np.abs(moves[0] - np.eye(3)[:2]).max() < 1e-6, "nothing was before the first frame"
    frames = [torch.from_numpy(camera.render(picture, t).transpose(2, 0, 1))[None] for t in range(12)]
    for t in range(1, 12):
        grid = F.affine_grid(torch.from_numpy(moves[t])[None], [1, 3, 60, 90], align_corners=False)
        moved = F.grid_sample(frames[t - 1], grid, align_corners=False)
        inner = (..., slice(12, -12), slice(12, -12))
        assert (moved - frames[t])[inner].abs().mean() < 0.1 * (frames[t - 1] - frames[t])[inner].abs().mean()


def test_the_same_seed_is_the_same_path() -> None:
    one, again, other = (draw_camera((90, 90), (40, 40), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.matrix(33), again.matrix(33))
    assert not np.array_equal(one.matrix(33), other.matrix(33))


def test_a_drift_keeps_within_its_reach() -> None:
    drift = draw_drift(0.2, 50, np.random.default_rng(4))
    values = np.array([drift.at(frame) for frame in range(2000)])
    assert 0.1 < np.abs(values).max() <= 0.2
    assert np.abs(np.diff(values)).max() < 0.2 * 2 * np.pi / 50 * 2.5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadSettings, match="speed"):
        draw_camera((9, 9), (3, 3), np.random.default_rng(0), speed=-1)
    with pytest.raises(BadSettings, match="the camera is made for"):
        draw_camera((9, 9), (3, 3), np.random.default_rng(0)).render(np.zeros((8, 9, 3), np.float32), 0)
