"""`fairweather serve`: what it says when it cannot, and that it goes without a trace when it is told to."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from fairweather import cli
from tests.web.conftest import Server, served, web  # noqa: F401


def test_help_needs_no_extra(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfor name in ('gradio', 'fastapi', 'uvicorn', 'starlette'): sys.modules[name] = None\n"
        "from fairweather import cli\nraise SystemExit(cli.main({!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code.format(["serve", "--help"])], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--allow-host" in done.stdout
    done = subprocess.run([sys.executable, "-c", code.format(["serve"])], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'fairweather[web]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
        (["--port", "0", "--max-bytes", "much"], "--max-bytes"),
        (["--port", "0", "--disk", "0GB"], "--disk"),
        (["--port", "0", "--seconds", "0"], "--seconds"),
        (["--port", "0", "--memory", "1MB"], "--memory"),
        (["--port", "0", "--models", "no/such/folder"], "no/such/folder"),
    ],
)
def test_settings_that_are_none(words: list[str], says: str, web: None, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert cli.main(["serve", *words]) == 1
    told = capsys.readouterr().err
    assert told.startswith("fairweather: error: ")
    assert says in told
    assert told.count("\n") == 1


def test_nothing_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--share", "yes"]) == 2


def test_a_port_that_is_taken(web: None, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "give another port" in capsys.readouterr().err


def test_it_listens_here_alone_and_leaves_nothing_behind(served: Callable[..., Server]) -> None:  # noqa: F811
    server = served("--at-once", "1", "--no-page")
    assert server.address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{server.address}/api/v1/health") as answer:
        assert json.load(answer)["limits"]["at_once"] == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(server.address)
    assert list(server.temporary.glob("fairweather-serve-*"))
    assert server.end() == 0
    assert not list(server.temporary.iterdir())
