"""Clips by the API: what comes is what the command writes, what is refused says why, what is stopped leaves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.video.conftest import av, frames_of, make, packets_of
from tests.web.conftest import EXAMPLES, sailing
from tests.web.test_api import told

CLIPS = "/api/v1/clips"
FIELDS = {
    *("id", "name", "state", "frames", "total", "frames_a_second", "seconds_left", "width", "height", "seconds"),
    *("sound", "weather", "models", "changed", "download", "error"),
}
FAST = {"model": "dehaze-fast"}


def film(path: Path, count: int = 12, size: tuple[int, int] = (160, 120), **how: Any) -> Path:
    return make(path, size=size, count=count, shown=sailing(count, size[1], size[0]), **how)


def sent(client: Any, path: Path, **settings: Any) -> str:
    """The address of a clip that was taken."""
    answer = client.post(CLIPS, params={"name": path.name, **settings}, content=path.read_bytes())
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{CLIPS}/{answer.json()['id']}"
    return str(answer.headers["location"])


def ended(client: Any, place: str, state: str = "done") -> dict[str, Any]:
    for _ in range(600):
        found: dict[str, Any] = client.get(place).json()
        if found["state"] in ("done", "failed"):
            assert found["state"] == state, found
            return found
        time.sleep(0.03)
    raise AssertionError("the clip is never done")


def commanded(path: Path, out: Path, **wanted: Any) -> Path:
    """What `fairweather restore` writes."""
    from fairweather.inference.batch import Job, run
    from fairweather.inference.restorer import RestoreOptions

    run([Job(str(path), str(out), video=True)], RestoreOptions(**wanted))
    return out


@pytest.mark.parametrize(
    ("name", "how", "settings"),
    [
        ("a.mp4", {"audio": "aac"}, {}),
        ("b.mkv", {"audio": "aac"}, {**FAST, "strength": 0.6, "guard": False}),
        ("c.webm", {"codec": "libvpx-vp9", "audio": "libopus"}, FAST),
    ],
)
def test_it_gives_what_the_command_gives(
    client: Any, tmp_path: Path, name: str, how: dict[str, Any], settings: dict[str, Any]
) -> None:
    path = film(tmp_path / name, **how)
    place = sent(client, path, **{key: str(value) for key, value in settings.items()})
    found = ended(client, place)
    assert (found["frames"], found["total"], found["changed"]) == (12, 12, True)
    assert found["models"] == [settings.get("model", "dehaze")]
    assert found["frames_a_second"] > 0
    assert settings or found["weather"]["decided"] == "haze"
    answer = client.get(f"{place}/result")
    assert f'filename="{name[0]}-clear{path.suffix}"' in answer.headers["content-disposition"]
    (tmp_path / f"web{path.suffix}").write_bytes(answer.content)
    command = commanded(path, tmp_path / f"command{path.suffix}", **settings)
    for one, other in zip(frames_of(tmp_path / f"web{path.suffix}"), frames_of(command), strict=True):
        assert np.array_equal(one, other)
    if "audio" in how:
        assert packets_of(tmp_path / f"web{path.suffix}", "audio") == packets_of(path, "audio")
    part = client.get(f"{place}/result", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, answer.content[10:20])
    assert client.delete(place).status_code == 204
    assert told(client.get(place), 404, "gone")


def test_a_clear_clip_and_no_strength_give_the_very_file(client: Any, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 4)
    for settings in ({"weather": "none"}, {"strength": 0}):
        place = sent(client, path, **settings)
        assert ended(client, place)["changed"] is False
        assert client.get(f"{place}/result").content == path.read_bytes()
        client.delete(place)


def test_the_documented_call_runs(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "harbour.mp4", audio="aac")
    monkeypatch.chdir(tmp_path)
    snippet = (ROOT / "docs" / "api.md").read_text().split("```python\n")[2].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(snippet.replace("http://127.0.0.1:7860", server.address), "docs/api.md", "exec"), names)
    assert set(names["told"]) | {"error"} == FIELDS
    assert len(frames_of(tmp_path / "clear.mp4")[0]) == 12


def test_a_form_takes_a_clip_too(client: Any, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 4)
    answer = client.post(CLIPS, params=FAST, files={"clip": (path.name, path.read_bytes())})
    assert answer.json()["name"] == "a.mp4"
    ended(client, answer.headers["location"])
    client.delete(answer.headers["location"])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Clips that are begun wait before their second frame until this is set."""
    from fairweather.web import jobs

    free = threading.Event()

    class Slow(jobs.VideoRestorer):
        def begin(self, frame: Any, step: float) -> Callable[[], Any]:
            from fairweather.inference.cancellation import check_cancelled

            while step and not free.wait(0.02):
                check_cancelled()
            return super().begin(frame, step)

    monkeypatch.setattr(jobs, "VideoRestorer", Slow)
    yield free
    free.set()


def begun(client: Any, place: str) -> None:
    for _ in range(300):
        if client.get(place).json()["frames"]:
            return
        time.sleep(0.02)
    raise AssertionError("the clip is never begun")


def working() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("clips", "read", "finish", "write")]


def test_photos_are_answered_beside_it_others_wait_and_it_can_be_stopped(
    client: Any, service: Any, tmp_path: Path, held: threading.Event
) -> None:
    path = film(tmp_path / "a.mp4", 24)
    first = sent(client, path, **FAST)
    second = sent(client, path, **FAST)
    third = sent(client, path, **FAST)
    answer = client.post(CLIPS, params=FAST, content=path.read_bytes())
    told(answer, 503, "busy")
    assert int(answer.headers["retry-after"]) > 0
    begun(client, first)
    told(client.get(f"{first}/result"), 409, "not_ready")
    assert [client.get(one).json()["state"] for one in (first, second)] == ["working", "waiting"]
    photo = client.post("/api/v1/restore", params=FAST, content=(EXAMPLES / "lighthouse.jpg").read_bytes())
    assert photo.status_code == 200
    assert client.get(first).json()["state"] == "working"
    start = time.monotonic()
    assert [client.delete(one).status_code for one in (second, first)] == [204, 204]
    assert time.monotonic() - start < 3
    told(client.get(first), 404, "gone")
    held.set()
    ended(client, third)
    client.delete(third)
    for _ in range(100):
        if not working():
            break
        time.sleep(0.02)
    assert not working(), "a thread is left"
    assert [one.name for one in service.folders.root.iterdir() if not (one / "source").exists()] == ["lock"]
    assert service.budget.held == 0


def small(tmp_path: Path, **limits: Any) -> Any:
    from starlette.testclient import TestClient

    from fairweather.web.app import create
    from fairweather.web.jobs import PhotoService
    from fairweather.web.limits import Limits

    service = PhotoService(Limits(**limits), parent=tmp_path)
    client = TestClient(create(service, page=False), base_url="http://127.0.0.1")
    client.service = service  # type: ignore[attr-defined]
    return client


def test_its_time_is_limited_and_the_server_s_end_stops_it(web: None, tmp_path: Path, held: threading.Event) -> None:
    path = film(tmp_path / "a.mp4", 24)
    (tmp_path / "server").mkdir()
    client = small(tmp_path / "server", work=0.8)
    late = sent(client, path, **FAST)
    assert ended(client, late, "failed")["error"]["kind"] == "too_slow"
    told(client.get(f"{late}/result"), 504, "too_slow")
    begun(client, sent(client, path, **FAST))
    client.service.close()
    assert not working()
    assert not list((tmp_path / "server").iterdir())


def test_clips_go_when_their_time_is_over(web: None, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 4)
    (tmp_path / "server").mkdir()
    client = small(tmp_path / "server", keep=0.005, disk=10_000_000)
    place = sent(client, path, weather="none")
    ended(client, place)
    time.sleep(0.35)
    client.service.shelf.tidy()
    told(client.get(place), 404, "gone")
    assert [one.name for one in client.service.folders.root.iterdir()] == ["lock"]
    client.service.close()


class Streamed:
    """A file that is written from front to back: it says nothing of its length."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()


def streamed(path: Path, count: int) -> Path:
    target = Streamed(path)
    with av.open(target, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in sailing(count, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(stream.encode(None))
    target.close()
    return path


def test_what_the_file_says_of_its_length_is_not_believed(web: None, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    client = small(tmp_path / "server", length=1.0)
    long = film(tmp_path / "long.mp4", 50, (64, 48))
    assert "1 s" in told(client.post(CLIPS, params=FAST, content=long.read_bytes()), 413, "too_long")
    quick = make(tmp_path / "quick.mp4", times=list(range(150)), time_base=Fraction(1, 1000))
    told(client.post(CLIPS, params=FAST, content=quick.read_bytes()), 413, "too_long")
    place = sent(client, streamed(tmp_path / "unsaid.mkv", 50), **FAST)
    assert ended(client, place, "failed")["error"]["kind"] == "too_long"
    assert [one.name for one in (client.service.folders.root / "00000003").iterdir()] == []
    place = sent(client, streamed(tmp_path / "short.mkv", 10), **FAST)
    assert ended(client, place)["frames"] == 10
    client.service.close()


def test_settings_and_names_that_are_none(client: Any) -> None:
    told(client.post(CLIPS, params={"model": "no-such"}, content=b"not looked at"), 404, "unknown_model")
    told(client.post(CLIPS, params={"strength": "2"}, content=b"not looked at"), 422, "bad_setting")
    for name in ("no-such-token", "00000001", "lock", "%2e", "a%00b"):
        assert client.get(f"{CLIPS}/{name}").status_code in (400, 404)
        assert client.get(f"{CLIPS}/{name}/result").status_code in (400, 404)
    told(client.get(f"{CLIPS}/..%2f..%2fetc%2fpasswd/result"), 400, "bad_path")
    photo = client.post("/page/photos", content=(EXAMPLES / "lighthouse.jpg").read_bytes()).json()["token"]
    told(client.get(f"{CLIPS}/{photo}"), 404, "gone")  # a photo's token is no clip's
    told(client.delete(f"{CLIPS}/{photo}"), 404, "gone")
    told(client.post(f"/page/photos/{photo}/clip"), 422, "bad_setting")
    told(client.get(f"/page/photos/{photo}/thumb"), 404, "gone")  # nobody has looked yet
    client.delete(f"/page/photos/{photo}")


def test_a_clip_is_no_photo_to_be_removed_and_a_lost_file_is_said(client: Any, service: Any, tmp_path: Path) -> None:
    place = sent(client, film(tmp_path / "a.mp4", 2), weather="none")
    ended(client, place)
    assert client.delete(f"/page/photos/{place.rsplit('/', 1)[1]}").status_code == 204
    assert client.get(place).json()["state"] == "done"
    service.films.get(place.rsplit("/", 1)[1]).source.unlink()
    told(client.get(f"{place}/result"), 404, "gone")
    client.delete(place)


def test_without_a_thread_nothing_is_begun_and_the_next_clip_is(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, start, kept = film(tmp_path / "a.mp4", 2), threading.Thread.start, len(service.shelf.all())

    def started(thread: threading.Thread) -> None:
        if thread.name == "clips":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    with pytest.raises(RuntimeError, match="new thread"):
        client.post(CLIPS, params={"weather": "none"}, content=path.read_bytes())
    monkeypatch.undo()
    assert len(service.shelf.all()) == kept
    place = sent(client, path, weather="none")
    ended(client, place)
    client.delete(place)
