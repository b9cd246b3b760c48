"""The HTTP API: what it gives is what Python gives, and what it refuses has its status and its remedy."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fairweather
from fairweather import images
from tests.architecture.imports import SOURCE
from tests.conftest import ROOT
from tests.web.conftest import EXAMPLES, automatic, hazy, python

RESTORE = "/api/v1/restore"


def saved(path: Path, pixels: np.ndarray) -> bytes:
    images.write(path, pixels)
    return path.read_bytes()


def expected(path: Path, out: Path, **settings: Any) -> bytes:
    """The file that the Python call and `images.write` make of a photo."""
    photo = images.read(path)
    restorer = fairweather.load(settings.pop("model")) if "model" in settings else automatic()
    images.write(out, photo.replaced(restorer(photo.pixels, **settings)))
    return out.read_bytes()


def told(answer: Any, status: int, kind: str) -> str:
    """The message of a refusal, once its form and status are right."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["status"], error["kind"]) == (status, kind)
    return str(error["message"])


@pytest.mark.parametrize(
    ("photo", "settings"),
    [
        ("lighthouse.jpg", {}),
        ("lighthouse.jpg", {"strength": 0.35, "guard": False}),
        ("shutters.jpg", {"strength": 0.6}),
        ("fog_city_128.jpg", {"model": "dehaze-fast"}),
    ],
)
def test_it_gives_what_python_gives(client: Any, tmp_path: Path, photo: str, settings: dict[str, Any]) -> None:
    asked = {key: str(value).lower() for key, value in settings.items()} | {"name": photo}
    answer = client.post(RESTORE, params=asked, content=(EXAMPLES / photo).read_bytes())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    assert f'filename="{photo[:-4]}-clear.jpg"' in answer.headers["content-disposition"]
    assert answer.content == expected(EXAMPLES / photo, tmp_path / "out.jpg", **settings)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_the_format_stays_and_so_does_what_is_beside_the_pixels(client: Any, tmp_path: Path, suffix: str) -> None:
    deep = suffix in (".png", ".tif")
    path = tmp_path / f"in{suffix}"
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    photo = images.Photo(hazy(120, 160, np.uint16 if deep else np.uint8), kind=images.Kind(exif=exif.tobytes()[6:]))
    images.write(path, photo)
    answer = client.post(RESTORE, files={"photo": (path.name, path.read_bytes())})
    assert answer.status_code == 200, answer.text
    assert answer.content == expected(path, tmp_path / f"out{suffix}")
    (tmp_path / "back").write_bytes(answer.content)
    back = images.read(tmp_path / "back")
    assert back.pixels.dtype == (np.uint16 if deep else np.uint8)
    assert (b"A camera" in back.kind.exif) == (suffix != ".bmp")
    assert f"in-clear{suffix}" in answer.headers["content-disposition"]


def test_a_clear_photo_comes_back_byte_for_byte(client: Any, photo: np.ndarray, tmp_path: Path) -> None:
    data = saved(tmp_path / "clear.png", photo)
    for settings in ({"weather": "none"}, {"strength": 0}):
        answer = client.post(RESTORE, params=settings, content=data)
        assert answer.content == data
        assert answer.headers["x-fairweather-changed"] == "false"


def test_what_was_seen_is_told(client: Any) -> None:
    answer = client.post(RESTORE, content=(EXAMPLES / "shutters.jpg").read_bytes())
    assert answer.headers["x-fairweather-weather"] == "rain"
    assert float(answer.headers["x-fairweather-rain"]) > 0.9
    assert answer.headers["x-fairweather-models"] == "derain"


def test_names_are_repeated_without_harm(client: Any) -> None:
    data = (EXAMPLES / "lighthouse.jpg").read_bytes()
    answer = client.post(RESTORE, params={"name": '../../häf"en\r\n.jpg', "weather": "none"}, content=data)
    assert "filename*=UTF-8''h%C3%A4f%22en-clear.jpg" in answer.headers["content-disposition"]
    assert '"h_f_en-clear.jpg"' in answer.headers["content-disposition"]


def truncated() -> bytes:
    return (EXAMPLES / "lighthouse.jpg").read_bytes()[:20_000]


def bomb() -> bytes:
    """A PNG of a hundred bytes that claims 60000 x 60000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        (b"this is a text, not a photo", 415, "not_a_picture", "JPEG, PNG"),
        (truncated(), 422, "bad_picture", "get a whole copy"),
        (b"", 422, "empty", "0 bytes"),
        (b"\xff\xd8\xff\xe0 and nothing more", 422, "bad_picture", "header"),
        (bomb(), 413, "too_many_pixels", "60,000 x 60,000"),
        (b"\0\0\0\x18ftypisom" + bytes(100), 415, "clip", "clip"),
        (gif(), 415, "clip", "clip"),
        (b"\xff\xd8\xff" + bytes(3_000_001), 413, "too_large", "3 MB"),
    ],
    ids=["text", "truncated", "empty", "header", "bomb", "clip", "gif", "large"],
)
@pytest.mark.parametrize("way", ["raw", "form"])
def test_what_is_no_photo(client: Any, service: Any, way: str, body: bytes, status: int, kind: str, says: str) -> None:
    if way == "raw":
        answer = client.post(RESTORE, params={"name": "harbour.jpg"}, content=body)
    else:
        answer = client.post(RESTORE, files={"photo": ("harbour.jpg", body)})
    message = told(answer, status, kind)
    assert message.startswith("harbour.jpg: ")
    assert says in message
    assert str(service.folders.root) not in message
    assert service.turns.taken == 0
    assert [path.name for path in service.folders.root.iterdir()] == ["lock"], "temporary files are left"


def test_a_body_without_a_length_is_counted_as_it_comes(client: Any) -> None:
    def body() -> Any:
        for _ in range(400):
            yield bytes(10_000)

    told(client.post(RESTORE, content=body()), 413, "too_large")


@pytest.mark.parametrize(
    ("settings", "status", "kind"),
    [
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
    ],
)
def test_settings_that_are_none(client: Any, settings: dict[str, str], status: int, kind: str) -> None:
    told(client.post(RESTORE, params=settings, content=b"not looked at"), status, kind)


def test_forms_that_are_none(client: Any) -> None:
    kind = {"content-type": "multipart/form-data; boundary=x"}
    told(client.post(RESTORE, content=b"nonsense without an end", headers=kind), 400, "bad_form")
    told(client.post(RESTORE, files={"other": ("a.jpg", b"x")}), 422, "no_file")
    told(client.post(RESTORE, data={"photo": "a text"}, files={"b": b""}), 422, "no_file")


def test_a_full_house_says_when_to_come_again(client: Any, service: Any) -> None:
    with service.turns.place(), service.turns.place(), service.turns.place(), service.turns.place():
        answer = client.post(RESTORE, content=b"x")
    told(answer, 503, "busy")
    assert int(answer.headers["retry-after"]) > 0


def test_models_and_health(client: Any, service: Any) -> None:
    from fairweather import model_folder

    models = client.get("/api/v1/models").json()
    assert [model["name"] for model in models["models"]] == list(model_folder.shipped())
    assert all(model["terms"] and model["weather"] for model in models["models"])
    health = client.get("/api/v1/health").json()
    assert (health["status"], health["version"], health["inside"]) == ("ok", fairweather.__version__, 0)
    assert health["limits"]["pixels"] == service.limits.pixels
    assert {
        f"/api/v1/{name}" for name in ("restore", "models", "health", "clips", "clips/{id}", "clips/{id}/result")
    } == set(client.get("/api/v1/openapi.json").json()["paths"])


def test_methods_and_paths_that_are_none(client: Any) -> None:
    told(client.get(RESTORE), 405, "not_allowed")
    told(client.get("/api/v1/nothing"), 404, "no_such_path")


def test_the_documented_call_runs(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/api.md, against a server: its Python, and every status and flag that it names."""
    text = (ROOT / "docs" / "api.md").read_text()
    (tmp_path / "harbour.jpg").write_bytes((EXAMPLES / "lighthouse.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    snippet = text.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:7860", server.address)
    exec(compile(snippet, "docs/api.md", "exec"), {})
    assert (tmp_path / "clear.jpg").read_bytes() == python(tmp_path / "harbour.jpg", tmp_path / "out.jpg")
    source = "".join(path.read_text() for path in (SOURCE / "web").glob("*.py"))
    rows = text.split("## What is refused")[1].split("## Limits")[0]
    named = {(int(row[0]), kind) for row in re.findall(r"^\| (\d+) \| ([^|]+) \|", rows, re.MULTILINE)
             for kind in re.findall(r"`(\w+)`", row[1])}  # fmt: skip
    said = {(int(status), kind) for status, kind in re.findall(r"Refused\(\s*(\d+),\s*\"(\w+)\"", source)}
    assert said - {(404, "no_map")} <= named, "a refusal that the page does not name"
    assert {kind for _, kind in named} <= set(re.findall(r"\"(\w+)\"", source))
    flags = set(re.findall(r"`(--[a-z-]+)`", text))
    help_ = subprocess.run([sys.executable, "-m", "fairweather", "serve", "--help"], capture_output=True, text=True)
    assert not {flag for flag in flags if flag not in help_.stdout}
