"""No command writes over its inputs, and an output that cannot be written is one line that names the path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather import cli
from tests.video.conftest import make, pictures

Line = list[str]
LONG = "n" * 300
"""Longer than a name may be."""


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.roll(next(pictures(1, 64, 64)), 5 * seed, 1)
    assert cv2.imwrite(str(path), picture)
    return path


def within(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def photo_by_its_name(here: Path, model: Path) -> Line:
    put(here / "a.png")
    return ["restore", "a.png", "-o", "a.png", "--weather", "none"]


def photo_by_a_link(here: Path, model: Path) -> Line:
    put(here / "a.png")
    (here / "link.png").symlink_to("a.png")
    return ["restore", "a.png", "-o", "link.png", "--weather", "none"]


def photos_into_their_folder(here: Path, model: Path) -> Line:
    put(here / "in" / "a.png")
    return ["restore", "in/*.png", "-o", "in", "--weather", "none"]


def a_named_video_over_one_in_a_folder(here: Path, model: Path) -> Line:
    make(within(here / "in") / "a.gif", codec="gif", pixel_format="rgb8", count=2)
    make(within(here / "b") / "a.gif", codec="gif", pixel_format="rgb8", count=2)
    return ["restore", "in/a.gif", "b", "-o", "b", "--weather", "none"]


def video_by_its_name(here: Path, model: Path) -> Line:
    make(here / "a.mp4", count=2)
    return ["restore", "a.mp4", "-o", "a.mp4", "--weather", "none"]


def video_by_a_link(here: Path, model: Path) -> Line:
    make(here / "a.mp4", count=2)
    os.link(here / "a.mp4", here / "b.mp4")
    return ["restore", "a.mp4", "-o", "b.mp4", "--weather", "none"]


def video_over_another_input(here: Path, model: Path) -> Line:
    make(within(here / "in") / "a.mp4", count=2)
    make(within(here / "out") / "a.mp4", count=2)
    make(here / "out" / "b.mp4", count=2)
    return ["restore", "in/a.mp4", "out/a.mp4", "-o", "out", "--weather", "none"]


def frames_by_a_pattern(here: Path, model: Path) -> Line:
    for number in range(1, 4):
        put(here / "frames" / f"{number:05d}.png", number)
    return ["restore", "frames", "--video", "-o", "frames/%05d.png", "--weather", "none"]


def frames_by_another_pattern(here: Path, model: Path) -> Line:
    for number in range(1, 4):
        put(here / "frames" / f"{number:05d}.png", number)
    return ["restore", "frames", "--video", "-o", "frames/new%d.png", "--weather", "none"]


def frames_into_their_folder(here: Path, model: Path) -> Line:
    for number in range(1, 4):
        put(here / "frames" / f"{number}.png", number)
    (here / "link").symlink_to("frames")
    return ["restore", "frames", "--video", "-o", "link", "--weather", "none"]


def frames_that_are_links_to_the_inputs(here: Path, model: Path) -> Line:
    for number in range(1, 4):
        put(here / "frames" / f"{number}.png", number)
    (here / "out").mkdir()
    os.link(here / "frames" / "3.png", here / "out" / "00002.png")
    return ["restore", "frames", "--video", "-o", "out/%05d.png", "--weather", "none"]


def frames_as_one_of_them(here: Path, model: Path) -> Line:
    for number in range(1, 4):
        put(here / "frames" / f"{number}.webp", number)
    return ["restore", "frames", "--video", "-o", "frames/2.webp", "--weather", "none"]


def an_animation_by_a_pattern(here: Path, model: Path) -> Line:
    make(here / "00002.webp", codec="libwebp_anim", pixel_format="bgra", count=4)
    return ["restore", "00002.webp", "-o", "%05d.webp", "--weather", "none"]


def evaluate_into_the_photos(here: Path, model: Path) -> Line:
    put(here / "set" / "set-01.jpg")
    return ["evaluate", "--model", str(model), "--unpaired", "set", "-o", "set"]


def evaluate_into_a_side(here: Path, model: Path) -> Line:
    put(here / "set" / "hazy" / "a.png")
    put(here / "set" / "clear" / "a.png")
    return ["evaluate", "--model", str(model), "--data", "set", "-o", "set/hazy"]


def export_over_the_model(here: Path, model: Path) -> Line:
    shutil.copytree(model, here / "model")
    return ["export", "model", "-o", "model"]


def export_over_the_run(here: Path, model: Path) -> Line:
    shutil.copytree(model, here / "run" / "model")
    (here / "run" / "run.json").write_text("{}")
    return ["export", "run", "-o", "run"]


def export_over_the_photos(here: Path, model: Path) -> Line:
    shutil.copytree(model, here / "out")
    put(here / "out" / "photos" / "a.png")
    return ["export", str(model), "-o", "out", "--photos", "out/photos"]


def export_over_something_else(here: Path, model: Path) -> Line:
    put(here / "holiday" / "a.png")
    return ["export", str(model), "-o", "holiday"]


def quantize_over_the_model(here: Path, model: Path) -> Line:
    shutil.copytree(model, here / "model")
    return ["quantize", "model", "--method", "dynamic", "-o", "model"]


def quantize_over_the_photos(here: Path, model: Path) -> Line:
    shutil.copytree(model, here / "out")
    put(here / "out" / "photos" / "a.png")
    return ["quantize", str(model), "--method", "static", "--data", "out/photos", "-o", "out"]


def synthesize_by_its_name(here: Path, model: Path) -> Line:
    put(here / "a.png")
    return ["synthesize", "haze", "a.png", "-o", "a.png"]


def synthesize_by_a_link(here: Path, model: Path) -> Line:
    put(here / "a.png")
    os.link(here / "a.png", here / "b.png")
    return ["synthesize", "haze", "a.png", "-o", "b.png"]


def synthesize_over_another_input(here: Path, model: Path) -> Line:
    put(here / "one" / "a.png")
    put(here / "two" / "a.png", 3)
    return ["synthesize", "rain", "one", ".", "-o", "two"]


def synthesize_over_a_depth(here: Path, model: Path) -> Line:
    put(here / "clear" / "a.png")
    put(here / "depth" / "a_disparity.png")
    return ["synthesize", "haze", "clear/a.png", "--depth", "depth", "-o", "depth/a_disparity.png"]


def check_data_over_a_photo(here: Path, model: Path) -> Line:
    put(here / "set" / "hazy" / "a.png")
    put(here / "set" / "clear" / "a.png")
    return ["check-data", "set", "--json", "set/hazy/a.png"]


def plot_over_the_log(here: Path, model: Path) -> Line:
    (here / "run").mkdir()
    lines = "".join(f'{{"step": {step}, "loss": 1.0, "time": {step}}}\n' for step in range(1, 5))
    (here / "run" / "stats.jsonl").write_text(lines)
    (here / "curves.png").symlink_to("run/stats.jsonl")
    return ["plot", "run", "-o", "curves.png"]


def train_into_its_data(here: Path, model: Path) -> Line:
    for side in ("hazy", "clear"):
        put(here / "set" / side / "a.png")
    return ["train", "supervised", "--data", "set", "--out", "set", "--steps", "1"]


def train_where_its_data_is_replaced(here: Path, model: Path) -> Line:
    for side in ("hazy", "clear"):
        put(here / "run" / "model" / side / "a.png")
    return ["train", "supervised", "--data", "run/model", "--out", "run", "--steps", "1"]


def train_where_samples_go(here: Path, model: Path) -> Line:
    put(here / "run" / "samples" / "a.png")
    put(here / "clear" / "a.png")
    line = ["train", "cyclegan", "--degraded", "run/samples", "--clear", "clear", "--out", "run", "--steps", "1"]
    return [*line, "--crop", "32"]


def train_over_its_start(here: Path, model: Path) -> Line:
    for side in ("hazy", "clear"):
        put(here / "set" / side / "a.png")
    shutil.copytree(model, here / "run" / "model")
    return ["train", "supervised", "--data", "set", "--start", "run/model", "--out", "run", "--steps", "1"]


def train_over_something_else(here: Path, model: Path) -> Line:
    for side in ("hazy", "clear"):
        put(here / "set" / side / "a.png")
    put(here / "run" / "model" / "holiday.png")
    return ["train", "supervised", "--data", "set", "--out", "run", "--steps", "1"]


CASES = [
    *(photo_by_its_name, photo_by_a_link, photos_into_their_folder),
    a_named_video_over_one_in_a_folder,
    *(video_by_its_name, video_by_a_link, video_over_another_input),
    *(frames_by_a_pattern, frames_by_another_pattern, frames_into_their_folder, frames_that_are_links_to_the_inputs),
    *(frames_as_one_of_them, an_animation_by_a_pattern),
    *(evaluate_into_the_photos, evaluate_into_a_side),
    *(export_over_the_model, export_over_the_run, export_over_the_photos, export_over_something_else),
    *(quantize_over_the_model, quantize_over_the_photos),
    *(synthesize_by_its_name, synthesize_by_a_link, synthesize_over_another_input, synthesize_over_a_depth),
    *(check_data_over_a_photo, plot_over_the_log),
    *(train_into_its_data, train_where_its_data_is_replaced, train_where_samples_go, train_over_its_start),
    train_over_something_else,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_inputs_are_never_written_over(
    case: Callable[[Path, Path], Line],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = case(tmp_path, tiny_model)
    before = everything(tmp_path)
    for flags in ([], ["--overwrite"] if line[0] == "restore" else []):
        assert cli.main([*line, *flags]) == 1
        (error,) = (one for one in capsys.readouterr().err.splitlines() if one and "engine: " not in one)
        assert "choose another" in error
        out = next(word for flag, word in pairwise(line) if flag in ("-o", "--out", "--json"))
        assert out.partition("%")[0] in error
        assert everything(tmp_path) == before


def test_every_command_with_an_output_is_walked_through() -> None:
    walked = {case.__name__.partition("_")[0] for case in CASES}
    assert {"evaluate", "export", "quantize", "synthesize", "check", "plot", "train"} < walked
    assert set(cli.COMMANDS) == {
        *("restore", "train", "plot", "synthesize", "evaluate", "export", "quantize", "check-data"),
        *("serve", "models", "info"),  # no output that the caller names
    }


def prepared(here: Path, model: Path) -> None:
    for side in ("hazy", "clear"):
        put(here / "set" / side / "a.png")
        put(here / "frames" / "1.png")
    make(here / "a.mp4", count=2)
    (here / "run").mkdir()
    (here / "run" / "stats.jsonl").write_text('{"step": 1, "loss": 1, "time": 1}\n{"step": 2, "loss": 1, "time": 2}\n')
    shutil.copytree(model, here / "model")
    (here / "file").write_text("a file")


OUTPUTS: dict[str, tuple[Line, str]] = {
    "photo": (["restore", "frames/1.png", "--weather", "none", "-o"], "/x.png"),
    "photos": (["restore", "frames", "--weather", "none", "-o"], "/deep"),
    "video": (["restore", "a.mp4", "--weather", "none", "--end", "0.05", "-o"], "/x.mp4"),
    "copied video": (["restore", "a.mp4", "--weather", "none", "-o"], "/x.mp4"),
    "video to a folder": (["restore", "a.mp4", "--weather", "none", "-o"], "/deep/"),
    "frames": (["restore", "a.mp4", "--weather", "none", "-o"], "/%05d.png"),
    "frames to a folder": (["restore", "frames", "--video", "--weather", "none", "-o"], "/deep"),
    "evaluate": (["evaluate", "--model", "model", "--data", "set", "-o"], "/deep"),
    "unpaired": (["evaluate", "--model", "model", "--unpaired", "frames", "-o"], "/deep"),
    "export": (["export", "model", "-o"], "/deep"),
    "quantize": (["quantize", "model", "--method", "dynamic", "-o"], "/deep"),
    "synthesize": (["synthesize", "haze", "frames", "-o"], "/deep"),
    "check-data": (["check-data", "set", "--json"], "/found.json"),
    "plot": (["plot", "run", "-o"], "/curves.png"),
    "train": (["train", "supervised", "--data", "set", "--crop", "32", "--steps", "1", "--out"], "/run"),
}


@pytest.mark.parametrize("place", ["file", "locked", LONG], ids=["file", "locked", "long"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_made_is_one_line(
    name: str,
    place: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a folder that is a file, in one that cannot be written, and under a name that is too long."""
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path, tiny_model)
    if place == "locked":
        (tmp_path / "locked").mkdir(mode=0o500)
        if os.access(tmp_path / "locked", os.W_OK):
            pytest.skip("the superuser may write everywhere")
    line, below = OUTPUTS[name]
    before = everything(tmp_path)
    assert cli.main([*line, f"{place}{below}"]) == 1
    errors = [one for one in capsys.readouterr().err.splitlines() if "error: " in one or one.startswith("not ")]
    assert len(errors) == 1, errors
    assert place in errors[0]
    assert "choose another" in errors[0]
    assert everything(tmp_path) == before
