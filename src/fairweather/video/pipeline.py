"""One film, from source to sink: read, restored and written at once, a few frames at a time."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.files import atomic, check_place, keep, make_folder, refuse_inputs, sweep, temporary
from fairweather.images.io import SUFFIXES as PICTURES
from fairweather.inference import cancellation
from fairweather.inference.weather_detection import Weather
from fairweather.video import writer
from fairweather.video.encoding import CONTAINERS, choose_encoding, container_of
from fairweather.video.reader import Frame, FrameSource, VideoReader, is_live, open_video
from fairweather.video.writer import FolderWriter, FrameWriter, VideoWriter

if TYPE_CHECKING:
    from av import Packet

Array = NDArray[Any]
PreviewLayout = Literal["side", "split"]
AHEAD = 3
"""Frames that may wait before each step of the work."""
LONGEST = 1.0
"""A frame that is shown for longer than so many seconds counts as so long for what is smoothed over time."""


class FrameRestorer(Protocol):
    """What restores the frames, as `fairweather.inference.temporal.VideoRestorer` does."""

    def begin(self, frame: Array, step: float) -> Callable[[], Array]: ...


@dataclass
class VideoProgress:
    """How far a film is."""

    frames: int = 0
    """Frames that are written."""
    shown: float = 0.0
    """Seconds of film that are written."""
    seconds: float = 0.0
    """Seconds that it took."""
    stopped: bool = False
    """Whether somebody stopped it (Ctrl-C) before its end."""


def process_video(
    source: FrameSource,
    sink: FrameWriter,
    restoring: FrameRestorer,
    *,
    start: float = 0.0,
    end: float | None = None,
    view: PreviewLayout | None = None,
    tell: Callable[[VideoProgress], None] = lambda progress: None,
) -> VideoProgress:
    """Restore a film, frame by frame, in constant memory; the sink is closed whatever happens.

    `start` and `end` in seconds of the film cut a part out of it, whose times begin at 0. `view` shows what came in
    beside what goes out: "side" by side, or one half of each frame ("split"). Ctrl-C ends the film where it is, and is
    told by `Progress.stopped`: what is written until then is a whole file. What a step raises is raised here; Stopped,
    where the event that the calling thread heeds (`restoring.stopping`) is set: the film then ends within a few frames.
    """
    began, progress = time.monotonic(), VideoProgress()
    stop, failed, asked, heeded = (
        threading.Event(),
        list[BaseException](),
        cancellation.cancel_requested(),
        cancellation.current_cancel_event(),
    )
    seen, begun, done = (_Pipe(lambda: stop.is_set() or asked()) for _ in range(3))
    unit = float(source.track.time_base)

    def read() -> None:
        with _handing(seen, failed, stop), cancellation.cancel_scope(heeded):  # it may be long until the next frame
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
                pixels = restored if view is None else compose_preview(item.pixels, restored, view)
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
        raise cancellation.Cancelled
    if failed:
        raise failed[0]
    progress.seconds = time.monotonic() - began
    tell(progress)
    return progress


def compose_preview(before: Array, after: Array, view: PreviewLayout) -> Array:
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


def _cut(
    items: Iterator[Frame | Packet], source: FrameSource, start: float, end: float | None
) -> Iterator[Frame | Packet]:
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


def _zero(source: FrameSource, frame: Frame) -> int:
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


# Films: which input becomes which file, and what is made of each; the counterpart of `restoring.folder` for photos.

DEFAULT_VIDEO_OUT = "restored"
VIDEO_SUFFIXES = frozenset(CONTAINERS) - {".webp"}
"""Suffixes of films, lower case; a WebP is one where it is animated, and is found as a picture."""
DETECTION_FRAMES = 8
"""Frames, spread over a film, that are looked at to tell its weather."""
_log = logging.getLogger("fairweather")


class VideoJob(NamedTuple):
    """One film: a path, an address or "-", and the file, folder, pattern or "-" that its restored version goes to."""

    source: str
    destination: str


@dataclass(frozen=True)
class VideoOptions:
    """How films are cut, shown and written."""

    start: float = 0.0
    end: float | None = None
    view: PreviewLayout | None = None
    codec: str | None = None
    quality: float | None = None
    rate: Fraction | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise BadSettings(f"--end {self.end:g} s is not after --start {self.start:g} s")
        if self.rate is not None and not 0 < self.rate <= 1000:
            raise BadSettings(f"--fps must be above 0 and at most 1000, not {float(self.rate):g}")


@dataclass
class VideoReport:
    """What became of the films."""

    done: int = 0
    skipped: int = 0
    unchanged: int = 0
    frames: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    cut: list[tuple[str, str]] = field(default_factory=list)
    """Each video of which a part is missing, with a message; what there is of it is restored, and counts as done."""
    stopped: str | None = None
    """What to say where Ctrl-C ended the run."""


def plan_videos(inputs: Sequence[str], out: Path | None) -> list[VideoJob]:
    """The jobs for films that were named. Raises BadSettings and BadFolder where it is not clear what goes where."""
    jobs = [VideoJob(given, video_destination(given, out)) for given in inputs]
    takers: dict[str, str] = {}
    for job in jobs:
        if other := takers.get(job.destination):
            raise BadFolder(
                f"{other} and {job.source} would both become {job.destination}; choose another folder with -o"
            )
        takers[job.destination] = job.source
    return jobs


def video_destination(given: str, out: Path | None) -> str:
    """Where the restored version of one film goes. Raises BadSettings where that has to be said."""
    target = Path(DEFAULT_VIDEO_OUT if out is None else out)
    if str(target) == "-" or "%" in target.name:
        return str(target)
    if target.suffix.lower() in CONTAINERS and not target.is_dir():
        return str(target)
    if given == "-" or is_live(given):
        raise BadSettings(f"{given}: name the file that the result goes to, as in -o clear.mkv (or -o - for a pipe)")
    if Path(given).is_dir():
        return str(target)
    if target.suffix and not target.is_dir():
        container_of(target)  # a file of a kind that is not written: says which are
    return str(target / Path(given).name)


def restore_videos(
    jobs: Sequence[VideoJob],
    restoring: Callable[[VideoJob, FrameSource], tuple[FrameRestorer | None, str]],
    options: VideoOptions,
    *,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> VideoReport:
    """Restore films, one after the other. `restoring` gives for each what restores its frames (None: it stays as it is,
    and is copied) and a line to be told about it.

    One film that fails is reported, and the others are done. Files are complete or not there; where Ctrl-C ends one,
    what is done of it is kept as a whole file next to the result's name (`clear.part.mp4`, or `clear.part-2.mp4` where
    that is taken); a live source's, which has no other end, under the name itself.
    """
    began, report = time.monotonic(), VideoReport()
    check(jobs, overwrite=options.overwrite)
    targets = [Path(job.destination) for job in jobs if job.destination != "-"]
    for place in {*targets, *(target.parent for target in targets)}:  # a file or a folder of frames
        sweep(place)
    for job in jobs:
        if report.stopped:
            break
        if _there(job) and not options.overwrite:
            report.skipped += 1
            continue
        try:
            _one(job, restoring, options, report, tell, progress)
        except FairweatherError as error:
            if not isinstance(error, BadImage | MissingExtra | BadSettings) or len(jobs) == 1:
                raise
            report.failed.append((job.source, str(error)))
    report.seconds = time.monotonic() - began
    return report


def _one(
    job: VideoJob,
    restoring: Callable[[VideoJob, FrameSource], tuple[FrameRestorer | None, str]],
    options: VideoOptions,
    report: VideoReport,
    tell: Callable[[str], None],
    progress: bool,
) -> None:
    source = open_video(job.source, rate=options.rate)
    with ExitStack() as closing:
        closing.callback(source.close)
        restore, line = restoring(job, source)
        if line:
            tell(line)
        whole = not options.start and options.end is None and options.view is None and options.codec is None
        if restore is None and whole and _same_kind(job):
            _copy(job)
            _note_cut(job, source, options, report, job.destination)
            report.done, report.unchanged = report.done + 1, report.unchanged + 1
            return
        target, folder = Path(job.destination), _is_frames(job)
        if options.start and hasattr(source, "seek"):
            source.seek(options.start)
        path: str | Path = "-"
        if folder:
            sink: FrameWriter = FolderWriter(target, source, overwrite=options.overwrite)
        else:
            container = container_of(job.destination)
            made = choose_encoding(source.track, container, options.codec, options.quality)
            if job.destination != "-":
                make_folder(target.parent)
                path = closing.enter_context(temporary(target))
            sink = VideoWriter(path, container, source, made, size=_size(source, options.view), start=options.start)
        with _bar(source, options, progress) as show:
            done = process_video(
                source,
                sink,
                _Unchanged() if restore is None else restore,
                start=options.start,
                end=options.end,
                view=options.view,
                tell=show,
            )
        if not done.frames:
            raise BadImage(f"{job.source}: there is no frame in the part asked for (--start, --end)")
        if not done.stopped:
            _note_cut(job, source, options, report, job.destination)
        place = job.destination
        if isinstance(path, Path):
            if source.live or not done.stopped:
                os.replace(path, target)
            else:
                place = str(keep(path, target.with_name(f"{target.stem}.part{target.suffix}")))
    report.frames += done.frames
    if isinstance(sink, FolderWriter) and (source.live or not done.stopped):
        sink.finish()
    if done.stopped and not source.live:
        report.stopped = f"stopped after {done.shown:.1f} s of {job.source}: that much is in {place}"
        return
    report.done += 1


def detect_video_weather(
    given: str,
    source: FrameSource,
    recognise: Callable[[Array], Weather],
    opened: Callable[[str], FrameSource] = open_video,
) -> tuple[Weather, int] | None:
    """The weather of a film, the mean of what is seen in a few of its frames, and how many those were; None where it
    goes by once."""
    seen = [recognise(frame.pixels) for frame in sampled_frames(given, source, opened=opened)]
    if not seen:
        return None
    return Weather(*(sum(getattr(one, kind) for one in seen) / len(seen) for kind in ("haze", "rain"))), len(seen)


def sampled_frames(
    given: str, source: FrameSource, count: int = DETECTION_FRAMES, opened: Callable[[str], FrameSource] = open_video
) -> Iterator[Frame]:
    """Some frames, spread evenly over a film; none where it cannot be read twice (a pipe, a camera). `opened` opens it
    again for each."""
    track = source.track
    if source.live or given == "-" or Path(given).is_dir():
        return
    length = float(track.frames / track.rate) if track.frames and track.rate else 0.0
    for number in range(count):
        again = opened(given)
        try:
            if number and hasattr(again, "seek") and length:
                again.seek(length * number / count)
            frame = next((item for item in again.items() if isinstance(item, Frame)), None)
        finally:
            again.close()
        if frame is None:
            return
        yield frame


class _Unchanged:
    """Gives the frames as they are: a film without weather of which a part, or another kind of file, is asked for."""

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        return lambda: frame


def check(jobs: Sequence[VideoJob], others: Iterable[Path] = (), *, overwrite: bool = False) -> None:
    """Check, before any work, that no output is an input, that no two are one, and that frames replace no file.

    Args:
        jobs: the videos.
        others: the photos of the same run, which are inputs too.
        overwrite: whether files that are no input may be replaced.

    Raises:
        BadFolder: one of these does not hold; BadSettings: a pattern that does not number the frames.
    """
    inputs = [*others, *(file for job in jobs for file in _inputs(job))]
    folders = {os.path.realpath(job.source): job.source for job in jobs if os.path.isdir(job.source)}
    takers: dict[str, VideoJob] = {}
    for job in jobs:
        if job.destination == "-":
            continue
        target = Path(job.destination)
        frames = _is_frames(job)
        if frames:
            writer.check_pattern(target)
        check_place(target)
        other = takers.setdefault(os.path.realpath(target), job)
        if other is not job:
            raise BadFolder(
                f"{other.source} and {job.source} would both become {job.destination}; choose another folder with -o"
            )
        if not frames:
            refuse_inputs([target], inputs)
            continue
        if given := folders.get(os.path.realpath(writer.folder_of(target))):
            raise BadFolder(f"{target} would be written into the input folder {given}; choose another with -o")
        found = writer.existing(target, _names(job))
        refuse_inputs(found, inputs)
        ours = writer.listed(target)
        taken = found if ours is None else [file for file in found if file.name not in ours]
        if taken and not overwrite and not _there(job):
            raise BadFolder(
                f"{taken[0]} is there already, and {target} would replace it: choose another folder with -o, "
                "or --overwrite"
            )


def _inputs(job: VideoJob) -> list[Path]:
    """The files that are read for a video."""
    if not os.path.isdir(job.source):
        return [Path(job.source)]
    return [file for file in Path(job.source).iterdir() if file.suffix.lower() in PICTURES]


def _is_frames(job: VideoJob) -> bool:
    """Whether the result is a folder of pictures."""
    target = Path(job.destination)
    return "%" in target.name or (os.path.isdir(job.source) and target.suffix.lower() not in CONTAINERS)


def _names(job: VideoJob) -> list[str] | None:
    return [file.name for file in _inputs(job)] if os.path.isdir(job.source) else None


def _there(job: VideoJob) -> bool:
    """Whether the result exists, all of it."""
    target = Path(job.destination)
    if not _is_frames(job):
        return job.destination != "-" and os.path.exists(target) and not os.path.isdir(target)
    if writer.listed(target) is not None:
        return False
    if "%" in target.name:
        return os.path.exists(target.parent / (target.name % 1))
    names = _names(job) or []
    return bool(names) and all(os.path.exists(target / name) for name in names)


def _note_cut(job: VideoJob, source: FrameSource, options: VideoOptions, report: VideoReport, place: str) -> None:
    """Report a video of which a part is missing."""
    if isinstance(source, VideoReader) and (missing := source.missing(options.end)):
        end = "" if place == "-" else f"; they are in {place}"
        report.cut.append((job.source, f"{job.source}: the video is cut short or damaged: {missing}{end}"))


def _same_kind(job: VideoJob) -> bool:
    same = Path(job.source).suffix.lower() == Path(job.destination).suffix.lower()
    return same and Path(job.source).is_file() and job.destination != "-"


def _copy(job: VideoJob) -> None:
    target = Path(job.destination)
    make_folder(target.parent)
    with atomic(target) as temporary:
        shutil.copyfile(job.source, temporary)


def _size(source: FrameSource, view: PreviewLayout | None) -> tuple[int, int] | None:
    if view is None:
        return None
    width, height = source.track.width, source.track.height
    if source.track.rotation % 180:
        width, height = height, width
    return (2 * width if view == "side" else width), height


@contextmanager
def _bar(source: FrameSource, options: VideoOptions, wanted: bool) -> Iterator[Callable[[VideoProgress], None]]:
    """Draws how far a film is, where a person looks on: frames a second, and the time that is left."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    track = source.track
    total = track.frames
    if total and track.rate and (options.start or options.end is not None):
        length = total / float(track.rate)
        total = round((min(length, options.end or length) - options.start) * float(track.rate))
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"), TimeRemainingColumn())
    with Progress(TextColumn(Path(source.name).name), *columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task("restoring", total=None if source.live else total, pace="")

        def show(progress: VideoProgress) -> None:
            pace = f"{progress.frames / max(progress.seconds, 1e-3):.1f} frames/s"
            drawn.update(task, completed=progress.frames, pace=pace)

        yield show
