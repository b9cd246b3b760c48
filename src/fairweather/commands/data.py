"""`fairweather check-data`: what is wrong with a folder of training data."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fairweather.data.audit import Audit, Finding

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
EXAMPLES = 5


def check_data(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    /,
    *,
    against: Annotated[Path | None, tyro.conf.arg(metavar="DIR2")] = None,
    fast: bool = False,
    crop: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    all: bool = False,
    json: File = None,
) -> int:
    """Look for what spoils training: broken files, pairs that do not fit or are shifted, copies, frames, odd kinds.

    The exit code is 1 where there are errors: what training refuses, or what makes a score worthless.

    Args:
        folder: pairs, a folder of sets of pairs, or photos. With train and test in it, these are compared.
        against: test data that should share no picture with DIR.
        fast: names, sizes and kinds alone; no photo is decoded.
        crop: side of the training crops in pixels; smaller photos are named.
        all: name every file, not the first five of each kind.
        json: a file to write all findings to.
    """
    from fairweather.data.audit import audit
    from fairweather.files import atomic, check_place, refuse_inputs
    from fairweather.pairs import pictures

    if json is not None:
        check_place(json, "--json")
        if json.exists():
            photos = [photo for one in (folder, against) if one is not None for photo in pictures(one)]
            refuse_inputs([json], photos, "--json")
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("photos", total=None)
        found = audit(
            folder,
            against=against,
            fast=fast,
            crop=crop,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in report(found, None if all else EXAMPLES):
        print(line)
    if json is not None:
        with atomic(json) as path:
            path.write_text(json_format.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if found.count("error") else 0


def report(found: Audit, examples: int | None) -> list[str]:
    """The lines to print: a block a kind, the worst first, and the count at the end."""
    from fairweather.data.audit import FINDING_KINDS

    lines = [_looked_at(found), ""]
    for name, kind in FINDING_KINDS.items():
        same = [finding for finding in found.findings if finding.kind == name]
        if not same:
            continue
        lines.append(f"{kind.severity}: {kind.title} ({len(same)})")
        lines += [f"    {_line(finding, found.folder, examples)}" for finding in same[:examples]]
        if len(same) > len(same[:examples]):
            lines.append(f"    ... and {len(same) - len(same[:examples])} more (--all, --json)")
        lines += [f"    -> {kind.remedy}", ""]
    counts = ", ".join(_many(found.count(severity), severity) for severity in ("error", "warning", "note"))
    return [*lines, counts]


def _looked_at(found: Audit) -> str:
    pairs = sum(found.sets.values())
    parts = [_many(found.photos, "photo")]
    if found.sets:
        parts.append(f"{_many(pairs, 'pair')} in {_many(len(found.sets), 'set')}")
        parts.append(f"{found.alone} in no pair")
    return f"{found.folder}: {', '.join(parts)}"


def _line(finding: Finding, folder: Path, examples: int | None) -> str:
    names = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in finding.files]
    most = None if examples is None else max(2, examples)
    words = ", ".join(f"{name}" for name in names[:most])
    if len(names) > len(names[:most]):
        words += f" and {len(names) - len(names[:most])} more"
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    return f"{words}: {finding.what}{remedy}" if finding.what else words


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# `fairweather synthesize haze|rain`: weather over clear photos, for training pairs and for looking at.

# Without postponed annotations: the two parsers below are made of types that are imported late.


Inputs = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
]
Out = Annotated[Path, tyro.conf.arg(metavar="OUT", aliases=["-o"])]
Model = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


def synthesize(kind: str, inputs: tuple[Path, ...], out: Path, model: str | None = None, **settings: Any) -> int:
    """Put haze or rain over clear photos. The exit code is the number of photos that failed (100 at most).

    `model` is a model that degrades: learned weather, in place of the computed one that `settings` are for.
    """
    from fairweather.data.synthesize import synthesize as write

    if not inputs:
        print(f"fairweather synthesize {kind}: name the photos or folders (see --help)", file=sys.stderr)
        return 2
    if model is not None:
        settings = {"learned": _degrader(model, kind)}
    done = write(kind, inputs, out, **settings)
    for reason in done.failed.values():  # each names its file
        print(f"not done: {reason}", file=sys.stderr)
    print(f"{len(done.written)} photos with {kind}" + (f": {out}" if done.written else ""))
    return min(len(done.failed), 100)


def _alone(model: str | None, drawn: bool) -> None:
    from fairweather.errors import BadSettings

    if model is not None and drawn:
        raise BadSettings("--model draws nothing: leave out --seed, --depth and the ranges, or leave out --model")


def _degrader(model: str, kind: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    from fairweather.errors import BadSettings
    from fairweather.inference import load
    from fairweather.model_folder import find, read_card

    card = read_card(find(model), verify=False)
    if (card.direction, card.weather) != ("degrade", kind):
        verb = "puts in" if card.direction == "degrade" else "takes out"
        raise BadSettings(
            f"--model {model} {verb} {card.weather}, and {kind} is to be put in: give a model that was exported from a "
            f"run on {kind} with --direction degrade"
        )
    return load(model)


def parse(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """What a command line asks for, ready to be called; SystemExit on a usage error."""
    # The ranges that haze and rain are drawn from are flags too, and live beside the physics, which needs torch.
    from fairweather.weather.haze import HazeSettings
    from fairweather.weather.rain import RainSettings

    usual_haze, usual_rain = HazeSettings(), RainSettings()

    def haze(
        inputs: Inputs,
        /,
        *,
        out: Out,
        model: Model = None,
        seed: int = 0,
        depth: Folder = None,
        haze: HazeSettings = usual_haze,
    ) -> Callable[[], int]:
        """Haze, by the atmospheric scattering model, or as a network has learned it.

        Args:
            inputs: photos or folders (searched through, their structure kept).
            out: a folder, or a picture if there is one photo.
            model: a model that `fairweather export RUN --direction degrade` made; learned weather, which takes no
                other setting.
            seed: what a photo gets depends on this and on its file name alone.
            depth: folder with NAME_disparity.png for photos whose depth is known; others get invented depth.
            haze: the ranges that are drawn from.
        """
        _alone(model, seed != 0 or depth is not None or haze != usual_haze)
        return lambda: synthesize("haze", inputs, out, model, seed=seed, depth=depth, haze=haze)

    def rain(
        inputs: Inputs, /, *, out: Out, model: Model = None, seed: int = 0, rain: RainSettings = usual_rain
    ) -> Callable[[], int]:
        """Rain: streaks, veil and drops, computed, or as a network has learned it.

        Args:
            inputs: photos or folders (searched through, their structure kept).
            out: a folder, or a picture if there is one photo.
            model: a model that `fairweather export RUN --direction degrade` made; learned weather, which takes no
                other setting.
            seed: what a photo gets depends on this and on its file name alone.
            rain: the ranges that are drawn from.
        """
        _alone(model, seed != 0 or rain != usual_rain)
        return lambda: synthesize("rain", inputs, out, model, seed=seed, rain=rain)

    call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
        {"haze": haze, "rain": rain},
        args=arguments,
        prog=prog,
        description="Put haze or rain over clear photos; file names, sizes and kinds are kept.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return call
