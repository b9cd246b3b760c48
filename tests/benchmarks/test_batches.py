from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import write_photo


def test_both_ways_are_measured_source_by_source(
    tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    import batches

    for number in range(3):
        write_photo(tmp_path / "clear" / f"{number}.png", np.roll(photo, 9 * number, axis=1))
    config = tmp_path / "run.toml"
    sources = [f'[[data.sources]]\nkind = "{kind}"\npath = "clear"\n' for kind in ("clear", "synthetic")]
    config.write_text('[recipe]\nname = "supervised"\n[data]\ncrop = 32\n' + "".join(sources))
    words = ["--config", str(config), "--data", str(tmp_path), "--batch", "2", "--seconds", "0.05", "--sources"]
    assert batches.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| all sources", "| clear: clear", "| synthetic (haze): clear"]
    for row in rows:
        assert all(float(value) > 0 for value in row.strip("| ").split(" | ")[1:])
