"""One film, from source to sink: read, restored and written at once, a few frames at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.restoring import stopping
from fairweather.video.frames import Frame, Source

if TYPE_CHECKING:
    from av import Packet

    from fairweather.video.sink import Sink

Array = NDArray[Any]
View = Literal["side", "split"]
AHEAD = 3
"""Frames that may wait before each step of the work."""
LONGEST = 1.0
"""A frame that is shown for longer than so many seconds counts as so long for what is smoothed over time."""


class Restoring(Protocol):
    """What restores the frames, as `fairweather.restoring.film.Film` does."""

    def begin(self, frame: Array, step: float) -> Callable[[], Array]: ...


@dataclass
class Progress:
    """How far a film is."""

    frames: int = 0
    """Frames that are written."""
    shown: float = 0.0
    """Seconds of film that are written."""
    seconds: float = 0.0
    """Seconds that it took."""
    stopped: bool = False
    """Whether somebody stopped it (Ctrl-C) before its end."""


def run(
    source: Source,
    sink: Sink,
    restoring: Restoring,
    *,
    start: float = 0.0,
    end: float | None = None,
    view: View | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Restore a film, frame by frame, in constant memory; the sink is closed whatever happens.

    `start` and `end` in seconds of the film cut a part out of it, whose times begin at 0. `view` shows what came in
    beside what goes out: "side" by side, or one half of each frame ("split"). Ctrl-C ends the film where it is, and is
    told by `Progress.stopped`: what is written until then is a whole file. What a step raises is raised here; Stopped,
    where the event that the calling thread heeds (`restoring.stopping`) is set: the film then ends within a few frames.
    """
    began, progress = time.monotonic(), Progress()
    stop, failed, asked, heeded = threading.Event(), list[BaseException](), stopping.asked(), stopping.heeded()
    seen, begun, done = (_Pipe(lambda: stop.is_set() or asked()) for _ in range(3))
    unit = float(source.track.time_base)

    def read() -> None:
        with _handing(seen, failed, stop), stopping.heeding(heeded):  # it may be long until the next frame
            for item in _cut(source.items(), source, start, end):
                seen.put(item)

    def finish() -> None:
        with _handing(done, failed, stop):
            for frame, rest in begun:
                done.put((frame, None) if rest is None else (frame, rest()))

    def write() -> None:
        with _handing(None, failed, stop):
            for item, restored in done:
                if restored is None:
                    sink.copy(item)
                    continue
                pixels = restored if view is None else shown(item.pixels, restored, view)
                sink.put(replace(item, pixels=pixels))
                progress.frames += 1
                progress.shown = (item.time + item.duration) * unit
                progress.seconds = time.monotonic() - began

    threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (read, finish, write)]
    for thread in threads:
        thread.start()
    try:
        last: int | None = None
        try:
            for item in seen:
                if not isinstance(item, Frame):
                    begun.put((item, None))
                    continue
                step = 0.0 if last is None else min(LONGEST, max(0.0, (item.time - last) * unit))
                last = item.time
                begun.put((item, restoring.begin(item.pixels, step)))
                tell(progress)
        except KeyboardInterrupt:
            progress.stopped = True
        except _Stopped:
            stop.set()
        except BaseException as error:
            failed.append(error)
            stop.set()
        begun.end()  # what has begun is finished and written
        for thread in threads[1:]:
            thread.join()
        stop.set()
        threads[0].join(timeout=None if not progress.stopped else 2.0)  # a silent camera is not waited for
    finally:
        stop.set()
        try:
            sink.close()
        except BaseException as error:
            failed.append(error)
    if asked():
        raise stopping.Stopped
    if failed:
        raise failed[0]
    progress.seconds = time.monotonic() - began
    tell(progress)
    return progress


def shown(before: Array, after: Array, view: View) -> Array:
    """A frame and what became of it in one picture, H x 2W x 3 ("side"), or H x W x 3 ("split": the left half is as it
    was, a white line between)."""
    if view == "side":
        return np.hstack([before, after])
    middle = before.shape[1] // 2
    picture = np.hstack([before[:, :middle], after[:, middle:]])
    thick = max(1, before.shape[1] // 400)
    white = np.iinfo(picture.dtype).max
    cv2.line(picture, (middle, 0), (middle, len(picture)), (white, white, white), thick)
    return picture


def _cut(items: Iterator[Frame | Packet], source: Source, start: float, end: float | None) -> Iterator[Frame | Packet]:
    """Those of the items that lie in the part asked for, the frames' times moved to its beginning."""
    if not start and end is None:
        yield from items
        return
    base = source.track.time_base
    begin, unit = round(start / base), float(base)
    first: int | None = None
    for item in items:
        if isinstance(item, Frame):
            # A film's own times may begin anywhere; what people count from is its first frame.
            first = _zero(source, item) if first is None else first
            at = item.time - first
            if end is not None and at * unit >= end:
                return
            if at + (item.duration or 1) > begin:
                yield replace(item, time=max(0, at - begin))
        else:
            at_second = float((item.pts if item.pts is not None else item.dts or 0) * item.time_base)
            if at_second >= start and (end is None or at_second < end):
                yield item


def _zero(source: Source, frame: Frame) -> int:
    """The time at which a film begins, in its time base; after seeking that is not its first frame's."""
    stream = getattr(source, "stream", None)
    begins = getattr(stream, "start_time", None)
    return frame.time if begins is None else int(begins)


class _Pipe:
    """A short queue between two threads that both let go of it when the work is to stop."""

    _END = object()

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._stop = stop
        self._room = threading.Semaphore(AHEAD)
        """Frames are large and packets are small: frames alone are counted."""

    def put(self, item: Any) -> None:
        frame = item[0] if isinstance(item, tuple) else item
        if isinstance(frame, Frame):
            while not self._room.acquire(timeout=0.2):
                if self._stop():
                    raise _Stopped
        if self._stop():
            raise _Stopped
        self._queue.put(item)

    def end(self) -> None:
        self._queue.put(self._END)

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                if self._stop():
                    return
                continue
            if item is self._END:
                return
            frame = item[0] if isinstance(item, tuple) else item
            if isinstance(frame, Frame):
                self._room.release()
            yield item


class _Stopped(Exception):
    """The work was stopped elsewhere."""


class _handing:  # noqa: N801
    """What a thread raises stops the others; what comes after it is told when it ends."""

    def __init__(self, after: _Pipe | None, failed: list[BaseException], stop: threading.Event) -> None:
        self._after, self._failed, self._stop = after, failed, stop

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None and not isinstance(error, _Stopped):
            self._failed.append(error)
            self._stop.set()
        if self._after is not None:
            with suppress(_Stopped):
                self._after.end()
        return True
