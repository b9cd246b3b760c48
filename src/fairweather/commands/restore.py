"""The films among what `fairweather restore` is given: which they are, and what is done with each."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fairweather.inference import batch
    from fairweather.inference.cluster import WorkerTask
    from fairweather.inference.restorer import AutoRestorer
    from fairweather.inference.weather_detection import Decision, Weather
    from fairweather.video.pipeline import FrameRestorer, VideoJob, VideoOptions, VideoReport
    from fairweather.video.reader import FrameSource

FULL_REMOVAL = 0.9
"""From this share on weather is said to be taken out, without the number."""


@dataclass(frozen=True)
class VideoRestoreOptions:
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


def separate_videos(inputs: Sequence[str], out: Path | None, film: bool) -> tuple[list[str], list[str]]:
    """The inputs that are films by name (or by --film, or because a folder is to become a clip), and the rest."""
    from fairweather.video.encoding import CONTAINERS
    from fairweather.video.reader import is_video

    named = out is not None and not out.is_dir() and (out.suffix.lower() in CONTAINERS or "%" in out.name)
    still = out is not None and out.suffix.lower() == ".webp"
    films = [given for given in inputs if is_video(given) or (Path(given).is_dir() and (film or (named and not still)))]
    return films, [given for given in inputs if given not in films]


def split_jobs(jobs: Sequence[batch.Job]) -> tuple[list[batch.Job], list[VideoJob]]:
    """The jobs for photos, and those for films that were found in folders and by patterns."""
    from fairweather.video.pipeline import VideoJob
    from fairweather.video.reader import is_video

    photos = [job for job in jobs if not is_video(job.source)]
    return photos, [VideoJob(str(job.source), str(job.destination)) for job in jobs if is_video(job.source)]


def restore_video_jobs(
    jobs: Sequence[VideoJob], wanted: VideoRestoreOptions, options: VideoOptions, tell: Callable[[str], None]
) -> VideoReport:
    """Restore the films. Raises MissingExtra without PyAV."""
    from fairweather.errors import MissingExtra

    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("av", "video", f"{jobs[0].source} is a film: restoring it") from error
    from fairweather.video.pipeline import restore_videos

    return restore_videos(jobs, _VideoRestorers(wanted), options, tell=tell, progress=sys.stderr.isatty())


class _VideoRestorers:
    """What restores each film: one model, or those for the weather in it."""

    def __init__(self, wanted: VideoRestoreOptions) -> None:
        self._wanted = wanted
        self._loaded: Any = None

    def __call__(self, job: VideoJob, source: FrameSource) -> tuple[FrameRestorer | None, str]:
        from fairweather.inference.temporal import AutoVideoRestorer, VideoRestorer
        from fairweather.video.pipeline import detect_video_weather

        wanted = self._wanted
        how = {"guard": wanted.guard, "steady": wanted.steady, "blend": wanted.blend}
        if wanted.strength == 0 or wanted.weather == "none":
            return None, ""
        if wanted.model is not None:
            return VideoRestorer([(self._load(wanted.model), wanted.strength)], **how), ""
        auto = self._load("auto")
        if wanted.weather != "auto":
            decided = cast("Decision", wanted.weather)
            return VideoRestorer([(one, wanted.strength) for one, _ in auto.taking(decided)], **how), ""
        seen = detect_video_weather(job.source, source, auto.recognise)
        if seen is None:  # it goes by once
            return AutoVideoRestorer(auto, wanted.strength, **how), ""
        weather, count = seen
        line = f"{job.source}: {weather} in {count} frames"
        if weather.decided == "none":
            return None, f"{line}: left as it is"
        amounts = {part: weather.amount(part) for part in auto.parts(weather.decided)}
        doubtful = [f"{100 * amount:.0f} % of the {part}" for part, amount in amounts.items() if amount < FULL_REMOVAL]
        if doubtful:
            line += f": {' and '.join(doubtful)} taken out (all: --weather {weather.decided})"
        return VideoRestorer([(one, wanted.strength * amount) for one, amount in auto.taking(weather)], **how), line

    def _load(self, name: str) -> Any:
        from fairweather.inference import load

        if self._loaded is None:
            memory = None if self._wanted.memory is None else self._wanted.memory // 2
            self._loaded = load(name, engine=self._wanted.engine, memory=memory, precision=self._wanted.precision)
        return self._loaded


def video_summary(report: VideoReport, count: int, jobs: Sequence[VideoJob]) -> str:
    """One line: what was done, and how fast."""
    pace = (
        f" ({report.frames} frames, {report.frames / max(report.seconds, 1e-3):.1f} a second)" if report.frames else ""
    )
    cut = f", {len(report.cut)} of them in part," if report.cut else ""
    first = f"{report.done - report.unchanged} of {count} films restored{cut} in {report.seconds:.1f} s{pace}"
    return format_counts(first, report, jobs[0].destination if len(jobs) == 1 else None)


def format_counts(first: str, report: VideoReport | batch.Report, where: object) -> str:
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


# `fairweather restore`: photos in, clear photos out.

if TYPE_CHECKING:
    Pixels = NDArray[np.generic]


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
    ],
    /,
    *,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="OUT", aliases=["-o"], help_behavior_hint="(default: restored)")
    ] = None,
    weather: Annotated[
        Literal["auto", "haze", "rain", "both", "none"] | None, tyro.conf.arg(help_behavior_hint="(default: auto)")
    ] = None,
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH", help_behavior_hint="")] = None,
    strength: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0,
    guard: bool = True,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
    overwrite: bool = False,
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = 200_000_000,
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: as is free)")] = None,
    cluster: Annotated[str | None, tyro.conf.arg(metavar="local|ray://HOST:PORT", help_behavior_hint="")] = None,
    film: bool = False,
    start: Annotated[str | None, tyro.conf.arg(metavar="TIME", help_behavior_hint="")] = None,
    end: Annotated[str | None, tyro.conf.arg(metavar="TIME", help_behavior_hint="")] = None,
    preview: Annotated[Literal["side", "split"] | None, tyro.conf.arg(help_behavior_hint="")] = None,
    steady: bool = True,
    blend: bool = False,
    codec: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the source's)")] = None,
    quality: Annotated[float | None, tyro.conf.arg(metavar="Q", help_behavior_hint="(default: the source's)")] = None,
    fps: Annotated[str | None, tyro.conf.arg(metavar="RATE", help_behavior_hint="(default: 25)")] = None,
) -> int:
    """Take the weather out of photos and films. The exit code is the number of inputs that failed (100 at most).

    A model that was exported to degrade puts its weather into clear photos instead. Inputs are never written over.
    What is there already is skipped, so that an interrupted call can be repeated.

    Args:
        inputs: photos, clips, folders (searched through, their structure kept) or quoted patterns; also a camera
            (/dev/video0), an address (rtsp://...) or - for a pipe (extra: video).
        out: a folder, or a picture or clip if there is one input; degraded/ by default where the model degrades; for
            films also frames/%05d.png, or - for a pipe.
        weather: what to take out; auto looks at each photo, says what it sees, and copies what is clear.
        model: take this model, whatever is in the photo: a shipped one (`fairweather models` lists them), or the path
            of a model folder or run folder.
        strength: from 0 (the photo as it was) to 1 (all that the model does).
        guard: without (--no-guard) casts, noise and clipped pixels that a model makes are left in.
        engine: what runs the network; auto is the fastest here, measured once (FAIRWEATHER_ENGINE_MEASURE=0: openvino).
        precision: f32 computes in float32; bf16 rounds inside the network (openvino); int8 takes the network that
            `fairweather quantize` made; auto is bf16 where the processor has it, else f32.
        overwrite: restore what is there already once more.
        max_pixels: refuse larger photos before decoding them.
        memory: 2GB, 1.5GiB, 500MB: the whole process stays below this. Photos are read as there is room for them,
            networks work in windows that fit; what cannot fit is refused, and what it would need is said.
        cluster: hand the photos to the workers of a Ray cluster, one for each processor (extra: cluster); local starts
            them on this machine. All see the photos under the same paths; --memory is then each worker's.
        film: a folder's pictures are one film's frames, in the order of their names (so they are if OUT is a clip).
        start: films from here on: 12.5, 1:02.5 or 0:01:02.
        end: films up to here.
        preview: write films as they were beside what became of them (side), or half and half (split).
        steady: without (--no-steady) each frame is restored as a photo would be.
        blend: mix each frame with the one before along its motion: steadier, for models that give pictures too.
        codec: of films: h264, hevc, vp9, av1, prores, ffv1, or an encoder by its FFmpeg name.
        quality: of films, the encoder's own number (H.264: 18 is all but lossless, 28 small).
        fps: frames a second of a folder of frames: 25, or 30000/1001.
    """
    if not inputs:
        print("fairweather restore: name the photos, folders or patterns (see --help)", file=sys.stderr)
        return 2
    from fairweather import model_folder
    from fairweather.errors import BadSettings
    from fairweather.files import check_place, refuse_inputs
    from fairweather.inference import batch  # here: it brings OpenCV, and --help should not wait for it
    from fairweather.inference.memory import parse_size

    if out is not None:
        check_place(out)
    if not 0 <= strength <= 1:  # before anything is opened; NaN is refused too
        raise BadSettings(f"--strength must be from 0 (untouched) to 1, not {strength:g}")
    if model is not None and weather is not None:
        raise BadSettings(f"--model {model} and --weather {weather} both say what to take out: give one of them")
    card = None if model is None else model_folder.read_card(model_folder.find(model), verify=False)
    degrades = card is not None and card.direction == "degrade"
    size = None if memory is None else parse_size(memory)
    from fairweather.video import pipeline as films

    if degrades and out is None:
        out = Path("degraded")
    options = films.VideoOptions(
        start=0.0 if start is None else _seconds("--start", start),
        end=None if end is None else _seconds("--end", end),
        view=preview,
        codec=codec,
        quality=quality,
        rate=None if fps is None else _rate(fps),
        overwrite=overwrite,
    )
    moving, still = separate_videos(inputs, out, film)
    clips = films.plan_videos(moving, out)
    jobs, found = split_jobs(batch.plan_batch(still, out, also=films.VIDEO_SUFFIXES)) if still else ([], [])
    clips += found
    films.check(clips, [job.source for job in jobs], overwrite=overwrite)
    refuse_inputs([job.destination for job in jobs], [job.source for job in clips])
    done = f"given {card.weather}" if card is not None and degrades else "restored"
    strength_of_run = 0 if model is None and weather == "none" else strength
    make = partial(_work, model, weather or "auto", strength, guard, engine, precision, size)
    failed = 0
    tell = partial(print, file=sys.stderr if out is not None and str(out) == "-" else sys.stdout)
    if jobs:
        if cluster is not None:
            from fairweather.inference import cluster as machines

            report = machines.run_on_cluster(
                jobs,
                cluster,
                partial(make, threads=1),
                strength=strength_of_run,
                overwrite=overwrite,
                max_pixels=max_pixels,
                tell=_print_decision,
            )
        else:
            work = make()
            report = batch.run_batch(
                jobs,
                work.restore,
                strength=strength_of_run,
                overwrite=overwrite,
                max_pixels=max_pixels,
                said=work.said,
                tell=lambda job, line: _print_decision(line),
                budget=work.budget,
            )
        for _, message in report.failed:
            print(f"not {'done' if degrades else 'restored'}: {message}", file=sys.stderr)
        tell(_summary(report, jobs, done))
        failed += len(report.failed)
    if clips:
        how = VideoRestoreOptions(model, weather or "auto", strength, guard, engine, precision, size, steady, blend)
        made = restore_video_jobs(clips, how, options, _print_decision)
        for _, message in made.failed:
            print(f"not restored: {message}", file=sys.stderr)
        for _, message in made.cut:
            print(f"restored in part: {message}; get a whole copy", file=sys.stderr)
        tell(video_summary(made, len(clips), clips))
        failed += len(made.failed) + len(made.cut)
        if made.stopped:
            print(f"fairweather: {made.stopped}", file=sys.stderr)
            return 130
    return min(failed, 100)


def _seconds(flag: str, given: str) -> float:
    from fairweather.errors import BadSettings
    from fairweather.video.reader import parse_time

    try:
        return parse_time(given)
    except BadSettings as error:
        raise BadSettings(f"{flag}: {error}") from error


def _rate(given: str) -> Fraction:
    from fairweather.errors import BadSettings

    try:
        return Fraction(given)
    except (ValueError, ZeroDivisionError) as error:
        raise BadSettings(f"--fps is a number (25) or a fraction (30000/1001), not {given!r}") from error


def _work(
    model: str | None,
    weather: str,
    strength: float,
    guard: bool,
    engine: str,
    precision: str,
    memory: int | None,
    threads: int | None = None,
) -> WorkerTask:
    """What is done with each photo, here or on a cluster's worker: models are opened where it is called."""
    from fairweather.inference import load
    from fairweather.inference.cluster import WorkerTask
    from fairweather.inference.memory import (
        BASE_ALLOWANCE,
        BASE_ALLOWANCE_AUTO,
        COMFORTABLE_WINDOW,
        COMFORTABLE_WINDOW_AUTO,
        MemoryBudget,
    )

    budget = MemoryBudget(memory, allowance=BASE_ALLOWANCE if model else BASE_ALLOWANCE_AUTO, copies=1 if model else 2)
    windows = None if memory is None else budget.windows
    if model is not None:
        restorer = load(model, engine=engine, memory=windows, threads=threads, precision=precision)
        if restorer.card.output == "image":
            budget.at_ease = int(COMFORTABLE_WINDOW * restorer.bytes_per_pixel)
        return WorkerTask(lambda pixels: restorer(pixels, strength, guard), budget=budget)
    budget.at_ease = COMFORTABLE_WINDOW_AUTO
    auto = load("auto", engine=engine, memory=windows, threads=threads, precision=precision)
    judge = _AutoRestore(auto, weather, strength, guard)
    return WorkerTask(judge, judge.said, budget)


def _print_decision(line: str) -> None:
    """The line about a photo, on stderr as all that is said on the way."""
    if line:
        print(line, file=sys.stderr)


class _AutoRestore:
    """Restores photos by the weather in them, or by what was asked for, and says what it decided."""

    def __init__(self, auto: AutoRestorer, wanted: str, strength: float, guard: bool) -> None:
        from fairweather.errors import BadSettings

        self.auto, self.strength, self.guard = auto, strength, guard
        self.wanted = None if wanted == "auto" else cast("Decision", wanted)
        self._last = threading.local()
        if self.wanted is not None and (lacking := auto.missing(self.wanted)):
            raise BadSettings(
                f"--weather {wanted} needs the model {auto.models[lacking[0]]}, which does not ship with this "
                "fairweather: train one (fairweather train) and name it with --model"
            )

    def __call__(self, pixels: Pixels) -> Pixels | None:
        """The restored pixels, or None where the photo is to stay as it is."""
        if self.wanted is not None:  # the models for it are there: that was seen to at the start
            return self.auto.restore(pixels, self.wanted, self.strength, self.guard) if self.wanted != "none" else None
        seen = self._last.seen = self.auto.recognise(pixels)
        lacking = self.auto.missing(seen.decided)
        found = replace(seen, **dict.fromkeys(lacking, 0.0))
        return self.auto.restore(pixels, found, self.strength, self.guard) if found.decided != "none" else None

    def said(self, job: batch.Job) -> str:
        """The line about the photo that this thread restored last; empty where nothing was looked for."""
        seen: Weather | None = getattr(self._last, "seen", None)
        if seen is None:
            return ""
        parts, lacking = self.auto.parts(seen.decided), self.auto.missing(seen.decided)
        end = f", but no model for {lacking[0]} ships" if lacking else ""
        if lacking == parts:  # both are empty for a clear photo
            end += ": left as it is"
        amounts = {part: seen.amount(part) for part in sorted(set(parts) - set(lacking))}

        doubtful = [f"{amount:.0%} of the {part}" for part, amount in amounts.items() if amount < FULL_REMOVAL]
        if doubtful:
            end += f": {' and '.join(doubtful)} taken out (all: --weather {seen.decided})".replace("%", " %")
        return f"{job.source}: {seen}{end}"


def _summary(report: batch.Report, jobs: list[batch.Job], done: str) -> str:
    """One line: what was done, how fast, and where it is."""

    where = jobs[0].destination if len(jobs) == 1 else _common_folder(jobs)
    first = f"{report.done - report.unchanged} of {len(jobs)} photos {done} in {report.seconds:.1f} s"
    return format_counts(first, report, where)


def _common_folder(jobs: list[batch.Job]) -> Path:
    return Path(os.path.commonpath([job.destination.parent for job in jobs]))
