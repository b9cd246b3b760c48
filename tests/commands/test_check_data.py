"""`fairweather check-data`: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fairweather import cli
from fairweather.data.audit import read_pixels
from fairweather.data.image_matching import relation
from fairweather.pairs import find_sets
from tests.data.conftest import write_photo
from tests.data.faults import hazed, lay_pairs, shifted, texture


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return lay_pairs(tmp_path / "set", range(2))


def check(*words: object) -> int:
    return cli.main(["check-data", *map(str, words), "--crop", "64"])


def test_a_clean_folder_is_code_0(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(pairs) == 0
    said = capsys.readouterr()
    assert f"{pairs}: 4 photos, 2 pairs in 1 set, 0 in no pair" in said.out
    assert said.out.endswith("0 errors, 0 warnings, 0 notes\n")
    assert said.err == ""


def test_warnings_are_code_0_and_errors_code_1(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(pairs / "clear" / "framed.png", np.pad(texture(5), ((9, 9), (0, 0), (0, 0))))
    write_photo(pairs / "hazy" / "framed.png", hazed(np.pad(texture(5), ((9, 9), (0, 0), (0, 0)))))
    assert check(pairs) == 0
    assert "warning: a border of one colour (2)\n    clear/framed.png: top 9, bottom 9 px\n" in capsys.readouterr().out
    write_photo(pairs / "hazy" / "1.png", hazed(texture(1))[:-8])
    for flags in ([], ["--fast"]):
        assert check(pairs, *flags) == 1
        said = capsys.readouterr().out
        assert "error: pairs of two sizes (1)" in said
        assert "    hazy/1.png, clear/1.png: 192 x 136 and 192 x 144" in said
        assert "    -> crop or resize one side, or remove the pair" in said
    assert "1 error, 0 warnings" in said


def test_damaged_files_do_not_stop_it(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    culprit = shifted(pairs.parent / "data")  # made below train/set
    for name, content in (("0", b""), ("1", b"no picture")):
        (pairs.parent / "data" / "train" / "set" / "hazy" / f"{name}.png").write_bytes(content)
        write_photo(pairs.parent / "data" / "train" / "set" / "clear" / f"{name}.png", texture(int(name)))
    assert check(pairs.parent / "data") == 1
    said = capsys.readouterr().out
    assert "error: cannot be read (2)" in said
    assert "0.png: the file is empty (0 bytes) (get it again from where it came)" in said
    assert f"{culprit.name}, train/set/clear/{culprit.name}: the degraded one is shifted 3.0 px left, 2.0 px up" in said


def test_json_holds_all_of_it(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10, 18):
        write_photo(pairs / "hazy" / f"{number}.png", texture(number)[:50])
        write_photo(pairs / "clear" / f"{number}.png", texture(number)[:50])
    assert check(pairs, "--fast", "--json", tmp_path / "found.json") == 0
    said = capsys.readouterr().out
    assert "... and 11 more (--all, --json)" in said
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["counts"] == {"errors": 0, "warnings": 16, "notes": 0}
    assert told["kinds"] == {"small": 16}
    assert told["sets"] == {"set": 10}
    assert set(told["findings"][0]) == {"kind", "severity", "files", "what", "remedy"}
    assert check(pairs, "--fast", "--all") == 0
    said = capsys.readouterr().out
    assert "more (--all" not in said
    assert said.count("192 x 50, the crop is 64") == 16


def test_test_photos_among_the_training_photos(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "test" / "x.jpg", texture(1))
    assert check(pairs, "--against", tmp_path / "test") == 1
    said = capsys.readouterr().out
    assert "error: the same picture on both sides of a split (1)" in said
    assert f"clear/1.png, {tmp_path / 'test' / 'x.jpg'}: in set and test (--against)" in said


def test_places_that_are_none(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere") == 1
    assert "is not a folder" in capsys.readouterr().err
    assert check(pairs, "--against", tmp_path / "nowhere") == 1
    assert check(pairs, "--json", tmp_path / "no" / "found.json") == 1
    assert "there is no folder" in capsys.readouterr().err


def test_real_fog_is_not_called_misaligned(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-data", str(shared_data / "test" / "nh_haze2")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nh_haze", "o_haze", "rain100", "sots_outdoor"])
def test_real_pairs_that_are_shifted_are(name: str, shared_data: Path) -> None:
    (_, pairs), *_ = find_sets(shared_data / "train" / name).items()
    for pair in pairs[:3]:
        degraded, clear = read_pixels(pair.degraded), read_pixels(pair.clear)
        assert not relation(degraded, clear).shifted
        found = relation(degraded[:, 1:], clear[:, :-1])
        assert found.shifted
        assert (found.right, found.down) == pytest.approx((-1, 0), abs=0.3)
        assert relation(degraded[:, ::-1], clear).flip == "mirrored"
