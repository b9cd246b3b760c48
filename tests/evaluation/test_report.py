"""Evaluation end to end: sets on disk in, a table, scores.json and contact sheets out."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from fairweather.errors import BadFolder, BadImage, MissingExtra, UnknownName
from fairweather.evaluation import (
    PROTOCOLS,
    PhotoScore,
    Score,
    SetScores,
    clear_pairs,
    evaluate_model,
    outputs_from_folder,
    photo_table,
    score_set,
    score_table,
    write_photos,
)
from fairweather.evaluation.report import COLUMNS, pages_of
from fairweather.evaluation.sheets import CELL, chosen
from fairweather.pairs import Pair, find_pairs


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


def halve(picture: np.ndarray) -> np.ndarray:
    return picture / 2


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two sets of flat pictures on whole levels, so that every score can be worked out by hand."""
    root = tmp_path / "sets"
    for name, count in (("one", 3), ("two", 1)):
        for i in range(count):
            save(root / name / "hazy" / f"{i}.png", np.full((20, 24, 3), 102 / 255))
            save(root / name / "clear" / f"{i}.png", np.full((20, 24, 3), (51 + 51 * (i == 0) + i) / 255))
    return root


def test_scores_by_hand(sets: Path) -> None:
    one, two = evaluate_model(halve, sets)  # every output is 51/255
    first, second, third = (photo.scores["psnr"] for photo in one.photos)
    assert first == pytest.approx(20 * math.log10(255 / 51), abs=1e-4)
    assert second == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert third == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    score = one.scores[0]
    assert (score.metric, score.protocol, score.data, score.n) == ("psnr", "rgb", "one", 3)
    assert score.value == pytest.approx((first + second + third) / 3)  # the mean of photos, not of their errors
    assert score.spread == pytest.approx(np.std([first, second, third], ddof=1))
    assert one.photos[0].input["psnr"] == math.inf  # this one was clear already
    assert score.input == math.inf
    assert score.worse == 1
    assert (two.data, two.scores[0].n, two.scores[0].spread) == ("two", 1, None)


def test_photos_are_scored_at_full_size_in_their_own_shape(tmp_path: Path) -> None:
    """260 x 400 of fine stripes, which any reduction to 256 x 256 would blur into another score."""
    truth = np.full((260, 400, 3), 0.2)
    truth[:, ::2] = 0.8
    save(tmp_path / "hazy" / "0.png", np.full_like(truth, 102 / 255))
    save(tmp_path / "clear" / "0.png", truth)
    seen = []

    def shift(picture: np.ndarray) -> np.ndarray:
        seen.append(picture.shape)
        return np.roll(truth, 1, axis=1).astype(np.float32)  # all stripes wrong; the mean of any two is right

    (result,) = evaluate_model(shift, tmp_path)
    assert seen == [(260, 400, 3)]
    assert result.photos[0].scores["psnr"] == pytest.approx(20 * math.log10(1 / 0.6), abs=1e-3)


def test_the_record_says_everything(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = evaluate_model(halve, sets, "gunet", out)
    record = json.loads((out / "scores.json").read_text())
    assert record["system"] == "halve"
    assert record["protocols"]["gunet"]["source"] == PROTOCOLS["gunet"].source
    assert "numpy" in record["versions"]
    one = record["sets"][0]
    assert (one["data"], one["n"], one["protocol"]) == ("one", 3, "gunet")
    assert one["scores"] == [score.as_dict() for score in results[0].scores]
    assert set(one["scores"][0]) == {"metric", "protocol", "data", "n", "value", "spread", "input", "worse"}
    assert one["scores"][0]["input"] == "inf"
    assert [photo["name"] for photo in one["photos"]] == ["0", "1", "2"]
    assert one["photos"][1]["psnr"] == pytest.approx(results[0].photos[1].scores["psnr"], abs=1e-4)


def test_a_contact_sheet_for_each_set(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two = evaluate_model(halve, sets, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["one.jpg", "photos.csv", "scores.json", "two.jpg"]
    with Image.open(out / "one.jpg") as three_rows, Image.open(out / "two.jpg") as one_row:
        assert three_rows.width == one_row.width
        assert three_rows.height > 2 * one_row.height
        inside = [three_rows.getpixel((6 + place * (CELL + 6) + 12, 30 + 22 + 10)) for place in range(3)]
    assert [pixel[0] for pixel in inside] == pytest.approx([102, 51, 52], abs=1), "degraded | restored | clear"
    assert [(label, photo.pair.name) for label, photo in chosen(one)] == [
        ("best", "1"),
        ("median", "2"),
        ("worst", "0"),
    ]
    assert [label for label, _ in chosen(two)] == ["best"]


def test_a_bad_photo_is_reported_and_the_others_are_scored(sets: Path, tmp_path: Path) -> None:
    (sets / "one" / "hazy" / "1.png").write_text("not a picture")
    save(sets / "one" / "clear" / "2.png", np.zeros((20, 30, 3)))
    (one, two) = evaluate_model(halve, sets, out=tmp_path / "out")
    assert [photo.pair.name for photo in one.photos] == ["0"]
    assert set(one.failed) == {"1", "2"}
    assert str(sets / "one" / "hazy" / "1.png") in one.failed["1"]
    assert "24 x 20" in one.failed["2"]
    assert "30 x 20" in one.failed["2"]
    assert not two.failed
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["sets"][0]["failed"] == one.failed


def test_a_set_where_everything_fails_has_no_score(sets: Path, tmp_path: Path) -> None:
    def refuse(picture: np.ndarray) -> np.ndarray:
        raise BadImage("will not")

    results = evaluate_model(refuse, sets, out=tmp_path / "out")
    assert [result.scores for result in results] == [[], []]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photos.csv", "scores.json"]
    assert "3" in rendered(score_table(results))


def test_a_missing_extra_is_no_bad_photo(sets: Path) -> None:
    def lacks(picture: np.ndarray) -> np.ndarray:
        raise MissingExtra("x", "evaluate", "this")

    with pytest.raises(MissingExtra):
        evaluate_model(lacks, sets)


def test_a_bug_in_a_restorer_is_not_hidden(sets: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate_model(lambda picture: picture / (1 // 0), sets)


def test_errors_come_before_work(sets: Path, tmp_path: Path) -> None:
    calls: list[Any] = []

    def count(picture: np.ndarray) -> np.ndarray:
        calls.append(1)
        return picture

    with pytest.raises(UnknownName, match="protocol"):
        evaluate_model(count, sets, "rbg")
    save(sets / "two" / "hazy" / "lone.png", np.zeros((20, 20, 3)))
    with pytest.raises(BadFolder, match="lone"):
        evaluate_model(count, sets)
    (sets / "two" / "hazy" / "lone.png").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFolder, match="file"):
        evaluate_model(count, sets, out=tmp_path / "file" / "out")
    assert not calls


def rendered(table: Table) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_fits_a_terminal(sets: Path) -> None:
    text = rendered(score_table(evaluate_model(halve, sets), title="halved"))
    (row,) = [line.split() for line in text.splitlines() if line.strip().startswith("one")]
    psnr = (20 * math.log10(255 / 51), 20 * math.log10(255), 20 * math.log10(255 / 2))
    assert row[:6] == ["one", "3", f"{np.mean(psnr):.2f}", "±", f"{np.std(psnr, ddof=1):.2f}", "inf"]
    assert row[-1] == "1", "how many got worse"
    assert "rgb" in text
    assert "halved" in text


def test_progress_is_called_for_every_photo(sets: Path) -> None:
    calls: list[tuple[str, str]] = []
    evaluate_model(halve, sets, progress=lambda name, pair: calls.append((name, pair.name)))
    assert calls == [("one", "0"), ("one", "1"), ("one", "2"), ("two", "0")]


def test_finished_outputs_of_another_system(sets: Path, tmp_path: Path) -> None:
    pairs = find_pairs(sets / "one")
    for pair in pairs[:2]:
        save(tmp_path / "theirs" / f"{pair.name}.PNG", np.full((20, 24, 3), 51 / 255))
    with pytest.raises(BadFolder, match=r"1 of 3 outputs.*'2'"):
        outputs_from_folder(tmp_path / "theirs", pairs)
    save(tmp_path / "theirs" / "2.png", np.full((20, 24, 3), 51 / 255))
    theirs = score_set("one", pairs, outputs_from_folder(tmp_path / "theirs", pairs), PROTOCOLS["rgb"])
    ours = evaluate_model(halve, sets / "one")[0]
    assert [s.value for s in theirs.scores] == pytest.approx([s.value for s in ours.scores], abs=1e-4)


def test_clear_photos_against_themselves(sets: Path, tmp_path: Path) -> None:
    pairs = clear_pairs(sets / "one" / "clear")
    (result,) = evaluate_model(lambda picture: picture * 0 + 0.5, {"clear": pairs})
    assert result.scores[0].n == 3
    assert result.scores[0].input == math.inf
    assert result.photos[1].scores["psnr"] == pytest.approx(-20 * math.log10(0.5 - 52 / 255), abs=1e-3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFolder, match="no pictures"):
        clear_pairs(tmp_path / "empty")


def test_a_score_is_never_a_bare_number() -> None:
    with pytest.raises(TypeError):
        Score(metric="psnr", value=30.0)  # type: ignore[call-arg]


def test_the_input_scores_what_it_is_known_to_score(shared_data: Path) -> None:
    """An anchor outside this code: the rainy photos themselves, as another harness measured them, in RGB and luma."""
    light = {"light": find_pairs(shared_data / "test" / "rain100")[17:]}
    assert light["light"][0].name.startswith("light/")
    for protocol, decibel in (("rgb", 26.21), ("rain-y", 27.57)):
        (result,) = evaluate_model(lambda picture: picture, light, protocol)
        assert result.scores[0].n == 17
        assert result.scores[0].value == pytest.approx(decibel, abs=0.015)
        assert result.scores[0].input == result.scores[0].value


INF = float("inf")


def photo(name: str, psnr: float, before: float, ssim: float = 0.8) -> PhotoScore:
    pair = Pair(Path(f"hazy/{name}.png"), Path(f"clear/{name}.png"), name)
    return PhotoScore(pair, {"psnr": psnr, "ssim": ssim}, {"psnr": before, "ssim": 0.7})


def result(name: str = "fogville", **failed: str) -> SetScores:
    photos = (photo("good", 30, 20), photo("bad", 12.34567, 15), photo("clear", INF, INF), photo("fair", 20, 20))
    return SetScores(name, PROTOCOLS["rgb"], photos, failed)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_worst_first() -> None:
    assert [one.pair.name for one in result().worst_first()] == ["bad", "fair", "good", "clear"]
    assert photo("x", 30, 20).gain("psnr") == 10
    assert photo("x", INF, 20).gain("psnr") == INF
    assert photo("x", INF, INF).gain("psnr") is None


def test_the_file_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "photos.csv"
    write_photos(
        path, [result(broken="hazy/broken.png: cut, off"), result("b")], {("fogville", "bad"): "fogville/1.jpg"}
    )
    lines = rows(path)
    assert tuple(lines[0]) == COLUMNS
    assert [(line["set"], line["rank"], line["photo"]) for line in lines[:5]] == [
        ("fogville", "1", "bad"),
        ("fogville", "2", "fair"),
        ("fogville", "3", "good"),
        ("fogville", "4", "clear"),
        ("fogville", "", "broken"),
    ]
    bad = lines[0]
    assert (bad["psnr"], bad["input_psnr"], bad["gain_psnr"]) == ("12.3457", "15", "-2.6543")
    assert (bad["ssim"], bad["input_ssim"], bad["gain_ssim"]) == ("0.8", "0.7", "0.1")
    assert (bad["protocol"], bad["degraded"], bad["clear"]) == ("rgb", "hazy/bad.png", "clear/bad.png")
    assert [line["page"] for line in lines[:2]] == ["fogville/1.jpg", ""]
    assert (lines[3]["psnr"], lines[3]["gain_psnr"]) == ("inf", "")
    assert lines[4]["failed"] == "hazy/broken.png: cut, off"
    assert lines[4]["psnr"] == ""
    assert [line["set"] for line in lines[5:]] == ["b"] * 4


def test_the_pages_of_an_earlier_evaluation(tmp_path: Path) -> None:
    assert pages_of(tmp_path / "photos.csv") == []
    out = tmp_path / "out"
    for place in (out / "set" / "1-a.jpg", out / "set" / "2-b.png", out / "lone.jpg", tmp_path / "set" / "mine.jpg"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    names = (
        "set/1-a.jpg",
        "set/gone.jpg",
        "set/2-b.png",
        "lone.jpg",
        "../set/mine.jpg",
        str(tmp_path / "set/mine.jpg"),
    )
    (out / "photos.csv").write_text("photo,page\n" + "".join(f"x,{name}\n" for name in names))
    assert pages_of(out / "photos.csv") == [out / "set" / "1-a.jpg"], "nothing else is ours to remove"
    (out / "photos.csv").write_bytes(b"\xff\xfe\x00page")
    assert pages_of(out / "photos.csv") == []


def test_the_table_shows_the_worst(tmp_path: Path) -> None:
    text = rendered(photo_table([result()], 2))
    lines = [line.split() for line in text.splitlines()]
    assert ["bad", "12.35", "15.00", "-2.65", "0.800", "0.700", "+0.100"] in lines
    assert "fair" in text
    assert "good" not in text
    assert "--photos" in text
    equal = SetScores("s", PROTOCOLS["rgb"], (photo("y", 20, 20.0001, 0.69999),))
    assert rendered(photo_table([equal], 3)).count("+0.00") == 2
    everything = rendered(photo_table([result()], None))
    assert "good" in everything
    assert "--photos" not in everything


def test_a_long_name_and_brackets_fit(tmp_path: Path) -> None:
    long = SetScores("[set]", PROTOCOLS["rgb"], (photo("[bold]" + "x" * 100, 20, 10), photo("y", 3, 1)))
    text = rendered(photo_table([long, long], 3))
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]xxx...xxxxxxxxx " in text
    assert text.count("[set]") == 2
    assert text.count("+10.00") == 2


@pytest.mark.parametrize("most", [1, 5])
def test_no_photo_no_line(most: int) -> None:
    empty = SetScores("none", PROTOCOLS["rgb"], (), {"a": "broken"})
    assert "none" not in rendered(photo_table([empty], most))
