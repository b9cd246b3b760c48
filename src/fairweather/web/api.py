"""The HTTP API, version 1: photos in and out in one request, videos as jobs. `docs/api.md` describes it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

import fairweather
from fairweather.inference.cancellation import check_cancelled
from fairweather.inference.weather_detection import Weather
from fairweather.web import uploads
from fairweather.web.jobs import MEDIA_TYPES, Service, TaskState, VideoTask, photo_result_name
from fairweather.web.limits import Limits, RequestRefused
from fairweather.web.model_registry import AUTO_MODEL, RestoreSettings
from fairweather.web.storage import remove_tree

ModelQuery = Annotated[str, Query(max_length=100, description="auto, or a name listed by /api/v1/models")]
WeatherQuery = Annotated[
    Literal["auto", "haze", "rain", "both", "none"],
    Query(description="what to remove (only with model auto); auto removes what is detected"),
]
StrengthQuery = Annotated[
    float, Query(ge=0, le=1, allow_inf_nan=False, description="0 returns the photo, 1 removes all of the weather")
]
GuardQuery = Annotated[bool, Query(description="suppress colour casts, noise and clipping that a model adds")]
SmoothQuery = Annotated[bool, Query(description="smooth estimates over time, against flicker")]
NameQuery = Annotated[str | None, Query(max_length=300, description="the file's name, for messages and downloads")]
VideoId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]+$", max_length=64, description="from POST /api/v1/videos")]
NO_STORE = {"Cache-Control": "no-store"}
BINARY = {"schema": {"type": "string", "format": "binary"}}


async def _settings(
    model: ModelQuery = AUTO_MODEL,
    weather: WeatherQuery = "auto",
    strength: StrengthQuery = 1.0,
    guard: GuardQuery = True,
) -> RestoreSettings:
    return RestoreSettings(model, weather, strength, guard)


SettingsQuery = Annotated[RestoreSettings, Depends(_settings)]


class ErrorDetail(BaseModel):
    """What went wrong."""

    status: int
    kind: str = Field(description="an identifier for programs")
    message: str = Field(description="what is wrong and how to fix it")


class ErrorResponse(BaseModel):
    """The body of every response with an error status."""

    error: ErrorDetail


class WeatherEstimate(BaseModel):
    """The weather detected in a photo or video."""

    haze: float = Field(description="probability, 0 to 1")
    rain: float
    decision: Literal["haze", "rain", "both", "none"]
    confidence: float = Field(description="probability that the decision is right, 0 to 1")


class VideoStatus(BaseModel):
    """A video and its progress."""

    id: str
    name: str
    state: TaskState
    frames: int = Field(description="frames restored so far")
    total_frames: int | None = Field(description="null if the file does not declare it")
    frames_per_second: float | None = Field(description="restoration speed")
    seconds_left: float | None
    width: int
    height: int
    seconds: float | None = Field(description="length of the video")
    sound: bool = Field(description="whether there is sound that browsers play")
    weather: WeatherEstimate | None
    models: list[str] | None = Field(description="models applied, in this order; null until decided")
    changed: bool | None = Field(description="false: the result is the uploaded file")
    missing: str | None = Field(description="what a truncated or damaged file lacks")
    download: str = Field(description="file name of the result")
    error: ErrorDetail | None = Field(description="why it failed")


class ModelInfo(BaseModel):
    """A model, from its card."""

    name: str
    weather: str
    direction: str = Field(description="restore or degrade")
    output: str = Field(description="maps or image")
    description: str
    licence: str
    terms: str


class ModelList(BaseModel):
    """The models of a server."""

    default: str
    models: list[ModelInfo]


class Health(BaseModel):
    """The state of a server."""

    status: Literal["ok"]
    version: str
    active_requests: int
    limits: Limits


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for error statuses."""
    return {status: {"model": ErrorResponse, "description": HTTPStatus(status).phrase} for status in statuses}


def _upload(field: str) -> dict[str, Any]:
    """OpenAPI for a request body that is a file, or a form with a file."""
    form = {"type": "object", "properties": {field: BINARY["schema"]}, "required": [field]}
    content = {"application/octet-stream": BINARY, "multipart/form-data": {"schema": form}}
    description = f"the {field}'s file, with any content type, or a form with the file as its part `{field}`"
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _headers(**descriptions: str) -> dict[str, Any]:
    """OpenAPI for response headers."""
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
        for name, text in descriptions.items()
    }


UPLOAD_ERRORS = errors(404, 408, 413, 415, 422, 503, 504, 507)
RESTORED_PHOTO = {
    "description": "the restored photo, in the format of the uploaded one",
    "content": {media_type: BINARY for media_type in MEDIA_TYPES.values()},
    "headers": _headers(
        Content_Disposition="a file name for the result",
        X_Fairweather_Changed="false: the body is the uploaded file",
        X_Fairweather_Models="models applied, in this order, or none",
        X_Fairweather_Weather="with weather auto: haze, rain, both or none, as detected",
        X_Fairweather_Haze="with weather auto: the probability of haze",
        X_Fairweather_Rain="with weather auto: the probability of rain",
    ),
}
_VIDEO_TYPES = sorted({*uploads.VIDEO_MEDIA_TYPES.values()})
_VIDEO_HEADERS = _headers(
    Content_Disposition="a file name for the result",
    X_Fairweather_Missing="what a truncated or damaged video lacks",
)
RESTORED_VIDEO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the restored video",
        "content": {media_type: BINARY for media_type in _VIDEO_TYPES},
        "headers": _VIDEO_HEADERS,
    },
    206: {
        "description": "a range of it",
        "content": {media_type: BINARY for media_type in (*_VIDEO_TYPES, "multipart/byteranges")},
        "headers": _VIDEO_HEADERS,
    },
}


def api_router(service: Service) -> APIRouter:
    """The routes under /api/v1."""
    router = APIRouter(prefix="/api/v1", responses=errors(400, 403, 421, 500))

    @router.post(
        "/restore",
        response_class=Response,
        responses={200: RESTORED_PHOTO, **UPLOAD_ERRORS},
        openapi_extra=_upload("photo"),
    )
    async def restore_photo(request: Request, settings: SettingsQuery, name: NameQuery = None) -> Response:
        """Restore the photo in the request's body."""
        service.models.check(settings)  # before the photo is received
        with ExitStack() as closing:
            closing.enter_context(service.requests.slot())
            folder = service.folders.new()
            closing.callback(remove_tree, folder)
            source, name = await uploads.receive_upload(request, folder, service.limits, name)
            path, found, plan, changed = await service.requests.run(lambda: service.restore(source, name, settings))
            headers = {
                "Content-Disposition": attachment_header(photo_result_name(name, found.format)),
                "X-Fairweather-Changed": str(changed).lower(),
                "X-Fairweather-Models": ", ".join(part.model for part in plan.parts) or "none",
                **NO_STORE,
            }
            if (weather := plan.weather) is not None:
                headers["X-Fairweather-Weather"] = weather.decided
                headers["X-Fairweather-Haze"] = f"{weather.haze:.4f}"
                headers["X-Fairweather-Rain"] = f"{weather.rain:.4f}"
            media_type = MEDIA_TYPES[found.format]
            return TemporaryFileResponse(path, closing.pop_all().close, media_type=media_type, headers=headers)

    @router.post("/videos", status_code=202, responses=UPLOAD_ERRORS, openapi_extra=_upload("video"))
    async def add_video(
        request: Request,
        response: Response,
        settings: SettingsQuery,
        smooth: SmoothQuery = True,
        name: NameQuery = None,
    ) -> VideoStatus:
        """Start restoring the video in the request's body; `Location` is its path."""
        service.models.check(settings)
        with service.requests.slot(), service.folders.new_or_removed() as folder:
            source, name = await uploads.receive_upload(request, folder, service.limits, name, "video")

            def start() -> VideoTask:
                info = uploads.inspect_video(source, name, service.limits)
                check_cancelled()  # the client may have disconnected
                return service.videos.start(VideoTask(folder, source, name, info, settings, smooth))

            task = await service.requests.run(start)
        response.headers.update({"Location": f"/api/v1/videos/{task.token}", **NO_STORE})
        return video_status(task)

    @router.get("/videos/{id}", responses=errors(404, 422))
    async def get_video(id: VideoId, response: Response) -> VideoStatus:
        """Report a video's progress."""
        response.headers.update(NO_STORE)
        return video_status(service.videos.get(id))

    @router.delete("/videos/{id}", status_code=204, responses=errors(404, 422))
    async def delete_video(id: VideoId) -> None:
        """Cancel a video and remove its files."""
        service.videos.get(id)
        await run_in_threadpool(service.store.remove, id)

    @router.get(
        "/videos/{id}/result",
        response_class=Response,
        responses={**RESTORED_VIDEO, **errors(404, 409, 413, 416, 422, 503, 504, 507)},
    )
    async def get_video_result(id: VideoId, request: Request) -> Response:
        """Return the restored video, or a range of it."""
        task = finished(service.videos.get(id))
        name = uploads.video_result_name(task.name, task.info)
        headers = {"Content-Disposition": attachment_header(name), **NO_STORE}
        if missing := task.missing or task.info.missing:
            headers["X-Fairweather-Missing"] = missing
        media_type = uploads.VIDEO_MEDIA_TYPES[task.info.suffix]
        return stored_file(request, task.result, media_type=media_type, headers=headers)

    @router.get("/models")
    async def list_models() -> ModelList:
        """List the models."""
        cards = service.models.cards.items()
        fields = [name for name in ModelInfo.model_fields if name != "name"]
        models = [ModelInfo(name=name, **{field: getattr(card, field) for field in fields}) for name, card in cards]
        return ModelList(default=AUTO_MODEL, models=models)

    @router.get("/health")
    async def get_health() -> Health:
        """Report the server's version, load and limits."""
        active = service.requests.active
        return Health(status="ok", version=fairweather.__version__, active_requests=active, limits=service.limits)

    return router


def weather_estimate(weather: Weather | None) -> WeatherEstimate | None:
    """The weather as JSON."""
    if weather is None:
        return None
    return WeatherEstimate(haze=weather.haze, rain=weather.rain, decision=weather.decided, confidence=weather.sure)


def video_status(task: VideoTask) -> VideoStatus:
    """A video's progress as JSON."""
    progress, info, done = task.progress, task.info, task.state == "done"
    speed = progress.frames / progress.seconds if progress.frames and progress.seconds else None
    left = max(0.0, (info.frames - progress.frames) / speed) if speed and info.frames and not done else None
    return VideoStatus(
        id=task.token,
        name=task.name,
        state=task.state,
        frames=progress.frames,
        total_frames=progress.frames if done and progress.frames else info.frames,
        frames_per_second=speed and round(speed, 2),
        seconds_left=left and round(left, 1),
        width=info.width,
        height=info.height,
        seconds=info.seconds,
        sound=info.sound,
        weather=weather_estimate(task.weather),
        models=None if task.plan is None else [part.model for part in task.plan.parts],
        changed=task.changed,
        missing=task.missing or info.missing,
        download=uploads.video_result_name(task.name, info),
        error=None if task.error is None else ErrorDetail.model_validate(task.error.detail),
    )


def finished(task: VideoTask) -> VideoTask:
    """Return a task that is done. Raises RequestRefused: 409 if it is not done, or the task's error."""
    if task.state == "failed":
        raise task.error or RequestRefused(404, "gone", f"{task.name} was cancelled: send it again")
    if task.state != "done":
        raise RequestRefused(
            409, "not_ready", f"{task.name} is not restored yet: poll /api/v1/videos/{task.token} until it is done"
        )
    return task


def stored_file(request: Request, path: pathlib.Path, **options: Any) -> FileResponse:
    """Respond with a stored file, or the ranges of it that the request names.

    Raises:
        RequestRefused: 404 if it does not exist; 416 if a range starts after its end.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise RequestRefused(404, "gone", "this file is no longer stored: send the photo or video again") from None
    ranges = request.headers.get("range", "")
    for start, end in re.findall(r"(\d*)-(\d*)", ranges):
        if (int(start) if start else stat.st_size - int(end)) >= stat.st_size:
            raise RequestRefused(
                416, "bad_range", f"Range {ranges[:60]!r} is outside of the file's {stat.st_size} bytes",
                headers={"Content-Range": f"bytes */{stat.st_size}"}
            )  # fmt: skip
    return FileResponse(path, stat_result=stat, **options)


class TemporaryFileResponse(FileResponse):
    """A response with a file, and a function to call when it has been sent, or cannot be."""

    def __init__(self, path: pathlib.Path, close: Callable[[], None], **options: Any) -> None:
        super().__init__(path, **options)
        self._close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def attachment_header(name: str) -> str:
    """The Content-Disposition header for a download, with a plain and a complete file name (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._ -]|^[. ]+", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
