"""The photos that the page keeps for a while, so that another strength or another view of them needs no second upload.
Of a clip, a frame stands for it until it is restored.

Kept are files alone, in a folder for each photo: the file that came, what a maps network saw in it, the pixels that a
picture network made of it, and what the page shows. Between two requests nothing of a photo is in memory.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from fairweather.images.codecs import Header
from fairweather.images.formats import Kind
from fairweather.images.io import Photo, read, write
from fairweather.inference.cancellation import check_cancelled
from fairweather.inference.haze_maps import MIN_TRANSMISSION, HazeMaps
from fairweather.inference.weather_detection import RestorePlan, Weather
from fairweather.web import uploads
from fairweather.web.api import GuardField, ModelField, RestoreQuery, WeatherField
from fairweather.web.jobs import MEDIA_TYPES, SUFFIX, PhotoService, VideoTask, linked, new_folder, photo_result_name
from fairweather.web.limits import RequestRefused, TemporaryFileResponse, attachment_header, stored_file
from fairweather.web.model_registry import AUTO_MODEL, RestoreSettings
from fairweather.web.storage import remove_tree
from fairweather.web.uploads import ClipFacts, receive_upload

THUMB = 160
MAP_SIDE = 640


@dataclass
class PagePhoto:
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
    facts: ClipFacts | None = None

    @property
    def busy(self) -> bool:
        return self.lock.locked()

    def end(self) -> None:
        """Nothing is done with it between two requests."""

    @property
    def direct(self) -> bool:
        """Whether a browser shows the very file that came, and the very result."""
        return self.header.format == "JPEG" and not self.header.inks


class PhotoFile(NamedTuple):
    """A file to send."""

    path: Path
    passing: Path | None = None
    """The folder to remove once it is sent."""


class PagePhotos:
    """The kept photos of all who look at the page."""

    def __init__(self, service: PhotoService) -> None:
        self.service = service
        self._shelf = service.shelf

    def __len__(self) -> int:
        return sum(isinstance(kept, PagePhoto) for kept in self._shelf.all())

    def add(self, folder: Path, source: Path, name: str) -> PagePhoto:
        """Keep a file that came in. Raises Refused, and removes it, where it is no photo or clip within the limits."""
        try:
            if uploads.is_clip_upload(uploads.start_of(source)):
                kept = self._clip(folder, source, name)
            else:
                kept = PagePhoto(secrets.token_urlsafe(16), folder, source, name, self.service.probe(source, name))
        except RequestRefused:
            remove_tree(folder)
            raise
        self._shelf.add(kept)
        return kept

    def get(self, token: str) -> PagePhoto:
        """The photo of this token. Raises Refused (404) where it is gone."""
        kept = self._shelf.get(token)
        if not isinstance(kept, PagePhoto):
            minutes = self.service.limits.keep
            raise RequestRefused(
                404, "gone", f"this photo is not here any more (photos stay {minutes:g} min); send it again"
            )
        return kept

    def drop(self, token: str) -> None:
        """Forget a photo at once; one that is not here is gone already. A restored clip's token is none of a photo."""
        if isinstance(self._shelf.get(token), PagePhoto):
            self._shelf.drop(token)

    def restore(self, token: str, settings: RestoreSettings, steady: bool) -> VideoTask:
        """Begin to restore a clip, as its frame is now restored. Raises Refused: 422 where it is a photo, 503."""
        kept = self.get(token)
        clip, facts = kept.clip, kept.facts
        if clip is None or facts is None:
            raise RequestRefused(422, "bad_setting", f"{kept.name}: is a photo; clips alone are restored by this path")
        self.service.offer.check(settings)
        return new_folder(
            self.service,
            lambda folder: VideoTask(
                folder, linked(clip, folder), kept.name, facts, settings, steady, weather=kept.weather, shown=True
            ),
        )

    def _clip(self, folder: Path, source: Path, name: str) -> PagePhoto:
        service = self.service
        facts = uploads.examine(source, name, service.limits)
        frame = folder / "frame.jpg"
        try:
            with service.room(facts.memory // 4, name):
                write(frame, uploads.middle_frame(source, facts, service.limits))
        except Exception as error:
            raise uploads.clip_error(error, source, name, service.limits) from error
        return PagePhoto(
            secrets.token_urlsafe(16), folder, frame, name, service.probe(frame, name), clip=source, facts=facts
        )

    def look(self, token: str, settings: RestoreSettings) -> dict[str, Any]:
        """Restore the photo at full strength, and say what was seen and done; the files for the page are then there."""
        kept = self.get(token)
        with kept.lock, self._at(kept) as photo:
            plan = self._plan(kept, photo, settings)
            self._forget(kept, settings)
            if not (kept.folder / "before.jpg").exists() and not kept.direct:
                self._write(kept.folder / "before.jpg", photo, True)
            if not (kept.folder / "thumb.jpg").exists():
                write(kept.folder / "thumb.jpg", _small(photo.pixels))
            check_cancelled()
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
            "lacking": plan.missing,
            "exact": not plan.parts or self._maps(plan) is not None,
            "download": photo_result_name(kept.name, header.format),
            "clip": kept.facts and {"frames": kept.facts.frames, "seconds": kept.facts.seconds},
        }

    def file(self, token: str, settings: RestoreSettings, view: bool) -> PhotoFile:
        """The result in the format of what came, or what a browser shows of it; at any strength."""
        kept = self.get(token)
        with kept.lock:
            whole, view = self._full(kept, settings, view), view and not kept.direct
            if settings.strength == 1 and whole.exists():
                return PhotoFile(whole)
            if settings.strength == 0:
                return PhotoFile(self.before(token) if view else kept.source)
            with self._at(kept) as photo:
                plan = self._plan(kept, photo, settings)
                if not plan.parts:
                    return PhotoFile(self.before(token) if view else kept.source)
                pixels = self._pixels(kept, photo, plan, settings)
                check_cancelled()
                if settings.strength == 1:
                    self._write(whole, photo.replaced(pixels), view)
                    return PhotoFile(whole)
                folder = self.service.folders.new()
                path = folder / f"result{whole.suffix}"
                try:
                    self._write(path, photo.replaced(pixels), view)
                except BaseException:
                    remove_tree(folder)
                    raise
                return PhotoFile(path, folder)

    def before(self, token: str) -> Path:
        """The photo as it came, for a browser. It is there once somebody has looked."""
        kept = self.get(token)
        return kept.source if kept.direct else kept.folder / "before.jpg"

    def thumb(self, token: str) -> Path:
        """A small one; there once somebody has looked."""
        return self.get(token).folder / "thumb.jpg"

    def map(self, token: str, settings: RestoreSettings) -> Path:
        """How much haze a maps network sees where, 1 - transmission, as colours. Raises Refused where there is none."""
        kept, offer = self.get(token), self.service.offer
        named = [settings.model] if settings.model != AUTO_MODEL else [offer.auto.models["haze"]]
        model = next((name for name in named if name in offer.cards and offer.cards[name].output == "maps"), None)
        if model is None:
            raise RequestRefused(
                404, "no_map", f"model {settings.model} makes no transmission map; take auto or dehaze"
            )
        path = kept.folder / f"map-{model}.png"
        with kept.lock:
            if not path.exists():
                with self._at(kept) as photo:
                    write(path, _coloured(self._seen(kept, photo, model), kept.header))
        return path

    @contextmanager
    def _at(self, kept: PagePhoto) -> Iterator[Photo]:
        """The decoded photo, with the memory that it takes; errors name it as its owner does."""
        service = self.service
        with service.told(kept.source, kept.name), service.memory(kept.source, kept.source, kept.name):
            yield read(kept.source, max_pixels=service.limits.pixels)

    def _write(self, path: Path, photo: Photo, view: bool) -> None:
        write(path, _shown(photo) if view else photo)

    def _plan(self, kept: PagePhoto, photo: Photo, settings: RestoreSettings) -> RestorePlan:
        def look() -> Weather:
            if kept.weather is None:
                recognise = self.service.offer.auto.detect
                if kept.clip is not None and kept.facts is not None:  # the whole clip's, which it is restored by
                    kept.weather = uploads.clip_weather(kept.clip, kept.facts, self.service.limits, recognise)
                else:
                    kept.weather = recognise(photo.pixels)
            return kept.weather

        self.service.offer.check(settings)
        look()  # the page tells it whatever was asked for
        return self.service.offer.plan(look, settings)

    def _maps(self, plan: RestorePlan) -> str | None:
        """The model whose maps alone restore the photo: at any strength without asking it again."""
        if len(plan.parts) != 1:
            return None
        model = plan.parts[0].model
        return model if self.service.offer.cards[model].output == "maps" else None

    def _pixels(self, kept: PagePhoto, photo: Photo, plan: RestorePlan, settings: RestoreSettings) -> NDArray[Any]:
        offer, strength = self.service.offer, settings.strength
        if (model := self._maps(plan)) is not None:
            seen = self._seen(kept, photo, model)
            return offer.restorer(model).apply_maps(photo.pixels, seen, strength * plan.parts[0].amount, settings.guard)
        path = kept.folder / f"pixels-{settings.key}.npy"
        if strength == 1 and path.exists():
            made: NDArray[Any] = np.load(path, allow_pickle=False)
            return made
        pixels = offer.auto.apply(photo.pixels, plan, strength, settings.guard)
        if strength == 1:
            np.save(path, pixels)
        return pixels

    def _seen(self, kept: PagePhoto, photo: Photo, model: str) -> HazeMaps:
        path = kept.folder / f"seen-{model}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as found:
                return HazeMaps(found["reduced"], found["maps"])
        seen = self.service.offer.restorer(model).predict_maps(photo.pixels)
        np.savez(path, reduced=seen.reduced, maps=seen.maps)
        return seen

    def _full(self, kept: PagePhoto, settings: RestoreSettings, view: bool) -> Path:
        """Where the result at full strength is kept."""
        if view and not kept.direct:
            return kept.folder / f"view-{settings.key}.jpg"
        return kept.folder / f"full-{settings.key}{SUFFIX[kept.header.format]}"

    def _forget(self, kept: PagePhoto, settings: RestoreSettings) -> None:
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


def _coloured(seen: HazeMaps, header: Header) -> NDArray[np.uint8]:
    """The light that the haze takes, 1 - t, from dark violet (none) to yellow (the most that is seen); H' x W' x 3."""
    factor = min(1.0, MAP_SIDE / max(header.width, header.height))
    width, height = max(1, round(header.width * factor)), max(1, round(header.height * factor))
    haze = cv2.resize((1 - seen.maps[0, 0]) / (1 - MIN_TRANSMISSION), (width, height), interpolation=cv2.INTER_CUBIC)
    bytes_ = np.rint(np.clip(haze, 0, 1) * 255).astype(np.uint8)
    coloured: NDArray[np.uint8] = cv2.cvtColor(cv2.applyColorMap(bytes_, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return coloured


# The routes behind the page: a photo is sent once, then looked at, restored in other ways, and fetched.

WEB_FOLDER = Path(__file__).resolve().parent
EXAMPLES = WEB_FOLDER / "examples"
STATIC_FOLDER = {
    "page.js": "text/javascript",
    "clips.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


def examples() -> list[str]:
    """Names of the photos that come with the page."""
    return sorted(path.name for path in EXAMPLES.glob("*.jpg"))


def page_router(service: PhotoService, photos: PagePhotos) -> APIRouter:
    """The routes below /page."""
    routes = APIRouter(prefix="/page", include_in_schema=False)

    async def send(request: Request, name: str = "photo") -> dict[str, Any]:
        """Keep the body as a photo; gives its token."""
        with service.turns.place(), ExitStack() as undone:
            folder = service.folders.new()
            undone.callback(remove_tree, folder)
            source, called = await receive_upload(request, folder, service.limits, name)
            kept = await service.answer(lambda: photos.add(folder, source, called))
            undone.pop_all()
        return {"token": kept.token, "name": kept.name, "width": kept.header.width, "height": kept.header.height}

    async def look(
        token: str, model: ModelField = AUTO_MODEL, weather: WeatherField = AUTO_MODEL, guard: GuardField = True
    ) -> dict[str, Any]:
        with service.turns.place():
            return await service.answer(lambda: photos.look(token, RestoreSettings(model, weather, 1.0, guard)))

    async def after(token: str, settings: RestoreQuery) -> Response:
        return await _file(token, settings, True, {"Cache-Control": "no-store"})

    async def file(token: str, settings: RestoreQuery) -> Response:
        kept = photos.get(token)
        name = photo_result_name(kept.name, kept.header.format)
        headers = {"Content-Disposition": attachment_header(name), "Cache-Control": "no-store"}
        return await _file(token, settings, False, headers)

    async def _file(token: str, settings: RestoreSettings, view: bool, headers: dict[str, str]) -> Response:
        with ExitStack() as held:
            held.enter_context(service.turns.place())
            found: PhotoFile = await service.answer(lambda: photos.file(token, settings, view))
            if found.passing is not None:
                held.callback(remove_tree, found.passing)
            kind = "image/jpeg" if found.path.suffix == ".jpg" else MEDIA_TYPES[photos.get(token).header.format]
            return TemporaryFileResponse(found.path, held.pop_all().close, media_type=kind, headers=headers)

    async def shade(token: str, model: ModelField = AUTO_MODEL) -> Response:
        with service.turns.place():
            path = await service.answer(lambda: photos.map(token, RestoreSettings(model)))
        return stored_file(path, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def plain(token: str, find: Callable[[str], Path]) -> Response:
        return stored_file(find(token), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def before(token: str) -> Response:
        return await plain(token, photos.before)

    async def thumb(token: str) -> Response:
        return await plain(token, photos.thumb)

    async def drop(token: str) -> Response:
        await run_in_threadpool(photos.drop, token)
        return Response(status_code=204)

    get = partial(routes.add_api_route, methods=["GET"], response_class=Response)
    routes.add_api_route("/photos", send, methods=["POST"])
    routes.add_api_route("/photos/{token}/look", look, methods=["POST"])
    routes.add_api_route("/photos/{token}", drop, methods=["DELETE"], response_class=Response)
    get("/photos/{token}/before", before)
    get("/photos/{token}/after", after)
    get("/photos/{token}/thumb", thumb)
    get("/photos/{token}/map", shade)
    get("/photos/{token}/file", file)
    for name, kind in STATIC_FOLDER.items():
        get(f"/static/{name}", _still_image(WEB_FOLDER / "static" / name, kind))
    for name in examples():
        get(f"/examples/{name}", _still_image(EXAMPLES / name, "image/jpeg"))
    return routes


def _still_image(path: Path, kind: str) -> Callable[[], Any]:
    """What answers with a file of the package."""

    async def answer() -> Response:
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer
