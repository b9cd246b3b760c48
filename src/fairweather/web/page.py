"""The page: its Gradio layout, the photos that it stores, and its routes under /page, which `static/page.js` calls.

A photo is uploaded once; other strengths, models and views of it need no second upload. Its folder contains the
upload, the maps or pixels that a network predicted, and the files that the page shows. Between requests no photo is in
memory. A video is shown as one of its frames until it is restored.
"""

from __future__ import annotations

import html
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import gradio as gr
import numpy as np
from fastapi import APIRouter, FastAPI, Request
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
from fairweather.web.api import (
    NO_STORE,
    GuardQuery,
    ModelQuery,
    SettingsQuery,
    SmoothQuery,
    TemporaryFileResponse,
    VideoStatus,
    WeatherQuery,
    attachment_header,
    finished,
    stored_file,
    video_status,
    weather_estimate,
)
from fairweather.web.jobs import MEDIA_TYPES, SUFFIXES, Service, VideoTask, link_or_copy, photo_result_name
from fairweather.web.limits import RequestRefused
from fairweather.web.model_registry import AUTO_MODEL, WEATHERS, RestoreSettings
from fairweather.web.storage import remove_tree
from fairweather.web.uploads import VideoInfo

WEB_FOLDER = Path(__file__).resolve().parent
STATIC_FILES = {"page.js": "text/javascript", "videos.js": "text/javascript", "page.css": "text/css",
                "icon.svg": "image/svg+xml"}  # fmt: skip
EXAMPLES = {
    "lighthouse.jpg": "Lighthouse",
    "mountain_river.jpg": "River",
    "barn.jpg": "Barn",
    "shutters.jpg": "Rain on shutters",
}
"""The example photos, in their order, with their titles."""
UPLOAD_TYPES = (
    ".jpg,.jpeg,.png,.webp,.tif,.tiff,.avif,.heic,.heif,.bmp,.ppm,.pgm,image/*,.mp4,.m4v,.mov,.mkv,.webm,.avi,video/*"
)
WEATHER_LABELS = {"haze": "Haze", "rain": "Rain", "both": "Haze and rain", "none": "Nothing", AUTO_MODEL: "Automatic"}
THUMBNAIL_SIDE = 160
"""Pixels of a thumbnail's shorter side."""
MAP_SIDE = 640
"""Pixels of the longer side of a haze map."""


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page at the root of an application. Gradio sends no analytics and loads nothing from other hosts."""
    limits = service.limits
    shown_limits = json.dumps({"bytes": limits.max_bytes, "pixels": limits.max_pixels, "keep": limits.keep})
    head = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="/page/static/icon.svg"><link rel="stylesheet" href="/page/static/page.css">'
        f"<script>window.fairweatherLimits = {shown_limits};</script>"
        '<script src="/page/static/videos.js"></script><script src="/page/static/page.js"></script>'
    )
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        theme=page_theme(),
        head=head,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=["/"],
        max_file_size=limits.max_bytes,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return mounted


def build_page(service: Service) -> gr.Blocks:
    """The layout: a viewer, and next to it the weather, the settings and the download."""
    choices = [("Automatic", AUTO_MODEL)] + [
        (f"{name}: {'adds' if card.direction == 'degrade' else 'removes'} {card.weather}", name)
        for name, card in service.models.cards.items()
    ]
    apply = "(model, weather, guard) => { window.fairweather.settings(model, weather, guard); return []; }"
    with gr.Blocks(title="fairweather", analytics_enabled=False, fill_width=True) as page:
        _template("header")
        with gr.Row(elem_id="fw-main", equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_id="fw-left"):
                _template(
                    "viewer", EXAMPLES=_example_buttons(), UPLOAD_TYPES=UPLOAD_TYPES,
                    js_on_load="window.fairweather.start(element)"
                )  # fmt: skip
            with gr.Column(scale=1, min_width=280, elem_id="fw-side"):
                _template("detected")
                with gr.Column(elem_id="fw-amount"):
                    strength = gr.Slider(
                        0, 100, 100, step=1, label="Strength in %", elem_id="fw-strength", buttons=["reset"]
                    )
                with gr.Column(elem_id="fw-controls"):
                    model = gr.Dropdown(choices, value=AUTO_MODEL, label="Model", elem_id="fw-model")
                    weather = gr.Radio(
                        [(WEATHER_LABELS[name], name) for name in WEATHERS],
                        value=AUTO_MODEL,
                        label="Remove",
                        elem_id="fw-weather",
                    )
                    guard = gr.Checkbox(True, label="Suppress colour casts and noise", elem_id="fw-guard")
                _template("download")
        strength.change(
            fn=None,
            inputs=strength,
            js="(s) => { window.fairweather.strength(s); return []; }",
            api_visibility="private",
        )
        for control in (model, weather, guard):
            control.change(fn=None, inputs=[model, weather, guard], js=apply, api_visibility="private")
    return page


def _template(name: str, js_on_load: str | None = None, **values: str) -> None:
    """Add `static/NAME.html`, with its placeholders replaced."""
    text = (WEB_FOLDER / "static" / f"{name}.html").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(key, value)
    script = {} if js_on_load is None else {"js_on_load": js_on_load}
    gr.HTML(html_template=text, apply_default_css=False, elem_id=f"fw-{name}", **script)


def _example_buttons() -> str:
    return "".join(
        f'<button type="button" class="fw-example" data-example="{name}">'
        f'<img src="/page/examples/{name}" alt="" loading="lazy"><span>{html.escape(title)}</span></button>'
        for name, title in EXAMPLES.items()
    )


def page_theme() -> gr.themes.Base:
    """Muted colours for light and dark, and the system's fonts."""
    blue = gr.themes.Color(
        *("#eef6fb", "#d8eaf5", "#b3d6ea", "#82bbda", "#4d9cc5", "#2380ad", "#17688f", "#145674", "#144861", "#153d52"),
        "#0b2636",
    )
    slate = gr.themes.Color(
        *("#f7f9fa", "#eef2f4", "#dfe6ea", "#c6d1d7", "#94a4ad", "#64757f", "#4a5962", "#36444c", "#1f2a31", "#151e24"),
        "#0d1419",
    )
    return gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue=slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_padding="0",
        block_shadow="none",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )


@dataclass
class PagePhoto:
    """A photo, or a video with a frame of it, that the page shows."""

    token: str
    folder: Path
    source: Path
    """The uploaded photo, or the video's frame."""
    name: str
    header: Header
    last_used: float = field(default_factory=time.monotonic)
    weather: Weather | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    video: Path | None = None
    """The uploaded video."""
    video_info: VideoInfo | None = None

    @property
    def busy(self) -> bool:
        return self.lock.locked()

    def stop(self) -> None:
        """Do nothing: a photo is processed only during a request."""

    @property
    def viewable(self) -> bool:
        """Whether browsers show the upload, and the result, which has the same format."""
        return self.header.format == "JPEG" and not self.header.inks


class PhotoFile(NamedTuple):
    """A file to send."""

    path: Path
    temporary: Path | None = None
    """The folder to remove once it is sent."""


class PagePhotos:
    """The stored photos of all users of the page."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._models = service.models

    def add(self, folder: Path, source: Path, name: str) -> PagePhoto:
        """Store an upload. Raises RequestRefused for a file that is not a photo or video within the limits."""
        token, service = secrets.token_urlsafe(16), self.service
        if uploads.video_demuxer(source) is None:
            photo = PagePhoto(token, folder, source, name, service.read_header(source, name))
        else:
            info, frame = uploads.inspect_video(source, name, service.limits), folder / "frame.jpg"
            try:
                with service.video_memory(info.memory // 4, name):
                    write(frame, uploads.middle_frame(source, info, service.limits))
            except Exception as error:
                raise uploads.video_error(error, source, name, service.limits) from error
            header = service.read_header(frame, name)
            photo = PagePhoto(token, folder, frame, name, header, video=source, video_info=info)
        service.store.add(photo)
        return photo

    def get(self, token: str) -> PagePhoto:
        """Return the photo of a token. Raises RequestRefused (404)."""
        photo = self.service.store.get(token)
        if not isinstance(photo, PagePhoto):
            raise RequestRefused(
                404, "gone", f"unknown photo (photos are stored for {self.service.limits.keep:g} min): "
                "send it again"
            )  # fmt: skip
        return photo

    def remove(self, token: str) -> None:
        """Remove a photo; unknown tokens, and those of videos that are restored, are ignored."""
        if isinstance(self.service.store.get(token), PagePhoto):
            self.service.store.remove(token)

    def restore(self, token: str, settings: RestoreSettings) -> dict[str, Any]:
        """Restore a photo at full strength, write the files that the page shows, and describe the result."""
        photo = self.get(token)
        with photo.lock, self._decoded(photo) as image:
            plan = self._plan(photo, image, settings)
            for kind in ("view", "full", "pixels"):  # results of other settings: the page shows one at a time
                for path in photo.folder.glob(f"{kind}-*"):
                    if not path.stem.startswith(f"{kind}-{settings.key}"):
                        path.unlink(missing_ok=True)
            if not (photo.folder / "before.jpg").exists() and not photo.viewable:
                write(photo.folder / "before.jpg", _viewable(image))
            if not (photo.folder / "thumbnail.jpg").exists():
                write(photo.folder / "thumbnail.jpg", _thumbnail(image.pixels))
            check_cancelled()
            if plan.parts:
                result = image.replaced(self._restored_pixels(photo, image, plan, settings))
                write(self._result_path(photo, settings, True), result if photo.viewable else _viewable(result))
        estimate, header, info = weather_estimate(photo.weather), photo.header, photo.video_info
        return {
            "token": token,
            "name": photo.name,
            "width": header.width,
            "height": header.height,
            "weather": estimate and estimate.model_dump(),
            "models": [part._asdict() for part in plan.parts],
            "instant_strength": not plan.parts or self._maps_model(plan) is not None,
            "download": photo_result_name(photo.name, header.format),
            "video": info and {"frames": info.frames, "seconds": info.seconds, "missing": info.missing},
        }

    def file(self, token: str, settings: RestoreSettings, view: bool) -> PhotoFile:
        """The result at any strength, in the upload's format, or (`view`) in one that browsers show."""
        photo = self.get(token)
        with photo.lock:
            full, strength = self._result_path(photo, settings, view), settings.strength
            if strength == 1 and full.exists():
                return PhotoFile(full)
            unchanged = PhotoFile(self.before(token) if view else photo.source)
            if strength == 0:
                return unchanged
            with self._decoded(photo) as image:
                plan = self._plan(photo, image, settings)
                if not plan.parts:
                    return unchanged
                result = image.replaced(self._restored_pixels(photo, image, plan, settings))
                if view and not photo.viewable:
                    result = _viewable(result)
                check_cancelled()
                if strength == 1:
                    write(full, result)
                    return PhotoFile(full)
                with self.service.folders.new_or_removed() as folder:
                    write(folder / full.name, result)
                return PhotoFile(folder / full.name, folder)

    def before(self, token: str) -> Path:
        """The uploaded photo in a format that browsers show; exists after `restore`."""
        photo = self.get(token)
        return photo.source if photo.viewable else photo.folder / "before.jpg"

    def haze_map(self, token: str, model: str) -> Path:
        """A map of the haze, 1 - transmission, as colours. Raises RequestRefused for models that predict no maps."""
        photo, cards = self.get(token), self._models.cards
        name = self._models.auto.models["haze"] if model == AUTO_MODEL else model
        if name not in cards or cards[name].output != "maps":
            raise RequestRefused(404, "no_map", f"model {model[:80]} predicts no haze map: choose auto or dehaze")
        path = photo.folder / f"map-{name}.png"
        with photo.lock:
            if not path.exists():
                with self._decoded(photo) as image:
                    write(path, _coloured(self._maps(photo, image, name), photo.header))
        return path

    def start_video(self, token: str, settings: RestoreSettings, smooth: bool) -> VideoTask:
        """Start restoring a video. Raises RequestRefused: 422 for a photo, 503 if too many wait."""
        photo = self.get(token)
        if photo.video is None or photo.video_info is None:
            raise RequestRefused(422, "bad_setting", f"{photo.name} is a photo: this path accepts videos only")
        self._models.check(settings)
        with self.service.folders.new_or_removed() as folder:
            source, info = link_or_copy(photo.video, folder), photo.video_info
            task = VideoTask(folder, source, photo.name, info, settings, smooth, photo.weather, on_page=True)
            return self.service.videos.start(task)

    @contextmanager
    def _decoded(self, photo: PagePhoto) -> Iterator[Photo]:
        """The decoded photo, with memory reserved for it."""
        service = self.service
        with service.named_errors(photo.source, photo.name), service.photo_memory(photo.source, photo.name):
            yield read(photo.source, max_pixels=service.limits.max_pixels)

    def _plan(self, photo: PagePhoto, image: Photo, settings: RestoreSettings) -> RestorePlan:
        self._models.check(settings)
        if photo.weather is None:  # shown by the page for any settings
            detect = self._models.auto.detect
            if photo.video is not None and photo.video_info is not None:  # the whole video is restored by one plan
                photo.weather = uploads.video_weather(photo.video, photo.video_info, self.service.limits, detect)
            else:
                photo.weather = detect(image.pixels)
        weather = photo.weather
        return self._models.plan(lambda: weather, settings)

    def _maps_model(self, plan: RestorePlan) -> str | None:
        """The one model of a plan if it predicts maps: then another strength needs no network."""
        if len(plan.parts) == 1 and self._models.cards[plan.parts[0].model].output == "maps":
            return plan.parts[0].model
        return None

    def _restored_pixels(
        self, photo: PagePhoto, image: Photo, plan: RestorePlan, settings: RestoreSettings
    ) -> NDArray[Any]:
        strength = settings.strength
        if (model := self._maps_model(plan)) is not None:
            maps, amount = self._maps(photo, image, model), strength * plan.parts[0].amount
            return self._models.restorer(model).apply_maps(image.pixels, maps, amount, settings.guard)
        path = photo.folder / f"pixels-{settings.key}.npy"
        if strength == 1 and path.exists():
            cached: NDArray[Any] = np.load(path, allow_pickle=False)
            return cached
        pixels = self._models.auto.apply(image.pixels, plan, strength, settings.guard)
        if strength == 1:
            np.save(path, pixels)
        return pixels

    def _maps(self, photo: PagePhoto, image: Photo, model: str) -> HazeMaps:
        path = photo.folder / f"maps-{model}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as cached:
                return HazeMaps(cached["reduced"], cached["maps"])
        maps = self._models.restorer(model).predict_maps(image.pixels)
        np.savez(path, reduced=maps.reduced, maps=maps.maps)
        return maps

    def _result_path(self, photo: PagePhoto, settings: RestoreSettings, view: bool) -> Path:
        """The file of the result at full strength."""
        if view and not photo.viewable:
            return photo.folder / f"view-{settings.key}.jpg"
        return photo.folder / f"full-{settings.key}{SUFFIXES[photo.header.format]}"


def _viewable(photo: Photo) -> Photo:
    """A photo for a browser: without CMYK planes and EXIF, and with its colour profile only if that is for RGB."""
    profile = photo.kind.icc if photo.kind.mode in ("RGB", "RGBA") else b""
    return replace(photo, inks=None, kind=Kind(icc=profile))


def _thumbnail(pixels: NDArray[Any]) -> NDArray[Any]:
    scale = THUMBNAIL_SIDE / min(pixels.shape[:2])
    if scale < 1:
        width, height = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return pixels


def _coloured(maps: HazeMaps, header: Header) -> NDArray[np.uint8]:
    """The haze, 1 - transmission, from dark violet (none) to yellow (the most that a network predicts)."""
    scale = min(1.0, MAP_SIDE / max(header.width, header.height))
    size = max(1, round(header.width * scale)), max(1, round(header.height * scale))
    haze = cv2.resize((1 - maps.maps[0, 0]) / (1 - MIN_TRANSMISSION), size, interpolation=cv2.INTER_CUBIC)
    levels = np.rint(np.clip(haze, 0, 1) * 255).astype(np.uint8)
    coloured: NDArray[np.uint8] = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return coloured


def page_router(service: Service) -> APIRouter:
    """The routes under /page."""
    router = APIRouter(prefix="/page", include_in_schema=False)
    photos, run, slot = PagePhotos(service), service.requests.run, service.requests.slot
    cached = {"Cache-Control": "private, max-age=3600"}

    @router.post("/photos")
    async def add_photo(request: Request, name: str = "photo") -> dict[str, Any]:
        with slot(), service.folders.new_or_removed() as folder:
            source, name = await uploads.receive_upload(request, folder, service.limits, name)
            photo = await run(lambda: photos.add(folder, source, name))
        return {"token": photo.token}

    @router.delete("/photos/{token}", status_code=204)
    async def remove_photo(token: str) -> None:
        await run_in_threadpool(photos.remove, token)

    @router.post("/photos/{token}/restore")
    async def restore(
        token: str, model: ModelQuery = AUTO_MODEL, weather: WeatherQuery = "auto", guard: GuardQuery = True
    ) -> dict[str, Any]:
        with slot():
            return await run(lambda: photos.restore(token, RestoreSettings(model, weather, 1.0, guard)))

    @router.get("/photos/{token}/before")
    async def before(token: str, request: Request) -> Response:
        return stored_file(request, photos.before(token), media_type="image/jpeg", headers=cached)

    @router.get("/photos/{token}/thumbnail")
    async def thumbnail(token: str, request: Request) -> Response:
        path = photos.get(token).folder / "thumbnail.jpg"
        return stored_file(request, path, media_type="image/jpeg", headers=cached)

    @router.get("/photos/{token}/after")
    async def after(token: str, settings: SettingsQuery) -> Response:
        return await send_result(token, settings, True)

    @router.get("/photos/{token}/file")
    async def file(token: str, settings: SettingsQuery) -> Response:
        return await send_result(token, settings, False)

    async def send_result(token: str, settings: RestoreSettings, view: bool) -> Response:
        with ExitStack() as closing:
            closing.enter_context(slot())
            path, temporary = await run(lambda: photos.file(token, settings, view))
            if temporary is not None:
                closing.callback(remove_tree, temporary)
            photo, headers = photos.get(token), dict(NO_STORE)
            if not view:
                headers["Content-Disposition"] = attachment_header(photo_result_name(photo.name, photo.header.format))
            media_type = "image/jpeg" if path.suffix == ".jpg" else MEDIA_TYPES[photo.header.format]
            return TemporaryFileResponse(path, closing.pop_all().close, media_type=media_type, headers=headers)

    @router.get("/photos/{token}/haze-map")
    async def haze_map(token: str, request: Request, model: ModelQuery = AUTO_MODEL) -> Response:
        with slot():
            path = await run(lambda: photos.haze_map(token, model))
        return stored_file(request, path, media_type="image/png", headers=NO_STORE)

    @router.post("/photos/{token}/video", status_code=202)
    async def start_video(
        token: str, response: Response, settings: SettingsQuery, smooth: SmoothQuery = True
    ) -> VideoStatus:
        task = await run_in_threadpool(photos.start_video, token, settings, smooth)
        response.headers.update({"Location": f"/api/v1/videos/{task.token}", **NO_STORE})
        return video_status(task)

    @router.get("/videos/{token}/{side}")
    async def play_video(token: str, side: Literal["before", "after"], request: Request) -> Response:
        task = finished(service.videos.get(token))
        media_type = uploads.VIDEO_MEDIA_TYPES[task.info.suffix] if task.info.playable else "video/mp4"
        headers = {"Cache-Control": "private, max-age=600"}
        return stored_file(request, task.playable(side), media_type=media_type, headers=headers)

    def add_file(path: Path, media_type: str) -> None:
        async def send() -> Response:
            return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache"})

        router.add_api_route(f"/{path.parent.name}/{path.name}", send, methods=["GET"], response_class=Response)

    for name, media_type in STATIC_FILES.items():
        add_file(WEB_FOLDER / "static" / name, media_type)
    for name in EXAMPLES:
        add_file(WEB_FOLDER / "examples" / name, "image/jpeg")
    return router
