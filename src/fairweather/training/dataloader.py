"""Datasets and batches of a run, in an order that depends only on the seed and the step."""

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
    cached_short_side,
    paired_dataset,
    photos_in,
    unpaired_dataset,
)
from fairweather.data.gpu_batches import GPUBatches
from fairweather.data.mixture import Mixture, MixtureSettings
from fairweather.errors import BadSettings
from fairweather.pairs import Pair
from fairweather.recipes import RECIPES, Batch, Recipe
from fairweather.training.config import DataConfig

log = logging.getLogger("fairweather")


class SampleSource(Protocol):
    """A dataset as the data loader uses it."""

    def __len__(self) -> int:
        """Samples per epoch."""

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        """`degraded` and `clear`, each 3 x H x W in [0,1]; every random draw depends only on the arguments."""


class BatchLoader:
    """Endless batches of a dataset, starting after `position` samples.

    A batch may contain the end of one epoch and the start of the next, so a dataset smaller than a batch is no special
    case. Of `size` processes, the one of rank r gets every `size`-th sample from the r-th on: together they get the
    samples of one process with batches of `size * batch`.
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
            # The default is the global generator, from which a resumed run would draw again.
            generator=torch.Generator().manual_seed(0),
            # Forked workers share the decoded photos; spawned ones would decode their own.
            multiprocessing_context="fork" if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


class DeviceBatchLoader:
    """The same batches, prepared on the device by `GPUBatches`; on CUDA in a thread, concurrently with training."""

    def __init__(
        self, photos: GPUBatches, *, seed: int, batch: int, position: int = 0, rank: int = 0, size: int = 1,
        ahead: int | None = None,
    ) -> None:  # fmt: skip
        """`ahead`: number of batches prepared in advance by a thread (default: 2 on CUDA, else 0: no thread)."""
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
            except BaseException as error:  # raised again by the consumer
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
                        side.record_stream(now)  # its memory is used there, not only on the stream that allocated it
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
    """Endless lists of (epoch, index)."""

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
    # The main process handles Ctrl-C: it finishes its step and saves; workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    # OpenCV's threads do not survive a fork, and would compete with the networks' threads for the cores.
    cv2.setNumThreads(0)


def check_headers(data: DataConfig, recipe: type[Recipe], crop: int, quiet: bool = False) -> None:
    """The fast checks of `check-data`, before minutes of decoding: raise BadFolder on errors, log warnings in one line.

    `check_sources` must have passed.
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
    warnings = check_before_training(folders, photos, pairs if recipe.paired else (), crop)
    if warnings and not quiet:
        log.warning("%s", warnings)


def check_sources(data: DataConfig, recipe: type[Recipe], name: str) -> None:
    """Raise BadSettings if the settings name no data, conflicting data, or data that the recipe cannot use."""
    if data.on_device and not data.sources:
        raise BadSettings("data.on_device is for mixtures only: list data.sources, or remove it")
    if data.depths is not None and not data.sources:
        raise BadSettings("data.depths is for mixtures only: list data.sources, or remove depths (--depths)")
    if recipe.uses_clips and not (data.sources and data.frames):
        raise BadSettings(f"{name} trains on clips: list data.sources and set the frames per clip (data.frames)")
    if data.frames and not recipe.uses_clips:
        others = [other for other, kind in RECIPES.items() if kind.uses_clips]
        raise BadSettings(f"data.frames: {name} trains on photos: remove it, or use {' or '.join(others)}")
    if data.sources:
        if not recipe.paired:
            raise BadSettings(
                f"data.sources give pairs, and {name} draws its two sides independently: remove data.sources and give "
                "--degraded and --clear, or --data"
            )
        if data.folder is None:
            raise BadSettings("data.sources are relative to a folder: give it with --data")
    elif recipe.paired:
        if data.folder is None or data.degraded or data.clear:
            raise BadSettings(f"{name} trains on pairs: give their folder (--data), not --degraded and --clear")
    elif data.hold_back:
        raise BadSettings(f"data.hold_back: {name} trains on unpaired photos, without ground truth: remove it")
    elif data.folder is not None:
        if data.degraded or data.clear:
            raise BadSettings("give either --data or --degraded and --clear, not both")
    elif not (data.degraded and data.clear):
        raise BadSettings(f"{name} needs --degraded and --clear, two folders of photos (or --data, a folder of pairs)")


def open_data(data: DataConfig, recipe: type[Recipe], name: str, crop: int) -> Dataset:
    """Open the dataset of a run; every file is decoded once. Raises BadSettings, BadFolder or BadImage."""
    check_sources(data, recipe, name)
    table = {**data.augment, "crop": crop}
    if data.sources:
        assert data.folder is not None
        mixed: dict[str, Any] = {"sources": data.sources, "augment": table, "hold_back": data.hold_back}
        optional = {key: getattr(data, key) for key in ("samples", "short_side", "memory_gib", "frames", "depths")}
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


def gpu_batches(data: DataConfig, dataset: Dataset, device: torch.device) -> GPUBatches | None:
    """Load a mixture's photos into device memory if `data.on_device` is true, or by default on CUDA if they fit.

    Raises:
        BadSettings: `data.on_device` is true, but the dataset is not a mixture or does not fit.
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
        log.warning("batches are prepared on the CPU: %s", error)
        return None
