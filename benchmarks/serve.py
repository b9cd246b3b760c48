"""Many requests at a time to a real server: are all answered, with the right photo, and does its memory stay flat?

    python benchmarks/serve.py [--requests 200] [--at-a-time 8] [--large 10]

Starts `fairweather serve --no-page` in a process of its own and asks its API from threads of this one, for the photos
of `examples/` in turn; every `--large`th request is one of 12 megapixels instead. Every answer is compared, byte for
byte, with the first to the same photo. Memory is what the system counts for the server, resident: after the first
quarter of the requests, which meets every photo and opens every model, and at the end.
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
    """What became of the requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    """How often each status was answered; 0 is no answer at all."""
    different: int = 0
    """Answers that are not, byte for byte, the first one to the same photo."""
    resident: list[int] = field(default_factory=list)
    """Bytes of the server's memory, after each answer."""
    wall: float = 0.0


@contextmanager
def server(*words: str) -> Iterator[tuple[int, int]]:
    """A server of its own; gives its port and its process's number."""
    command = [sys.executable, "-m", "fairweather", "serve", "--no-page", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+) ", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield int(found[1]), process.pid
        finally:
            process.terminate()


def resident(process: int) -> int:
    """Bytes of RAM that a process holds now (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def ask(port: int, name: str, body: bytes) -> tuple[int, bytes]:
    """One request in a connection of its own: its status, and the answer's body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", f"/api/v1/restore?name={name}", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def run(port: int, process: int, photos: list[tuple[str, bytes]], requests: int, at_a_time: int) -> Load:
    """All requests, `at_a_time` of them under way, photos in turn."""
    load, lock, first = Load(), threading.Lock(), dict[str, str]()

    def one(number: int) -> None:
        name, body = photos[number % len(photos)]
        began = time.perf_counter()
        status, answer = ask(port, name, body)
        taken = time.perf_counter() - began
        digest = hashlib.sha256(answer).hexdigest()
        with lock:
            load.seconds.append(taken)
            load.statuses[status] = load.statuses.get(status, 0) + 1
            load.different += first.setdefault(name, digest) != digest
            load.resident.append(resident(process))

    began = time.perf_counter()
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, range(requests)))
    load.wall = time.perf_counter() - began
    return load


def table(load: Load) -> str:
    """The answers, as Markdown."""
    times, count = sorted(load.seconds), len(load.seconds)
    quarter, memory = load.resident[count // 4 :], [size / 2**20 for size in load.resident]
    slope = statistics.linear_regression(range(len(quarter)), [size / 2**20 for size in quarter]).slope * 100
    rows = [
        ("answered with a photo", f"{load.statuses.get(200, 0)} of {count}"),
        *((f"answered with {status or 'nothing'}", str(n)) for status, n in load.statuses.items() if status != 200),
        ("other than the first answer to the same photo", str(load.different)),
        ("requests a second", f"{count / load.wall:.2f}"),
        ("median", f"{statistics.median(times):.2f} s"),
        ("95 % are faster than", f"{times[min(count - 1, round(0.95 * count))]:.2f} s"),
        ("slowest", f"{times[-1]:.2f} s"),
        ("server's memory after a quarter of them", f"{memory[count // 4]:.0f} MiB"),
        ("at the end", f"{memory[-1]:.0f} MiB"),
        ("the most", f"{max(memory):.0f} MiB"),
        ("trend over the last three quarters", f"{slope:+.1f} MiB in 100 requests"),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def large() -> bytes:
    """A hazy JPEG of 12 megapixels: an example, enlarged."""
    small = cv2.imread(str(EXAMPLES / "lighthouse.jpg"))
    grown = cv2.resize(small, LARGE[::-1], interpolation=cv2.INTER_CUBIC)
    encoded: np.ndarray = cv2.imencode(".jpg", grown, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return encoded.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=8)
    parser.add_argument("--large", type=int, default=10, help="every so manieth request is of 12 megapixels; 0: none")
    given = parser.parse_args()
    small = [(path.name, path.read_bytes()) for path in sorted(EXAMPLES.glob("*.jpg"))]
    photos = list(small)
    if given.large:
        photos = [small[number % len(small)] for number in range(given.large - 1)] + [("large.jpg", large())]
    with server("--waiting", str(given.at_a_time)) as (port, process):
        load = run(port, process, photos, given.requests, given.at_a_time)
    print(f"{given.requests} requests, {given.at_a_time} at a time\n\n{table(load)}")
    return 0 if load.statuses == {200: given.requests} and not load.different else 1


if __name__ == "__main__":
    raise SystemExit(main())
