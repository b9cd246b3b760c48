"""How good is it? One table: the models beside the input itself and the dark channel prior, on every test set.

    python benchmarks/quality.py [--data DIR] [--model NAME|PATH ...] [--clear DIR] [--outputs NAME=DIR ...]
                                 [--protocol rgb] [--out DIR]

--data     a set of pairs or a folder of sets
--model    what to score; by default every model that ships
--clear    clear photos, to be left as they are: each is restored and compared with itself
--outputs  another system's finished pictures, one folder a set inside DIR (or DIR itself for a single set), named as
           the degraded photos are
--out      also write <system>.json, with each photo's own numbers

PSNR and SSIM are means over n photos under the protocol named above the table; "worse" counts photos that left further
from the truth than they came; glow is explained in benchmarks/glow.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dark_channel
import numpy as np
from glow import glow

from fairweather.errors import BadFolder, FairweatherError
from fairweather.evaluation import SetScores, against_themselves, find_protocol, from_folder, score_set, write_scores
from fairweather.evaluation.protocols import Protocol
from fairweather.evaluation.sets import Picture, Produce, Restore
from fairweather.images import read, to_float
from fairweather.pairs import Pair, find_sets

PHOTOS = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
HEADINGS = ("data", "n", "system", "PSNR dB", "±", "SSIM", "worse", "glow", "elsewhere")
Sets = Mapping[str, Sequence[Pair]]
System = Callable[[str, Sequence[Pair]], Produce | None]
"""(set's name, its pairs) -> what makes the outputs, or None for a set that this system has nothing for."""


@dataclass(frozen=True)
class Row:
    """One system on one set."""

    system: str
    result: SetScores
    near: float
    elsewhere: float


def run(systems: Mapping[str, System], sets: Sets, protocol: Protocol) -> list[Row]:
    """Every system on every set, in the order in which a reader compares them: set by set."""
    rows = []
    for data, pairs in sets.items():
        for name, system in systems.items():
            produce = system(data, pairs)
            if produce is not None:
                rows.append(_row(name, data, pairs, produce, protocol))
    return rows


def _row(system: str, data: str, pairs: Sequence[Pair], produce: Produce, protocol: Protocol) -> Row:
    glows: list[tuple[float, float]] = []

    def watched(pair: Pair, degraded: Picture) -> Picture:
        output = produce(pair, degraded)
        glows.append(glow(output, protocol.aligned(output, to_float(read(pair.clear).pixels))))
        return output

    result = score_set(data, pairs, watched, protocol)
    near, elsewhere = (_mean([pair[k] for pair in glows]) for k in (0, 1))
    return Row(system, result, near, elsewhere)


def _mean(values: Sequence[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else float("nan")


def by_function(restore: Restore) -> System:
    """A system that is a function of the picture alone."""
    return lambda data, pairs: lambda pair, degraded: restore(degraded)


def by_outputs(folder: Path, sets: Sets) -> System:
    """A system of which only the outputs are at hand. Raises BadFolder when it has nothing for any set."""
    places = {data: folder / data if (folder / data).is_dir() else folder for data in sets}
    if len(sets) > 1:
        places = {data: place for data, place in places.items() if place != folder}
    if not places or not folder.is_dir():
        raise BadFolder(f"{folder} holds no outputs: it needs a folder for each set, named {', '.join(sets)}")
    return lambda data, pairs: from_folder(places[data], pairs) if data in places else None


def markdown(rows: Sequence[Row]) -> str:
    """The table, to be read as it is or pasted into a page."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|--:|---|" + "--:|" * (len(HEADINGS) - 3)]
    for row in rows:
        cells = [row.result.data, str(len(row.result.photos)), row.system]
        if row.result.photos:
            decibel, structure = row.result.scores
            spread = "" if decibel.spread is None else f"{decibel.spread:.2f}"
            cells += [f"{decibel.value:.2f}", spread, f"{structure.value:.3f}", str(decibel.worse)]
        else:
            cells += [""] * 4
        cells += [f"{row.near:.1f}", f"{row.elsewhere:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _models(names: Sequence[str], engine: str) -> dict[str, System]:
    from fairweather.cards import shipped
    from fairweather.restoring import load

    systems: dict[str, System] = {}
    for name in names or shipped():
        restorer = load(name, engine=engine)
        called = restorer.card.name if restorer.card.name not in systems else name  # two runs may share a card's name
        systems[called] = by_function(restorer)
    return systems


def _outputs(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR")
    return name, Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PHOTOS / "test")
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--clear", type=Path, default=PHOTOS / "kodak" if (PHOTOS / "kodak").is_dir() else None)
    parser.add_argument("--outputs", type=_outputs, nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--protocol", default="rgb")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        protocol = find_protocol(options.protocol)
        pairs = find_sets(options.data)
        sets = dict(pairs)
        if options.clear is not None:
            sets[f"{options.clear.resolve().name} (clear)"] = against_themselves(options.clear)
        systems = {"the input": by_function(np.asarray), "dark channel prior": by_function(dark_channel.restore)}
        systems |= {name: by_outputs(folder, pairs) for name, folder in options.outputs}
        systems |= _models(options.model, options.engine)
        rows = run(systems, sets, protocol)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            for name in systems:
                results = [row.result for row in rows if row.system == name]
                write_scores(options.out / f"{name.replace(' ', '-').replace('/', '-')}.json", results, name)
    except FairweatherError as error:
        print(f"quality.py: {error}", file=sys.stderr)
        return 1
    print(f"Protocol {protocol.name}: {protocol.description}.\n({protocol.source})\n\n{markdown(rows)}")
    for row in rows:
        for reason in row.result.failed.values():
            print(f"not scored by {row.system}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
