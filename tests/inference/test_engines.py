"""Engines: all give the same output, "auto" chooses the fastest, missing libraries and broken files are named."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, MissingExtra, UnknownName
from fairweather.inference import Restorer, engines, load
from fairweather.inference.engines import ENGINE_NAMES, open_engine

ENGINES = ("openvino", "onnxruntime", "torch")
"""Those that need no compiler."""


def open_tiny(folder: Path, name: str, **settings: Any) -> Any:
    return open_engine(name, folder, model_folder.read_card(folder), **settings)


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.random((1, 3, 44, 60), np.float32)


def test_all_engines_agree_and_give_fresh_arrays(tiny_model: Path, picture: np.ndarray) -> None:
    answers = {}
    for name in ENGINES:
        engine = open_tiny(tiny_model, name, precision="f32", threads=1)
        first = engine(picture)
        kept = first.copy()
        assert first.dtype == np.float32
        assert first.shape == picture.shape
        assert np.abs(engine(picture[:, :, :20, :24].copy()) - first[:, :, :20, :24]).max() > 1e-3
        engine(1 - picture)
        assert (first == kept).all(), f"{name} wrote over an answer that it had given away"
        answers[name] = first
    assert answers["torch"].std() > 0.05, "an answer without a picture in it would prove nothing"
    for name in ("openvino", "onnxruntime"):
        assert np.abs(answers[name] - answers["torch"]).max() < 1e-5


def test_rounding_inside_is_no_more_than_asked_for(tiny_model: Path, picture: np.ndarray) -> None:
    exact = open_tiny(tiny_model, "openvino", precision="f32")(picture)
    assert np.abs(open_tiny(tiny_model, "openvino", precision="bf16")(picture) - exact).max() < 0.05
    for name in ("onnxruntime", "torch"):
        with pytest.raises(BadSettings, match="precision bf16"):
            open_tiny(tiny_model, name, precision="bf16")


def test_one_engine_serves_many_threads(tiny_model: Path, rng: np.random.Generator) -> None:
    engine = open_tiny(tiny_model, "openvino", precision="f32")
    pictures = [rng.random((1, 3, 32 + 4 * k, 40), np.float32) for k in range(4)]
    expected = [engine(picture) for picture in pictures]
    wrong: list[int] = []

    def work(k: int) -> None:
        wrong.extend(k for _ in range(20) if not np.array_equal(engine(pictures[k]), expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_auto_takes_the_first_that_is_installed_and_says_why(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = importlib.util.find_spec
    missing: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else real(name, *rest))
    for gone, taken, why in [
        ((), "openvino", "auto: the default on a CPU"),
        (("openvino",), "onnxruntime", "auto: openvino not installed"),
        (("openvino", "onnxruntime"), "torch", "auto: openvino and onnxruntime not installed"),
    ]:
        missing.update(gone)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fairweather"):
            open_tiny(tiny_model, "auto")
        assert [record.getMessage() for record in caplog.records] == [f"engine: {taken} ({why}), model tiny"]
    missing.add("torch")
    with pytest.raises(MissingExtra, match="pip install"):
        open_tiny(tiny_model, "auto")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("openvino", "pip install openvino"),  # the default install has it: there is no such extra
        ("onnxruntime", "'fairweather[onnxruntime]'"),
        ("torch", "'fairweather[train]'"),
    ],
)
def test_an_engine_that_is_not_installed_names_the_remedy(
    tiny_model: Path, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any, **named: Any) -> Any:
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(engines, "openvino_core", engines.openvino_core.__wrapped__)  # not the cached core
    with pytest.raises(MissingExtra, match=re.escape(remedy)):
        open_tiny(tiny_model, name)


def test_settings_are_checked_before_anything_is_opened(tiny_model: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'openvino'"):
        open_tiny(tiny_model, "openvno")
    with pytest.raises(BadSettings, match="precision must be one of"):
        open_tiny(tiny_model, "auto", precision="f16")
    with pytest.raises(BadSettings, match="threads"):
        open_tiny(tiny_model, "auto", threads=0)


@pytest.mark.parametrize("name", ENGINES)
def test_files_that_no_engine_can_read_are_a_bad_card(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = copytree(tiny_model, tmp_path / "model")
    for file in model_folder.SUMMED:
        (folder / file).write_bytes(b"\x08\x01 not a network at all")
    model_folder.write_card(folder, model_folder.read_card(folder, verify=False))  # checksums that fit
    with pytest.raises(BadCard, match=r"weights\.safetensors" if name == "torch" else r"model\.onnx"):
        open_tiny(folder, name)


@pytest.mark.parametrize(
    ("arguments", "file"),
    [({"levels": 2, "breadth": 4}, r"card\.json"), ({"levels": 2, "width": 8}, r"weights\.safetensors does not fit")],
)
def test_a_card_whose_arguments_do_not_fit_the_weights(
    tiny_model: Path, tmp_path: Path, arguments: dict[str, Any], file: str
) -> None:
    folder = copytree(tiny_model, tmp_path / "model")
    model_folder.write_card(folder, dataclasses.replace(model_folder.read_card(folder), arguments=arguments))
    with pytest.raises(BadCard, match=file):
        open_tiny(folder, "torch")


def test_loading_a_model_by_its_path(tiny_model: Path, photo: np.ndarray) -> None:
    pictures = [load(tiny_model, engine=name, precision="f32")(photo) for name in ENGINES]
    assert isinstance(load(str(tiny_model)), Restorer)
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.shape == photo.shape
        assert np.abs(picture.astype(int) - pictures[0]).max() <= 1
    assert (pictures[0] != photo).any()
    assert (load(tiny_model, tile=16, precision="f32")(photo).astype(int) - pictures[0]).max() <= 1
    with pytest.raises(BadSettings, match="memory"):
        load(tiny_model, memory=-1)


def test_loading_an_altered_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name in model_folder.SUMMED:
        folder = copytree(tiny_model, tmp_path / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        with pytest.raises(BadCard, match=name):
            load(folder)


def test_restoring_with_openvino_imports_no_torch(tiny_model: Path) -> None:
    program = (
        "import sys, numpy, fairweather\n"
        "assert 'openvino' not in sys.modules\n"
        f"restorer = fairweather.load({str(tiny_model)!r}, engine='openvino')\n"
        "restorer(numpy.zeros((9, 11, 3), numpy.uint8))\n"
        "assert 'openvino' in sys.modules and not {'torch', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_compiled_network_gives_the_same(
    tiny_model: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling for real takes half a minute and more: it is done with FAIRWEATHER_COMPILE=1, else traced alone."""
    import torch

    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    compile_, calls = torch.compile, []

    def traced(network: Any) -> Any:
        calls.append(network)
        return compile_(network) if os.environ.get("FAIRWEATHER_COMPILE") else compile_(network, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    expected = open_tiny(tiny_model, "torch", precision="f32")(picture)
    assert not calls
    assert np.abs(open_tiny(tiny_model, "torch-compiled", precision="f32")(picture) - expected).max() < 1e-5
    assert len(calls) == 1


def test_compiling_without_a_compiler_is_refused_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadSettings, match="use torch"):
        open_tiny(tiny_model, "torch-compiled")


@pytest.mark.parametrize(
    ("name", "present", "precision", "expected"),
    [
        ("onnxruntime", ["CPU"], "auto", [("CPU", {})]),
        ("onnxruntime", ["Tensorrt", "CUDA", "CPU"], "auto", [("CUDA", {}), ("CPU", {})]),
        ("onnxruntime", ["CUDA", "CPU"], "f32", [("CUDA", {"use_tf32": 0}), ("CPU", {})]),
        ("onnxruntime", ["CoreML", "CPU"], "auto", [("CoreML", {}), ("CPU", {})]),
        ("onnxruntime", ["Dml", "CPU"], "auto", [("Dml", {}), ("CPU", {})]),
        ("onnxruntime-cpu", ["CUDA", "CPU"], "auto", [("CPU", {})]),
    ],
)
def test_onnxruntime_takes_the_device_that_is_there(
    tiny_model: Path, name: str, present: list[str], precision: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    given: dict[str, Any] = {}

    class Session:
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            given.update(options=options, providers=providers)

        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "picture"})]

    names = [f"{short}ExecutionProvider" for short in present]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    open_tiny(tiny_model, name, precision=precision)
    assert given["providers"] == [(f"{short}ExecutionProvider", settings) for short, settings in expected]
    assert given["options"].enable_mem_pattern is ("Dml" not in present)


def test_a_device_that_is_not_there_is_refused(tiny_model: Path, picture: np.ndarray) -> None:
    import onnxruntime

    assert "onnxruntime-cuda" in ENGINE_NAMES
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BadSettings, match="installed ONNX Runtime has cpu"):
            open_tiny(tiny_model, "onnxruntime-cuda")
    exact = open_tiny(tiny_model, "onnxruntime-cpu")(picture)
    assert np.abs(open_tiny(tiny_model, "openvino", precision="f32")(picture) - exact).max() < 1e-5


# The benchmark behind "auto".


class Clock:
    """Replaces the module `time`: only engines advance it, however busy the machine is."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(engines.BENCHMARK_SWITCH, raising=False)
    monkeypatch.setattr(engines, "time", CLOCK)
    monkeypatch.setattr(engines, "_installed", lambda name: name != "torch")
    return tmp_path / "cache" / "fairweather" / "engines.json"


@pytest.fixture
def card(tiny_model: Path) -> model_folder.Card:
    return model_folder.read_card(tiny_model)


def fakes(seconds: dict[str, float], opened: list[str], off: float = 0.0) -> Callable[[str], Any]:
    """Engines that take so long; all but OpenVINO are `off` by so much."""

    def open_(name: str) -> Any:
        opened.append(name)

        def run(picture: np.ndarray) -> np.ndarray:
            CLOCK.now += seconds[name]
            return picture + np.float32(0 if name == "openvino" else off)

        return run

    return open_


def chosen(card: model_folder.Card, open_: Callable[[str], Any], threads: int | None = None) -> str:
    return engines.choose_engine(card, threads, "auto", open_).name


SLOW_FIRST = {"openvino": 0.06, "onnxruntime": 0.01}


def test_the_fastest_is_taken_and_remembered(cache: Path, card: model_folder.Card) -> None:
    opened: list[str] = []
    open_ = fakes(SLOW_FIRST, opened)
    start = CLOCK.now
    assert chosen(card, open_) == "onnxruntime"
    assert 0 < CLOCK.now - start < engines.BENCHMARK_SECONDS + 1
    assert opened == ["openvino", "onnxruntime"]
    assert list(json.loads(cache.read_text()).values()) == ["onnxruntime"]
    assert not list(cache.parent.glob(".*")), "nothing is left beside it"
    assert chosen(card, open_) == "onnxruntime"
    assert len(opened) == 2, "asked again, nothing is measured"
    assert chosen(card, open_, threads=1) == "onnxruntime"
    assert len(opened) == 4, "other threads are another question"
    assert len(json.loads(cache.read_text())) == 2


def test_an_engine_that_answers_otherwise_is_never_taken(
    cache: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, fakes(SLOW_FIRST, [], off=0.01)) == "openvino"
    assert "its output differs" in caplog.text
    assert chosen(card, fakes(SLOW_FIRST, [], off=float("nan")), threads=2) == "openvino"
    assert chosen(card, fakes(SLOW_FIRST, [], off=0.001), threads=3) == "onnxruntime"


def test_an_engine_that_fails_is_no_choice(cache: Path, card: model_folder.Card) -> None:
    good = fakes(SLOW_FIRST, [])

    def open_(name: str) -> Any:
        if name == "onnxruntime":
            raise BadCard("model.onnx cannot be read by ONNX Runtime")
        return good(name)

    assert chosen(card, open_) == "openvino"


def test_a_slow_network_is_not_measured_to_the_end(cache: Path, card: model_folder.Card) -> None:
    opened: list[str] = []
    assert chosen(card, fakes({"openvino": engines.BENCHMARK_SECONDS, "onnxruntime": 0.0}, opened)) == "openvino"
    assert opened == ["openvino"]


def test_the_benchmark_can_be_turned_off(cache: Path, card: model_folder.Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.BENCHMARK_SWITCH, "0")
    opened: list[str] = []
    assert engines.choose_engine(card, None, "auto", fakes(SLOW_FIRST, opened)) == (
        "openvino",
        "auto: the default on a CPU",
        None,
    )
    assert not opened
    assert not cache.exists()


def test_with_one_engine_nothing_is_measured(
    cache: Path, card: model_folder.Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_installed", lambda name: name in ("onnxruntime", "torch"))
    opened: list[str] = []
    assert chosen(card, fakes(SLOW_FIRST, opened)) == "onnxruntime"
    assert not opened


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b"null"])
def test_a_broken_cache_is_measured_anew(
    cache: Path, card: model_folder.Card, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, fakes(SLOW_FIRST, [])) == "onnxruntime"
    assert "measuring again" in caplog.text
    assert list(json.loads(cache.read_text()).values()) == ["onnxruntime"]


def test_a_name_that_is_no_engine_is_not_believed(cache: Path, card: model_folder.Card) -> None:
    key = engines.benchmark_key(card, None, "auto", ["openvino", "onnxruntime"])
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({key: "torch", "other": "openvino"}))
    assert chosen(card, fakes(SLOW_FIRST, [])) == "onnxruntime"
    assert json.loads(cache.read_text()) == {key: "onnxruntime", "other": "openvino"}


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, cache: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, fakes(SLOW_FIRST, [])) == "onnxruntime"
    assert "cannot cache" in caplog.text


def test_real_engines_are_measured_on_a_real_model(
    cache: Path, tiny_model: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fairweather"):
        answer = open_engine("auto", tiny_model, card)(np.zeros((1, 3, 16, 16), np.float32))
    assert answer.shape == (1, 3, 16, 16)
    assert "auto: measured" in caplog.text
    assert cache.exists()
