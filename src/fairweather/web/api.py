"""The HTTP API, version 1: one photo in, one photo out. `docs/api.md` describes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

import fairweather
from fairweather.inference.weather_detection import RestorePlan
from fairweather.web.jobs import MEDIA_TYPES, PhotoService, photo_result_name
from fairweather.web.limits import TemporaryFileResponse, attachment_header
from fairweather.web.model_registry import AUTO_MODEL, RestoreSettings
from fairweather.web.storage import remove_tree
from fairweather.web.uploads import receive_upload

ModelField = Annotated[str, Query(max_length=100, description="auto, or a name of /api/v1/models")]
WeatherField = Annotated[str, Query(max_length=20, description="with model auto: auto, haze, rain, both or none")]
StrengthField = Annotated[
    float, Query(ge=0, le=1, allow_inf_nan=False, description="0 is the photo, 1 all that is done")
]
GuardField = Annotated[bool, Query(description="keep casts, noise and clipped pixels off that a model makes")]


async def asked(
    model: ModelField = AUTO_MODEL,
    weather: WeatherField = AUTO_MODEL,
    strength: StrengthField = 1.0,
    guard: GuardField = True,
) -> RestoreSettings:
    """What a request's query says is to be done."""
    return RestoreSettings(model, weather, strength, guard)


RestoreQuery = Annotated[RestoreSettings, Depends(asked)]


def api_router(service: PhotoService) -> APIRouter:
    """The routes below /api/v1."""
    routes = APIRouter(prefix="/api/v1")

    async def restore(
        request: Request,
        settings: RestoreQuery,
        name: Annotated[str | None, Query(max_length=300, description="what the photo is called")] = None,
    ) -> Response:
        """Restore the photo that is the request's body, or its part `photo`."""
        with ExitStack() as held:
            service.offer.check(settings)  # before the photo is received
            held.enter_context(service.turns.place())
            folder = service.folders.new()
            held.callback(remove_tree, folder)
            source, called = await receive_upload(request, folder, service.limits, name)
            done = await service.answer(lambda: service.restore(source, called, settings))
            headers = {
                "Content-Disposition": attachment_header(photo_result_name(called, done.header.format)),
                "Cache-Control": "no-store",
                "X-Fairweather-Changed": str(done.changed).lower(),
                **_result_headers(done.plan),
            }
            leave = held.pop_all()
            return TemporaryFileResponse(
                done.path, leave.close, media_type=MEDIA_TYPES[done.header.format], headers=headers
            )

    async def models() -> dict[str, Any]:
        """The models that can be asked for."""
        named = [
            {"name": name, "weather": card.weather, "output": card.output, "direction": card.direction,
             "description": card.description, "licence": card.licence, "terms": card.terms}
            for name, card in service.offer.cards.items()
        ]  # fmt: skip
        return {"default": AUTO_MODEL, "models": named}

    async def health() -> dict[str, Any]:
        """Whether the server is there, what it is, and how busy."""
        limits = service.limits
        return {
            "status": "ok",
            "version": fairweather.__version__,
            "inside": service.turns.taken,
            "limits": {
                "bytes": limits.bytes, "pixels": limits.pixels, "seconds": limits.seconds,
                "at_once": limits.at_once, "waiting": limits.waiting,
                "clip_seconds": limits.length, "clip_work": limits.work,
            },
        }  # fmt: skip

    routes.add_api_route("/restore", restore, methods=["POST"], response_class=Response)
    routes.add_api_route("/models", models, methods=["GET"])
    routes.add_api_route("/health", health, methods=["GET"])
    return routes


def _result_headers(plan: RestorePlan) -> dict[str, str]:
    """What was seen and done, as headers."""
    told = {"X-Fairweather-Models": ", ".join(part.model for part in plan.parts) or "none"}
    if plan.weather is not None:
        told |= {
            "X-Fairweather-Weather": plan.weather.decided,
            "X-Fairweather-Haze": f"{plan.weather.haze:.4f}",
            "X-Fairweather-Rain": f"{plan.weather.rain:.4f}",
        }
    return told
