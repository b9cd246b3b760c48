"""The page's photos: any strength without a second look of the network, and gone when their time is over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather import images
from fairweather.web.limits import Limits, RequestRefused
from fairweather.web.model_registry import RestoreSettings
from tests.web.conftest import EXAMPLES, hazy, python


def sent(client: Any, path: Path) -> str:
    answer = client.post("/page/photos", params={"name": path.name}, content=path.read_bytes())
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def look(client: Any, token: str, **settings: Any) -> dict[str, Any]:
    answer = client.post(f"/page/photos/{token}/look", params=settings)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def counted(service: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a model's network is asked from here on."""
    restorer, runs = service.offer.restorer(name), [0]
    engine = restorer.engine

    def run(picture: Any) -> Any:
        runs[0] += 1
        return engine(picture)

    monkeypatch.setattr(restorer, "engine", run)
    return runs


def test_other_strengths_ask_no_network_again(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EXAMPLES / "lighthouse.jpg"
    token = sent(client, path)
    found = look(client, token)
    assert (found["weather"]["decided"], found["exact"], found["download"]) == ("haze", True, "lighthouse-clear.jpg")
    runs = counted(service, "dehaze", monkeypatch)
    for strength in (1.0, 0.37, 0.8):
        answer = client.get(f"/page/photos/{token}/file", params={"strength": strength})
        assert answer.content == python(path, tmp_path / "out.jpg", strength)
        assert client.get(f"/page/photos/{token}/after", params={"strength": strength}).content == answer.content
    assert client.get(f"/page/photos/{token}/file", params={"strength": 0}).content == path.read_bytes()
    assert client.get(f"/page/photos/{token}/map").headers["content-type"] == "image/png"
    assert runs == [0]


def test_a_picture_network_is_asked_again_for_another_strength_alone(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rain.png"
    images.write(path, images.read(EXAMPLES / "shutters.jpg").pixels[:200, :300])
    token = sent(client, path)
    assert look(client, token, model="derain")["exact"] is False
    runs = counted(service, "derain", monkeypatch)
    settings = {"model": "derain"}
    whole = client.get(f"/page/photos/{token}/file", params=settings)
    assert whole.content == python(path, tmp_path / "out.png", 1.0, "derain")
    assert runs == [0]
    part = client.get(f"/page/photos/{token}/file", params={**settings, "strength": 0.5})
    assert part.content == python(path, tmp_path / "out.png", 0.5, "derain")
    assert runs == [1]


def test_deep_and_transparent_photos_are_shown_as_jpegs_and_given_as_they_came(client: Any, tmp_path: Path) -> None:
    pixels = hazy(90, 120, np.uint16)
    alpha = np.full(pixels.shape[:2], 65535, np.uint16)
    alpha[:20] = 0
    path = tmp_path / "deep.png"
    images.write(path, images.Photo(pixels, alpha, images.Kind(format="PNG", mode="RGBA")))
    token = sent(client, path)
    look(client, token)
    for what in ("before", "after", "thumb"):
        answer = client.get(f"/page/photos/{token}/{what}")
        assert answer.headers["content-type"] == "image/jpeg"
        (tmp_path / "shown").write_bytes(answer.content)
        assert images.read(tmp_path / "shown").pixels.dtype == np.uint8
    assert client.get(f"/page/photos/{token}/file").content == python(path, tmp_path / "out.png", 1.0)


def test_a_clear_decision_changes_nothing(client: Any) -> None:
    path = EXAMPLES / "shutters.jpg"
    token = sent(client, path)
    found = look(client, token, weather="none")
    assert (found["parts"], found["exact"]) == ([], True)
    assert client.get(f"/page/photos/{token}/file", params={"weather": "none"}).content == path.read_bytes()


def test_what_is_not_there(client: Any) -> None:
    for what in ("before", "after", "thumb", "map", "file"):
        answer = client.get(f"/page/photos/no-such-token/{what}")
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "gone")
    token = sent(client, EXAMPLES / "lighthouse.jpg")
    assert client.get(f"/page/photos/{token}/map", params={"model": "derain"}).json()["error"]["kind"] == "no_map"
    assert client.post(f"/page/photos/{token}/look", params={"model": "no"}).status_code == 404
    assert client.delete(f"/page/photos/{token}").status_code == 204
    assert client.get(f"/page/photos/{token}/before").status_code == 404
    assert client.delete(f"/page/photos/{token}").status_code == 204


def test_a_text_is_refused_and_not_kept(client: Any, service: Any) -> None:
    before = len(list(service.folders.root.iterdir()))
    answer = client.post("/page/photos", params={"name": "notes.txt"}, content=b"some words")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (415, "not_a_picture")
    assert len(list(service.folders.root.iterdir())) == before


def test_photos_go_when_their_time_is_over_and_when_the_disk_s_share_is_full(web: None, tmp_path: Path) -> None:
    from fairweather.web.jobs import PhotoService
    from fairweather.web.photo_routes import PagePhotos

    data = (EXAMPLES / "lighthouse.jpg").read_bytes()
    service = PhotoService(Limits(keep=0.005, disk=3 * len(data)), parent=tmp_path)
    photos = PagePhotos(service)

    def add() -> str:
        folder = service.folders.new()
        (folder / "source").write_bytes(data)
        return photos.add(folder, folder / "source", "a.jpg").token

    tokens = [add() for _ in range(5)]
    assert len(photos) == 3
    with pytest.raises(RequestRefused):
        photos.get(tokens[0])
    kept = photos.get(tokens[4])
    time.sleep(0.35)
    with kept.lock:  # somebody looks at it
        photos.service.shelf.tidy()
    assert len(photos) == 1
    photos.service.shelf.tidy()
    assert len(photos) == 0
    assert [path.name for path in service.folders.root.iterdir()] == ["lock"]
    service.close()
    assert not list(tmp_path.iterdir())


def test_memory_that_is_too_little_for_a_photo_says_so(web: None, tmp_path: Path) -> None:
    from fairweather.inference.memory import BASE_ALLOWANCE_AUTO, MIN_WINDOW_MEMORY, resident_memory
    from fairweather.web.jobs import PhotoService

    service = PhotoService(
        memory=resident_memory() + BASE_ALLOWANCE_AUTO + MIN_WINDOW_MEMORY + (40 << 20), parent=tmp_path
    )
    path = tmp_path / "large.jpg"
    images.write(path, hazy(2500, 4000))
    with pytest.raises(RequestRefused, match="memory") as wrong:
        service.restore(path, "large.jpg", RestoreSettings())
    assert (wrong.value.status, wrong.value.kind) == (413, "too_many_pixels")
    assert not service.budget.reserved
    service.close()
