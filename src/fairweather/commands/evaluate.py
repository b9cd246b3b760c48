"""`fairweather evaluate`: a model's scores on pairs of photos, or what it changes in photos without clear versions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fairweather.pairs import Pair


def evaluate(
    *,
    model: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")],
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    unpaired: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    protocol: Annotated[str, tyro.conf.arg(metavar="NAME")] = "rgb",
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", aliases=["-o"], help_behavior_hint="")] = None,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
    sheet: Annotated[int | Literal["all"] | None, tyro.conf.arg(metavar="N|all", help_behavior_hint="")] = None,
    photos: bool = False,
    clear_only: bool = False,
    guard: bool = True,
    card: bool = False,
) -> int:
    """Measure a model: PSNR and SSIM on pairs of degraded and clear photos, compared with the degraded photos.

    With --unpaired, measure what the model changes in photos without a clear version: local contrast, saturated pixels,
    colour cast, noise and estimated haze, with sheets for comparison by eye.

    Args:
        model: Name of a shipped model, or path of a model folder or run folder.
        data: A set (a folder with e.g. hazy/ and clear/) or a folder of sets.
        unpaired: Folder of degraded photos without clear versions, instead of --data.
        protocol: How photos are compared: rgb, sots-indoor, rain-y or gunet.
        out: Write scores.json, photos.csv and a contact sheet for each set to this folder; with --unpaired, changes.csv
            and sheets of all photos.
        engine: What runs the network.
        precision: As in `restore`; int8 measures the network from `fairweather quantize`.
        sheet: Number of photos of each set, worst first, for which a page is written to OUT/SET/: degraded, restored,
            clear, and a map of the error. With --unpaired, number of photos on the sheets.
        photos: Print the scores of every photo, not only of the worst.
        clear_only: DIR has clear photos only: measure how little the model changes them.
        guard: Apply the guards against colour casts, noise and clipping before measuring.
        card: Write the scores to the model's card, replacing those of the same protocol and data.
    """
    from fairweather.errors import BadSettings
    from fairweather.evaluation import clear_pairs, find_protocol, photo_table, score_table
    from fairweather.evaluation import evaluate_model as measure
    from fairweather.inference import load
    from fairweather.model_folder import find, read_card
    from fairweather.pairs import find_sets

    compared_by = find_protocol(protocol)  # before the model is loaded
    if (data is None) == (unpaired is None):
        raise BadSettings("give one of --data (pairs of photos) and --unpaired (photos without clear versions)")
    if data is None and (clear_only or card or protocol != "rgb"):
        raise BadSettings("--clear-only, --card and --protocol need scores, and --unpaired photos have none: omit them")
    if card and precision == "int8":
        raise BadSettings(
            "--card writes the scores of the float network, which --precision int8 does not measure: omit one of them"
        )
    sets: dict[str, list[Pair]] = {}
    if data is not None:
        sets = {data.resolve().name: clear_pairs(data)} if clear_only else find_sets(data)
    if read_card(find(model), verify=False).direction == "degrade":
        raise BadSettings(f"--model {model} degrades photos and cannot be scored: give a model that restores them")
    restorer = load(model, engine=engine, precision=precision)
    restore = restorer if guard else functools.partial(restorer, guard=False)
    title = f"{restorer.card.name} ({restorer.card.generator})"
    if unpaired is not None:
        return _changes(restore, unpaired, out, sheet="all" if sheet is None else sheet, photos=photos, title=title)
    with _progress(sum(map(len, sets.values()))) as progress:
        results = measure(restore, sets, compared_by, out, system=restorer.card.name, sheet=sheet, progress=progress)
    Console().print(score_table(results, title=title))
    scored = [result for result in results if result.photos]
    if scored:
        Console().print(photo_table(scored, None) if photos else photo_table(scored))
    failed = [reason for result in results for reason in result.failed.values()]
    for reason in failed:
        print(f"not scored: {reason}")
    if card and not failed:
        write_scores(find(model), [score.as_dict() for result in results for score in result.scores])
        print(f"the scores are on the card of {model}")
    if out is not None:
        pages = "" if sheet is None else ", with the pages in its subfolders"
        print(f"scores.json, photos.csv and the contact sheets are in {out}{pages}")
    return 3 if failed else 0


def _changes(
    restore: Callable[[Any], Any], folder: Path, out: Path | None, *, sheet: Any, photos: bool, title: str
) -> int:
    from fairweather.evaluation import evaluate_unpaired, no_reference
    from fairweather.pairs import pictures

    with _progress(len(pictures(folder))) as progress:
        result = evaluate_unpaired(restore, folder, out, sheet=sheet, progress=progress)
    if result.photos:
        Console().print(no_reference.changes_table(result, title=title))
        if photos:
            Console().print(no_reference.changes_by_photo(result))
    for reason in result.failed.values():
        print(f"not measured: {reason}")
    if out is not None:
        print(f"{no_reference.CHANGES_CSV} and the sheets are in {out}")
    return 3 if result.failed else 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, object], None]]:
    """Show a progress bar on stderr and yield its callback."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("photos", total=total)
        yield lambda name, _: bars.update(task, advance=1, description=name)


def write_scores(folder: Path, scores: list[dict[str, Any]]) -> None:
    """Add scores to the card in `folder`; they replace those of the same protocol and data."""
    from fairweather.model_folder import read_card, write_card

    old = read_card(folder)
    new = {(score["protocol"], score["data"]) for score in scores}
    others = [score for score in old.scores if (score["protocol"], score["data"]) not in new]
    # Unprocessed clear photos have an infinite PSNR, which a card cannot store.
    finite = [{key: value for key, value in score.items() if (key, value) != ("input", "inf")} for score in scores]
    write_card(folder, dataclasses.replace(old, scores=others + finite))
