"""Does a network with a memory beat smoothing? Steadiness and PSNR of films, restored in six ways.

    python benchmarks/sequence.py --model MODEL [--against dehaze-fast] [--photos DIR] [--film FILE] [--frames N]
                                  [--jobs N]

Each clear photo of DIR (by default the eight of ../shared/data/kodak, which no model of ours was trained on) becomes a
hazy clip of N frames with a known truth: a camera goes over it, haze drifts (fairweather.data.video_clips, seed 1000 + its
number). The film has none. The ways:

each frame alone      the network that MODEL grew from, without anything over time
smoothed              its maps smoothed over half a second along the motion, as films are without a memory
smoothed for 0.1 s    the same, as shortly as behind a memory: what that does alone
smoothed for 2 s      the same, four times as slowly: what is to be had by more of it
memory                MODEL's own memory, carried along the motion
memory, smoothed      both, for 0.1 s, as films are with a memory

Lower is steadier: `unrest` is the warping error, normalised by contrast, of the input's own (fairweather.evaluation
.temporal); flicker in levels of 255. MODEL ships if `memory` or `memory, smoothed` is steadier than `smoothed` by both
and its PSNR is no lower, on the mean of the clips.
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

from video import FILM, of_file, scored, synthetic

from fairweather.evaluation.temporal_consistency import TemporalScore
from fairweather.inference import load
from fairweather.inference.temporal import RECURRENT_SMOOTHING_SECONDS, SMOOTHING_SECONDS, VideoRestorer

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "kodak"
SMOOTHED, OURS = "smoothed", ("memory", "memory, smoothed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and whether the model ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="NAME|PATH")
    parser.add_argument("--against", default="dehaze-fast", metavar="NAME|PATH")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
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
    """Way -> its score on the clip of one photo, by one core."""
    return scored(synthetic(path, frames, seed), ways(load(model, threads=1), load(against, threads=1)))


def of_film(film: Path, frames: int, model: str, against: str) -> dict[str, TemporalScore]:
    """The same on a film's first frames; nothing where it is not there."""
    if not film.is_file():
        return {}
    return scored(of_file(film, frames), ways(load(model, threads=1), load(against, threads=1)))


def ways(model: Any, against: Any) -> dict[str, VideoRestorer]:
    """Name -> a film restored that way."""
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
    """Means over the clips, then the film, and which of our ways is better than smoothing."""
    lines = [
        f"| | unrest, {len(clips)} clips | flicker | PSNR dB | steadier than smoothed in | unrest, film "
        "| flicker, film |",
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
    told = []
    for name in OURS:
        said = "ships" if beats(found[name], found[SMOOTHED]) else "does not ship"
        told.append(f"{name}: {said}")
    return "\n".join([*lines, "", "; ".join(told)])


def beats(ours: Sequence[TemporalScore], base: Sequence[TemporalScore]) -> bool:
    """Steadier by warping error and by flicker, at no lower PSNR, on the mean."""
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
