"""The whole application: the API, the photos of the page, the page, and the gate before them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import fairweather
from fairweather.errors import FairweatherError
from fairweather.web import api, clip_routes, photo_routes
from fairweather.web.jobs import PhotoService
from fairweather.web.limits import RequestRefused, as_refusal, error_response
from fairweather.web.middleware import RequestFilter
from fairweather.web.photo_routes import PagePhotos

TIDYING = 30.0
"""Seconds between two looks for photos and clips whose time is over."""

_log = logging.getLogger("fairweather")


def create(service: PhotoService, *, hosts: Iterable[str] | None = None, page: bool = True) -> Any:
    """The ASGI application of a service. Without `page` there is the API alone, and Gradio is not imported."""
    photos, drawn = PagePhotos(service), None
    if page:
        from fairweather.web.page import mount_page

        drawn = mount_page(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), service)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        async def tidy() -> None:
            while True:
                await asyncio.sleep(TIDYING)
                await asyncio.to_thread(service.shelf.tidy)

        task = asyncio.create_task(tidy())
        try:
            async with drawn.router.lifespan_context(drawn) if drawn else nullcontext():
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(
        title="fairweather",
        version=fairweather.__version__,
        lifespan=living,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.add_exception_handler(FairweatherError, _refused)
    app.add_exception_handler(OSError, _refused)  # the disk may be full anywhere
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    app.include_router(api.api_router(service))
    app.include_router(clip_routes.clip_router(service))
    if drawn is not None:
        app.include_router(clip_routes.playable_file(service, photos))
        app.include_router(photo_routes.page_router(service, photos))
    return RequestFilter(app, drawn, hosts)


async def _refused(request: Request, error: Exception) -> Response:
    told = as_refusal(error)
    if told.status == 500 and told is not error:
        _log.error("%s", request.url.path, exc_info=error)
    return error_response(told)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = error.errors()[0]
    name = str(wrong["loc"][-1])
    return error_response(
        RequestRefused(422, "bad_setting", f"{name}: {wrong['msg']}, not {str(wrong.get('input'))[:60]!r}")
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "no_such_path", 405: "not_allowed"}.get(error.status_code, "refused")
    wrong = RequestRefused(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}")
    return error_response(wrong)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(RequestRefused(500, "failed", "the server failed on this request; its log says why"))
