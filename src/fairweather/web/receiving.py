"""A request's file, from the network to disk: counted as it comes, so that no limit is passed before it is noticed."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from fairweather.web.limits import Limits, Refused, too_large
from fairweather.web.service import plain_name

FIELD = "photo"
"""The part of a multipart request that holds the file, where that is not a clip."""
SLACK = 64 << 10
"""Bytes of a multipart request beside its file."""
LINGER = 10.0
"""Seconds for which a refused body is still taken in and thrown away: who is cut off sees no answer."""


async def receive(
    request: Request, folder: Path, limits: Limits, name: str | None, field: str = FIELD
) -> tuple[Path, str]:
    """Write the request's file into `folder`; gives its path, and what it is called: `name`, or as the part says.

    The body is the file itself, or multipart/form-data with a part `photo` (or what `field` says).
    Raises Refused: 413, 408 (too slow), 422 (no file in it), 400 (a form that cannot be read).
    """
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    most = limits.bytes + (SLACK if multipart else 0)
    called = plain_name(name) if name else field
    declared = request.headers.get("content-length", "")
    counted = _Counted(request, most)
    path = folder / "source"
    try:
        async with asyncio.timeout(limits.seconds):
            if declared.isdigit() and int(declared) > most:
                raise too_large(called, limits)
            if multipart:
                called = await _form(counted.request(), path, called, given=bool(name), limits=limits, field=field)
            else:
                with path.open("wb") as file:
                    async for chunk in counted.request().stream():
                        file.write(chunk)
    except TimeoutError:
        raise Refused(
            408, "too_slow", f"{called}: took longer than {limits.seconds:g} s to arrive; send it again"
        ) from None
    except _TooMuch:
        await counted.linger()
        raise too_large(called, limits) from None
    except Refused as error:
        if error.status == 413:
            await counted.linger()
        raise
    except ClientDisconnect:
        raise Refused(400, "incomplete", f"{called}: did not arrive whole; send it again") from None
    except OSError as error:
        raise Refused(507, "no_room", f"{called}: the server's disk is full or cannot be written") from error
    if not path.stat().st_size:
        raise Refused(
            422, "empty", f"{called}: is empty (0 bytes); send the {field}'s file as the body, or as a part {field!r}"
        )
    return path, called


class _TooMuch(Exception):
    """More bytes than are taken."""


class _Counted:
    """The request, with its body counted while it is read."""

    def __init__(self, request: Request, most: int) -> None:
        self._request, self._left, self._ended = request, most, False

    def request(self) -> Request:
        return Request(self._request.scope, self._receive)

    async def _receive(self) -> Any:
        message = await self._request.receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _TooMuch
        return message

    async def linger(self) -> None:
        """Take in what is still being sent and throw it away, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._ended:
                    with suppress(_TooMuch):
                        await self._receive()


async def _form(request: Request, path: Path, called: str, *, given: bool, limits: Limits, field: str) -> str:
    try:
        form = await request.form(max_files=1, max_fields=8)
    except MultiPartException as error:
        raise Refused(400, "bad_form", f"the form cannot be read ({error.message}); send one part {field!r}") from None
    except Exception as error:
        # Starlette turns what the parser raises into its own HTTPException where an app is in the scope.
        if isinstance(error, _TooMuch | ClientDisconnect | TimeoutError | OSError):
            raise
        raise Refused(400, "bad_form", f"the form cannot be read; send one part {field!r} with the file") from error
    try:
        found = form.get(field)
        if not isinstance(found, UploadFile):
            raise Refused(422, "no_file", f"there is no file in the form; send it as the part {field!r}")
        if not given and found.filename:
            called = plain_name(found.filename)
        if (found.size or 0) > limits.bytes:
            raise too_large(called, limits)
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, found.file, file)
    finally:
        await form.close()
    return called
