"""`fairweather serve`: a web page and an HTTP API, for photos and videos."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fairweather.errors import BadSettings
from fairweather.web.limits import Limits

LIMITS = Limits()  # the defaults


def serve(
    *,
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 7860,
    page: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True,
    models: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...", help_behavior_hint="")] = (),
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = (),
    max_bytes: Annotated[str, tyro.conf.arg(metavar="SIZE")] = f"{LIMITS.max_bytes // 10**6}MB",
    max_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = LIMITS.max_pixels,
    max_video_seconds: Annotated[float, tyro.conf.arg(metavar="S")] = LIMITS.max_video_seconds,
    workers: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one for each core, at most 8)")
    ] = None,
    queue: Annotated[int, tyro.conf.arg(metavar="N")] = LIMITS.queue,
    timeout: Annotated[float, tyro.conf.arg(metavar="S")] = LIMITS.timeout,
    video_timeout: Annotated[float, tyro.conf.arg(metavar="S")] = LIMITS.video_timeout,
    keep: Annotated[float, tyro.conf.arg(metavar="MINUTES")] = LIMITS.keep,
    disk: Annotated[str, tyro.conf.arg(metavar="SIZE")] = f"{LIMITS.disk // 10**9}GB",
    memory: Annotated[
        str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: three quarters of what is free)")
    ] = None,
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "torch-compiled"] = "auto",
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto",
) -> int:
    """Serve the web page and the API until Ctrl-C, on this machine only unless --host is given.

    Uploads are stored in a temporary folder, removed when the server ends at the latest, and never sent to other
    machines. There is no password: anyone who can reach the port can use the server. docs/api.md describes the API.

    Args:
        host: Address to listen on; 0.0.0.0 for all of this machine's addresses.
        port: Port to listen on; 0 for any free one, which is printed.
        page: Serve the web page; --no-page serves the API only, needs less memory and starts faster.
        models: Model folders to serve in addition to the shipped models.
        allow_host: Further host names that the server answers to, e.g. behind a proxy.
        max_bytes: Largest upload.
        max_pixels: Largest photo, and largest frame of a video, checked before decoding.
        max_video_seconds: Longest video (extra `video`).
        workers: Number of requests processed at once.
        queue: Number of requests, and of videos, that may wait; further ones get status 503.
        timeout: Time limit in seconds for receiving an upload, and again for processing it.
        video_timeout: Time limit in seconds for restoring one video; photos are processed meanwhile.
        keep: Minutes for which videos and the page's photos are stored after their last use.
        disk: Limit for the total size of all stored files.
        memory: Memory limit for the whole process, e.g. 2GB; uploads wait, or are rejected if they can never fit.
        engine: Engine that runs the networks, as for `fairweather restore`.
        precision: Precision of the networks, as for `fairweather restore`.
    """
    if not 0 <= port <= 65535:
        raise BadSettings(f"--port must be from 0 to 65535, not {port}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with _listen(host, port) as listener:
        import uvicorn

        from fairweather.inference.memory import parse_size
        from fairweather.web.app import allowed_hosts, create
        from fairweather.web.connections import HEADER_TIMEOUT, MAX_CONNECTIONS, TimedConnection
        from fairweather.web.jobs import Service
        from fairweather.web.model_registry import ModelRegistry

        limits = Limits(
            max_bytes=parse_size(max_bytes, "--max-bytes"),
            max_pixels=max_pixels,
            max_video_seconds=max_video_seconds,
            workers=min(8, os.cpu_count() or 2) if workers is None else workers,
            queue=queue,
            timeout=timeout,
            video_timeout=video_timeout,
            keep=keep,
            disk=parse_size(disk, "--disk"),
        )
        service = Service(
            limits,
            models=lambda windows: ModelRegistry(models, engine=engine, precision=precision, memory=windows),
            memory=None if memory is None else parse_size(memory),
        )
        os.environ["GRADIO_TEMP_DIR"] = str(service.folders.root / "gradio")  # read when Gradio is imported
        previous = signal.signal(signal.SIGTERM, _exit)  # uvicorn raises the signal again when it has ended
        try:
            application = create(service, hosts=allowed_hosts(host, allow_host), page=page)
            if service.folders.removed:
                message = "removed the temporary files of %d killed server(s)"
                logging.getLogger("fairweather").info(message, len(service.folders.removed))
            _print_address(host, listener.getsockname()[1])
            config = uvicorn.Config(
                application,
                http=TimedConnection,
                log_level="warning",
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=int(HEADER_TIMEOUT),
                timeout_graceful_shutdown=5,
            )
            uvicorn.Server(config).run([listener])
        finally:
            service.close()
            signal.signal(signal.SIGTERM, previous)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Open the socket, before anything slow; connections wait until the server is ready."""
    host = host.strip("[]")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except socket.gaierror:
        raise BadSettings(f"--host {host} is not an address of this machine: give one, or omit --host") from None
    except OSError as error:
        raise BadSettings(
            f"--host {host} --port {port} cannot be used ({os.strerror(error.errno or 0)}): give another port, or "
            "--port 0"
        ) from error


def _exit(signal: int, frame: object) -> None:
    raise SystemExit(0)


def _print_address(host: str, port: int) -> None:
    everywhere = host.strip("[]") in ("0.0.0.0", "::")
    shown = "127.0.0.1" if everywhere else host.strip("[]")
    print(f"fairweather: http://{f'[{shown}]' if ':' in shown else shown}:{port} (Ctrl-C ends it)", flush=True)
    if everywhere:
        print("fairweather: there is no password: anyone who can reach this machine can use it", file=sys.stderr)
