"""The command line: help, unknown commands, exit codes, completion scripts. Commands: tests/commands/."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from importlib import import_module

import pytest

import fairweather
from fairweather import cli
from fairweather.commands import models as models_command
from fairweather.errors import BadFolder

FAIRWEATHER = [sys.executable, "-m", "fairweather"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FAIRWEATHER, *arguments], capture_output=True, text=True, timeout=60)


def test_the_page_names_every_command_recipe_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    from fairweather.recipes import RECIPES

    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"  fairweather {command} " in page
    assert all(recipe in page for recipe in RECIPES)
    assert max(map(len, page.splitlines())) <= 110
    for code in (0, 1, 2, 3, 130):
        assert f"{code} " in page.splitlines()[-1]
        assert f"\n    {code:<4} " in (cli.__doc__ or "")


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ([], 2, "", "fairweather restore"),
        (["restroe", "a.jpg"], 2, "", "unknown command 'restroe', did you mean 'restore'?"),
        (["--version"], 0, f"fairweather {fairweather.__version__}\n", ""),
        (["models", "--tyro-print-completion", "bash"], 0, "complete", ""),
    ],
)
def test_without_a_command_to_run(
    arguments: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert out in captured.out
    assert err in captured.err
    assert (captured.out == "") == (out == "")


def test_help_loads_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; before = set(sys.modules)\nfrom fairweather.cli import main; main(['--help'])\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stderr))  # our own list, printed a line above
    assert "fairweather" in loaded
    assert not loaded & {"numpy", "tyro", "rich", "torch", "cv2", "logging", "argparse", "PIL", "tomllib", "difflib"}
    # Processor time, so that a busy machine does not fail it; on an idle one it is the time that a person waits.
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.15, (
        f"fairweather --help takes {min(times):.2f} s of processor time; 0.06 s is what it should be"
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_function_and_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(f"fairweather.commands.{cli.COMMANDS[command]}")
    assert getattr(module, command.replace("-", "_")).__doc__
    assert cli.main([command, "--help"]) == 0
    assert f"fairweather {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_misspelt_flag_is_a_usage_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--no-such-flag"]) == 2
    assert capsys.readouterr().err


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def models() -> None:
        raise error

    return models


def test_an_error_is_one_line_and_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models_command, "models", raising(BadFolder("x is missing:\nmake it")))
    assert cli.main(["models"]) == 1
    assert capsys.readouterr().err == "fairweather: error: x is missing: make it\n"


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models_command, "models", raising(ModuleNotFoundError("no", name="torch.nn")))
    assert cli.main(["models"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'fairweather[train]'" in error


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_command, "models", raising(ModuleNotFoundError("no", name="fairweather.gone")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["models"])
    monkeypatch.setattr(models_command, "models", raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["models"])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models_command, "models", raising(KeyboardInterrupt()))
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "fairweather: interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*FAIRWEATHER, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (141, 1)  # 1 where it was rich that noticed


def test_the_log_goes_to_stderr_and_leaves_no_handler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("fairweather")
    before = list(logger.handlers), logger.level

    def models() -> int:
        logging.getLogger("fairweather").info("engine: %s", "openvino")
        return 7

    monkeypatch.setattr(models_command, "models", models)
    assert cli.main(["models"]) == 7
    captured = capsys.readouterr()
    assert captured.err == "fairweather: engine: openvino\n"
    assert captured.out == ""
    assert (list(logger.handlers), logger.level) == before
