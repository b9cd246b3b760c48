"""`fairweather restore`: photos in, clear photos out."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fairweather.restoring import folder
    from fairweather.restoring.auto import Auto
    from fairweather.restoring.cluster import Work
    from fairweather.restoring.recognise import Decision, Weather

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
    from fairweather import cards
    from fairweather.errors import BadSettings
    from fairweather.outputs import check_place, refuse_inputs
    from fairweather.restoring import folder  # here: it brings OpenCV, and --help should not wait for it
    from fairweather.restoring.budget import parse

    if out is not None:
        check_place(out)
    if not 0 <= strength <= 1:  # before anything is opened; NaN is refused too
        raise BadSettings(f"--strength must be from 0 (untouched) to 1, not {strength:g}")
    if model is not None and weather is not None:
        raise BadSettings(f"--model {model} and --weather {weather} both say what to take out: give one of them")
    card = None if model is None else cards.read_card(cards.find(model), verify=False)
    degrades = card is not None and card.direction == "degrade"
    size = None if memory is None else parse(memory)
    from fairweather.verbs.films import Wanted, apart, restore_films, split, summary
    from fairweather.video import run as films

    if degrades and out is None:
        out = Path("degraded")
    options = films.Options(
        start=0.0 if start is None else _seconds("--start", start),
        end=None if end is None else _seconds("--end", end),
        view=preview,
        codec=codec,
        quality=quality,
        rate=None if fps is None else _rate(fps),
        overwrite=overwrite,
    )
    moving, still = apart(inputs, out, film)
    clips = films.plan(moving, out)
    jobs, found = split(folder.plan(still, out, also=films.SUFFIXES)) if still else ([], [])
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
            from fairweather.restoring import cluster as machines

            report = machines.run(
                jobs,
                cluster,
                partial(make, threads=1),
                strength=strength_of_run,
                overwrite=overwrite,
                max_pixels=max_pixels,
                tell=_tell,
            )
        else:
            work = make()
            report = folder.run(
                jobs,
                work.restore,
                strength=strength_of_run,
                overwrite=overwrite,
                max_pixels=max_pixels,
                said=work.said,
                tell=lambda job, line: _tell(line),
                budget=work.budget,
            )
        for _, message in report.failed:
            print(f"not {'done' if degrades else 'restored'}: {message}", file=sys.stderr)
        tell(_summary(report, jobs, done))
        failed += len(report.failed)
    if clips:
        how = Wanted(model, weather or "auto", strength, guard, engine, precision, size, steady, blend)
        made = restore_films(clips, how, options, _tell)
        for _, message in made.failed:
            print(f"not restored: {message}", file=sys.stderr)
        for _, message in made.cut:
            print(f"restored in part: {message}; get a whole copy", file=sys.stderr)
        tell(summary(made, len(clips), clips))
        failed += len(made.failed) + len(made.cut)
        if made.stopped:
            print(f"fairweather: {made.stopped}", file=sys.stderr)
            return 130
    return min(failed, 100)


def _seconds(flag: str, given: str) -> float:
    from fairweather.errors import BadSettings
    from fairweather.video.source import seconds_of

    try:
        return seconds_of(given)
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
) -> Work:
    """What is done with each photo, here or on a cluster's worker: models are opened where it is called."""
    from fairweather.restoring import load
    from fairweather.restoring.budget import ALLOWANCE, ALLOWANCE_AUTO, AT_EASE, AT_EASE_AUTO, Budget
    from fairweather.restoring.cluster import Work

    budget = Budget(memory, allowance=ALLOWANCE if model else ALLOWANCE_AUTO, copies=1 if model else 2)
    windows = None if memory is None else budget.windows
    if model is not None:
        restorer = load(model, engine=engine, memory=windows, threads=threads, precision=precision)
        if restorer.card.output == "image":
            budget.at_ease = int(AT_EASE * restorer.bytes_per_pixel)
        return Work(lambda pixels: restorer(pixels, strength, guard), budget=budget)
    budget.at_ease = AT_EASE_AUTO
    auto = load("auto", engine=engine, memory=windows, threads=threads, precision=precision)
    judge = _Judge(auto, weather, strength, guard)
    return Work(judge, judge.said, budget)


def _tell(line: str) -> None:
    """The line about a photo, on stderr as all that is said on the way."""
    if line:
        print(line, file=sys.stderr)


class _Judge:
    """Restores photos by the weather in them, or by what was asked for, and says what it decided."""

    def __init__(self, auto: Auto, wanted: str, strength: float, guard: bool) -> None:
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

    def said(self, job: folder.Job) -> str:
        """The line about the photo that this thread restored last; empty where nothing was looked for."""
        seen: Weather | None = getattr(self._last, "seen", None)
        if seen is None:
            return ""
        parts, lacking = self.auto.parts(seen.decided), self.auto.missing(seen.decided)
        end = f", but no model for {lacking[0]} ships" if lacking else ""
        if lacking == parts:  # both are empty for a clear photo
            end += ": left as it is"
        amounts = {part: seen.amount(part) for part in sorted(set(parts) - set(lacking))}
        from fairweather.verbs.films import NEARLY

        doubtful = [f"{amount:.0%} of the {part}" for part, amount in amounts.items() if amount < NEARLY]
        if doubtful:
            end += f": {' and '.join(doubtful)} taken out (all: --weather {seen.decided})".replace("%", " %")
        return f"{job.source}: {seen}{end}"


def _summary(report: folder.Report, jobs: list[folder.Job], done: str) -> str:
    """One line: what was done, how fast, and where it is."""
    from fairweather.verbs.films import counted

    where = jobs[0].destination if len(jobs) == 1 else _common(jobs)
    first = f"{report.done - report.unchanged} of {len(jobs)} photos {done} in {report.seconds:.1f} s"
    return counted(first, report, where)


def _common(jobs: list[folder.Job]) -> Path:
    return Path(os.path.commonpath([job.destination.parent for job in jobs]))
