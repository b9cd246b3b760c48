"""The routes for clips: of the API, where one is sent, waited for and fetched, and of the page, which plays it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from fairweather.restoring.stopping import check
from fairweather.web import clips
from fairweather.web.api import Asked
from fairweather.web.films import Job
from fairweather.web.folders import remove
from fairweather.web.limits import Refused
from fairweather.web.photos import Photos
from fairweather.web.receiving import receive
from fairweather.web.replies import attached, stored
from fairweather.web.service import Service

Steady = Annotated[bool, Query(description="smooth over time what is seen, against flicker")]
UNSTORED = {"Cache-Control": "no-store"}
PLAYED = {"Cache-Control": "private, max-age=600"}


def router(service: Service) -> APIRouter:
    """The routes below /api/v1/clips."""
    routes, films = APIRouter(prefix="/api/v1"), service.films

    async def send(
        request: Request,
        settings: Asked,
        steady: Steady = True,
        name: Annotated[str | None, Query(max_length=300, description="what the clip is called")] = None,
    ) -> Response:
        """Begin to restore the clip that is the request's body, or its part `clip`."""
        with ExitStack() as undone:
            service.offer.check(settings)  # before the clip is received
            place = undone.enter_context(ExitStack())
            place.enter_context(service.turns.place())
            folder = service.folders.new()
            undone.callback(remove, folder)
            source, called = await receive(request, folder, service.limits, name, "clip")

            def begin() -> Job:
                facts = clips.examine(source, called, service.limits)
                check()  # nobody may be waiting any more
                return films.start(Job(folder, source, called, facts, settings, steady))

            job = await service.answer(begin)
            place.close()
            undone.pop_all()
        return _begun(job)

    async def state(id: str) -> Response:
        """How far it is."""
        return JSONResponse(films.get(id).told(), headers=UNSTORED)

    async def result(id: str) -> Response:
        """The restored clip, or ranges of it, once it is done."""
        job = _done(films.get(id))
        headers = {"Content-Disposition": attached(clips.result_name(job.name, job.facts)), **UNSTORED}
        return stored(job.result, media_type=clips.TYPE[job.facts.suffix], headers=headers)

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


def played(service: Service, photos: Photos) -> APIRouter:
    """The page's routes for clips."""
    routes = APIRouter(prefix="/page", include_in_schema=False)

    async def restore(token: str, settings: Asked, steady: Steady = True) -> Response:
        return _begun(await run_in_threadpool(photos.restore, token, settings, steady))

    async def view(token: str, side: Literal["before", "after"]) -> Response:
        job = _done(service.films.get(token))
        kind = clips.TYPE[job.facts.suffix] if job.facts.plays else "video/mp4"
        return stored(job.view(side), media_type=kind, headers=PLAYED)

    routes.add_api_route("/photos/{token}/clip", restore, methods=["POST"], response_class=Response)
    routes.add_api_route("/clips/{token}/{side}", view, methods=["GET"], response_class=Response)
    return routes


def _begun(job: Job) -> Response:
    headers = {"Location": f"/api/v1/clips/{job.token}", **UNSTORED}
    return JSONResponse(job.told(), 202, headers)


def _done(job: Job) -> Job:
    if job.state == "failed":
        raise job.error or Refused(404, "gone", f"{job.name}: was stopped; send it again")
    if job.state != "done":
        raise Refused(409, "not_ready", f"{job.name}: is not restored yet; ask /api/v1/clips/{job.token} how far it is")
    return job
