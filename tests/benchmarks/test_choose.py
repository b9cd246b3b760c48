"""Choosing among models: by scenes that none of them has seen, and by nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import choose
import numpy as np
import pytest

from fairweather import model_folder
from fairweather.data.mixture import divide_holdout
from fairweather.images.io import write

SOURCES = [{"kind": "pairs", "path": "town", "weight": 1.0}, {"kind": "clear", "path": "sun", "weight": 1.0}]


@pytest.fixture
def data(tmp_path: Path, photo: np.ndarray) -> Path:
    root = tmp_path / "train"
    for side in ("town/hazy", "town/clear", "sun"):
        (root / side).mkdir(parents=True)
    for scene in range(8):
        clear = np.roll(photo, 9 * scene, axis=1)
        write(root / "town" / "clear" / f"{scene}.png", clear)
        write(root / "town" / "hazy" / f"{scene}.png", (clear * 0.6 + 100).astype(np.uint8))
        write(root / "sun" / f"s{scene}.png", clear[::-1].copy())
    return root


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, **training: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        model_folder.write_card(
            folder, dataclasses.replace(model_folder.read_card(folder), name=name.split("/")[0], training=training)
        )
        return folder

    return made


def of(share: float, **more: Any) -> dict[str, Any]:
    return {"data": {"folder": "train", "sources": SOURCES, "hold_back": share}, **more}


def held(data: Path, share: float) -> set[str]:
    return {pair.name for pair in divide_holdout(SOURCES, data, share).holdout["town"]}


def test_nobody_has_seen_them(data: Path, model: Callable[..., Path]) -> None:
    few, many = model("few", **of(0.25)), model("many", **of(0.5))
    names = {name: [p.name for p in pairs] for name, pairs in choose.scenes([str(few), str(many)], data, None).items()}
    assert set(names) == {"town", "sun (clear)"}
    assert set(names["town"]) == held(data, 0.25) < held(data, 0.5)
    late = model("late", **of(0.5, start={"name": "x", **of(0.25)}))
    assert {p.name for p in choose.scenes([str(late)], data, None)["town"]} == held(data, 0.25), "its first phase has"
    assert {p.name for p in choose.scenes([str(many)], data, None)["town"]} == held(data, 0.5)


def test_a_run_knows_where_its_photos_are(data: Path, model: Callable[..., Path], tmp_path: Path) -> None:
    model("run/model", data={"folder": "train", "sources": SOURCES})
    record = {"settings": {"data": {"folder": str(data), "sources": SOURCES, "hold_back": 0.25, "degraded": None}}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for named in ("run", "run/model"):
        assert {p.name for p in choose.scenes([str(tmp_path / named)], None, None)["town"]} == held(data, 0.25)


def test_table_sheets_and_numbers(
    data: Path, model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def load(name: str, **_: Any) -> Any:
        class Fake:
            card = model_folder.read_card(Path(name))

            def __call__(self, photo: np.ndarray) -> np.ndarray:
                if "good" in self.card.name:
                    return ((photo - 100 / 255) / 0.6).clip(0, 1).astype(np.float32)
                return photo * 0.2

        return Fake()

    monkeypatch.setattr(choose, "load", load)
    good, bad = model("good", **of(0.5)), model("bad", **of(0.5))
    words = [str(good), str(bad), "--data", str(data), "--out", str(tmp_path / "out"), "--photos", "2", "--most", "3"]
    assert choose.main(words) == 0
    page = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    town = {row[2]: row for row in rows if row[0] == "town"}
    assert list(town) == ["as they are", "good", "bad"]
    assert town["good"][1] == "3"
    assert float(town["good"][3]) > 40 > float(town["as they are"][3]) > float(town["bad"][3])
    assert town["good"][6] == "0"
    assert float(town["good"][9]) == pytest.approx(1 / 0.6, abs=0.1)
    assert float(town["bad"][9]) == pytest.approx(0.2, abs=0.02)
    sun = [row[2] for row in rows if row[0] == "sun (clear)"]
    assert sun == ["good", "bad"], "a clear photo as it is says nothing"
    total = {row[0]: row for row in rows if row[0] in ("good", "bad") and len(row) == 7}
    assert total["good"][1] == town["good"][3]
    assert float(total["bad"][6]) <= float(total["bad"][5])
    from PIL import Image

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["bad.json", "good.json", "sun (clear).jpg", "town.jpg"]
    wide = {name: Image.open(out / name).width for name in ("town.jpg", "sun (clear).jpg")}
    assert wide["town.jpg"] - wide["sun (clear).jpg"] == choose.CELL + 6, "clear photos have no other truth"
    sets = json.loads((out / "good.json").read_text())["sets"]
    assert {one["data"] if "data" in one else one["name"] for one in sets} == {"town", "sun (clear)"}


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"data": {"folder": "train", "sources": SOURCES}}, "--hold-back"),
        (of(0.0), "no scene is held out from all of these models"),
    ],
)
def test_what_it_cannot_choose_by(
    training: dict[str, Any],
    words: str,
    data: Path,
    model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(choose, "load", lambda name, **_: SimpleNamespace(card=model_folder.read_card(Path(name))))
    assert choose.main([str(model("one", **training)), "--data", str(data)]) == 1
    assert words in capsys.readouterr().err


def test_models_of_two_kinds_of_weather(
    model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weathers = iter(["haze", "rain"])
    card = model_folder.read_card(model("one", **of(0.5)))
    kinds = lambda *_, **__: SimpleNamespace(card=dataclasses.replace(card, weather=next(weathers)))  # noqa: E731
    monkeypatch.setattr(choose, "load", kinds)
    assert choose.main(["a", "b"]) == 1
    assert "different weather" in capsys.readouterr().err
