"""Image quality of the models, the input, the dark channel prior and published systems on every test set.

    python benchmarks/quality.py [--data DIR] [--clear DIR] [--real DIR] [--model NAME|PATH ...]
                                 [--outputs NAME=DIR ...] [--protocol NAME ...] [--engine NAME] [--out DIR]
                                 [--bars] [--update]

--data     a set of pairs or a folder of sets; each system is run on the sets with its weather
--clear    clear photos: they, and the clear side of every set, are restored by every system and compared with
           themselves
--real     a folder with folders of real photos without ground truth (hazy_..., rainy_...)
--model    models to score; by default all shipped models, and `auto`, which detects the weather
--outputs  another system's output pictures, one folder per set inside DIR (or DIR itself for a single set), with the
           names of the degraded photos
--protocol how pictures are compared; by default rgb, and for rain also rain-y
--out      write <system>.json, clear.json and real.json with the values of each photo
--bars     report which targets (benchmarks/bars.py) are reached
--update   write the tables into README.md and docs/models.md, and the scores onto the cards of the shipped models

PSNR and SSIM are means over n photos, ± is the standard deviation; "worse" counts photos with a lower PSNR than their
input; glow is defined in benchmarks/glow.py. Lines with † are published systems, measured before on the same photos
(benchmarks/peers.toml); this command does not run them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import bars
import dark_channel
import numpy as np
import publish
import tables
from measuring import DATA
from scoring import Measured, Sets, System, by_function, by_outputs, clear_photos, on_clear, on_pairs, on_real

from fairweather.errors import BadSettings, FairweatherError
from fairweather.evaluation import PROTOCOLS, find_protocol
from fairweather.inference import load, weather_detection
from fairweather.model_folder import WEIGHTS, shipped
from fairweather.pairs import find_sets


def models(names: Sequence[str], engine: str) -> dict[str, System]:
    """The named models, or all shipped models and `auto`."""
    systems: dict[str, System] = {}
    looks = (weather_detection.DETECTOR_FOLDER / weather_detection.DETECTOR_CARD).is_file()
    for name in names or [*shipped(), *(["auto"] if looks else [])]:
        if name == "auto":
            systems[name] = by_function(load(name, engine=engine))
            continue
        restorer = load(name, engine=engine)
        called = restorer.card.name if restorer.card.name not in systems else name  # runs may share a card name
        systems[called] = by_function(restorer, restorer.card.weather)
    return systems


def measure(systems: dict[str, System], sets: Sets, options: argparse.Namespace) -> Measured:
    """Measure pairs, clear photos and real photos. Raises FairweatherError."""
    rules = [find_protocol(name) for name in options.protocol]
    sets = {name: sets[name] for name in tables.in_order(sets)}
    rows = on_pairs(systems, sets, rules, _tell)
    runs = {name: system for name, system in systems.items() if name != "the input"}
    kept = [] if options.clear is None else on_clear(runs, clear_photos(sets, options.clear), _tell)
    natural = [] if options.real is None else on_real(runs, options.real, _tell)
    failed = [f"{row.system}: {reason}" for row in rows for reason in row.result.failed.values()]
    return Measured(rows, kept, natural, failed)


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def report(measured: Measured, peers: Sequence[tables.Published]) -> str:
    """All tables as markdown."""
    rules = [PROTOCOLS[name] for name in dict.fromkeys(row.result.protocol.name for row in measured.rows)]
    parts = [f"Protocol {rule.name}: {rule.description}.\n({rule.source})" for rule in rules]
    parts.append(tables.long(measured.rows, peers))
    if tables.comparable(measured.rows, peers):
        parts.append(f"{tables.MARK} not run by this command, see benchmarks/peers.toml")
    if measured.kept:
        parts += [tables.clear(measured.kept), tables.clear_overall(measured)]
    if measured.natural:
        parts.append(tables.real(measured))
    parts += [f"not scored by {words}" for words in measured.failed]
    return "\n\n".join(parts)


def _outputs(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR")
    return name, Path(folder)


def _there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "test")
    parser.add_argument("--clear", type=Path, default=_there(DATA / "kodak"))
    parser.add_argument("--real", type=Path, default=_there(DATA / "real"))
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--outputs", type=_outputs, nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--protocol", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bars", action="store_true")
    parser.add_argument("--update", action="store_true")
    return parser


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Check the options before anything is measured.

    Raises UnknownName for an unknown protocol, BadSettings if --update would publish part of the table.
    """
    for name in options.protocol:
        find_protocol(name)
    if options.update:
        for name in ("model", "outputs", "protocol"):
            if getattr(options, name):
                raise BadSettings(f"--update publishes all shipped models with their protocols: leave out --{name}")
        if options.clear is None:
            raise BadSettings("--update publishes clear photos too: name a folder of them with --clear")
        publish.check_places()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        checked(options)
        sets, peers = find_sets(options.data), tables.read_peers()
        if options.update and (lacking := sorted(set(tables.NAMES) - set(sets))):
            raise BadSettings(f"--update publishes all test sets, and {options.data} lacks {', '.join(lacking)}")
        systems = {
            "the input": by_function(np.asarray),
            "dark channel prior": by_function(dark_channel.restore, "haze"),
            **{name: by_outputs(folder, sets) for name, folder in options.outputs},
            **models(options.model, options.engine),
        }
        measured = measure(systems, sets, options)
        if options.out is not None:
            measured.write(options.out)
        print(report(measured, peers))
        if options.bars:
            weights = {name: (folder / WEIGHTS).stat().st_size for name, folder in shipped().items()}
            print("\n" + bars.markdown(bars.check(measured, weights, peers)))
        if options.update:
            if measured.failed:
                raise BadSettings(f"--update: {len(measured.failed)} photos could not be scored; nothing was written")
            _tell("\n".join(f"wrote {path}" for path in publish.update(measured, peers)))
    except FairweatherError as error:
        print(f"quality.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
