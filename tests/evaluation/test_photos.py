"""Photo by photo, worst first: photos.csv and the table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from fairweather.evaluation.metrics import PROTOCOLS
from fairweather.evaluation.report import COLUMNS, pages_of, photo_table, psnr_gain, worst_first, write_photos
from fairweather.evaluation.scores import PhotoScore, SetScores
from fairweather.pairs import Pair

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
    assert [one.pair.name for one in worst_first(result())] == ["bad", "fair", "good", "clear"]
    assert psnr_gain(photo("x", 30, 20), "psnr") == 10
    assert psnr_gain(photo("x", INF, 20), "psnr") == INF
    assert psnr_gain(photo("x", INF, INF), "psnr") is None


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


def rendered(results: list[SetScores], most: int | None) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(photo_table(results, most))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_shows_the_worst(tmp_path: Path) -> None:
    text = rendered([result()], 2)
    lines = [line.split() for line in text.splitlines()]
    assert ["bad", "12.35", "15.00", "-2.65", "0.800", "0.700", "+0.100"] in lines
    assert "fair" in text
    assert "good" not in text
    assert "--photos" in text
    equal = SetScores("s", PROTOCOLS["rgb"], (photo("y", 20, 20.0001, 0.69999),))
    assert rendered([equal], 3).count("+0.00") == 2
    everything = rendered([result()], None)
    assert "good" in everything
    assert "--photos" not in everything


def test_a_long_name_and_brackets_fit(tmp_path: Path) -> None:
    long = SetScores("[set]", PROTOCOLS["rgb"], (photo("[bold]" + "x" * 100, 20, 10), photo("y", 3, 1)))
    text = rendered([long, long], 3)
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]xxx...xxxxxxxxx " in text
    assert text.count("[set]") == 2
    assert text.count("+10.00") == 2


@pytest.mark.parametrize("most", [1, 5])
def test_no_photo_no_line(most: int) -> None:
    empty = SetScores("none", PROTOCOLS["rgb"], (), {"a": "broken"})
    assert "none" not in rendered([empty], most)
