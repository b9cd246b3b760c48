"""`fairweather train RECIPE`: flags for every field of RunConfig and DataConfig, of the recipe's settings and of the
generator's arguments. The last two depend on the names given, so the command line is scanned for those first.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from fairweather.errors import UnknownName
from fairweather.model_folder import GENERATOR_NAMES

METAVARS: dict[Any, str] = {
    **{"folder": "DIR", "degraded": "DIR", "clear": "DIR", "depths": "DIR", "start": "RUN|MODEL"},
    **{int: "N", float: "X", str: "TEXT", bool: "True|False"},
}
"""Field or type -> its placeholder in the help."""


def train(**options: Any) -> int:
    """Train a recipe.

    Args:
        **options: as for `fairweather.train`.
    """
    import fairweather

    run = fairweather.train(**options)
    from fairweather.training.distributed import is_main

    if is_main():
        print(f"the model is in {run.model}: fairweather restore PHOTO --model {run.folder}")
    return 0


@dataclass(frozen=True)
class Flags:
    """Train a recipe on photos. The run folder holds the model, logs, sample sheets and checkpoints.

    Settings that are not given come from the --config file, then from defaults. With a recipe named, --help also lists
    its own settings (--recipe.*) and its generator's arguments (--generator.*).
    """

    recipe: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RECIPE", help_behavior_hint="(default: the config file's)"),
    ] = None
    """cyclegan, claritygan, derain (unpaired photos), pix2pix, hazeheal, supervised (pairs) or supervised_video (clips
    made from the config's sources)."""
    generator: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help=f"The network: {', '.join(GENERATOR_NAMES)}.",
            help_behavior_hint="(default: the recipe's)",
        ),
    ] = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="TOML", help_behavior_hint="")] = None
    """Settings file with tables [run], [data], [recipe], [generator]; flags override it."""
    out: Annotated[Path, tyro.conf.arg(metavar="RUN", aliases=["-o"])] = Path("run")
    """The run folder: run.json, stats.jsonl, samples/, checkpoints/ and, at the end, model/."""
    resume: bool = False
    """Continue the run in RUN from its last checkpoint; only intervals of checkpoints, samples and logs may change."""


def parse(arguments: Sequence[str], prog: str) -> Callable[[], int]:
    """Parse a command line.

    Returns:
        `train` with the options given; defaults must not override a config file.

    Raises:
        UnknownName: no such recipe or generator.
        SystemExit: a usage error, or --help.
    """
    values: Any = tyro.cli(_flags(arguments), args=arguments, prog=prog)
    names = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("-")}

    def given(group: Any, prefix: str = "") -> dict[str, Any]:
        """The fields of a group whose flags are on the command line."""
        found = {}
        for field in dataclasses.fields(group) if group is not None else ():
            name = {"folder": "data"}.get(field.name, field.name)
            flag = prefix + name.replace("_", "-")
            if {f"--{flag}", f"--{prefix}no-{flag.removeprefix(prefix)}"} & names:
                found[name] = getattr(group, field.name)
        return found

    options = {
        **given(values.run),
        **given(values.data),
        "recipe": values.recipe,
        "generator": values.generator,
        "config": values.config,
        "out": values.out,
        "resume": values.resume,
        "settings": given(getattr(values, "settings", None), "recipe."),
        "generator_arguments": given(getattr(values, "generator_arguments", None), "generator."),
    }
    return partial(train, **{name: value for name, value in options.items() if value not in (None, {})})


def _flags(arguments: Sequence[str]) -> type[Flags]:
    """`Flags` with groups for the settings; torch is imported only if a recipe is named."""
    from fairweather.training.config import RECIPE_NAMES, DataConfig, RunConfig, read_toml

    groups = {"run": ("", _documented(RunConfig)), "data": ("", _documented(DataConfig))}
    config = _value(arguments, "--config")
    tables = read_toml(config) if config is not None else {}
    recipe = tables.get("recipe", {}).get("name")
    if arguments and not arguments[0].startswith("-"):
        recipe = arguments[0]
    else:
        recipe = next((word for word in arguments if word in RECIPE_NAMES), recipe)
    if recipe is not None:
        if recipe not in RECIPE_NAMES:
            raise UnknownName("recipe", str(recipe), RECIPE_NAMES)
        from fairweather.recipes import RECIPES

        kind = RECIPES[recipe]
        generator = _value(arguments, "--generator") or tables.get("generator", {}).get("name") or kind.generator
        defaults = kind.arguments if generator == kind.generator else {}
        groups["settings"] = ("recipe", _documented(kind.settings_type))
        groups["generator_arguments"] = ("generator", _arguments(generator, defaults))
    fields = [
        (field, Annotated[kind, tyro.conf.arg(name=name)], dataclasses.field(default_factory=kind))
        for field, (name, kind) in groups.items()
    ]
    return dataclasses.make_dataclass(
        "Flags", fields, bases=(Flags,), frozen=True, namespace={"__doc__": Flags.__doc__}
    )


def _documented(config: type[Any]) -> type[Any]:
    """A dataclass of settings whose fields have placeholders for the help; tyro finds their docstrings in the base."""
    hints = typing.get_type_hints(config)
    fields: list[Any] = []
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING:  # tables, for config files only
            fields.append((field.name, Annotated[Any, tyro.conf.Suppress], field))
            continue
        kinds = [kind for kind in typing.get_args(hints[field.name]) or [hints[field.name]] if kind is not type(None)]
        metavar = METAVARS.get(field.name) or METAVARS.get(kinds[0])
        options: dict[str, Any] = {"metavar": metavar} if metavar and hints[field.name] is not bool else {}
        options |= {"name": "data"} if field.name == "folder" else {}
        options |= {"help_behavior_hint": ""} if field.default in (None, "") else {}
        annotated: Any = Annotated[hints[field.name], tyro.conf.arg(**options)]
        fields.append((field.name, annotated, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(
        config.__name__, fields, bases=(config,), frozen=True, namespace={"__doc__": config.__doc__}
    )


def _arguments(generator: Any, defaults: Mapping[str, Any]) -> type[Any]:
    """The arguments of a generator as a dataclass; `defaults` override the generator's own."""
    from fairweather.generators import GENERATORS

    if generator not in GENERATOR_NAMES:
        raise UnknownName("generator", str(generator), GENERATOR_NAMES)
    kind: Any = GENERATORS[generator]
    hints = typing.get_type_hints(kind.__init__)
    fields = [
        (one.name, hints[one.name], dataclasses.field(default=defaults.get(one.name, one.default)))
        for one in inspect.signature(kind).parameters.values()
    ]
    return dataclasses.make_dataclass(
        generator, fields, frozen=True, namespace={"__doc__": f"Arguments of {generator}."}
    )


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of `--flag value` or `--flag=value`, before the command line is parsed as a whole."""
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None
