"""Videos: speed, stability and memory.

    python benchmarks/video.py [--only speed stability memory] [--film FILE] [--photo FILE] [--frames N]

speed      a video of 1280 x 720 from file to file with each model, compared with decoding it to RGB and encoding it
           again with the same settings by PyAV alone; medians of three alternating runs, with models loaded
stability  warping error (fairweather.evaluation.temporal_consistency) of a real video, restored with and without
           temporal smoothing, relative to the input's; and of a synthetic hazy video (fairweather.data.video_clips),
           with PSNR
memory     peak memory of a process that restores 10 seconds, and of one that restores 10 minutes, of 160 x 90 pixels

--film     the real video; by default fog in ../shared/data/real/video/fog_city.mp4, enlarged for `speed`
--photo    clear photo of the synthetic video; by default one of examples/
--frames   frames of the real video for speed (240) and stability (all)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from measuring import DATA, EXAMPLES, peak

from fairweather.evaluation.temporal_consistency import TemporalMeter, TemporalScore
from fairweather.inference import batch, load
from fairweather.inference.restorer import RestoreOptions
from fairweather.inference.temporal import VideoRestorer
from fairweather.video.encoding import Encoding, choose_encoding
from fairweather.video.reader import Frame, open_video

FILM = DATA / "real" / "video" / "fog_city.mp4"
MOST = {"dehaze-fast": 2.0, "dehaze": 4.0}
"""Model -> maximum time relative to PyAV alone."""
UNSTEADY, LOST, GROWN = 1.1, 0.1, 1.05
TURNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the selected tables with their targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("speed", "stability", "memory"))
    parser.add_argument("--film", type=Path, default=FILM)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--model", nargs="+", default=["dehaze-fast", "dehaze"], metavar="NAME|PATH")
    options = parser.parse_args(arguments)
    chosen = options.only or ("speed", "stability", "memory")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"The machine was busy at the start (load average {busy:.1f}), so times are too long.\n")
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in chosen:
            print(speed(options.film, options.model, options.frames or 240, Path(folder)), "\n")
        if "stability" in chosen:
            print(stability(options.film, options.photo or examples()[0], options.model, options.frames), "\n")
        if "memory" in chosen:
            print(memory(options.model[0], Path(folder)))
    return 0


def examples() -> list[Path]:
    """The example photos of this repository."""
    return sorted(EXAMPLES.glob("*.jpg"))


def speed(film: Path, models: Sequence[str], frames: int, folder: Path) -> str:
    """The table of times: PyAV alone, then each model."""
    source = enlarged(film, folder / "720p.mp4", frames)
    opened = {name: load(name) for name in models}
    track = open_video(source).track
    how = choose_encoding(track, "mp4")
    times: dict[str, list[float]] = {name: [] for name in ("PyAV alone", *models)}
    for _ in range(TURNS):
        times["PyAV alone"].append(alone(source, folder / "alone.mp4", how))
        for name, restorer in opened.items():
            job = batch.Job(str(source), str(folder / f"{Path(name).name}.mp4"), video=True)
            report = batch.run([job], RestoreOptions(overwrite=True), restorer=restorer, progress=False)
            times[name].append(report.seconds)
            count = report.frames
    base = statistics.median(times["PyAV alone"])
    lines = [
        f"{count} frames of {track.width} x {track.height}, {how.encoder} at CRF {how.options.get('crf')}:",
        "",
        "| | s | ms a frame | frames a second | of PyAV alone | aim | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, found in times.items():
        seconds = statistics.median(found)
        most = MOST.get(name)
        aim = "" if most is None else f"≤ {most:g} x"
        verdict = "" if most is None else "reached" if seconds <= most * base else "missed"
        each = f"{1000 * seconds / count:.1f} | {count / seconds:.1f} | {seconds / base:.2f} x"
        lines.append(f"| {name} | {seconds:.2f} | {each} | {aim} | {verdict} |")
    return "\n".join(lines)


def enlarged(film: Path, target: Path, frames: int) -> Path:
    """Write the video's first frames at 1280 x 720, H.264 at CRF 20."""
    with av.open(str(film)) as source, av.open(str(target), "w") as out:
        pictures = source.streams.video[0]
        pictures.thread_type = "AUTO"
        stream: Any = out.add_stream("libx264", rate=pictures.average_rate, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.time_base = pictures.time_base
        for number, frame in enumerate(source.decode(pictures)):
            if number == frames:
                break
            large = frame.reformat(1280, 720, "yuv420p", interpolation="LANCZOS")
            large.pts, large.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(large))
        out.mux(stream.encode(None))
    return target


def alone(path: Path, target: Path, how: Encoding) -> float:
    """Seconds for decoding a video to RGB arrays and encoding them, as in the PyAV documentation."""
    began = time.perf_counter()
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        pictures = source.streams.video[0]
        pictures.thread_type = "AUTO"
        stream: Any = out.add_stream(how.encoder, rate=pictures.average_rate, options=dict(how.options))
        stream.width, stream.height, stream.pix_fmt = pictures.width, pictures.height, how.pixel_format
        stream.codec_context.time_base = pictures.time_base
        for frame in source.decode(pictures):
            again = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24")
            again.pts, again.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(again))
        out.mux(stream.encode(None))
    return time.perf_counter() - began


def stability(film: Path, photo: Path, models: Sequence[str], frames: int | None) -> str:
    """The table of warping errors, with and without smoothing."""
    lines = [
        "| clip | model | smoothed | warping error × 10⁶ (input) | gain | normalised, of the input's | flicker (input) "
        "| PSNR dB | |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    clips = {film.stem: lambda: of_file(film, frames), "synthetic": lambda: synthetic(photo)}
    for name, frames_of in clips.items():
        found = measured(frames_of(), models)
        for model in models:
            with_, without = found[model, True], found[model, False]
            steady = with_.ratio <= UNSTEADY and with_.ratio < without.ratio
            near = with_.psnr is None or with_.psnr >= without.psnr - LOST
            for smoothed, score in ((True, with_), (False, without)):
                psnr = "" if score.psnr is None else f"{score.psnr:.2f}"
                error = f"{1e6 * score.restored:.1f} ({1e6 * score.input:.1f})"
                verdict = ("reached" if steady and near else "missed") if smoothed else ""
                each = (
                    f"{error} | {score.gain:.2f} | {score.ratio:.3f} | {score.flicker:.2f} ({score.input_flicker:.2f})"
                )
                lines.append(f"| {name} | {model} | {'yes' if smoothed else 'no'} | {each} | {psnr} | {verdict} |")
    return "\n".join(lines)


def measured(frames: Iterator[Any], models: Sequence[str]) -> dict[tuple[str, bool], TemporalScore]:
    """Scores by (model, smoothed). frames: (seconds since the last, frame, ground truth or None)."""
    films = {
        (name, steady): VideoRestorer([(load(name), 1.0)], smooth=steady) for name in models for steady in (True, False)
    }
    scores = scored(frames, {f"{name} {steady}": film for (name, steady), film in films.items()})
    return {(name, steady): scores[f"{name} {steady}"] for name, steady in films}


def scored(frames: Iterator[Any], films: Mapping[str, VideoRestorer]) -> dict[str, TemporalScore]:
    """Scores by way of restoring of one video; frames as for `measured`."""
    meter = TemporalMeter()
    for step, frame, truth in frames:
        meter.add(frame, {name: film(frame, step) for name, film in films.items()}, truth)
    return meter.scores()


def of_file(film: Path, frames: int | None) -> Iterator[Any]:
    """The frames of a video, without ground truth."""
    source = open_video(film)
    last = None
    unit = float(source.track.time_base)
    for number, frame in enumerate(item for item in source.items() if isinstance(item, Frame)):
        if number == frames:
            return
        yield 0.0 if last is None else (frame.time - last) * unit, frame.pixels, None
        last = frame.time


def synthetic(photo: Path, frames: int = 100, seed: int = 0) -> Iterator[Any]:
    """A synthetic hazy video of a clear photo, with ground truth."""
    from fairweather.data.video_clips import hazy_clip
    from fairweather.images.io import read

    pixels = read(photo).pixels
    for number, (degraded, clear) in enumerate(hazy_clip(pixels, frames, np.random.default_rng(seed))):
        yield 0.04 if number else 0.0, degraded, clear


def memory(model: str, folder: Path, lengths: Sequence[int] = (10, 600)) -> str:
    """The table of peaks for videos of several lengths, relative to the first."""
    lines = ["| video | frames | peak MiB | |", "|---|--:|--:|---|"]
    peaks = []
    for seconds in lengths:
        source = folder / f"{seconds}.mp4"
        waves(source, 25 * seconds)
        command = [sys.executable, str(Path(__file__)), "--peak", str(source), str(folder / f"out{seconds}.mp4"), model]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 2**20)
        verdict = "" if len(peaks) == 1 else "reached" if peaks[1] <= GROWN * peaks[0] else "missed"
        grown = "" if len(peaks) == 1 else f"{peaks[1] / peaks[0]:.3f} x, aim ≤ {GROWN:g} x: {verdict}"
        lines.append(f"| {seconds} s of 160 x 90 | {25 * seconds:,} | {peaks[-1]:.0f} | {grown} |")
    return "\n".join(lines)


def waves(target: Path, frames: int) -> None:
    """Write a video of a soft moving pattern."""
    rows, columns = np.mgrid[0:90, 0:160].astype(np.float32)
    with av.open(str(target), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for number in range(frames):
            wave = [np.sin((columns + number) / 9), np.cos(rows / 7), np.sin((rows + columns + number) / 11)]
            picture = np.rint(np.stack(wave, -1) * 80 + 128).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))


def measured_peak(source: str, target: str, model: str) -> None:
    """Restore a video in this process, and print its peak memory in bytes."""
    batch.run([batch.Job(source, target, video=True)], restorer=load(model), progress=False)
    print(peak())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        measured_peak(*sys.argv[2:])
    else:
        sys.exit(main())
