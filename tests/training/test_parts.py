"""Pool, EMA, schedules and feed, each on its own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from fairweather.recipes import OptimizerGroup
from fairweather.training.dataloader import BatchLoader
from fairweather.training.optimization import EMA, SampleHistory, learning_rate, recalibrate_batchnorm
from tests.training.toy import Toy


def fakes(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)


def test_pool_fills_then_swaps_half() -> None:
    pool = SampleHistory(4, torch.Generator().manual_seed(0))
    assert torch.equal(pool.sample(fakes(0, 1, 2, 3)), fakes(0, 1, 2, 3))
    fresh = 0
    kept = {0.0, 1.0, 2.0, 3.0}
    for value in range(4, 404):
        shown = float(pool.sample(fakes(value))[0, 0, 0, 0])
        fresh += shown == value
        if shown != value:
            assert shown in kept
            kept = kept - {shown} | {float(value)}
        assert {float(photo[0, 0, 0]) for photo in pool.photos} == kept
    assert 160 <= fresh <= 240  # even chance, four standard deviations


def test_pool_keeps_no_graph_and_no_alias() -> None:
    pool = SampleHistory(1, torch.Generator())
    fake = torch.ones(1, 3, 2, 2, requires_grad=True)
    photo = fake * 1
    assert not pool.sample(photo).requires_grad
    with torch.no_grad():
        photo.zero_()
    assert float(pool.photos[0].sum()) == 12


def test_pool_of_zero_shows_what_it_is_given() -> None:
    assert torch.equal(SampleHistory(0, torch.Generator()).sample(fakes(1, 2)), fakes(1, 2))


def test_ema_is_the_recursion_for_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = EMA(network, 0.9)
    expected, mean = network[0].weight.detach().clone(), 0.0
    for step in range(1, 200):
        with torch.no_grad():
            network[0].weight.add_(1.0)
            network[1].running_mean.fill_(float(step))
        decay = min(0.9, step / (9 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
        mean = decay * mean + (1 - decay) * step
        average.update(network)
    assert torch.allclose(average.module[0].weight, expected)
    assert float(average.module[1].running_mean) == pytest.approx(mean, rel=1e-4)
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
    assert network.training


def test_a_short_run_ends_without_a_share_of_what_it_began_with() -> None:
    """After 300 updates of decay 0.999 three quarters would be left; that matters where it began with a first phase."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    average = EMA(network, 0.999)
    nn.init.ones_(network.weight)
    for _ in range(300):
        average.update(network)
    assert float(average.module.weight.detach()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 1, 0.5: 1, 1: 1}),
        ({"schedule": "linear", "hold": 0.5}, {0: 1, 0.5: 1, 0.75: 0.5, 1: 0}),
        ({"schedule": "cosine"}, {0: 1, 0.5: 0.5, 1: 0, 1.2: 0}),
        ({"schedule": "cosine", "warmup": 0.2}, {0.1: 0.5, 0.2: 1, 0.6: 0.5, 1: 0}),
    ],
)
def test_schedules(options: dict[str, Any], expected: dict[float, float]) -> None:
    group = OptimizerGroup((), lr=2.0, **options)
    for progress, share in expected.items():
        assert learning_rate(group, progress) == pytest.approx(2 * share, abs=1e-12)


def test_the_first_step_of_a_warmup_moves() -> None:
    assert learning_rate(OptimizerGroup((), lr=1.0, warmup=0.1), 0.0) > 0


def drawn(feed: BatchLoader, count: int) -> list[torch.Tensor]:
    return [batch.degraded for batch in islice(iter(feed), count)]


def test_feed_goes_on_where_it_is_told_and_crosses_epochs() -> None:
    keys: list[tuple[int, int]] = []
    toy = Toy(crop=4, length=5, on_sample=lambda epoch, index: keys.append((epoch, index)))
    whole = drawn(BatchLoader(toy, seed=3, batch=3), 5)
    assert keys[:7] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]
    part = drawn(BatchLoader(toy, seed=3, batch=3, position=9), 2)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], part, strict=True))
    assert not torch.equal(whole[0], drawn(BatchLoader(toy, seed=4, batch=3), 1)[0])


def test_feed_from_another_process_is_the_same_and_leaves_the_random_state() -> None:
    here = drawn(BatchLoader(Toy(crop=4), seed=0, batch=3), 4)
    before = torch.get_rng_state()
    there = drawn(BatchLoader(Toy(crop=4), seed=0, batch=3, workers=2), 4)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert torch.equal(before, torch.get_rng_state())


class Ramp:
    """Samples whose brightness is their index: their statistics are known."""

    def __len__(self) -> int:
        return 32

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, torch.Tensor]:
        picture = torch.full((3, 4, 4), index / 31)
        return {"degraded": picture, "clear": picture}


def test_precise_statistics_are_those_of_the_data() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    network[0].running_mean.fill_(9.0)
    precise = recalibrate_batchnorm(network, Ramp(), seed=0, most=32)
    values = torch.arange(32).repeat_interleave(16).view(2, -1) / 31  # two batches of 16 pictures of 16 pixels
    assert torch.allclose(precise[0].running_mean, values.mean().expand(3), atol=1e-6)
    assert torch.allclose(precise[0].running_var, values.var(dim=1).mean().expand(3), atol=1e-6)
    assert not any(module.training for module in precise.modules())
    assert (network[0].running_mean == 9).all()  # the network that goes on training is left alone
    plain = nn.Conv2d(3, 3, 1)
    assert recalibrate_batchnorm(plain, Ramp(), seed=0) is plain
