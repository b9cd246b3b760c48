"""The HTTP API, version 1: one photo in, one photo out. `docs/api.md` describes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

import fairweather
from fairweather.web.folders import remove
from fairweather.web.offer import AUTO, Plan, Settings
from fairweather.web.receiving import receive
from fairweather.web.replies import PassingFile, attached
from fairweather.web.service import TYPE, Service, result_name

Model = Annotated[str, Query(max_length=100, description="auto, or a name of /api/v1/models")]
Weather = Annotated[str, Query(max_length=20, description="with model auto: auto, haze, rain, both or none")]
Strength = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="0 is the photo, 1 all that is done")]
Guard = Annotated[bool, Query(description="keep casts, noise and clipped pixels off that a model makes")]


async def asked(
    model: Model = AUTO, weather: Weather = AUTO, strength: Strength = 1.0, guard: Guard = True
) -> Settings:
    """What a request's query says is to be done."""
    return Settings(model, weather, strength, guard)


Asked = Annotated[Settings, Depends(asked)]


def router(service: Service) -> APIRouter:
    """The routes below /api/v1."""
    routes = APIRouter(prefix="/api/v1")

    async def restore(
        request: Request,
        settings: Asked,
        name: Annotated[str | None, Query(max_length=300, description="what the photo is called")] = None,
    ) -> Response:
        """Restore the photo that is the request's body, or its part `photo`."""
        with ExitStack() as held:
            service.offer.check(settings)  # before the photo is received
            held.enter_context(service.turns.place())
            folder = service.folders.new()
            held.callback(remove, folder)
            source, called = await receive(request, folder, service.limits, name)
            done = await service.answer(lambda: service.restore(source, called, settings))
            headers = {
                "Content-Disposition": attached(result_name(called, done.header.format)),
                "Cache-Control": "no-store",
                "X-Fairweather-Changed": str(done.changed).lower(),
                **_told(done.plan),
            }
            leave = held.pop_all()
            return PassingFile(done.path, leave.close, media_type=TYPE[done.header.format], headers=headers)

    async def models() -> dict[str, Any]:
        """The models that can be asked for."""
        named = [
            {"name": name, "weather": card.weather, "output": card.output, "direction": card.direction,
             "description": card.description, "licence": card.licence, "terms": card.terms}
            for name, card in service.offer.cards.items()
        ]  # fmt: skip
        return {"default": AUTO, "models": named}

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


def _told(plan: Plan) -> dict[str, str]:
    """What was seen and done, as headers."""
    told = {"X-Fairweather-Models": ", ".join(part.model for part in plan.parts) or "none"}
    if plan.weather is not None:
        told |= {
            "X-Fairweather-Weather": plan.weather.decided,
            "X-Fairweather-Haze": f"{plan.weather.haze:.4f}",
            "X-Fairweather-Rain": f"{plan.weather.rain:.4f}",
        }
    return told
