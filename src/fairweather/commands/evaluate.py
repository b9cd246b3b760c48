"""`fairweather evaluate`: a model's scores on pairs of photos, or what it changes in photos without a truth."""

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
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", aliases=["-o"])] = None,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
    sheet: Annotated[int | Literal["all"] | None, tyro.conf.arg(metavar="N|all", help_behavior_hint="")] = None,
    photos: bool = False,
    themselves: bool = False,
    guard: bool = True,
    card: bool = False,
) -> int:
    """Measure a model on pairs of degraded and clear photos: PSNR and SSIM, beside those of the untouched photos.

    Photos without a clear partner are given as --unpaired: the answer is what the model changed in them, in local
    contrast, saturated pixels, colour cast, noise and an estimate of the haze, and sheets to look at.

    Args:
        model: a shipped model's name, or the path of a model folder or run folder.
        data: a set (a folder that holds, say, hazy/ and clear/) or a folder of sets.
        unpaired: a folder of degraded photos without a truth, instead of --data.
        protocol: how pictures are compared: rgb, sots-indoor, rain-y or gunet.
        out: where to write scores.json, photos.csv and a contact sheet for each set (of unpaired photos changes.csv
            and sheets of all); nowhere by default.
        engine: what runs the network.
        precision: as `restore` takes it: int8 measures the network that `fairweather quantize` made.
        sheet: how many photos of each set, worst first, get a page of their own in OUT/SET/: degraded, restored,
            clear, and a map of the error. Of unpaired photos: how many the sheets show.
        photos: print every photo's scores, not those of the worst alone.
        themselves: the data are clear photos alone; measure how far the model leaves them as they are.
        guard: without (--no-guard) the model's own answer is measured, unguarded.
        card: write the scores onto the model's card, in place of earlier ones of the same protocol and data.
    """
    from fairweather.errors import BadSettings
    from fairweather.evaluation import clear_pairs, find_protocol, photo_table, score_table
    from fairweather.evaluation import evaluate_model as measure
    from fairweather.inference import load
    from fairweather.model_folder import find, read_card
    from fairweather.pairs import find_sets

    rule = find_protocol(protocol)  # before the model is loaded: a misspelt word should not cost that
    if (data is None) == (unpaired is None):
        raise BadSettings("give --data (pairs of photos) or --unpaired (photos without a truth), one of the two")
    if data is None and (themselves or card or protocol != "rgb"):
        raise BadSettings("--themselves, --card and --protocol are about scores, and photos without a truth have none")
    if card and precision == "int8":
        raise BadSettings(
            "--card writes the float network's scores, and --precision int8 measures the other: leave one"
        )
    sets: dict[str, list[Pair]] = {}
    if data is not None:
        sets = {data.resolve().name: clear_pairs(data)} if themselves else find_sets(data)
    if read_card(find(model), verify=False).direction == "degrade":
        raise BadSettings(f"--model {model} degrades photos, and scores are of what restores; give a model that does")
    restorer = load(model, engine=engine, precision=precision)
    restore = restorer if guard else functools.partial(restorer, guard=False)
    title = f"{restorer.card.name} ({restorer.card.generator})"
    if unpaired is not None:
        return _changes(restore, unpaired, out, sheet="all" if sheet is None else sheet, photos=photos, title=title)
    with _progress(sum(map(len, sets.values()))) as progress:
        results = measure(restore, sets, rule, out, system=restorer.card.name, sheet=sheet, progress=progress)
    Console().print(score_table(results, title=title))
    scored = [result for result in results if result.photos]
    if scored:
        Console().print(photo_table(scored, None) if photos else photo_table(scored))
    failed = [reason for result in results for reason in result.failed.values()]
    for reason in failed:
        print(f"not scored: {reason}")
    if card and not failed:
        write_scores(find(model), [score.as_dict() for result in results for score in result.scores])
        print(f"the scores stand on the card of {model}")
    if out is not None:
        pages = "" if sheet is None else ", and the pages below it"
        print(f"scores.json, photos.csv and the contact sheets are in {out}{pages}")
    return 1 if failed else 0


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
            Console().print(no_reference.all_photos(result))
    for reason in result.failed.values():
        print(f"not measured: {reason}")
    if out is not None:
        print(f"{no_reference.CHANGES_CSV} and the sheets are in {out}")
    return 1 if result.failed else 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, object], None]]:
    """A bar on stderr, and what advances it by a photo of a set."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("photos", total=total)
        yield lambda name, _: bars.update(task, advance=1, description=name)


def write_scores(folder: Path, scores: list[dict[str, Any]]) -> None:
    """The card in `folder` with these scores; those of other protocols or data that it had are kept."""
    from fairweather.model_folder import read_card, write_card

    old = read_card(folder)
    new = {(score["protocol"], score["data"]) for score in scores}
    kept = [score for score in old.scores if (score["protocol"], score["data"]) not in new]
    # A clear photo is infinitely near to itself: "inf" is a word, and says nothing on a card.
    numbers = [{key: value for key, value in score.items() if (key, value) != ("input", "inf")} for score in scores]
    write_card(folder, dataclasses.replace(old, scores=kept + numbers))
