"""The routes for clips: of the API, where one is sent, waited for and fetched, and of the page, which plays it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from fairweather.inference.cancellation import check_cancelled
from fairweather.web import uploads
from fairweather.web.api import RestoreQuery
from fairweather.web.jobs import PhotoService, VideoTask
from fairweather.web.limits import RequestRefused, attachment_header, stored_file
from fairweather.web.photo_routes import PagePhotos
from fairweather.web.storage import remove_tree
from fairweather.web.uploads import receive_upload

SmoothField = Annotated[bool, Query(description="smooth over time what is seen, against flicker")]
NO_STORE = {"Cache-Control": "no-store"}
PLAYABLE_TYPES = {"Cache-Control": "private, max-age=600"}


def clip_router(service: PhotoService) -> APIRouter:
    """The routes below /api/v1/clips."""
    routes, films = APIRouter(prefix="/api/v1"), service.films

    async def send(
        request: Request,
        settings: RestoreQuery,
        steady: SmoothField = True,
        name: Annotated[str | None, Query(max_length=300, description="what the clip is called")] = None,
    ) -> Response:
        """Begin to restore the clip that is the request's body, or its part `clip`."""
        with ExitStack() as undone:
            service.offer.check(settings)  # before the clip is received
            place = undone.enter_context(ExitStack())
            place.enter_context(service.turns.place())
            folder = service.folders.new()
            undone.callback(remove_tree, folder)
            source, called = await receive_upload(request, folder, service.limits, name, "clip")

            def begin() -> VideoTask:
                facts = uploads.examine(source, called, service.limits)
                check_cancelled()  # nobody may be waiting any more
                return films.start(VideoTask(folder, source, called, facts, settings, steady))

            job = await service.answer(begin)
            place.close()
            undone.pop_all()
        return _accepted(job)

    async def state(id: str) -> Response:
        """How far it is."""
        return JSONResponse(films.get(id).told(), headers=NO_STORE)

    async def result(id: str) -> Response:
        """The restored clip, or ranges of it, once it is done."""
        job = _done(films.get(id))
        headers = {"Content-Disposition": attachment_header(uploads.clip_result_name(job.name, job.facts)), **NO_STORE}
        return stored_file(job.result, media_type=uploads.CLIP_MEDIA_TYPES[job.facts.suffix], headers=headers)

    async def drop(id: str) -> Response:
        """Stop the work on it, and remove its files."""
        films.get(id)
        await run_in_threadpool(service.shelf.drop, id)
        return Response(status_code=204)

    add = partial(routes.add_api_route, response_class=Response)
    add("/clips", send, methods=["POST"], status_code=202)
    add("/clips/{id}", state, methods=["GET"])
    add("/clips/{id}", drop, methods=["DELETE"], status_code=204)
    add("/clips/{id}/result", result, methods=["GET"])
    return routes


def playable_file(service: PhotoService, photos: PagePhotos) -> APIRouter:
    """The page's routes for clips."""
    routes = APIRouter(prefix="/page", include_in_schema=False)

    async def restore(token: str, settings: RestoreQuery, steady: SmoothField = True) -> Response:
        return _accepted(await run_in_threadpool(photos.restore, token, settings, steady))

    async def view(token: str, side: Literal["before", "after"]) -> Response:
        job = _done(service.films.get(token))
        kind = uploads.CLIP_MEDIA_TYPES[job.facts.suffix] if job.facts.plays else "video/mp4"
        return stored_file(job.view(side), media_type=kind, headers=PLAYABLE_TYPES)

    routes.add_api_route("/photos/{token}/clip", restore, methods=["POST"], response_class=Response)
    routes.add_api_route("/clips/{token}/{side}", view, methods=["GET"], response_class=Response)
    return routes


def _accepted(job: VideoTask) -> Response:
    headers = {"Location": f"/api/v1/clips/{job.token}", **NO_STORE}
    return JSONResponse(job.told(), 202, headers)


def _done(job: VideoTask) -> VideoTask:
    if job.state == "failed":
        raise job.error or RequestRefused(404, "gone", f"{job.name}: was stopped; send it again")
    if job.state != "done":
        raise RequestRefused(
            409, "not_ready", f"{job.name}: is not restored yet; ask /api/v1/clips/{job.token} how far it is"
        )
    return job
