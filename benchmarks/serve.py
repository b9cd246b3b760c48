"""A load test of `fairweather serve`: are all requests answered with the right photo, and does memory stay flat?

    python benchmarks/serve.py [--requests 200] [--at-a-time 8] [--large 10]

Starts a server without the page in its own process, and sends the photos of `examples/` in turn from threads of this
one; every `--large`th request is a photo of 12 megapixels. Every response is compared with the first one to the
same photo. Memory is the server's resident memory: after the first quarter of the requests, which loads every
model, and at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LARGE = (3000, 4000)


@dataclass
class Load:
    """The results of all requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    """Responses of each status; 0 is no response."""
    different: int = 0
    """Responses that differ from the first one to the same photo."""
    resident: list[int] = field(default_factory=list)
    """Bytes of the server's memory after each response."""
    wall: float = 0.0


@contextmanager
def server(*flags: str) -> Iterator[tuple[int, int]]:
    """Start a server, and return its port and process id."""
    command = [sys.executable, "-m", "fairweather", "serve", "--no-page", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+) ", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield int(found[1]), process.pid
        finally:
            process.terminate()


def resident(process: int) -> int:
    """Bytes of a process's resident memory (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def send(port: int, name: str, body: bytes) -> tuple[int, bytes]:
    """Send one request on a new connection, and return the response's status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", f"/api/v1/restore?name={name}", body)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def run(port: int, process: int, photos: list[tuple[str, bytes]], requests: int, at_a_time: int) -> Load:
    """Send all requests, `at_a_time` of them at once, photos in turn."""
    load, lock, first = Load(), threading.Lock(), dict[str, str]()

    def one(number: int) -> None:
        name, body = photos[number % len(photos)]
        began = time.perf_counter()
        status, photo = send(port, name, body)
        seconds = time.perf_counter() - began
        digest = hashlib.sha256(photo).hexdigest()
        with lock:
            load.seconds.append(seconds)
            load.statuses[status] = load.statuses.get(status, 0) + 1
            load.different += first.setdefault(name, digest) != digest
            load.resident.append(resident(process))

    began = time.perf_counter()
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, range(requests)))
    load.wall = time.perf_counter() - began
    return load


def table(load: Load) -> str:
    """The results as a Markdown table."""
    times, count = sorted(load.seconds), len(load.seconds)
    quarter, memory = load.resident[count // 4 :], [size / 2**20 for size in load.resident]
    slope = statistics.linear_regression(range(len(quarter)), [size / 2**20 for size in quarter]).slope * 100
    rows = [
        ("responses with a photo", f"{load.statuses.get(200, 0)} of {count}"),
        *((f"responses with {status or 'nothing'}", str(n)) for status, n in load.statuses.items() if status != 200),
        ("responses that differ from the first one to the same photo", str(load.different)),
        ("requests per second", f"{count / load.wall:.2f}"),
        ("median", f"{statistics.median(times):.2f} s"),
        ("95th percentile", f"{times[min(count - 1, round(0.95 * count))]:.2f} s"),
        ("slowest", f"{times[-1]:.2f} s"),
        ("server's memory after a quarter of the requests", f"{memory[count // 4]:.0f} MiB"),
        ("at the end", f"{memory[-1]:.0f} MiB"),
        ("peak", f"{max(memory):.0f} MiB"),
        ("trend over the last three quarters", f"{slope:+.1f} MiB in 100 requests"),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def large() -> bytes:
    """A hazy JPEG of 12 megapixels, enlarged from an example."""
    small = cv2.imread(str(EXAMPLES / "lighthouse.jpg"))
    grown = cv2.resize(small, LARGE[::-1], interpolation=cv2.INTER_CUBIC)
    encoded: np.ndarray = cv2.imencode(".jpg", grown, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return encoded.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=8)
    parser.add_argument("--large", type=int, default=10, help="every so many requests, one of 12 megapixels; 0: none")
    args = parser.parse_args()
    small = [(path.name, path.read_bytes()) for path in sorted(EXAMPLES.glob("*.jpg"))]
    photos = list(small)
    if args.large:
        photos = [small[number % len(small)] for number in range(args.large - 1)] + [("large.jpg", large())]
    with server("--queue", str(args.at_a_time)) as (port, process):
        load = run(port, process, photos, args.requests, args.at_a_time)
    print(f"{args.requests} requests, {args.at_a_time} at a time\n\n{table(load)}")
    return 0 if load.statuses == {200: args.requests} and not load.different else 1


if __name__ == "__main__":
    raise SystemExit(main())
