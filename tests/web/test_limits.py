"""Limits out of range, and the status of each error, without paths of the server."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fairweather.errors import BadCard, BadFolder, BadImage, BadSettings, MissingExtra, UnknownName

pytest.importorskip("starlette")

from fairweather.web.limits import Limits, as_refusal


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 0}, {"max_pixels": 0}, {"workers": 0}, {"queue": -1}, {"timeout": 0.0}, {"timeout": float("nan")},
     {"keep": float("inf")}, {"disk": 0}, {"max_video_seconds": 0.0}, {"video_timeout": float("inf")}],
)  # fmt: skip
def test_values_out_of_range_name_the_flag(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(BadSettings, match=f"--{name.replace('_', '-')} must"):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadImage("/srv/secret/source is truncated: get a complete copy"), 422),
        (BadSettings("strength must be from 0 to 1"), 422),
        (UnknownName("model", "dehazer", ["dehaze"]), 404),
        (MissingExtra("pillow_heif", "photo", "HEIC"), 415),
        (BadFolder("/srv/secret/restored.jpg: the disk is full"), 507),
        (OSError(errno.ENOSPC, "no space left"), 507),
        (BadCard("/srv/secret/card.json is damaged"), 500),
        (MemoryError(), 503),
        (ZeroDivisionError("/srv/secret"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    refused = as_refusal(error, "/srv/secret/source", "harbour.jpg")
    assert (refused.status, refused.detail["status"]) == (status, status)
    assert "/srv" not in str(refused)
    assert ("Retry-After" in refused.headers) == (status == 503)
    assert as_refusal(refused) is refused
    if isinstance(error, BadImage):
        assert str(refused) == "harbour.jpg is truncated: get a complete copy"
