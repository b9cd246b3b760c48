"""What stands before every route: known hosts, known paths, and headers that keep the page to itself.

Gradio brings many routes (uploads, files by path, proxies, recordings); the page needs a handful of them to be drawn,
and the rest is closed. Its photos come and go by the routes of `pictures`, which know tokens and no paths.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fairweather.web.limits import RequestRefused, error_response

OWN_PATHS = ("/api/v1/", "/page/")
GRADIO_PATHS = re.compile(r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/.+"
                   r"|/gradio_api/(info|app_id|startup-events|heartbeat/\w+)/?")  # fmt: skip
"""Gradio's paths that the page asks for, all with GET."""
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self'; font-src 'self' data:; connect-src 'self'; form-action 'none'; "
        "base-uri 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Gradio compiles its templates in the browser, hence unsafe-eval; nothing is fetched from elsewhere, whoever asks."""


class RequestFilter:
    """ASGI. What is ours goes to `app`, the rest to the page that Gradio draws, where there is one: were that mounted
    in `app`, it would answer what `app` refuses. `hosts`: names by which the server may be called; None: any."""

    def __init__(self, app: Any, drawn: Any = None, hosts: Iterable[str] | None = None) -> None:
        self.app = app
        self.drawn = drawn
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket: nothing here speaks it, and what is not accepted is closed
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        wrong = self._wrong(scope["method"], scope["path"], headers)

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                extra = [
                    (name.encode(), value.encode())
                    for name, value in SECURITY_HEADERS.items()
                    if name.encode() not in given
                ]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        inside = self.app if self.drawn is None or scope["path"].startswith(OWN_PATHS) else self.drawn
        await (inside if wrong is None else error_response(wrong))(scope, receive, sent)

    def _wrong(self, method: str, path: str, headers: dict[str, str]) -> RequestRefused | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return RequestRefused(
                421, "unknown_host", f"this server is not called {host[:100]!r}; name it with --allow-host, "
                "or ask by the address that it was started with"
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD") and urlsplit(origin).netloc.lower() != host.lower():
            return RequestRefused(403, "other_site", "requests from other sites' pages are not answered")
        if ".." in path or "\\" in path or not path.isprintable():
            return RequestRefused(
                400, "bad_path", "there is no such path, and there never is one with '..' or '\\' in it"
            )
        if path.startswith(OWN_PATHS):
            return None
        if GRADIO_PATHS.fullmatch(path) is None:
            return RequestRefused(404, "no_such_path", "there is nothing at this path; docs/api.md lists what there is")
        if method not in ("GET", "HEAD"):
            return RequestRefused(405, "not_allowed", f"{method} is not for this path; the API is below /api/v1/")
        return None


def allowed_hosts(bound: str, allowed: Iterable[str] = ()) -> set[str] | None:
    """The names that a server bound to this address answers to: on this machine alone, its own; else all, unless some
    are named. A page elsewhere that gets a name of its own to lead here (DNS rebinding) is then turned away."""
    allowed = {name.lower() for name in allowed}
    try:
        local = ipaddress.ip_address(bound.strip("[]")).is_loopback
    except ValueError:
        local = bound.lower() == "localhost"
    if not local:
        return {*allowed, bound.lower()} if allowed else None
    return {*allowed, bound.lower(), "localhost", "127.0.0.1", "::1"}


def _name(host: str) -> str:
    """`Example.org:7860` -> `example.org`, `[::1]:7860` -> `::1`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
