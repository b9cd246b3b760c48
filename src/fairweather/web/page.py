"""The page, drawn by Gradio: its parts, their looks, and where they meet `static/page.js`.

What a person does with a photo goes by the routes of `pictures`; of Gradio the page has its controls and its theme.
Gradio is told to report nothing, to share nothing and to fetch nothing from elsewhere.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from fairweather.web.jobs import PhotoService
from fairweather.web.model_registry import AUTO_MODEL, WEATHERS
from fairweather.web.photo_routes import examples

STATIC_FILES = Path(__file__).resolve().parent / "static"
UPLOAD_TYPES = (
    ".jpg,.jpeg,.png,.webp,.tif,.tiff,.avif,.heic,.heif,.bmp,.ppm,.pgm,image/*,.mp4,.m4v,.mov,.mkv,.webm,.avi,video/*"
)
PREVIEW_TYPES = {"haze": "Haze", "rain": "Rain", "both": "Haze and rain", "none": "Nothing", AUTO_MODEL: "What is seen"}
TITLES = {
    "fog_city_128.jpg": "Fog over a city",
    "lighthouse.jpg": "Lighthouse",
    "mountain_river.jpg": "River",
    "shutters.jpg": "Rain on shutters",
}


def page_theme() -> gr.themes.Base:
    """Calm colours for light and dark, and the fonts that the machine has."""
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


def build_page(service: PhotoService) -> gr.Blocks:
    """The page's parts."""
    offer = service.offer
    named = [("Automatic", AUTO_MODEL)] + [
        (f"{name}: {_does(card.direction, card.weather)}", name) for name, card in offer.cards.items()
    ]
    settings = "(model, weather, guard) => { window.fairweather.settings(model, weather, guard); return []; }"
    with gr.Blocks(title="fairweather", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(html_template=_read("head.html"), apply_default_css=False, elem_id="fw-head")
        with gr.Row(elem_id="fw-main", equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_id="fw-left"):
                gr.HTML(
                    html_template=_read("stage.html").replace("EXAMPLES", _examples()).replace("TAKEN", UPLOAD_TYPES),
                    js_on_load="window.fairweather.begin(element)",
                    apply_default_css=False,
                    elem_id="fw-viewer",
                )
            with gr.Column(scale=1, min_width=280, elem_id="fw-side"):
                gr.HTML(html_template=_read("found.html"), apply_default_css=False, elem_id="fw-found")
                with gr.Column(elem_id="fw-amount"):
                    strength = gr.Slider(
                        0, 100, 100, step=1, label="Strength in %", elem_id="fw-strength", buttons=["reset"]
                    )
                with gr.Column(elem_id="fw-controls"):
                    model = gr.Dropdown(named, value=AUTO_MODEL, label="Model", elem_id="fw-model")
                    weather = gr.Radio(
                        [(PREVIEW_TYPES[name], name) for name in WEATHERS],
                        value=AUTO_MODEL,
                        label="Take out",
                        elem_id="fw-weather",
                    )
                    guard = gr.Checkbox(True, label="Guard against casts and noise", elem_id="fw-guard")
                gr.HTML(html_template=_read("take.html"), apply_default_css=False, elem_id="fw-take")
        strength.change(
            fn=None,
            inputs=strength,
            js="(s) => { window.fairweather.strength(s); return []; }",
            api_visibility="private",
        )
        for control in (model, weather, guard):
            control.change(fn=None, inputs=[model, weather, guard], js=settings, api_visibility="private")
    return page


def mount_page(app: FastAPI, service: PhotoService) -> FastAPI:
    """An application with the page at its root."""
    limits = service.limits
    told = json.dumps({"bytes": limits.bytes, "pixels": limits.pixels, "keep": limits.keep})
    head = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="/page/static/icon.svg"><link rel="stylesheet" href="/page/static/page.css">'
        f"<script>window.fairweatherLimits = {told};</script>"
        '<script src="/page/static/clips.js"></script><script src="/page/static/page.js"></script>'
    )
    whole: FastAPI = gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        theme=page_theme(),
        head=head,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=["/"],
        max_file_size=limits.bytes,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    return whole


def _does(direction: str, weather: str) -> str:
    return f"puts {weather} in" if direction == "degrade" else f"takes out {weather}"


def _examples() -> str:
    return "".join(
        f'<button type="button" class="fw-example" data-example="{html.escape(name)}">'
        f'<img src="/page/examples/{html.escape(name)}" alt="" loading="lazy">'
        f"<span>{html.escape(TITLES.get(name, Path(name).stem))}</span></button>"
        for name in examples()
    )


def _read(name: str) -> Any:
    return (STATIC_FILES / name).read_text(encoding="utf-8")
