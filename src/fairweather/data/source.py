"""What a dataset is here: a pure function of (seed, epoch, index), and the seeding that makes it one."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairweather.pairs import Pair

Sample = dict[str, Tensor]
"""`degraded` and `clear`, each 3 x S x S float32 in [0,1]; of clips `moves` as well (see `fairweather.data.filmed`)."""


class Dataset(Protocol):
    """A map-style dataset whose every random draw comes from (seed, epoch, index), whoever asks in whatever order."""

    def __len__(self) -> int:
        """Samples per epoch."""
        ...

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        """The sample number `index` (0 <= index < len) of an epoch; the same arguments give the same bits."""
        ...

    def held_back(self) -> dict[str, list[Pair]]:
        """The pairs of the scenes kept out of training, by the name of their source."""
        ...


class Source(Protocol):
    """A kind of training pair: photos in a certain order, and what is made of one of them."""

    @property
    def items(self) -> int:
        """How many photos or pairs it holds."""
        ...

    @property
    def held(self) -> list[Pair]:
        """The pairs that are kept out of training."""
        ...

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        """The training sample of one item; nothing but `item` and `rng` may decide it."""
        ...


def stream(*key: int) -> np.random.Generator:
    """A random generator that depends on all of the key and on nothing else.

    NumPy's SeedSequence hashes its entropy (O'Neill's seed_seq), so that neighbouring keys give unrelated streams.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in key])))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator whose seed is the next draw of a NumPy one."""
    return torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, side: int, n: int) -> NDArray[np.intp]:
    """The order in which an epoch visits n items; `side` tells apart the two folders of unpaired data."""
    return stream(seed, epoch, side, n).permutation(n)


def to_tensor(picture: NDArray[np.float32]) -> Tensor:
    """S x S x 3 float32 -> 3 x S x S tensor of its own memory."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"sample {index} of an epoch of {length}")


class Visited:
    """A dataset of one source: an epoch visits every item once, in an order of its own."""

    def __init__(self, source: Source, name: str) -> None:
        self.source = source
        self.name = name

    def __len__(self) -> int:
        return self.source.items

    def sample(self, seed: int, epoch: int, index: int) -> Sample:
        check_index(index, len(self))
        item = int(order(seed, epoch, 0, len(self))[index])
        return self.source.make(item, stream(seed, epoch, index))

    def held_back(self) -> dict[str, list[Pair]]:
        return {self.name: self.source.held} if self.source.held else {}
