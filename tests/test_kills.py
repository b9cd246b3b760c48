"""A command that is killed while it writes leaves no half result, and the next one removes what was left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, model_folder
from tests.training.test_curves import run as made_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

KILLED = """
import os, signal, sys
count = {count}
def fatal(real):
    def call(*arguments, **named):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return call
os.replace, os.rename = fatal(os.replace), fatal(os.rename)
{prepared}
from fairweather import cli
sys.exit(cli.main({arguments!r}))
"""
"""A process that kills itself at its nth renaming."""


def killed(*arguments: object, count: int = 1, prepared: str = "") -> None:
    code = KILLED.format(count=count, arguments=[*map(str, arguments)], prepared=prepared)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def hidden(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


@pytest.fixture
def pairs(tmp_path: Path, photo: np.ndarray) -> Path:
    for side, pixels in (("hazy", photo // 2 + 100), ("clear", photo)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "pairs" / side / "one.png")
    return tmp_path / "pairs"


def plot(place: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "plot", made_run(place, 5, l1=2.0)


def check_data(place: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "check-data", pairs, "--json", place / "found.json"


def synthesize(place: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "synthesize", "haze", pairs / "clear", "-o", place


def evaluate(place: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "evaluate", "--model", model, "--data", pairs, "-o", place


@pytest.mark.parametrize("command", [plot, check_data, synthesize, evaluate])
def test_a_file_that_was_never_renamed_goes_with_the_next_command(
    command: Callable[[Path, Path, Path], tuple[object, ...]], pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    arguments = command(place, pairs, tiny_model)
    place.mkdir(exist_ok=True)
    before = sorted(place.iterdir())
    killed(*arguments)
    assert hidden(place), "it was not killed while it wrote"
    assert [path for path in place.iterdir() if path.name[0] != "."] == before
    assert cli.main([*map(str, arguments)]) == 0
    assert not hidden(tmp_path)
    assert set(place.iterdir()) > set(before)


def test_a_restored_photo_where_the_next_run_has_nothing_to_do(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    source, out = pairs / "hazy", tmp_path / "out"
    killed("restore", source, "-o", out, "--model", tiny_model)
    assert hidden(out)
    Image.new("RGB", (8, 8)).save(out / "one.png")
    assert cli.main(["restore", str(source), "-o", str(out), "--model", str(tiny_model)]) == 0
    assert not hidden(tmp_path)


@pytest.mark.parametrize("count", [1, 2], ids=["card.json", "the folder"])
def test_a_killed_export(count: int, tiny_model: Path, tmp_path: Path) -> None:
    killed("export", tiny_model, "-o", tmp_path / "model", count=count)
    assert [name for name in os.listdir(tmp_path) if name[0] == "."]
    assert not (tmp_path / "model").exists()
    assert cli.main(["export", str(tiny_model), "-o", str(tmp_path / "model")]) == 0
    assert os.listdir(tmp_path) == ["model"]
    assert model_folder.read_card(tmp_path / "model").name == "tiny"


@pytest.mark.parametrize("count", [2, 3])
def test_an_export_killed_while_it_replaces_a_model(
    count: int, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever renaming is the last, a whole model has the name, also where two names cannot be exchanged."""
    model = tmp_path / "model"
    assert cli.main(["export", str(tiny_model), "-o", str(model)]) == 0
    single_steps = "import fairweather.files; fairweather.files._exchange = lambda *_: False"
    killed("export", tiny_model, "-o", model, count=count + 1, prepared=single_steps)
    assert [name for name in os.listdir(tmp_path) if name[0] == "."]
    assert cli.main(["info", str(model)]) == 0, capsys.readouterr().err
    assert model_folder.read_card(model).name == "tiny"
    assert cli.main(["export", str(tiny_model), "-o", str(model)]) == 0
    assert os.listdir(tmp_path) == ["model"]


def test_a_killed_quantization(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scratch = tmp_path / "small", tmp_path / "scratch"
    scratch.mkdir()
    quick = f"import tempfile\ntempfile.tempdir = {str(scratch)!r}\n"
    quick += "from fairweather.deploy import cost\ncost.PATIENCE = 0"
    killed("quantize", tiny_model, "--method", "dynamic", "-o", out, prepared=quick)
    assert [name for name in os.listdir(tmp_path) if name[0] == "."]
    from fairweather.deploy import quantization

    monkeypatch.setattr(quantization, "COST_SECONDS", 0.0)
    assert cli.main(["quantize", str(tiny_model), "--method", "dynamic", "-o", str(out)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["scratch", "small"]
    assert not os.listdir(scratch)


def test_a_search_killed_in_the_middle_leaves_nothing_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    """Layers are tried in files; after a kill these lie where the next command removes them."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    prepared = f"""
import tempfile; tempfile.tempdir = {str(scratch)!r}
from fairweather.deploy import fallback
def search(layers, measure, *more):

    os.kill(os.getpid(), signal.SIGKILL)
fallback.search = search
"""
    killed("quantize", tiny_model, "--method", "dynamic", "-o", tmp_path / "small", prepared=prepared)
    assert not os.listdir(scratch)


def test_a_run_killed_before_its_record(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairweather.training import trainer

    out = tmp_path / "run"
    small = ["--data", pairs, "--steps", 1, "--crop", 32, "--workers", 0, "--hold-back", 0, "--no-tensorboard"]
    small += ["--generator", "unet", "--generator.levels", 2, "--generator.width", 4, "--device", "cpu"]
    arguments = ["train", "supervised", *small, "-o", out]
    killed(*arguments)
    assert hidden(out)
    assert not (out / "run.json").exists()
    monkeypatch.setattr(trainer, "export_model", lambda *_: None)
    assert cli.main([*map(str, arguments)]) == 0
    assert not hidden(tmp_path)
    assert (out / "run.json").is_file()
