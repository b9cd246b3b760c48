"""The routes behind the page: a photo is sent once, then looked at, restored in other ways, and fetched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from fairweather.web.api import Asked, Guard, Model, Weather
from fairweather.web.folders import remove
from fairweather.web.offer import AUTO, Settings
from fairweather.web.photos import File, Photos
from fairweather.web.receiving import receive
from fairweather.web.replies import PassingFile, attached, stored
from fairweather.web.service import TYPE, Service, result_name

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "examples"
STATIC = {
    "page.js": "text/javascript",
    "clips.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


def examples() -> list[str]:
    """Names of the photos that come with the page."""
    return sorted(path.name for path in EXAMPLES.glob("*.jpg"))


def router(service: Service, photos: Photos) -> APIRouter:
    """The routes below /page."""
    routes = APIRouter(prefix="/page", include_in_schema=False)

    async def send(request: Request, name: str = "photo") -> dict[str, Any]:
        """Keep the body as a photo; gives its token."""
        with service.turns.place(), ExitStack() as undone:
            folder = service.folders.new()
            undone.callback(remove, folder)
            source, called = await receive(request, folder, service.limits, name)
            kept = await service.answer(lambda: photos.add(folder, source, called))
            undone.pop_all()
        return {"token": kept.token, "name": kept.name, "width": kept.header.width, "height": kept.header.height}

    async def look(token: str, model: Model = AUTO, weather: Weather = AUTO, guard: Guard = True) -> dict[str, Any]:
        with service.turns.place():
            return await service.answer(lambda: photos.look(token, Settings(model, weather, 1.0, guard)))

    async def after(token: str, settings: Asked) -> Response:
        return await _file(token, settings, True, {"Cache-Control": "no-store"})

    async def file(token: str, settings: Asked) -> Response:
        kept = photos.get(token)
        name = result_name(kept.name, kept.header.format)
        headers = {"Content-Disposition": attached(name), "Cache-Control": "no-store"}
        return await _file(token, settings, False, headers)

    async def _file(token: str, settings: Settings, view: bool, headers: dict[str, str]) -> Response:
        with ExitStack() as held:
            held.enter_context(service.turns.place())
            found: File = await service.answer(lambda: photos.file(token, settings, view))
            if found.passing is not None:
                held.callback(remove, found.passing)
            kind = "image/jpeg" if found.path.suffix == ".jpg" else TYPE[photos.get(token).header.format]
            return PassingFile(found.path, held.pop_all().close, media_type=kind, headers=headers)

    async def shade(token: str, model: Model = AUTO) -> Response:
        with service.turns.place():
            path = await service.answer(lambda: photos.map(token, Settings(model)))
        return stored(path, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def plain(token: str, find: Callable[[str], Path]) -> Response:
        return stored(find(token), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

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
    for name, kind in STATIC.items():
        get(f"/static/{name}", _still(HERE / "static" / name, kind))
    for name in examples():
        get(f"/examples/{name}", _still(EXAMPLES / name, "image/jpeg"))
    return routes


def _still(path: Path, kind: str) -> Callable[[], Any]:
    """What answers with a file of the package."""

    async def answer() -> Response:
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer
