"""The queue: a bounded number of requests inside, of which a few are worked on, each in a thread, for a bounded time.

A place is taken before a request's body is received, so that bodies on disk are bounded too. Work that is overdue is
told to stop (`restoring.stopping`); it gives its thread back at the next step that looks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

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
from fairweather.video import pipeline as way
from fairweather.video.encoding import choose_encoding
from fairweather.video.reader import Frame, VideoReader
from fairweather.video.writer import FrameWriter, VideoWriter
from fairweather.web import uploads
from fairweather.web.browser_preview import BrowserPreview, PreviewWriter, copied_stream
from fairweather.web.limits import Limits, RequestRefused, as_refusal
from fairweather.web.model_registry import ModelRegistry, RestoreSettings
from fairweather.web.storage import ServerFolders, TTLStore, remove_tree, tree_size
from fairweather.web.uploads import ClipFacts

if TYPE_CHECKING:
    from av import Packet

T = TypeVar("T")
RETRY = 5
"""Seconds after which a request that found no place may come again."""


class RequestQueue:
    """Places for requests, and the threads that work for them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._room = limits.at_once + limits.waiting
        self._taken = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(limits.at_once, "turn")
        self._stops: set[threading.Event] = set()
        """Of all that waits or is worked on."""

    @property
    def taken(self) -> int:
        """How many requests are inside."""
        return self._taken

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be inside. Raises Refused (503) at once where all places are taken."""
        with self._lock:
            if self._taken >= self._room:
                raise RequestRefused(
                    503, "busy", f"the server is busy with {self._taken} requests; try again in {RETRY} s", RETRY
                )
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def submit(self, work: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
        """Have work done when its turn comes; gives its future, and what to call when nobody waits for it any more.

        The future raises what `work` raises, and Refused (504) where time ran out before the end.
        """
        stop, deadline = threading.Event(), time.monotonic() + self.limits.seconds

        def run() -> T:
            if stop.is_set() or time.monotonic() > deadline:
                raise self._overdue("waited too long for its turn")
            timer = threading.Timer(deadline - time.monotonic(), stop.set)
            timer.daemon = True
            timer.start()
            try:
                with cancel_scope(stop):
                    return work()
            except Cancelled:
                raise self._overdue("took too long") from None
            finally:
                timer.cancel()

        future = self._pool.submit(run)
        self._stops.add(stop)
        future.add_done_callback(lambda done: self._stops.discard(stop))

        def leave() -> None:
            stop.set()
            future.cancel()

        return future, leave

    def _overdue(self, what: str) -> RequestRefused:
        return RequestRefused(
            504,
            "too_slow",
            f"the photo {what}: this server works for {self.limits.seconds:g} s on one at the most; "
            "make it smaller, take another model, or come again when less is going on",
            RETRY,
        )

    def close(self) -> None:
        """Begin nothing more, and have what is done stop: the threads end before the process does."""
        for stop in list(self._stops):
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


# The clips that a server restores, one after the other beside the photos, in a thread that ends when none is left.

TaskState = Literal["waiting", "working", "done", "failed"]
VIDEO_RETRY = 30
"""Seconds after which somebody whose clip found no place may come again."""
SHUTDOWN_SECONDS = 10.0
"""Seconds for which the end of a clip that was stopped is waited for: what is begun of it is written."""


@dataclass
class VideoTask:
    """One clip that is to be restored, is, or was."""

    folder: Path
    source: Path
    name: str
    facts: ClipFacts
    settings: RestoreSettings
    steady: bool = True
    weather: Weather | None = None
    """What was seen in it; asked for once it is worked on where nobody has looked."""
    shown: bool = False
    """Whether a page plays it, before and after."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    used: float = field(default_factory=time.monotonic)
    state: TaskState = "waiting"
    plan: RestorePlan | None = None
    progress: way.VideoProgress = field(default_factory=way.VideoProgress)
    changed: bool | None = None
    error: RequestRefused | None = None
    late: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def busy(self) -> bool:
        return self.state in ("waiting", "working")

    @property
    def result(self) -> Path:
        return self.source if self.changed is False else self.folder / f"result{self.facts.suffix}"

    def end(self) -> None:
        """Stop the work, and wait until nothing is written any more."""
        self.stop.set()
        if self.state == "working":
            self.ended.wait(SHUTDOWN_SECONDS)

    def view(self, side: Literal["before", "after"]) -> Path:
        """What a browser plays of it."""
        if self.facts.plays:
            return self.source if side == "before" else self.result
        return self.folder / f"{side}.mp4"

    def told(self) -> dict[str, Any]:
        """What whoever waits for it is told."""
        progress, seen, facts = self.progress, self.weather, self.facts
        pace = progress.frames / progress.seconds if progress.frames and progress.seconds else None
        left = None if self.state == "done" or not (pace and facts.frames) else (facts.frames - progress.frames) / pace
        return {
            "id": self.token,
            "name": self.name,
            "state": self.state,
            "frames": progress.frames,
            "total": progress.frames if self.state == "done" and progress.frames else facts.frames,
            "width": facts.width,
            "height": facts.height,
            "seconds": facts.seconds,
            "sound": facts.sound,
            "frames_a_second": pace and round(pace, 2),
            "seconds_left": left and round(max(0.0, left), 1),
            "weather": seen and {"haze": seen.haze, "rain": seen.rain, "decided": seen.decided, "sure": seen.sure},
            "models": None if self.plan is None else [part.model for part in self.plan.parts],
            "changed": self.changed,
            "download": uploads.clip_result_name(self.name, facts),
            **({} if self.error is None else self.error.body()),
        }


class VideoQueue:
    """All clips of one server: a bounded number waits, one is worked on."""

    def __init__(self, service: PhotoService) -> None:
        self.service = service
        self._queue: list[VideoTask] = []
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self, job: VideoTask) -> VideoTask:
        """Have it restored when its turn comes; its folder belongs to it from here on.

        Raises Refused (503) where too many wait; the folder is then still the caller's.
        """
        with self._lock:
            taken = sum(isinstance(one, VideoTask) and one.busy for one in self.service.shelf.all())
            if self._closed or taken > self.service.limits.waiting:
                raise RequestRefused(
                    503, "busy", f"{taken} clips are here to be restored; try again in {VIDEO_RETRY} s", VIDEO_RETRY
                )
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="clips", daemon=True)
                worker.start()  # it waits for the lock; where there is no thread to be had, nothing has happened yet
                self._worker = worker
            self.service.shelf.add(job)
            self._queue = [*(one for one in self._queue if not one.stop.is_set()), job]
        return job

    def get(self, token: str) -> VideoTask:
        """Raises Refused (404) where it is gone."""
        found = self.service.shelf.get(token)
        if not isinstance(found, VideoTask):
            minutes = self.service.limits.keep
            raise RequestRefused(
                404, "gone", f"this clip is not here any more (clips stay {minutes:g} min); send it again"
            )
        return found

    def close(self) -> None:
        """Stop what is done and begin nothing more."""
        with self._lock:
            self._closed, worker = True, self._worker
            for job in self._queue:
                job.stop.set()
            self._queue.clear()
        self.service.shelf.close()
        if worker is not None:
            worker.join(SHUTDOWN_SECONDS)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._worker = None
                    return
                job = self._queue.pop(0)
                job.state = "failed" if job.stop.is_set() else "working"
            if job.state == "working":
                self._one(job)

    def _one(self, job: VideoTask) -> None:
        def late() -> None:
            job.late = True
            job.stop.set()

        timer = threading.Timer(self.service.limits.work, late)
        timer.daemon = True
        state: TaskState = "failed"
        try:
            timer.start()
            with cancel_scope(job.stop):
                self._restore(job)
            state = "done"
        except Exception as error:
            job.error = self._wrong(job, error)
        finally:
            timer.cancel()
            with suppress(OSError):  # gone already where it is not wanted any more
                if state == "failed":
                    for path in job.folder.iterdir():
                        path.unlink(missing_ok=True)
                elif job.changed and not (job.shown and job.facts.plays):
                    job.source.unlink(missing_ok=True)
            if job.stop.is_set() and not job.late:
                remove_tree(
                    job.folder
                )  # whoever stopped it may have waited in vain, and removed what was still written to
            job.used = time.monotonic()
            job.state = state
            job.ended.set()

    def _wrong(self, job: VideoTask, error: Exception) -> RequestRefused | None:
        limits = self.service.limits
        if job.late:
            return RequestRefused(
                504, "too_slow", f"{job.name}: took longer than the {limits.work:g} s that this server works on one "
                "clip; make it smaller or shorter, or take another model"
            )  # fmt: skip
        if job.stop.is_set() or isinstance(error, Cancelled):
            return None
        return uploads.clip_error(error, job.source, job.name, limits)

    def _restore(self, job: VideoTask) -> None:
        service, settings, facts = self.service, job.settings, job.facts
        offer, limits = service.offer, service.limits

        def look() -> Weather:
            if job.weather is None:
                job.weather = uploads.clip_weather(job.source, facts, limits, offer.auto.detect)
            return job.weather

        with ExitStack() as held:
            held.enter_context(service.room(facts.memory, job.name))
            clip = uploads.open_clip(job.source, facts.demuxer, limits, facts.pixels)
            held.callback(clip.close)
            job.plan = RestorePlan(None, ()) if settings.strength == 0 else offer.plan(look, settings)
            changed = bool(job.plan.parts)
            parts = [(offer.restorer(part.model), settings.strength * part.amount) for part in job.plan.parts]
            films = job.shown and not facts.plays
            if changed or films:
                job.changed = changed or None  # until it is done the result is not what came
                self._run(job, clip, VideoRestorer(parts, guard=settings.guard, smooth=job.steady), previews=films)
            job.changed = changed

    def _run(self, job: VideoTask, clip: VideoReader, film: VideoRestorer, *, previews: bool) -> None:
        limits, facts = self.service.limits, job.facts
        with ExitStack() as closing:
            result: FrameWriter | None = None
            if job.changed:
                result = VideoWriter(job.result, facts.container, clip, choose_encoding(clip.track, facts.container))
            before: BrowserPreview | None = None
            if previews:
                before = BrowserPreview(job.view("before"), clip, facts.width, facts.height, sound=False)
                closing.callback(before.close)
                after = BrowserPreview(job.view("after"), clip, facts.width, facts.height, sound=True)
                result = PreviewWriter(after, result)
            assert result is not None
            bounded, often = _Bounded(clip, job.name, limits, before), count()

            def tell(progress: way.VideoProgress) -> None:
                job.progress = progress
                if next(often) % 25 == 0 and tree_size(job.folder) > limits.disk:
                    raise RequestRefused(
                        507, "no_room", f"{job.name}: what it becomes is too large for this server's disk"
                    )

            done = way.process_video(bounded, result, film, tell=tell)
        if not done.frames:
            raise BadImage(f"{job.source}: no frame of it can be decoded; get a whole copy")


class _Bounded:
    """A clip whose frames and seconds are counted as they come, since what the file says of them may be untrue."""

    live = False

    def __init__(self, clip: VideoReader, name: str, limits: Limits, preview: BrowserPreview | None) -> None:
        self.name, self.track, self.stream = clip.name, clip.track, clip.stream
        self._clip, self._called, self._limits, self._preview = clip, name, limits, preview

    def items(self) -> Iterator[Frame | Packet]:
        frames, first, unit = 0, 0, float(self.track.time_base)
        for item in copied_stream(self._clip.items(), self._preview):
            if isinstance(item, Frame):
                first, frames = (first if frames else item.time), frames + 1
                if (
                    frames > self._limits.frames
                    or (item.time - first) * unit > self._limits.length + uploads.CLIP_SLACK
                ):
                    raise uploads.too_long(self._called, self._limits)
            yield item

    def close(self) -> None:
        self._clip.close()


def linked(source: Path, folder: Path) -> Path:
    """The same file in another folder, without a copy where the disk can do that, so that either may go first."""
    target = folder / source.name
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def new_folder(service: PhotoService, fill: Callable[[Path], VideoTask]) -> VideoTask:
    """A job that `fill` makes in a new folder, begun; the folder goes where that fails."""
    folder = service.folders.new()
    try:
        return service.films.start(fill(folder))
    except BaseException:
        remove_tree(folder)
        raise


# What the page and the API share: limits, the queue, memory, models, and the way of a photo from file to file.

SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif", "HEIF": ".heic",
          "BMP": ".bmp", "PPM": ".ppm"}  # fmt: skip
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff", "AVIF": "image/avif",
        "HEIF": "image/heic", "BMP": "image/bmp", "PPM": "image/x-portable-anymap"}  # fmt: skip
_log = logging.getLogger("fairweather")


class RestoredFile(NamedTuple):
    """A finished file, and what was done for it."""

    path: Path
    header: Header
    plan: RestorePlan
    changed: bool
    """False: the file is the one that came, byte for byte."""


class PhotoService:
    """One server's work. `offered` makes the offer of models from the function that tells a network its memory."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        offered: Callable[[Callable[[], int]], ModelRegistry] = lambda memory: ModelRegistry(memory=memory),
        memory: int | None = None,
        parent: Path | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        total = resident_memory() + 3 * available_memory() // 4 if memory is None else memory
        self.budget = MemoryBudget(
            total, allowance=BASE_ALLOWANCE_AUTO, copies=2, comfortable=COMFORTABLE_WINDOW_AUTO
        )
        self.budget.begin()
        self.offer = offered(self.budget.windows)
        self.turns = RequestQueue(self.limits)
        self.folders = ServerFolders(parent)
        self.shelf = TTLStore(self.limits)
        self.films = VideoQueue(self)
        self._freed = threading.Condition()

    def close(self) -> None:
        """Begin nothing more, remove every file."""
        self.turns.close()
        self.films.close()
        self.folders.close()

    async def answer(self, work: Callable[[], T]) -> T:
        """What `work` gives when its turn comes. Raises what it raises; Refused (504) in time whatever it does."""
        future, leave = self.turns.submit(work)
        try:
            async with asyncio.timeout(self.limits.seconds + 1):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise RequestRefused(
                504, "too_slow", "this took too long; make the photo smaller, or come again later"
            ) from None
        finally:
            leave()

    def probe(self, path: Path, name: str) -> Header:
        """The header of a file that came in. Raises Refused: 415 for what is no photo, 413 for too many pixels, 422."""
        try:
            start = uploads.start_of(path)
            if uploads.is_clip_upload(start):
                raise uploads.refusal(name)
            if start and sniff(start) in ("", "GIF"):
                raise RequestRefused(
                    415, "not_a_picture", f"{name}: is not a picture that can be read; "
                    f"give it as JPEG, PNG, WebP, TIFF, AVIF or HEIC, a clip as {uploads.ACCEPTED_CONTAINERS}"
                )  # fmt: skip
            found = header(path, max_pixels=2**62)
        except (FairweatherError, OSError, MemoryError) as error:
            raise as_refusal(error, str(path), name) from None
        if found.width * found.height > self.limits.pixels:
            raise RequestRefused(
                413,
                "too_many_pixels",
                f"{name}: has {found.width:,} x {found.height:,} pixels, and this server takes "
                f"{self.limits.pixels / 1e6:g} megapixels at the most; make it smaller",
            )
        return found

    def memory(self, source: Path, destination: Path, name: str) -> AbstractContextManager[None]:
        """Wait until there is memory for a photo, and hold it. Raises Refused (413) where there never is, Stopped."""
        return self._taken(
            lambda: self.budget.admit(source, destination, self.limits.pixels),
            lambda: self.budget.release(source),
            f"{name}: is",
        )

    def room(self, need: int, name: str) -> AbstractContextManager[None]:
        """Wait until there is memory for a clip, `need` bytes, and hold it. Raises Refused (413), Stopped."""
        return self._taken(lambda: self.budget.hold(need), lambda: self.budget.free(need), f"{name}: its frames are")

    @contextmanager
    def _taken(self, take: Callable[[], bool], release: Callable[[], None], what: str) -> Iterator[None]:
        """Take from the budget as soon as it has what is asked for, and give that back. `what` is too large if not."""
        with self._freed:
            while True:
                try:
                    if take():
                        break
                except (BadImage, BadSettings):
                    raise RequestRefused(
                        413, "too_many_pixels", f"{what} too large for the memory that this server may use; make it "
                        "smaller"
                    ) from None  # fmt: skip
                self._freed.wait(0.2)
                check_cancelled()
        try:
            yield
        finally:
            with self._freed:
                release()
                self._freed.notify_all()

    @contextmanager
    def told(self, path: Path, name: str) -> Iterator[None]:
        """Inside, every error becomes a Refused that names the file as its owner does; Stopped, where that is asked."""
        try:
            yield
        except (Cancelled, RequestRefused):
            raise
        except Exception as error:
            check_cancelled()  # what is stopped at the server's end may fail first, for want of threads
            wrong = as_refusal(error, str(path), name)
            if wrong.status == 500:
                _log.exception("%s", name)
            raise wrong from error

    def restore(self, source: Path, name: str, settings: RestoreSettings) -> RestoredFile:
        """The restored file beside the one that came: what `fairweather restore` writes. Raises Refused."""
        found = self.probe(source, name)
        destination = source.with_name(f"restored{SUFFIX[found.format]}")
        with self.told(source, name):
            self.offer.check(settings)
            with self.memory(source, destination, name):
                photo = read(source, max_pixels=self.limits.pixels)
                check_cancelled()
                plan = self.offer.plan(lambda: self.offer.auto.detect(photo.pixels), settings)
                if not plan.parts or settings.strength == 0:
                    return RestoredFile(source, found, plan, False)
                pixels = self.offer.auto.apply(photo.pixels, plan, settings.strength, settings.guard)
                check_cancelled()
                write(destination, photo.replaced(pixels))
        return RestoredFile(destination, found, plan, True)


def photo_result_name(name: str, format: str) -> str:
    """What a result is called: `harbour.jpeg` becomes `harbour-clear.jpeg`."""
    path = Path(name)
    suffix = path.suffix if FORMATS.get(path.suffix.lower()) == format else SUFFIX[format]
    return f"{path.stem or 'photo'}-clear{suffix}"
