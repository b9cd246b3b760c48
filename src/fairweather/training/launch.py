"""Starting a run's further processes, and seeing to it that none of them outlives the others.

A process learns its place from the environment, in the words that torchrun and Lightning agree on: WORLD_SIZE, RANK or
LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Where nobody has set them, `start` does, and runs this program's own command line
once more for each further process. (Lightning's launcher would do that too, but it drops the interpreter's options, and
when a process fails it kills the main one, so that nobody is left to say why.)

This file imports no torch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairweather.errors import BadSettings, FairweatherError

_MAIN = "FAIRWEATHER_MAIN"
GRACE = 10.0
"""Seconds in which the main process may find out by itself, and say more, that another one has ended."""

_children: list[subprocess.Popen[bytes]] = []


def world() -> int | None:
    """How many processes were started together with this one; None where it was started alone."""
    if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None


def is_main() -> bool:
    """Whether this is the process that writes and speaks, or the only one."""
    return world() is None or int(os.environ.get("RANK", os.environ["LOCAL_RANK"])) == 0


def devices(given: int | None, said: str | None) -> int | None:
    """How many processes the run has: as many as were started, else what was given (`said`: where).

    Raises BadSettings where both are known and differ.
    """
    started = world()
    if started is not None and given is not None and given != started:
        raise BadSettings(
            f"run.devices is {given} ({said}), but {started} process{'es were' if started > 1 else ' was'} started "
            f"together (WORLD_SIZE); leave it out where torchrun decides, or start as many"
        )
    return given if started is None else started


def start(count: int) -> None:
    """Run this program's command line once more for each of `count - 1` further processes of this machine.

    Raises BadSettings in a notebook or at a prompt, which cannot be run once more.
    """
    there = sys.modules["__main__"]
    if "ipykernel" in sys.modules or not (getattr(there, "__file__", None) or "-c" in sys.orig_argv):
        raise BadSettings(
            f"run.devices is {count}, for which this program is started {count} times, and a notebook or a prompt "
            "cannot be; take `fairweather train ... --devices N`, or a script"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"},
        **{"LOCAL_RANK": "0", "WORLD_SIZE": str(count), _MAIN: str(os.getpid())},
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    # In a process group of its own, so that a Ctrl-C is the main process's to hear, which stops all of them in order.
    apart: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    for rank in range(1, count):
        environment = {**os.environ, "LOCAL_RANK": str(rank)}
        _children.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **apart))


def ended(patience: float = 0.0) -> list[tuple[int, int]]:
    """Rank and exit code of the processes that `start` has started and that have ended; waits so long for a first."""
    until = time.monotonic() + patience
    while True:
        found = [(rank, code) for rank, child in enumerate(_children, 1) if (code := child.poll()) is not None]
        if found or not _children or time.monotonic() >= until:
            return found
        time.sleep(0.05)


def words(gone: list[tuple[int, int]]) -> str:
    """What has happened, for a message."""
    which = ", ".join(f"process {rank} with code {code}" for rank, code in gone) or "another process"
    return f"{which} ended before the run did; what it said, if anything, stands above"


def watch() -> Callable[[], None]:
    """End this process soon after one that it cannot do without has ended; the call that is given stops the watch.

    The main process watches those that it has started, each other process the one that has started it. What waits for
    a dead process in a collective operation would otherwise wait for long.
    """
    over = threading.Event()
    parent = int(os.environ.get(_MAIN, os.getppid()))

    def main() -> None:
        while not over.wait(0.5):
            if (gone := ended()) and not over.wait(GRACE):
                print(f"fairweather: error: {words(gone)}", file=sys.stderr, flush=True)
                for child in _children:
                    child.kill()
                os._exit(1)

    def other() -> None:
        while not over.wait(0.5):
            if sys.platform != "win32" and os.getppid() != parent:
                os._exit(1)

    if _children or not is_main():
        threading.Thread(target=main if _children else other, daemon=True, name="watch").start()
    return over.set


@contextmanager
def alike() -> Iterator[None]:
    """Before the processes can talk, all of them find the same faults in the same settings: the main one tells them."""
    try:
        yield
    except FairweatherError:
        if is_main():
            raise
        # torchrun ends all processes as soon as one has: not before the main one has spoken.
        time.sleep(5)
        raise SystemExit(1) from None
