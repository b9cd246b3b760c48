"""Take the screenshots of the page, with example photos and a video panned over one: python docs/page/shoot.py

Needs the extras `web` and `video`, Playwright, and Debian's Chromium (tests/web/chromium.sh installs it).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
DESKTOP = {"viewport": {"width": 1360, "height": 850}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SHOTS = {
    "start": DESKTOP,
    "desktop": DESKTOP,
    "map": DESKTOP,
    "video": DESKTOP,
    "dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": PHONE,
    "phone-dark": {**PHONE, "color_scheme": "dark"},
}
"""File name -> options of the browser."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--only", nargs="*", choices=SHOTS, default=list(SHOTS))
    args = parser.parse_args()
    command = [sys.executable, "-m", "fairweather", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
                for name in args.only:
                    page = browser.new_context(**SHOTS[name]).new_page()
                    page.set_default_timeout(300_000)
                    page.goto(address[0])
                    page.wait_for_selector(".fw-started .fw-drop")
                    prepare(page, name)
                    page.wait_for_timeout(600)
                    page.screenshot(path=args.out / f"{name}.jpg", type="jpeg", quality=82)
                    page.close()
        finally:
            server.terminate()


def prepare(page: Page, name: str) -> None:
    """Bring the page into the state to be shown."""
    if name == "start":
        page.wait_for_function("[...document.querySelectorAll('.fw-example img')].every(image => image.complete)")
    elif name == "video":
        with tempfile.TemporaryDirectory() as folder:
            send(page, [pan(Path(folder) / "mountain_river.mp4", EXAMPLES / "mountain_river.jpg")])
        page.click("#fw-weather label:has-text('Haze') >> nth=0")
        page.wait_for_function("document.querySelector('.fw-applied').innerText.startsWith('Removed: haze')")
        page.click("[data-do=video]")
        page.wait_for_selector(".fw-plays.fw-video-loaded")
        page.keyboard.press("Space")
        page.locator(".fw-seek").fill("1.5")
        page.locator(".fw-seek").blur()
    else:
        names = [
            "lighthouse",
            *([] if name.startswith("phone") else ["barn", "mountain_river", "old_town", "shutters"]),
        ]
        send(page, [EXAMPLES / f"{photo}.jpg" for photo in names])
        page.click("[data-at='0']")
        if name == "map":
            page.click("[data-do=map]")
        page.wait_for_function("[...document.querySelectorAll('.fw-canvas img[src]')].every(image => image.complete)")


def send(page: Page, paths: list[Path]) -> None:
    page.set_input_files("#fw-input", paths)
    page.wait_for_function(f"document.querySelectorAll('.fw-item.fw-ready').length === {len(paths)}")


def pan(path: Path, photo: Path, seconds: int = 3, rate: int = 25) -> Path:
    """Write a video that pans over a photo."""
    whole = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    height, width = whole.shape[0] // 2 * 2, whole.shape[1] * 4 // 5 // 2 * 2
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        count = seconds * rate
        for number in range(count):
            left = (whole.shape[1] - width) * number // count
            frame = np.ascontiguousarray(whole[:height, left : left + width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
