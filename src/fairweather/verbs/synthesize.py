"""`fairweather synthesize haze|rain`: weather over clear photos, for training pairs and for looking at."""

# Without postponed annotations: the two parsers below are made of types that are imported late.
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

Inputs = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]", help_behavior_hint="(required)")
]
Out = Annotated[Path, tyro.conf.arg(metavar="OUT", aliases=["-o"])]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


def synthesize(kind: str, inputs: tuple[Path, ...], out: Path, **settings: Any) -> int:
    """Put haze or rain over clear photos. The exit code is the number of photos that failed (100 at most)."""
    from fairweather.data.synthesize import synthesize as write

    if not inputs:
        print(f"fairweather synthesize {kind}: name the photos or folders (see --help)", file=sys.stderr)
        return 2
    done = write(kind, inputs, out, **settings)
    for reason in done.failed.values():  # each names its file
        print(f"not done: {reason}", file=sys.stderr)
    print(f"{len(done.written)} photos with {kind}" + (f": {out}" if done.written else ""))
    return min(len(done.failed), 100)


def parse(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """What a command line asks for, ready to be called; SystemExit on a usage error."""
    # The ranges that haze and rain are drawn from are flags too, and live beside the physics, which needs torch.
    from fairweather.weather.haze import HazeSettings
    from fairweather.weather.rain import RainSettings

    usual_haze, usual_rain = HazeSettings(), RainSettings()

    def haze(
        inputs: Inputs, /, *, out: Out, seed: int = 0, depth: Folder = None, haze: HazeSettings = usual_haze
    ) -> Callable[[], int]:
        """Haze, by the atmospheric scattering model.

        Args:
            inputs: photos or folders (searched through, their structure kept).
            out: a folder, or a picture if there is one photo.
            seed: what a photo gets depends on this and on its file name alone.
            depth: folder with NAME_disparity.png for photos whose depth is known; others get invented depth.
            haze: the ranges that are drawn from.
        """
        return lambda: synthesize("haze", inputs, out, seed=seed, depth=depth, haze=haze)

    def rain(inputs: Inputs, /, *, out: Out, seed: int = 0, rain: RainSettings = usual_rain) -> Callable[[], int]:
        """Rain: streaks, veil and drops.

        Args:
            inputs: photos or folders (searched through, their structure kept).
            out: a folder, or a picture if there is one photo.
            seed: what a photo gets depends on this and on its file name alone.
            rain: the ranges that are drawn from.
        """
        return lambda: synthesize("rain", inputs, out, seed=seed, rain=rain)

    call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
        {"haze": haze, "rain": rain},
        args=arguments,
        prog=prog,
        description="Put haze or rain over clear photos; file names, sizes and kinds are kept.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return call
