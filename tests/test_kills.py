"""A command that is killed leaves no partial output, and the next one removes what is left.

`test_files.py` kills processes at every rename; here each command is stopped at its first one, and must remove what a
dead process left in its output folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, files, model_folder
from tests.training.test_curves import run as made_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def pairs(tmp_path: Path, photo: np.ndarray) -> Path:
    for side, pixels in (("hazy", photo // 2 + 100), ("clear", photo)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "pairs" / side / "one.png")
    return tmp_path / "pairs"


def restore(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "restore", pairs / "hazy", "-o", out, "--model", model


def plot(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "plot", made_run(out.parent / "run", 5, l1=2.0), "-o", out / "plot.png"


def check_data(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "check-data", pairs, "--json", out / "found.json"


def synthesize(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "synthesize", "haze", pairs / "clear", "-o", out


def evaluate(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "evaluate", "--model", model, "--data", pairs, "-o", out


def train(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    small = ("--steps", 1, "--crop", 32, "--workers", 0, "--hold-back", 0, "--no-tensorboard")
    generator = ("--generator", "unet", "--generator.levels", 2, "--generator.width", 4, "--device", "cpu")
    return "train", "supervised", "--data", pairs, *small, *generator, "-o", out


def export(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "export", model, "-o", out / "model"


def quantize(out: Path, pairs: Path, model: Path) -> tuple[object, ...]:
    return "quantize", model, "--method", "dynamic", "-o", out / "model"


@pytest.mark.parametrize("command", [restore, plot, check_data, synthesize, evaluate, train, export, quantize])
def test_a_stopped_command_leaves_nothing_and_the_next_removes_leftovers(
    command: Callable[[Path, Path, Path], tuple[object, ...]],
    pairs: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("fairweather.deploy.quantization.COST_SECONDS", 0.0, raising=False)  # a quick measurement
    out = tmp_path / "out"
    out.mkdir()
    arguments = [*map(str, command(out, pairs, tiny_model))]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            cli.main(arguments)
    assert not [path for path in out.rglob("*") if path.is_file()], "only a rename gives an output its name"

    process = subprocess.Popen(["true"])
    process.wait()
    (out / f".left.{files._machine()}-{process.pid}-0123abcd.part.jpg").touch()
    monkeypatch.setattr(files, "_swept", set())
    if command is train:
        from fairweather.training import trainer

        monkeypatch.setattr(trainer, "export_model", lambda *_: None)
    assert cli.main(arguments) == 0
    assert os.listdir(out)
    assert not list(tmp_path.rglob(".*"))


REPLACE = """
import os, shutil, signal, sys
from fairweather import files
renames = int(sys.argv[3])
def killing(*arguments, real=os.rename):
    global renames
    renames -= 1
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
os.rename = killing
files._exchange = lambda *_: False
with files.atomic_folder(sys.argv[1]) as made:
    shutil.copytree(sys.argv[2], made, dirs_exist_ok=True)
"""


@pytest.mark.parametrize("renames", [2, 3], ids=["before it is moved aside", "after"])
def test_a_model_whose_replacement_was_killed_still_opens(
    renames: int, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    done = subprocess.run([sys.executable, "-c", REPLACE, str(model), str(tiny_model), str(renames)])
    assert done.returncode == -9
    assert model.exists() == (renames == 2)
    assert cli.main(["info", str(model)]) == 0, capsys.readouterr().err
    assert model_folder.read_card(model).name == "tiny"
