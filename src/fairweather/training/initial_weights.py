"""Initial weights for fine-tuning (`run.start`): those of another run or of a model."""

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
    """A trained generator."""

    place: str
    """The value of `run.start`: a name or path."""
    generator: NamedArguments
    weights: dict[str, Tensor]
    training: dict[str, Any]
    """Facts for the new model's card: the old one's name, training and terms."""

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The `[generator]` table, completed with this generator's name and arguments."""
        name = given.get("name", self.generator.name)
        if name != self.generator.name:
            if not _grows(name, self.generator.name):
                return dict(given)
            known = inspect.signature(GENERATORS[name]).parameters
            return {**{key: value for key, value in self.generator.settings.items() if key in known}, **given}
        return {"name": self.generator.name, **self.generator.settings, **given}

    def check(self, generator: NamedArguments) -> None:
        """Raise BadSettings if the run's generator cannot take these weights.

        It must be the same one with the same arguments, except that its `adjustable` arguments may differ and its
        `growable` ones may be larger; or one whose `grown_from` names this one.
        """
        kind = GENERATORS.get(generator.name)
        if generator.name != self.generator.name and not _grows(generator.name, self.generator.name):
            raise BadSettings(
                f"run.start: {self.place} is a {self.generator.name}, but generator.name is {generator.name!r}: "
                "remove generator.name, or start from a run or model with that generator"
            )
        adjustable, growable = (getattr(kind, name, ()) for name in ("adjustable", "growable"))
        for key, value in self.generator.settings.items():
            new = generator.settings.get(key)
            if generator.name != self.generator.name and key not in generator.settings:
                continue  # an argument that this generator does not have
            if key in growable and _at_least(new, value):
                continue
            if key not in adjustable and to_plain(new) != to_plain(value):
                raise BadSettings(
                    f"run.start: {self.place} has {key}={value!r}, but generator.{key} is "
                    f"{new!r}: remove it, or start from a run or model with that value"
                )

    def load(self, network: nn.Module) -> None:
        """Load the weights into a fresh generator. Raises BadCard if they do not fit."""
        try:
            getattr(network, "grow", network.load_state_dict)(self.weights)
        except RuntimeError as error:  # names and shapes that do not fit
            reason = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
            raise BadCard(
                f"run.start: the weights of {self.place} do not fit this release's {self.generator.name} ({reason}): "
                "export it again with the release that wrote it, or start from another run or model"
            ) from None


def _grows(name: str, other: str) -> bool:
    """Whether the generator `name` can take the weights of the generator `other`."""
    return other in getattr(GENERATORS.get(name), "grown_from", ())


def _at_least(new: Any, old: Any) -> bool:
    """Whether two lists have the same length and no new number is smaller."""
    try:
        return all(more >= few for more, few in zip(new, old, strict=True))
    except (TypeError, ValueError):
        return False


def read_initial_weights(place: str) -> InitialWeights:
    """Read the weights of a shipped model, a model folder, or a run, ended or not.

    Raises:
        UnknownName: there is no such model.
        BadFolder: the folder contains neither a model nor a trained run.
        BadCard: the model is damaged.
        BadSettings: the model is one that degrades.
    """
    run = Path(place)
    if place in model_folder.shipped() or not (run / "run.json").is_file():
        return _of_model(model_folder.find(place), place)
    try:
        saved = checkpoint.load_checkpoint(run / "checkpoints")
    except BadFolder:
        return _of_model(model_folder.find(run), place)  # a run without checkpoints still has its model
    if export_run.has_ended(run, saved["step"]):
        return _of_model(run / "model", place)
    if saved["step"] == 0:
        raise BadFolder(
            f"run.start: {run} has not taken a step, so it has no trained weights: start from another run or model"
        )
    record = read_record(run)
    settings = export_run.settings_of(record, run)
    weights = export_run.trained_network(settings, saved["engine"], "restore").state_dict()
    training = {
        **{"name": run.resolve().name, "licence": settings.data.licence, "terms": settings.data.terms},
        **export_run.training_facts(settings, saved["step"], export_run.run_facts(record, ended=False)),
    }
    return InitialWeights(place, settings.generator, weights, training)


def _of_model(folder: Path, place: str) -> InitialWeights:
    card = model_folder.read_card(folder)
    if card.direction != "restore":
        raise BadSettings(f"run.start: {place} adds {card.weather} to photos: start from a model that removes it")
    weights = {name: torch.from_numpy(value) for name, value in model_folder.read_weights(folder).items()}
    facts = {
        "name": card.name,
        "weights": card.checksums[model_folder.WEIGHTS],
        "licence": card.licence,
        "terms": card.terms,
    }
    return InitialWeights(
        place, NamedArguments(card.generator, dict(card.arguments)), weights, {**facts, **card.training}
    )
