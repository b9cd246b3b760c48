"""What the page plays of a clip: the files themselves where browsers do, else H.264 of the same pictures and times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fairweather import images
from tests.video.conftest import av, frames_of, make
from tests.web.conftest import sailing
from tests.web.test_films import FAST, ended


def page_job(client: Any, path: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    """The token of a clip on the page, and what it says once it is restored."""
    token = client.post("/page/photos", params={"name": path.name}, content=path.read_bytes()).json()["token"]
    look = client.post(f"/page/photos/{token}/look", params=FAST).json()
    assert look["clip"]["frames"] == 12
    answer = client.post(f"/page/photos/{token}/clip", params={**FAST, **settings})
    assert answer.status_code == 202, answer.text
    return token, ended(client, answer.headers["location"])


@pytest.mark.parametrize(
    ("name", "how"),
    [("b.mkv", {"pixel_format": "yuv420p10le", "codec": "libx265", "audio": "aac"}),
     ("c.gif", {"codec": "gif", "pixel_format": "rgb8", "time_base": Fraction(1, 100)}), ("d.mov", {"rotation": 90})],
)  # fmt: skip
def test_the_page_shows_what_browsers_play(client: Any, tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    deep = "10" in how.get("pixel_format", "")
    shown = {} if deep else {"shown": sailing(12, 118, 158)}
    path = make(tmp_path / name, size=(158, 118), **how, **shown)
    token, found = page_job(client, path)
    frame = client.get(f"/page/photos/{token}/before")
    (tmp_path / "frame.jpg").write_bytes(frame.content)
    upright = (158, 118) if name == "d.mov" else (118, 158)
    assert images.read(tmp_path / "frame.jpg").pixels.shape[:2] == upright
    result = tmp_path / f"result{path.suffix}"
    result.write_bytes(client.get(f"/api/v1/clips/{found['id']}/result").content)
    for side, like in (("before", path), ("after", result)):
        answer = client.get(f"/page/clips/{found['id']}/{side}")
        assert answer.headers["content-type"] == "video/mp4"
        (tmp_path / f"{side}.mp4").write_bytes(answer.content)
        times, frames = frames_of(tmp_path / f"{side}.mp4")
        with av.open(str(tmp_path / f"{side}.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert len(file.streams.audio) == int("audio" in how and side == "after")
        expected, pictures = frames_of(like)
        assert np.allclose([float(one) for one in times], [float(one) for one in expected], atol=0.011)
        if name != "d.mov":  # which is stored on its side
            one, other = (cv2.blur(picture[5], (9, 9)).astype(int) for picture in (frames, pictures))
            assert np.abs(one - other).mean() < 4  # a GIF's dots are not kept
    assert client.get(f"/page/clips/{found['id']}/other").status_code == 422
    assert client.get("/page/clips/no-such-token/after").status_code == 404
    client.delete(f"/api/v1/clips/{found['id']}")
    client.delete(f"/page/photos/{token}")
