"""`fairweather serve`: its errors, and a server that leaves nothing behind."""

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
from tests.web.conftest import Server, serve, web  # noqa: F401


def test_without_the_extra_help_works_and_the_error_names_it() -> None:
    code = (
        "import sys\nfor name in ('gradio', 'fastapi', 'uvicorn', 'starlette'): sys.modules[name] = None\n"
        "from fairweather import cli\nraise SystemExit(cli.main({!r}))"
    )
    for words, status, message in ((["serve", "--help"], 0, "--allow-host"), (["serve"], 1, "'fairweather[web]'")):
        done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True)
        assert done.returncode == status
        assert message in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid"),
        (["--host", "192.0.2.1"], "cannot be used"),
        (["--port", "0", "--max-bytes", "much"], "--max-bytes"),
        (["--port", "0", "--disk", "0GB"], "--disk"),
        (["--port", "0", "--timeout", "0"], "--timeout"),
        (["--port", "0", "--memory", "1MB"], "--memory"),
        (["--port", "0", "--models", "no/such/folder"], "no/such/folder"),
    ],
)
def test_flags_that_are_wrong(flags: list[str], message: str, web: None, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert cli.main(["serve", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fairweather: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_port_in_use(web: None, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as used:
        assert cli.main(["serve", "--port", str(used.getsockname()[1])]) == 1
    assert "give another port" in capsys.readouterr().err


def test_it_listens_to_this_machine_and_leaves_nothing_behind(serve: Callable[..., Server]) -> None:  # noqa: F811
    server = serve("--workers", "1", "--no-page")
    assert server.address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{server.address}/api/v1/health") as response:
        assert json.load(response)["limits"]["workers"] == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(server.address)
    assert list(server.temporary.glob("fairweather-serve-*"))
    assert server.end() == 0
    assert not list(server.temporary.iterdir())
