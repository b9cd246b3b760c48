"""A service in this process, servers in processes of their own, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import fairweather
from fairweather import images
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RESTORE, VIDEOS = "/api/v1/restore", "/api/v1/videos"
FAST = {"model": "dehaze-fast"}
SERVE = ("--max-bytes", "60MB", "--max-pixels", "50000000", "--queue", "6")


@pytest.fixture(scope="session")
def web() -> None:
    """Skip where the extra is not installed."""
    for module in ("fastapi", "gradio", "uvicorn"):
        pytest.importorskip(module, reason=f"NO PAGE IS TESTED: {module} is missing; pip install 'fairweather[web]'")


@pytest.fixture(scope="session")
def service(web: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with narrow limits and the models that ship."""
    from fairweather.web.jobs import Service
    from fairweather.web.limits import Limits

    made = Service(
        Limits(max_bytes=3_000_000, max_pixels=2_000_000, workers=2, queue=2, timeout=60),
        parent=tmp_path_factory.mktemp("server"),
    )
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(service: Any) -> Iterator[Any]:
    """A client of the whole application, without a network."""
    from starlette.testclient import TestClient

    from fairweather.web.app import allowed_hosts, create

    with TestClient(create(service, hosts=allowed_hosts("127.0.0.1")), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture
def small_client(web: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Create clients of the API with limits of their own; `.service` is theirs."""
    from starlette.testclient import TestClient

    from fairweather.web.app import create
    from fairweather.web.jobs import Service
    from fairweather.web.limits import Limits

    made: list[Any] = []

    def create_client(**limits: Any) -> Any:
        (tmp_path / "server").mkdir()
        service = Service(Limits(**limits), parent=tmp_path / "server")
        client = TestClient(create(service, page=False), base_url="http://127.0.0.1")
        client.service = service  # type: ignore[attr-defined]
        made.append(service)
        return client

    yield create_client
    for service in made:
        service.close()
        assert not service.folders.root.exists()


@dataclass
class Server:
    """A `fairweather serve` in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="session")
def serve(web: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers, which end with the tests."""
    started: list[Server] = []

    def start(*flags: str, temporary: Path | None = None) -> Server:
        folder = tmp_path_factory.mktemp("tmp") if temporary is None else temporary
        port = () if "--port" in flags else ("--port", "0")
        process = subprocess.Popen(
            [sys.executable, "-m", "fairweather", "serve", *port, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, f"the server did not start: {line!r}"
        started.append(Server(process, found[0], folder))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Iterator[Server]:
    """One server with a page, which leaves nothing behind."""
    made = serve(*SERVE)
    yield made
    assert made.end() == 0
    assert not list(made.temporary.iterdir())


def refusal(response: Any, status: int, kind: str) -> str:
    """The message of an error response, whose form and status are checked."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["status"], error["kind"]) == (status, kind)
    return str(error["message"])


@cache
def restorer(model: str = "auto") -> Any:
    return fairweather.load(model)


def restored(path: Path, out: Path, strength: float = 1.0, guard: bool = True, model: str = "auto") -> bytes:
    """The file that the Python call makes of a photo."""
    photo = images.read(path)
    images.write(out, photo.replaced(restorer(model)(photo.pixels, strength, guard)))
    return out.read_bytes()


def hazy(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    """A hazy photo of any size: the lighthouse, repeated by reflection."""
    pixels = images.read(EXAMPLES / "lighthouse.jpg").pixels
    down, across = height - pixels.shape[0], width - pixels.shape[1]
    pixels = np.pad(pixels, ((0, max(0, down)), (0, max(0, across)), (0, 0)), mode="symmetric")[:height, :width]
    return pixels.astype(dtype) * 257 if dtype == np.uint16 else pixels


def hazy_frames(count: int, height: int = 120, width: int = 160) -> Iterator[np.ndarray]:
    """The frames of a hazy video: a pan over the lighthouse."""
    whole = cv2.resize(images.read(EXAMPLES / "lighthouse.jpg").pixels, (width + 2 * count, height))
    for number in range(count):
        yield whole[:, 2 * number : 2 * number + width]


def video(path: Path, count: int = 12, size: tuple[int, int] = (160, 120), **how: Any) -> Path:
    from tests.video.conftest import make

    return make(path, size=size, count=count, shown=hazy_frames(count, size[1], size[0]), **how)


def add_video(client: Any, path: Path, **settings: Any) -> str:
    """The path of a video that was accepted."""
    response = client.post(VIDEOS, params={"name": path.name, **settings}, content=path.read_bytes())
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"{VIDEOS}/{response.json()['id']}"
    return str(response.headers["location"])


def wait_for(client: Any, location: str, *states: str, frames: int = 0) -> dict[str, Any]:
    """Poll a video until it has one of these states (done), and so many frames."""
    for _ in range(600):
        status: dict[str, Any] = client.get(location).json()
        if status["state"] in (states or ("done",)) and status["frames"] >= frames:
            return status
        assert status["state"] in ("waiting", "working"), status
        time.sleep(0.02)
    raise AssertionError(f"the video never gets {states}")
