"""The variants of candidates.py: changes to one run file, each written as a run file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from fairweather.errors import BadSettings

Tables = dict[str, dict[str, Any]]
REAL = ("o_haze", "nh_haze")
"""Sources of real haze."""


@dataclass(frozen=True)
class Variant:
    """Changes to a run file; all other settings stay."""

    says: str
    """Description for the table."""
    generator: Mapping[str, Any] = field(default_factory=dict)
    """Replaces the [generator] table."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of [recipe]."""
    augment: Mapping[str, Any] = field(default_factory=dict)
    """Settings of [data.augment]."""
    without: Callable[[Mapping[str, Any]], bool] | None = None
    """Selects the [[data.sources]] to remove; the others are drawn more often in proportion."""
    source: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Change applied to the remaining sources."""
    rate: float = 1.0
    """Factor on the file's learning rate."""
    goes_on: bool = False
    """Start from the trained weights of the ablated network."""
    share: float = 1.0
    """Fraction of the budget."""


CANDIDATES = {
    "scattering_maps": Variant("haze maps from a reduced photo, applied at full size"),
    "conv_unet": Variant(
        "plain 3 x 3 convolutions on unshuffled pixels",
        generator={
            "name": "conv_unet",
            "shuffle": 4,
            "widths": [32, 64, 112, 144],
            "encoder": [1, 2, 2, 2],
            "decoder": [2, 2, 2],
        },
        rate=0.67,  # no norms
    ),
    "gunet": Variant(
        "gated depthwise convolutions", generator={"name": "gunet", "width": 16, "depths": [1, 1, 1, 3, 1, 1, 1]}
    ),
    "mbconv_unet": Variant(
        "HazeHeal's mobile bottlenecks",
        generator={"name": "mbconv_unet", "width": 16, "levels": 4, "upsampling": "resize", "residual": True},
    ),
}
"""Networks for haze, of similar cost at training size."""

BARE = {"tone": 0.0, "noise_share": 0.0, "jpeg_share": 0.0}
"""Augmentation without tone, noise and JPEG."""

ABLATIONS = {
    "no-real-haze": Variant(
        "no pairs of real haze, and no fog from them over other photos",
        without=lambda source: source["path"] in REAL or source.get("fog") in REAL,
    ),
    "no-invented-depth": Variant(
        "no haze over clear photos along random depth",
        without=lambda source: source["kind"] == "synthetic" and source["path"] == "clear" and "fog" not in source,
    ),
    "no-tone-no-noise": Variant(
        "no tone augmentation, noise or JPEG",
        augment=BARE,
        source=lambda source: {**source, "augment": {**source["augment"], **BARE}} if "augment" in source else source,
    ),
    "no-clear-pairs": Variant(
        "no clear photos as targets for themselves",
        without=lambda source: source["kind"] == "clear",
        source=lambda source: {**source, "haze": {**source["haze"], "clear": 0.0}} if "haze" in source else source,
    ),
    "goes-on": Variant("a second phase without an adversary", rate=0.2, goes_on=True, share=0.25),
    "adversarial": Variant(
        "a second phase with one",
        recipe={"adversarial": 0.005, "width": 32, "discriminator_warmup": 50},  # narrow, to cost little
        rate=0.2,
        goes_on=True,
        share=0.25,
    ),
}
"""Ablations of the best network. The last two add a quarter of the budget each: compare them with each other."""


def changed(tables: Tables, variant: Variant) -> Tables:
    """The tables of a run file with a variant's changes. Raises BadSettings if a change has no effect."""
    tables = deepcopy(tables)
    if variant.generator:
        tables["generator"] = dict(variant.generator)
    tables["recipe"] |= {**variant.recipe, "lr": tables["recipe"]["lr"] * variant.rate}
    tables["data"]["augment"] = {**tables["data"].get("augment", {}), **variant.augment}
    if variant.without is not None:
        sources = tables["data"]["sources"]
        kept = [one for one in sources if not variant.without(one)]
        if not kept or len(kept) == len(sources):
            raise BadSettings(f"{variant.says}: {len(kept)} of the run file's {len(sources)} sources would stay")
        tables["data"]["sources"] = kept
    if variant.source is not None:
        tables["data"]["sources"] = [variant.source(one) for one in tables["data"]["sources"]]
    return tables


def toml(tables: Tables) -> str:
    """A settings file of strings, numbers, lists and inline tables."""
    lines = []
    for name, rows in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in rows.items()), ""]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        # one line per table of a list
        end, between = ("\n]", ",\n") if value and isinstance(value[0], Mapping) else ("]", ", ")
        return "[" + end[:-1] + between.join(map(_value, value)) + end
    return json.dumps(value, ensure_ascii=False)  # strings, booleans and numbers are equal in JSON and TOML
