"""Clusters: photos restored on many machines by a pool of Ray actors, in small batches of jobs.

Each worker is a process with its own models and one thread for its network; within it, `batch.run` overlaps decoding,
restoring and encoding. Workers read and write the photos under the same paths (a shared file system, or one machine).
The photos of a lost worker are assigned again one by one; since outputs are complete or absent, and existing ones are
skipped, each result exists once. A photo with which several workers in a row are lost is reported as failed.
Videos are restored on the machine that started the run.

Ray Data is not used: its retries do not skip existing outputs, and it requires pandas and Arrow.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fairweather import errors
from fairweather.errors import BadSettings, FairweatherError, MissingExtra
from fairweather.inference import batch
from fairweather.inference.batch import Job, PhotoRestorer, Report
from fairweather.inference.memory import MemoryBudget
from fairweather.inference.restorer import RestoreOptions

BATCH_SIZE = 8
"""Photos per batch: enough that a worker reads the next one while it restores one."""
MAX_ATTEMPTS = 3
"""Number of lost workers after which a photo is reported as failed."""
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_log = logging.getLogger("fairweather")

OpenRestorer: TypeAlias = Callable[[RestoreOptions, int | None], tuple[PhotoRestorer, MemoryBudget]]


def run_on_cluster(
    jobs: Sequence[Job],
    address: str,
    options: RestoreOptions | None = None,
    *,
    workers: int | None = None,
    open_restorer: OpenRestorer = batch.open_restorer,
    progress: bool = True,
    log_line: Callable[[str], None] = lambda line: None,
) -> Report:
    """Restore photos on a cluster, with the result of `batch.run`.

    Args:
        jobs: as from `batch.plan`.
        address: "local" (workers on this machine), "auto" (the cluster of this machine) or ray://HOST:PORT.
        options: as for `batch.run`; `memory` is the limit of each worker.
        workers: number of workers; default: one per processor of the cluster.
        open_restorer: opens the models on a worker.
        progress: show a progress bar.
        log_line: receives the decision about each photo in words.

    Raises:
        MissingExtra: Ray is not installed.
        BadSettings: no cluster responds at that address, or a worker cannot start.
        FairweatherError: as from `batch.run`.
    """
    started, options = time.monotonic(), options or RestoreOptions()
    batch.check_outputs(jobs, overwrite=options.overwrite)
    photos = [job for job in jobs if not job.video]
    todo = [
        Job(os.path.abspath(job.source), os.path.abspath(job.destination))
        for job in batch.pending(photos, options.overwrite)
    ]
    names = {os.path.abspath(job.source): job.source for job in photos}
    report = Report(skipped=len(photos) - len(todo))
    batch.sweep_outputs(photos)
    if todo:
        ray, ours = _connect(address, workers)
        try:
            count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            with batch.progress_bar(report, len(todo), progress) as show:
                pool = _Pool(ray, ray.remote(num_cpus=1, max_restarts=0)(Worker), options, open_restorer)
                _distribute(pool, _batches(todo, count), count, report, names, log_line, show)
        finally:
            if ours:
                ray.shutdown()
            batch.sweep_outputs(photos)
    if videos := [job for job in jobs if job.video]:
        report.add(batch.run(videos, options, progress=progress, log_line=log_line))
    report.seconds = time.monotonic() - started
    return report


@dataclass
class _Answer:
    """A worker's result for a batch."""

    report: Report
    lines: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    """Type and message of an error that ends the run: not every error can be pickled."""


class Worker:
    """One process of the pool. Models are opened with the first batch, so that errors are returned as its answer."""

    def __init__(self, options: RestoreOptions, open_restorer: OpenRestorer) -> None:
        self._options, self._open = options, open_restorer
        self._opened: tuple[PhotoRestorer, MemoryBudget] | None = None

    def do(self, jobs: list[Job]) -> _Answer:
        """Restore a batch."""
        lines: list[str] = []
        try:
            restorer, budget = self._opened = self._opened or self._open(self._options, 1)
            report = batch.run(
                jobs, self._options, restorer=restorer, budget=budget, progress=False, log_line=lines.append
            )
        except FairweatherError as error:
            return _Answer(Report(), lines, (type(error).__name__, str(error)))
        return _Answer(report, lines)


@dataclass
class _Batch:
    jobs: list[Job]
    attempts: int = 0


class _Pool:
    """The actors and their current batches."""

    def __init__(self, ray: Any, kind: Any, *settings: Any) -> None:
        self.ray, self.kind, self.settings = ray, kind, settings
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, _Batch]] = {}

    def submit(self, batch: _Batch) -> None:
        actor = self.idle.pop() if self.idle else self.kind.remote(*self.settings)
        self.busy[actor.do.remote(batch.jobs)] = actor, batch

    def next(self) -> tuple[_Batch, _Answer | None]:
        """The next finished batch and its answer; None if the worker was lost."""
        (ready, *_), _ = self.ray.wait(list(self.busy), num_returns=1)
        actor, batch = self.busy.pop(ready)
        try:
            answer: _Answer = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            if isinstance(error, self.ray.exceptions.RayTaskError) or "creation task" in str(error):
                self.idle.append(actor)  # to be closed with the others
                raise BadSettings(
                    f"--cluster: a worker cannot start ({lines[-1][:200]}): every machine needs this version of "
                    "fairweather with the same engines, and the photos under the same paths"
                ) from error
            _log.info("a worker was lost (%s)", " ".join(lines)[:200])
            return batch, None
        self.idle.append(actor)
        return batch, answer

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


def _distribute(
    pool: _Pool,
    waiting: deque[_Batch],
    workers: int,
    report: Report,
    names: dict[str, str],
    log_line: Callable[[str], None],
    show: Callable[[], None],
) -> None:
    """Assign the batches to workers until all are done; `names` are the sources as the user wrote them."""
    try:
        while waiting or pool.busy:
            while waiting and len(pool.busy) < workers:
                pool.submit(waiting.popleft())
            batch, answer = pool.next()
            if answer is None:
                retries = [_Batch([job], batch.attempts + 1) for job in batch.jobs]
                waiting.extend(one for one in retries if one.attempts < MAX_ATTEMPTS)
                for one in (one for one in retries if one.attempts >= MAX_ATTEMPTS):
                    source = names[one.jobs[0].source]
                    message = f"{source}: {MAX_ATTEMPTS} workers were lost during it: restore it alone, or reduce it"
                    report.failed.append((source, message))
                show()
                continue
            if answer.error:
                name, message = answer.error
                kinds = {kind.__name__: kind for kind in (errors.BadFolder, errors.BadCard, errors.BadSettings)}
                raise kinds.get(name, FairweatherError)(message)
            done = answer.report
            if batch.attempts:  # the lost worker wrote these
                done = replace(done, photos=done.photos + done.skipped, skipped=0)
            report.add(replace(done, failed=[(names[one], text.replace(one, names[one])) for one, text in done.failed]))
            for line in answer.lines:
                source = next((job.source for job in batch.jobs if line.startswith(f"{job.source}: ")), "")
                log_line(line.replace(source, names[source]) if source else line)
            show()
    finally:
        pool.close()


def _batches(todo: Sequence[Job], workers: int) -> deque[_Batch]:
    """Batches of BATCH_SIZE photos, or fewer, so that each worker gets several."""
    size = max(1, min(BATCH_SIZE, len(todo) // (4 * workers)))
    return deque(_Batch(list(todo[first : first + size])) for first in range(0, len(todo), size))


def _connect(address: str, workers: int | None) -> tuple[Any, bool]:
    """Ray, and whether this run has to shut it down."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "cluster", "--cluster") from None
    if address not in ("local", "auto") and not address.startswith("ray://"):
        raise BadSettings(f"--cluster: invalid address {address!r}: write local, auto or ray://HOST:PORT")
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
            f"--cluster {address}: no cluster responds ({line}): check the address, or use local"
        ) from error
    return ray, True
