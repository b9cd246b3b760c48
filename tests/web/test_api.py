"""The HTTP API: results equal those of Python and the command line, and its documents describe what it does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fairweather
from fairweather import images, model_folder
from tests.architecture.imports import SOURCE
from tests.conftest import ROOT
from tests.video.conftest import frames_of, packets_of
from tests.web.conftest import EXAMPLES, FAST, RESTORE, VIDEOS, add_video, hazy, refusal, restored, video, wait_for


@pytest.mark.parametrize(
    ("photo", "settings"),
    [
        ("lighthouse.jpg", {}),
        ("lighthouse.jpg", {"strength": 0.35, "guard": False}),
        ("shutters.jpg", {"strength": 0.6}),
        ("barn.jpg", {"model": "dehaze-fast"}),
    ],
)
def test_a_photo_equals_that_of_python(client: Any, tmp_path: Path, photo: str, settings: dict[str, Any]) -> None:
    query = {key: str(value).lower() for key, value in settings.items()} | {"name": photo}
    response = client.post(RESTORE, params=query, content=(EXAMPLES / photo).read_bytes())
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    assert f'filename="{photo[:-4]}-clear.jpg"' in response.headers["content-disposition"]
    assert response.content == restored(EXAMPLES / photo, tmp_path / "out.jpg", **settings)
    if photo == "shutters.jpg":
        assert response.headers["x-fairweather-weather"] == "rain"
        assert float(response.headers["x-fairweather-rain"]) > 0.9
        assert response.headers["x-fairweather-models"] == "derain"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_format_depth_and_metadata_are_preserved(client: Any, tmp_path: Path, suffix: str) -> None:
    dtype, path, exif = np.uint16 if suffix in (".png", ".tif") else np.uint8, tmp_path / f"in{suffix}", Image.Exif()
    exif[0x010F] = "A camera"
    images.write(path, images.Photo(hazy(120, 160, dtype), kind=images.Kind(exif=exif.tobytes()[6:])))
    response = client.post(RESTORE, files={"photo": (path.name, path.read_bytes())})
    assert response.status_code == 200, response.text
    assert response.content == restored(path, tmp_path / f"out{suffix}")
    (tmp_path / "back").write_bytes(response.content)
    back = images.read(tmp_path / "back")
    assert back.pixels.dtype == dtype
    assert (b"A camera" in back.kind.exif) == (suffix != ".bmp")
    assert f"in-clear{suffix}" in response.headers["content-disposition"]


def test_an_unchanged_photo_is_the_uploaded_file(client: Any, photo: np.ndarray, tmp_path: Path) -> None:
    images.write(tmp_path / "clear.png", photo)
    data = (tmp_path / "clear.png").read_bytes()
    for settings in ({"weather": "none"}, {"strength": 0}):
        response = client.post(RESTORE, params=settings, content=data)
        assert response.content == data
        assert response.headers["x-fairweather-changed"] == "false"


@pytest.mark.parametrize("path", [RESTORE, VIDEOS])
def test_settings_are_checked_before_the_upload(client: Any, path: str) -> None:
    for settings, status, kind in (
        ({"model": "no-such"}, 404, "unknown_model"),
        ({"model": "../../models/dehaze"}, 404, "unknown_model"),
        ({"model": "/etc"}, 404, "unknown_model"),
        ({"weather": "snow"}, 422, "bad_setting"),
        ({"model": "dehaze", "weather": "haze"}, 422, "bad_setting"),
        ({"strength": "1.5"}, 422, "bad_setting"),
        ({"strength": "nan"}, 422, "bad_setting"),
        ({"strength": "much"}, 422, "bad_setting"),
        ({"guard": "perhaps"}, 422, "bad_setting"),
        ({"name": "x" * 400}, 422, "bad_setting"),
    ):
        refusal(client.post(path, params=settings, content=b"not read"), status, kind)


def test_a_full_queue(client: Any, service: Any) -> None:
    with service.requests.slot(), service.requests.slot(), service.requests.slot(), service.requests.slot():
        response = client.post(RESTORE, content=b"x")
    refusal(response, 503, "busy")
    assert int(response.headers["retry-after"]) > 0


def test_models_and_health(client: Any, service: Any) -> None:
    models = client.get("/api/v1/models").json()
    assert [model["name"] for model in models["models"]] == list(model_folder.shipped())
    assert all(model["terms"] and model["weather"] for model in models["models"])
    health = client.get("/api/v1/health").json()
    assert (health["status"], health["version"], health["active_requests"]) == ("ok", fairweather.__version__, 0)
    assert health["limits"]["max_pixels"] == service.limits.max_pixels


@pytest.mark.parametrize(
    ("name", "how", "settings"),
    [
        ("a.mp4", {"audio": "aac"}, {}),
        ("b.mkv", {"audio": "aac"}, {**FAST, "strength": 0.6, "guard": False}),
        ("c.webm", {"codec": "libvpx-vp9", "audio": "libopus"}, FAST),
    ],
)
def test_a_video_equals_that_of_the_command(
    client: Any, tmp_path: Path, name: str, how: dict[str, Any], settings: dict[str, Any]
) -> None:
    from fairweather import cli

    path = video(tmp_path / name, **how)
    location = add_video(client, path, **{key: str(value) for key, value in settings.items()})
    status = wait_for(client, location)
    assert (status["frames"], status["total_frames"], status["changed"], status["missing"]) == (12, 12, True, None)
    assert status["models"] == [settings.get("model", "dehaze")]
    assert status["frames_per_second"] > 0
    assert settings or status["weather"]["decision"] == "haze"
    response = client.get(f"{location}/result")
    assert f'filename="{name[0]}-clear{path.suffix}"' in response.headers["content-disposition"]
    result, command = tmp_path / f"web{path.suffix}", tmp_path / f"command{path.suffix}"
    result.write_bytes(response.content)
    flags = [f"--{key}={value}" for key, value in settings.items() if key != "guard"]
    assert (
        cli.main(["restore", str(path), "-o", str(command), *flags, *(["--no-guard"] if "guard" in settings else [])])
        == 0
    )
    for one, other in zip(frames_of(result)[1], frames_of(command)[1], strict=True):
        assert np.abs(one.astype(int) - other).mean() < 2  # x264 is not deterministic on a busy machine
    assert packets_of(result, "audio") == packets_of(path, "audio")
    assert client.delete(location).status_code == 204
    refusal(client.get(location), 404, "gone")


def test_an_unchanged_video_and_one_sent_as_a_form(client: Any, service: Any, tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 4)
    response = client.post(VIDEOS, params={"weather": "none"}, files={"video": (path.name, path.read_bytes())})
    location = response.headers["location"]
    assert response.json()["name"] == "a.mp4"
    status = wait_for(client, location)
    assert (status["changed"], status["error"]) == (False, None)
    assert client.get(f"{location}/result").content == path.read_bytes()
    service.videos.get(status["id"]).source.unlink()
    refusal(client.get(f"{location}/result"), 404, "gone")
    client.delete(location)


def test_ids_that_are_not_a_videos(client: Any) -> None:
    for name in ("no-such-token", "00000001", "lock", "%2e", "a%00b"):
        for path in (f"{VIDEOS}/{name}", f"{VIDEOS}/{name}/result"):
            assert client.get(path).status_code in (400, 404, 422)
    refusal(client.get(f"{VIDEOS}/..%2f..%2fetc%2fpasswd/result"), 400, "bad_path")


def test_the_openapi_document(client: Any) -> None:
    document = client.get("/api/v1/openapi.json").json()
    operations = {
        (path.removeprefix("/api/v1"), method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    common = {"400", "403", "421", "500"}
    upload = {*common, "404", "408", "413", "415", "422", "503", "504", "507"}
    assert {key: set(operation["responses"]) for key, operation in operations.items()} == {
        ("/restore", "post"): {"200", *upload},
        ("/videos", "post"): {"202", *upload},
        ("/videos/{id}", "get"): {"200", *common, "404", "422"},
        ("/videos/{id}", "delete"): {"204", *common, "404", "422"},
        ("/videos/{id}/result", "get"): {"200", "206", *common, "404", "409", "413", "416", "422", "503", "504", "507"},
        ("/models", "get"): {"200", *common},
        ("/health", "get"): {"200", *common},
    }
    for path, field in (("/restore", "photo"), ("/videos", "video")):
        body = operations[path, "post"]["requestBody"]
        assert body["required"]
        assert body["content"]["multipart/form-data"]["schema"]["required"] == [field]
        assert "application/octet-stream" in body["content"]
    for operation in operations.values():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, operation["summary"]


def test_the_documented_calls_run(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/api.md against a server: its Python, and every field, status and flag that it names."""
    text = (ROOT / "docs" / "api.md").read_text()
    (tmp_path / "harbour.jpg").write_bytes((EXAMPLES / "lighthouse.jpg").read_bytes())
    video(tmp_path / "harbour.mp4", audio="aac")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in text.split("```python\n")[1:]:
        code = snippet.split("```")[0].replace("http://127.0.0.1:7860", server.address)
        exec(compile(code, "docs/api.md", "exec"), names)
    assert (tmp_path / "clear.jpg").read_bytes() == restored(tmp_path / "harbour.jpg", tmp_path / "out.jpg")
    assert len(frames_of(tmp_path / "clear.mp4")[0]) == 12
    fields = text.split("## GET /api/v1/videos/{id}")[1].split("```")[0]
    rows = "".join(re.findall(r"^\| (`.+?) \|", fields, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(names["status"])

    source = "".join(path.read_text() for path in (SOURCE / "web").glob("*.py"))
    errors = text.split("## Errors")[1].split("## Limits")[0]
    documented = {(int(status), kind) for status, kinds in re.findall(r"^\| (\d+) \| ([^|]+) \|", errors, re.MULTILINE)
                  for kind in re.findall(r"`(\w+)`", kinds)}  # fmt: skip
    raised = {(int(status), kind) for status, kind in re.findall(r"Refused\(\s*(\d+),\s*\"(\w+)\"", source)}
    assert raised - {(404, "no_map")} <= documented
    assert {kind for _, kind in documented} <= set(re.findall(r"\"(\w+)\"", source))
    command = [sys.executable, "-m", "fairweather", "serve", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True).stdout
    assert not {flag for flag in re.findall(r"`(--[a-z-]+)`", text) if flag not in help_text}
