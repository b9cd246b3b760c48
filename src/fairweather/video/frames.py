"""A film in memory: one frame of it, and what every source of frames is to the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from fairweather.images import Photo
from fairweather.video.formats import Track

if TYPE_CHECKING:
    from av import Packet

Array = NDArray[Any]


@dataclass
class Frame:
    """One picture of a film."""

    pixels: Array
    """H x W x 3 uint8 or uint16, RGB, upright."""
    time: int
    """When it is shown, in the track's time base."""
    duration: int = 0
    """How long, likewise; 0 where the source does not say."""
    alpha: Array | None = None
    """H x W uint8, of animations that have it."""
    photo: Photo | None = None
    """Of a folder of pictures: what else the file holds."""


class Source(Protocol):
    """A film that is read from front to back, once."""

    name: str
    track: Track
    live: bool
    """Whether it has no end of its own, so that stopping it is how it ends."""

    def items(self) -> Iterator[Frame | Packet]:
        """Its frames in the order in which they are shown, and between them the packets of all that is copied."""
        ...

    def close(self) -> None:
        """Let go of the file. May be called again."""
        ...
