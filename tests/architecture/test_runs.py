"""Every reference run in runs/ is one that this code understands, and says on top what it takes and what it gives."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUNS = sorted((ROOT / "runs").rglob("*.toml"))


def test_there_are_runs() -> None:
    assert "dehaze.toml" in {path.name for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT / "runs")))
def test_a_run_is_understood(path: Path) -> None:
    from fairweather.data.mixture import MixtureSettings
    from fairweather.training.config import collect_tables, complete_config
    from fairweather.training.export_run import build_recipe
    from fairweather.training.trainer import check_crop

    settings = complete_config(*collect_tables(None, path, {}))
    assert settings.data.crop
    check_crop(build_recipe(settings), settings.data.crop, settings)
    # The same words that training will read; an unknown key is an error there.
    MixtureSettings.from_table({"sources": settings.data.sources, "augment": settings.data.augment})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT / "runs")))
def test_a_run_takes_two_steps(path: Path) -> None:
    """With the file's own networks and precision, on two crops of noise (or one, where the file says so), the smallest
    from 64 px that they take: at 256 px ResNet9s and VGG-19 would need a minute."""
    import torch

    from fairweather.recipes import Batch
    from fairweather.training.config import collect_tables, complete_config
    from fairweather.training.export_run import build_recipe
    from fairweather.training.optimization import TrainingEngine

    settings = complete_config(*collect_tables(None, path, {}))
    torch.manual_seed(0)
    recipe = build_recipe(settings)
    engine = TrainingEngine(recipe, precision=settings.run.precision)
    assert settings.run.batch
    assert settings.data.crop
    side = min(settings.data.crop, max(64, int(recipe.restorer_network().multiple_of)))  # type: ignore[arg-type]
    shape = (min(2, settings.run.batch), 3, side, side)
    before = {name: [p.detach().clone() for p in group.parameters()] for name, group in engine.optimizer_groups.items()}
    for at in range(2):
        terms = engine.step(Batch(torch.rand(shape), torch.rand(shape)), at / 2)
        assert terms
        assert all(torch.isfinite(term) for term in terms.values())
    for name, group in engine.optimizer_groups.items():
        moved = [not torch.equal(a, b) for a, b in zip(before[name], group.parameters(), strict=True)]
        # A bias ahead of a norm has no gradient but rounding; everything else has.
        assert sum(moved) > 0.6 * len(moved), f"{path.name}: {name} hardly learns"


def test_every_system_has_its_two_files() -> None:
    names = {path.name for path in RUNS if path.parent.name == "runs"}
    for system in ("cyclegan", "pix2pix", "claritygan", "hazeheal", "derain"):
        assert {f"{system}.toml", f"{system}-laptop.toml"} <= names


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT / "runs")))
def test_a_run_says_what_it_takes(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "time", "data", "expected"):
        assert any(line.startswith(f"# {word} ") for line in header), f"{path.name}: no {word} in the header"
    assert not re.search(r"\b(TODO|TIME)\b", " ".join(header)), f"{path.name}: a blank was not filled in"
    command = next(line for line in header if line.startswith("# command"))
    assert f"--config {path.relative_to(ROOT)}" in command


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "runs/gpu.sh pack DATA PACK"),
        (["pack", "data"], 2, "runs/gpu.sh pack DATA PACK"),
        (["train", "pack"], 2, "runs/gpu.sh train PACK RUN"),
        (["try", "pack"], 2, "runs/gpu.sh try PACK RUN"),
        (["pack", "nowhere", "out"], 1, "nowhere is not a folder"),
        (["train", "nowhere", "run"], 1, "nowhere is no pack"),
        (["try", "nowhere", "run"], 1, "nowhere is no pack"),
    ],
)
def test_the_script_for_a_gpu_says_what_it_misses(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    ran = subprocess.run(["bash", ROOT / "runs" / "gpu.sh", *words], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert told in ran.stderr
    assert not list(tmp_path.iterdir())
