"""The films among what `fairweather restore` is given: which they are, and what is done with each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

NEARLY = 0.9
"""From this share on weather is said to be taken out, without the number."""

if TYPE_CHECKING:
    from fairweather.restoring import folder
    from fairweather.restoring.recognise import Decision
    from fairweather.video.clip import Restoring
    from fairweather.video.frames import Source
    from fairweather.video.run import Job, Options, Report


@dataclass(frozen=True)
class Wanted:
    """What is to be done with each film."""

    model: str | None
    weather: str
    strength: float
    guard: bool
    engine: str
    precision: str
    memory: int | None
    steady: bool
    blend: bool


def apart(inputs: Sequence[str], out: Path | None, film: bool) -> tuple[list[str], list[str]]:
    """The inputs that are films by name (or by --film, or because a folder is to become a clip), and the rest."""
    from fairweather.video.formats import CONTAINERS
    from fairweather.video.source import is_clip

    named = out is not None and not out.is_dir() and (out.suffix.lower() in CONTAINERS or "%" in out.name)
    still = out is not None and out.suffix.lower() == ".webp"
    films = [given for given in inputs if is_clip(given) or (Path(given).is_dir() and (film or (named and not still)))]
    return films, [given for given in inputs if given not in films]


def split(jobs: Sequence[folder.Job]) -> tuple[list[folder.Job], list[Job]]:
    """The jobs for photos, and those for films that were found in folders and by patterns."""
    from fairweather.video.run import Job
    from fairweather.video.source import is_clip

    photos = [job for job in jobs if not is_clip(job.source)]
    return photos, [Job(str(job.source), str(job.destination)) for job in jobs if is_clip(job.source)]


def restore_films(jobs: Sequence[Job], wanted: Wanted, options: Options, tell: Callable[[str], None]) -> Report:
    """Restore the films. Raises MissingExtra without PyAV."""
    from fairweather.errors import MissingExtra

    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("av", "video", f"{jobs[0].source} is a film: restoring it") from error
    from fairweather.video.run import run

    return run(jobs, _Films(wanted), options, tell=tell, progress=sys.stderr.isatty())


class _Films:
    """What restores each film: one model, or those for the weather in it."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._loaded: Any = None

    def __call__(self, job: Job, source: Source) -> tuple[Restoring | None, str]:
        from fairweather.restoring.film import Film, Watching
        from fairweather.video.run import weather_of

        wanted = self._wanted
        how = {"guard": wanted.guard, "steady": wanted.steady, "blend": wanted.blend}
        if wanted.strength == 0 or wanted.weather == "none":
            return None, ""
        if wanted.model is not None:
            return Film([(self._load(wanted.model), wanted.strength)], **how), ""
        auto = self._load("auto")
        if wanted.weather != "auto":
            decided = cast("Decision", wanted.weather)
            return Film([(one, wanted.strength) for one, _ in auto.taking(decided)], **how), ""
        seen = weather_of(job.source, source, auto.recognise)
        if seen is None:  # it goes by once
            return Watching(auto, wanted.strength, **how), ""
        weather, count = seen
        line = f"{job.source}: {weather} in {count} frames"
        if weather.decided == "none":
            return None, f"{line}: left as it is"
        amounts = {part: weather.amount(part) for part in auto.parts(weather.decided)}
        doubtful = [f"{100 * amount:.0f} % of the {part}" for part, amount in amounts.items() if amount < NEARLY]
        if doubtful:
            line += f": {' and '.join(doubtful)} taken out (all: --weather {weather.decided})"
        return Film([(one, wanted.strength * amount) for one, amount in auto.taking(weather)], **how), line

    def _load(self, name: str) -> Any:
        from fairweather.restoring import load

        if self._loaded is None:
            memory = None if self._wanted.memory is None else self._wanted.memory // 2
            self._loaded = load(name, engine=self._wanted.engine, memory=memory, precision=self._wanted.precision)
        return self._loaded


def summary(report: Report, count: int, jobs: Sequence[Job]) -> str:
    """One line: what was done, and how fast."""
    pace = (
        f" ({report.frames} frames, {report.frames / max(report.seconds, 1e-3):.1f} a second)" if report.frames else ""
    )
    cut = f", {len(report.cut)} of them in part," if report.cut else ""
    first = f"{report.done - report.unchanged} of {count} films restored{cut} in {report.seconds:.1f} s{pace}"
    return counted(first, report, jobs[0].destination if len(jobs) == 1 else None)


def counted(first: str, report: Report | folder.Report, where: object) -> str:
    """`first`, then what else became of the photos or films, and `where` the results are (None: in several places)."""
    parts = [first]
    if report.unchanged:
        parts.append(f"{report.unchanged} left as they were")
    if report.skipped:
        parts.append(f"{report.skipped} were there already (--overwrite does them again)")
    if report.failed:
        parts.append(f"{len(report.failed)} failed")
    there = report.done or report.skipped  # else nothing is where it was to go
    return ", ".join(parts) + (f": {where}" if there and where is not None else "")
