"""The network that sees weather: its size, its shapes, and that every window has a say."""

from __future__ import annotations

import re

import pytest
import torch

from fairweather.weather_classifier import WeatherClassifier


@pytest.fixture(scope="module")
def network() -> WeatherClassifier:
    torch.manual_seed(0)
    return WeatherClassifier(side=64).eval()


def test_the_docstring_counts_the_parameters(network: WeatherClassifier) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    said = re.search(r"([\d,]+) parameters", WeatherClassifier.__doc__ or "")
    assert said is not None
    assert int(said[1].replace(",", "")) == count < 200_000


@pytest.mark.parametrize(("views", "side"), [(3, 64), (8, 64), (14, 96)])
def test_two_logits_of_any_number_of_views(network: WeatherClassifier, views: int, side: int) -> None:
    with torch.inference_mode():
        assert network(torch.rand(views, 3, side, side)).shape == (1, 2)


def test_haze_is_of_the_first_views_and_rain_of_the_others_in_any_order(network: WeatherClassifier) -> None:
    views = torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        before = network(views)
        other_first = network(torch.cat([1 - views[:1], views[1:]]))
        other_least = network(torch.cat([views[:1], views[1:2] / 2, views[2:]]))
        turned = network(torch.cat([views[:2], views[2:].flip(0)]))
    assert other_first[0, 0] != before[0, 0]
    assert other_least[0, 0] != before[0, 0]
    assert other_first[0, 1] == other_least[0, 1] == before[0, 1]
    assert torch.allclose(turned, before, atol=1e-5)


def test_every_weight_and_every_window_learns() -> None:
    network = WeatherClassifier(side=64)
    windows = torch.rand(2, 3, 3, 64, 64, requires_grad=True)
    (network.haze_logit(*torch.rand(2, 2, 3, 64, 64)).sum() + network.rain_logit(windows).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert windows.grad is not None
    assert (windows.grad.abs().amax((2, 3, 4)) > 0).all()
