"""A network with a memory from its model folder: every engine gives PyTorch's frames, with the state in the caller's
hands."""

from __future__ import annotations

import copy
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, ParityFailed
from fairweather.inference.engines import RecurrentEngine, recurrent_step
from fairweather.inference.restorer import Restorer, load

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

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


def frames(count: int = FRAMES, height: int = 75, width: int = 110) -> list[np.ndarray]:
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
    clip = frames()
    restorer = load(model, engine=engine, precision="f32", threads=1)
    truth = expected(clip)
    for at, (ours, theirs) in enumerate(zip(stepped(restorer, clip), truth, strict=True)):
        assert np.abs(ours - theirs).max() < 1e-4, f"frame {at}"
    alone = restorer(clip[-1], guard=False)
    assert np.abs(alone - truth[-1]).max() > 1e-3, "the past counts"


def test_a_photo_is_the_first_frame_of_its_clip(model: Path) -> None:
    clip = frames(3)
    restorer = load(model, engine="openvino", precision="f32")
    assert np.array_equal(restorer(clip[0], guard=False), stepped(restorer, clip)[0])
    assert np.array_equal(restorer(clip[0]), next(iter(restorer.frames(clip))))


def test_the_state_is_the_callers(model: Path) -> None:
    """Two clips by turns on one restorer are as they are one after the other; the same state gives the same again."""
    restorer = load(model, engine="openvino", precision="f32")
    one, other = frames(5), frames(5)[::-1]
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
    seen, state = recurrent_step(restorer, frames(1)[0])
    assert state.dtype == np.float32
    assert state.shape == (1, 36, seen.reduced.shape[2] // 4, seen.reduced.shape[3] // 4)
    with pytest.raises(BadSettings, match=r"state of 1 x 36 x 16 x 16 .* begin anew"):
        recurrent_step(restorer, frames(1, 128, 64)[0], state)


def test_a_model_without_a_memory_says_so() -> None:
    with pytest.raises(BadSettings, match="dehaze-fast has no memory"):
        recurrent_step(load("dehaze-fast", engine="openvino"), frames(1)[0])


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
    import json
    import shutil

    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / model_folder.CARD
    fields = json.loads(path.read_text())
    for state, words in (({"channels": 0, "stride": 4}, "state.channels"), ({"channels": 48, "stride": 5}, "divide")):
        path.write_text(json.dumps({**fields, "state": state}))
        with pytest.raises(BadCard, match=words):
            model_folder.read_card(tmp_path / "m")


def test_half_weights_keep_the_frames(model: Path, tmp_path: Path) -> None:
    """Exported again with weights in float16, the engines still agree with each other and are near what they were."""
    from fairweather.deploy.onnx_export import export_model_folder

    card = export_model_folder(model, tmp_path / "half", half=True)
    assert card.state == model_folder.read_card(model).state
    clip = frames(6)
    halved, whole = (
        stepped(load(place, engine="openvino", precision="f32"), clip) for place in (tmp_path / "half", model)
    )
    assert np.abs(np.stack(halved) - np.stack(whole)).max() < 0.01


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_thousand_frames_take_no_more_memory_than_a_hundred(model: Path, engine: str) -> None:
    """A state here has 50 KB: 900 of them, kept by mistake, would be 45 MB."""
    restorer, state, taken = load(model, engine=engine, threads=1), None, {}
    clip = frames(4, 64, 64)
    for at in range(1, 1001):
        _, state = recurrent_step(restorer, clip[at % 4], state)
        if at in (100, 1000):
            try:
                taken[at] = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            except OSError:
                pytest.skip("this system does not say what a process takes")
    assert taken[1000] - taken[100] < 10 * 2**20
    assert np.isfinite(state).all()


@pytest.mark.parametrize(("precision", "hint"), [("auto", "f32"), ("bf16", "bf16"), ("f32", "f32")])
def test_a_memory_is_not_rounded_unless_that_is_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch, precision: str, hint: str
) -> None:
    import openvino

    from fairweather.inference.engines import open_engine

    asked: dict[str, Any] = {}

    class Core:
        def compile_model(self, path: str, device: str, config: dict[str, Any]) -> Any:
            asked.update(config)
            raise RuntimeError("enough")

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(BadCard, match="enough"):
        open_engine("openvino", model, model_folder.read_card(model), precision=precision)
    assert asked["INFERENCE_PRECISION_HINT"] == hint
