"""A service in this process, servers in processes of their own, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
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
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SERVED = ("--max-bytes", "60MB", "--max-pixels", "50000000", "--waiting", "6")
READY = "document.querySelectorAll('.fw-item.fw-ready').length === {}"
SHOWN = "[...document.querySelectorAll('.fw-canvas img[src]')].every(one => one.complete && one.naturalWidth)"


@pytest.fixture(scope="session")
def web() -> None:
    """Skips, loudly, where the extra is not installed."""
    for module in ("fastapi", "gradio", "uvicorn"):
        pytest.importorskip(module, reason=f"NO PAGE IS TESTED: {module} is missing; pip install 'fairweather[web]'")


@pytest.fixture(scope="session")
def service(web: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with narrow limits and the models that ship."""
    from fairweather.web.jobs import PhotoService
    from fairweather.web.limits import Limits

    made = PhotoService(
        Limits(bytes=3_000_000, pixels=2_000_000, at_once=2, waiting=2, seconds=60),
        parent=tmp_path_factory.mktemp("server"),
    )
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(service: Any) -> Iterator[Any]:
    """Asks the whole application, without a network."""
    from starlette.testclient import TestClient

    from fairweather.web.app import create
    from fairweather.web.middleware import allowed_hosts

    with TestClient(create(service, hosts=allowed_hosts("127.0.0.1")), base_url="http://127.0.0.1") as asked:
        yield asked


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
def served(web: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers; all of them are ended in the end."""
    started: list[Server] = []

    def start(*words: str, temporary: Path | None = None) -> Server:
        place = tmp_path_factory.mktemp("tmp") if temporary is None else temporary
        command = [
            sys.executable,
            "-m",
            "fairweather",
            "serve",
            *(words if "--port" in words else ("--port", "0", *words)),
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TMPDIR": str(place)},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, f"the server did not start: {line!r}"
        started.append(Server(process, found[0], place))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def server(served: Callable[..., Server]) -> Iterator[Server]:
    """One server for all tests that leave it as it is, or as it was."""
    made = served(*SERVED)
    yield made
    assert made.end() == 0
    assert not list(made.temporary.glob("fairweather-serve-*"))


@pytest.fixture(scope="module")
def chromium(web: None) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST RUNS: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER TEST RUNS: there is no Chromium here (sh tests/web/chromium.sh, as root on Debian)")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Opens the page; asserts in the end that nothing was asked from elsewhere, and that no script failed."""
    pages, outside, wrong = [], [], []

    def open_(address: str = server.address, **options: Any) -> Any:
        page = chromium.new_context(accept_downloads=True, **options).new_page()
        page.set_default_timeout(30_000)
        page.on(
            "request",
            lambda one: outside.append(one.url) if not one.url.startswith((address, "blob:", "data:")) else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(address)
        page.wait_for_selector(".fw-begun .fw-drop")
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.context.close()
    assert not outside, "something was asked from elsewhere"
    assert not wrong


def send(page: Any, *paths: Path, ready: int | None = None) -> None:
    page.set_input_files("#fw-input", list(paths))
    page.wait_for_function(READY.format(len(paths) if ready is None else ready), timeout=90_000)
    page.wait_for_function(SHOWN)


def downloaded(page: Any) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.click(".fw-download")
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


@cache
def automatic() -> Any:
    """What `fairweather.load("auto")` gives, opened once."""
    return fairweather.load("auto")


def python(path: Path, out: Path, strength: float = 1.0, model: str = "auto") -> bytes:
    """The file that the Python call and `images.write` make of a photo."""
    photo = images.read(path)
    restorer = automatic() if model == "auto" else fairweather.load(model)
    images.write(out, photo.replaced(restorer(photo.pixels, strength)))
    return out.read_bytes()


def hazy(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    """A picture in which haze is seen, of any size: the lighthouse, repeated by reflection."""
    pixels = images.read(EXAMPLES / "lighthouse.jpg").pixels
    down, across = height - pixels.shape[0], width - pixels.shape[1]
    pixels = np.pad(pixels, ((0, max(0, down)), (0, max(0, across)), (0, 0)), mode="symmetric")[:height, :width]
    return pixels.astype(dtype) * 257 if dtype == np.uint16 else pixels


def sailing(count: int, height: int = 120, width: int = 160) -> Iterator[np.ndarray]:
    """The frames of a film with haze in it: the lighthouse, passed by."""
    whole = cv2.resize(images.read(EXAMPLES / "lighthouse.jpg").pixels, (width + 2 * count, height))
    for number in range(count):
        yield whole[:, 2 * number : 2 * number + width]
