"""Batches for the loop: in an order that (seed, step) decides alone, prepared beside the networks' work."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import data as torch_data

from fairweather.data import Augment
from fairweather.data.audit import check_before_training
from fairweather.data.datasets import (
    Dataset,
    PhotoCache,
    UnpairedDataset,
    all_pairs,
    paired_dataset,
    photos_in,
    cached_short_side,
    unpaired_dataset,
)
from fairweather.data.gpu_batches import GPUBatches
from fairweather.data.mixture import Mixture, MixtureSettings
from fairweather.errors import BadSettings
from fairweather.pairs import Pair
from fairweather.recipes import RECIPES, Batch, Recipe
from fairweather.training.config import DataConfig


class SampleSource(Protocol):
    """What the loop wants of a dataset."""

    def __len__(self) -> int:
        """Samples an epoch."""

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        """`degraded` and `clear`, each 3 x H x W in [0,1]; every random draw comes from the arguments."""


class BatchLoader:
    """Endless batches of a dataset, starting behind `position` samples.

    Epochs follow each other without a gap: a batch may hold the end of one and the beginning of the next, so that
    a dataset smaller than a batch is no special case.

    Among `size` processes the one of rank r takes every `size`-th sample from the r-th on: together they see, step by
    step, what one process with batches of `size * batch` sees.
    """

    def __init__(
        self,
        samples: SampleSource,
        *,
        seed: int,
        batch: int,
        position: int = 0,
        workers: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        keys = _Keys(len(samples), batch, position, rank, size)
        self._loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            _Keyed(samples, seed),
            batch_sampler=keys,
            collate_fn=_collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_start_worker,
            # Without one of its own, the loader draws from the global generator, and a resumed run would differ.
            generator=torch.Generator().manual_seed(0),
            # Forked workers share the photos that are decoded already; a spawned one would decode its own.
            multiprocessing_context="fork" if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


class DeviceBatchLoader:
    """The same batches of `Batched` photos, made on their device; on CUDA by a thread, beside the networks' work."""

    def __init__(
        self, photos: GPUBatches, *, seed: int, batch: int, position: int = 0, rank: int = 0, size: int = 1,
        ahead: int | None = None,
    ) -> None:  # fmt: skip
        """`ahead`: batches that are ready or in the making before they are asked for; none where it is 0."""
        self.photos, self.seed = photos, seed
        self.keys = _Keys(len(photos), batch, position, rank, size)
        self.cuda = photos.device.type == "cuda"
        self.ahead = (2 if self.cuda else 0) if ahead is None else ahead

    def __iter__(self) -> Iterator[Batch]:
        return self._beside() if self.ahead else (self._make(keys) for keys in self.keys)

    def _make(self, keys: list[tuple[int, int]]) -> Batch:
        return Batch(**self.photos.batch(self.seed, keys))

    def _beside(self) -> Iterator[Batch]:
        ready: Queue[tuple[Batch, torch.cuda.Event | None] | BaseException] = Queue(self.ahead)
        ended = Event()
        stream = torch.cuda.Stream(self.photos.device) if self.cuda else None  # type: ignore[no-untyped-call]

        def put(item: tuple[Batch, torch.cuda.Event | None] | BaseException) -> None:
            while not ended.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except Full:
                    continue

        def work() -> None:
            try:
                with nullcontext() if stream is None else torch.cuda.stream(stream):
                    for keys in self.keys:
                        batch = self._make(keys)
                        put((batch, None if stream is None else stream.record_event()))
                        if ended.is_set():
                            return
            except BaseException as error:  # the loop's to deal with, whatever it is
                put(error)

        worker = Thread(target=work, daemon=True, name="batches")
        worker.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                batch, made = item
                if made is not None:
                    now = torch.cuda.current_stream(self.photos.device)
                    now.wait_event(made)
                    for side in (batch.degraded, batch.clear):
                        side.record_stream(now)  # its memory is in use there, not only where it was made
                yield batch
        finally:
            ended.set()
            worker.join()


class _Keyed(torch_data.Dataset[dict[str, Tensor]]):
    def __init__(self, samples: SampleSource, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return self.samples.sample(self.seed, *key)


class _Keys:
    """Lists of (epoch, index), for ever."""

    def __init__(self, length: int, batch: int, position: int, rank: int, size: int) -> None:
        self.length, self.batch, self.position, self.rank, self.size = length, batch, position, rank, size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, step = self.position, self.size * self.batch
        while True:
            yield [divmod(at, self.length) for at in range(start + self.rank, start + step, self.size)]
            start += step


def _collate(samples: list[dict[str, Tensor]]) -> Batch:
    return Batch(**{key: torch.stack([sample[key] for sample in samples]) for key in samples[0]})


def _start_worker(_: int) -> None:
    # Ctrl-C is the main process's affair: it finishes its step and saves; workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    # OpenCV's own threads do not survive a fork, and would fight the networks' threads for the cores.
    cv2.setNumThreads(0)


# From the `[data]` table to a dataset.

log = logging.getLogger("fairweather")


def check_headers(data: DataConfig, recipe: type[Recipe], crop: int, quiet: bool = False) -> None:
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


def check_choice(data: DataConfig, recipe: type[Recipe], name: str) -> None:
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


def open_data(data: DataConfig, recipe: type[Recipe], name: str, crop: int) -> Dataset:
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
        return paired_dataset(data.folder, augment=augment, hold_back=data.hold_back, memory=memory)
    if data.folder is not None:
        pairs = all_pairs(data.folder)
        clear = list(dict.fromkeys(pair.clear for pair in pairs))
        photos = PhotoCache(cached_short_side(augment), memory)
        return UnpairedDataset([pair.degraded for pair in pairs], clear, photos, augment)
    assert data.degraded is not None
    assert data.clear is not None
    return unpaired_dataset(data.degraded, data.clear, augment=augment, memory=memory)


def on_device(data: DataConfig, dataset: Dataset, device: torch.device) -> GPUBatches | None:
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
        return GPUBatches(dataset, device, int(data.memory_gib * 2**30))
    except BadSettings as error:
        if data.on_device:
            raise
        log.warning("batches are made on the CPU: %s", error)
        return None
