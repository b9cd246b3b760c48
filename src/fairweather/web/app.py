"""The ASGI application of `fairweather serve`: the API and the page behind a filter of hosts, sites and paths."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

import fairweather
from fairweather.errors import FairweatherError
from fairweather.web.api import api_router
from fairweather.web.jobs import Service
from fairweather.web.limits import RequestRefused, as_refusal

EXPIRE_INTERVAL = 30.0
"""Seconds between two searches for stored files past their time to live."""
OWN_PATHS = ("/api/v1/", "/page/")
GRADIO_PATHS = re.compile(r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/.+"
                          r"|/gradio_api/(info|app_id|startup-events|heartbeat/\w+)/?")  # fmt: skip
"""The paths of Gradio that the page requests, all with GET; its uploads, proxies and file paths are closed."""
SECURITY_HEADERS = {
    # Gradio compiles its templates in the browser, hence unsafe-eval.
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
"""Security headers: nothing is loaded from other hosts."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{0,5}))?", re.IGNORECASE)
_RANGE = re.compile(r"bytes=\s*(\d{1,18}-\d{0,18}|-\d{1,18})(\s*,\s*(\d{1,18}-\d{0,18}|-\d{1,18}))*\s*")
_log = logging.getLogger("fairweather")


def create(service: Service, *, hosts: Iterable[str] | None = None, page: bool = True) -> RequestFilter:
    """Create the ASGI application.

    Args:
        service: what it serves.
        hosts: the host names that are accepted; None: any.
        page: whether to serve the page; without it Gradio is not imported.
    """
    gradio_app: FastAPI | None = None
    if page:
        from fairweather.web.page import mount_page, page_router

        gradio_app = mount_page(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(EXPIRE_INTERVAL)
                await asyncio.to_thread(service.store.expire)

        task = asyncio.create_task(expire())
        try:
            async with gradio_app.router.lifespan_context(gradio_app) if gradio_app else nullcontext():
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(
        title="fairweather",
        version=fairweather.__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    for kind in (FairweatherError, OSError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond)
    routers = [api_router(service), *([page_router(service)] if page else [])]
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    return RequestFilter(app, gradio_app, hosts)


async def _respond(request: Request, error: Exception) -> Response:
    """Respond to an error of a route with JSON."""
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[0]
        message = f"{wrong['loc'][-1]}: {wrong['msg']}, not {str(wrong.get('input'))[:60]!r}"
        return error_response(RequestRefused(422, "bad_setting", message))
    if isinstance(error, HTTPException):
        kind = {404: "no_such_path", 405: "method_not_allowed"}.get(error.status_code, "refused")
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else dict(error.headers or {})
        return error_response(RequestRefused(error.status_code, kind, message, headers=headers))
    refused = as_refusal(error)
    if refused.status == 500 and refused is not error:
        _log.error("%s", request.url.path, exc_info=error)
    return error_response(refused)


def _allowed_methods(request: Request) -> str:
    """The methods of all routes of a path; Starlette's own header has those of the first one only."""
    routes = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


def error_response(error: RequestRefused) -> Response:
    """The JSON response for an error."""
    return JSONResponse({"error": error.detail}, error.status, error.headers)


class RequestFilter:
    """ASGI middleware: rejects unknown hosts, other sites and closed paths, and adds security headers.

    Starlette's TrustedHostMiddleware rejects with plain text and status 400, and checks no origin, so the host is
    checked here too.

    Args:
        app: the application of the API and the page's own routes.
        gradio_app: the application that serves the rest of the page. It is not mounted in `app`, since it would then
            answer the paths that `app` rejects.
        hosts: the host names that are accepted; None: any.
    """

    def __init__(self, app: Any, gradio_app: Any = None, hosts: Iterable[str] | None = None) -> None:
        self.app = app
        self.gradio_app = gradio_app
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket, which is not used: not accepting it closes it
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not _valid_range(headers.get("range", "")):  # ignored, as RFC 9110 allows
            scope = {**scope, "headers": [item for item in scope["headers"] if item[0] != b"range"]}
        refused = self._check(scope["method"], scope["path"], headers)

        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()
                         if name.encode() not in present]  # fmt: skip
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        own = self.gradio_app is None or scope["path"].startswith(OWN_PATHS)
        app = error_response(refused) if refused else self.app if own else self.gradio_app
        await app(scope, receive, send_secured)

    def _check(self, method: str, path: str, headers: dict[str, str]) -> RequestRefused | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = host_name(host)
        if name is None and (host or self.hosts is not None):
            return RequestRefused(400, "bad_host", f"Host {host[:100]!r} is not a host name with an optional port")
        if self.hosts is not None and name not in self.hosts:
            return RequestRefused(
                421, "unknown_host", f"this server does not accept the host {host[:100]!r}: start it with "
                f"--allow-host {name}, or use the address that it printed"
            )  # fmt: skip
        if origin is not None and method not in ("GET", "HEAD"):
            _, scheme, site = origin.partition("://")
            if not scheme or site.lower() != host.lower():
                return RequestRefused(403, "cross_site", "requests from other sites' pages are rejected")
        if ".." in path or "\\" in path or not path.isprintable():
            return RequestRefused(400, "bad_path", "the path contains '..', '\\' or a control character")
        if path.startswith(OWN_PATHS):
            return None
        if GRADIO_PATHS.fullmatch(path) is None:
            return RequestRefused(404, "no_such_path", "this path does not exist: the API is under /api/v1/")
        if method not in ("GET", "HEAD"):
            message = f"{method} is not allowed for this path: the API is under /api/v1/"
            return RequestRefused(405, "method_not_allowed", message, headers={"Allow": "GET, HEAD"})
        return None


def allowed_hosts(bound: str, allowed: Iterable[str] = ()) -> set[str] | None:
    """The host names that a server accepts, so that no other site can reach it by its own name (DNS rebinding).

    Args:
        bound: the address that it listens on.
        allowed: further names.

    Returns:
        For a loopback address its own names and the further ones; for another one the further ones, or None (any).
    """
    allowed = {name.lower() for name in allowed}
    bound = bound.strip("[]").lower()
    try:
        local = ipaddress.ip_address(bound).is_loopback
    except ValueError:
        local = bound == "localhost"
    if not local:
        return {*allowed, bound} if allowed else None
    return {*allowed, bound, "localhost", "127.0.0.1", "::1"}


def host_name(header: str) -> str | None:
    """The name in a Host header, `[::1]:7860` -> `::1`; None if it is not `host` or `host:port`."""
    found = _HOST.fullmatch(header)
    if found is None or int(found[2] or 0) > 65535:
        return None
    return found[1].strip("[]").lower()


def _valid_range(header: str) -> bool:
    if not header:
        return True
    bounds = re.findall(r"(\d+)-(\d+)", header)
    return _RANGE.fullmatch(header) is not None and all(int(start) <= int(end) for start, end in bounds)
