"""The photos that the page keeps for a while, so that another strength or another view of them needs no second upload.
Of a clip, a frame stands for it until it is restored.

Kept are files alone, in a folder for each photo: the file that came, what a maps network saw in it, the pixels that a
picture network made of it, and what the page shows. Between two requests nothing of a photo is in memory.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.images import Photo, read, write
from fairweather.images.formats import Kind
from fairweather.images.headers import Header
from fairweather.restoring.apply import MIN_TRANSMISSION
from fairweather.restoring.recognise import Weather
from fairweather.restoring.restorer import Seen
from fairweather.restoring.stopping import check
from fairweather.web import clips
from fairweather.web.clips import Facts
from fairweather.web.films import Job, linked, new_folder
from fairweather.web.folders import remove
from fairweather.web.limits import Refused
from fairweather.web.offer import AUTO, Plan, Settings
from fairweather.web.service import SUFFIX, Service, result_name

THUMB = 160
MAP_SIDE = 640


@dataclass
class Kept:
    """One photo on the server."""

    token: str
    """What its owner asks for it with; 128 bits by chance."""
    folder: Path
    source: Path
    name: str
    header: Header
    used: float = field(default_factory=time.monotonic)
    weather: Weather | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    clip: Path | None = None
    """The file that came, where that is a clip; `source` is a frame of it then."""
    facts: Facts | None = None

    @property
    def busy(self) -> bool:
        return self.lock.locked()

    def end(self) -> None:
        """Nothing is done with it between two requests."""

    @property
    def direct(self) -> bool:
        """Whether a browser shows the very file that came, and the very result."""
        return self.header.format == "JPEG" and not self.header.inks


class File(NamedTuple):
    """A file to send."""

    path: Path
    passing: Path | None = None
    """The folder to remove once it is sent."""


class Photos:
    """The kept photos of all who look at the page."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._shelf = service.shelf

    def __len__(self) -> int:
        return sum(isinstance(kept, Kept) for kept in self._shelf.all())

    def add(self, folder: Path, source: Path, name: str) -> Kept:
        """Keep a file that came in. Raises Refused, and removes it, where it is no photo or clip within the limits."""
        try:
            if clips.is_clip(clips.start_of(source)):
                kept = self._clip(folder, source, name)
            else:
                kept = Kept(secrets.token_urlsafe(16), folder, source, name, self.service.probe(source, name))
        except Refused:
            remove(folder)
            raise
        self._shelf.add(kept)
        return kept

    def get(self, token: str) -> Kept:
        """The photo of this token. Raises Refused (404) where it is gone."""
        kept = self._shelf.get(token)
        if not isinstance(kept, Kept):
            minutes = self.service.limits.keep
            raise Refused(404, "gone", f"this photo is not here any more (photos stay {minutes:g} min); send it again")
        return kept

    def drop(self, token: str) -> None:
        """Forget a photo at once; one that is not here is gone already. A restored clip's token is none of a photo."""
        if isinstance(self._shelf.get(token), Kept):
            self._shelf.drop(token)

    def restore(self, token: str, settings: Settings, steady: bool) -> Job:
        """Begin to restore a clip, as its frame is now restored. Raises Refused: 422 where it is a photo, 503."""
        kept = self.get(token)
        clip, facts = kept.clip, kept.facts
        if clip is None or facts is None:
            raise Refused(422, "bad_setting", f"{kept.name}: is a photo; clips alone are restored by this path")
        self.service.offer.check(settings)
        return new_folder(
            self.service,
            lambda folder: Job(
                folder, linked(clip, folder), kept.name, facts, settings, steady, weather=kept.weather, shown=True
            ),
        )

    def _clip(self, folder: Path, source: Path, name: str) -> Kept:
        service = self.service
        facts = clips.examine(source, name, service.limits)
        frame = folder / "frame.jpg"
        try:
            with service.room(facts.memory // 4, name):
                write(frame, clips.middle(source, facts, service.limits))
        except Exception as error:
            raise clips.wrong(error, source, name, service.limits) from error
        return Kept(
            secrets.token_urlsafe(16), folder, frame, name, service.probe(frame, name), clip=source, facts=facts
        )

    def look(self, token: str, settings: Settings) -> dict[str, Any]:
        """Restore the photo at full strength, and say what was seen and done; the files for the page are then there."""
        kept = self.get(token)
        with kept.lock, self._at(kept) as photo:
            plan = self._plan(kept, photo, settings)
            self._forget(kept, settings)
            if not (kept.folder / "before.jpg").exists() and not kept.direct:
                self._write(kept.folder / "before.jpg", photo, True)
            if not (kept.folder / "thumb.jpg").exists():
                write(kept.folder / "thumb.jpg", _small(photo.pixels))
            check()
            if plan.parts:
                pixels = self._pixels(kept, photo, plan, settings)
                self._write(self._full(kept, settings, True), photo.replaced(pixels), not kept.direct)
        seen, header = kept.weather, kept.header
        return {
            "token": token,
            "name": kept.name,
            "width": header.width,
            "height": header.height,
            "format": header.format,
            "weather": seen and {"haze": seen.haze, "rain": seen.rain, "decided": seen.decided, "sure": seen.sure},
            "parts": [part._asdict() for part in plan.parts],
            "lacking": plan.lacking,
            "exact": not plan.parts or self._maps(plan) is not None,
            "download": result_name(kept.name, header.format),
            "clip": kept.facts and {"frames": kept.facts.frames, "seconds": kept.facts.seconds},
        }

    def file(self, token: str, settings: Settings, view: bool) -> File:
        """The result in the format of what came, or what a browser shows of it; at any strength."""
        kept = self.get(token)
        with kept.lock:
            whole, view = self._full(kept, settings, view), view and not kept.direct
            if settings.strength == 1 and whole.exists():
                return File(whole)
            if settings.strength == 0:
                return File(self.before(token) if view else kept.source)
            with self._at(kept) as photo:
                plan = self._plan(kept, photo, settings)
                if not plan.parts:
                    return File(self.before(token) if view else kept.source)
                pixels = self._pixels(kept, photo, plan, settings)
                check()
                if settings.strength == 1:
                    self._write(whole, photo.replaced(pixels), view)
                    return File(whole)
                folder = self.service.folders.new()
                path = folder / f"result{whole.suffix}"
                try:
                    self._write(path, photo.replaced(pixels), view)
                except BaseException:
                    remove(folder)
                    raise
                return File(path, folder)

    def before(self, token: str) -> Path:
        """The photo as it came, for a browser. It is there once somebody has looked."""
        kept = self.get(token)
        return kept.source if kept.direct else kept.folder / "before.jpg"

    def thumb(self, token: str) -> Path:
        """A small one; there once somebody has looked."""
        return self.get(token).folder / "thumb.jpg"

    def map(self, token: str, settings: Settings) -> Path:
        """How much haze a maps network sees where, 1 - transmission, as colours. Raises Refused where there is none."""
        kept, offer = self.get(token), self.service.offer
        named = [settings.model] if settings.model != AUTO else [offer.auto.models["haze"]]
        model = next((name for name in named if name in offer.cards and offer.cards[name].output == "maps"), None)
        if model is None:
            raise Refused(404, "no_map", f"model {settings.model} makes no transmission map; take auto or dehaze")
        path = kept.folder / f"map-{model}.png"
        with kept.lock:
            if not path.exists():
                with self._at(kept) as photo:
                    write(path, _coloured(self._seen(kept, photo, model), kept.header))
        return path

    @contextmanager
    def _at(self, kept: Kept) -> Iterator[Photo]:
        """The decoded photo, with the memory that it takes; errors name it as its owner does."""
        service = self.service
        with service.told(kept.source, kept.name), service.memory(kept.source, kept.source, kept.name):
            yield read(kept.source, max_pixels=service.limits.pixels)

    def _write(self, path: Path, photo: Photo, view: bool) -> None:
        write(path, _shown(photo) if view else photo)

    def _plan(self, kept: Kept, photo: Photo, settings: Settings) -> Plan:
        def look() -> Weather:
            if kept.weather is None:
                recognise = self.service.offer.auto.recognise
                if kept.clip is not None and kept.facts is not None:  # the whole clip's, which it is restored by
                    kept.weather = clips.weather(kept.clip, kept.facts, self.service.limits, recognise)
                else:
                    kept.weather = recognise(photo.pixels)
            return kept.weather

        self.service.offer.check(settings)
        look()  # the page tells it whatever was asked for
        return self.service.offer.plan(look, settings)

    def _maps(self, plan: Plan) -> str | None:
        """The model whose maps alone restore the photo: at any strength without asking it again."""
        if len(plan.parts) != 1:
            return None
        model = plan.parts[0].model
        return model if self.service.offer.cards[model].output == "maps" else None

    def _pixels(self, kept: Kept, photo: Photo, plan: Plan, settings: Settings) -> NDArray[Any]:
        offer, strength = self.service.offer, settings.strength
        if (model := self._maps(plan)) is not None:
            seen = self._seen(kept, photo, model)
            return offer.restorer(model).applied(photo.pixels, seen, strength * plan.parts[0].amount, settings.guard)
        path = kept.folder / f"pixels-{settings.key}.npy"
        if strength == 1 and path.exists():
            made: NDArray[Any] = np.load(path, allow_pickle=False)
            return made
        pixels = offer.apply(photo.pixels, plan, strength, settings.guard)
        if strength == 1:
            np.save(path, pixels)
        return pixels

    def _seen(self, kept: Kept, photo: Photo, model: str) -> Seen:
        path = kept.folder / f"seen-{model}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as found:
                return Seen(found["reduced"], found["maps"])
        seen = self.service.offer.restorer(model).seen(photo.pixels)
        np.savez(path, reduced=seen.reduced, maps=seen.maps)
        return seen

    def _full(self, kept: Kept, settings: Settings, view: bool) -> Path:
        """Where the result at full strength is kept."""
        if view and not kept.direct:
            return kept.folder / f"view-{settings.key}.jpg"
        return kept.folder / f"full-{settings.key}{SUFFIX[kept.header.format]}"

    def _forget(self, kept: Kept, settings: Settings) -> None:
        """Results of other settings go: there is one view of a photo at a time."""
        for kind in ("view", "full", "pixels"):
            for path in kept.folder.glob(f"{kind}-*"):
                if not path.stem.startswith(f"{kind}-{settings.key}"):
                    path.unlink(missing_ok=True)


def _shown(photo: Photo) -> Photo:
    """The same picture for a browser: without inks and EXIF, with its profile where that is one of RGB."""
    profile = photo.kind.icc if photo.kind.mode in ("RGB", "RGBA") else b""
    return replace(photo, inks=None, kind=Kind(icc=profile))


def _small(pixels: NDArray[Any]) -> NDArray[Any]:
    factor = THUMB / min(pixels.shape[:2])
    if factor < 1:
        width, height = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return pixels


def _coloured(seen: Seen, header: Header) -> NDArray[np.uint8]:
    """The light that the haze takes, 1 - t, from dark violet (none) to yellow (the most that is seen); H' x W' x 3."""
    factor = min(1.0, MAP_SIDE / max(header.width, header.height))
    width, height = max(1, round(header.width * factor)), max(1, round(header.height * factor))
    haze = cv2.resize((1 - seen.maps[0, 0]) / (1 - MIN_TRANSMISSION), (width, height), interpolation=cv2.INTER_CUBIC)
    bytes_ = np.rint(np.clip(haze, 0, 1) * 255).astype(np.uint8)
    coloured: NDArray[np.uint8] = cv2.cvtColor(cv2.applyColorMap(bytes_, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return coloured
