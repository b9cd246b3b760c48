"""Batches: `plan` decides which input becomes which file, `run` restores them and reports the result.

Several photos are in progress at once, each in its own thread from file to file: while the network runs for one of them
(it uses all cores), others are decoded, processed at full size and encoded by libraries that release Python's lock.
Videos follow one by one (`fairweather.video.pipeline`, imported only if there are any).
"""

from __future__ import annotations

import glob
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.files import atomic, check_place, make_folder, refuse_inputs, sweep
from fairweather.images.formats import FORMATS
from fairweather.images.io import SUFFIXES, Photo, check, contents, read, write
from fairweather.inference.cancellation import cancel_scope, check_cancelled
from fairweather.inference.memory import (
    BASE_ALLOWANCE,
    BASE_ALLOWANCE_AUTO,
    COMFORTABLE_WINDOW,
    COMFORTABLE_WINDOW_AUTO,
    MemoryBudget,
)
from fairweather.inference.restorer import RestoreOptions, load
from fairweather.inference.weather_detection import RestorePlan

DEFAULT_OUT = "restored"
_log = logging.getLogger("fairweather")


class Job(NamedTuple):
    """One photo or video and its output. Videos may be addresses, cameras, folders of frames, patterns or "-"."""

    source: str
    destination: str
    video: bool = False


@dataclass
class Report:
    """The result of a run."""

    photos: int = 0
    """Photos restored."""
    videos: int = 0
    """Videos restored."""
    unchanged: int = 0
    """Photos and videos copied because there was nothing to remove."""
    skipped: int = 0
    """Outputs that were skipped because they existed."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Each input that failed, with a message that names it."""
    incomplete: list[tuple[str, str]] = field(default_factory=list)
    """Each video that is truncated or damaged, with a message; what could be read is restored."""
    interrupted: str | None = None
    """A message if Ctrl-C interrupted a video; the part restored so far is written."""
    pixels: int = 0
    """Pixels of the restored photos."""
    frames: int = 0
    """Frames of the restored videos."""
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Photos and videos restored or copied."""
        return self.photos + self.videos + self.unchanged

    def add(self, other: Report) -> None:
        """Add the result of another part of the same run."""
        for name, value in vars(other).items():
            if name not in ("seconds", "interrupted"):
                setattr(self, name, getattr(self, name) + value)
        self.interrupted = self.interrupted or other.interrupted

    def summary(self, jobs: Sequence[Job], verb: str = "restored") -> str:
        """The result in one line, e.g. "3 of 4 photos restored in 1.2 s, 1 failed: restored"."""
        videos = sum(job.video for job in jobs)
        counts = [
            f"{done} of {total} {name}"
            for name, done, total in (("photos", self.photos, len(jobs) - videos), ("videos", self.videos, videos))
            if total
        ]
        line = f"{' and '.join(counts)} {verb} in {self.seconds:.1f} s"
        if self.frames:
            line += f" ({self.frames} frames, {self.frames / max(self.seconds, 1e-3):.1f} per second)"
        if self.unchanged:
            line += f", {self.unchanged} unchanged"
        if self.incomplete:
            line += f", {len(self.incomplete)} incomplete"
        if self.skipped:
            line += f", {self.skipped} skipped because the output exists (--overwrite replaces it)"
        if self.failed:
            line += f", {len(self.failed)} failed"
        if self.done or self.skipped:
            folders = [os.path.dirname(job.destination) for job in jobs]
            line += f": {jobs[0].destination if len(jobs) == 1 else os.path.commonpath(folders)}"
        return line


class PhotoRestorer(Protocol):
    """What `run` needs of a `Restorer` or `AutoRestorer`."""

    def plan(self, photo: NDArray[Any], weather: str = ...) -> RestorePlan: ...

    def open(self, model: str) -> Callable[[NDArray[Any], float, bool], NDArray[Any]]: ...


def plan(
    inputs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None, *, video: bool = False
) -> list[Job]:
    """Expand files, folders and patterns (`*`, `?`, `[...]`, `**`) to jobs, in a stable order.

    A folder is searched recursively and its structure kept under `out`; a pattern keeps the structure below the part
    before its first wildcard. In folders and patterns, pictures and videos are found by their suffix; hidden files and
    the contents of `out` are ignored. A file that is named explicitly may have any suffix. Nothing is created.

    Args:
        inputs: files, folders, patterns; for videos also addresses, cameras and "-".
        out: a folder (default: `restored`), or a file if there is one input; for videos also a frame pattern or "-".
        video: a folder contains the frames of one video. This also holds if `out` names a video.

    Raises:
        BadImage: an input does not exist.
        BadFolder: an input folder has no pictures, two inputs have the same output, an output is an input, or an output
            cannot be written.
        BadSettings: there are no inputs, or a video's output needs a name.
    """
    target = Path(DEFAULT_OUT if out is None else out)
    jobs: list[Job] = []
    found: list[tuple[Path, Path, bool]] = []
    for path in inputs:
        given = os.fspath(path)
        if _is_video(given, target if out is not None else None, video):
            from fairweather.video.pipeline import video_destination

            jobs.append(Job(given, video_destination(given, target), True))
        else:
            found += _expand(given, target)
    if not found and not jobs:
        raise BadSettings("nothing to restore: name files, folders or patterns")
    if len(found) == 1 and found[0][2] and target.suffix.lower() in SUFFIXES and not target.is_dir():
        return [*_checked([Job(str(found[0][0]), str(target))]), *jobs]
    files = [Job(str(source), str(target / below), _is_video(str(source))) for source, below, _ in found]
    return [*_checked([job for job in files if not job.video]), *jobs, *(job for job in files if job.video)]


def check_outputs(jobs: Sequence[Job], *, overwrite: bool = False) -> None:
    """Check that no output of a run with videos replaces an input. Raises BadFolder and BadSettings."""
    videos = [(job.source, job.destination) for job in jobs if job.video]
    if videos:
        from fairweather.video import pipeline

        photos = [job for job in jobs if not job.video]
        pipeline.check_outputs(videos, [job.source for job in photos], overwrite=overwrite)
        refuse_inputs([job.destination for job in photos], [source for source, _ in videos])


def open_restorer(options: RestoreOptions, threads: int | None = None) -> tuple[PhotoRestorer, MemoryBudget]:
    """Open the models of a run, and the memory budget that they share with its photos. Raises as `load` does."""
    auto = options.model is None
    budget = MemoryBudget(
        options.memory,
        allowance=BASE_ALLOWANCE_AUTO if auto else BASE_ALLOWANCE,
        copies=2 if auto else 1,
        comfortable=COMFORTABLE_WINDOW_AUTO if auto else 0,
    )
    restorer = load(
        options.model or "auto",
        engine=options.engine,
        memory=None if options.memory is None else budget.windows,
        threads=threads,
        precision=options.precision,
    )
    if not auto and restorer.card.output == "image":
        budget.comfortable = int(COMFORTABLE_WINDOW * restorer.bytes_per_pixel)
    return restorer, budget


def run(
    jobs: Sequence[Job],
    options: RestoreOptions | None = None,
    *,
    restorer: PhotoRestorer | None = None,
    budget: MemoryBudget | None = None,
    progress: bool = True,
    log_line: Callable[[str], None] = lambda line: None,
) -> Report:
    """Restore photos and videos.

    Existing outputs are skipped, so an interrupted run can be resumed. An input that fails is reported and the others
    continue; an error about the model, the settings or the disk ends the run. Outputs are complete or absent, also
    after Ctrl-C; temporary files of a killed run are removed by the next one that writes to their folder.

    Args:
        jobs: as from `plan`.
        options: how they are restored; with strength 0 or weather "none", files are copied byte for byte.
        restorer: the models; default: those that the options name.
        budget: limits how many photos are in memory; default: as many as fit into what is free, and never more than a
            few.
        progress: show a progress bar on stderr if that is a terminal.
        log_line: receives the decision about each photo and video in words, in the order of the jobs.

    Raises:
        BadFolder: an output is an input or cannot be written, or the disk is full.
        FairweatherError: the model or the settings are wrong.
    """
    started, options = time.monotonic(), options or RestoreOptions()
    check_outputs(jobs, overwrite=options.overwrite)
    report = Report()
    todo = pending(jobs, options.overwrite)
    report.skipped = len(jobs) - len(todo)
    sweep_outputs(jobs)
    photos, videos = ([job for job in todo if job.video == video] for video in (False, True))
    copies = options.strength == 0 or (options.model is None and options.weather == "none")
    if copies:
        restorer = None
    elif todo and restorer is None:
        restorer, budget = open_restorer(options)
    budget = budget or MemoryBudget(options.memory)
    if restorer is not None or videos:
        budget.begin()
    with progress_bar(report, len(todo), progress) as show:
        try:
            _run_photos(photos, restorer, options, budget, report, show, log_line)
        except BadFolder as error:
            raise BadFolder(f"{error} [stopped; {report.done} of {len(todo)} photos are done]") from error
        for job in videos:
            if report.interrupted is None:
                _run_video(job, restorer, options, budget, report, show, log_line, len(jobs))
    report.seconds = time.monotonic() - started
    return report


def pending(jobs: Sequence[Job], overwrite: bool) -> list[Job]:
    """The jobs whose output does not exist, or all jobs with `overwrite`."""
    if overwrite:
        return list(jobs)
    todo = [job for job in jobs if job.video or not os.path.exists(job.destination)]
    if any(job.video for job in todo):
        from fairweather.video.pipeline import output_exists

        todo = [job for job in todo if not job.video or not output_exists(job.source, job.destination)]
    return todo


def sweep_outputs(jobs: Iterable[Job]) -> None:
    """Remove temporary files of killed runs from the output folders."""
    folders = {os.path.dirname(job.destination) or "." for job in jobs}
    for folder in folders | {job.destination for job in jobs if job.video and job.destination != "-"}:
        sweep(folder)


def _run_photos(
    todo: Sequence[Job],
    restorer: PhotoRestorer | None,
    options: RestoreOptions,
    budget: MemoryBudget,
    report: Report,
    show: Callable[[], None],
    log_line: Callable[[str], None],
) -> None:
    waiting, in_progress = deque(todo), deque[tuple[Job, Future[tuple[int | None, str]]]]()
    unfinished = set[Future[tuple[int | None, str]]]()
    stop, pool = threading.Event(), ThreadPoolExecutor(limit := _max_in_flight(), "photo")
    try:
        while waiting or in_progress:
            while waiting and len(unfinished) < limit:
                job = waiting[0]
                with failures(report, job.source):
                    if restorer is not None and not budget.admit(job.source, job.destination, options.max_pixels):
                        break
                    future = pool.submit(_restore_photo, job, restorer, options, budget, stop)
                    in_progress.append((job, future))
                    unfinished.add(future)
                waiting.popleft()
            finished, unfinished = wait(unfinished, return_when=FIRST_COMPLETED)
            for future in finished:
                if _ends_the_run(error := future.exception()):
                    raise error  # at once, without waiting for photos in progress
            while in_progress and in_progress[0][1].done():
                job, future = in_progress.popleft()
                with failures(report, job.source):
                    pixels, line = future.result()
                    report.photos += pixels is not None
                    report.unchanged += pixels is None
                    report.pixels += pixels or 0
                    if line:
                        log_line(line)
            show()
    finally:
        # After an error or Ctrl-C: photos that have not started are dropped, files being written are finished.
        stop.set()
        pool.shutdown(cancel_futures=True)
        for _, future in in_progress:
            report.photos += not future.cancelled() and future.exception() is None


def _restore_photo(
    job: Job, restorer: PhotoRestorer | None, options: RestoreOptions, budget: MemoryBudget, stop: threading.Event
) -> tuple[int | None, str]:
    """Restore one photo from file to file, in its own thread.

    Returns:
        The number of restored pixels (None for a copy), and the decision in words.
    """
    try:
        with cancel_scope(stop):
            line = ""
            pixels: NDArray[Any] | None = None
            if restorer is None:
                check(job.source, max_pixels=options.max_pixels)  # a damaged photo is not copied as if it were whole
            else:
                photo = read(job.source, max_pixels=options.max_pixels)
                check_cancelled()
                plan = restorer.plan(photo.pixels, options.weather)
                line = f"{job.source}: {described}" if (described := plan.describe()) else ""
                for part in plan.parts:
                    restore = restorer.open(part.model)
                    pixels = restore(
                        photo.pixels if pixels is None else pixels, options.strength * part.amount, options.guard
                    )
                check_cancelled()
            if pixels is None:
                _copy(job, options.max_pixels)
                return None, line
            photo = photo.replaced(pixels)  # frees the original pixels
            _save(job.destination, photo)
            return photo.pixels.shape[0] * photo.pixels.shape[1], line
    finally:  # here and not where the result is counted: photos behind a slow one may be done long before it
        budget.release(job.source)


def _run_video(
    job: Job,
    restorer: Any,
    options: RestoreOptions,
    budget: MemoryBudget,
    report: Report,
    show: Callable[..., None],
    log_line: Callable[[str], None],
    jobs: int,
) -> None:
    try:
        try:
            import av  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtra("av", "video", f"{job.source} is a video: restoring it") from error
        from fairweather.video.pipeline import restore_video

        result = restore_video(
            *(job.source, job.destination, restorer, options, budget), log_line=log_line,
            progress=lambda state, total: show(os.path.basename(job.source), state.frames, total),
        )  # fmt: skip
    except (BadImage, MissingExtra, BadSettings) as error:
        if jobs == 1:
            raise
        report.failed.append((job.source, str(error)))
        return
    report.frames += result.frames
    report.interrupted = result.interrupted
    if result.incomplete:
        report.incomplete.append((job.source, result.incomplete))
    if not result.interrupted:
        report.videos += not result.unchanged
        report.unchanged += result.unchanged
    show()


def _save(destination: str, photo: Photo) -> None:
    make_folder(os.path.dirname(destination) or ".")
    write(destination, photo)


def _copy(job: Job, max_pixels: int) -> None:
    formats = {FORMATS.get(Path(path).suffix.lower()) for path in (job.source, job.destination)}
    if len(formats) > 1:
        _save(job.destination, read(job.source, max_pixels=max_pixels))
        return
    data, _ = contents(Path(job.source))  # before the folder is created: a file that is no picture is not copied
    make_folder(os.path.dirname(job.destination) or ".")
    with atomic(job.destination) as temporary:
        temporary.write_bytes(data)


def _max_in_flight() -> int:
    """One photo more than there are cores, because one often waits for the disk or the network; at most 8, to bound
    the memory that they use on large machines."""
    return min(8, (os.cpu_count() or 2) + 1)


def _ends_the_run(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether the error would occur for every photo."""
    if isinstance(error, FairweatherError):
        return not isinstance(error, BadImage | MissingExtra)
    return error is not None and not isinstance(error, Exception)


@contextmanager
def failures(report: Report, source: str) -> Iterator[None]:
    """Report an error about one photo; raise one that would occur for every photo."""
    try:
        yield
    except BaseException as error:
        if _ends_the_run(error):
            raise
        if isinstance(error, MemoryError):
            message = "not enough memory: close other programs, or use a smaller photo"
        elif isinstance(error, FairweatherError):
            message = str(error)
        else:  # engines raise their own types; one photo must not end a run of hours
            _log.debug("%s", source, exc_info=True)
            message = f"{type(error).__name__}: {error}"
        report.failed.append((source, message if source in message else f"{source}: {message}"))


@contextmanager
def progress_bar(report: Report, total: int, wanted: bool) -> Iterator[Callable[..., None]]:
    """Draw a progress bar if stderr is a terminal.

    Yields:
        A function to call when the report has changed; `show(name, frames, total frames)` draws the bar of a video.
    """
    if not (wanted and total and sys.stderr.isatty()):
        yield lambda *video: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bars:
        task, started = bars.add_task("restoring", total=total, pace=""), time.monotonic()
        videos: list[tuple[Any, float]] = []

        def show(video: str = "", frames: int = 0, frame_total: int | None = None) -> None:
            now = time.monotonic()
            if not video:
                while videos:
                    bars.remove_task(videos.pop()[0])
                pace = f"{report.done / max(now - started, 1e-3):.2f} files/s"
                bars.update(task, completed=report.done + len(report.failed), pace=pace)
                return
            if not videos:
                videos.append((bars.add_task(video, total=frame_total, pace=""), now))
            one, began = videos[0]
            bars.update(one, completed=frames, pace=f"{frames / max(now - began, 1e-3):.1f} frames/s")

        yield show


def _is_video(given: str, out: Path | None = None, video: bool = False) -> bool:
    """Whether an input is a video: by its name, or a folder of frames by `--video` or the output's name."""
    suffix = os.path.splitext(given)[1].lower()
    if os.path.isdir(given):
        if video or out is None or out.is_dir() or out.suffix.lower() == ".webp":
            return video
        from fairweather.video.encoding import CONTAINERS

        return "%" in out.name or out.suffix.lower() in CONTAINERS
    if suffix in SUFFIXES and suffix != ".webp" and "://" not in given:  # a photo: no video code is imported
        return False
    from fairweather.video.reader import is_video

    return is_video(given)


def _expand(given: str, target: Path) -> list[tuple[Path, Path, bool]]:
    """The files of one input: path, path below the output folder, and whether the file was named explicitly."""
    path = Path(given)
    if os.path.exists(given) and not os.path.isdir(given):
        return [(path, Path(path.name), True)]
    from fairweather.video.encoding import CONTAINERS

    suffixes = SUFFIXES | set(CONTAINERS) - {".webp"}
    if os.path.isdir(given):
        found = [(file, file.relative_to(path), False) for file in _search(path, target, suffixes)]
        if not found:
            raise BadFolder(f"{path}: no pictures in this folder: supported suffixes are {', '.join(sorted(suffixes))}")
        return found
    if not glob.has_magic(given):
        raise BadImage(f"{path}: no such file or folder: check the name")
    fixed = list(path.parts)
    while any(glob.has_magic(part) for part in fixed):
        fixed.pop()
    root = Path(*fixed)
    found = []
    for match in map(Path, sorted(glob.glob(given, recursive=True))):
        if _is_inside(match, target) and not _is_inside(root, target):
            continue  # an earlier result
        if match.is_dir() and "**" not in given:
            found += [(file, file.relative_to(root), True) for file in _search(match, target, suffixes)]
        elif match.is_file() and match.suffix.lower() in suffixes:
            found.append((match, match.relative_to(root), True))
    if not found:
        raise BadFolder(f"{given}: no picture matches this pattern: check it, and put it in quotes")
    return found


def _search(folder: Path, target: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Pictures below a folder, sorted, without hidden ones and without the output folder."""

    def refuse(error: OSError) -> None:
        raise BadFolder(f"{error.filename} cannot be listed ({error.strerror}): check its permissions")

    results = os.path.realpath(target)
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(place, name)) != results
        )
        for name in sorted(files):
            path = Path(place, name)
            if name[0] != "." and path.suffix.lower() in suffixes and path.is_file():
                yield path


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _checked(jobs: list[Job]) -> list[Job]:
    """The photos' jobs without repetitions. Raises BadFolder if an output is an input or another's output."""
    refuse_inputs([job.destination for job in jobs], [job.source for job in jobs])
    by_output: dict[str, Job] = {}
    for job in jobs:
        check_place(job.destination)
        if os.path.isdir(job.destination):
            raise BadFolder(f"{job.destination} is a folder and cannot be the output of {job.source}: use another -o")
        folder, name = os.path.split(job.destination)
        other = by_output.setdefault(os.path.normcase(os.path.join(os.path.realpath(folder), name)), job)
        if not os.path.samefile(other.source, job.source):
            raise BadFolder(
                f"{other.source} and {job.source} would both be written to {job.destination}: "
                "restore them separately, into different folders (-o)"
            )
    for folder in {os.path.dirname(job.destination) or "." for job in by_output.values()}:
        existing = Path(folder)
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            raise BadFolder(f"{existing} is a file and cannot be the output folder: choose another folder with -o")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise BadFolder(f"{existing} cannot be written to: choose another folder with -o")
    return list(by_output.values())
