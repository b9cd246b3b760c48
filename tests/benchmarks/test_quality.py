"""The quality table on sets made here: which system meets which set, clear photos, others' outputs, and the update."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import publish
import pytest
import quality
import scoring
import tables
from PIL import Image

from fairweather import model_folder
from fairweather.errors import BadFolder, BadSettings
from fairweather.evaluation import find_protocol, score_set
from fairweather.pairs import find_sets

HAZE, STREAKS = 0.4, 0.1


@pytest.fixture
def roof() -> np.ndarray:
    """A dark roof before a bright sky, with a little texture on both."""
    y, x = np.mgrid[0:48, 0:64]
    luma = np.where(y > 30 - abs(x - 32) // 3, 0.25, 0.75) + 0.02 * np.sin(x / 3) * np.cos(y / 2)
    return np.repeat(luma[..., None], 3, axis=2).astype(np.float32)


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path, roof: np.ndarray) -> Path:
    """Two hazy sets and one with two rains over the same clear photos."""
    for i in range(2):
        clear = roof * (1 - 0.1 * i)
        for name in ("fog", "mist"):
            save(tmp_path / "data" / name / "clear" / f"{i}.png", clear)
            save(tmp_path / "data" / name / "hazy" / f"{i}.png", clear * (1 - HAZE) + HAZE)
        save(tmp_path / "data" / "rain" / "clear" / f"{i}.png", clear)
        for side, amount in (("light", 0.5 * STREAKS), ("heavy", STREAKS)):
            save(tmp_path / "data" / "rain" / side / f"{i}.png", clear + amount)
    save(tmp_path / "kodak" / "a.png", roof)
    return tmp_path / "data"


def dehaze(picture: np.ndarray) -> np.ndarray:
    return ((picture - HAZE) / (1 - HAZE)).clip(0, 1)


def derain(picture: np.ndarray) -> np.ndarray:
    return (picture - STREAKS).clip(0, 1)


def auto(picture: np.ndarray) -> np.ndarray:
    return dehaze(picture) if picture.min() >= HAZE else picture


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for each weather and one that looks first, in place of those that ship."""

    def stand_ins(names: Sequence[str], engine: str) -> dict[str, scoring.System]:
        return {
            "dehaze": scoring.by_function(dehaze, "haze"),
            "derain": scoring.by_function(derain, "rain"),
            "auto": scoring.by_function(auto),
        }

    monkeypatch.setattr(quality, "models", stand_ins)
    monkeypatch.setattr(quality, "DATA", Path("nowhere"))  # the photos beside the checkout take minutes


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def table(text: str, heading: str) -> list[list[str]]:
    """The rows below the heading line that begins with this cell, up to the table's end."""
    rest = text[text.index(f"| {heading} |") :]
    return cells(rest.split("\n\n")[0])[1:]


def test_a_row_for_each_system_that_fits(
    three: None, data: Path, tmp_path: Path, roof: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        save(tmp_path / "theirs" / "mist" / f"{i}.png", roof * 0.8)
    options = ["--data", str(data), "--clear", str(tmp_path / "kodak"), "--out", str(tmp_path / "out"), "--bars"]
    assert quality.main([*options, "--outputs", f"theirs={tmp_path / 'theirs'}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Protocol rgb: float32 straight from the restorer")
    assert "Protocol rain-y: both rounded to 8 bit" in printed
    assert tuple(cells(printed)[0]) == tables.HEADINGS
    rows = {(row[0], row[2], row[3]): row for row in table(printed, "data")}
    hazy = ["the input", "dark channel prior", "dehaze", "auto"]
    assert [key[2] for key in rows if key[0] == "fog"] == hazy
    assert [key[2] for key in rows if key[0] == "mist"] == [*hazy[:2], "theirs", *hazy[2:]]
    for name in ("rain/light", "rain/heavy"):
        wanted = [(rule, system) for rule in ("rgb", "rain-y") for system in ("the input", "derain", "auto")]
        assert [key[1:] for key in rows if key[0] == name] == wanted
    assert all(row[1] == "2" for row in rows.values())
    expected = np.mean([10 * math.log10(1 / np.square(roof * (0.2 - 0.1 * i)).mean()) for i in range(2)])
    assert float(rows["mist", "rgb", "theirs"][4]) == pytest.approx(expected, abs=0.2)
    assert float(rows["fog", "rgb", "dehaze"][4]) > 45 > float(rows["fog", "rgb", "the input"][4])
    assert rows["rain/heavy", "rgb", "auto"][4:] == rows["rain/heavy", "rgb", "the input"][4:]
    assert rows["rain/light", "rgb", "derain"][8:] == ["", ""], "streaks are no glow"
    assert json.loads((tmp_path / "out" / "theirs.json").read_text())["sets"][0]["data"] == "mist"
    assert "not measured in this run" in printed


def test_clear_photos_are_kept_by_everything_that_runs(
    three: None, data: Path, tmp_path: Path, roof: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--data", str(data), "--clear", str(tmp_path / "kodak"), "--out", str(tmp_path / "out")]) == 0
    rows = {(row[0], row[1]): row[2:] for row in table(capsys.readouterr().out, "clear photos | system")}
    assert {key[0] for key in rows} == {"kodak", "fog/clear", "mist/clear", "rain/clear"}
    assert {key[1] for key in rows} == {"dark channel prior", "dehaze", "derain", "auto"}
    assert rows["rain/clear", "derain"][0] == "2", "photos that light and heavy share are there once"
    assert rows["kodak", "auto"] == ["1", "-", "-", "1 (100 %)", "1"], "one that was not touched is infinitely near"
    kept = np.float32(roof * 255).round() / 255
    own = 10 * math.log10(1 / np.square(kept - STREAKS - kept).mean())
    assert rows["kodak", "derain"] == ["1", f"{own:.2f}", f"{own:.1f}", "0 (0 %)", "0"]
    clear = json.loads((tmp_path / "out" / "clear.json").read_text())
    assert {"system": "auto", "data": "kodak", "psnr": {"a": "inf"}} in clear


def test_photos_without_a_truth_are_told_by_what_changed(
    three: None, data: Path, tmp_path: Path, roof: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("hazy_photos", "rainy_photos", "video"):
        save(tmp_path / "real" / name / "a.png", roof * 0.5 + 0.4)
    words = ["--data", str(data / "fog"), "--real", str(tmp_path / "real"), "--out", str(tmp_path / "out"), "--bars"]
    assert quality.main(words) == 0
    said = capsys.readouterr().out
    rows = {(row[0], row[1]): row[2:] for row in table(said, "no truth | system")}
    hazy, rainy = ("dark channel prior", "dehaze", "auto"), ("derain", "auto")
    assert list(rows) == [("hazy_photos", name) for name in hazy] + [("rainy_photos", name) for name in rainy]
    assert rows["hazy_photos", "dehaze"][:2] == ["1", f"× {1 / (1 - HAZE):.2f}"]
    assert rows["rainy_photos", "auto"][1:4] == [f"× {1 / (1 - HAZE):.2f}", "+0.00", "+0.00"]
    assert rows["rainy_photos", "derain"][1] == "× 1.00"
    assert f"{1 / (1 - HAZE):.2f} x | reached |" in said
    assert len(json.loads((tmp_path / "out" / "real.json").read_text())) == len(rows)


def test_a_second_protocol_runs_nothing_again(data: Path, roof: np.ndarray) -> None:
    seen: list[int] = []

    def counted(picture: np.ndarray) -> np.ndarray:
        seen.append(1)
        return picture

    sets = {"rain/light": find_sets(data)["rain/light"]}
    rows = scoring.on_pairs({"counted": scoring.by_function(counted)}, sets, tell=lambda words: None)
    assert [row.result.protocol.name for row in rows] == ["rgb", "rain-y"]
    assert len(seen) == 2


def test_outputs_of_a_single_set_may_lie_in_the_folder_itself(data: Path, tmp_path: Path, roof: np.ndarray) -> None:
    for i in range(2):
        save(tmp_path / "theirs" / f"{i}.jpg", roof)
    sets = find_sets(data / "fog")
    systems = {"theirs": scoring.by_outputs(tmp_path / "theirs", sets)}
    rows = scoring.on_pairs(systems, sets, [find_protocol("rgb")], tell=lambda words: None)
    assert len(rows) == 1
    assert rows[0].result.scores[0].value > 20
    known = {"0": {"psnr": 1.5, "ssim": 0.5}}
    again = score_set(
        "fog", sets["fog"], systems["theirs"].make("fog", sets["fog"]), find_protocol("rgb"), inputs=known
    )
    assert [photo.input for photo in again.photos] == [known["0"], rows[0].result.photos[1].input]
    with pytest.raises(BadFolder, match="fog, mist"):
        scoring.by_outputs(tmp_path / "theirs", find_sets(data))


def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("nothing")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert quality.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("quality.py: ")
    for words, said in (
        (["--protocol", "rbg"], "did you mean 'rgb'"),
        (["--update", "--model", "dehaze"], "leave out --model"),
        (["--update", "--clear", str(tmp_path)], "has no markers for"),
    ):
        assert quality.main(["--data", str(tmp_path), *words]) == 1
        assert said in capsys.readouterr().err


def test_what_is_named_is_loaded(tiny_model: Path) -> None:
    systems = quality.models([str(tiny_model), str(tiny_model)], "auto")
    assert list(systems) == ["tiny", str(tiny_model)], "two that share a name are told apart"
    assert systems["tiny"].fits("haze")
    assert not systems["tiny"].fits("rain")


@pytest.fixture
def checkout(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages with places for the blocks, and one model that ships."""
    monkeypatch.setattr(model_folder, "MODELS", tmp_path / "models")
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("above\n<!-- scores:begin -->\nold\n<!-- scores:end -->\nbelow\n")
    places = "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("scores", "quality", "card:tiny"))
    (tmp_path / "docs" / "models.md").write_text(places)
    return tmp_path


def found(data: Path) -> scoring.Measured:
    systems = {"the input": scoring.by_function(np.asarray), "tiny": scoring.by_function(dehaze, "haze")}
    sets: Any = {"fog": find_sets(data / "fog")["fog"]}
    rows = scoring.on_pairs(systems, sets, tell=lambda words: None)
    clear = scoring.clear_photos(sets, None)
    return scoring.Measured(rows, scoring.on_clear({"tiny": systems["tiny"]}, clear, lambda words: None))


def test_cards_and_pages_say_what_was_measured(checkout: Path, data: Path) -> None:
    measured = found(data)
    peers = [
        tables.Published("Peer", "fog", "rgb", 2, 21.5, 0.75),
        tables.Published("Others", "fog", "rgb", 3, 60.0, 0.9),
    ]
    publish.update(measured, peers, checkout)
    scores = model_folder.read_card(checkout / "models" / "tiny").scores
    assert [(score["metric"], score["data"]) for score in scores] == [
        ("psnr", "fog"),
        ("ssim", "fog"),
        ("psnr", "fog/clear"),
    ]
    own = measured.rows[1].result.scores[0]
    assert scores[0] == own.as_dict()
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("above\n<!-- scores:begin -->\nMean PSNR")
    assert readme.endswith("<!-- scores:end -->\nbelow\n")
    assert "old" not in readme
    assert [row[0] for row in table(readme, "PSNR / SSIM")] == ["the input", "`tiny`"]
    assert table(readme, "PSNR / SSIM")[1][1] == tables.cell(scores[0], scores[1], plain=True)
    page = (checkout / "docs" / "models.md").read_text()
    assert [row[0] for row in table(page, "haze")] == ["the input", "Peer †", "`tiny`"]
    assert table(page, "haze")[1][1] == "21.50 / .750"
    assert table(page, "haze")[2][1] == tables.cell(scores[0], scores[1], strong=True)
    assert f"**{own.value:.2f}** ± {own.spread:.1f} / " in page
    assert publish.facts_of(checkout / "models" / "tiny") in page
    assert "| input | " in page
    assert "megapixels" not in page
    card = dataclasses.replace(model_folder.read_card(checkout / "models" / "tiny"), most_pixels=2_000_000)
    model_folder.write_card(checkout / "models" / "tiny", dataclasses.replace(card, choice="the best of two"))
    facts = publish.facts_of(checkout / "models" / "tiny")
    assert "photos above 2.0 megapixels are reduced |" in facts
    assert "| selection | the best of two |" in facts
    model_folder.write_card(checkout / "models" / "tiny", dataclasses.replace(card, most_pixels=0))
    assert f"| fog | rgb | psnr | 2 | {own.value:.2f} |" in page
    publish.update(measured, peers, checkout)
    assert (checkout / "docs" / "models.md").read_text() == page, "what is written twice is written the same"


def test_a_page_without_a_place_is_told_before_anything_is_measured(checkout: Path, data: Path) -> None:
    publish.check_places(checkout)
    (checkout / "docs" / "models.md").write_text(
        "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("scores", "quality"))
    )
    with pytest.raises(BadSettings, match="has no markers for card:tiny"):
        publish.check_places(checkout)
    with pytest.raises(BadSettings, match="tiny was not measured"):
        publish.update(scoring.Measured(), [], checkout)


def test_a_photo_that_cannot_be_scored_is_named(three: None, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "fog" / "hazy" / "0.png").write_bytes(b"no picture")
    assert quality.main(["--data", str(data / "fog")]) == 0
    said = capsys.readouterr().out
    assert [row[1] for row in table(said, "data")] == ["1"] * 4
    assert "not scored by dehaze: " in said
