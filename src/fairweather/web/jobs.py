"""The jobs of a server: requests in a bounded queue, each in a thread, and videos one at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from fairweather.errors import BadImage, BadSettings, FairweatherError
from fairweather.images.codecs import Header, sniff
from fairweather.images.formats import FORMATS
from fairweather.images.io import header, read, write
from fairweather.inference.cancellation import Cancelled, cancel_scope, check_cancelled
from fairweather.inference.memory import (
    BASE_ALLOWANCE_AUTO,
    COMFORTABLE_WINDOW_AUTO,
    MemoryBudget,
    available_memory,
    resident_memory,
)
from fairweather.inference.temporal import VideoRestorer
from fairweather.inference.weather_detection import RestorePlan, Weather
from fairweather.video.encoding import choose_encoding
from fairweather.video.pipeline import VideoProgress, process_video
from fairweather.video.reader import Frame, VideoReader
from fairweather.video.writer import FrameWriter, VideoWriter
from fairweather.web import uploads
from fairweather.web.browser_preview import BrowserPreview
from fairweather.web.limits import Limits, RequestRefused, as_refusal
from fairweather.web.model_registry import ModelRegistry, RestoreSettings
from fairweather.web.storage import ServerFolders, TTLStore, remove_tree, tree_size
from fairweather.web.uploads import VideoInfo

if TYPE_CHECKING:
    from av import Packet

T = TypeVar("T")
RETRY_SECONDS = 5
"""Value of Retry-After for a request that found the queue full."""
VIDEO_RETRY_SECONDS = 30
"""The same for a video."""
SHUTDOWN_SECONDS = 10.0
"""Seconds to wait for a cancelled video to end."""
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif", "HEIF": ".heic",
            "BMP": ".bmp", "PPM": ".ppm"}  # fmt: skip
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff",
               "AVIF": "image/avif", "HEIF": "image/heic", "BMP": "image/bmp",
               "PPM": "image/x-portable-anymap"}  # fmt: skip
_log = logging.getLogger("fairweather")


class RestoredFile(NamedTuple):
    """A restored photo."""

    path: Path
    header: Header
    plan: RestorePlan
    changed: bool
    """False: the file is the uploaded one."""


class Service:
    """The state that the page and the API share: limits, queues, memory, models and files.

    Args:
        limits: the server's limits.
        models: creates the model registry from the function that returns the memory for a network's windows.
        memory: bytes for the whole process; None: three quarters of what is free.
        parent: the folder of the server's folder; None: the system's temporary folder.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        models: Callable[[Callable[[], int]], ModelRegistry] = lambda memory: ModelRegistry(memory=memory),
        memory: int | None = None,
        parent: Path | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        total = resident_memory() + 3 * available_memory() // 4 if memory is None else memory
        self.budget = MemoryBudget(total, allowance=BASE_ALLOWANCE_AUTO, copies=2, comfortable=COMFORTABLE_WINDOW_AUTO)
        self.budget.begin()
        self.models = models(self.budget.windows)
        self.requests = RequestQueue(self.limits)
        self.folders = ServerFolders(parent)
        self.store = TTLStore(self.limits)
        self.videos = VideoQueue(self)
        self._released = threading.Condition()

    def close(self) -> None:
        """Cancel all work and remove every file."""
        self.requests.close()
        self.videos.close()
        self.folders.close()

    def read_header(self, path: Path, name: str) -> Header:
        """Read the header of an uploaded photo.

        Raises:
            RequestRefused: 413 for too many pixels, 415 for a file that is not a photo, 422 for a damaged one.
        """
        try:
            if uploads.video_demuxer(path):
                raise uploads.video_instead_of_photo(name)
            with path.open("rb") as file:
                start = file.read(64)
            if start and not sniff(start):
                raise RequestRefused(
                    415, "not_a_photo", f"{name} is not a photo that can be read: send JPEG, PNG, WebP, TIFF, AVIF or "
                    f"HEIC, or a video as {uploads.VIDEO_FORMATS}"
                )  # fmt: skip
            found = header(path, max_pixels=2**62)
        except (FairweatherError, OSError, MemoryError) as error:
            raise as_refusal(error, str(path), name) from None
        if found.width * found.height > self.limits.max_pixels:
            raise RequestRefused(
                413, "too_many_pixels", f"{name} has {found.width:,} x {found.height:,} pixels, more than the "
                f"{self.limits.max_pixels / 1e6:g} megapixels that this server accepts: make it smaller"
            )  # fmt: skip
        return found

    def restore(self, source: Path, name: str, settings: RestoreSettings) -> RestoredFile:
        """Restore a photo to a file next to it, as `fairweather restore` does.

        Raises:
            RequestRefused: it cannot be restored.
        """
        found = self.read_header(source, name)
        result = source.with_name(f"restored{SUFFIXES[found.format]}")
        with self.named_errors(source, name), self.photo_memory(source, name, result):
            self.models.check(settings)
            photo = read(source, max_pixels=self.limits.max_pixels)
            check_cancelled()
            plan = self.models.plan(lambda: self.models.auto.detect(photo.pixels), settings)
            if not plan.parts or settings.strength == 0:
                return RestoredFile(source, found, plan, False)
            pixels = self.models.auto.apply(photo.pixels, plan, settings.strength, settings.guard)
            check_cancelled()
            write(result, photo.replaced(pixels))
        return RestoredFile(result, found, plan, True)

    @contextmanager
    def named_errors(self, path: Path, name: str) -> Iterator[None]:
        """Convert errors in the block to RequestRefused, which names the file as the client does."""
        try:
            yield
        except (Cancelled, RequestRefused):
            raise
        except Exception as error:
            check_cancelled()  # work that is cancelled at shutdown may fail first, for lack of threads
            refused = as_refusal(error, str(path), name)
            if refused.status == 500:
                _log.exception("%s", name)
            raise refused from error

    def photo_memory(self, source: Path, name: str, result: Path | None = None) -> AbstractContextManager[None]:
        """Wait for the memory that a photo needs, and reserve it. Raises RequestRefused (413) and Cancelled."""
        return self._reserved(
            lambda: self.budget.admit(source, result or source, self.limits.max_pixels),
            lambda: self.budget.release(source),
            f"{name} is",
        )

    def video_memory(self, need: int, name: str) -> AbstractContextManager[None]:
        """Wait for the bytes that a video needs, and reserve them. Raises RequestRefused (413) and Cancelled."""
        return self._reserved(
            lambda: self.budget.hold(need), lambda: self.budget.free(need), f"the frames of {name} are"
        )

    @contextmanager
    def _reserved(self, reserve: Callable[[], bool], release: Callable[[], None], what: str) -> Iterator[None]:
        with self._released:
            while True:
                try:
                    if reserve():
                        break
                except (BadImage, BadSettings):
                    raise RequestRefused(
                        413, "too_many_pixels", f"{what} too large for this server's memory: make it smaller"
                    ) from None
                self._released.wait(0.2)
                check_cancelled()
        try:
            yield
        finally:
            with self._released:
                release()
                self._released.notify_all()


class RequestQueue:
    """A bounded number of requests, a few of which are processed at once, each in a thread for a bounded time.

    A slot is taken before a request's body is received, so that bodies on disk are bounded too. (Of anyio, a
    CapacityLimiter would free its place while the thread of an overdue request still runs.)
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.active = 0
        """Requests that have a slot."""
        self._pool = ThreadPoolExecutor(limits.workers, "request")
        self._running: set[threading.Event] = set()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Take a slot, or raise RequestRefused (503) at once if none is free. Called in the event loop's thread."""
        if self.active >= self.limits.workers + self.limits.queue:
            raise RequestRefused(
                503, "busy", f"the server is busy with {self.active} requests: try again in {RETRY_SECONDS} s",
                RETRY_SECONDS
            )  # fmt: skip
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in a thread as soon as one is free.

        Raises:
            RequestRefused: 504 if it does not finish in time, after which it is cancelled.
            Exception: any exception of the function.
        """
        cancel = threading.Event()

        def cancellable() -> T:
            with cancel_scope(cancel):
                check_cancelled()
                return work()

        self._running.add(cancel)
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await asyncio.get_running_loop().run_in_executor(self._pool, cancellable)
        except (TimeoutError, Cancelled):
            raise RequestRefused(
                504, "timeout", f"the request took longer than {self.limits.timeout:g} s, the limit of this server: "
                "make the photo smaller, choose another model, or try again later", RETRY_SECONDS
            ) from None  # fmt: skip
        finally:
            cancel.set()
            self._running.discard(cancel)

    def close(self) -> None:
        """Cancel all requests."""
        for cancel in list(self._running):
            cancel.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


TaskState = Literal["waiting", "working", "done", "failed"]


@dataclass
class VideoTask:
    """One video to restore, from its upload to its result."""

    folder: Path
    source: Path
    name: str
    info: VideoInfo
    settings: RestoreSettings
    smooth: bool = True
    weather: Weather | None = None
    """The detected weather; None until it is known."""
    on_page: bool = False
    """Whether the page plays it, before and after."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    last_used: float = field(default_factory=time.monotonic)
    state: TaskState = "waiting"
    plan: RestorePlan | None = None
    progress: VideoProgress = field(default_factory=VideoProgress)
    changed: bool | None = None
    missing: str | None = None
    """What the file declares but does not contain."""
    error: RequestRefused | None = None
    overdue: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def busy(self) -> bool:
        return self.state in ("waiting", "working")

    @property
    def result(self) -> Path:
        return self.source if self.changed is False else self.folder / f"result{self.info.suffix}"

    def stop(self) -> None:
        """Cancel it, and wait until nothing more is written."""
        self.cancel.set()
        if self.state == "working":
            self.ended.wait(SHUTDOWN_SECONDS)

    def playable(self, side: Literal["before", "after"]) -> Path:
        """The file that a browser plays."""
        if self.info.playable:
            return self.source if side == "before" else self.result
        return self.folder / f"{side}.mp4"


class VideoQueue:
    """The videos of a server: one is restored at a time, in a thread; a bounded number waits."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._queue: list[VideoTask] = []
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self, task: VideoTask) -> VideoTask:
        """Queue a video; its folder belongs to the task from here on.

        Raises:
            RequestRefused: 503 if too many wait; the folder then still belongs to the caller.
        """
        with self._lock:
            busy = sum(isinstance(item, VideoTask) and item.busy for item in self.service.store.all())
            if self._closed or busy > self.service.limits.queue:
                raise RequestRefused(
                    503, "busy", f"the server has {busy} videos to restore: try again in {VIDEO_RETRY_SECONDS} s",
                    VIDEO_RETRY_SECONDS
                )  # fmt: skip
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="videos", daemon=True)
                worker.start()  # waits for the lock; where it cannot start, nothing is queued
                self._worker = worker
            self.service.store.add(task)
            self._queue = [*(waiting for waiting in self._queue if not waiting.cancel.is_set()), task]
        return task

    def get(self, token: str) -> VideoTask:
        """Return the task of a token. Raises RequestRefused (404)."""
        found = self.service.store.get(token)
        if not isinstance(found, VideoTask):
            raise RequestRefused(
                404, "gone", f"unknown video (videos are stored for {self.service.limits.keep:g} min): "
                "send it again"
            )  # fmt: skip
        return found

    def close(self) -> None:
        """Cancel all videos."""
        with self._lock:
            self._closed, worker = True, self._worker
            for task in self._queue:
                task.cancel.set()
            self._queue.clear()
        self.service.store.close()
        if worker is not None:
            worker.join(SHUTDOWN_SECONDS)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._worker = None
                    return
                task = self._queue.pop(0)
                task.state = "failed" if task.cancel.is_set() else "working"
            if task.state == "working":
                self._run(task)

    def _run(self, task: VideoTask) -> None:
        def set_overdue() -> None:
            task.overdue = True
            task.cancel.set()

        limits = self.service.limits
        timer = threading.Timer(limits.video_timeout, set_overdue)
        timer.daemon = True
        state: TaskState = "failed"
        try:
            timer.start()
            with cancel_scope(task.cancel):
                self._restore(task)
            state = "done"
        except Exception as error:
            if task.overdue:
                task.error = RequestRefused(
                    504, "timeout", f"{task.name} took longer than {limits.video_timeout:g} s, the limit of this "
                    "server: make it smaller or shorter, or choose another model"
                )  # fmt: skip
            elif not task.cancel.is_set():
                task.error = uploads.video_error(error, task.source, task.name, limits)
        finally:
            timer.cancel()
            with suppress(OSError):  # the folder may have been removed
                if state == "failed":
                    for path in task.folder.iterdir():
                        path.unlink(missing_ok=True)
                elif task.changed and not (task.on_page and task.info.playable):
                    task.source.unlink(missing_ok=True)
            if task.cancel.is_set() and not task.overdue:
                remove_tree(task.folder)  # again, since files may have been written while it was removed
            task.last_used = time.monotonic()
            task.state = state
            task.ended.set()

    def _restore(self, task: VideoTask) -> None:
        service, settings, info = self.service, task.settings, task.info
        models, limits = service.models, service.limits

        def detect() -> Weather:
            if task.weather is None:
                task.weather = uploads.video_weather(task.source, info, limits, models.auto.detect)
            return task.weather

        with ExitStack() as closing:
            closing.enter_context(service.video_memory(info.memory, task.name))
            video = uploads.open_upload(task.source, info.demuxer, limits, info.pixels)
            closing.callback(video.close)
            task.plan = RestorePlan(None, ()) if settings.strength == 0 else models.plan(detect, settings)
            changed = bool(task.plan.parts)
            parts = [(models.restorer(part.model), settings.strength * part.amount) for part in task.plan.parts]
            if changed or (task.on_page and not info.playable):
                task.changed = changed or None  # until it is done the source is not the result
                self._process(task, video, VideoRestorer(parts, guard=settings.guard, smooth=task.smooth))
                task.missing = video.missing()
            task.changed = changed

    def _process(self, task: VideoTask, video: VideoReader, restorer: VideoRestorer) -> None:
        limits, info = self.service.limits, task.info
        with ExitStack() as closing:
            writer: FrameWriter | None = None
            if task.changed:
                writer = VideoWriter(task.result, info.container, video, choose_encoding(video.track, info.container))
            before: BrowserPreview | None = None
            if task.on_page and not info.playable:
                before = BrowserPreview(task.playable("before"), video, info.width, info.height)
                closing.callback(before.close)
                after, size = task.playable("after"), (info.width, info.height)
                writer = BrowserPreview(after, video, *size, sound=True, result=writer)
            assert writer is not None

            calls = count()

            def report(progress: VideoProgress) -> None:
                task.progress = progress
                if next(calls) % 25 == 0 and tree_size(task.folder) > limits.disk:
                    raise RequestRefused(
                        507, "disk_full", f"the result of {task.name} is too large for this server's disk: make it "
                        "smaller or shorter"
                    )  # fmt: skip

            done = process_video(_BoundedVideo(video, task.name, limits, before), writer, restorer, tell=report)
        if not done.frames:
            raise BadImage(f"{task.source}: no frame can be decoded: get a complete copy")


class _BoundedVideo:
    """A video whose frames and seconds are counted while it is read, since its file may declare fewer."""

    live = False

    def __init__(self, video: VideoReader, name: str, limits: Limits, preview: BrowserPreview | None) -> None:
        self.name, self.track, self.stream = video.name, video.track, video.stream
        self._video, self._shown_name, self._limits, self._preview = video, name, limits, preview

    def items(self) -> Iterator[Frame | Packet]:
        limits, frames, first, unit = self._limits, 0, 0, float(self.track.time_base)
        for item in self._video.items():
            if isinstance(item, Frame):
                first, frames = (first if frames else item.time), frames + 1
                seconds = (item.time - first) * unit
                if frames > limits.max_frames or seconds > limits.max_video_seconds + uploads.LENGTH_TOLERANCE:
                    raise uploads.too_long(self._shown_name, limits)
                if self._preview is not None:
                    self._preview.put(item)
            yield item

    def close(self) -> None:
        self._video.close()


def link_or_copy(source: Path, folder: Path) -> Path:
    """Hard-link a file into another folder, or copy it if links are not supported, so that either may be removed."""
    target = folder / source.name
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def photo_result_name(name: str, format: str) -> str:
    """The name of a restored photo: `harbour.jpeg` becomes `harbour-clear.jpeg`."""
    path = Path(name)
    suffix = path.suffix if FORMATS.get(path.suffix.lower()) == format else SUFFIXES[format]
    return f"{path.stem}-clear{suffix}"
