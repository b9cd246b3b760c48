"""`fairweather synthesize`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli


@pytest.fixture
def clear(tmp_path: Path, photo: np.ndarray) -> Path:
    (tmp_path / "set" / "clear").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "set" / "clear" / "one.png")
    Image.fromarray(photo[:, ::-1]).save(tmp_path / "set" / "clear" / "two.png")
    return tmp_path / "set" / "clear"


@pytest.mark.parametrize("kind", ["haze", "rain"])
def test_the_seed_determines_the_weather(kind: str, clear: Path, tmp_path: Path) -> None:
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert cli.main(["synthesize", kind, str(clear), "-o", str(tmp_path / out), "--seed", seed]) == 0
    made = {out: (tmp_path / out / "one.png").read_bytes() for out in "abc"}
    assert made["a"] == made["b"] != made["c"]
    assert made["a"] != (clear / "one.png").read_bytes()


def test_ranges_are_flags(clear: Path, tmp_path: Path) -> None:
    means = []
    for density in ("0.01", "5"):
        out = tmp_path / density
        flags = ["--haze.density", density, density, "--haze.airlight", "1", "1", "--haze.noise", "0"]
        assert cli.main(["synthesize", "haze", str(clear / "one.png"), "-o", str(out), *flags]) == 0
        means.append(np.asarray(Image.open(out / "one.png")).mean())
    assert means[1] > means[0] + 30


def test_failures(clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clear / "three.jpg").write_text("not a photo")
    assert cli.main(["synthesize", "haze", str(clear), "-o", str(tmp_path / "out")]) == 3
    assert "three.jpg" in capsys.readouterr().err
    assert (tmp_path / "out" / "two.png").exists()
    assert cli.main(["synthesize", "snow", str(clear), "-o", "x"]) == 2
    assert cli.main(["synthesize", "haze", "-o", "x"]) == 2
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert cli.main(["synthesize", "haze", str(clear), "-o", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'file'}" in error
    assert "Traceback" not in error
