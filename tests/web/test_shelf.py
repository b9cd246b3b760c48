"""What is kept: the newest and the busy stay, what was used longest ago goes where the disk's share is full."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from fairweather.web.limits import Limits
from fairweather.web.storage import TTLStore


@dataclass
class Thing:
    folder: Path
    token: str
    busy: bool = False
    used: float = field(default_factory=time.monotonic)
    ended: bool = False

    def end(self) -> None:
        self.ended = True


def put(shelf: TTLStore, place: Path, name: str, *, busy: bool = False) -> Thing:
    (place / name).mkdir()
    (place / name / "file").write_bytes(bytes(1000))
    thing = Thing(place / name, name, busy)
    shelf.add(thing)
    return thing


def test_the_disk_s_share(tmp_path: Path) -> None:
    shelf = TTLStore(Limits(disk=2500))
    things = [put(shelf, tmp_path, name, busy=name == "a") for name in "abc"]
    assert [thing.token for thing in shelf.all()] == ["a", "c"]  # a is worked on
    assert (things[1].ended, things[1].folder.exists()) == (True, False)
    things[0].busy = False
    assert shelf.get("a") is things[0]  # asked for later than c
    put(shelf, tmp_path, "d")
    assert [thing.token for thing in shelf.all()] == ["a", "d"]
    shelf.drop("a")
    shelf.drop("a")
    assert shelf.get("a") is None


def test_time(tmp_path: Path) -> None:
    shelf = TTLStore(Limits(keep=0.001))
    old, busy = put(shelf, tmp_path, "old"), put(shelf, tmp_path, "busy", busy=True)
    time.sleep(0.1)
    shelf.tidy()
    assert shelf.all() == [busy]
    assert old.ended
    shelf.close()
    assert busy.ended
