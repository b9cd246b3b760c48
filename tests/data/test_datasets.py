"""Datasets of pairs and of unpaired folders, their seeding, holdout and photo cache."""

from __future__ import annotations

import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fairweather.data import Augment, paired_dataset, unpaired_dataset
from fairweather.data.datasets import PhotoCache, epoch_order, item_rng, split_holdout, to_eight_bits, torch_generator
from fairweather.errors import BadFolder, BadImage, BadSettings
from tests.data.conftest import QUIET, scene, write_photo


def number_of(side: torch.Tensor) -> int:
    """The scene of a crop: its red is constant."""
    assert side[0].std() < 0.01
    return round(side[0].mean().item() * 255)


def test_neighbouring_keys_give_unrelated_streams() -> None:
    assert item_rng(1, 2, 3).random(4).tolist() == item_rng(1, 2, 3).random(4).tolist()
    keys = [(s, e, i) for s in range(4) for e in range(4) for i in range(40)]
    draws = np.array([item_rng(*key).random(3) for key in keys])
    assert len(np.unique(draws[:, 0])) == len(keys)
    for lag in (1, 40, 160):
        assert abs(np.corrcoef(draws[:-lag, 0], draws[lag:, 0])[0, 1]) < 0.15
    assert len({item_rng(seed, 0, 0).random() for seed in (-1, 0, 1, 2**63)}) == 4
    first, again, other = (torch_generator(item_rng(key)).initial_seed() for key in (5, 5, 6))
    assert first == again != other


def test_epochs_have_different_orders() -> None:
    orders = [epoch_order(0, epoch, side, 50).tolist() for epoch, side in ((0, 0), (1, 0), (0, 1), (0, 2))]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({*map(tuple, orders), tuple(range(50))}) == 5


def test_samples_have_the_documented_format(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=Augment(crop=32))
    assert len(data) == 16
    for index in range(16):
        sample = data.sample(0, 0, index)
        assert sorted(sample) == ["clear", "degraded"]
        for side in sample.values():
            assert (side.shape, side.dtype, side.is_contiguous()) == ((3, 32, 32), torch.float32, True)
            assert 0 <= side.min() <= side.max() <= 1
    with pytest.raises(IndexError, match="sample 16 of an epoch of 16"):
        data.sample(0, 0, 16)


@pytest.mark.parametrize("tone", [0, 1])
def test_both_sides_share_crop_flip_and_tone(tone: int, pairs_folder: Path) -> None:
    augment = Augment(crop=32, tone=tone, gamma=(1, 1), noise_share=0, jpeg_share=0)
    data = paired_dataset(pairs_folder, augment=augment)
    for index in range(16):
        sample = data.sample(3, 1, index)
        unclipped = sample["clear"] < 0.99
        assert (sample["clear"] / 2 - sample["degraded"])[unclipped].abs().max() < 3 / 255


def test_a_sample_depends_on_seed_epoch_and_index_only(pairs_folder: Path) -> None:
    augment = Augment(crop=32, noise_share=1, jpeg_share=1)
    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in range(8)]
    torch.manual_seed(0)
    data = paired_dataset(pairs_folder, augment=augment)
    once = [data.sample(*key) for key in keys]
    torch.manual_seed(1)
    np.random.seed(1)
    other = paired_dataset(pairs_folder, augment=augment, memory=0)
    shuffled = np.random.default_rng(1).permutation(len(keys))
    with ThreadPoolExecutor(4) as pool:
        again = dict(zip(shuffled, pool.map(lambda k: other.sample(*keys[k]), shuffled), strict=True))
    for number, sample in enumerate(once):
        assert all(torch.equal(sample[side], again[number][side]) for side in sample)
    assert len({sample["clear"].numpy().tobytes() for sample in once}) == len(once)


def test_an_epoch_visits_every_pair_once(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=QUIET)
    epochs = [[number_of(data.sample(0, epoch, index)["clear"]) for index in range(16)] for epoch in (0, 1)]
    assert [Counter(epoch) for epoch in epochs] == [Counter({20 * n: 2 for n in range(8)})] * 2
    assert epochs[0] != epochs[1]


def test_whole_scenes_are_held_out(pairs_folder: Path) -> None:
    data = paired_dataset(pairs_folder, augment=QUIET, hold_back=0.25)
    holdout = data.holdout()["pairs"]
    scenes = {pair.clear.stem for pair in holdout}
    assert (len(scenes), len(holdout)) == (2, 4)  # both hazes of both scenes
    assert {number_of(data.sample(0, e, i)["clear"]) for e in range(3) for i in range(len(data))} == {
        20 * n for n in range(8) if str(1400 + n) not in scenes
    }
    assert paired_dataset(pairs_folder, augment=QUIET, hold_back=0.25).holdout() == data.holdout()
    assert paired_dataset(pairs_folder, augment=QUIET).holdout() == {}


def test_holdouts_are_nested_and_bounded() -> None:
    items = [f"{number:04d}" for number in range(100)]
    few, more = (set(split_holdout(items, str, share)[1]) for share in (0.05, 0.2))
    assert (len(few), len(more)) == (5, 20)
    assert few < more != set(items[:20])
    assert len(split_holdout(items, str, 0.001)[1]) == 1
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(BadSettings, match="hold_back"):
            split_holdout(items, str, share)
    with pytest.raises(BadSettings, match="none of 1 scenes"):
        split_holdout(["a"], str, 0.5)


def test_unmatched_broken_and_missing_photos_are_named(pairs_folder: Path, tmp_path: Path) -> None:
    extra = write_photo(pairs_folder / "hazy" / "9999_1.png", scene(1))
    with pytest.raises(BadFolder, match="9999_1"):
        paired_dataset(pairs_folder)
    extra.unlink()
    (pairs_folder / "hazy" / "1402_2.png").write_text("no photo")
    with pytest.raises(BadImage, match="1402_2"):
        paired_dataset(pairs_folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadFolder, match="nothing has no photos"):
        unpaired_dataset(pairs_folder, tmp_path / "nothing")


@pytest.fixture
def two_sides(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(12):
        write_photo(tmp_path / "foggy" / f"{number:03d}.png", scene(10 * number))
        write_photo(tmp_path / "sunny" / f"{number:03d}.png", scene(10 * number))
    return tmp_path / "foggy", tmp_path / "sunny"


def test_unpaired_sides_are_drawn_independently(two_sides: tuple[Path, Path]) -> None:
    data = unpaired_dataset(*two_sides, augment=QUIET)
    samples = [data.sample(0, epoch, index) for epoch in range(10) for index in range(12)]
    drawn = [(number_of(sample["degraded"]), number_of(sample["clear"])) for sample in samples]
    degraded, clear = np.array(drawn).T
    # by sorted position all 120 would be equal; by chance one in twelve is
    assert 2 <= (degraded == clear).sum() <= 22
    assert len(set(drawn)) > 70  # of 144 that are possible
    assert abs(np.corrcoef(degraded, clear)[0, 1]) < 0.2
    assert Counter(degraded) == Counter(clear) == Counter({10 * n: 10 for n in range(12)})
    assert sum(torch.equal(one["degraded"][1:], one["clear"][1:]) for one in samples[:12]) < 4  # crops differ


def test_a_shorter_side_is_visited_evenly_and_out_of_step(two_sides: tuple[Path, Path]) -> None:
    degraded, clear = two_sides
    full = unpaired_dataset(degraded, clear, augment=QUIET)
    before = [full.sample(0, 0, i)["degraded"] for i in range(12)]
    for path in sorted(clear.iterdir())[5:]:
        path.unlink()
    data = unpaired_dataset(degraded, clear, augment=QUIET)
    assert len(data) == 12
    epochs = []
    for epoch in range(12):
        samples = [data.sample(0, epoch, index) for index in range(12)]
        if epoch == 0:  # the other side does not matter
            assert all(torch.equal(one, sample["degraded"]) for one, sample in zip(before, samples, strict=True))
        epochs.append([(number_of(sample["degraded"]), number_of(sample["clear"])) for sample in samples])
    assert sorted(Counter(clear for _, clear in epochs[0]).values()) == [2, 2, 2, 3, 3]
    for one, following in pairwise(epochs):
        assert len({*one} & {*following}) < 9  # by sorted position: all 12, always; by chance 12 / 5
    assert len(set().union(*epochs)) > 45  # by sorted position 12 combinations ever, of 60 that are possible


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.array([0, 128, 129, 257, 32896, 65535], np.uint16)
    assert to_eight_bits(values).tolist() == [0, 0, 1, 1, 128, 255]


def test_photos_are_decoded_once_read_only_and_within_memory(tmp_path: Path) -> None:
    paths = [write_photo(tmp_path / f"{n}.png", scene(n)) for n in range(6)]
    photos = PhotoCache(memory=2 * scene(0).nbytes)
    photos.check(paths)
    for number, path in enumerate(paths):
        assert (photos.get(path) == scene(number)).all()
    assert photos.used == photos.memory
    roomy = PhotoCache()
    first = roomy.get(paths[0])
    paths[0].unlink()
    assert roomy.get(paths[0]) is first
    assert (pickle.loads(pickle.dumps(roomy)).get(paths[0]) == first).all()  # as for a worker process
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1


def test_large_photos_are_reduced_by_area_and_small_ones_are_not(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", scene(7, 100, 160))
    reduced = PhotoCache(50).get(path)
    assert reduced.shape == (50, 80, 3)
    assert np.abs(reduced.astype(int) - scene(7, 50, 80)).max() <= 2
    assert (PhotoCache(200).get(path) == scene(7, 100, 160)).all()


def test_all_broken_files_are_named(tmp_path: Path) -> None:
    good = write_photo(tmp_path / "good.jpg", scene(1))
    text, short, empty = (tmp_path / name for name in ("text.jpg", "short.jpg", "empty.png"))
    text.write_text("no photo at all")
    short.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty.write_bytes(b"")
    with pytest.raises(BadImage) as caught:
        PhotoCache().check([good, text, short, empty])
    assert all(name in str(caught.value) for name in ("text.jpg", "short.jpg", "empty.png"))
    assert "good.jpg" not in str(caught.value)


@pytest.mark.parametrize("short_side", [None, 36])
def test_resides_border_is_cropped_and_other_sizes_are_errors(short_side: int | None, tmp_path: Path) -> None:
    whole = scene(30, 92, 116)
    clear = write_photo(tmp_path / "clear.png", whole)
    hazy = write_photo(tmp_path / "hazy.png", whole[10:-10, 10:-10])
    photos = PhotoCache(short_side)
    first, second = photos.pair(hazy, clear)
    assert first.shape == second.shape == ((36, 48, 3) if short_side else (72, 96, 3))
    assert (first == second).all()
    assert short_side or (photos.get(clear) == whole).all()
    wrong = write_photo(tmp_path / "wrong.png", whole[5:, 5:])
    with pytest.raises(BadFolder, match=r"clear\.png is 116 x 92, .* 111 x 87"):
        photos.check(pairs=[(wrong, clear)])
