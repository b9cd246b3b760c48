from __future__ import annotations

import numpy as np
import pytest

from fairweather.data.datasets import check_index, epoch_order, item_rng, torch_generator


def test_a_stream_is_its_key() -> None:
    assert item_rng(1, 2, 3).random(4).tolist() == item_rng(1, 2, 3).random(4).tolist()


def test_neighbouring_keys_give_unrelated_streams() -> None:
    keys = [(s, e, i) for s in range(4) for e in range(4) for i in range(40)]
    draws = np.array([item_rng(*key).random(3) for key in keys])
    assert len(np.unique(draws[:, 0])) == len(keys)
    # (1, 0, 0), (0, 1, 0) and (0, 0, 1) would be one stream if the key were summed up
    assert len({tuple(item_rng(*key).random(2)) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 3
    for lag in (1, 40, 160):
        assert abs(np.corrcoef(draws[:-lag, 0], draws[lag:, 0])[0, 1]) < 0.15
    assert abs(draws.mean() - 0.5) < 0.03


def test_negative_and_huge_seeds_are_seeds() -> None:
    assert item_rng(-1, 0, 0).random() != item_rng(1, 0, 0).random()
    assert item_rng(2**63, 0, 0).random() != item_rng(0, 0, 0).random()


def test_torch_generators_follow_the_stream() -> None:
    first, again, other = (torch_generator(item_rng(key)) for key in (5, 5, 6))
    assert first.initial_seed() == again.initial_seed() != other.initial_seed()


def test_an_epoch_visits_everything_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(0, epoch, 0, 50) for epoch in range(3)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert not (orders[0] == orders[1]).all()
    assert not (orders[0] == np.arange(50)).all()
    assert not (epoch_order(0, 0, 1, 50) == epoch_order(0, 0, 2, 50)).all()


def test_an_index_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(IndexError, match="sample 8 of an epoch of 8"):
        check_index(8, 8)
