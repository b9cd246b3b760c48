"""benchmarks/serve.py: a lost or wrong answer is counted, and memory that grows is seen."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import serve


@pytest.fixture
def unsteady() -> object:
    """A server that answers each fourth request with 503, and the tenth with another body."""
    count, lock = [0], threading.Lock()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                count[0] += 1
                number = count[0]
            body = b"other" if number == 10 else b"same"
            self.send_response(503 if number % 4 == 0 else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *about: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_lost_and_what_differs_is_counted(unsteady: int) -> None:
    load = serve.run(unsteady, os.getpid(), [("a.jpg", b"1"), ("b.jpg", b"2")], 20, 4)
    assert load.statuses == {200: 15, 503: 5}
    assert load.different == 1
    assert len(load.seconds) == len(load.resident) == 20
    text = serve.table(load)
    assert "| responses with a photo | 15 of 20 |" in text
    assert "| responses with 503 | 5 |" in text


def test_no_answer_at_all_is_status_0() -> None:
    assert serve.send(1, "a.jpg", b"x") == (0, b"")


def test_growth_is_seen() -> None:
    load = serve.Load([0.1] * 100, {200: 100}, 0, [number << 20 for number in range(100)], 10.0)
    assert "+100.0 MiB in 100 requests" in serve.table(load)
    assert "| requests per second | 10.00 |" in serve.table(load)
