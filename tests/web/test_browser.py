"""The page in a real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fairweather import images
from tests.video.conftest import frames_of, packets_of
from tests.web.conftest import CHROMIUM, EXAMPLES, SERVE, Server, hazy, restored, video

PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
READY = "document.querySelectorAll('.fw-item.fw-ready').length === {}"
SHOWN = "[...document.querySelectorAll('.fw-canvas img[src]')].every(image => image.complete && image.naturalWidth)"
TIMES = "['before', 'after'].map(side => document.querySelector(`.fw-video-${side}`)).map(video => video.currentTime)"
LOADED = "document.querySelector('.fw-plays.fw-video-loaded')"
DELETED = "fetch('/api/v1/videos/{}').then(response => response.status === 404)"


@pytest.fixture(scope="module")
def chromium(web: None) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST RUNS: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER TEST RUNS: there is no Chromium here (sh tests/web/chromium.sh, as root on Debian)")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Open the page; no request may go to another host, and no script may fail."""
    pages, outside, errors = [], [], []

    def open_(**options: Any) -> Any:
        page = chromium.new_context(accept_downloads=True, **options).new_page()
        page.set_default_timeout(30_000)
        own = (server.address, "blob:", "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(server.address)
        page.wait_for_selector(".fw-started .fw-drop")
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.context.close()
    assert not outside
    assert not errors


def send(page: Any, *paths: Path, ready: int | None = None) -> None:
    page.set_input_files("#fw-input", list(paths))
    page.wait_for_function(READY.format(len(paths) if ready is None else ready), timeout=90_000)
    page.wait_for_function(SHOWN)


def download(page: Any) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.click(".fw-download")
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def choose_fast_model(page: Any) -> None:
    page.click("#fw-model input")
    page.get_by_role("option", name="dehaze-fast").click()
    page.wait_for_function("document.querySelector('.fw-applied').innerText.includes('dehaze-fast')")


def colour(page: Any, tmp_path: Path, x: float, y: float) -> np.ndarray:
    """The mean colour of a small square on the screen, at a fraction of the stage's sides."""
    page.locator(".fw-canvas").screenshot(path=tmp_path / "shot.png")
    shot = images.read(tmp_path / "shot.png").pixels
    row, column = int(y * shot.shape[0]), int(x * shot.shape[1])
    return np.asarray(shot[row - 4 : row + 4, column - 4 : column + 4].reshape(-1, 3).mean(0))


def test_compare_strength_download_model_and_map(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page, path = open_page(viewport={"width": 1200, "height": 800}), EXAMPLES / "lighthouse.jpg"
    send(page, path)
    assert page.inner_text(".fw-verdict").startswith("Haze (")
    assert float(page.evaluate("document.querySelector('#fw-haze').value")) > 0.9
    assert "dehaze" in page.inner_text(".fw-applied")
    assert download(page) == ("lighthouse-clear.jpg", restored(path, tmp_path / "out.jpg"))

    pixels = images.read(path).pixels, images.read(tmp_path / "out.jpg").pixels
    y, x = 0.9, 0.3  # rocks, which change a lot
    row, column = int(y * pixels[0].shape[0]), int(x * pixels[0].shape[1])
    before, after = (one[row - 3 : row + 3, column - 3 : column + 3].reshape(-1, 3).mean(0) for one in pixels)
    assert abs(before - after).max() > 25
    box = page.locator(".fw-canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.4 * box["height"], steps=3)
    page.mouse.up()
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "80"
    assert abs(colour(page, tmp_path, x, y) - before).max() < 12
    page.focus(".fw-handle")
    page.keyboard.press("Home")
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "0"
    assert abs(colour(page, tmp_path, x, y) - after).max() < 12

    page.locator("#fw-strength input[type=range]").focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("Math.abs(document.querySelector('.fw-after').style.opacity - 0.6) < 1e-6")
    page.wait_for_selector(".fw-exact.fw-loaded", state="attached")
    assert abs(colour(page, tmp_path, x, y) - 0.4 * before - 0.6 * after).max() < 12
    assert download(page)[1] == restored(path, tmp_path / "part.jpg", 0.6)

    choose_fast_model(page)
    page.click("[data-do=map]")
    page.wait_for_function("document.querySelector('.fw-map').naturalWidth > 100")
    assert page.is_visible(".fw-legend")
    page.click("[data-do=full]")
    assert page.evaluate("document.querySelector('.fw-canvas').clientWidth") == pixels[0].shape[1]
    assert "dehaze-fast" in page.get_attribute(".fw-download", "href")


def test_keyboard_only(open_page: Callable[..., Any]) -> None:
    page, choosers = open_page(), []  # type: ignore[var-annotated]
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # before the key, since Playwright takes a moment to listen
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "fw-drop":
            break
    page.keyboard.press("Enter")
    for _ in range(50):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files([EXAMPLES / "lighthouse.jpg"])
    page.wait_for_function(READY.format(1))
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate("(e => e.getAttribute('aria-label') || e.className || e.type)(document.activeElement)")
        reached.add(label or "")  # the document itself has none
    assert {"Before and after", "fw-download"} <= reached
    assert any("lighthouse" in label for label in reached)
    page.focus(".fw-handle")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "52"


def test_many_files_some_of_which_are_not_photos(open_page: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("these are words")
    (tmp_path / "half.jpg").write_bytes((EXAMPLES / "lighthouse.jpg").read_bytes()[:20_000])
    (tmp_path / "notes.mp4").write_text("these are words")
    (tmp_path / "half.mp4").write_bytes(video(tmp_path / "whole.mp4").read_bytes()[:-900])
    bad = {"notes.jpg": "is not a photo", "half.jpg": "get a complete copy", "notes.mp4": "is not a photo",
           "half.mp4": "half.mp4 "}  # fmt: skip
    for number in range(5):
        images.write(tmp_path / f"{number}.png", np.roll(hazy(300, 400), 10 * number, axis=1))
    page = open_page()
    page.set_input_files("#fw-input", [*(tmp_path / name for name in bad), *(tmp_path / f"{n}.png" for n in range(5))])
    page.wait_for_function(READY.format(5))
    page.wait_for_function("document.querySelectorAll('.fw-item.fw-error').length === 4")
    for number, (name, message) in enumerate(bad.items()):
        page.click(f"[data-at='{number}']")
        assert f"{name} " in page.inner_text(".fw-stage .fw-error")
        assert message in page.inner_text(".fw-stage .fw-error")
    page.click("[data-at='7']")
    assert download(page) == ("3-clear.png", restored(tmp_path / "3.png", tmp_path / "out.png"))
    page.click(".fw-item:nth-child(8) .fw-remove", force=True)
    page.wait_for_function(READY.format(4))
    page.evaluate("window.fairweatherLimits.bytes = 1000")
    page.set_input_files("#fw-input", [EXAMPLES / "old_town.jpg"])
    page.wait_for_function("document.querySelectorAll('.fw-item.fw-error').length === 5")


def test_a_large_photo_is_shown_at_full_size(open_page: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), hazy(2400, 4000)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    page = open_page()
    send(page, path)
    assert "4000 × 2400" in page.inner_text(".fw-name")
    assert page.evaluate("document.querySelector('.fw-after').naturalWidth") == 4000
    page.click("[data-do=full]")
    assert page.evaluate("document.querySelector('.fw-canvas').clientWidth") == 4000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the photo makes the page wider"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_page: Callable[..., Any], scheme: str) -> None:
    page = open_page(**PHONE, color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    page.tap("[data-example='shutters.jpg']")
    page.wait_for_function(READY.format(1))
    assert page.inner_text(".fw-verdict").startswith("Rain (")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sides = page.evaluate(
        "[...document.querySelectorAll('#fw-main button, #fw-main a, #fw-main input[type=range]')]"
        ".filter(item => item.offsetParent).map(item => item.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert len(sides) > 8
    assert all(left >= 0 and right <= 390 for left, right in sides)
    box = page.locator(".fw-stage").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.8 * box["height"])
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "25"
    page.tap("#fw-dark")
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme != "dark")


def apart(page: Any) -> float:
    before, after = page.evaluate(TIMES)
    return abs(before - after)


def restore_video(page: Any, number: int = 0) -> None:
    page.click("[data-do=video]")
    page.wait_for_function(f"window.fairweather.state.photos[{number}].job?.state === 'done'")
    page.wait_for_function(LOADED)


def test_restore_play_seek_and_download_a_video(open_page: Callable[..., Any], tmp_path: Path) -> None:
    path = video(tmp_path / "bay.mp4", 20, (320, 180), audio="aac")
    page = open_page(viewport={"width": 1200, "height": 800})
    send(page, path)
    assert page.inner_text(".fw-verdict").startswith("Haze (")
    assert "bay.mp4, 320 × 180" in page.inner_text(".fw-name")
    assert page.inner_text(".fw-video-start") == "Restore the video\n20 frames, 0.8 s"
    assert page.get_attribute(".fw-download", "aria-disabled") == "true"
    choose_fast_model(page)
    restore_video(page)
    assert page.inner_text("#fw-status") == "bay.mp4: the video is restored"
    page.wait_for_function("!document.querySelector('.fw-video-after').paused")
    page.wait_for_timeout(500)
    assert apart(page) < 0.1
    page.keyboard.press("Space")  # Play has the focus, since the button that was pressed is hidden
    page.wait_for_function("document.querySelector('.fw-video-before').paused")
    page.locator(".fw-seek").fill("0.5")
    page.wait_for_function("document.querySelector('.fw-video-before').currentTime === 0.5")
    assert apart(page) < 0.1
    assert page.get_attribute(".fw-seek", "aria-valuetext") == "0:00 of 0:01"
    page.focus(".fw-handle")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.fw-video-after').paused")
    page.wait_for_timeout(600)  # past the end, where both start again
    assert apart(page) < 0.1
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.fw-video-after').style.clipPath").startswith("inset(0")
    assert page.evaluate("document.querySelector('.fw-video-after').muted")
    page.click("[data-do=mute]")
    assert not page.evaluate("document.querySelector('.fw-video-after').muted")
    name, data = download(page)
    assert name == "bay-clear.mp4"
    (tmp_path / name).write_bytes(data)
    assert len(frames_of(tmp_path / name)[1]) == 20
    assert packets_of(tmp_path / name, "audio") == packets_of(path, "audio")

    page.locator("#fw-strength input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"!{LOADED}")
    assert page.inner_text(".fw-video-start").endswith("restored with the previous settings")
    assert page.get_attribute(".fw-download", "aria-disabled") == "true"
    page.keyboard.press("ArrowRight")
    page.wait_for_function(LOADED)


def test_a_video_that_browsers_do_not_play(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(**PHONE, color_scheme="dark")
    send(page, EXAMPLES / "lighthouse.jpg", video(tmp_path / "deep.mkv", codec="libx265"))
    page.tap("[data-at='1']")
    choose_fast_model(page)
    page.wait_for_function(READY.format(2))
    assert not page.is_visible(".fw-all")
    restore_video(page, 1)
    assert page.evaluate("document.querySelector('.fw-video-before').videoWidth") == 160
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.inner_text(".fw-all") == "Download all 2"
    page.tap("[data-at='0']")
    assert not page.is_visible(".fw-video")
    page.wait_for_function("document.querySelector('.fw-video-after').paused")
    page.locator(".fw-item").nth(1).locator(".fw-remove").tap()
    page.wait_for_function("!document.querySelector('.fw-video-after').hasAttribute('src')")


def test_cancelling_a_video_and_leaving_the_page(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page()
    send(page, video(tmp_path / "long.mp4", 300))
    page.click("[data-do=video]")
    page.wait_for_function("window.fairweather.state.photos[0].job.frames > 2")
    assert "of 300 frames" in page.inner_text(".fw-video-work")
    page.evaluate("window.fairweather.strength(90)")
    page.wait_for_function("document.querySelector('.fw-video-work').innerText.includes('previous settings')")
    job = page.evaluate("window.fairweather.state.photos[0].job.id")
    assert page.evaluate("document.activeElement.dataset.do") == "stop"
    page.keyboard.press("Enter")
    page.wait_for_function(DELETED.format(job))
    assert page.evaluate("document.activeElement.dataset.do") == "video"
    assert page.inner_text("#fw-status") == "long.mp4 was cancelled"
    page.click("[data-do=video]")
    page.wait_for_function("window.fairweather.state.photos[0].job?.frames")
    job = page.evaluate("window.fairweather.state.photos[0].job.id")
    page.goto(f"{page.url}api/v1/health")
    page.wait_for_function(DELETED.format(job))


def test_a_restarted_server(
    open_page: Callable[..., Any], serve: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    page = open_page()
    send(page, EXAMPLES / "lighthouse.jpg", video(tmp_path / "bay.mp4", 200))
    page.click("[data-at='1']")
    page.click("[data-do=video]")
    page.wait_for_function("window.fairweather.state.photos[1].job?.frames")
    server.kill()
    page.set_input_files("#fw-input", [EXAMPLES / "barn.jpg"])
    page.wait_for_function("window.fairweather.state.photos[2].message.includes('does not respond')")
    port = server.address.rsplit(":", 1)[1]
    server.process = serve(*SERVE, "--port", port, temporary=server.temporary).process
    page.wait_for_function(READY.format(3), timeout=60_000)
    assert len(list(server.temporary.glob("fairweather-serve-*"))) == 1
    page.wait_for_function("document.querySelector('.fw-video-start').innerText.includes('restore it again')")
    page.click("[data-at='0']")  # it was on the killed server, and is sent again
    page.evaluate("document.querySelector('.fw-before').src += '?again'")
    page.wait_for_function(READY.format(3), timeout=60_000)
    page.wait_for_function(SHOWN)
    assert download(page)[1] == restored(EXAMPLES / "lighthouse.jpg", tmp_path / "out.jpg")
