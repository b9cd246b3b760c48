"""`auto`: the fastest engine that gives the same, measured once; skipped, forgotten and broken caches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairweather import model_folder
from fairweather.errors import BadCard
from fairweather.inference import engines
from fairweather.inference.engines import open_engine

Engine = Callable[[np.ndarray], np.ndarray]


class Clock:
    """In place of the module `time`: only engines make it go on, however busy the machine is."""

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


def engines(seconds: dict[str, float], opened: list[str], off: float = 0.0) -> Callable[[str], Engine]:
    """Engines that take so long; all but OpenVINO are `off` by so much."""

    def open_(name: str) -> Engine:
        opened.append(name)

        def run(picture: np.ndarray) -> np.ndarray:
            CLOCK.now += seconds[name]
            return picture + np.float32(0 if name == "openvino" else off)

        return run

    return open_


def chosen(card: model_folder.Card, open_: Callable[[str], Engine], threads: int | None = None) -> str:
    return engines.choose_engine(card, threads, "auto", open_).name


SLOW_FIRST = {"openvino": 0.06, "onnxruntime": 0.01}


def test_the_fastest_is_taken_and_remembered(cache: Path, card: model_folder.Card) -> None:
    opened: list[str] = []
    open_ = engines(SLOW_FIRST, opened)
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


def test_the_first_stays_where_it_is_no_slower(cache: Path, card: model_folder.Card) -> None:
    assert chosen(card, engines({"openvino": 0.02, "onnxruntime": 0.06}, [])) == "openvino"


def test_an_engine_that_answers_otherwise_is_never_taken(
    cache: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, engines(SLOW_FIRST, [], off=0.01)) == "openvino"
    assert "its answer differs" in caplog.text
    assert chosen(card, engines(SLOW_FIRST, [], off=float("nan")), threads=2) == "openvino"
    assert chosen(card, engines(SLOW_FIRST, [], off=0.001), threads=3) == "onnxruntime"


def test_an_engine_that_fails_is_no_choice(cache: Path, card: model_folder.Card) -> None:
    good = engines(SLOW_FIRST, [])

    def open_(name: str) -> Engine:
        if name == "onnxruntime":
            raise BadCard("model.onnx cannot be read by ONNX Runtime")
        return good(name)

    assert chosen(card, open_) == "openvino"


def test_a_slow_network_is_not_measured_to_the_end(cache: Path, card: model_folder.Card) -> None:
    opened: list[str] = []
    assert chosen(card, engines({"openvino": engines.BENCHMARK_SECONDS, "onnxruntime": 0.0}, opened)) == "openvino"
    assert opened == ["openvino"]


def test_it_can_be_told_not_to(cache: Path, card: model_folder.Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.BENCHMARK_SWITCH, "0")
    opened: list[str] = []
    assert engines.choose_engine(card, None, "auto", engines(SLOW_FIRST, opened)) == (
        "openvino",
        "auto: the default on a CPU",
        None,
    )
    assert not opened
    assert not cache.exists()


def test_with_one_engine_nothing_is_measured(
    cache: Path, card: model_folder.Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "time", CLOCK)
    monkeypatch.setattr(engines, "_installed", lambda name: name in ("onnxruntime", "torch"))
    opened: list[str] = []
    assert chosen(card, engines(SLOW_FIRST, opened)) == "onnxruntime"
    assert not opened


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b"null"])
def test_a_broken_cache_is_measured_anew(
    cache: Path, card: model_folder.Card, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, engines(SLOW_FIRST, [])) == "onnxruntime"
    assert "measured anew" in caplog.text
    assert list(json.loads(cache.read_text()).values()) == ["onnxruntime"]


def test_a_name_that_is_no_engine_is_not_believed(cache: Path, card: model_folder.Card) -> None:
    key = engines.benchmark_key(card, None, "auto", ["openvino", "onnxruntime"])
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({key: "torch", "other": "openvino"}))
    assert chosen(card, engines(SLOW_FIRST, [])) == "onnxruntime"
    assert json.loads(cache.read_text()) == {key: "onnxruntime", "other": "openvino"}


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, cache: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO, logger="fairweather"):
        assert chosen(card, engines(SLOW_FIRST, [])) == "onnxruntime"
    assert "cannot be kept" in caplog.text


def test_real_engines_are_measured_on_a_real_model(
    cache: Path, tiny_model: Path, card: model_folder.Card, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fairweather"):
        answer = open_engine("auto", tiny_model, card)(np.zeros((1, 3, 16, 16), np.float32))
    assert answer.shape == (1, 3, 16, 16)
    assert "auto: measured" in caplog.text
    assert cache.exists()
