"""Every reference run in runs/ is one that this code understands, and says on top what it takes and what it gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUNS = sorted((ROOT / "runs").glob("*.toml"))


def test_there_are_runs() -> None:
    assert "dehaze.toml" in {path.name for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_a_run_is_understood(path: Path) -> None:
    from fairweather.recipes import RECIPES
    from fairweather.training.conduct import build, check_crop
    from fairweather.training.datasets import MixtureSettings
    from fairweather.training.gather import complete, gather

    settings = complete(*gather(None, path, {}))
    kind = RECIPES[settings.recipe.name]
    assert settings.data.crop
    check_crop(kind(lambda: build(settings)), settings.data.crop, settings)
    # The same words that training will read; an unknown key is an error there.
    MixtureSettings.from_table({"sources": settings.data.sources, "augment": settings.data.augment})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_a_run_says_what_it_takes(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "time", "data", "expected"):
        assert any(line.startswith(f"# {word} ") for line in header), f"{path.name}: no {word} in the header"
    command = next(line for line in header if line.startswith("# command"))
    assert f"--config runs/{path.name}" in command


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "runs/gpu.sh pack DATA PACK"),
        (["pack", "data"], 2, "runs/gpu.sh pack DATA PACK"),
        (["train", "pack"], 2, "runs/gpu.sh train PACK RUN"),
        (["pack", "nowhere", "out"], 1, "nowhere is not a folder"),
        (["train", "nowhere", "run"], 1, "nowhere is no pack"),
    ],
)
def test_the_script_for_a_gpu_says_what_it_misses(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    ran = subprocess.run(["bash", ROOT / "runs" / "gpu.sh", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert told in ran.stderr
    assert not list(tmp_path.iterdir())
