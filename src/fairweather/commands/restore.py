"""`fairweather restore`: photos and videos in, clear ones out."""

from __future__ import annotations

import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fairweather.errors import BadSettings


def restore(
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
    ],
    /,
    *,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="OUT", aliases=["-o"], help_behavior_hint="(default: restored)")
    ] = None,
    weather: Literal["auto", "haze", "rain", "both", "none"] = "auto",
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH", help_behavior_hint="")] = None,
    strength: Annotated[float, tyro.conf.arg(metavar="S")] = 1.0,
    guard: bool = True,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
    overwrite: bool = False,
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = 200_000_000,
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: what is free)")] = None,
    cluster: Annotated[str | None, tyro.conf.arg(metavar="local|ray://HOST:PORT", help_behavior_hint="")] = None,
    video: bool = False,
    start: Annotated[str | None, tyro.conf.arg(metavar="TIME", help_behavior_hint="")] = None,
    end: Annotated[str | None, tyro.conf.arg(metavar="TIME", help_behavior_hint="")] = None,
    preview: Annotated[
        Literal["side", "split"] | None, tyro.conf.arg(metavar="side|split", help_behavior_hint="")
    ] = None,
    smooth: bool = True,
    blend: bool = False,
    codec: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the source's)")] = None,
    quality: Annotated[float | None, tyro.conf.arg(metavar="Q", help_behavior_hint="(default: the source's)")] = None,
    fps: Annotated[str | None, tyro.conf.arg(metavar="RATE", help_behavior_hint="(default: 25)")] = None,
) -> int:
    """Remove haze and rain from photos and videos.

    Existing outputs are skipped, so an interrupted run can be resumed. Inputs are never overwritten. A model exported
    to degrade adds its weather to clear photos instead. Videos need the extra "video".

    Args:
        inputs: Photos, videos, folders, quoted patterns; a camera (/dev/video0), a stream (rtsp://...), or - (stdin).
        out: Folder, or a file if there is one input; for videos also a pattern (frames/%05d.png) or - (stdout).
        weather: What to remove; auto detects it in each input and copies clear ones unchanged.
        model: Use this model: a shipped one (see fairweather models), a model folder or a run folder.
        strength: From 0 (unchanged) to 1 (the full output of the model).
        guard: Suppress colour casts, noise and clipping.
        engine: What runs the network; auto measures the fastest once (FAIRWEATHER_ENGINE_MEASURE=0: openvino).
        precision: auto is bf16 where the processor has it, else f32; int8 needs fairweather quantize.
        overwrite: Replace existing outputs.
        max_pixels: Reject larger photos before decoding them.
        memory: Memory limit for the whole process, e.g. 2GB; larger inputs are rejected with the memory they need.
        cluster: Restore photos on a Ray cluster, or with one worker per processor of this machine (local).
        video: Treat a folder as the frames of one video, in the order of their names; implied if OUT is a video.
        start: Videos: skip to this time, e.g. 12.5, 1:02.5 or 0:01:02.
        end: Videos: stop at this time.
        preview: Videos: write source and result side by side, or half of each in one frame (split).
        smooth: Videos: smooth the predictions of the model over time.
        blend: Videos: blend each frame with the motion-compensated previous one.
        codec: Videos: h264, hevc, vp9, av1, prores, ffv1, or an FFmpeg encoder.
        quality: Videos: quality of the encoder, e.g. its CRF (H.264: 18 is visually lossless, 28 gives small files).
        fps: Frames per second of a folder of frames, e.g. 25 or 30000/1001.

    Returns:
        The exit code: 0 if all inputs are done, 2 for a usage error, 3 if some failed, 130 if interrupted.
    """
    if not inputs:
        print("fairweather restore: name the photos, videos, folders or patterns (see --help)", file=sys.stderr)
        return 2
    from fairweather import model_folder
    from fairweather.files import check_place
    from fairweather.inference import batch
    from fairweather.inference.memory import parse_size
    from fairweather.inference.restorer import RestoreOptions

    if out is not None:
        check_place(out)
    if model is not None and weather != "auto":
        raise BadSettings(f"--model {model} and --weather {weather} exclude each other: give one of them")
    options = RestoreOptions(
        model=model,
        weather=weather,
        strength=strength,
        guard=guard,
        engine=engine,
        precision=precision,
        memory=None if memory is None else parse_size(memory),
        max_pixels=max_pixels,
        overwrite=overwrite,
        start=0.0 if start is None else _seconds("--start", start),
        end=None if end is None else _seconds("--end", end),
        preview=preview,
        smooth=smooth,
        blend=blend,
        codec=codec,
        quality=quality,
        fps=None if fps is None else _rate(fps),
    )
    degrades = (
        model is not None and model_folder.read_card(model_folder.find(model), verify=False).direction == "degrade"
    )
    jobs = batch.plan(inputs, Path("degraded") if degrades and out is None else out, video=video)
    log_line = partial(print, file=sys.stderr)
    if cluster is None:
        report = batch.run(jobs, options, log_line=log_line)
    else:
        from fairweather.inference.cluster import run_on_cluster

        report = run_on_cluster(jobs, cluster, options, log_line=log_line)
    for _, message in report.failed:
        log_line(f"failed: {message}")
    for _, message in report.incomplete:
        log_line(f"incomplete: {message}")
    print(
        report.summary(jobs, "degraded" if degrades else "restored"),
        file=sys.stderr if str(out) == "-" else sys.stdout,
    )
    if report.interrupted:
        log_line(f"fairweather: {report.interrupted}")
        return 130
    return 3 if report.failed or report.incomplete else 0


def _seconds(flag: str, given: str) -> float:
    from fairweather.video.reader import parse_time

    try:
        return parse_time(given)
    except BadSettings as error:
        raise BadSettings(f"{flag}: {error}") from error


def _rate(given: str) -> Fraction:
    try:
        return Fraction(given)
    except (ValueError, ZeroDivisionError) as error:
        raise BadSettings(f"--fps must be a number (25) or a fraction (30000/1001), not {given!r}") from error
