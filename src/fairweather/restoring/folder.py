"""Many photos: which file becomes which (`plan`), and the work on them, overlapped (`run`).

A few photos are in the works at once, each in a thread of its own from file to file: while the network runs for one (it
takes all cores, one photo at a time), others are decoded, finished at full size and encoded, in libraries that release
Python's lock. At most `_at_once()` photos are in memory, fewer where they are large (`fairweather.restoring.budget`).
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
from typing import Any, NamedTuple, TypeGuard

from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra
from fairweather.files import atomic, sweep
from fairweather.images import MAX_PIXELS, SUFFIXES, Photo, contents, read, write
from fairweather.images.formats import FORMATS
from fairweather.outputs import check_place, make_folder
from fairweather.restoring.budget import Budget
from fairweather.restoring.stopping import check, heeding

DEFAULT_OUT = "restored"
_log = logging.getLogger("fairweather")


class Job(NamedTuple):
    """One photo: where it is, and where its restored version goes."""

    source: Path
    destination: Path


@dataclass
class Report:
    """What became of a run. `pixels` counts the restored photos' own (none for files copied at strength 0)."""

    done: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Each photo that could not be done, and why; the message names the file."""
    seconds: float = 0.0
    pixels: int = 0
    unchanged: int = 0
    """How many of those done are copies, because `restore` left them as they were."""


class _Found(NamedTuple):
    source: Path
    relative: Path
    named: bool  # given as a file or by a pattern, not found inside a folder


def plan(
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    also: frozenset[str] = frozenset(),
) -> list[Job]:
    """The jobs that files, folders and patterns (`*`, `?`, `[...]`, `**`) amount to, in a stable order.

    A folder is searched to any depth and its structure is kept under `out`; a pattern keeps the structure below the
    part before its first wildcard. Inside folders and patterns only pictures count (by suffix), nothing hidden, and
    nothing that lies in `out` already, and files with the suffixes `also`; a file that is named is taken whatever its
    suffix.
    `out` is a folder (default: `restored` in the current one), unless there is exactly one input file and `out` ends
    in a picture's suffix. Nothing is created.

    Raises BadImage (an input that is not there) and BadFolder: no pictures, two inputs for one destination,
    a destination that is an input, a place that is not a folder or cannot be written.
    """
    target = Path(DEFAULT_OUT if out is None else out)
    found: list[_Found] = []
    for given in inputs:
        found += _expand(os.fspath(given), target, SUFFIXES | also)
    if not found:
        raise BadSettings("there is nothing to restore: give files, folders or patterns")
    if len(found) == 1 and found[0].named and target.suffix.lower() in SUFFIXES and not target.is_dir():
        jobs = [Job(found[0].source, target)]
    else:
        jobs = [Job(one.source, target / one.relative) for one in found]
    return _checked(jobs)


def run(
    jobs: Sequence[Job],
    restore: Callable[[NDArray[Any]], NDArray[Any] | None],
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    said: Callable[[Job], str] = lambda job: "",
    tell: Callable[[Job, str], None] = lambda job, line: None,
    budget: Budget | None = None,
) -> Report:
    """Do the jobs. `restore` takes and gives H x W x 3 pixels, uint8 or uint16, and is called from several threads.
    Where it gives None the file is copied byte for byte. `said` is called after it in the same thread, and gives a line
    about the photo; `tell` gets the lines in the order of the jobs, in the caller's thread.

    `strength` 0 copies files byte for byte (other strengths are `restore`'s own business). What exists is skipped
    unless `overwrite`. A photo that fails is reported and the others are done; BadFolder (disk full, folder not
    writable) ends the run, as does any error of `restore` that is about the model rather than the photo.
    Written files are complete or not there, after Ctrl-C too; what a killed run has left half written is removed by the
    next one that writes into that folder. `budget` bounds how many photos are in memory: by default as many as fit into
    what is free, and never more than a few. `progress` shows a bar on stderr if that is a terminal.
    """
    began, report = time.monotonic(), Report()
    todo = [job for job in jobs if overwrite or not job.destination.exists()]
    report.skipped = len(jobs) - len(todo)
    for place in {job.destination.parent for job in jobs}:
        sweep(place)
    with bar(report, len(todo), progress) as show:
        try:
            if strength == 0:
                for job in todo:
                    with _counted(report, job.source):
                        _copy(job, max_pixels)
                        report.done += 1
                    show()
            else:
                budget = Budget() if budget is None else budget
                budget.begin()
                _overlapped(todo, _Work(restore, said, max_pixels, budget), report, show, tell)
        except BadFolder as error:
            raise BadFolder(f"{error} [stopped; {report.done} of {len(todo)} photos are done]") from error
    report.seconds = time.monotonic() - began
    return report


def _overlapped(
    todo: Sequence[Job],
    work: _Work,
    report: Report,
    show: Callable[[], None],
    tell: Callable[[Job, str], None],
) -> None:
    waiting, under_way = deque(todo), deque[tuple[Job, Future[_Done]]]()
    unfinished = set[Future[_Done]]()
    pool = ThreadPoolExecutor(most := _at_once(), "photo")
    try:
        while waiting or under_way:
            while waiting and len(unfinished) < most:
                job = waiting[0]
                with _counted(report, job.source):
                    if not work.budget.admit(job.source, job.destination, work.max_pixels):
                        break
                    under_way.append((job, pool.submit(work, job)))
                    unfinished.add(under_way[-1][1])
                waiting.popleft()
            finished, unfinished = wait(unfinished, return_when=FIRST_COMPLETED)
            for future in finished:
                if _ends_the_run(error := future.exception()):
                    raise error  # at once, whatever is under way before it
            while under_way and under_way[0][1].done():
                _count(*under_way.popleft(), report, tell)
                show()
            show()
    finally:
        # After an error or Ctrl-C: what has not begun is dropped; what is being written is finished, not cut.
        work.stop.set()
        pool.shutdown(cancel_futures=True)
        for _, future in under_way:
            report.done += not future.cancelled() and future.exception() is None


class _Done(NamedTuple):
    pixels: int
    copied: bool
    line: str


@dataclass
class _Work:
    """What is done with one photo, from file to file, in a thread of its own."""

    restore: Callable[[NDArray[Any]], NDArray[Any] | None]
    said: Callable[[Job], str]
    max_pixels: int
    budget: Budget
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, job: Job) -> _Done:
        try:
            with heeding(self.stop):
                return self._do(job)
        finally:  # here and not where it is counted: the photos behind a slow one may be done long before it
            self.budget.release(job.source)

    def _do(self, job: Job) -> _Done:
        photo = read(job.source, max_pixels=self.max_pixels)
        check()
        pixels = self.restore(photo.pixels)
        line = self.said(job)
        check()
        if pixels is None:
            return _Done(_copy(job, self.max_pixels), True, line)
        photo, pixels = photo.replaced(pixels), None  # lets go of the pixels that were read
        return _Done(_save(job.destination, photo), False, line)


def _count(job: Job, future: Future[_Done], report: Report, tell: Callable[[Job, str], None]) -> None:
    line = None
    with _counted(report, job.source):
        done = future.result()
        line = done.line
        report.pixels += done.pixels
        report.done += 1
        report.unchanged += done.copied
    if line is not None:
        tell(job, line)


def _save(destination: Path, photo: Photo) -> int:
    make_folder(destination.parent)
    write(destination, photo)
    height, width = photo.pixels.shape[:2]
    return int(height * width)


def _copy(job: Job, max_pixels: int) -> int:
    if FORMATS.get(job.source.suffix.lower()) != FORMATS.get(job.destination.suffix.lower()):
        _save(job.destination, read(job.source, max_pixels=max_pixels))
        return 0
    data, _ = contents(job.source)  # before a folder is made: what is no picture is not passed on as one
    make_folder(job.destination.parent)
    with atomic(job.destination) as temporary:
        temporary.write_bytes(data)
    return 0


def _at_once() -> int:
    """Photos in the works: one more than there are cores, since now and then one waits for the disk or for the network;
    on large machines few enough to bound the memory that they take."""
    return min(8, (os.cpu_count() or 2) + 1)


def _ends_the_run(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether what is wrong with this photo would be wrong with every one."""
    if isinstance(error, FairweatherError):
        return not isinstance(error, BadImage | MissingExtra)
    return error is not None and not isinstance(error, Exception)


@contextmanager
def _counted(report: Report, source: Path) -> Iterator[None]:
    """What is wrong with one photo goes into the report; what would be wrong with every one goes on."""
    try:
        yield
    except BaseException as error:
        if _ends_the_run(error):
            raise
        if isinstance(error, MemoryError):
            message = "there is not enough memory for it; close other programs, or make the photo smaller"
        elif isinstance(error, FairweatherError):
            message = str(error)
        else:  # a network's runtime raises types of its own; hours of work are not lost to one photo
            _log.debug("%s", source, exc_info=True)
            message = f"{type(error).__name__}: {error}"
        report.failed.append((source, message if str(source) in message else f"{source}: {message}"))


@contextmanager
def bar(report: Report, total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A function to call whenever the report has changed; it draws only where a person looks on."""
    if not (wanted and total and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"), TimeRemainingColumn())
    with Progress(TextColumn("restoring"), *columns, console=Console(stderr=True)) as drawn:
        task, began = drawn.add_task("restoring", total=total, pace=""), time.monotonic()

        def show() -> None:
            pace = f"{report.done / max(time.monotonic() - began, 1e-3):.2f} photos/s"
            drawn.update(task, completed=report.done + len(report.failed), pace=pace)

        yield show


def _expand(given: str, target: Path, suffixes: frozenset[str]) -> list[_Found]:
    path = Path(given)
    if os.path.isdir(given):
        found = [_Found(file, file.relative_to(path), False) for file in _pictures(path, target, suffixes)]
        if not found:
            raise BadFolder(f"{path}: there are no pictures in this folder; looked for {', '.join(sorted(suffixes))}")
        return found
    if os.path.exists(given):
        return [_Found(path, Path(path.name), True)]
    if not glob.has_magic(given):
        raise BadImage(f"{path}: no such file or folder; check the name")
    fixed = [part for part in Path(given).parts]
    while any(glob.has_magic(part) for part in fixed):
        fixed.pop()
    root = Path(*fixed)
    found = []
    for match in map(Path, sorted(glob.glob(given, recursive=True))):
        if _inside(match, target) and not _inside(root, target):
            continue  # an earlier result
        if match.is_dir() and "**" not in given:
            found += [_Found(file, file.relative_to(root), True) for file in _pictures(match, target, suffixes)]
        elif match.is_file() and match.suffix.lower() in suffixes:
            found.append(_Found(match, match.relative_to(root), True))
    if not found:
        raise BadFolder(f"{given}: no picture matches this pattern; check it, and quote it")
    return found


def _pictures(folder: Path, target: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Pictures below a folder, sorted; hidden ones are left out, and so is the folder that results go to."""

    def refuse(error: OSError) -> None:
        raise BadFolder(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")

    results = os.path.realpath(target)
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(place, name)) != results
        )
        for name in sorted(files):
            path = Path(place, name)
            if name[0] != "." and path.suffix.lower() in suffixes and path.is_file():
                yield path


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _checked(jobs: list[Job]) -> list[Job]:
    """The jobs without repetitions, none of which writes over an input or over another's result."""
    inputs = {_identity(job.source): job.source for job in jobs}
    takers: dict[str, Job] = {}
    for job in jobs:
        check_place(job.destination)
        if job.destination.exists() and (source := inputs.get(_identity(job.destination))):
            raise BadFolder(
                f"{job.destination} would be written over the input {source}; choose another folder with -o"
            )
        if job.destination.is_dir():
            raise BadFolder(
                f"{job.destination}: is a folder, where the result of {job.source} is to go; choose another -o"
            )
        key = os.path.normcase(os.path.join(os.path.realpath(job.destination.parent), job.destination.name))
        other = takers.setdefault(key, job)
        if _identity(other.source) != _identity(job.source):
            raise BadFolder(
                f"{other.source} and {job.source} would both be written to {job.destination}; "
                "restore them one after the other, into different folders (-o)"
            )
    for folder in {job.destination.parent for job in takers.values()}:
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise BadFolder(
                f"{there}: is a file, and results are to go into a folder of that name; choose another (-o)"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise BadFolder(f"{there}: cannot be written into; choose another folder with -o")
    return list(takers.values())


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
