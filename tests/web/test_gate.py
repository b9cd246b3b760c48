"""What is open and what is not: other hosts, other sites, files by path, and most of what Gradio brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SECRET = ["/etc/passwd", "/etc/hostname"]
SPELLINGS = [
    "{}", "/file={}", "/gradio_api/file={}", "/gradio_api/file/{}", "/file{}", "/static/..{}", "/assets/../../../..{}",
    "/static/%2e%2e/%2e%2e/%2e%2e{}", "/assets/..%2f..%2f..%2f..{}", "/static/..%5c..%5c{}", "/assets/%252e%252e{}",
    "/page/static/..{}", "/page/static/%2e%2e%2f%2e%2e{}", "/page/examples/..{}", "/page/photos/..{}/before",
    "/page/photos/%2e%2e%2f%2e%2e{}/file", "/gradio_api/file=/proc/self/environ?x={}", "/gradio_api/file=file://{}",
    "/gradio_api/file=http://127.0.0.1/{}", "/gradio_api/proxy=http://127.0.0.1{}", "/svelte/..{}", "//{}",
    "/gradio_api/custom_component/1/client/component/..{}", "/assets{}", "/static{}",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_file_can_be_read_by_its_path(client: Any, service: Any, spelling: str) -> None:
    lock = service.folders.root / "lock"
    lock.write_text("root:secret\n")
    for secret in [*SECRET, str(lock)]:
        for path in (spelling.format(secret), spelling.format(secret.lstrip("/"))):
            answer = client.get(path)
            assert answer.status_code in (400, 403, 404), f"{path}: {answer.status_code}"
            assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/process_recording"), ("GET", "/gradio_api/upload_progress"), ("GET", "/monitoring"),
        ("GET", "/gradio_api/openapi.json"), ("POST", "/gradio_api/component_server"), ("GET", "/docs"),
        ("GET", "/gradio_api/deep_link"), ("POST", "/login"), ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/dev/reload"),
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_closed(client: Any, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 404


def test_the_page_is_there_and_keeps_to_itself(client: Any) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.post("/").status_code == 405
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("space_id")
    assert all(not dependency["backend_fn"] for dependency in config["dependencies"]), "Gradio runs nothing here"


@pytest.mark.parametrize(
    ("host", "open_"),
    [("127.0.0.1", True), ("localhost:7860", True), ("[::1]:7860", True), ("LOCALHOST", True),
     ("evil.example", False), ("127.0.0.1.evil.example", False), ("", False), ("[", False)],
)  # fmt: skip
def test_only_its_own_names_are_answered(client: Any, host: str, open_: bool) -> None:
    answer = client.get("/api/v1/health", headers={"host": host})
    assert answer.status_code == (200 if open_ else 421)


def test_other_sites_pages_may_not_send(client: Any) -> None:
    def send(origin: str) -> int:
        return int(client.post("/api/v1/restore", content=b"x", headers={"origin": origin}).status_code)

    assert send("http://127.0.0.1") == 415
    assert send("http://evil.example") == 403
    assert send("null") == 403
    assert send("http://127.0.0.1:9999") == 403


def test_names_by_address(web: None) -> None:
    from fairweather.web.middleware import allowed_hosts

    assert allowed_hosts("0.0.0.0") is None
    assert allowed_hosts("0.0.0.0", ["fair.example"]) == {"0.0.0.0", "fair.example"}
    local = allowed_hosts("127.0.0.1", ["Fair.example"])
    assert local is not None
    assert {"fair.example", "localhost", "127.0.0.1", "::1"} <= local


def test_a_websocket_is_not_taken(web: None) -> None:
    import asyncio

    from fairweather.web.middleware import RequestFilter

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it came through")

    gate: Callable[..., Any] = RequestFilter(inside)
    asyncio.run(gate({"type": "websocket"}, None, None))
