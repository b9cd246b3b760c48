"""`fairweather serve`: a page in the browser, and an HTTP API, for photos and clips."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fairweather.errors import BadSettings

if TYPE_CHECKING:
    from fairweather.web.jobs import PhotoService


def serve(
    *,
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 7860,
    share: Literal["no"] = "no",
    page: bool = True,
    models: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...", help_behavior_hint="")] = (),
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = (),
    max_bytes: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "100MB",
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = 100_000_000,
    at_once: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one for each core)")
    ] = None,
    waiting: Annotated[int, tyro.conf.arg(metavar="N")] = 16,
    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 120.0,
    keep: Annotated[float, tyro.conf.arg(metavar="MINUTES")] = 30.0,
    disk: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "2GB",
    max_clip_seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 60.0,
    clip_seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 1800.0,
    memory: Annotated[
        str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: three quarters of what is free)")
    ] = None,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
) -> int:
    """Serve the page and the API until Ctrl-C. Nobody but this machine is answered unless --host says so.

    Photos and clips stay in a folder for temporary files, for a while, and go when the server does; nothing is sent
    anywhere. There is no password: whoever can reach the port can use it. docs/api.md describes the API.

    Args:
        host: the address to listen on; 0.0.0.0 is every one that this machine has.
        port: 0 takes one that is free, and says which.
        share: no tunnel is opened to anywhere; there is nothing but no.
        page: without (--no-page) there is the API alone, which needs less memory and starts sooner.
        models: folders of models of your own, offered beside those that ship.
        allow_host: further names by which the server may be called, behind a proxy for one.
        max_bytes: refuse larger files.
        max_pixels: refuse larger photos, and clips of larger frames, before decoding them.
        at_once: requests that are worked on at once.
        waiting: requests that may wait for that, and clips; further ones are told to come again.
        seconds: how long a photo may take to arrive, and how long from there to its answer.
        keep: minutes that clips, and the page's photos, stay after they were last asked for.
        disk: bytes of all that is kept so.
        max_clip_seconds: refuse longer clips (extra `video`), and stop those that turn out to be.
        clip_seconds: how long one clip may be worked on; photos are answered meanwhile.
        memory: 2GB, 1.5GiB, 500MB: photos and clips wait until they fit, and what never fits is refused.
        engine: what runs the networks, as for `fairweather restore`.
        precision: as for `fairweather restore`.
    """
    if not 0 <= port <= 65535:
        raise BadSettings(f"--port must be from 0 to 65535, not {port}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    listening = _listening(host, port)
    with listening:
        import uvicorn

        from fairweather.inference.memory import parse_size
        from fairweather.web.app import create
        from fairweather.web.jobs import PhotoService
        from fairweather.web.limits import Limits
        from fairweather.web.middleware import allowed_hosts
        from fairweather.web.model_registry import ModelRegistry

        limits = Limits(
            bytes=parse_size(max_bytes, "--max-bytes"),
            pixels=max_pixels,
            at_once=min(8, os.cpu_count() or 2) if at_once is None else at_once,
            waiting=waiting,
            seconds=seconds,
            keep=keep,
            disk=parse_size(disk, "--disk"),
            length=max_clip_seconds,
            work=clip_seconds,
        )
        service = PhotoService(
            limits,
            offered=lambda windows: ModelRegistry(models, engine=engine, precision=precision, memory=windows),
            memory=None if memory is None else parse_size(memory),
        )
        before = signal.signal(signal.SIGTERM, _on_shutdown)  # uvicorn raises it once more when it has ended
        try:
            application = create(service, hosts=allowed_hosts(host, allow_host), page=page)
            _print_greeting(service, host, listening.getsockname()[1])
            config = uvicorn.Config(
                application,
                log_level="warning",
                server_header=False,
                limit_concurrency=256,  # connections, idle ones and those for the page's own files included
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
            )
            uvicorn.Server(config).run([listening])
        finally:
            service.close()
            signal.signal(signal.SIGTERM, before)
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """The socket, bound before anything slow is done. Raises BadSettings."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)  # who comes while models and page are prepared waits, and is not turned away
    except socket.gaierror:
        raise BadSettings(f"--host {host} is no address of this machine: give one, or leave it out") from None
    except OSError as error:
        raise BadSettings(
            f"--host {host} --port {port} cannot be listened on ({error.strerror}): give another port, or --port 0"
        ) from error
    return found


def _on_shutdown(signal: int, frame: object) -> None:
    raise SystemExit(0)


def _print_greeting(service: PhotoService, host: str, port: int) -> None:
    log = logging.getLogger("fairweather")
    if service.folders.swept:
        log.info("removed what %d killed server(s) left behind", len(service.folders.swept))
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    print(f"fairweather: http://{f'[{shown}]' if ':' in shown else shown}:{port} (Ctrl-C ends it)", flush=True)
    if host in ("0.0.0.0", "::"):
        print("fairweather: whoever reaches this machine can use it; there is no password", file=sys.stderr)
