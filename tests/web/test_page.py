"""The page's layout and static files, and its photos and videos over HTTP."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fairweather import images, model_folder
from fairweather.errors import BadSettings, UnknownName
from tests.architecture.imports import SOURCE
from tests.conftest import ROOT
from tests.video.conftest import av, frames_of, make
from tests.web.conftest import EXAMPLES, FAST, VIDEOS, add_video, hazy, hazy_frames, refusal, restored, video, wait_for

WEB = SOURCE / "web"


def test_static_files_are_installed_and_name_no_other_host() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fairweather"]
    for file in [*(WEB / "static").iterdir(), *(WEB / "examples").iterdir()]:
        assert any(file.relative_to(SOURCE).match(pattern) for pattern in data), f"{file} would not be installed"
    for file in (WEB / "static").iterdir():
        found = set(re.findall(r"https?://[^\s\"'<>)]+", file.read_text())) - {"http://www.w3.org/2000/svg"}
        assert not found, f"{file.name} names {found}"


def test_the_example_photos_are_free_to_use(web: None) -> None:
    from fairweather.web import page

    photos = {path.name: path.read_bytes() for path in (WEB / "examples").glob("*.jpg")}
    terms, origins = (WEB / "examples" / "TERMS.md").read_text(), (ROOT / "examples" / "README.md").read_text()
    assert set(photos) == set(page.EXAMPLES)
    for name, data in photos.items():
        assert data == (ROOT / "examples" / name).read_bytes()
        row = next(line for line in origins.splitlines() if f"`{name}`" in line)
        assert row.split("|")[4].strip() in ("free use", "the same")
        assert f"`{name}`" in terms
    assert sum(map(len, photos.values())) < 500_000


def test_the_models_to_choose_are_those_that_ship(service: Any) -> None:
    from fairweather.web.page import build_page

    components = build_page(service).get_config_file()["components"]
    choice = next(component for component in components if component["props"].get("elem_id") == "fw-model")
    assert [value for _, value in choice["props"]["choices"]] == ["auto", *model_folder.shipped()]


def test_own_models_are_listed_by_the_name_in_their_card(tmp_path: Path, web: None) -> None:
    from fairweather.web.model_registry import ModelRegistry, RestoreSettings

    shutil.copytree(model_folder.shipped()["dehaze-fast"], tmp_path / "folder")
    with pytest.raises(BadSettings, match="exists"):
        ModelRegistry([tmp_path / "folder"])
    card = json.loads((tmp_path / "folder" / model_folder.CARD).read_text())
    (tmp_path / "folder" / model_folder.CARD).write_text(json.dumps({**card, "name": "mine"}))
    registry = ModelRegistry([tmp_path / "folder"])
    assert list(registry.cards) == [*model_folder.shipped(), "mine"]
    registry.check(RestoreSettings("mine"))
    with pytest.raises(UnknownName):
        registry.check(RestoreSettings(str(tmp_path / "folder")))


def add_photo(client: Any, path: Path) -> str:
    response = client.post("/page/photos", params={"name": path.name}, content=path.read_bytes())
    assert response.status_code == 200, response.text
    return f"/page/photos/{response.json()['token']}"


def restore(client: Any, photo: str, **settings: Any) -> dict[str, Any]:
    response = client.post(f"{photo}/restore", params=settings)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def count_runs(service: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a model's network runs from here on."""
    restorer, runs = service.models.restorer(model), [0]
    engine = restorer.engine

    def run(pixels: Any) -> Any:
        runs[0] += 1
        return engine(pixels)

    monkeypatch.setattr(restorer, "engine", run)
    return runs


def test_another_strength_of_maps_needs_no_network(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EXAMPLES / "lighthouse.jpg"
    photo = add_photo(client, path)
    result = restore(client, photo)
    assert (result["weather"]["decision"], result["instant_strength"]) == ("haze", True)
    assert result["download"] == "lighthouse-clear.jpg"
    runs = count_runs(service, "dehaze", monkeypatch)
    for strength in (1.0, 0.37):
        response = client.get(f"{photo}/file", params={"strength": strength})
        assert response.content == restored(path, tmp_path / "out.jpg", strength)
        assert client.get(f"{photo}/after", params={"strength": strength}).content == response.content
    assert client.get(f"{photo}/file", params={"strength": 0}).content == path.read_bytes()
    assert client.get(f"{photo}/file", params={"weather": "none"}).content == path.read_bytes()
    assert client.get(f"{photo}/haze-map").headers["content-type"] == "image/png"
    assert runs == [0]
    unchanged = restore(client, photo, weather="none")
    assert (unchanged["models"], unchanged["instant_strength"]) == ([], True)


def test_another_strength_of_an_image_network_runs_it_again(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "rain.png", {"model": "derain"}
    images.write(path, images.read(EXAMPLES / "shutters.jpg").pixels[:200, :300])
    photo = add_photo(client, path)
    assert restore(client, photo, **settings)["instant_strength"] is False
    runs = count_runs(service, "derain", monkeypatch)
    for strength, expected_runs in ((1.0, 0), (0.5, 1)):
        response = client.get(f"{photo}/file", params={**settings, "strength": strength})
        assert response.content == restored(path, tmp_path / "out.png", strength, model="derain")
        assert runs == [expected_runs]
    refusal(client.get(f"{photo}/haze-map", params=settings), 404, "no_map")


def test_photos_that_browsers_do_not_show_are_shown_as_jpeg(client: Any, tmp_path: Path) -> None:
    pixels = hazy(90, 120, np.uint16)
    alpha = np.full(pixels.shape[:2], 65535, np.uint16)
    alpha[:20] = 0
    path = tmp_path / "deep.png"
    images.write(path, images.Photo(pixels, alpha, images.Kind(format="PNG", mode="RGBA")))
    photo = add_photo(client, path)
    restore(client, photo)
    for name in ("before", "after", "thumbnail"):
        response = client.get(f"{photo}/{name}")
        assert response.headers["content-type"] == "image/jpeg"
        (tmp_path / "shown").write_bytes(response.content)
        assert images.read(tmp_path / "shown").pixels.dtype == np.uint8
    assert client.get(f"{photo}/file").content == restored(path, tmp_path / "out.png")


def test_photos_that_are_not_stored(client: Any, service: Any, tmp_path: Path) -> None:
    for name in ("before", "after", "thumbnail", "haze-map", "file"):
        refusal(client.get(f"/page/photos/no-such-token/{name}"), 404, "gone")
    before = len(list(service.folders.root.iterdir()))
    refusal(client.post("/page/photos", params={"name": "notes.txt"}, content=b"some words"), 415, "not_a_photo")
    assert len(list(service.folders.root.iterdir())) == before
    photo = add_photo(client, EXAMPLES / "lighthouse.jpg")
    token = photo.rsplit("/", 1)[1]
    refusal(client.get(f"{VIDEOS}/{token}"), 404, "gone")  # the token of a photo
    refusal(client.delete(f"{VIDEOS}/{token}"), 404, "gone")
    refusal(client.post(f"{photo}/video"), 422, "bad_setting")
    refusal(client.get(f"{photo}/thumbnail"), 404, "gone")  # not written yet
    refusal(client.post(f"{photo}/restore", params={"model": "no"}), 404, "unknown_model")
    assert [client.delete(photo).status_code for _ in range(2)] == [204, 204]
    refusal(client.get(f"{photo}/before"), 404, "gone")
    location = add_video(client, video(tmp_path / "a.mp4", 2), weather="none")
    wait_for(client, location)
    assert client.delete(f"/page/photos/{location.rsplit('/', 1)[1]}").status_code == 204
    assert client.get(location).json()["state"] == "done"  # the token of a video
    client.delete(location)


def test_a_photo_in_use_does_not_expire(web: None, tmp_path: Path) -> None:
    from fairweather.web.jobs import Service
    from fairweather.web.limits import Limits
    from fairweather.web.page import PagePhotos

    service = Service(Limits(keep=1), parent=tmp_path)
    photos = PagePhotos(service)
    folder = service.folders.new()
    (folder / "source").write_bytes((EXAMPLES / "lighthouse.jpg").read_bytes())
    photo = photos.add(folder, folder / "source", "a.jpg")
    photo.last_used -= 61
    with photo.lock:
        service.store.expire()
    assert service.store.all() == [photo]
    service.store.expire()
    assert not folder.exists()
    service.close()


@pytest.mark.parametrize(
    ("name", "how"),
    [("b.mkv", {"pixel_format": "yuv420p10le", "codec": "libx265", "audio": "aac"}),
     ("c.gif", {"codec": "gif", "pixel_format": "rgb8", "time_base": Fraction(1, 100)}), ("d.mov", {"rotation": 90})],
)  # fmt: skip
def test_the_page_plays_a_preview_where_browsers_cannot(
    client: Any, tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    shown = {} if "audio" in how else {"shown": hazy_frames(12, 118, 158)}
    path = make(tmp_path / name, size=(158, 118), **how, **shown)
    photo = add_photo(client, path)
    assert restore(client, photo, **FAST)["video"] == {"frames": 12, "seconds": pytest.approx(0.48), "missing": None}
    response = client.post(f"{photo}/video", params=FAST)
    assert response.status_code == 202, response.text
    location = response.headers["location"]
    videos = f"/page/videos/{wait_for(client, location)['id']}"
    (tmp_path / "frame.jpg").write_bytes(client.get(f"{photo}/before").content)
    upright = (158, 118) if name == "d.mov" else (118, 158)
    assert images.read(tmp_path / "frame.jpg").pixels.shape[:2] == upright
    result = tmp_path / f"result{path.suffix}"
    result.write_bytes(client.get(f"{location}/result").content)
    for side, original in (("before", path), ("after", result)):
        response = client.get(f"{videos}/{side}")
        assert response.headers["content-type"] == "video/mp4"
        (tmp_path / f"{side}.mp4").write_bytes(response.content)
        times, frames = frames_of(tmp_path / f"{side}.mp4")
        with av.open(str(tmp_path / f"{side}.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert len(file.streams.audio) == int("audio" in how and side == "after")
        expected_times, expected = frames_of(original)
        assert np.allclose([float(time) for time in times], [float(time) for time in expected_times], atol=0.011)
        if name != "d.mov":  # its frames are stored on their side
            one, other = (cv2.blur(pixels[5], (9, 9)).astype(int) for pixels in (frames, expected))
            assert np.abs(one - other).mean() < 4  # without the dithering of a GIF
    assert client.get(f"{videos}/other").status_code == 422
    assert client.get("/page/videos/no-such-token/after").status_code == 404
    client.delete(location)
    client.delete(photo)
