"""`fairweather train RECIPE`: the options of `fairweather.train`, and the recipe's and the generator's own as flags.

Which of those there are depends on the recipe and generator that are named, so this verb looks at them before the
rest is parsed (see `parse`).
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fairweather.errors import UnknownName

Word = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="TOML", help_behavior_hint="")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]
Positional = Annotated[
    str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help_behavior_hint=""), tyro.conf.AvoidSubcommands
]


@dataclass(frozen=True)
class Options:
    """Train a recipe on your photos; the run folder that it leaves holds the model.

    What is not given comes from the --config file, then from defaults. With a recipe named, --help lists its own
    settings (--recipe.*) and its generator's (--generator.*) too.
    """

    recipe: Positional = None
    """cyclegan, claritygan, derain (unpaired photos), pix2pix, hazeheal, supervised (pairs), supervised_video (a config's sources,
    filmed); or as --config says."""
    data: Folder = None
    """Folder of pairs (it holds, say, hazy/ and GT/), or where the paths of the config's sources begin."""
    degraded: Folder = None
    """Folder of degraded photos; with --clear, for unpaired training."""
    clear: Folder = None
    """Folder of clear photos that need not show the same places."""
    generator: Word = None
    """The network: resnet6, resnet9, unet or swift; the recipe's own choice by default."""
    config: File = None
    """A settings file with tables [run], [data], [recipe], [generator]; flags win over it."""
    out: Annotated[Path, tyro.conf.arg(metavar="RUN", aliases=["-o"])] = Path("run")
    """The run folder: run.json, stats.jsonl, samples/, state/ and, at the end, model/."""
    start: Annotated[str | None, tyro.conf.arg(metavar="RUN|MODEL", help_behavior_hint="")] = None
    """Begin with the weights of this run or model, a second phase or fine-tuning; the generator is taken from there."""
    resume: bool = False
    """Go on with the run in RUN; only the cadence of checkpoints and logs may differ from the first call."""
    steps: Count = None
    """Length in steps. One of steps, epochs, minutes; the recipe's own number of epochs by default."""
    epochs: Count = None
    """Length in passes over the data."""
    minutes: Number = None
    """Length by the clock; such a run cannot be repeated bit by bit."""
    batch: Count = None
    """Photos (or pairs) a step, in each process."""
    crop: Count = None
    """Side of the training crops in pixels."""
    hold_back: Number = None
    """Share of the scenes kept out of training, to measure by."""
    depths: Folder = None
    """Folder of estimated depth maps that the synthetic haze of a config's sources follows."""
    seed: Count = None
    """Decides weights, order and every random draw; 0 by default."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """bf16 and fp16 are mixed precision; auto is bf16 where the device has it in hardware, else fp32."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """auto is the best there is."""
    devices: Count = None
    """Processes that train together, each on a GPU or a share of the CPU; 1 by default. Leave it out under torchrun."""
    strategy: Word = None
    """How several processes share the work: ddp, which auto is too."""
    compile: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Compile the network for the size of the batches: a slow first step, faster ones after it. True or False."""
    on_device: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Keep a mixture's photos in the device's memory and make batches there; by default on CUDA. True or False."""
    threads: Count = None
    """CPU threads of the networks, in each process."""
    workers: Count = None
    """Processes that prepare data, beside each that trains."""
    checkpoint_steps: Count = None
    """Steps between checkpoints."""
    checkpoint_minutes: Number = None
    """Minutes between checkpoints; 5 by default."""
    sample_steps: Count = None
    """Steps between sample sheets (input | output | target); 0 draws none."""
    sample_epochs: Count = None
    """Epochs between sample sheets; 0 draws none by epochs."""
    validate_steps: Count = None
    """Steps between measurements on the held-back scenes; 0 measures at the end alone."""
    log_steps: Count = None
    """Steps between lines in the log where there is no terminal for a progress bar."""
    parity: Annotated[Literal["all", "installed"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Engines that must agree before the model is kept; installed is for machines that cannot have all."""
    tensorboard: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write TensorBoard's files where the package is installed; True by default."""


def train(options: Options, settings: dict[str, Any], generator_arguments: dict[str, Any]) -> int:
    """Train a recipe; `settings` and `generator_arguments` hold what was said about the recipe and the generator."""
    import fairweather

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}
    fairweather.train(**given, settings=settings or None, generator_arguments=generator_arguments or None)
    from fairweather.training.distributed import is_main

    if is_main():
        print(f"the model is in {options.out / 'model'}: fairweather restore PHOTO --model {options.out}")
    return 0


def parse(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """What a command line asks for, ready to be called. Raises UnknownName; SystemExit on a usage error."""
    said = tyro.cli(_kind(arguments), args=arguments, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    options = Options(**{field.name: getattr(said, field.name) for field in dataclasses.fields(Options)})
    settings = _own(getattr(said, "recipe_settings", None), "recipe", arguments)
    generator_arguments = _own(getattr(said, "generator_arguments", None), "generator", arguments)
    return lambda: train(options, settings, generator_arguments)


def _kind(arguments: Sequence[str]) -> type[Options]:
    """Options, and where a recipe is named a group of flags for its settings and one for its generator's arguments."""
    from fairweather.training.config import read_toml

    config = _value(arguments, "--config")
    tables = read_toml(config) if config is not None else {}
    named = tables.get("recipe", {}).get("name")
    if named is None and all(argument.startswith("-") for argument in arguments):
        return Options  # `fairweather train --help` should not wait for torch
    from fairweather.generators import GENERATORS
    from fairweather.recipes import RECIPES

    first = arguments[:1] if not arguments[0].startswith("-") else [word for word in arguments if word in RECIPES]
    named = next(iter(first), named)
    if named is None:
        return Options
    if named not in RECIPES:
        raise UnknownName("recipe", str(named), RECIPES)
    recipe = RECIPES[named]
    generator = _value(arguments, "--generator") or tables.get("generator", {}).get("name") or recipe.generator
    if generator not in GENERATORS:
        raise UnknownName("generator", str(generator), GENERATORS)
    own = recipe.arguments if generator == recipe.generator else {}
    groups = {
        "recipe_settings": ("recipe", recipe.settings_type),
        "generator_arguments": ("generator", _as_dataclass(generator, GENERATORS[generator], own)),
    }
    fields = [
        (field, Annotated[kind, tyro.conf.arg(name=name)], dataclasses.field(default_factory=kind))
        for field, (name, kind) in groups.items()
    ]
    return dataclasses.make_dataclass(
        "Options", fields, bases=(Options,), frozen=True, namespace={"__doc__": Options.__doc__}
    )


def _as_dataclass(name: str, generator: Callable[..., Any], own: Mapping[str, Any]) -> type[Any]:
    """The keyword arguments of a generator as a dataclass, which tyro turns into flags; `own` defaults go first."""
    constructor = generator.__init__ if inspect.isclass(generator) else generator
    hints = typing.get_type_hints(constructor)
    fields = [
        (parameter.name, hints[parameter.name], dataclasses.field(default=own.get(parameter.name, parameter.default)))
        for parameter in inspect.signature(generator).parameters.values()
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__doc__": f"Arguments of {name}."})


def _own(values: Any, group: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields of a group that stand on the command line. The others are defaults, which must not win over a file."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    names = [field.name for field in dataclasses.fields(values)] if values is not None else []
    dashed = {name: name.replace("_", "-") for name in names}
    return {
        name: getattr(values, name)
        for name in names
        if {f"--{group}.{dashed[name]}", f"--{group}.no-{dashed[name]}"} & flags
    }


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value behind `--flag value` or `--flag=value`, before the line is parsed as a whole."""
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None
