"""Many photos on many machines: the jobs of `folder.plan` in small batches over a pool of Ray actors.

Each worker is a process with a model of its own and one thread for its network; within it, `folder.run` overlaps
decoding, restoring and encoding as ever. Photos stay where they are: workers read and write them under the same paths
(a shared file system, or one machine). A worker that is lost costs the time of its batch: the photos of that batch are
handed out again one by one, and since files are written whole or not at all, and what is there is skipped, each result
is there once. A photo that has cost several workers in a row is given up and named.

Ray Data is not used: its retries know nothing of files that are there already, and it brings pandas and Arrow along.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

from fairweather import errors
from fairweather.errors import BadSettings, FairweatherError, MissingExtra
from fairweather.files import sweep
from fairweather.images import MAX_PIXELS
from fairweather.restoring import folder
from fairweather.restoring.budget import Budget
from fairweather.restoring.folder import Job, Report

BATCH = 8
"""Photos handed to a worker at once: enough that it reads the next while it restores one."""
ATTEMPTS = 3
"""Workers that a photo may cost."""
_STARTING = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_log = logging.getLogger("fairweather")


class Work(NamedTuple):
    """What a worker does with each photo, in several threads; made on the worker."""

    restore: Callable[[NDArray[Any]], NDArray[Any] | None]
    said: Callable[[Job], str] = lambda job: ""
    """The line about the photo that was just restored in this thread; empty where there is nothing to say."""
    budget: Budget | None = None


Make: TypeAlias = Callable[[], Work]


@dataclass
class _Batch:
    jobs: list[Job]
    attempts: int = 0


@dataclass
class _Answer:
    report: Report
    lines: list[tuple[Path, str]] = field(default_factory=list)
    stopped: tuple[str, str] | None = None
    """Name and message of an error that is about more than one photo."""


class Worker:
    """One process of the pool. The model is opened with the first batch: what is wrong with it is then an answer."""

    def __init__(self, make: Make, strength: float, overwrite: bool, max_pixels: int) -> None:
        self._make, self._settings = make, (strength, overwrite, max_pixels)
        self._work: Work | None = None

    def do(self, jobs: list[Job]) -> _Answer:
        """Restore some photos, and say what became of them."""
        lines: list[tuple[Path, str]] = []
        strength, overwrite, max_pixels = self._settings
        try:
            work = self._work = self._work or self._make()
            report = folder.run(
                jobs,
                work.restore,
                strength=strength,
                overwrite=overwrite,
                max_pixels=max_pixels,
                progress=False,
                said=work.said,
                tell=lambda job, line: lines.append((job.source, line)),
                budget=work.budget,
            )
        except FairweatherError as error:  # as words: not every error can be pickled
            return _Answer(Report(), lines, (type(error).__name__, str(error)))
        return _Answer(report, lines)


def run(
    jobs: Sequence[Job],
    address: str,
    make: Make,
    *,
    workers: int | None = None,
    strength: float = 1.0,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Do the jobs on a cluster; the report is that of `folder.run`, which a single machine would use.

    `address` is "local" (workers on this machine), "auto" (the cluster that this machine is part of) or
    ray://HOST:PORT. `make` gives what each worker does; it is pickled, and called there. `workers`: by default one for
    each processor of the cluster. `tell` gets the lines that workers have to say, empty ones too.
    Raises MissingExtra, BadSettings (no cluster at that address), and what `folder.run` raises.
    """
    began, report = time.monotonic(), Report()
    todo = [
        Job(job.source.absolute(), job.destination.absolute())
        for job in jobs
        if overwrite or not job.destination.exists()
    ]
    names = {job.source.absolute(): job.source for job in jobs}
    report.skipped = len(jobs) - len(todo)
    places = {job.destination.parent for job in jobs}
    for place in places:
        sweep(place)
    if todo:
        ray, ours = _connected(address, workers)
        try:
            many = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            with folder.bar(report, len(todo), progress) as show:
                pool = _Pool(ray, ray.remote(num_cpus=1, max_restarts=0)(Worker), make, strength, overwrite, max_pixels)
                _handed_out(pool, _batches(todo, many), many, report, names, tell, show)
        finally:
            if ours:
                ray.shutdown()
            for place in places:
                sweep(place)
    report.seconds = time.monotonic() - began
    return report


class _Pool:
    """Actors, and what each of them is doing."""

    def __init__(self, ray: Any, kind: Any, *settings: Any) -> None:
        self.ray, self.kind, self.settings = ray, kind, settings
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, _Batch]] = {}

    def give(self, batch: _Batch) -> None:
        actor = self.idle.pop() if self.idle else self.kind.remote(*self.settings)
        self.busy[actor.do.remote(batch.jobs)] = actor, batch

    def take(self) -> tuple[_Batch, _Answer | None]:
        """The next batch that has ended, and its answer; None where the worker was lost."""
        (ready, *_), _ = self.ray.wait(list(self.busy), num_returns=1)
        actor, batch = self.busy.pop(ready)
        try:
            answer: _Answer = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            if isinstance(error, self.ray.exceptions.RayTaskError) or "creation task" in str(error):
                self.idle.append(actor)  # to be closed with the others
                raise BadSettings(
                    f"--cluster: a worker cannot work ({lines[-1][:200]}): every machine needs this fairweather, with "
                    "the same engines, and the photos under the same paths"
                ) from error
            _log.info("a worker was lost (%s)", " ".join(lines)[:200])
            return batch, None
        self.idle.append(actor)
        return batch, answer

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


def _handed_out(
    pool: _Pool,
    waiting: deque[_Batch],
    many: int,
    report: Report,
    names: dict[Path, Path],
    tell: Callable[[str], None],
    show: Callable[[], None],
) -> None:
    try:
        while waiting or pool.busy:
            while waiting and len(pool.busy) < many:
                pool.give(waiting.popleft())
            batch, answer = pool.take()
            if answer is None:
                again = [_Batch([job], batch.attempts + 1) for job in batch.jobs]
                waiting.extend(one for one in again if one.attempts < ATTEMPTS)
                for one in (one for one in again if one.attempts >= ATTEMPTS):
                    source = names[one.jobs[0].source]
                    message = f"{source}: {ATTEMPTS} workers were lost with it; restore it alone, or make it smaller"
                    report.failed.append((source, message))
            else:
                _add(report, answer, bool(batch.attempts), names)
                for source, line in answer.lines:
                    tell(line.replace(str(source), str(names[source])))
            show()
    finally:
        pool.close()


def _add(report: Report, answer: _Answer, again: bool, names: dict[Path, Path]) -> None:
    if answer.stopped:
        name, message = answer.stopped
        kinds = {kind.__name__: kind for kind in (errors.BadFolder, errors.BadCard, errors.BadSettings)}
        raise kinds.get(name, FairweatherError)(message)
    done = answer.report
    report.done += done.done + (done.skipped if again else 0)  # there already: the worker that was lost had got so far
    report.skipped += 0 if again else done.skipped
    report.unchanged += done.unchanged
    report.pixels += done.pixels
    for source, message in done.failed:
        given = names[source]
        report.failed.append((given, message.replace(str(source), str(given))))


def _batches(todo: Sequence[Job], many: int) -> deque[_Batch]:
    """Of BATCH photos, or fewer, so that each worker gets several."""
    size = max(1, min(BATCH, len(todo) // (4 * many)))
    return deque(_Batch(list(todo[first : first + size])) for first in range(0, len(todo), size))


def _connected(address: str, workers: int | None) -> tuple[Any, bool]:
    """Ray, and whether the connection is ours to end."""
    for name, value in _STARTING.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "cluster", "--cluster") from None
    if address not in ("local", "auto") and not address.startswith("ray://"):
        raise BadSettings(f"--cluster {address!r} is no cluster: give local, auto or ray://HOST:PORT")
    if ray.is_initialized():
        return ray, False
    try:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            ray.init("local", num_cpus=workers or os.cpu_count(), include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadSettings(
            f"--cluster {address}: no cluster answers ({line}); check the address, or give local"
        ) from error
    return ray, True
