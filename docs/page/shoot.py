"""Screenshots of the page, with the photos that come with it, and a film: python docs/page/shoot.py

Starts a server of its own and looks at it with Debian's Chromium (tests/web/chromium.sh installs it) by Playwright.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
SHOTS = {
    "start": {"viewport": {"width": 1360, "height": 850}},
    "desktop": {"viewport": {"width": 1360, "height": 850}},
    "map": {"viewport": {"width": 1360, "height": 850}},
    "clip": {"viewport": {"width": 1360, "height": 850}},
    "dark": {"viewport": {"width": 1360, "height": 850}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
    "phone-dark": {
        **{"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True},
        "color_scheme": "dark",
    },
}
"""File name -> how the browser is set up for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--only", nargs="*", choices=SHOTS, default=list(SHOTS))
    parser.add_argument("--film", type=Path, default=Path("../shared/data/real/video/fog_city.mp4"))
    given = parser.parse_args()
    command = [sys.executable, "-m", "fairweather", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
                for name in given.only:
                    page = browser.new_context(**SHOTS[name]).new_page()
                    page.goto(address[0])
                    page.wait_for_selector(".fw-begun .fw-drop")
                    if name == "clip":
                        roll(page, given.film)
                    else:
                        pose(page, name)
                    page.wait_for_timeout(600)
                    page.screenshot(path=given.out / f"{name}.jpg", type="jpeg", quality=82)
                    page.close()
        finally:
            server.terminate()


def pose(page: Page, name: str) -> None:
    """What is to be seen."""
    if name == "start":
        page.wait_for_function("[...document.querySelectorAll('.fw-example img')].every(one => one.complete)")
        return
    photos = (
        ["lighthouse.jpg"]
        if name.startswith("phone")
        else ["fog_city_128.jpg", "mountain_river.jpg", "shutters.jpg", "lighthouse.jpg"]
    )
    examples = HERE.parent.parent / "examples"
    page.set_input_files("#fw-input", [examples / photo for photo in photos])
    page.wait_for_function(f"document.querySelectorAll('.fw-item.fw-ready').length === {len(photos)}", timeout=120_000)
    page.click(f".fw-item button >> nth={2 * (len(photos) - 1)}")
    if name == "map":
        page.click("[data-do=map]")
    page.wait_for_function("[...document.querySelectorAll('.fw-canvas img[src]')].every(one => one.complete)")


def roll(page: Page, film: Path) -> None:
    """Three seconds of a film, restored; it stands still in their middle."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / film.name
        command = [sys.executable, "-m", "fairweather", "restore", str(film), "-o", str(part), "--weather", "none"]
        subprocess.run([*command, "--start", "4", "--end", "7"], check=True)
        page.set_input_files("#fw-input", [part])
        page.wait_for_function("document.querySelectorAll('.fw-item.fw-ready').length === 1", timeout=120_000)
        page.click("#fw-weather label:has-text('Haze') >> nth=0")
        page.wait_for_function("document.querySelector('.fw-done').innerText.startsWith('Taken out: haze')")
        page.click("[data-do=film]")
        page.wait_for_selector(".fw-plays.fw-rolling", timeout=300_000)
        page.keyboard.press("Space")
        page.locator(".fw-seek").fill("1.5")
        page.locator(".fw-seek").blur()


if __name__ == "__main__":
    main()
