"""Restorers: sizes, types, strength, tiles, memory, errors and the choice of models; engines are lambdas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fairweather
from fairweather import images, model_folder
from fairweather.errors import BadCard, BadImage, BadSettings
from fairweather.inference.restorer import AutoRestorer, Restorer
from fairweather.inference.weather_detection import Decision, Weather
from fairweather.model_folder import Card, MapsSpec

LOCAL = Card(
    name="tiny",
    weather="haze",
    generator="unet",
    arguments={},
    output="image",
    multiple_of=8,
    receptive_field=40,
    maps=None,
    training={},
    scores=[],
    licence="MIT",
    terms="",
    bytes_per_pixel=100.0,
)
GLOBAL = replace(LOCAL, name="global", generator="resnet6", receptive_field=None)
MAPS = replace(
    LOCAL,
    name="maps",
    generator="scattering_maps",
    output="maps",
    receptive_field=None,
    maps=MapsSpec(size=64, radius=2, eps=1e-3),
)
PER_PIXEL = Restorer(LOCAL, lambda picture: picture).bytes_per_pixel
DTYPES = ("uint8", "uint16", "float32")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small are slower on many threads, far slower on cores that are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(picture: np.ndarray) -> np.ndarray:
    return picture.copy()


def photo_of(height: int, width: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    if dtype == "float32":
        return rng.random((height, width, 3), np.float32)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), endpoint=True).astype(dtype)


def test_every_small_size_comes_back_as_it_was(rng: np.random.Generator) -> None:
    seen = set()

    def engine(picture: np.ndarray) -> np.ndarray:
        assert picture.dtype == np.float32
        assert picture.flags.c_contiguous
        assert picture.shape[:2] == (1, 3)
        assert picture.shape[2] % 8 == picture.shape[3] % 8 == 0
        seen.add(picture.shape)
        return picture.copy()

    restorer = Restorer(LOCAL, engine)
    for height in range(1, 41):
        for width in range(1, 41):
            photo = photo_of(height, width, DTYPES[(height + width) % 3], rng)
            result = restorer(photo)
            assert result.dtype == photo.dtype
            assert result.shape == photo.shape
            assert (result == photo).all()
    assert seen == {(1, 3, h, w) for h in (16, 24, 32, 40) for w in (16, 24, 32, 40)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_rows_and_columns_keep_their_places(dtype: str, rng: np.random.Generator) -> None:
    photo = photo_of(20, 30, dtype, rng)
    full = 1 if dtype == "float32" else np.iinfo(dtype).max
    negative = Restorer(LOCAL, lambda picture: 1 - picture)(photo, guard=False)
    assert np.allclose(negative.astype(np.float64), full - photo.astype(np.float64), atol=1e-6)
    swapped = Restorer(LOCAL, lambda picture: picture[:, ::-1])(photo, guard=False)
    assert (swapped == photo[..., ::-1]).all()
    beyond = Restorer(LOCAL, lambda picture: 3 * picture - 1)(photo, guard=False)
    assert (beyond == 0).any()
    assert (beyond == full).any()


def test_input_may_be_read_only_strided_and_stays_as_it_is(rng: np.random.Generator) -> None:
    for card, engine in ((LOCAL, lambda picture: np.clip(picture * 0.5, 0, 1)), (MAPS, steady_maps(t=0.5))):
        base = photo_of(60, 90, "uint8", rng)
        copy = base.copy()
        base.flags.writeable = False
        view = base[5:57:2, ::-3]
        assert not view.flags.c_contiguous
        result = Restorer(card, engine)(view)
        assert (result == Restorer(card, engine)(np.ascontiguousarray(view))).all()
        assert (base == copy).all()
        assert result.flags.writeable
        assert not np.shares_memory(result, base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("card", [LOCAL, GLOBAL, MAPS], ids=lambda card: card.name)
def test_strength_nought_is_the_photo_bit_for_bit(card: Card, dtype: str, rng: np.random.Generator) -> None:
    def never(picture: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is to be computed")

    photo = photo_of(23, 31, dtype, rng)
    result = Restorer(card, never)(photo, strength=0)
    assert result.tobytes() == photo.tobytes()
    assert not np.shares_memory(result, photo)


def test_strength_mixes(rng: np.random.Generator) -> None:
    photo = photo_of(20, 20, "float32", rng)
    restorer = Restorer(LOCAL, lambda picture: 1 - picture)
    for strength in (0.25, 0.5, 1.0):
        assert np.abs(restorer(photo, strength, guard=False) - (photo + strength * (1 - 2 * photo))).max() < 1e-6
    for strength in (-0.1, 1.001, float("nan"), float("inf")):
        with pytest.raises(BadSettings, match="strength"):
            restorer(photo, strength)


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        ([[1, 2, 3]], "NumPy array"),
        (images.Photo(np.zeros((4, 4, 3), np.uint8)), r"pass its \.pixels"),
        (np.zeros((4, 4), np.uint8), "H x W x 3"),
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (np.zeros((3, 4, 4), np.uint8), "H x W x 3"),
        (np.zeros((0, 4, 3), np.uint8), "H x W x 3"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((4, 4, 3), np.int16), "int16"),
        (np.full((4, 4, 3), 255, np.float32), "not 255"),
        (np.full((4, 4, 3), -0.1, np.float32), r"\[0, 1\]"),
        (np.full((4, 4, 3), np.nan, np.float32), r"\[0, 1\]"),
    ],
)
def test_what_is_no_photo_is_refused(photo: Any, words: str) -> None:
    for strength in (0, 1):
        with pytest.raises(BadImage, match=words):
            Restorer(LOCAL, same)(photo, strength)


class Pyramid(nn.Module):
    """Two strided convolutions down, two up, with a skip: local, receptive field counted below, multiple of 4."""

    receptive_field = 4 + 2 * (4 - 1) + 4 * (3 - 1) + 4 * 2 + 2 * 2  # generous by a few pixels

    def __init__(self, padding_mode: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Conv2d(3, 6, 4, 2, 1, padding_mode=padding_mode)
        self.two = nn.Conv2d(6, 8, 4, 2, 1, padding_mode=padding_mode)
        self.middle = nn.Conv2d(8, 8, 3, 1, 1, padding_mode=padding_mode)
        self.three = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.four = nn.ConvTranspose2d(12, 3, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = torch.tanh(self.one(x))
        deep = torch.tanh(self.middle(torch.tanh(self.two(one))))
        return torch.sigmoid(6 * self.four(torch.cat([torch.tanh(self.three(deep)), one], 1)))


def engine_of(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(picture)).numpy()

    return run


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_tiled_is_whole(padding_mode: str, rng: np.random.Generator) -> None:
    engine = engine_of(Pyramid(padding_mode).eval())
    card = replace(LOCAL, multiple_of=4, receptive_field=Pyramid.receptive_field)
    for height, width, sides in [(45, 61, (1, 4, 7, 16, 40)), (131, 97, (32, 50, 64, 129, 1000)), (1, 170, (20, 64))]:
        photo = photo_of(height, width, "float32", rng)
        whole = Restorer(card, engine)(photo)
        for side in sides:
            assert np.abs(Restorer(card, engine, tile=side)(photo) - whole).max() < 1e-5
        for pixels in (2_400, 5_000, 9_000):
            limited = Restorer(card, engine, memory=int(pixels * PER_PIXEL))
            assert np.abs(limited(photo) - whole).max() < 1e-5
        if min(height, width) > 90:  # the check above can fail: with too little halo the seams show
            short = replace(card, receptive_field=6)
            assert np.abs(Restorer(short, engine, tile=32)(photo) - whole).max() > 1 / 255


def test_memory_decides_between_whole_and_tiles(rng: np.random.Generator) -> None:
    shapes: list[tuple[int, ...]] = []

    def engine(picture: np.ndarray) -> np.ndarray:
        shapes.append(picture.shape[2:])
        return picture

    photo = photo_of(400, 300, "uint8", rng)
    assert (Restorer(LOCAL, engine, memory=int(400 * 304 * PER_PIXEL))(photo) == photo).all()
    assert shapes == [(400, 304)]
    shapes.clear()
    assert (Restorer(LOCAL, engine, memory=int(400 * 304 * PER_PIXEL) - 1)(photo) == photo).all()
    assert len(shapes) > 1
    assert all(h * w < 400 * 304 for h, w in shapes)
    shapes.clear()
    with pytest.raises(BadImage, match=r"300 x 400 pixels.*smallest tile.*memory"):
        Restorer(LOCAL, engine, memory=int(50 * 50 * PER_PIXEL))(photo)
    assert not shapes


def test_a_network_that_sees_the_whole_is_never_tiled(rng: np.random.Generator) -> None:
    photo = photo_of(100, 120, "uint8", rng)
    shapes: list[tuple[int, ...]] = []

    def engine(picture: np.ndarray) -> np.ndarray:
        shapes.append(picture.shape[2:])
        return picture

    assert (Restorer(GLOBAL, engine, memory=int(104 * 120 * PER_PIXEL))(photo) == photo).all()
    assert shapes == [(104, 120)]
    with pytest.raises(
        BadImage, match=r"120 x 100 pixels.*statistics of the whole photo.*smaller photo.*another model"
    ):
        Restorer(GLOBAL, engine, memory=int(104 * 120 * PER_PIXEL) - 1)(photo)
    assert len(shapes) == 1
    for card in (GLOBAL, MAPS):
        with pytest.raises(BadSettings, match="tile"):
            Restorer(card, engine, tile=64)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(BadSettings, match="tile"):
        Restorer(LOCAL, same, tile=0)
    with pytest.raises(BadSettings, match="memory"):
        Restorer(LOCAL, same, memory=0)


def test_an_engine_that_breaks_its_promise_is_named(rng: np.random.Generator) -> None:
    photo = photo_of(20, 20, "uint8", rng)

    def fails(picture: np.ndarray) -> np.ndarray:
        raise RuntimeError("first line\ncould not allocate")

    with pytest.raises(BadImage, match=r"tiny failed on 24 x 24 pixels.*could not allocate"):
        Restorer(LOCAL, fails)(photo)

    def breaks(picture: np.ndarray) -> np.ndarray:
        raise RuntimeError("node 7\nshapes do not fit")

    with pytest.raises(BadImage, match=r"tiny failed on 24 x 24 pixels.*shapes do not fit.*engine"):
        Restorer(LOCAL, breaks)(photo)
    for engine in (lambda p: p[:, :2], lambda p: p[:, :, :-1], lambda p: p[0]):
        with pytest.raises(BadCard, match="tiny returned"):
            Restorer(LOCAL, engine)(photo)
    with pytest.raises(BadCard, match="NaN or Inf"):
        Restorer(LOCAL, lambda p: p * np.float32(np.nan))(photo)
    with pytest.raises(BadCard, match="maps returned"):
        Restorer(MAPS, same)(photo)


def steady_maps(t: float, airlight: float = 1.0, offset: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    """A maps engine that says the same everywhere, at half the resolution that it is given."""

    def engine(picture: np.ndarray) -> np.ndarray:
        maps = np.empty((1, 7, picture.shape[2] // 2, picture.shape[3] // 2), np.float32)
        maps[:, 0], maps[:, 1:4], maps[:, 4:] = t, airlight, offset
        return maps

    return engine


def test_maps_by_name(rng: np.random.Generator) -> None:
    photo = photo_of(200, 300, "uint8", rng)
    named = Restorer(MAPS, steady_maps(t=0.8, airlight=0.9, offset=0.1)).maps(photo)
    assert {name: array.shape[2:] for name, array in named.items()} == {
        "transmission": (),
        "airlight": (3,),
        "offset": (3,),
    }
    assert named["transmission"].shape == named["offset"].shape[:2]
    assert [round(float(array.mean()), 3) for array in named.values()] == [0.8, 0.9, 0.1]
    with pytest.raises(BadSettings, match="outputs images"):
        Restorer(LOCAL, same).maps(photo)
    with pytest.raises(BadImage):
        Restorer(MAPS, same).maps(photo[..., :2])


def test_what_was_seen_once_serves_every_strength(photo: np.ndarray) -> None:
    calls = []

    def counted(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        return steady_maps(t=0.5, airlight=0.9, offset=0.02)(x)

    restorer = Restorer(MAPS, counted)
    seen = restorer.predict_maps(photo)
    answers = [restorer.apply_maps(photo, seen, strength) for strength in (0.0, 0.3, 1.0)]
    assert len(calls) == 1
    for strength, answer in zip((0.0, 0.3, 1.0), answers, strict=True):
        assert np.array_equal(answer, restorer(photo, strength))
    assert np.array_equal(restorer.apply_maps(photo, seen, guard=False), restorer(photo, guard=False))
    assert not np.array_equal(answers[1], answers[2])
    with pytest.raises(BadSettings, match="strength"):
        restorer.apply_maps(photo, seen, 1.5)
    with pytest.raises(BadSettings, match="outputs images"):
        Restorer(LOCAL, same).predict_maps(photo)


def test_a_photo_beyond_most_pixels_is_seen_reduced_and_changed_at_its_own_size() -> None:
    seen: list[tuple[int, ...]] = []

    def darker(picture: np.ndarray) -> np.ndarray:
        seen.append(picture.shape)
        return np.maximum(picture - np.float32(0.1), 0)

    photo = np.random.default_rng(0).integers(60, 200, (96, 160, 3), np.uint8)
    restorer = Restorer(replace(LOCAL, most_pixels=3840), darker)
    restored = restorer(photo, guard=False)
    assert seen == [(1, 3, 48, 80)]
    # every pixel loses the same tenth: detail that the network never saw is still there
    assert np.abs(restored.astype(int) - (photo.astype(int) - 25.5)).max() <= 1
    assert restored.dtype == photo.dtype
    half = restorer(photo, 0.5, guard=False)
    assert np.abs(half.astype(int) - (photo.astype(int) - 12.75)).max() <= 1
    small = photo[:48, :80]
    restorer(small)
    assert seen[-1] == (1, 3, 48, 80)


# Memory.


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
    for card, words in ((GLOBAL, "304 x 400"), (MAPS, "ran out of memory")):
        sizes.clear()
        with pytest.raises(BadImage, match=words):
            Restorer(card, never)(photo)
        assert len(sizes) == 1, "what sees the whole is not asked again"
    with pytest.raises(BadImage, match="smaller tile"):
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


# The choice of models.

PHOTO = np.full((4, 5, 3), 100, np.uint8)
DETECTED: dict[Decision, Weather] = {
    "none": Weather(0.1, 0.1),
    "haze": Weather(1.0, 0.1),
    "rain": Weather(0.1, 1.0),
    "both": Weather(1.0, 1.0),
}


class Fakes:
    """Restorers that multiply (rain) and add (haze), so that their order shows."""

    def __init__(self, seen: Weather) -> None:
        self.seen, self.opened, self.looks = seen, [], 0  # type: ignore[var-annotated]

    def look(self, photo: np.ndarray) -> Weather:
        self.looks += 1
        return self.seen

    def open(self, name: str) -> Any:
        self.opened.append(name)
        work = {"wipe": lambda photo, strength: photo * 2, "lift": lambda photo, strength: photo + round(10 * strength)}
        return lambda photo, strength, guard: work[name](photo, strength)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Both models can be found."""
    monkeypatch.setattr(model_folder, "shipped", lambda: {"wipe": tmp_path, "lift": tmp_path})


def auto_for(seen: Weather) -> tuple[AutoRestorer, Fakes]:
    fakes = Fakes(seen)
    return AutoRestorer(lambda open_model: fakes.look, fakes.open, {"rain": "wipe", "haze": "lift"}), fakes


@pytest.mark.parametrize(
    ("decided", "value", "opened"),
    [("none", 100, []), ("haze", 110, ["lift"]), ("rain", 200, ["wipe"]), ("both", 210, ["wipe", "lift"])],
)
@pytest.mark.usefixtures("installed")
def test_what_is_seen_is_taken_out_rain_first(decided: Decision, value: int, opened: list[str]) -> None:
    restore, fakes = auto_for(DETECTED[decided])
    for _ in range(2):
        result = restore(PHOTO)
        assert (result == value).all()
        assert result is not PHOTO
        assert not np.shares_memory(result, PHOTO)
    assert fakes.opened == opened, "a model is opened once, when it is needed"
    assert restore.detect(PHOTO) == DETECTED[decided]


@pytest.mark.usefixtures("installed")
def test_strength_goes_on_to_the_models_and_0_looks_at_nothing() -> None:
    restore, fakes = auto_for(DETECTED["haze"])
    assert (restore(PHOTO, 0.5) == 105).all()
    looks = fakes.looks
    untouched = restore(PHOTO, 0)
    assert np.array_equal(untouched, PHOTO)
    assert untouched is not PHOTO
    assert fakes.looks == looks
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadSettings, match="strength"):
            restore(PHOTO, strength)
    with pytest.raises(BadImage):
        restore(PHOTO[..., 0])


def test_weather_without_a_model_stays_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(model_folder, "shipped", lambda: {"lift": tmp_path})
    restore, fakes = auto_for(DETECTED["both"])
    with caplog.at_level(logging.WARNING, "fairweather"):
        assert (restore(PHOTO) == 110).all()
        assert (restore(PHOTO) == 110).all()
    assert [record.getMessage() for record in caplog.records] == [
        "rain stays in the photo: model wipe is not installed"
    ]
    assert fakes.opened == ["lift"]


def test_load_gives_it_by_name() -> None:
    made = fairweather.load("auto", memory=1 << 30)
    assert isinstance(made, AutoRestorer)
    assert list(made.models.values()) == ["derain", "dehaze"]
    with pytest.raises(BadSettings, match="tile"):
        fairweather.load("auto", tile=64)
