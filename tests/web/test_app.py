"""What the server answers and what it rejects: hosts, sites, paths, methods and ranges."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.web.conftest import EXAMPLES, RESTORE, VIDEOS, add_video, refusal, video, wait_for

SPELLINGS = [
    "{}", "/file={}", "/gradio_api/file={}", "/gradio_api/file/{}", "/file{}", "/static/..{}", "/assets/../../../..{}",
    "/static/%2e%2e/%2e%2e/%2e%2e{}", "/assets/..%2f..%2f..%2f..{}", "/static/..%5c..%5c{}", "/assets/%252e%252e{}",
    "/page/static/..{}", "/page/static/%2e%2e%2f%2e%2e{}", "/page/examples/..{}", "/page/photos/..{}/before",
    "/page/photos/%2e%2e%2f%2e%2e{}/file", "/gradio_api/file=/proc/self/environ?x={}", "/gradio_api/file=file://{}",
    "/gradio_api/file=http://127.0.0.1/{}", "/gradio_api/proxy=http://127.0.0.1{}", "/svelte/..{}", "//{}",
    "/gradio_api/custom_component/1/client/component/..{}", "/assets{}", "/static{}",
]  # fmt: skip
CLOSED = [
    ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/process_recording"), ("GET", "/gradio_api/upload_progress"), ("GET", "/monitoring"),
    ("GET", "/gradio_api/openapi.json"), ("POST", "/gradio_api/component_server"), ("GET", "/docs"),
    ("GET", "/gradio_api/deep_link"), ("POST", "/login"), ("GET", "/gradio_api/runs"), ("GET", "/api/v1/nothing"),
]  # fmt: skip


def test_no_file_can_be_read_by_its_path(client: Any, service: Any) -> None:
    lock = service.folders.root / "lock"
    lock.write_text("root:secret\n")
    for secret in ("/etc/passwd", str(lock)):
        for path in (spelling.format(name) for spelling in SPELLINGS for name in (secret, secret.lstrip("/"))):
            response = client.get(path)
            assert response.status_code in (400, 403, 404), f"{path}: {response.status_code}"
            assert "root:" not in response.text


def test_gradios_other_routes_are_closed(client: Any) -> None:
    for method, path in CLOSED:
        refusal(client.request(method, path), 404, "no_such_path")


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    response = client.get("/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("space_id")
    assert all(not dependency["backend_fn"] for dependency in config["dependencies"]), "Gradio runs nothing"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", RESTORE, "POST"), ("PUT", f"{VIDEOS}/x", "DELETE, GET"), ("POST", "/", "GET, HEAD"),
     ("POST", "/page/photos/x/before", "GET")],
)  # fmt: skip
def test_other_methods_get_those_that_are_allowed(client: Any, method: str, path: str, allow: str) -> None:
    response = client.request(method, path)
    refusal(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1", "localhost:7860", "[::1]:7860", "LOCALHOST", "127.0.0.1:")),
        *((host, 421) for host in ("evil.example", "127.0.0.1.evil.example")),
        *((host, 400) for host in ("", "[", "127.0.0.1/evil.com", "127.0.0.1#evil", "user:pw@127.0.0.1", "[::1]x")),
        *((host, 400) for host in ("127.0.0.1:99999999", "127.0.0.1:65536", "localhost:x", "127.0.0.1 ")),
    ],
)
def test_the_host_is_one_of_its_names_with_an_optional_port(client: Any, host: str, status: int) -> None:
    assert client.get("/api/v1/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://[::1", "127.0.0.1"])
def test_other_sites_pages_are_rejected(client: Any, origin: str) -> None:
    refusal(client.post(RESTORE, content=b"x", headers={"origin": origin}), 403, "cross_site")
    own = client.post(RESTORE, content=b"x", headers={"origin": "http://127.0.0.1"})
    assert own.status_code == 415


def test_names_by_address(web: None) -> None:
    from fairweather.web.app import allowed_hosts

    assert allowed_hosts("0.0.0.0") is None
    assert allowed_hosts("0.0.0.0", ["fair.example"]) == {"0.0.0.0", "fair.example"}
    local = allowed_hosts("[::1]", ["Fair.example"])
    assert local == {"fair.example", "localhost", "127.0.0.1", "::1"}


def test_websockets_are_not_accepted(web: None) -> None:
    from fairweather.web.app import RequestFilter

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the filter let it through")

    asyncio.run(RequestFilter(app)({"type": "websocket"}, None, None))


def test_ranges_of_a_result(client: Any, tmp_path: Any) -> None:
    path = video(tmp_path / "a.mp4", 2)
    location = add_video(client, path, weather="none")
    wait_for(client, location)
    data = path.read_bytes()

    def get(header: str) -> Any:
        return client.get(f"{location}/result", headers={"range": header})

    for header, part in (("bytes=10-19", data[10:20]), ("bytes=-5", data[-5:]), (f"bytes={len(data) - 3}-", data[-3:])):
        assert (get(header).status_code, get(header).content) == (206, part)
    for malformed in ("bytes=abc", "bytes=5-2", "lines=1-2", "bytes=", "x", "bytes=" + "9" * 5000 + "-"):
        assert (get(malformed).status_code, get(malformed).content) == (200, data)  # ignored
    for outside in (f"bytes={len(data)}-", "bytes=-0", f"bytes=0-5,{len(data)}-"):
        refusal(get(outside), 416, "bad_range")
        assert get(outside).headers["content-range"] == f"bytes */{len(data)}"
    client.delete(location)


def test_names_are_repeated_without_harm(client: Any) -> None:
    data = (EXAMPLES / "lighthouse.jpg").read_bytes()
    for name, plain, full in (
        ('../../häf"en\r\n.jpg', "h_f_en-clear.jpg", "h%C3%A4f%22en-clear.jpg"),
        ("a;b=%.jpg", "a_b__-clear.jpg", "a%3Bb%3D%25-clear.jpg"),
        ("..", "photo-clear.jpg", "photo-clear.jpg"),
        (".. ;.jpg", "__-clear.jpg", "..%20%3B-clear.jpg"),
    ):
        response = client.post(RESTORE, params={"name": name, "weather": "none"}, content=data)
        expected = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{full}"
        assert response.headers["content-disposition"] == expected
