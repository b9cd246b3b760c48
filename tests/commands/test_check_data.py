"""`fairweather check-data`: output, exit codes and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fairweather import cli
from tests.data.conftest import write_photo
from tests.data.faults import hazed, shifted, texture, write_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "set", range(2))


def check(*words: object) -> int:
    return cli.main(["check-data", *map(str, words), "--crop", "64"])


def test_clean_data_gives_code_0(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(pairs) == 0
    printed = capsys.readouterr()
    assert f"{pairs}: 4 photos, 2 pairs in 1 set, 0 in no pair" in printed.out
    assert printed.out.endswith("0 errors, 0 warnings, 0 notes\n")
    assert printed.err == ""


def test_warnings_give_code_0_and_errors_code_1(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    framed = np.pad(texture(5), ((9, 9), (0, 0), (0, 0)))
    write_photo(pairs / "clear" / "framed.png", framed)
    write_photo(pairs / "hazy" / "framed.png", hazed(framed))
    assert check(pairs) == 0
    assert "warning: a border of one colour (2)\n    clear/framed.png: top 9, bottom 9 px\n" in capsys.readouterr().out
    write_photo(pairs / "hazy" / "1.png", hazed(texture(1))[:-8])
    for flags in ([], ["--fast"]):
        assert check(pairs, *flags) == 3
        printed = capsys.readouterr().out
        assert "error: pairs of two sizes (1)" in printed
        assert "    hazy/1.png, clear/1.png: 192 x 136 and 192 x 144" in printed
        assert "    -> crop or resize one side, or remove the pair" in printed
    assert "1 error, 0 warnings" in printed


def test_broken_files_and_other_findings_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    culprit = shifted(tmp_path)  # in train/set
    for name, content in (("0", b""), ("1", b"no picture")):
        (tmp_path / "train" / "set" / "hazy" / f"{name}.png").write_bytes(content)
        write_photo(tmp_path / "train" / "set" / "clear" / f"{name}.png", texture(int(name)))
    assert check(tmp_path) == 3
    printed = capsys.readouterr().out
    assert "error: cannot be read (2)" in printed
    assert "0.png: the file is empty (0 bytes)" in printed
    pair = f"{culprit.name}, train/set/clear/{culprit.name}"
    assert f"{pair}: the degraded one is shifted 3.0 px left, 2.0 px up" in printed


def test_json_has_all_findings(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10, 18):
        for side in ("hazy", "clear"):
            write_photo(pairs / side / f"{number}.png", texture(number)[:50])
    assert check(pairs, "--fast", "--json", tmp_path / "found.json") == 0
    assert "... and 11 more (--all, --json)" in capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["counts"] == {"errors": 0, "warnings": 16, "notes": 0}
    assert written["kinds"] == {"small": 16}
    assert written["sets"] == {"set": 10}
    assert len(written["findings"]) == 16
    assert check(pairs, "--fast", "--all") == 0
    printed = capsys.readouterr().out
    assert "more (--all" not in printed
    assert printed.count("192 x 50, the crop is 64") == 16


def test_test_photos_among_the_training_photos(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "test" / "x.jpg", texture(1))
    assert check(pairs, "--against", tmp_path / "test") == 3
    printed = capsys.readouterr().out
    assert "error: the same picture on both sides of a split (1)" in printed
    assert f"clear/1.png, {tmp_path / 'test' / 'x.jpg'}: in set and test (--against)" in printed


def test_missing_folders(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere") == 1
    assert "is not a folder" in capsys.readouterr().err
    assert check(pairs, "--against", tmp_path / "nowhere") == 1
    assert check(pairs, "--json", tmp_path / "no" / "found.json") == 1
    assert "there is no folder" in capsys.readouterr().err


def test_real_fog_is_not_reported_as_shifted(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-data", str(shared_data / "test" / "nh_haze2")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
