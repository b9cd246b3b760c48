"""What candidates.py trains: one run file, and for each variant the changes to it, as a run file of its own."""

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
    """The run file with stated changes; whatever is not named here stays as it is there."""

    says: str
    """What it is, for the table."""
    generator: Mapping[str, Any] = field(default_factory=dict)
    """The whole [generator] table, in place of the file's."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of [recipe]."""
    augment: Mapping[str, Any] = field(default_factory=dict)
    """Settings of [data.augment]."""
    without: Callable[[Mapping[str, Any]], bool] | None = None
    """Which [[data.sources]] are taken out; those that stay are drawn more often in proportion."""
    source: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What happens to those that stay."""
    rate: float = 1.0
    """Times the file's learning rate."""
    goes_on: bool = False
    """It starts from the trained weights of the network that is taken apart."""
    share: float = 1.0
    """Of the budget."""


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
        rate=0.67,  # it has no norms
    ),
    "gunet": Variant(
        "gated depthwise convolutions", generator={"name": "gunet", "width": 16, "depths": [1, 1, 1, 3, 1, 1, 1]}
    ),
    "mbconv_unet": Variant(
        "HazeHeal's mobile bottlenecks",
        generator={"name": "mbconv_unet", "width": 16, "levels": 4, "upsampling": "resize", "residual": True},
    ),
}
"""The networks for haze, of about one cost at training size."""

BARE = {"tone": 0.0, "noise_share": 0.0, "jpeg_share": 0.0}
"""Augmentation without tone, noise and JPEG."""

ABLATIONS = {
    "no-real-haze": Variant(
        "no pairs of real haze, nor their fog over other photos",
        without=lambda source: source["path"] in REAL or source.get("fog") in REAL,
    ),
    "no-invented-depth": Variant(
        "no haze over clear photos along invented depth",
        without=lambda source: source["kind"] == "synthetic" and source["path"] == "clear" and "fog" not in source,
    ),
    "no-tone-no-noise": Variant(
        "no changes of tone, no noise, no JPEG",
        augment=BARE,
        source=lambda source: {**source, "augment": {**source["augment"], **BARE}} if "augment" in source else source,
    ),
    "no-clear-pairs": Variant(
        "no clear photos to be left as they are",
        without=lambda source: source["kind"] == "clear",
        source=lambda source: {**source, "haze": {**source["haze"], "clear": 0.0}} if "haze" in source else source,
    ),
    "goes-on": Variant("a second phase without an adversary", rate=0.2, goes_on=True, share=0.25),
    "adversarial": Variant(
        "a second phase with one",
        recipe={"adversarial": 0.005, "width": 32, "discriminator_warmup": 50},  # narrow, or its own work would be most of it
        rate=0.2,
        goes_on=True,
        share=0.25,
    ),
}
"""What the network that won is trained without, and with. The last two add a quarter of the budget each: compare them
with each other."""


def changed(tables: Tables, variant: Variant) -> Tables:
    """The tables of a run file with the changes of a variant. Raises BadSettings where a change changes nothing."""
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
    """A settings file. Its values are text, numbers, lists and tables, the latter inline."""
    lines = []
    for name, rows in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in rows.items()), ""]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        # a list of tables has a line for each
        end, between = ("\n]", ",\n") if value and isinstance(value[0], Mapping) else ("]", ", ")
        return "[" + end[:-1] + between.join(map(_value, value)) + end
    return json.dumps(
        value, ensure_ascii=False
    )  # text in quotes, true and false, numbers: JSON's and TOML's are the same
