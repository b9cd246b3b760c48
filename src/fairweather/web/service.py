"""What the page and the API share: limits, the queue, memory, models, and the way of a photo from file to file."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from fairweather.errors import BadImage, BadSettings, FairweatherError
from fairweather.images import header, read, write
from fairweather.images.decoding import sniff
from fairweather.images.formats import FORMATS
from fairweather.images.headers import Header
from fairweather.restoring import tiles
from fairweather.restoring.budget import ALLOWANCE_AUTO, AT_EASE_AUTO, Budget, resident
from fairweather.restoring.stopping import Stopped, check
from fairweather.web import clips
from fairweather.web.films import Films
from fairweather.web.folders import Folders
from fairweather.web.limits import Limits, Refused, refused
from fairweather.web.offer import Offer, Plan, Settings
from fairweather.web.shelf import Shelf
from fairweather.web.turns import Turns

T = TypeVar("T")
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif", "HEIF": ".heic",
          "BMP": ".bmp", "PPM": ".ppm"}  # fmt: skip
TYPE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff", "AVIF": "image/avif",
        "HEIF": "image/heic", "BMP": "image/bmp", "PPM": "image/x-portable-anymap"}  # fmt: skip
_log = logging.getLogger("fairweather")


class Restored(NamedTuple):
    """A finished file, and what was done for it."""

    path: Path
    header: Header
    plan: Plan
    changed: bool
    """False: the file is the one that came, byte for byte."""


class Service:
    """One server's work. `offered` makes the offer of models from the function that tells a network its memory."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        offered: Callable[[Callable[[], int]], Offer] = lambda memory: Offer(memory=memory),
        memory: int | None = None,
        parent: Path | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        total = resident() + 3 * tiles.available_memory() // 4 if memory is None else memory
        self.budget = Budget(total, allowance=ALLOWANCE_AUTO, copies=2)
        self.budget.at_ease = AT_EASE_AUTO
        self.budget.begin()
        self.offer = offered(self.budget.windows)
        self.turns = Turns(self.limits)
        self.folders = Folders(parent)
        self.shelf = Shelf(self.limits)
        self.films = Films(self)
        self._freed = threading.Condition()

    def close(self) -> None:
        """Begin nothing more, remove every file."""
        self.turns.close()
        self.films.close()
        self.folders.close()

    async def answer(self, work: Callable[[], T]) -> T:
        """What `work` gives when its turn comes. Raises what it raises; Refused (504) in time whatever it does."""
        future, leave = self.turns.submit(work)
        try:
            async with asyncio.timeout(self.limits.seconds + 1):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Refused(504, "too_slow", "this took too long; make the photo smaller, or come again later") from None
        finally:
            leave()

    def probe(self, path: Path, name: str) -> Header:
        """The header of a file that came in. Raises Refused: 415 for what is no photo, 413 for too many pixels, 422."""
        try:
            start = clips.start_of(path)
            if clips.is_clip(start):
                raise clips.refusal(name)
            if start and sniff(start) in ("", "GIF"):
                raise Refused(
                    415, "not_a_picture", f"{name}: is not a picture that can be read; "
                    f"give it as JPEG, PNG, WebP, TIFF, AVIF or HEIC, a clip as {clips.TAKEN}"
                )  # fmt: skip
            found = header(path, max_pixels=2**62)
        except (FairweatherError, OSError, MemoryError) as error:
            raise refused(error, str(path), name) from None
        if found.width * found.height > self.limits.pixels:
            raise Refused(
                413,
                "too_many_pixels",
                f"{name}: has {found.width:,} x {found.height:,} pixels, and this server takes "
                f"{self.limits.pixels / 1e6:g} megapixels at the most; make it smaller",
            )
        return found

    def memory(self, source: Path, destination: Path, name: str) -> AbstractContextManager[None]:
        """Wait until there is memory for a photo, and hold it. Raises Refused (413) where there never is, Stopped."""
        return self._taken(
            lambda: self.budget.admit(source, destination, self.limits.pixels),
            lambda: self.budget.release(source),
            f"{name}: is",
        )

    def room(self, need: int, name: str) -> AbstractContextManager[None]:
        """Wait until there is memory for a clip, `need` bytes, and hold it. Raises Refused (413), Stopped."""
        return self._taken(
            lambda: self.budget.hold(need), lambda: self.budget.let_go(need), f"{name}: its frames are"
        )

    @contextmanager
    def _taken(self, take: Callable[[], bool], release: Callable[[], None], what: str) -> Iterator[None]:
        """Take from the budget as soon as it has what is asked for, and give that back. `what` is too large if not."""
        with self._freed:
            while True:
                try:
                    if take():
                        break
                except (BadImage, BadSettings):
                    raise Refused(
                        413, "too_many_pixels", f"{what} too large for the memory that this server may use; make it "
                        "smaller"
                    ) from None  # fmt: skip
                self._freed.wait(0.2)
                check()
        try:
            yield
        finally:
            with self._freed:
                release()
                self._freed.notify_all()

    @contextmanager
    def told(self, path: Path, name: str) -> Iterator[None]:
        """Inside, every error becomes a Refused that names the file as its owner does; Stopped, where that is asked."""
        try:
            yield
        except (Stopped, Refused):
            raise
        except Exception as error:
            check()  # what is stopped at the server's end may fail first, for want of threads
            wrong = refused(error, str(path), name)
            if wrong.status == 500:
                _log.exception("%s", name)
            raise wrong from error

    def restore(self, source: Path, name: str, settings: Settings) -> Restored:
        """The restored file beside the one that came: what `fairweather restore` writes. Raises Refused."""
        found = self.probe(source, name)
        destination = source.with_name(f"restored{SUFFIX[found.format]}")
        with self.told(source, name):
            self.offer.check(settings)
            with self.memory(source, destination, name):
                photo = read(source, max_pixels=self.limits.pixels)
                check()
                plan = self.offer.plan(lambda: self.offer.auto.recognise(photo.pixels), settings)
                if not plan.parts or settings.strength == 0:
                    return Restored(source, found, plan, False)
                pixels = self.offer.apply(photo.pixels, plan, settings.strength, settings.guard)
                check()
                write(destination, photo.replaced(pixels))
        return Restored(destination, found, plan, True)


def result_name(name: str, format: str) -> str:
    """What a result is called: `harbour.jpeg` becomes `harbour-clear.jpeg`."""
    path = Path(name)
    suffix = path.suffix if FORMATS.get(path.suffix.lower()) == format else SUFFIX[format]
    return f"{path.stem or 'photo'}-clear{suffix}"


def plain_name(name: str) -> str:
    """A file's name as it may be repeated: without folders and control characters, not long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(letter for letter in last if letter.isprintable()).strip()
    return kept[-120:] or "photo"
