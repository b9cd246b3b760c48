"""What is kept for a while: the page's photos, and clips with what became of them; each has a token and a folder."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

from fairweather.web.folders import remove, size
from fairweather.web.limits import Limits


class Kept(Protocol):
    """Something on the shelf."""

    token: str
    """What its owner asks for it with; 128 bits by chance."""
    folder: Path
    """Where all its files lie."""
    used: float
    """When it was last asked for (`time.monotonic`)."""

    @property
    def busy(self) -> bool:
        """Whether it is worked on, so that it has to stay."""
        ...

    def end(self) -> None:
        """Stop what is done with it; its files go next."""
        ...


class Shelf:
    """All that one server keeps."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Kept]:
        """What is there."""
        with self._lock:
            return list(self._kept.values())

    def add(self, kept: Kept) -> None:
        """Keep it, and let go of what there is no room for any more."""
        with self._lock:
            self._kept[kept.token] = kept
        self.tidy()

    def get(self, token: str) -> Kept | None:
        """What has this token, which counts as asked for now."""
        with self._lock:
            kept = self._kept.get(token)
        if kept is not None:
            kept.used = time.monotonic()
        return kept

    def drop(self, token: str) -> None:
        """Forget it at once, with its files; what is not here is gone already."""
        with self._lock:
            kept = self._kept.pop(token, None)
        if kept is not None:
            kept.end()
            remove(kept.folder)

    def tidy(self) -> None:
        """Let go of what nobody asked for in time, and of what was used longest ago where the disk's share is full."""
        now, oldest = time.monotonic(), sorted(self.all(), key=lambda kept: kept.used)
        room = self.limits.disk - sum(size(kept.folder) for kept in oldest)
        for kept in oldest:
            newest = kept is oldest[-1]  # stays, however large it is
            if not kept.busy and (now - kept.used > 60 * self.limits.keep or (room < 0 and not newest)):
                room += size(kept.folder)
                self.drop(kept.token)

    def close(self) -> None:
        """Stop all that is done."""
        for kept in self.all():
            kept.end()
