"""The clips that a server restores, one after the other beside the photos, in a thread that ends when none is left."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairweather.errors import BadImage
from fairweather.restoring.film import Film
from fairweather.restoring.recognise import Weather
from fairweather.restoring.stopping import Stopped, heeding
from fairweather.video import clip as way
from fairweather.video.formats import encoding
from fairweather.video.frames import Frame
from fairweather.video.sink import ClipSink, Sink
from fairweather.video.source import Clip
from fairweather.web import clips
from fairweather.web.clips import Facts
from fairweather.web.folders import remove, size
from fairweather.web.limits import Limits, Refused
from fairweather.web.offer import Plan, Settings
from fairweather.web.showing import Both, Preview, passed_on

if TYPE_CHECKING:
    from av import Packet

    from fairweather.web.service import Service

State = Literal["waiting", "working", "done", "failed"]
RETRY = 30
"""Seconds after which somebody whose clip found no place may come again."""
ENDING = 10.0
"""Seconds for which the end of a clip that was stopped is waited for: what is begun of it is written."""


@dataclass
class Job:
    """One clip that is to be restored, is, or was."""

    folder: Path
    source: Path
    name: str
    facts: Facts
    settings: Settings
    steady: bool = True
    weather: Weather | None = None
    """What was seen in it; asked for once it is worked on where nobody has looked."""
    shown: bool = False
    """Whether a page plays it, before and after."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    used: float = field(default_factory=time.monotonic)
    state: State = "waiting"
    plan: Plan | None = None
    progress: way.Progress = field(default_factory=way.Progress)
    changed: bool | None = None
    error: Refused | None = None
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
            self.ended.wait(ENDING)

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
            "download": clips.result_name(self.name, facts),
            **({} if self.error is None else self.error.body()),
        }


class Films:
    """All clips of one server: a bounded number waits, one is worked on."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._queue: list[Job] = []
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self, job: Job) -> Job:
        """Have it restored when its turn comes; its folder belongs to it from here on.

        Raises Refused (503) where too many wait; the folder is then still the caller's.
        """
        with self._lock:
            taken = sum(isinstance(one, Job) and one.busy for one in self.service.shelf.all())
            if self._closed or taken > self.service.limits.waiting:
                raise Refused(503, "busy", f"{taken} clips are here to be restored; try again in {RETRY} s", RETRY)
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="clips", daemon=True)
                worker.start()  # it waits for the lock; where there is no thread to be had, nothing has happened yet
                self._worker = worker
            self.service.shelf.add(job)
            self._queue = [*(one for one in self._queue if not one.stop.is_set()), job]
        return job

    def get(self, token: str) -> Job:
        """Raises Refused (404) where it is gone."""
        found = self.service.shelf.get(token)
        if not isinstance(found, Job):
            minutes = self.service.limits.keep
            raise Refused(404, "gone", f"this clip is not here any more (clips stay {minutes:g} min); send it again")
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
            worker.join(ENDING)

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

    def _one(self, job: Job) -> None:
        def late() -> None:
            job.late = True
            job.stop.set()

        timer = threading.Timer(self.service.limits.work, late)
        timer.daemon = True
        state: State = "failed"
        try:
            timer.start()
            with heeding(job.stop):
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
                remove(job.folder)  # whoever stopped it may have waited in vain, and removed what was still written to
            job.used = time.monotonic()
            job.state = state
            job.ended.set()

    def _wrong(self, job: Job, error: Exception) -> Refused | None:
        limits = self.service.limits
        if job.late:
            return Refused(
                504, "too_slow", f"{job.name}: took longer than the {limits.work:g} s that this server works on one "
                "clip; make it smaller or shorter, or take another model"
            )  # fmt: skip
        if job.stop.is_set() or isinstance(error, Stopped):
            return None
        return clips.wrong(error, job.source, job.name, limits)

    def _restore(self, job: Job) -> None:
        service, settings, facts = self.service, job.settings, job.facts
        offer, limits = service.offer, service.limits

        def look() -> Weather:
            if job.weather is None:
                job.weather = clips.weather(job.source, facts, limits, offer.auto.recognise)
            return job.weather

        with ExitStack() as held:
            held.enter_context(service.room(facts.memory, job.name))
            clip = clips.opened(job.source, facts.demuxer, limits, facts.pixels)
            held.callback(clip.close)
            job.plan = Plan(None, ()) if settings.strength == 0 else offer.plan(look, settings)
            changed = bool(job.plan.parts)
            parts = [(offer.restorer(part.model), settings.strength * part.amount) for part in job.plan.parts]
            films = job.shown and not facts.plays
            if changed or films:
                job.changed = changed or None  # until it is done the result is not what came
                self._run(job, clip, Film(parts, guard=settings.guard, steady=job.steady), previews=films)
            job.changed = changed

    def _run(self, job: Job, clip: Clip, film: Film, *, previews: bool) -> None:
        limits, facts = self.service.limits, job.facts
        with ExitStack() as closing:
            result: Sink | None = None
            if job.changed:
                result = ClipSink(job.result, facts.container, clip, encoding(clip.track, facts.container))
            before: Preview | None = None
            if previews:
                before = Preview(job.view("before"), clip, facts.width, facts.height, sound=False)
                closing.callback(before.close)
                after = Preview(job.view("after"), clip, facts.width, facts.height, sound=True)
                result = Both(after, result)
            assert result is not None
            bounded, often = _Bounded(clip, job.name, limits, before), count()

            def tell(progress: way.Progress) -> None:
                job.progress = progress
                if next(often) % 25 == 0 and size(job.folder) > limits.disk:
                    raise Refused(507, "no_room", f"{job.name}: what it becomes is too large for this server's disk")

            done = way.run(bounded, result, film, tell=tell)
        if not done.frames:
            raise BadImage(f"{job.source}: no frame of it can be decoded; get a whole copy")


class _Bounded:
    """A clip whose frames and seconds are counted as they come, since what the file says of them may be untrue."""

    live = False

    def __init__(self, clip: Clip, name: str, limits: Limits, preview: Preview | None) -> None:
        self.name, self.track, self.stream = clip.name, clip.track, clip.stream
        self._clip, self._called, self._limits, self._preview = clip, name, limits, preview

    def items(self) -> Iterator[Frame | Packet]:
        frames, first, unit = 0, 0, float(self.track.time_base)
        for item in passed_on(self._clip.items(), self._preview):
            if isinstance(item, Frame):
                first, frames = (first if frames else item.time), frames + 1
                if frames > self._limits.frames or (item.time - first) * unit > self._limits.length + clips.SLACK:
                    raise clips.too_long(self._called, self._limits)
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


def new_folder(service: Service, fill: Callable[[Path], Job]) -> Job:
    """A job that `fill` makes in a new folder, begun; the folder goes where that fails."""
    folder = service.folders.new()
    try:
        return service.films.start(fill(folder))
    except BaseException:
        remove(folder)
        raise
