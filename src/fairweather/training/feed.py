"""Batches for the loop: in an order that (seed, step) decides alone, prepared beside the networks' work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fairweather.data.batched import Batched
from fairweather.recipes import Batch


class Samples(Protocol):
    """What the loop wants of a dataset."""

    def __len__(self) -> int:
        """Samples an epoch."""

    def sample(self, seed: int, epoch: int, index: int) -> dict[str, Tensor]:
        """`degraded` and `clear`, each 3 x H x W in [0,1]; every random draw comes from the arguments."""


class Feed:
    """Endless batches of a dataset, starting behind `position` samples.

    Epochs follow each other without a gap: a batch may hold the end of one and the beginning of the next, so that
    a dataset smaller than a batch is no special case.

    Among `size` processes the one of rank r takes every `size`-th sample from the r-th on: together they see, step by
    step, what one process with batches of `size * batch` sees.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        seed: int,
        batch: int,
        position: int = 0,
        workers: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        keys = _Keys(len(samples), batch, position, rank, size)
        self._loader: DataLoader[Any] = DataLoader(
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


class DeviceFeed:
    """The same batches of `Batched` photos, made on their device; on CUDA by a thread, beside the networks' work."""

    def __init__(
        self, photos: Batched, *, seed: int, batch: int, position: int = 0, rank: int = 0, size: int = 1,
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


class _Keyed(Dataset[dict[str, Tensor]]):
    def __init__(self, samples: Samples, seed: int) -> None:
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
