"""One video, from its source to its output: read, restored and written at the same time, a few frames at once.

`restore_video` restores a file, stream or folder of frames; `process_video` is its loop, which the server uses as well.
`check_outputs` verifies, before any work, that no output replaces an input.
"""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.files import atomic, check_place, keep, make_folder, refuse_inputs, temporary
from fairweather.images.io import SUFFIXES as PICTURES
from fairweather.inference import cancellation
from fairweather.inference.memory import MemoryBudget
from fairweather.inference.restorer import AutoRestorer, PreviewLayout, RestoreOptions, Restorer
from fairweather.inference.temporal import VideoRestorer, open_parts
from fairweather.inference.weather_detection import Weather
from fairweather.inference.weather_detection import plan as plan_restoration
from fairweather.video import writer
from fairweather.video.encoding import CONTAINERS, choose_encoding, container_of
from fairweather.video.reader import Frame, FrameSource, VideoReader, is_live, open_video
from fairweather.video.writer import FolderWriter, FrameWriter, VideoWriter

if TYPE_CHECKING:
    from av import Packet

Array = NDArray[Any]
QUEUED_FRAMES = 3
"""Capacity in frames of the queue before each step."""
MAX_STEP_SECONDS = 1.0
"""Longer frames count as this long in temporal smoothing."""
DETECTION_FRAMES = 8
"""Frames, spread over a video, in which its weather is detected."""


class FrameRestorer(Protocol):
    """Restores frames, as `fairweather.inference.temporal.VideoRestorer` does."""

    def begin(self, frame: Array, step: float) -> Callable[[], Array]: ...


class VideoResult(NamedTuple):
    """The result of restoring one video."""

    frames: int = 0
    """Frames written; 0 for a copy."""
    unchanged: bool = False
    """The output is a copy of the input."""
    incomplete: str | None = None
    """A message if a part of the source is missing; the rest is restored."""
    interrupted: str | None = None
    """A message if Ctrl-C interrupted it."""


@dataclass
class VideoProgress:
    """The state of a video in progress."""

    frames: int = 0
    """Frames written."""
    shown: float = 0.0
    """Seconds of video written."""
    seconds: float = 0.0
    """Seconds elapsed."""
    stopped: bool = False
    """Whether Ctrl-C ended it early."""


def restore_video(
    source: str,
    destination: str,
    restorer: Restorer | AutoRestorer | FrameRestorer | None,
    options: RestoreOptions,
    budget: MemoryBudget,
    *,
    log_line: Callable[[str], None] = lambda line: None,
    progress: Callable[[VideoProgress, int | None], None] = lambda progress, total: None,
) -> VideoResult:
    """Restore one video.

    The output is complete or absent. If Ctrl-C interrupts it, the part written so far becomes a playable file next to
    the output (`clear.part.mp4`, or `clear.part-2.mp4` if that exists); for a live source, which ends only this way,
    it becomes the output itself.

    Args:
        source: a file, a folder of frames, an address, a camera, or "-" for standard input.
        destination: a file, a folder, a frame pattern such as `frames/%05d.png`, or "-" for standard output.
        restorer: the models, or a FrameRestorer; None leaves the frames unchanged.
        options: strength, cut, preview and encoding.
        budget: the run's memory budget, from which memory for the frames is reserved.
        log_line: receives the decision in words.
        progress: called after each frame with the total number of frames, if known.

    Raises:
        BadImage: the source cannot be read, or contains no frame in the selected part.
        BadFolder: the output cannot be written.
        BadSettings: the options do not fit the video or the memory budget.
    """
    with ExitStack() as stack:
        video = open_video(source, rate=options.fps)
        stack.callback(video.close)
        need = frame_memory(video.track.width, video.track.height, video.track.deep)
        budget.hold(need, f"{source} (frames of {video.track.width} x {video.track.height})")
        stack.callback(budget.free, need)
        frames_restorer, line = _choose(source, video, restorer, options)
        if line:
            log_line(line)
        total = _frame_count(video, options)
        target, to_frames = Path(destination), is_frames(source, destination)
        if frames_restorer is None and _copyable(source, destination, options):
            make_folder(target.parent)
            with atomic(target) as made:
                shutil.copyfile(source, made)
            return VideoResult(unchanged=True, incomplete=_missing(video, options, source, destination))
        if options.start and hasattr(video, "seek"):
            video.seek(options.start)
        written: Path | None = None
        if to_frames:
            sink: FrameWriter = FolderWriter(target, video, overwrite=options.overwrite)
        else:
            container = container_of(destination)
            encoding = choose_encoding(video.track, container, options.codec, options.quality)
            if destination != "-":
                make_folder(target.parent)
                written = stack.enter_context(temporary(target))
            size = _preview_size(video, options.preview)
            sink = VideoWriter(written or "-", container, video, encoding, size=size, start=options.start)
        done = process_video(
            video,
            sink,
            frames_restorer or _Unchanged(),
            start=options.start,
            end=options.end,
            view=options.preview,
            tell=lambda state: progress(state, total),
        )
        if not done.frames:
            raise BadImage(f"{source}: there is no frame in the selected part: check --start and --end")
        ended = video.live or not done.stopped
        place = destination
        if written is not None:
            if ended:
                os.replace(written, target)
            else:
                place = str(keep(written, target.with_name(f"{target.stem}.part{target.suffix}")))
        incomplete = None if done.stopped else _missing(video, options, source, destination)
    if isinstance(sink, FolderWriter) and ended:
        sink.finish()
    interrupted = None if ended else f"stopped after {done.shown:.1f} s of {source}: this part is in {place}"
    return VideoResult(done.frames, False, incomplete, interrupted)


def process_video(
    source: FrameSource,
    sink: FrameWriter,
    restorer: FrameRestorer,
    *,
    start: float = 0.0,
    end: float | None = None,
    view: PreviewLayout | None = None,
    tell: Callable[[VideoProgress], None] = lambda progress: None,
) -> VideoProgress:
    """Restore a video frame by frame, in constant memory, and close the sink.

    Ctrl-C ends the video early, with what is written so far as a complete file; see `VideoProgress.stopped`.

    Args:
        source: the frames.
        sink: the writer of the restored frames.
        restorer: restores them.
        start: first second of the part to restore; times in the output begin at 0.
        end: its end in seconds.
        view: "side" writes source and result side by side, "split" one half of each.
        tell: called after each frame.

    Raises:
        Cancelled: the cancel event of the calling thread is set; the video then ends within a few frames.
    """
    began, progress = time.monotonic(), VideoProgress()
    stop, failed = threading.Event(), list[BaseException]()
    cancelled, event = cancellation.cancel_requested(), cancellation.current_cancel_event()
    decoded, started, done = (_FrameQueue(lambda: stop.is_set() or cancelled()) for _ in range(3))
    unit = float(source.track.time_base)

    def read() -> None:
        with _stage(decoded, failed, stop), cancellation.cancel_scope(event):  # the next frame may take long
            for item in _cut(source.items(), source, start, end):
                decoded.put(item)

    def finish() -> None:
        with _stage(done, failed, stop):
            for frame, rest in started:
                done.put((frame, None) if rest is None else (frame, rest()))

    def write() -> None:
        with _stage(None, failed, stop):
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
            for item in decoded:
                if not isinstance(item, Frame):
                    started.put((item, None))
                    continue
                step = 0.0 if last is None else min(MAX_STEP_SECONDS, max(0.0, (item.time - last) * unit))
                last = item.time
                started.put((item, restorer.begin(item.pixels, step)))
                tell(progress)
        except KeyboardInterrupt:
            progress.stopped = True
        except _Stopped:
            stop.set()
        except BaseException as error:
            failed.append(error)
            stop.set()
        started.end()  # frames that have started are finished and written
        for thread in threads[1:]:
            thread.join()
        stop.set()
        threads[0].join(timeout=None if not progress.stopped else 2.0)  # a camera may never deliver another frame
    finally:
        stop.set()
        try:
            sink.close()
        except BaseException as error:
            failed.append(error)
    if cancelled():
        raise cancellation.Cancelled
    if failed:
        raise failed[0]
    progress.seconds = time.monotonic() - began
    tell(progress)
    return progress


def compose_preview(before: Array, after: Array, view: PreviewLayout) -> Array:
    """A frame and its result in one picture: H x 2W x 3 ("side"), or H x W x 3 with a white line between ("split")."""
    if view == "side":
        return np.hstack([before, after])
    middle = before.shape[1] // 2
    picture = np.hstack([before[:, :middle], after[:, middle:]])
    thick = max(1, before.shape[1] // 400)
    white = np.iinfo(picture.dtype).max
    cv2.line(picture, (middle, 0), (middle, len(picture)), (white, white, white), thick)
    return picture


def frame_memory(width: int, height: int, deep: bool) -> int:
    """Bytes that restoring a video needs: frames between the steps and in the encoder (measured)."""
    return (32 << 20) + (500 if deep else 240) * width * height


def detect_video_weather(
    given: str,
    source: FrameSource,
    detect: Callable[[Array], Weather],
    opened: Callable[[str], FrameSource] = open_video,
) -> tuple[Weather, int] | None:
    """Detect the weather of a video: the mean over some of its frames.

    Args:
        given: the video's path.
        source: the opened video.
        detect: detects the weather of a frame.
        opened: opens the video again.

    Returns:
        The weather and the number of frames; None if the video can only be read once.
    """
    found = [detect(frame.pixels) for frame in sampled_frames(given, source, opened=opened)]
    if not found:
        return None
    mean = (sum(getattr(one, kind) for one in found) / len(found) for kind in ("haze", "rain"))
    return Weather(*mean), len(found)


def sampled_frames(
    given: str, source: FrameSource, count: int = DETECTION_FRAMES, opened: Callable[[str], FrameSource] = open_video
) -> Iterator[Frame]:
    """Yield some frames, spread evenly over a video; none if it can only be read once (a pipe, a camera)."""
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


def video_destination(source: str, out: Path) -> str:
    """The output of one video: `out`, or a file of the video's name in it.

    Raises:
        BadSettings: the output must be named, or its container is unknown.
    """
    if str(out) == "-" or "%" in out.name or (out.suffix.lower() in CONTAINERS and not out.is_dir()):
        return str(out)
    if source == "-" or is_live(source):
        raise BadSettings(f"{source}: the output needs a name: use -o clear.mkv (or -o - for a pipe)")
    if Path(source).is_dir():
        return str(out)
    if out.suffix and not out.is_dir():
        container_of(out)  # raises for an unknown container
    return str(out / Path(source).name)


def check_outputs(videos: Sequence[tuple[str, str]], photos: Iterable[str] = (), *, overwrite: bool = False) -> None:
    """Check, before any work, that no output is an input, that outputs differ, and that frames replace no file.

    Args:
        videos: source and destination of each video.
        photos: the photos of the same run, which are inputs too.
        overwrite: whether files that are not inputs may be replaced.

    Raises:
        BadFolder: one of these checks fails.
        BadSettings: a frame pattern does not contain exactly one number.
    """
    inputs = [*map(Path, photos), *(file for source, _ in videos for file in _input_files(source))]
    folders = {os.path.realpath(source): source for source, _ in videos if os.path.isdir(source)}
    sources: dict[str, str] = {}
    for source, destination in videos:
        if destination == "-":
            continue
        target, to_frames = Path(destination), is_frames(source, destination)
        if to_frames:
            writer.check_pattern(target)
        check_place(target)
        if (other := sources.setdefault(os.path.realpath(target), source)) is not source:
            raise BadFolder(
                f"{other} and {source} would both be written to {destination}: choose another folder with -o"
            )
        if not to_frames:
            refuse_inputs([target], inputs)
            continue
        if given := folders.get(os.path.realpath(writer.folder_of(target))):
            raise BadFolder(f"{target} would be written into the input folder {given}: choose another with -o")
        existing = writer.existing(target, _frame_names(source))
        refuse_inputs(existing, inputs)
        ours = writer.listed(target)
        taken = existing if ours is None else [file for file in existing if file.name not in ours]
        if taken and not overwrite and not output_exists(source, destination):
            raise BadFolder(
                f"{taken[0]} exists and would be replaced by {target}: choose another folder with -o, or --overwrite"
            )


def is_frames(source: str, destination: str) -> bool:
    """Whether the output is a folder of frames."""
    target = Path(destination)
    return "%" in target.name or (os.path.isdir(source) and target.suffix.lower() not in CONTAINERS)


def output_exists(source: str, destination: str) -> bool:
    """Whether the complete output exists."""
    target = Path(destination)
    if not is_frames(source, destination):
        return destination != "-" and os.path.exists(target) and not os.path.isdir(target)
    if writer.listed(target) is not None:
        return False
    if "%" in target.name:
        return os.path.exists(target.parent / (target.name % 1))
    names = _frame_names(source) or []
    return bool(names) and all(os.path.exists(target / name) for name in names)


def _choose(
    source: str,
    video: FrameSource,
    restorer: Restorer | AutoRestorer | FrameRestorer | None,
    options: RestoreOptions,
) -> tuple[FrameRestorer | None, str]:
    """Choose the FrameRestorer of a video (None: nothing to restore), and describe the decision."""
    if not isinstance(restorer, Restorer | AutoRestorer):
        return restorer, ""
    line = ""
    settings: dict[str, Any] = {"guard": options.guard, "smooth": options.smooth, "blend": options.blend}
    if isinstance(restorer, Restorer):
        plan = restorer.plan()
    elif options.weather != "auto":
        plan = restorer.plan(weather=options.weather)
    elif (found := detect_video_weather(source, video, restorer.detect)) is not None:
        weather, count = found
        plan = plan_restoration(lambda: weather, models=restorer.models)
        line = f"{source}: {plan.describe()}, from {count} frames"
    else:
        return VideoRestorer([], detect_with=restorer, strength=options.strength, **settings), ""
    parts = open_parts(restorer, plan, options.strength)
    return (VideoRestorer(parts, **settings) if parts else None), line


class _Unchanged:
    """Returns frames unchanged, for cutting or transcoding a video without weather."""

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        return lambda: frame


def _copyable(source: str, destination: str, options: RestoreOptions) -> bool:
    """Whether an unchanged video can be copied byte for byte."""
    if options.start or options.end is not None or options.preview is not None or options.codec is not None:
        return False
    same = Path(source).suffix.lower() == Path(destination).suffix.lower()
    return same and Path(source).is_file() and destination != "-"


def _missing(video: FrameSource, options: RestoreOptions, source: str, destination: str) -> str | None:
    """A message if a part of the video could not be read."""
    if not isinstance(video, VideoReader) or not (missing := video.missing(options.end)):
        return None
    place = "" if destination == "-" else f"; the result is in {destination}"
    return f"{source}: the video is truncated or damaged: {missing}{place}"


def _input_files(source: str) -> list[Path]:
    """The files that are read for a video."""
    if not os.path.isdir(source):
        return [Path(source)]
    return [file for file in Path(source).iterdir() if file.suffix.lower() in PICTURES]


def _frame_names(source: str) -> list[str] | None:
    return [file.name for file in _input_files(source)] if os.path.isdir(source) else None


def _preview_size(source: FrameSource, view: PreviewLayout | None) -> tuple[int, int] | None:
    if view is None:
        return None
    width, height = source.track.width, source.track.height
    if source.track.rotation % 180:
        width, height = height, width
    return (2 * width if view == "side" else width), height


def _frame_count(source: FrameSource, options: RestoreOptions) -> int | None:
    """Frames in the selected part, if known."""
    track = source.track
    total = None if source.live else track.frames
    if total and track.rate and (options.start or options.end is not None):
        length = total / float(track.rate)
        total = round((min(length, options.end or length) - options.start) * float(track.rate))
    return total


def _cut(
    items: Iterator[Frame | Packet], source: FrameSource, start: float, end: float | None
) -> Iterator[Frame | Packet]:
    """Yield the items in the selected part, with times relative to its start."""
    if not start and end is None:
        yield from items
        return
    base = source.track.time_base
    begin, unit = round(start / base), float(base)
    first: int | None = None
    for item in items:
        if isinstance(item, Frame):
            # A video's own times may begin anywhere; --start counts from its first frame.
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
    """The time at which a video starts, in its time base; after seeking, the first frame comes later."""
    stream = getattr(source, "stream", None)
    begins = getattr(stream, "start_time", None)
    return frame.time if begins is None else int(begins)


class _FrameQueue:
    """A bounded queue between two threads; both stop waiting when the work is stopped."""

    _END = object()

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._stop = stop
        self._room = threading.Semaphore(QUEUED_FRAMES)
        """Counts frames only: packets are small."""

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
    """Another thread stopped the work."""


@contextmanager
def _stage(after: _FrameQueue | None, failed: list[BaseException], stop: threading.Event) -> Iterator[None]:
    """Record a thread's exception and stop the others; end the queue that it fills."""
    try:
        yield
    except _Stopped:
        pass
    except BaseException as error:
        failed.append(error)
        stop.set()
    if after is not None:
        with suppress(_Stopped):
            after.end()
