from __future__ import annotations

import re

import pytest
import torch

from fairweather.weather_classifier import WeatherClassifier


@pytest.fixture(scope="module")
def network() -> WeatherClassifier:
    torch.manual_seed(0)
    return WeatherClassifier(side=64).eval()


def test_parameter_count_of_the_docstring(network: WeatherClassifier) -> None:
    stated = re.search(r"([\d,]+) parameters", WeatherClassifier.__doc__ or "")
    assert stated is not None
    assert int(stated[1].replace(",", "")) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("views", "side"), [(3, 64), (14, 96)])
def test_two_logits_for_any_number_of_views(network: WeatherClassifier, views: int, side: int) -> None:
    with torch.inference_mode():
        assert network(torch.rand(views, 3, side, side)).shape == (1, 2)


def test_haze_depends_on_the_first_two_views_and_rain_on_the_others_in_any_order(network: WeatherClassifier) -> None:
    views = torch.rand(6, 3, 64, 64)
    with torch.inference_mode():
        before = network(views)
        other_mean = network(torch.cat([1 - views[:1], views[1:]]))
        other_minimum = network(torch.cat([views[:1], views[1:2] / 2, views[2:]]))
        reordered = network(torch.cat([views[:2], views[2:].flip(0)]))
    assert other_mean[0, 0] != before[0, 0]
    assert other_minimum[0, 0] != before[0, 0]
    assert other_mean[0, 1] == other_minimum[0, 1] == before[0, 1]
    assert torch.allclose(reordered, before, atol=1e-5)


def test_every_weight_and_every_window_has_a_gradient() -> None:
    network = WeatherClassifier(side=64)
    windows = torch.rand(2, 3, 3, 64, 64, requires_grad=True)
    (network.haze_logit(*torch.rand(2, 2, 3, 64, 64)).sum() + network.rain_logit(windows).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert windows.grad is not None
    assert (windows.grad.abs().amax((2, 3, 4)) > 0).all()
