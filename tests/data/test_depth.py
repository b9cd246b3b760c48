"""The depth network and its maps: any size in, the same size out, in range, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fairweather.data.depth import FAR_OBJECTS, DepthNet, load_network, normalised, predict, to_map


@pytest.fixture(scope="module")
def network() -> DepthNet:
    torch.manual_seed(0)
    return DepthNet().eval()


class Known(nn.Module):
    """Gives the photo's red as log depth and its blue as the logit of sky."""

    def forward(self, photo: Tensor) -> Tensor:
        half = nn.functional.avg_pool2d(photo, 2)
        return torch.cat([half[:, :1] * 3, half[:, 2:] * 40 - 20], 1)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_its_parameters_are_those_of_its_description(network: DepthNet) -> None:
    count = sum(value.numel() for value in network.parameters())
    assert count == 1_777_026
    assert f"{count:,} parameters" in " ".join(str(DepthNet.__doc__).split())


@pytest.mark.parametrize("size", [(64, 96), (1, 1), (37, 411), (500, 333)])
def test_depth_has_the_photos_size_and_lies_in_range(network: DepthNet, size: tuple[int, int]) -> None:
    depth = predict(network, photo(*size))
    assert depth.shape == size
    assert depth.dtype == np.float32
    assert depth.min() >= 0
    assert depth.max() <= 1


def test_the_network_answers_at_half_size(network: DepthNet) -> None:
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 64, 96)).shape == (2, 2, 32, 48)


def test_the_same_photo_gives_the_same_depth_whatever_its_type(network: DepthNet) -> None:
    eight = photo(80, 120)
    depth = predict(network, eight)
    np.testing.assert_array_equal(depth, predict(network, eight.copy()))
    np.testing.assert_allclose(depth, predict(network, eight.astype(np.uint16) * 257), atol=1e-4)
    np.testing.assert_allclose(depth, predict(network, eight.astype(np.float32) / 255), atol=1e-4)


def test_a_mirrored_photo_gives_mirrored_depth(network: DepthNet) -> None:
    one = photo(96, 128)
    np.testing.assert_allclose(predict(network, one[:, ::-1])[:, ::-1], predict(network, one), atol=2e-3)


def test_sky_is_far_and_objects_follow_their_log_depth() -> None:
    shown = np.zeros((256, 320, 3), np.float32)
    shown[:100, :, 2] = 1  # sky, whatever its log depth
    shown[100:180, :, 0] = 1
    depth = predict(Known(), shown)
    assert depth[:90].min() > 0.99
    np.testing.assert_allclose(depth[115:165], FAR_OBJECTS, atol=0.01)
    np.testing.assert_allclose(depth[200:], FAR_OBJECTS * np.exp(-3), atol=0.01)


def test_without_sky_the_farthest_object_is_far() -> None:
    log_depth = torch.linspace(-2, 4, 400).view(1, 1, 20, 20)
    depth = normalised(log_depth, torch.zeros(1, 1, 20, 20))
    assert depth.max() == 1
    torch.testing.assert_close(depth, normalised(log_depth - 7, torch.zeros(1, 1, 20, 20)))
    assert (depth.flatten().diff() >= 0).all()


def test_with_sky_near_and_far_objects_differ_as_in_the_open_air() -> None:
    log_depth = torch.linspace(0, 2, 400).view(1, 1, 20, 20)
    sky = torch.zeros(1, 1, 20, 20)
    sky[:, :, :4] = 1
    depth = normalised(log_depth, sky)[:, :, 4:].flatten()
    assert depth.max() / depth.min() == pytest.approx(16, rel=0.2)
    assert (depth.diff()[:-10] > 0).all()
    wall = normalised(log_depth * 0.05, sky)[:, :, 4:].flatten()
    assert wall.max() / wall.min() < 1.5


def test_nothing_but_sky_is_far_everywhere() -> None:
    depth = normalised(torch.zeros(1, 1, 20, 20), torch.ones(1, 1, 20, 20))
    assert depth.min() == 1


def test_depth_follows_the_edges_of_the_photo() -> None:
    shown = np.zeros((600, 800, 3), np.float32)
    shown[:, 401:, 0] = 0.9
    depth = predict(Known(), shown)
    inside, outside = depth[:, 404].mean(), depth[:, 397].mean()
    assert inside - outside > 0.8 * (depth[:, 700].mean() - depth[:, 100].mean())


def test_a_map_has_16_bits_and_a_reduced_size() -> None:
    depth = np.linspace(0, 1, 640 * 960, dtype=np.float32).reshape(640, 960)
    found = to_map(depth)
    assert found.dtype == np.uint16
    assert found.shape == (320, 480)
    assert found[-1].min() > 65000
    assert to_map(depth[:200, :300]).shape == (200, 300)


def test_weights_are_read_back(network: DepthNet, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "depth.safetensors")
    read = load_network(tmp_path / "depth.safetensors")
    assert not read.training
    np.testing.assert_array_equal(predict(read, photo(64, 64)), predict(network, photo(64, 64)))
