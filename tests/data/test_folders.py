from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fairweather.data import Augment, paired_dataset, unpaired_dataset
from fairweather.data.datasets import split_holdout
from fairweather.errors import BadFolder, BadImage, BadSettings
from tests.data.conftest import scene, write_photo

QUIET = Augment(crop=32, tone=0, noise_share=0, jpeg_share=0)


def number_of(side: torch.Tensor) -> int:
    """Which scene a crop comes from: red is the same all over."""
    assert side[0].std() < 0.01
    return round(side[0].mean().item() * 255)


def test_samples_are_pictures_as_promised(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=Augment(crop=32))
    assert len(data) == 16
    for index in range(16):
        sample = data.sample(0, 0, index)
        assert sorted(sample) == ["clear", "degraded"]
        for side in sample.values():
            assert side.shape == (3, 32, 32)
            assert side.dtype == torch.float32
            assert side.is_contiguous()
            assert side.min() >= 0
            assert side.max() <= 1


def test_both_sides_are_cut_mirrored_and_toned_alike(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=QUIET)
    for index in range(16):
        sample = data.sample(3, 1, index)
        assert (sample["clear"] / 2 - sample["degraded"]).abs().max() < 2 / 255
    toned = paired_dataset(pairs_folder, augment=Augment(crop=32, tone=1, gamma=(1, 1), noise_share=0, jpeg_share=0))
    for index in range(16):
        sample = toned.sample(3, 1, index)
        unclipped = sample["clear"] < 0.99
        assert (sample["clear"] / 2 - sample["degraded"])[unclipped].abs().max() < 3 / 255


def test_a_sample_is_its_seed_epoch_and_index_in_any_thread_and_order(pairs_folder: Path) -> None:
    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in range(16)]
    data = paired_dataset(pairs_folder, augment=Augment(crop=32, noise_share=1, jpeg_share=1))
    once = [data.sample(*key) for key in keys]
    other = paired_dataset(pairs_folder, augment=Augment(crop=32, noise_share=1, jpeg_share=1), memory=0)
    shuffled = np.random.default_rng(1).permutation(len(keys))
    with ThreadPoolExecutor(4) as pool:
        again = dict(zip(shuffled, pool.map(lambda k: other.sample(*keys[k]), shuffled), strict=True))
    for number, sample in enumerate(once):
        for side in ("degraded", "clear"):
            assert torch.equal(sample[side], again[number][side])
    assert len({sample["clear"].numpy().tobytes() for sample in once}) == len(once)


def test_the_global_random_state_has_no_say(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=Augment(crop=32, noise_share=1))
    torch.manual_seed(0)
    first = data.sample(0, 0, 5)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(first["degraded"], data.sample(0, 0, 5)["degraded"])


def test_an_epoch_visits_every_pair_once(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=QUIET)
    epochs = [[number_of(data.sample(0, epoch, index)["clear"]) for index in range(16)] for epoch in (0, 1)]
    assert [Counter(epoch) for epoch in epochs] == [Counter({20 * n: 2 for n in range(8)})] * 2
    assert epochs[0] != epochs[1]


def test_whole_scenes_are_held_back_always_the_same(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=QUIET, hold_back=0.25)
    held = data.holdout()["pairs"]
    scenes = {pair.clear.stem for pair in held}
    assert len(scenes) == 2
    assert len(held) == 4  # both hazes of both scenes
    assert {number_of(data.sample(0, e, i)["clear"]) for e in range(3) for i in range(len(data))} == {
        20 * n for n in range(8) if str(1400 + n) not in scenes
    }
    assert paired_dataset(pairs_folder, augment=QUIET, hold_back=0.25).holdout() == data.holdout()
    assert paired_dataset(pairs_folder, augment=QUIET).holdout() == {}


def test_holding_back_is_nested_and_bounded() -> None:
    items = [f"{number:04d}" for number in range(100)]
    few, more = (set(split_holdout(items, str, share)[1]) for share in (0.05, 0.2))
    assert len(few) == 5
    assert len(more) == 20
    assert few < more
    assert more != set(items[:20])
    assert len(split_holdout(items, str, 0.001)[1]) == 1
    for share in (-0.1, 1.0):
        with pytest.raises(BadSettings, match="hold_back"):
            split_holdout(items, str, share)
    with pytest.raises(BadSettings, match="none of 1 scenes"):
        split_holdout(["a"], str, 0.5)


def test_an_unmatched_photo_is_named(pairs_folder: Path) -> None:
    write_photo(pairs_folder / "hazy" / "9999_1.png", scene(1))
    with pytest.raises(BadFolder, match="9999_1"):
        paired_dataset(pairs_folder)


def test_a_broken_photo_is_named(pairs_folder: Path) -> None:
    (pairs_folder / "hazy" / "1402_2.png").write_text("no photo")
    with pytest.raises(BadImage, match="1402_2"):
        paired_dataset(pairs_folder)


@pytest.fixture
def two_sides(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(12):
        write_photo(tmp_path / "foggy" / f"{number:03d}.png", scene(10 * number))
        write_photo(tmp_path / "sunny" / f"{number:03d}.png", scene(10 * number))
    return tmp_path / "foggy", tmp_path / "sunny"


def test_unpaired_sides_are_drawn_independently(two_sides: tuple[Path, Path]) -> None:
    data = unpaired_dataset(*two_sides, augment=QUIET)
    drawn = [
        tuple(number_of(data.sample(0, epoch, index)[side]) for side in ("degraded", "clear"))
        for epoch in range(10)
        for index in range(12)
    ]
    degraded, clear = np.array(drawn).T
    # by sorted position all 120 would be equal; by chance one in twelve is
    assert 2 <= (degraded == clear).sum() <= 22
    assert len(set(drawn)) > 70  # of 144 that are possible
    assert abs(np.corrcoef(degraded, clear)[0, 1]) < 0.2
    assert Counter(degraded) == Counter(clear) == Counter({10 * n: 10 for n in range(12)})


def test_unpaired_sides_have_crops_of_their_own(two_sides: tuple[Path, Path]) -> None:
    data = unpaired_dataset(*two_sides, augment=QUIET)
    samples = [data.sample(0, 0, index) for index in range(12)]
    same = [torch.equal(sample["degraded"][1:], sample["clear"][1:]) for sample in samples]
    assert sum(same) < 4


def test_one_side_does_not_know_of_the_other(two_sides: tuple[Path, Path]) -> None:
    degraded, clear = two_sides
    before = [unpaired_dataset(degraded, clear, augment=QUIET).sample(0, 0, i)["degraded"] for i in range(12)]
    for path in sorted(clear.iterdir())[5:]:
        path.unlink()
    fewer = unpaired_dataset(degraded, clear, augment=QUIET)
    assert len(fewer) == 12
    assert all(torch.equal(one, fewer.sample(0, 0, i)["degraded"]) for i, one in enumerate(before))
    counts = Counter(number_of(fewer.sample(0, 0, i)["clear"]) for i in range(12))
    assert sorted(counts.values()) == [2, 2, 2, 3, 3]


def test_the_shorter_side_is_not_forced_into_step(two_sides: tuple[Path, Path]) -> None:
    """12 degraded and 5 clear photos: which meet differs from epoch to epoch, and any may meet any."""
    degraded, clear = two_sides
    for path in sorted(clear.iterdir())[5:]:
        path.unlink()
    data = unpaired_dataset(degraded, clear, augment=QUIET)
    epochs = [
        {
            (number_of(sample["degraded"]), number_of(sample["clear"]))
            for sample in map(partial(data.sample, 0, e), range(12))
        }
        for e in range(12)
    ]
    for one, next_one in pairwise(epochs):
        assert len(one & next_one) < 9  # by sorted position: all 12, always; by chance 12 / 5
    # by sorted position 12 combinations ever, of 60 that are possible
    assert len(set.union(*epochs)) > 45
    partners = {number: {d for epoch in epochs for d, c in epoch if c == number} for number in range(0, 50, 10)}
    assert all(len(met) > 6 for met in partners.values())


def test_an_empty_side_is_named(two_sides: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadFolder, match="nothing has no photos"):
        unpaired_dataset(two_sides[0], tmp_path / "nothing")
