"""What a limit may be, and what a refusal says: a status, the file as its owner calls it, never the server's paths."""

from __future__ import annotations

from typing import Any

import pytest

from fairweather.errors import BadCard, BadFolder, BadImage, BadSettings, MissingExtra, UnknownName
from fairweather.web.limits import Limits, RequestRefused, as_refusal


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [({"bytes": 0}, "--max-bytes"), ({"pixels": 0}, "--max-pixels"), ({"at_once": 0}, "--at-once"),
     ({"waiting": -1}, "--waiting"), ({"seconds": 0.0}, "--seconds"), ({"seconds": float("nan")}, "--seconds"),
     ({"keep": float("inf")}, "--keep"), ({"disk": 0}, "--disk"), ({"length": 0.0}, "--max-clip-seconds"),
     ({"work": float("inf")}, "--clip-seconds")],
)  # fmt: skip
def test_limits_that_are_none(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(BadSettings, match=flag):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadImage("/srv/secret/source: is truncated; get a whole copy"), 422),
        (BadSettings("strength must be from 0 to 1"), 422),
        (UnknownName("model", "dehazer", ["dehaze"]), 404),
        (MissingExtra("pillow_heif", "photo", "HEIC"), 415),
        (BadFolder("/srv/secret/restored.jpg: the disk is full"), 507),
        (BadCard("/srv/secret/card.json is damaged"), 500),
        (MemoryError(), 503),
        (ZeroDivisionError("/srv/secret"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    wrong = as_refusal(error, "/srv/secret/source", "harbour.jpg")
    assert wrong.status == status
    assert "/srv" not in str(wrong)
    assert (wrong.retry is not None) == (status == 503)
    assert set(wrong.body()["error"]) == {"status", "kind", "message"}  # type: ignore[call-overload]
    if isinstance(error, BadImage):
        assert str(wrong) == "harbour.jpg: is truncated; get a whole copy"


def test_a_refusal_stays_what_it_is() -> None:
    wrong = RequestRefused(418, "teapot", "short and stout")
    assert as_refusal(wrong) is wrong
