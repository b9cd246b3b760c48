"""From the `[data]` table to a dataset."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from fairweather.data import Augment
from fairweather.data.audit import check_before_training
from fairweather.data.batched import Batched
from fairweather.data.folders import Unpaired, all_pairs, kept_short_side, paired, photos_in, unpaired
from fairweather.data.mixture import Mixture, MixtureSettings
from fairweather.data.photos import Photos
from fairweather.data.source import Dataset
from fairweather.errors import BadSettings
from fairweather.pairs import Pair
from fairweather.recipes import RECIPES, Recipe
from fairweather.training.settings import DataSettings

log = logging.getLogger("fairweather")


def check_headers(data: DataSettings, recipe: type[Recipe], crop: int, quiet: bool = False) -> None:
    """The fast part of `check-data`, before minutes of decoding: raises BadFolder on errors, logs one line of warnings.

    What the settings name has been looked at before, by `check_choice`.
    """
    pairs: list[Pair] = []
    photos: list[Path] = []
    if data.sources:
        for source in MixtureSettings.from_table({"sources": data.sources}).sources if data.folder else ():
            path = Path(data.folder or "") / source.path
            if source.kind in ("pairs", "rehazed"):
                pairs += all_pairs(path)
            elif source.kind == "rgbd":
                photos += photos_in(path / "clear")
            else:
                photos += photos_in(path)
    elif data.folder:
        pairs = all_pairs(data.folder)
    else:
        photos = [path for folder in (data.degraded, data.clear) if folder for path in photos_in(folder)]
    photos += [path for pair in pairs for path in (pair.degraded, pair.clear)]
    folders = [data.folder] if data.folder else [folder for folder in (data.degraded, data.clear) if folder]
    told = check_before_training(folders, photos, pairs if recipe.paired else (), crop)
    if told and not quiet:
        log.warning("%s", told)


def check_choice(data: DataSettings, recipe: type[Recipe], name: str) -> None:
    """Raises BadSettings where the table names no data, too much, or what the recipe cannot learn from."""
    if data.on_device and not data.sources:
        raise BadSettings("data.on_device is for mixtures: list data.sources, or take it out")
    if data.depths is not None and not data.sources:
        raise BadSettings("data.depths is for mixtures: list data.sources, or remove depths (--depths)")
    if data.frames is not None and data.frames < 1:
        raise BadSettings(f"data.frames is {data.frames}: a clip has at least 1")
    if recipe.filmed and not (data.sources and data.frames):
        raise BadSettings(
            f"{name} learns from clips: list data.sources and say how many frames a clip has (data.frames)"
        )
    if data.frames and not recipe.filmed:
        films = [other for other, kind in RECIPES.items() if kind.filmed]
        raise BadSettings(f"data.frames: {name} learns from photos; {', '.join(films)} learns from clips")
    if data.sources:
        if not recipe.paired:
            raise BadSettings(
                f"data.sources give pairs, and {name} draws its two sides independently: take data.sources out and "
                "give --degraded and --clear, or --data"
            )
        if data.folder is None:
            raise BadSettings("data.sources are paths below a folder: say which (--data)")
    elif recipe.paired:
        if data.folder is None or data.degraded or data.clear:
            raise BadSettings(f"{name} learns from pairs: give their folder (--data), not --degraded and --clear")
    elif data.hold_back:
        raise BadSettings(f"data.hold_back: {name} learns from unpaired photos; there is no ground truth to measure by")
    elif data.folder is not None:
        if data.degraded or data.clear:
            raise BadSettings("give either --data or --degraded and --clear, not both")
    elif not (data.degraded and data.clear):
        raise BadSettings(f"{name} needs --degraded and --clear, two folders of photos (or --data, a folder of pairs)")


def open_data(data: DataSettings, recipe: type[Recipe], name: str, crop: int) -> Dataset:
    """The dataset of a run; every file is decoded once. Raises BadSettings, BadFolder or BadImage."""
    check_choice(data, recipe, name)
    table = {**data.augment, "crop": crop}
    if data.sources:
        assert data.folder is not None
        mixed: dict[str, Any] = {"sources": data.sources, "augment": table, "hold_back": data.hold_back}
        kept = ("samples", "short_side", "memory_gib", "frames", "depths")
        optional = {key: getattr(data, key) for key in kept}
        mixed |= {key: value for key, value in optional.items() if value is not None}
        return Mixture(MixtureSettings.from_table(mixed), data.folder)
    if data.augment or not recipe.paper_crops:
        augment = MixtureSettings.from_table({"augment": table}).augment
    else:
        augment = Augment.paper(crop)
    memory = int(data.memory_gib * 2**30)
    if recipe.paired:
        assert data.folder is not None
        return paired(data.folder, augment=augment, hold_back=data.hold_back, memory=memory)
    if data.folder is not None:
        pairs = all_pairs(data.folder)
        clear = list(dict.fromkeys(pair.clear for pair in pairs))
        photos = Photos(kept_short_side(augment), memory)
        return Unpaired([pair.degraded for pair in pairs], clear, photos, augment)
    assert data.degraded is not None
    assert data.clear is not None
    return unpaired(data.degraded, data.clear, augment=augment, memory=memory)


def on_device(data: DataSettings, dataset: Dataset, device: torch.device) -> Batched | None:
    """What makes batches on the device, where the settings want that, or say nothing and the photos fit into a GPU.

    Raises BadSettings where they are wanted there and cannot be.
    """
    if data.on_device is False or (data.on_device is None and device.type != "cuda"):
        return None
    if not isinstance(dataset, Mixture):
        if data.on_device:
            raise BadSettings("data.on_device is for mixtures (fairweather.data.Mixture), not for other datasets")
        return None
    try:
        return Batched(dataset, device, int(data.memory_gib * 2**30))
    except BadSettings as error:
        if data.on_device:
            raise
        log.warning("batches are made on the CPU: %s", error)
        return None
