"""How good is it? The models beside the input itself, the dark channel prior and other people's systems, on every set.

    python benchmarks/quality.py [--data DIR] [--clear DIR] [--real DIR] [--model NAME|PATH ...]
                                 [--outputs NAME=DIR ...] [--protocol NAME ...] [--engine NAME] [--out DIR]
                                 [--bars] [--update]

--data     a set of pairs or a folder of sets; each system meets the sets that have its weather
--clear    clear photos, to be left as they are: they and the clear side of every set are restored by every system,
           whatever its weather, and compared with themselves
--real     a folder with folders of real photos without a truth (hazy_..., rainy_...): what changes in them
--model    what to score; by default every model that ships, and `auto`, which first looks which weather there is
--outputs  another system's finished pictures, one folder a set inside DIR (or DIR itself for a single set), named as
           the degraded photos are
--protocol how pictures are compared; by default rgb, and for rain rain-y as well
--out      also write <system>.json, clear.json and real.json with each photo's own numbers
--bars     say of each aim (benchmarks/bars.py) whether it is reached
--update   write the tables into README.md and docs/models.md, and the scores onto the cards of what ships

PSNR and SSIM are means over n photos, ± is the standard deviation over them; "worse" counts photos that left further
from the truth than they came; glow is explained in benchmarks/glow.py. Lines with † are not run by this command: they
are other people's systems, measured before on the same photos (benchmarks/peers.toml).
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
from measuring import Measured, Sets, System, by_function, by_outputs, clear_photos, on_clear, on_pairs, on_real

from fairweather.errors import BadSettings, FairweatherError
from fairweather.evaluation import PROTOCOLS, find_protocol
from fairweather.inference import load, weather_detection
from fairweather.model_folder import WEIGHTS, shipped
from fairweather.pairs import find_sets

PHOTOS = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def models(names: Sequence[str], engine: str) -> dict[str, System]:
    """What is named, or all that ships and `auto`."""
    systems: dict[str, System] = {}
    looks = (weather_detection.DETECTOR_FOLDER / weather_detection.DETECTOR_CARD).is_file()
    for name in names or [*shipped(), *(["auto"] if looks else [])]:
        if name == "auto":
            systems[name] = by_function(load(name, engine=engine))
            continue
        restorer = load(name, engine=engine)
        called = restorer.card.name if restorer.card.name not in systems else name  # two runs may share a card's name
        systems[called] = by_function(restorer, restorer.card.weather)
    return systems


def measure(systems: dict[str, System], sets: Sets, options: argparse.Namespace) -> Measured:
    """All three kinds of photos. Raises FairweatherError."""
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
    """All tables, as they can be pasted into a page."""
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
    """What may be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PHOTOS / "test")
    parser.add_argument("--clear", type=Path, default=_there(PHOTOS / "kodak"))
    parser.add_argument("--real", type=Path, default=_there(PHOTOS / "real"))
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME|PATH")
    parser.add_argument("--outputs", type=_outputs, nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--protocol", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bars", action="store_true")
    parser.add_argument("--update", action="store_true")
    return parser


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Raises UnknownName for a protocol that there is not, BadSettings where --update would publish something else
    than the whole table, each before anything is measured."""
    for name in options.protocol:
        find_protocol(name)
    if options.update:
        for name in ("model", "outputs", "protocol"):
            if getattr(options, name):
                raise BadSettings(f"--update publishes what ships, by the protocols of its weather: leave out --{name}")
        if options.clear is None:
            raise BadSettings("--update publishes clear photos as well: name a folder of them (--clear)")
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
