"""Films: which input becomes which file, and what is made of each; the counterpart of `restoring.folder` for photos."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.files import atomic, keep, sweep, temporary
from fairweather.images import SUFFIXES as PICTURES
from fairweather.outputs import check_place, make_folder, refuse_inputs
from fairweather.restoring.recognise import Weather
from fairweather.video import clip, frame_output
from fairweather.video.formats import CONTAINERS, container_of, encoding
from fairweather.video.frames import Frame, Source
from fairweather.video.sink import ClipSink, FolderSink, Sink
from fairweather.video.source import Clip, is_live, open_source

DEFAULT_OUT = "restored"
SUFFIXES = frozenset(CONTAINERS) - {".webp"}
"""Suffixes of films, lower case; a WebP is one where it is animated, and is found as a picture."""
LOOKS = 8
"""Frames, spread over a film, that are looked at to tell its weather."""
_log = logging.getLogger("fairweather")


class Job(NamedTuple):
    """One film: a path, an address or "-", and the file, folder, pattern or "-" that its restored version goes to."""

    source: str
    destination: str


@dataclass(frozen=True)
class Options:
    """How films are cut, shown and written."""

    start: float = 0.0
    end: float | None = None
    view: clip.View | None = None
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
class Report:
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


def plan(inputs: Sequence[str], out: Path | None) -> list[Job]:
    """The jobs for films that were named. Raises BadSettings and BadFolder where it is not clear what goes where."""
    jobs = [Job(given, destination(given, out)) for given in inputs]
    takers: dict[str, str] = {}
    for job in jobs:
        if other := takers.get(job.destination):
            raise BadFolder(
                f"{other} and {job.source} would both become {job.destination}; choose another folder with -o"
            )
        takers[job.destination] = job.source
    return jobs


def destination(given: str, out: Path | None) -> str:
    """Where the restored version of one film goes. Raises BadSettings where that has to be said."""
    target = Path(DEFAULT_OUT if out is None else out)
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


def run(
    jobs: Sequence[Job],
    restoring: Callable[[Job, Source], tuple[clip.Restoring | None, str]],
    options: Options,
    *,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Report:
    """Restore films, one after the other. `restoring` gives for each what restores its frames (None: it stays as it is,
    and is copied) and a line to be told about it.

    One film that fails is reported, and the others are done. Files are complete or not there; where Ctrl-C ends one,
    what is done of it is kept as a whole file next to the result's name (`clear.part.mp4`, or `clear.part-2.mp4` where
    that is taken); a live source's, which has no other end, under the name itself.
    """
    began, report = time.monotonic(), Report()
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
    job: Job,
    restoring: Callable[[Job, Source], tuple[clip.Restoring | None, str]],
    options: Options,
    report: Report,
    tell: Callable[[str], None],
    progress: bool,
) -> None:
    source = open_source(job.source, rate=options.rate)
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
            sink: Sink = FolderSink(target, source, overwrite=options.overwrite)
        else:
            container = container_of(job.destination)
            made = encoding(source.track, container, options.codec, options.quality)
            if job.destination != "-":
                make_folder(target.parent)
                path = closing.enter_context(temporary(target))
            sink = ClipSink(path, container, source, made, size=_size(source, options.view), start=options.start)
        with _bar(source, options, progress) as show:
            done = clip.run(
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
    if isinstance(sink, FolderSink) and (source.live or not done.stopped):
        sink.finish()
    if done.stopped and not source.live:
        report.stopped = f"stopped after {done.shown:.1f} s of {job.source}: that much is in {place}"
        return
    report.done += 1


def weather_of(
    given: str,
    source: Source,
    recognise: Callable[[clip.Array], Weather],
    opened: Callable[[str], Source] = open_source,
) -> tuple[Weather, int] | None:
    """The weather of a film, the mean of what is seen in a few of its frames, and how many those were; None where it
    goes by once."""
    seen = [recognise(frame.pixels) for frame in looks(given, source, opened=opened)]
    if not seen:
        return None
    return Weather(*(sum(getattr(one, kind) for one in seen) / len(seen) for kind in ("haze", "rain"))), len(seen)


def looks(
    given: str, source: Source, count: int = LOOKS, opened: Callable[[str], Source] = open_source
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

    def begin(self, frame: clip.Array, step: float) -> Callable[[], clip.Array]:
        return lambda: frame


def check(jobs: Sequence[Job], others: Iterable[Path] = (), *, overwrite: bool = False) -> None:
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
    takers: dict[str, Job] = {}
    for job in jobs:
        if job.destination == "-":
            continue
        target = Path(job.destination)
        frames = _is_frames(job)
        if frames:
            frame_output.check_pattern(target)
        check_place(target)
        other = takers.setdefault(os.path.realpath(target), job)
        if other is not job:
            raise BadFolder(
                f"{other.source} and {job.source} would both become {job.destination}; choose another folder with -o"
            )
        if not frames:
            refuse_inputs([target], inputs)
            continue
        if given := folders.get(os.path.realpath(frame_output.folder_of(target))):
            raise BadFolder(f"{target} would be written into the input folder {given}; choose another with -o")
        found = frame_output.existing(target, _names(job))
        refuse_inputs(found, inputs)
        ours = frame_output.listed(target)
        taken = found if ours is None else [file for file in found if file.name not in ours]
        if taken and not overwrite and not _there(job):
            raise BadFolder(
                f"{taken[0]} is there already, and {target} would replace it: choose another folder with -o, "
                "or --overwrite"
            )


def _inputs(job: Job) -> list[Path]:
    """The files that are read for a video."""
    if not os.path.isdir(job.source):
        return [Path(job.source)]
    return [file for file in Path(job.source).iterdir() if file.suffix.lower() in PICTURES]


def _is_frames(job: Job) -> bool:
    """Whether the result is a folder of pictures."""
    target = Path(job.destination)
    return "%" in target.name or (os.path.isdir(job.source) and target.suffix.lower() not in CONTAINERS)


def _names(job: Job) -> list[str] | None:
    return [file.name for file in _inputs(job)] if os.path.isdir(job.source) else None


def _there(job: Job) -> bool:
    """Whether the result exists, all of it."""
    target = Path(job.destination)
    if not _is_frames(job):
        return job.destination != "-" and os.path.exists(target) and not os.path.isdir(target)
    if frame_output.listed(target) is not None:
        return False
    if "%" in target.name:
        return os.path.exists(target.parent / (target.name % 1))
    names = _names(job) or []
    return bool(names) and all(os.path.exists(target / name) for name in names)


def _note_cut(job: Job, source: Source, options: Options, report: Report, place: str) -> None:
    """Report a video of which a part is missing."""
    if isinstance(source, Clip) and (missing := source.missing(options.end)):
        end = "" if place == "-" else f"; they are in {place}"
        report.cut.append((job.source, f"{job.source}: the video is cut short or damaged: {missing}{end}"))


def _same_kind(job: Job) -> bool:
    same = Path(job.source).suffix.lower() == Path(job.destination).suffix.lower()
    return same and Path(job.source).is_file() and job.destination != "-"


def _copy(job: Job) -> None:
    target = Path(job.destination)
    make_folder(target.parent)
    with atomic(target) as temporary:
        shutil.copyfile(job.source, temporary)


def _size(source: Source, view: clip.View | None) -> tuple[int, int] | None:
    if view is None:
        return None
    width, height = source.track.width, source.track.height
    if source.track.rotation % 180:
        width, height = height, width
    return (2 * width if view == "side" else width), height


@contextmanager
def _bar(source: Source, options: Options, wanted: bool) -> Iterator[Callable[[clip.Progress], None]]:
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

        def show(progress: clip.Progress) -> None:
            pace = f"{progress.frames / max(progress.seconds, 1e-3):.1f} frames/s"
            drawn.update(task, completed=progress.frames, pace=pace)

        yield show
