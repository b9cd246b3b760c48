"""Training: `train` runs a recipe to its end and returns the run, whose folder contains the model.

Imports no torch, so that `fairweather.train` can be inspected and `--help` is quick.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairweather.errors import MissingExtra
from fairweather.training.config import OPTIONS, read_record
from fairweather.training.run_log import read_stats
from fairweather.validation import check_keys

if TYPE_CHECKING:
    from fairweather.data.datasets import Dataset
    from fairweather.inference import Restorer

__all__ = ["Run", "train"]

log = logging.getLogger("fairweather")


@dataclass(frozen=True)
class Run:
    """A training run on disk."""

    folder: Path
    """run.json, stats.jsonl, epochs.jsonl, samples/, checkpoints/ and, once the run has ended, model/."""

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folder / "model"

    def settings(self) -> dict[str, Any]:
        """run.json: every setting, versions, seed, commit."""
        return read_record(self.folder)

    def stats(self) -> list[dict[str, Any]]:
        """stats.jsonl: one dict per step with `step`, `time` (seconds since the start) and every loss term."""
        return read_stats(self.folder / "stats.jsonl")

    def epochs(self) -> list[dict[str, Any]]:
        """epochs.jsonl: one dict per epoch with `epoch`, `step`, `time`, `seconds`, `photos_per_second` and the mean of
        every loss term."""
        return read_stats(self.folder / "epochs.jsonl")

    def restorer(self, **options: Any) -> Restorer:
        """A Restorer of the model; options as for `fairweather.load`."""
        from fairweather.inference import load

        return load(self.model, **options)


def train(
    recipe: str | None = None,
    *,
    data: str | Path | Dataset | None = None,
    generator: str | None = None,
    generator_arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    config: str | Path | None = None,
    out: str | Path = "run",
    resume: bool = False,
    **options: Any,
) -> Run:
    """Train a recipe on photos.

    With `devices` above 1, this program is started again for each further process; all of them train, and return when
    the main one has written the model. On KeyboardInterrupt (Ctrl-C), a last checkpoint is written.

    Args:
        recipe: cyclegan, claritygan, derain (unpaired photos), pix2pix, hazeheal, supervised (pairs) or
            supervised_video (clips); by default the config file's.
        data: folder of pairs, root folder of the config's sources, or a dataset object.
        generator: name of the network; by default the recipe's.
        generator_arguments: arguments of the generator.
        settings: fields of the recipe's settings.
        config: TOML file with tables [run], [data], [recipe], [generator]; arguments override it.
        out: the run folder.
        resume: continue the run in `out` from its last checkpoint; exact, unless its length is in minutes.
        **options: fields of `fairweather.training.config.RunConfig` (steps, epochs, minutes, batch, seed, start,
            precision, device, devices, ...) and `DataConfig` (degraded, clear, crop, hold_back, ...). None means the
            config file's value, else the default.

    Returns:
        The run; `run.restorer()` opens its model.

    Raises:
        BadSettings: a setting is unknown, invalid or contradicts another, or a loss became NaN or infinite.
        UnknownName: no such recipe, generator or model.
        BadFolder: a folder is missing, invalid or cannot be written.
        BadImage: a photo cannot be read.
        ParityFailed: the exported model and the trained network disagree.
        MissingExtra: the `train` extra is not installed.
    """
    try:
        from fairweather.training import loop, trainer
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("torch", "lightning"):
            raise
        raise MissingExtra(str(missing.name), "train", "training") from None
    check_keys(options, inspect.signature(train).parameters, where="fairweather.train", kind="option")
    dataset = None if data is None or isinstance(data, (str, Path)) else data
    options["data"] = data if dataset is None else f"({type(data).__name__} given in Python)"
    given: dict[str, dict[str, Any]] = {
        "run": {},
        "data": {},
        "recipe": settings or {},
        "generator": {"name": generator, **(generator_arguments or {})},
    }
    for name, value in options.items():
        table, field = OPTIONS[name]
        given[table][field.name] = str(value) if isinstance(value, Path) else value
    if (
        given["data"].get("depths") is not None
    ):  # an argument is relative to the current folder, a file's value to [data] folder
        given["data"]["depths"] = str(Path(given["data"]["depths"]).resolve())

    prepared = trainer.prepare(recipe, config, given, Path(out), resume=resume, dataset=dataset)
    step = loop.fit(prepared, resume=resume)
    trainer.finish(prepared, step)
    return Run(prepared.out)


def _signature() -> inspect.Signature:
    """The signature of `train` with every option by name, so that editors and `help` list them."""
    own = [one for one in inspect.signature(train).parameters.values() if one.kind is not one.VAR_KEYWORD]
    listed = {one.name for one in own}
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f"{field.type} | None")
        for name, (_, field) in OPTIONS.items()
        if name not in listed
    ]
    return inspect.Signature([*own, *more], return_annotation="Run")


train.__signature__ = _signature()  # type: ignore[attr-defined]
