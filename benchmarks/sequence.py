"""Recurrent network compared with temporal smoothing: stability and PSNR of videos, restored in six ways.

    python benchmarks/sequence.py --model MODEL [--against dehaze-fast] [--photos DIR] [--film FILE] [--frames N]
                                  [--jobs N]

Each clear photo of DIR (by default the eight of ../shared/data/kodak, which no model was trained on) becomes a hazy
video of N frames with ground truth: a moving camera, drifting haze (fairweather.data.video_clips, seed 1000 + its
number). The real video has no ground truth. The ways:

each frame alone      the network that MODEL was initialised from, without temporal processing
smoothed              its maps smoothed over half a second along the motion, as for videos without recurrence
smoothed for 0.1 s    the same with the short smoothing that is used with recurrence
smoothed for 2 s      the same, four times as slow
memory                MODEL's recurrent state, carried along the motion
memory, smoothed      both, for 0.1 s, as for videos with recurrence

Lower is more stable: `unrest` is the warping error normalised by contrast, relative to the input's
(fairweather.evaluation.temporal_consistency); flicker is in levels of 255. MODEL ships if `memory` or `memory,
smoothed` is more stable than `smoothed` by both measures, at no lower PSNR, on the mean over the videos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from measuring import DATA
from video import FILM, of_file, scored, synthetic

from fairweather.evaluation.temporal_consistency import TemporalScore
from fairweather.inference import load
from fairweather.inference.temporal import RECURRENT_SMOOTHING_SECONDS, SMOOTHING_SECONDS, VideoRestorer

SMOOTHED, OURS = "smoothed", ("memory", "memory, smoothed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and whether the model meets the condition for shipping."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="NAME|PATH")
    parser.add_argument("--against", default="dehaze-fast", metavar="NAME|PATH")
    parser.add_argument("--photos", type=Path, default=DATA / "kodak")
    parser.add_argument("--film", type=Path, default=FILM)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    names = options.model, options.against
    paths = sorted(path for path in options.photos.iterdir() if path.suffix in (".png", ".jpg"))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        film = pool.submit(of_film, options.film, 2 * options.frames, *names)
        parts = [pool.submit(of_photo, path, 1000 + n, options.frames, *names) for n, path in enumerate(paths)]
        print(table([one.result() for one in parts], film.result()))
    return 0


def of_photo(path: Path, seed: int, frames: int, model: str, against: str) -> dict[str, TemporalScore]:
    """Scores by way on the video of one photo, on one core."""
    return scored(synthetic(path, frames, seed), ways(load(model, threads=1), load(against, threads=1)))


def of_film(film: Path, frames: int, model: str, against: str) -> dict[str, TemporalScore]:
    """Scores by way on the first frames of a real video; empty if the file is missing."""
    if not film.is_file():
        return {}
    return scored(of_file(film, frames), ways(load(model, threads=1), load(against, threads=1)))


def ways(model: Any, against: Any) -> dict[str, VideoRestorer]:
    """Name -> function that restores a video that way."""
    return {
        "each frame alone": VideoRestorer([(against, 1.0)], smooth=False),
        SMOOTHED: VideoRestorer([(against, 1.0)]),
        f"smoothed for {RECURRENT_SMOOTHING_SECONDS:g} s": VideoRestorer(
            [(against, 1.0)], seconds=RECURRENT_SMOOTHING_SECONDS
        ),
        "smoothed for 2 s": VideoRestorer([(against, 1.0)], seconds=4 * SMOOTHING_SECONDS),
        OURS[0]: VideoRestorer([(model, 1.0)], seconds=0),
        OURS[1]: VideoRestorer([(model, 1.0)]),
    }


def table(clips: Sequence[dict[str, TemporalScore]], film: dict[str, TemporalScore]) -> str:
    """Means over the synthetic videos, then the real video, and the ways that beat smoothing."""
    lines = [
        f"| | unrest, {len(clips)} clips | flicker | PSNR dB | steadier than smoothed in | unrest, video "
        "| flicker, video |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    found = {name: [clip[name] for clip in clips] for name in clips[0]}
    for name, scores in found.items():
        base = found[SMOOTHED]
        both = zip(scores, base, strict=True)
        steadier = sum(one.ratio < other.ratio and one.flicker < other.flicker for one, other in both)
        counted = "" if name == SMOOTHED else f"{steadier} of {len(clips)}"
        own = f"{film[name].ratio:.3f} | {film[name].flicker:.2f}" if film else " | "
        lines.append(f"| {name} | {' | '.join(_means(scores))} | {counted} | {own} |")
    verdicts = []
    for name in OURS:
        verdict = "ships" if beats(found[name], found[SMOOTHED]) else "does not ship"
        verdicts.append(f"{name}: {verdict}")
    return "\n".join([*lines, "", "; ".join(verdicts)])


def beats(ours: Sequence[TemporalScore], base: Sequence[TemporalScore]) -> bool:
    """True if warping error and flicker are lower at no lower mean PSNR."""
    steadier = all(mean(getattr(one, by) for one in ours) < mean(getattr(one, by) for one in base)
                   for by in ("ratio", "flicker"))  # fmt: skip
    return steadier and mean(one.psnr or 0.0 for one in ours) >= mean(one.psnr or 0.0 for one in base)


def _means(scores: Sequence[TemporalScore]) -> list[str]:
    return [
        f"{mean(score.ratio for score in scores):.3f}",
        f"{mean(score.flicker for score in scores):.3f}",
        f"{mean(score.psnr or 0.0 for score in scores):.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
