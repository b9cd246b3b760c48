"""`fairweather synthesize haze|rain`: add weather to clear photos, e.g. to create training pairs."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from numpy.typing import NDArray

# Without postponed annotations: the parsers below use types that are imported in a function.

Inputs = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
]
Out = Annotated[Path, tyro.conf.arg(metavar="OUT", aliases=["-o"])]
Model = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


def synthesize(kind: Literal["haze", "rain"], inputs: tuple[Path, ...], out: Path, **settings: Any) -> int:
    """Add haze or rain to clear photos. The exit code is 3 if some photos failed."""
    from fairweather.data.synthesis import synthesize as write

    if not inputs:
        print(f"fairweather synthesize {kind}: name the photos or folders (see --help)", file=sys.stderr)
        return 2
    result = write(kind, inputs, out, **settings)
    for reason in result.failed.values():  # each names its file
        print(f"failed: {reason}", file=sys.stderr)
    print(f"{len(result.written)} photos with {kind}" + (f": {out}" if result.written else ""))
    return 3 if result.failed else 0


def _load_model(model: str | None, kind: str, conflicting: bool) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """Load a model that adds this weather; BadSettings for another one, or if options for the physics are given."""
    from fairweather.errors import BadSettings
    from fairweather.inference import load
    from fairweather.model_folder import find, read_card

    if model is None:
        return None
    if conflicting:
        raise BadSettings("--model cannot be combined with --seed, --depth or ranges: remove those, or --model")
    card = read_card(find(model), verify=False)
    if (card.direction, card.weather) != ("degrade", kind):
        verb = "adds" if card.direction == "degrade" else "removes"
        raise BadSettings(
            f"--model {model} {verb} {card.weather}: give a model that adds {kind}, exported from a run on {kind} with "
            "--direction degrade"
        )
    return load(model)


def parse(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """Parse a command line into a call; SystemExit on a usage error."""
    # The ranges of haze and rain are flags as well, and are defined next to the physics, which needs torch.
    from fairweather.weather.haze import HazeSettings
    from fairweather.weather.rain import RainSettings

    haze_defaults, rain_defaults = HazeSettings(), RainSettings()

    def haze(
        inputs: Inputs,
        /,
        *,
        out: Out,
        model: Model = None,
        seed: int = 0,
        depth: Folder = None,
        haze: HazeSettings = haze_defaults,
    ) -> Callable[[], int]:
        """Add haze by the atmospheric scattering model, or by a trained network.

        Args:
            inputs: Photos or folders, with their subfolders.
            out: Folder, or a file if there is one photo.
            model: Use a model exported by `fairweather export RUN --direction degrade` instead of the physics; cannot
                be combined with the options below.
            seed: A photo's haze depends only on this and on its file name.
            depth: Folder with NAME_disparity.png for photos of known depth; others get a random plausible depth.
            haze: Ranges to draw from.
        """
        network = _load_model(model, "haze", seed != 0 or depth is not None or haze != haze_defaults)
        return lambda: synthesize("haze", inputs, out, model=network, seed=seed, depth=depth, haze=haze)

    def rain(
        inputs: Inputs, /, *, out: Out, model: Model = None, seed: int = 0, rain: RainSettings = rain_defaults
    ) -> Callable[[], int]:
        """Add rain (streaks, veil and drops on the lens), computed or by a trained network.

        Args:
            inputs: Photos or folders, with their subfolders.
            out: Folder, or a file if there is one photo.
            model: Use a model exported by `fairweather export RUN --direction degrade` instead of the physics; cannot
                be combined with the options below.
            seed: A photo's rain depends only on this and on its file name.
            rain: Ranges to draw from.
        """
        network = _load_model(model, "rain", seed != 0 or rain != rain_defaults)
        return lambda: synthesize("rain", inputs, out, model=network, seed=seed, rain=rain)

    call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
        {"haze": haze, "rain": rain},
        args=arguments,
        prog=prog,
        description="Add haze or rain to clear photos. File names, sizes and formats are preserved.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return call
