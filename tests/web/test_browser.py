"""The page in a real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fairweather import images
from tests.web.conftest import EXAMPLES, PHONE, READY, SERVED, SHOWN, Server, downloaded, hazy, python, send
from tests.web.test_films import film


def seen(page: Any, tmp_path: Path, x: float, y: float) -> np.ndarray:
    """The colour of the stage at a place, 0 to 1 of its sides: the mean of a small square of the screen."""
    page.locator(".fw-canvas").screenshot(path=tmp_path / "shot.png")
    shot = images.read(tmp_path / "shot.png").pixels
    row, column = int(y * shot.shape[0]), int(x * shot.shape[1])
    return np.asarray(shot[row - 4 : row + 4, column - 4 : column + 4].reshape(-1, 3).mean(0))


def test_upload_slide_strength_download(opened: Callable[..., Any], tmp_path: Path) -> None:
    page, path = opened(viewport={"width": 1200, "height": 800}), EXAMPLES / "lighthouse.jpg"
    send(page, path)
    assert page.inner_text(".fw-verdict").startswith("Haze (")
    assert float(page.evaluate("document.querySelector('#fw-haze').value")) > 0.9
    assert "dehaze" in page.inner_text(".fw-done")
    assert downloaded(page) == ("lighthouse-clear.jpg", python(path, tmp_path / "out.jpg"))

    before, after = images.read(path).pixels, images.read(tmp_path / "out.jpg").pixels
    y, x = 0.9, 0.3  # rocks: much clearer than they were
    row, column = int(y * before.shape[0]), int(x * before.shape[1])
    was, became = (one[row - 3 : row + 3, column - 3 : column + 3].reshape(-1, 3).mean(0) for one in (before, after))
    assert abs(was - became).max() > 25
    box = page.locator(".fw-canvas").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.4 * box["height"], steps=3)
    page.mouse.up()
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "80"
    assert abs(seen(page, tmp_path, x, y) - was).max() < 12
    page.focus(".fw-handle")
    page.keyboard.press("Home")
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "0"
    assert abs(seen(page, tmp_path, x, y) - became).max() < 12

    page.locator("#fw-strength input[type=range]").focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("Math.abs(document.querySelector('.fw-after').style.opacity - 0.6) < 1e-6")
    page.wait_for_selector(".fw-exact.fw-there", state="attached")
    mixed = 0.4 * was + 0.6 * became
    assert abs(seen(page, tmp_path, x, y) - mixed).max() < 12
    assert downloaded(page)[1] == python(path, tmp_path / "part.jpg", 0.6)


def test_other_models_and_the_haze_map(opened: Callable[..., Any]) -> None:
    page = opened(viewport={"width": 1200, "height": 800})
    send(page, EXAMPLES / "shutters.jpg")
    assert page.inner_text(".fw-verdict").startswith("Rain (")
    page.click("#fw-model input")
    page.get_by_role("option", name="dehaze-fast").click()
    page.wait_for_function("document.querySelector('.fw-done').innerText.includes('dehaze-fast')")
    page.click("[data-do=map]")
    page.wait_for_function("document.querySelector('.fw-map').naturalWidth > 100")
    assert page.is_visible(".fw-legend")
    page.click("[data-do=full]")
    assert page.evaluate("document.querySelector('.fw-canvas').clientWidth") == 640
    assert "dehaze-fast" in page.get_attribute(".fw-download", "href")


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    page, choosers = opened(), []  # type: ignore[var-annotated]
    page.on("filechooser", lambda one: choosers.append(one))  # early: Playwright takes a moment until it hears of them
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
        told = page.evaluate("(e => e.getAttribute('aria-label') || e.className || e.type)(document.activeElement)")
        reached.add(told or "")  # the document itself has none of these
    assert {"Before and after", "fw-download"} <= reached
    assert any("lighthouse" in one for one in reached)
    page.focus(".fw-handle")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "52"


def test_what_is_no_photo_is_said_and_the_others_are_done(opened: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("these are words")
    (tmp_path / "half.jpg").write_bytes((EXAMPLES / "lighthouse.jpg").read_bytes()[:20_000])
    page = opened()
    page.set_input_files("#fw-input", [tmp_path / "notes.jpg", tmp_path / "half.jpg", EXAMPLES / "barn.jpg"])
    page.wait_for_function(READY.format(1))
    page.wait_for_function("document.querySelectorAll('.fw-item.fw-wrong').length === 2")
    assert "notes.jpg: is not a picture" in page.inner_text(".fw-stage .fw-wrong")
    page.click("[data-at='1']")
    assert "get a whole copy" in page.inner_text(".fw-stage .fw-wrong")
    page.click("[data-at='2']")
    assert downloaded(page)[0] == "barn-clear.jpg"
    page.evaluate("window.fairweatherLimits.bytes = 1000")
    page.set_input_files("#fw-input", [EXAMPLES / "old_town.jpg"])
    page.wait_for_function("document.querySelectorAll('.fw-item.fw-wrong').length === 3")


def test_forty_megapixels(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), hazy(5000, 8000)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    page = opened()
    send(page, path)
    assert "8000 × 5000" in page.inner_text(".fw-name")
    assert page.evaluate("document.querySelector('.fw-after').naturalWidth") == 8000
    page.click("[data-do=full]")
    assert page.evaluate("document.querySelector('.fw-canvas').clientWidth") == 8000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the photo makes the page wider"
    assert downloaded(page)[1] == python(path, tmp_path / "out.jpg")


def test_ten_at_once(opened: Callable[..., Any], tmp_path: Path) -> None:
    photo = hazy(300, 400)
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        images.write(path, np.roll(photo, 10 * number, axis=1))
    page = opened()
    send(page, *paths, ready=10)
    page.click("[data-at='7']")
    assert downloaded(page) == ("7-clear.png", python(paths[7], tmp_path / "out.png"))
    page.click(".fw-item:nth-child(8) .fw-away", force=True)
    page.wait_for_function(READY.format(9))


def test_a_killed_server_comes_back(
    opened: Callable[..., Any], served: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    page = opened()
    send(page, EXAMPLES / "lighthouse.jpg", film(tmp_path / "bay.mp4", 200))
    page.click("[data-at='1']")
    page.click("[data-do=film]")
    page.wait_for_function("window.fairweather.state.photos[1].job?.frames")
    server.kill()
    assert list(server.temporary.glob("fairweather-serve-*"))
    page.set_input_files("#fw-input", [EXAMPLES / "barn.jpg"])
    page.wait_for_function(
        "document.querySelector('#fw-said') && window.fairweather.state.photos[2].said.includes('does not answer')"
    )
    server.process = served(*SERVED, "--port", server.address.rsplit(":", 1)[1], temporary=server.temporary).process
    page.wait_for_function(READY.format(3), timeout=60_000)
    assert len(list(server.temporary.glob("fairweather-serve-*"))) == 1
    page.wait_for_function("document.querySelector('.fw-clip-start').innerText.includes('restore it once more')")
    page.click("[data-at='0']")  # was on the server that is gone: it is sent once more
    page.evaluate("document.querySelector('.fw-before').src += '?again'")
    page.wait_for_function(READY.format(3), timeout=60_000)
    page.wait_for_function(SHOWN)
    assert downloaded(page)[1] == python(EXAMPLES / "lighthouse.jpg", tmp_path / "out.jpg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(opened: Callable[..., Any], scheme: str) -> None:
    page = opened(**PHONE, color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    page.tap("[data-example='shutters.jpg']")
    page.wait_for_function(READY.format(1))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sides = page.evaluate(
        "[...document.querySelectorAll('#fw-main button, #fw-main a, #fw-main input[type=range]')]"
        ".filter(one => one.offsetParent).map(one => one.getBoundingClientRect()).map(one => [one.left, one.right])"
    )
    assert len(sides) > 8
    assert all(left >= 0 and right <= 390 for left, right in sides)
    box = page.locator(".fw-stage").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.8 * box["height"])
    assert page.get_attribute(".fw-handle", "aria-valuenow") == "25"
    page.tap("#fw-dark")
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme != "dark")
