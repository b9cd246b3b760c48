"""Which file becomes which: files, folders, patterns, and what is refused before work starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.restoring.folder import Job, plan, run
from tests.restoring.places import negative, pairs, put


def test_one_file_without_out(here: Path) -> None:
    put(here / "a.png")
    assert plan(["a.png"]) == [Job(Path("a.png"), Path("restored/a.png"))]
    assert not Path("restored").exists()


def test_out_is_a_file_for_one_file_only(here: Path) -> None:
    put(here / "a.png", here / "b.png", here / "d" / "c.png")
    assert pairs(plan(["a.png"], "x/y.JPG")) == {("a.png", "x/y.JPG")}
    assert pairs(plan(["a.png"], "y.v2")) == {("a.png", "y.v2/a.png")}
    assert pairs(plan(["a.png", "b.png"], "y.jpg")) == {("a.png", "y.jpg/a.png"), ("b.png", "y.jpg/b.png")}
    assert pairs(plan(["d"], "y.jpg")) == {("d/c.png", "y.jpg/c.png")}
    (here / "album.jpg").mkdir()
    assert pairs(plan(["a.png"], "album.jpg")) == {("a.png", "album.jpg/a.png")}


def test_folder_is_searched_and_its_structure_kept(here: Path) -> None:
    put(here / "in" / "a.png", here / "in" / "deep" / "er" / "b.JPG", here / "in" / ".hidden" / "c.png")
    put(here / "in" / ".d.png", here / "in" / "e.txt")
    (here / "in" / "gone.png").symlink_to("nowhere.png")
    expected = {("in/a.png", "out/a.png"), ("in/deep/er/b.JPG", "out/deep/er/b.JPG")}
    assert pairs(plan(["in"], "out")) == expected
    assert pairs(plan(["in/"], "out/")) == expected


def test_named_file_is_taken_whatever_its_suffix(here: Path) -> None:
    put(here / "scan.dat", here / ".hidden.png")
    expected = {("scan.dat", "restored/scan.dat"), (".hidden.png", "restored/.hidden.png")}
    assert pairs(plan(["scan.dat", ".hidden.png"])) == expected


def test_patterns_are_expanded_here(here: Path) -> None:
    put(here / "t" / "a.png", here / "t" / "b.jpg", here / "t" / "u" / "c.png", here / "t" / "n.txt")
    assert pairs(plan(["t/*.png"], "out")) == {("t/a.png", "out/a.png")}
    assert pairs(plan(["t/[ab].*"], "out")) == {("t/a.png", "out/a.png"), ("t/b.jpg", "out/b.jpg")}
    assert pairs(plan(["t/**/*.png"], "out")) == {("t/a.png", "out/a.png"), ("t/u/c.png", "out/u/c.png")}
    everything = {("t/a.png", "out/a.png"), ("t/b.jpg", "out/b.jpg"), ("t/u/c.png", "out/u/c.png")}
    assert pairs(plan(["t/*"], "out")) == everything
    assert pairs(plan(["t/**"], "out")) == everything
    assert pairs(plan([here / "?" / "a.*"], "out")) == {(f"{here}/t/a.png", "out/t/a.png")}


def test_a_name_with_brackets_is_a_name_first(here: Path) -> None:
    put(here / "IMG[1].png", here / "IMG1.png")
    assert pairs(plan(["IMG[1].png"], "out")) == {("IMG[1].png", "out/IMG[1].png")}


@pytest.mark.parametrize("given", [".", "*", "**/*.png", "./**"])
def test_earlier_results_are_no_inputs(given: str, here: Path) -> None:
    put(here / "a.png", here / "sub" / "b.png")
    first = plan([given])
    run(first, negative)
    assert {job.source.name for job in first} == {"a.png", "b.png"}
    assert plan([given]) == first
    assert run(plan([given]), negative).skipped == 2


def test_results_may_be_inputs_of_another_run(here: Path) -> None:
    put(here / "restored" / "a.png")
    assert pairs(plan(["restored"], "again")) == {("restored/a.png", "again/a.png")}
    assert pairs(plan(["restored/*.png"], ".")) == {("restored/a.png", "a.png")}


def test_the_same_input_twice_is_one_job(here: Path) -> None:
    put(here / "a.png")
    assert len(plan(["a.png", "./a.png", "*.png", here / "a.png"])) == 1


@pytest.mark.parametrize("out", [".", "./a.png", "sub/..", "link", "hard.png"])
def test_nothing_is_written_over_its_own_input(out: str, here: Path) -> None:
    put(here / "a.png")
    (here / "sub").mkdir()
    (here / "link").symlink_to(".")
    os.link("a.png", "hard.png")
    with pytest.raises(BadFolder, match=r"written over the input a\.png"):
        plan(["a.png"], out)


def test_nothing_is_written_over_another_input(here: Path) -> None:
    put(here / "x" / "a.png", here / "y" / "a.png")
    with pytest.raises(BadFolder, match=r"y/a\.png would be written over the input y/a\.png"):
        plan(["x/a.png", "y/a.png"], "y")
    with pytest.raises(BadFolder, match="written over the input"):
        plan(["x"], "x")


def test_two_inputs_for_one_destination_are_both_named(here: Path) -> None:
    put(here / "x" / "a.png", here / "y" / "a.png", here / "y" / "b.png")
    with pytest.raises(BadFolder, match=r"x/a\.png and y/a\.png would both be written to out/a\.png"):
        plan(["x", "y"], "out")
    assert not Path("out").exists()


def test_inputs_that_are_not_there(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(BadImage, match=r"none\.png: no such file"):
        plan(["none.png"])
    with pytest.raises(BadFolder, match="no pictures"):
        plan(["empty"])
    with pytest.raises(BadFolder, match="no picture matches"):
        plan(["empty/*.png"])
    with pytest.raises(BadSettings, match="nothing to restore"):
        plan([])


def test_places_that_cannot_take_results(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here / "a.png", here / "file")
    (here / "full" / "a.png").mkdir(parents=True)
    with pytest.raises(BadFolder, match=r"file.*: cannot be made .a part of that path is a file"):
        plan(["a.png"], "file")
    with pytest.raises(BadFolder, match=r"file.*: cannot be made .a part of that path is a file"):
        plan(["a.png"], "file/deeper")
    with pytest.raises(BadFolder, match="is a folder, where the result"):
        plan(["a.png"], "full")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadFolder, match="cannot be written into"):
        plan(["a.png"], "out/deeper")
