"""The engines: all give the same picture, `auto` says what it took and why, what is missing or broken is named."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, MissingExtra, UnknownName
from fairweather.inference import Restorer, load
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
        with pytest.raises(BadSettings, match="precision"):
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
    with pytest.raises(BadSettings, match="take torch"):
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
        with pytest.raises(BadSettings, match="installed has cpu"):
            open_tiny(tiny_model, "onnxruntime-cuda")
    exact = open_tiny(tiny_model, "onnxruntime-cpu")(picture)
    assert np.abs(open_tiny(tiny_model, "openvino", precision="f32")(picture) - exact).max() < 1e-5
