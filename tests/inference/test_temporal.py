"""Temporal smoothing: motion, smoothed maps, blended frames, videos by several restorers, and recurrent networks."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from shutil import copyfile
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, ParityFailed
from fairweather.inference import engines, temporal
from fairweather.inference.engines import RecurrentEngine, open_engine
from fairweather.inference.restorer import AutoRestorer, Restorer, load
from fairweather.inference.temporal import (
    SMOOTHING_SECONDS,
    FrameBlender,
    MapSmoother,
    MotionEstimator,
    VideoRestorer,
    recurrent_step,
    restore_frames,
)
from fairweather.inference.weather_detection import Weather
from fairweather.model_folder import StateSpec
from tests.inference.test_restorer import MAPS


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A soft random picture, larger than a frame: 200 x 320 x 3 float32."""
    noise = np.random.default_rng(3).random((200, 320, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return (soft - soft.min()) / (soft.max() - soft.min())


def frame_at(scene: np.ndarray, column: int) -> np.ndarray:
    return np.ascontiguousarray(scene[20:164, column : column + 256])


def chw(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None])


def flat_maps(values: np.ndarray | float, airlight: float = 0.8) -> np.ndarray:
    answer = np.zeros((1, 7, 72, 128), np.float32)
    answer[0, 0] = values
    answer[0, 1:4] = airlight
    return answer


def test_motion_is_found(scene: np.ndarray) -> None:
    motion = MotionEstimator()
    assert motion(frame_at(scene, 10)) is None
    flow = motion(frame_at(scene, 16))  # the camera goes right, what it sees goes left
    assert flow is not None
    columns = np.indices(flow.x.shape)[1]
    inner = (slice(20, -20), slice(20, -20))
    assert abs(np.median((flow.x - columns)[inner]) - 6) < 0.3
    assert flow.trust[inner].mean() > 0.9
    followed = flow.warp(frame_at(scene, 10))
    assert np.abs(followed - frame_at(scene, 16))[inner].mean() < 0.01


def test_a_memory_goes_along_and_nothing_is_remembered_of_what_was_hidden(scene: np.ndarray) -> None:
    """Seven channels, which OpenCV does not flow at once: each is flowd as it is alone."""
    motion = MotionEstimator()
    motion(frame_at(scene, 10))
    flow = motion(frame_at(scene, 22))  # three places of the state come in from the right
    state = np.random.default_rng(1).random((1, 7, 36, 64)).astype(np.float32)
    carried = flow.warp_state(state)
    assert carried.shape == state.shape
    assert carried.dtype == np.float32
    for channel in range(7):
        alone = flow.warp(np.ascontiguousarray(state[0, channel][..., None]))[..., 0] * flow.trusted(36, 64)[..., 0]
        assert np.abs(carried[0, channel] - alone).max() < 1e-6
    assert np.abs(carried[0, :, 5:-5, 5:50] - state[0, :, 5:-5, 8:53]).mean() < 0.1
    assert np.abs(carried[0, :, 5:-5, -2:]).mean() < 0.3 * np.abs(carried[0, :, 5:-5, 5:50]).mean()


def test_flickering_answers_are_smoothed(scene: np.ndarray) -> None:
    steady, rng = MapSmoother(), np.random.default_rng(0)
    given, answers = [], []
    for number in range(60):
        given.append(0.5 + 0.05 * rng.standard_normal())
        answers.append(
            steady(chw(frame_at(scene, 10 + number // 2)), flat_maps(given[-1]), 0.04)[0, 0, 20:-20, 20:-20].mean()
        )
    assert np.std(answers[20:]) < 0.35 * np.std(given[20:])
    assert abs(np.mean(answers[20:]) - 0.5) < 0.02


def test_a_lasting_change_is_followed(scene: np.ndarray) -> None:
    steady = MapSmoother()
    frame = chw(frame_at(scene, 10))
    for _ in range(5):
        steady(frame, flat_maps(0.9), 0.04)
    answers = [steady(frame, flat_maps(0.4), 0.04)[0, 0].mean() for _ in range(100)]
    assert answers[0] > 0.8
    after = answers[round(SMOOTHING_SECONDS / 0.04) - 1]
    assert after == pytest.approx(0.4 + 0.5 * np.exp(-1), abs=0.02)
    assert answers[-1] == pytest.approx(0.4, abs=0.01)


def test_time_counts_not_frames(scene: np.ndarray) -> None:
    frame = chw(frame_at(scene, 10))
    found = []
    for step in (0.02, 0.1):
        steady = MapSmoother()
        steady(frame, flat_maps(0.9), step)
        for _ in range(round(0.4 / step)):
            answer = steady(frame, flat_maps(0.4), step)
        found.append(answer[0, 0].mean())
    assert found[0] == pytest.approx(found[1], abs=0.005)


def test_the_airlight_is_slower(scene: np.ndarray) -> None:
    steady = MapSmoother()
    frame = chw(frame_at(scene, 10))
    steady(frame, flat_maps(0.9, 0.9), 0.04)
    answer = steady(frame, flat_maps(0.4, 0.4), 0.04)
    assert 0.9 - answer[0, 1:4].mean() < 0.3 * (0.9 - answer[0, 0].mean())


def test_maps_flow_with_what_they_are_of(scene: np.ndarray) -> None:
    steady = MapSmoother()
    light = [
        cv2.resize(frame_at(scene, column)[..., 0], (128, 72), interpolation=cv2.INTER_AREA) for column in (10, 20)
    ]
    steady(chw(frame_at(scene, 10)), flat_maps(light[0]), 0.04)
    answer = steady(chw(frame_at(scene, 20)), flat_maps(light[1]), 0.04)[0, 0]
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(answer - light[1])[inner].mean() < 0.15 * np.abs(light[0] - light[1])[inner].mean()


def test_a_cut_is_a_new_beginning(scene: np.ndarray) -> None:
    steady = MapSmoother()
    steady(chw(frame_at(scene, 10)), flat_maps(0.9), 0.04)
    answer = steady(chw(1 - frame_at(scene, 10)), flat_maps(0.4), 0.04)
    assert np.array_equal(answer, flat_maps(0.4))
    answer = steady(chw(frame_at(scene, 10)[:96]), flat_maps(0.7), 0.04)
    assert np.array_equal(answer, flat_maps(0.7)), "frames of another size belong to another film"


def test_what_was_uncovered_is_new(scene: np.ndarray) -> None:
    steady = MapSmoother()
    before = frame_at(scene, 10)
    after = before.copy()
    after[40:100, 60:140] = 1 - after[40:100, 60:140]
    steady(chw(before), flat_maps(0.9), 0.04)
    answer = steady(chw(after), flat_maps(0.4), 0.04)[0, 0]
    assert answer[25:45, 35:65].mean() < 0.5
    assert answer[55:, :].mean() > 0.8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_blending_takes_flicker_off_and_leaves_what_flows_sharp(scene: np.ndarray, dtype: str) -> None:
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    rng, blend = np.random.default_rng(1), FrameBlender()
    off, plain, detail = [], [], []
    for number in range(20):
        frame = frame_at(scene, 10 + number)
        noisy = np.clip(frame + 0.03 * rng.standard_normal(), 0, 1)
        given = [(picture * top).astype(dtype) for picture in (frame, noisy)]
        answer = blend(*given)
        assert answer.dtype == given[1].dtype
        inner = (slice(16, -16), slice(16, -16))
        off.append((answer / top - frame)[inner].mean())
        plain.append((given[1] / top - frame)[inner].mean())
        detail.append(np.std((answer / top)[inner]) / np.std(frame[inner]))
    assert np.std(np.diff(off)) < 0.7 * np.std(np.diff(plain))
    assert min(detail) > 0.97


# Videos.


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A camera that goes right over a soft picture: 12 frames of 96 x 160."""
    noise = np.random.default_rng(3).random((96, 240, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    soft = np.rint((soft - soft.min()) / (soft.max() - soft.min()) * 255).astype(np.uint8)
    return [np.ascontiguousarray(soft[:, 2 * at : 2 * at + 160]) for at in range(12)]


def maps(picture: np.ndarray, transmission: float) -> np.ndarray:
    answer = np.zeros((1, 7, picture.shape[2] // 2, picture.shape[3] // 2), np.float32)
    answer[:, 0], answer[:, 1:4] = transmission, 0.9
    return answer


def flickering() -> Restorer:
    rng = np.random.default_rng(1)
    return Restorer(MAPS, lambda picture: maps(picture, 0.6 + 0.1 * rng.standard_normal()))


def unrest(film: VideoRestorer, frames: list[np.ndarray]) -> float:
    means = [film(frame, 0.04).mean() for frame in frames]
    return float(np.std(np.diff(means)))


def test_flicker_is_taken_off_where_it_is_wanted(frames: list[np.ndarray]) -> None:
    loud = unrest(VideoRestorer([(flickering(), 1.0)], smooth=False), frames)
    assert unrest(VideoRestorer([(flickering(), 1.0)]), frames) < 0.4 * loud
    assert unrest(VideoRestorer([(flickering(), 1.0)], smooth=False, blend=True), frames) < 0.8 * loud


def test_a_restorer_s_frames_are_a_film_s(frames: list[np.ndarray]) -> None:
    film = VideoRestorer([(flickering(), 0.7)])
    for answer, frame in zip(restore_frames(flickering(), frames, 0.7), frames, strict=True):
        assert np.array_equal(answer, film(frame, 1 / 25))


def test_what_begins_may_be_finished_later(frames: list[np.ndarray]) -> None:
    """As in a pipeline: the next frame begins before the last is finished."""
    one, other = VideoRestorer([(flickering(), 1.0)]), VideoRestorer([(flickering(), 1.0)])
    begun = [one.begin(frame, 0.04) for frame in frames]
    for finish, frame in zip(begun, frames, strict=True):
        assert np.array_equal(finish(), other(frame, 0.04))


def test_restorers_work_one_after_the_other(frames: list[np.ndarray]) -> None:
    called = []

    def add(photo: np.ndarray, strength: float, guard: bool) -> np.ndarray:
        called.append((strength, guard))
        return np.minimum(photo, 245) + np.uint8(10)

    steady = Restorer(MAPS, lambda picture: maps(picture, 0.6))
    film = VideoRestorer([(add, 0.5), (steady, 1.0), (add, 0.0)], guard=False)
    assert np.array_equal(film(frames[0], 0.0), steady(np.minimum(frames[0], 245) + np.uint8(10), guard=False))
    assert called == [(0.5, False)], "what takes nothing out is not asked"
    untouched = VideoRestorer([])(frames[0], 0.0)
    assert np.array_equal(untouched, frames[0])
    assert untouched is not frames[0]


def counting() -> Restorer:
    """A network whose memory counts the frames in which a place was in sight, and whose transmission tells the most."""

    def run(picture: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        return [maps(picture, 1.0 - 0.05 * round(float(state.max()))), state + 1]

    return Restorer(MAPS, RecurrentEngine(run, StateSpec(channels=2, stride=2)))


def test_a_network_with_a_memory_keeps_it_until_a_cut(frames: list[np.ndarray]) -> None:
    restorer = counting()
    film = VideoRestorer([(restorer, 1.0)], guard=False, seconds=0)

    def count(frame: np.ndarray) -> int:
        answer = film(frame, 0.04)
        found = [np.array_equal(answer, at_count(frame, number)) for number in range(8)]
        return found.index(True)

    def at_count(frame: np.ndarray, number: int) -> np.ndarray:
        return Restorer(MAPS, lambda picture: maps(picture, 1.0 - 0.05 * number))(frame, guard=False)

    assert [count(frame) for frame in frames[:5]] == [0, 1, 2, 3, 4]
    assert [count(255 - frame) for frame in frames[:2]] == [0, 1], "another scene"
    assert [count(frame[:64]) for frame in frames[:2]] == [0, 1], "another size"


def test_maps_behind_a_memory_are_smoothed_too(frames: list[np.ndarray]) -> None:
    rng = np.random.default_rng(1)

    def run(picture: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        return [maps(picture, 0.6 + 0.1 * rng.standard_normal()), state]

    restorer = Restorer(MAPS, RecurrentEngine(run, StateSpec(channels=2, stride=2)))
    loud = unrest(VideoRestorer([(restorer, 1.0)], seconds=0), frames)
    assert unrest(VideoRestorer([(restorer, 1.0)]), frames) < 0.8 * loud, "for a shorter time"
    assert unrest(VideoRestorer([(restorer, 1.0)], seconds=0.5), frames) < 0.4 * loud
    assert unrest(VideoRestorer([(restorer, 1.0)], smooth=False), frames) > 0.6 * loud


class Detections(AutoRestorer):
    """Detects the given confidences of haze, and records the plans that are carried out."""

    def __init__(self, haze: list[float]) -> None:
        found = iter(haze)
        super().__init__(
            lambda open_model: lambda frame: Weather(next(found), 0.0),
            lambda name: lambda photo, strength, guard: photo,
        )


def test_the_weather_of_a_stream_is_a_running_mean(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "DETECTION_SECONDS", 0.2)
    strengths: list[list[float]] = []
    monkeypatch.setattr(VideoRestorer, "use", lambda self, parts: strengths.append([amount for _, amount in parts]))
    video = VideoRestorer([], detect_with=Detections([1.0, 0.5, 0.0]))
    for at, frame in enumerate(frames):
        video(frame, 0.04 if at else 0.0)
    means = [[Weather(mean, 0.0).amount("haze")] for mean in (1.0, 0.75)]
    assert strengths == [[], *means, []], "in the first frame and then every 5 frames"


# Recurrent networks from their model folder.

FRAMES = 20
ARGUMENTS: dict[str, Any] = {"size": 64, "widths": [8, 8, 12, 12], "heads": 4, "states": 3}


def network(seed: int = 0) -> Any:
    from fairweather.generators import RecurrentMaps

    torch.manual_seed(seed)
    made = RecurrentMaps(**ARGUMENTS).eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return made


def clip_of(count: int = FRAMES, height: int = 75, width: int = 110) -> list[np.ndarray]:
    """A camera over a picture, with noise."""
    rng = np.random.default_rng(6)
    y, x = np.mgrid[0:height, 0 : width + 2 * count] / 40
    picture = np.stack([0.5 + 0.3 * np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(3)], -1)
    clip = [picture[:, 2 * t : 2 * t + width] + rng.normal(0, 0.03, (height, width, 3)) for t in range(count)]
    return [frame.clip(0, 1).astype(np.float32) for frame in clip]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fairweather.deploy.onnx_export import export_generator

    folder = tmp_path_factory.mktemp("recurrent_maps") / "model"
    facts: dict[str, Any] = {"licence": "MIT", "terms": "", "training": {}}
    export_generator(
        network(), folder, name="s", weather="haze", generator_name="recurrent_maps", arguments=ARGUMENTS, **facts
    )
    return folder


def stepped(restorer: Restorer, clip: list[np.ndarray]) -> list[np.ndarray]:
    answer, state = [], None
    for frame in clip:
        seen, state = recurrent_step(restorer, frame, state)
        answer.append(restorer.apply_maps(frame, seen, guard=False))
    return answer


def expected(clip: list[np.ndarray]) -> np.ndarray:
    """By the parallel scan over the whole clip."""
    with torch.no_grad():
        whole = torch.from_numpy(np.stack(clip).transpose(0, 3, 1, 2))[None]
        answer: np.ndarray = network().clip(whole)[0].numpy().transpose(0, 2, 3, 1)
    return answer


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_every_engine_gives_the_frames_of_pytorch(model: Path, engine: str) -> None:
    clip = clip_of()
    restorer = load(model, engine=engine, precision="f32", threads=1)
    truth = expected(clip)
    for at, (ours, theirs) in enumerate(zip(stepped(restorer, clip), truth, strict=True)):
        assert np.abs(ours - theirs).max() < 1e-4, f"frame {at}"
    alone = restorer(clip[-1], guard=False)
    assert np.abs(alone - truth[-1]).max() > 1e-3, "the past counts"


def test_a_photo_is_the_first_frame_of_its_clip(model: Path) -> None:
    clip = clip_of(3)
    restorer = load(model, engine="openvino", precision="f32")
    assert np.array_equal(restorer(clip[0], guard=False), stepped(restorer, clip)[0])
    assert np.array_equal(restorer(clip[0]), next(restore_frames(restorer, clip)))


def test_the_state_is_the_callers(model: Path) -> None:
    """Two clips by turns on one restorer are as they are one after the other; the same state gives the same again."""
    restorer = load(model, engine="openvino", precision="f32")
    one, other = clip_of(5), clip_of(5)[::-1]
    turns: list[list[np.ndarray]] = [[], []]
    states: list[Any] = [None, None]
    for pair in zip(one, other, strict=True):
        for number, frame in enumerate(pair):
            before = copy.deepcopy(states[number])
            seen, after = recurrent_step(restorer, frame, states[number])
            assert states[number] is None or np.array_equal(before, states[number]), "what was given is not written to"
            again, _ = recurrent_step(restorer, frame, before)
            assert np.array_equal(seen.maps, again.maps)
            states[number] = after
            turns[number].append(restorer.apply_maps(frame, seen, guard=False))
    assert np.array_equal(turns[0], stepped(restorer, one))
    assert np.array_equal(turns[1], stepped(restorer, other))


def test_the_state_has_the_size_that_the_card_says(model: Path) -> None:
    card = model_folder.read_card(model)
    assert card.state == model_folder.StateSpec(channels=4 * 3 * (2 + 1), stride=4)
    restorer = load(model, engine="openvino")
    seen, state = recurrent_step(restorer, clip_of(1)[0])
    assert state.dtype == np.float32
    assert state.shape == (1, 36, seen.reduced.shape[2] // 4, seen.reduced.shape[3] // 4)
    with pytest.raises(BadSettings, match=r"state has shape 1 x 36 x 16 x 16.* start again"):
        recurrent_step(restorer, clip_of(1, 128, 64)[0], state)


def test_a_model_without_a_memory_says_so() -> None:
    with pytest.raises(BadSettings, match="dehaze-fast is not recurrent"):
        recurrent_step(load("dehaze-fast", engine="openvino"), clip_of(1)[0])


def test_quantizing_is_refused(model: Path, tmp_path: Path) -> None:
    from fairweather.deploy.quantization import quantize_model

    with pytest.raises(BadSettings, match="is recurrent"):
        quantize_model(model, tmp_path / "out", method="dynamic")


def test_a_state_that_goes_wrong_is_found_at_export(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single photos would not show it: they all begin with an empty state. The file is a copy of the one that would be
    made of this network, which takes many seconds."""
    from fairweather.deploy.onnx_export import export_generator

    monkeypatch.setattr(
        "fairweather.deploy.onnx_export.write_onnx", lambda _, path, __: copyfile(model / model_folder.ONNX, path)
    )
    good = RecurrentEngine.step

    def forgetful(self: RecurrentEngine, picture: np.ndarray, state: np.ndarray | None = None) -> Any:
        answer, after = good(self, picture, state)
        return answer, after * 0.5

    monkeypatch.setattr(RecurrentEngine, "step", forgetful)
    facts: dict[str, Any] = {"licence": "MIT", "terms": "", "training": {}, "engines": ("openvino",)}
    with pytest.raises(ParityFailed, match="in frame 1 of a clip"):
        export_generator(
            network(),
            tmp_path / "m",
            name="s",
            weather="haze",
            generator_name="recurrent_maps",
            arguments=ARGUMENTS,
            **facts,
        )
    assert not (tmp_path / "m").exists()


def test_a_card_whose_state_cannot_be_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / model_folder.CARD
    fields = json.loads(path.read_text())
    for state, words in (({"channels": 0, "stride": 4}, "state.channels"), ({"channels": 48, "stride": 5}, "divide")):
        path.write_text(json.dumps({**fields, "state": state}))
        with pytest.raises(BadCard, match=words):
            model_folder.read_card(tmp_path / "m")


@pytest.mark.parametrize(("precision", "hint"), [("auto", "f32"), ("bf16", "bf16"), ("f32", "f32")])
def test_a_memory_is_not_rounded_unless_that_is_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch, precision: str, hint: str
) -> None:
    asked: dict[str, Any] = {}

    class Core:
        def compile_model(self, path: str, device: str, config: dict[str, Any]) -> Any:
            asked.update(config)
            raise RuntimeError("enough")

    monkeypatch.setattr(engines, "openvino_core", Core)
    with pytest.raises(BadCard, match="enough"):
        open_engine("openvino", model, model_folder.read_card(model), precision=precision)
    assert asked["INFERENCE_PRECISION_HINT"] == hint
