"""Clips on the page in a real browser: a frame to decide by, progress, both films in step, the file of the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.video.conftest import frames_of, packets_of
from tests.web.conftest import EXAMPLES, PHONE, READY, downloaded, send
from tests.web.test_films import commanded, film

TIMES = "['before', 'after'].map(side => document.querySelector(`.fw-film-${side}`)).map(one => one.currentTime)"
ROLLING = "document.querySelector('.fw-plays.fw-rolling')"
DONE = "window.fairweather.state.photos[{}].job?.state === 'done'"


def apart(page: Any) -> float:
    before, after = page.evaluate(TIMES)
    return abs(before - after)


def fast(page: Any) -> None:
    page.click("#fw-model input")
    page.get_by_role("option", name="dehaze-fast").click()
    page.wait_for_function("document.querySelector('.fw-done').innerText.includes('dehaze-fast')")


def restore(page: Any, number: int = 0) -> None:
    page.click("[data-do=film]")
    page.wait_for_function(DONE.format(number))
    page.wait_for_function(ROLLING)


def test_restore_play_seek_and_download(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = film(tmp_path / "bay.mp4", 20, (320, 180), audio="aac")
    page = opened(viewport={"width": 1200, "height": 800})
    send(page, path)
    assert page.inner_text(".fw-verdict").startswith("Haze (")
    assert "bay.mp4, 320 × 180" in page.inner_text(".fw-name")
    assert page.inner_text(".fw-clip-start") == "Restore the clip\n20 frames, 0.8 s"
    assert page.get_attribute(".fw-download", "aria-disabled") == "true"
    fast(page)
    restore(page)
    assert page.inner_text("#fw-said") == "bay.mp4: the clip is restored"
    page.wait_for_function("!document.querySelector('.fw-film-after').paused")
    page.wait_for_timeout(500)
    assert apart(page) < 0.1
    page.keyboard.press("Space")  # the button that was pressed is gone, and Play has its place
    page.wait_for_function("document.querySelector('.fw-film-before').paused")
    page.locator(".fw-seek").fill("0.5")
    page.wait_for_function("document.querySelector('.fw-film-before').currentTime === 0.5")
    assert apart(page) < 0.1
    assert page.get_attribute(".fw-seek", "aria-valuetext") == "0:00 of 0:01"
    page.focus(".fw-handle")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.fw-film-after').paused")
    page.wait_for_timeout(600)  # over the end, where both begin again
    assert apart(page) < 0.1
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.fw-film-after').style.clipPath").startswith("inset(0")
    assert page.evaluate("document.querySelector('.fw-film-after').muted")
    page.click("[data-do=mute]")
    assert not page.evaluate("document.querySelector('.fw-film-after').muted")
    name, data = downloaded(page)
    assert name == "bay-clear.mp4"
    (tmp_path / name).write_bytes(data)
    command = commanded(path, tmp_path / "command.mp4", model="dehaze-fast")
    for one, other in zip(frames_of(tmp_path / name), frames_of(command), strict=True):
        assert np.array_equal(one, other)
    assert packets_of(tmp_path / name, "audio") == packets_of(path, "audio")

    page.locator("#fw-strength input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"!{ROLLING}")
    assert page.inner_text(".fw-clip-start").endswith("restored with the settings as they were")
    assert page.get_attribute(".fw-download", "aria-disabled") == "true"
    page.keyboard.press("ArrowRight")
    page.wait_for_function(ROLLING)


def test_what_browsers_do_not_play_is_shown_all_the_same(opened: Callable[..., Any], tmp_path: Path) -> None:
    deep = film(tmp_path / "deep.mkv", codec="libx265")
    page = opened(**PHONE, color_scheme="dark")
    send(page, EXAMPLES / "lighthouse.jpg", deep)
    page.tap("[data-at='1']")
    fast(page)
    page.wait_for_function(READY.format(2))
    assert not page.is_visible(".fw-all")
    restore(page, 1)
    assert page.evaluate("document.querySelector('.fw-film-before').videoWidth") == 160
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.inner_text(".fw-all") == "Download all 2"
    page.tap("[data-at='0']")
    assert not page.is_visible(".fw-clip")
    page.wait_for_function("document.querySelector('.fw-film-after').paused")
    page.locator(".fw-item").nth(1).locator(".fw-away").tap()
    page.wait_for_function("!document.querySelector('.fw-film-after').hasAttribute('src')")


def test_stop_and_files_that_are_none(opened: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are words")
    (tmp_path / "half.mp4").write_bytes(film(tmp_path / "whole.mp4").read_bytes()[:-900])
    page = opened()
    page.set_input_files("#fw-input", [tmp_path / "notes.mp4", tmp_path / "half.mp4"])
    page.wait_for_function("document.querySelectorAll('.fw-item.fw-wrong').length === 2")
    assert "notes.mp4: is not a picture" in page.inner_text(".fw-stage .fw-wrong")
    page.click("[data-at='1']")
    assert "half.mp4: is truncated" in page.inner_text(".fw-stage .fw-wrong")
    send(page, film(tmp_path / "long.mp4", 300), ready=1)
    page.click("[data-at='2']")
    page.click("[data-do=film]")
    page.wait_for_function("window.fairweather.state.photos[2].job.frames > 2")
    assert "of 300 frames" in page.inner_text(".fw-clip-work")
    page.evaluate("window.fairweather.strength(90)")
    page.wait_for_function("document.querySelector('.fw-clip-work').innerText.includes('as they were')")
    job = page.evaluate("window.fairweather.state.photos[2].job.id")
    assert page.evaluate("document.activeElement.dataset.do") == "stop"
    page.keyboard.press("Enter")
    page.wait_for_function(f"fetch('/api/v1/clips/{job}').then(answer => answer.status === 404)")
    assert page.evaluate("document.activeElement.dataset.do") == "film"
    assert page.inner_text("#fw-said") == "long.mp4: was stopped"
    page.click("[data-do=film]")
    page.wait_for_function("window.fairweather.state.photos[2].job?.frames")
    job = page.evaluate("window.fairweather.state.photos[2].job.id")
    page.goto(f"{page.url}api/v1/health")  # who leaves the page cannot come back to it
    page.wait_for_function(f"fetch('/api/v1/clips/{job}').then(answer => answer.status === 404)")
