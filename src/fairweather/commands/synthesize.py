"""`fairweather synthesize haze|rain`: weather over clear photos, for training pairs and for looking at."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from numpy.typing import NDArray

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
    from fairweather.data.synthesis import synthesize as write

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
