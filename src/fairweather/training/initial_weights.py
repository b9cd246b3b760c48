"""The weights that a run begins with where it does not begin from scratch: another run's, or a model's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairweather import model_folder
from fairweather.errors import BadCard, BadFolder, BadSettings
from fairweather.generators import GENERATORS
from fairweather.training import checkpoint, export_run
from fairweather.training.config import NamedArguments, read_record, to_plain


@dataclass(frozen=True)
class InitialWeights:
    """A trained generator, to go on with."""

    place: str
    generator: NamedArguments
    weights: dict[str, Tensor]
    training: dict[str, Any]
    """What the card of the new model says of the old one: its name, its training, its terms."""

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The `[generator]` table: what is said, and what is not as it is there."""
        name = given.get("name", self.generator.name)
        if name != self.generator.name:
            if not _grows(name, self.generator.name):
                return dict(given)
            known = inspect.signature(GENERATORS[name]).parameters
            return {**{key: value for key, value in self.generator.settings.items() if key in known}, **given}
        return {"name": self.generator.name, **self.generator.settings, **given}

    def check(self, generator: NamedArguments) -> None:
        """Raises BadSettings where the run's generator is another one and does not grow from this one; its `adjustable`
        arguments may differ, and the numbers in its `growable` ones may be greater."""
        kind = GENERATORS.get(generator.name)
        if generator.name != self.generator.name and not _grows(generator.name, self.generator.name):
            raise BadSettings(
                f"run.start: {self.place} is a {self.generator.name}, but generator.name is {generator.name!r}: "
                "leave the generator out, or start from a run or model that has it"
            )
        adjustable, growable = (getattr(kind, name, ()) for name in ("adjustable", "growable"))
        for key, value in self.generator.settings.items():
            said = generator.settings.get(key)
            if generator.name != self.generator.name and key not in generator.settings:
                continue  # an argument that the other kind of network does not have
            if key in growable and _at_least(said, value):
                continue
            if key not in adjustable and to_plain(said) != to_plain(value):
                raise BadSettings(
                    f"run.start: {self.place} has {key}={value!r}, but generator.{key} is "
                    f"{said!r}: leave it out, or start from a run or model that has it"
                )

    def load(self, network: nn.Module) -> None:
        """Put the weights into a fresh generator. Raises BadCard where they do not fit."""
        try:
            getattr(network, "grow", network.load_state_dict)(self.weights)
        except RuntimeError as error:  # torch's words for names and shapes that do not fit
            reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
            raise BadCard(
                f"run.start: the weights of {self.place} are no {self.generator.name} of this release ({reason}): "
                "export it with the release that made it, or start from another one"
            ) from None


def _grows(name: str, other: str) -> bool:
    """Whether the generator of the first name may begin with the weights of one of the second."""
    return other in getattr(GENERATORS.get(name), "grown_from", ())


def _at_least(said: Any, here: Any) -> bool:
    """Whether as many numbers are said as are here, none of them less."""
    try:
        return all(more >= few for more, few in zip(said, here, strict=True))
    except (TypeError, ValueError):
        return False


def read_initial_weights(place: str) -> InitialWeights:
    """What `run.start` names: a shipped model, a model folder, or a run, whether that has ended or not.

    Raises UnknownName, BadFolder, BadCard; BadSettings for a model that puts weather in.
    """
    run = Path(place)
    if place in model_folder.shipped() or not (run / "run.json").is_file():
        return _of_model(model_folder.find(place), place)
    try:
        saved = checkpoint.load_checkpoint(run / "checkpoints")
    except BadFolder:
        return _of_model(model_folder.find(run), place)  # a run that was thinned out: its model is all there is
    if export_run.has_ended(run, saved["step"]):
        return _of_model(run / "model", place)
    if saved["step"] == 0:
        raise BadFolder(
            f"run.start: {run} holds no trained network yet: its last checkpoint is of before the first step"
        )
    record = read_record(run)
    settings = export_run.settings_of(record, run)
    weights = export_run.trained_network(settings, saved["engine"], "restore").state_dict()
    said = {"name": run.resolve().name, "licence": settings.data.licence, "terms": settings.data.terms}
    training = {
        **said,
        **export_run.training_facts(settings, saved["step"], export_run.note_export(record, ended=False)),
    }
    return InitialWeights(place, settings.generator, weights, training)


def _of_model(folder: Path, place: str) -> InitialWeights:
    card = model_folder.read_card(folder)
    if card.direction != "restore":
        raise BadSettings(f"run.start: {place} puts {card.weather} into photos; start from a model that takes it out")
    weights = {name: torch.from_numpy(value) for name, value in model_folder.read_weights(folder).items()}
    said = {
        "name": card.name,
        "weights": card.checksums[model_folder.WEIGHTS],
        "licence": card.licence,
        "terms": card.terms,
    }
    return InitialWeights(
        place, NamedArguments(card.generator, dict(card.arguments)), weights, {**said, **card.training}
    )
