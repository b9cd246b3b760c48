"""The queues: too many requests, slow ones, cancelled ones, and videos one after another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather import images
from fairweather.inference.cancellation import Cancelled, check_cancelled
from tests.video.conftest import av, make
from tests.web.conftest import EXAMPLES, FAST, RESTORE, VIDEOS, add_video, hazy, hazy_frames, refusal, video, wait_for

pytestmark = pytest.mark.usefixtures("web")


def queue(**limits: Any) -> Any:
    from fairweather.web.jobs import RequestQueue
    from fairweather.web.limits import Limits

    return RequestQueue(Limits(**limits))


def test_slots_are_counted_and_returned() -> None:
    from fairweather.web.limits import RequestRefused

    requests = queue(workers=1, queue=1)
    with requests.slot(), requests.slot():
        assert requests.active == 2
        with pytest.raises(RequestRefused, match="busy") as error, requests.slot():
            pass
        assert (error.value.status, error.value.headers["Retry-After"]) == (503, "5")
    with pytest.raises(ZeroDivisionError), requests.slot():
        _ = 1 / 0
    assert requests.active == 0


def test_overdue_requests_are_cancelled_and_waiting_ones_not_started() -> None:
    from fairweather.web.limits import RequestRefused

    requests, cancelled, started = queue(workers=1, timeout=0.1), threading.Event(), []

    def work() -> None:
        try:
            while True:
                check_cancelled()
                time.sleep(0.01)
        finally:
            cancelled.set()

    async def run_both() -> list[Any]:
        return await asyncio.gather(requests.run(work), requests.run(lambda: started.append(1)), return_exceptions=True)

    for error in asyncio.run(run_both()):
        assert isinstance(error, RequestRefused)
        assert (error.status, error.kind) == (504, "timeout")
    assert cancelled.wait(5)
    assert not started


def test_closing_the_service_cancels_what_runs(tmp_path: Path) -> None:
    from fairweather.web.jobs import Service
    from fairweather.web.limits import Limits, RequestRefused

    service, started = Service(Limits(workers=1), parent=tmp_path), threading.Event()

    def work() -> None:
        with service.named_errors(tmp_path, "harbour.jpg"):
            started.set()
            try:
                while True:
                    check_cancelled()
                    time.sleep(0.01)
            except Cancelled:
                raise RuntimeError("cannot schedule new futures after shutdown") from None

    async def run_and_close() -> None:
        task = asyncio.create_task(service.requests.run(work))
        while not started.is_set():
            await asyncio.sleep(0.01)
        service.close()
        await task

    with pytest.raises(RequestRefused) as error:
        asyncio.run(run_and_close())
    assert error.value.status == 504, "it would be logged as a fault of the server"


def test_a_photo_that_needs_too_much_memory(tmp_path: Path) -> None:
    from fairweather.inference.memory import BASE_ALLOWANCE_AUTO, MIN_WINDOW_MEMORY, resident_memory
    from fairweather.web.jobs import Service
    from fairweather.web.limits import RequestRefused
    from fairweather.web.model_registry import RestoreSettings

    memory = resident_memory() + BASE_ALLOWANCE_AUTO + MIN_WINDOW_MEMORY + (40 << 20)
    service = Service(memory=memory, parent=tmp_path)
    images.write(tmp_path / "large.jpg", hazy(2500, 4000))
    with pytest.raises(RequestRefused, match="memory") as error:
        service.restore(tmp_path / "large.jpg", "large.jpg", RestoreSettings())
    assert (error.value.status, error.value.kind) == (413, "too_many_pixels")
    assert not service.budget.reserved
    service.close()


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Videos wait before their second frame until this is set."""
    from fairweather.web import jobs

    resume = threading.Event()

    class Paused(jobs.VideoRestorer):
        def begin(self, frame: Any, step: float) -> Callable[[], Any]:
            while step and not resume.wait(0.02):
                check_cancelled()
            return super().begin(frame, step)

    monkeypatch.setattr(jobs, "VideoRestorer", Paused)
    yield resume
    resume.set()


def running_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("videos", "read", "finish", "write")]


def test_photos_are_answered_beside_videos_which_wait_and_can_be_cancelled(
    client: Any, service: Any, tmp_path: Path, paused: threading.Event
) -> None:
    path, before = video(tmp_path / "a.mp4", 24), set(service.folders.root.iterdir())
    first, second, third = (add_video(client, path, **FAST) for _ in range(3))
    response = client.post(VIDEOS, params=FAST, content=path.read_bytes())
    refusal(response, 503, "busy")
    assert int(response.headers["retry-after"]) > 0
    wait_for(client, first, "working", frames=1)
    refusal(client.get(f"{first}/result"), 409, "not_ready")
    assert client.get(second).json()["state"] == "waiting"
    photo = client.post(RESTORE, params=FAST, content=(EXAMPLES / "lighthouse.jpg").read_bytes())
    assert photo.status_code == 200
    assert client.get(first).json()["state"] == "working"
    start = time.monotonic()
    assert [client.delete(location).status_code for location in (second, first)] == [204, 204]
    assert time.monotonic() - start < 3
    refusal(client.get(first), 404, "gone")
    paused.set()
    wait_for(client, third)
    client.delete(third)
    for _ in range(100):
        if not running_threads():
            break
        time.sleep(0.02)
    assert not running_threads()
    assert set(service.folders.root.iterdir()) == before
    assert service.budget.held == 0


def test_a_videos_time_is_limited_and_closing_the_server_cancels_it(
    small_client: Callable[..., Any], tmp_path: Path, paused: threading.Event
) -> None:
    path, client = video(tmp_path / "a.mp4", 24), small_client(video_timeout=0.8)
    late = add_video(client, path, **FAST)
    assert wait_for(client, late, "failed")["error"]["kind"] == "timeout"
    refusal(client.get(f"{late}/result"), 504, "timeout")
    wait_for(client, add_video(client, path, **FAST), "working", frames=1)
    client.service.close()
    assert not running_threads()


def test_videos_expire(small_client: Callable[..., Any], tmp_path: Path) -> None:
    client = small_client(keep=1.0)
    location = add_video(client, video(tmp_path / "a.mp4", 4), weather="none")
    wait_for(client, location)
    for task in client.service.store.all():
        task.last_used -= 61
    client.service.store.expire()
    refusal(client.get(location), 404, "gone")
    assert [path.name for path in client.service.folders.root.iterdir()] == ["lock"]


class Streamed:
    """A file that is written from front to back, so that it does not declare its length."""

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
        for pixels in hazy_frames(count, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        out.mux(stream.encode(None))
    target.close()
    return path


def test_a_videos_length_is_limited_whatever_its_file_declares(
    small_client: Callable[..., Any], tmp_path: Path
) -> None:
    client = small_client(max_video_seconds=1.0)
    long = video(tmp_path / "long.mp4", 50, (64, 48))
    assert "1 s" in refusal(client.post(VIDEOS, params=FAST, content=long.read_bytes()), 413, "too_long")
    fast = make(tmp_path / "fast.mp4", times=list(range(150)), time_base=Fraction(1, 1000))
    refusal(client.post(VIDEOS, params=FAST, content=fast.read_bytes()), 413, "too_long")
    location = add_video(client, streamed(tmp_path / "undeclared.mkv", 50), **FAST)
    assert wait_for(client, location, "failed")["error"]["kind"] == "too_long"
    assert list((client.service.folders.root / "00000003").iterdir()) == []
    location = add_video(client, streamed(tmp_path / "short.mkv", 10), **FAST)
    assert wait_for(client, location)["frames"] == 10


def test_without_a_thread_nothing_is_queued(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, start, stored = video(tmp_path / "a.mp4", 2), threading.Thread.start, len(service.store.all())

    def fail(thread: threading.Thread) -> None:
        if thread.name == "videos":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        client.post(VIDEOS, params={"weather": "none"}, content=path.read_bytes())
    monkeypatch.undo()
    assert len(service.store.all()) == stored
    location = add_video(client, path, weather="none")
    wait_for(client, location)
    client.delete(location)
