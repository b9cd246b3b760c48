"""`fairweather plot`: where the picture goes and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairweather import cli, images
from tests.training.test_curves import run


def test_the_picture_lies_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run", 5, l1=2.0)
    assert cli.main(["plot", str(folder)]) == 0
    assert str(folder / "losses.png") in capsys.readouterr().out
    assert images.read(folder / "losses.png").pixels.shape[2] == 3
    assert sorted(path.name for path in folder.iterdir()) == ["losses.png", "stats.jsonl"]


def test_several_runs_and_a_name(tmp_path: Path) -> None:
    folders = [str(run(tmp_path / name, 5, l1=2.0)) for name in ("one", "two")]
    assert cli.main(["plot", *folders, "-o", str(tmp_path / "both.pdf")]) == 0
    assert (tmp_path / "both.pdf").read_bytes().startswith(b"%PDF")
    assert not list(tmp_path.glob("*/losses.png"))


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", str(tmp_path)]) == 1
    assert "give a run folder" in capsys.readouterr().err
    assert cli.main(["plot"]) == 2
    assert "name one or more" in capsys.readouterr().err


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["plot", str(run(tmp_path / "run", 2, l1=2.0))]) == 1
    assert "pip install 'fairweather[train]'" in capsys.readouterr().err
