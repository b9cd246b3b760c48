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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairweather.errors import BadSettings, FairweatherError
from fairweather.training.config import Device, Precision

_MAIN_PID = "FAIRWEATHER_MAIN"
GRACE = 10.0
"""Seconds in which the main process may find out by itself, and say more, that another one has ended."""

_children: list[subprocess.Popen[bytes]] = []


def world_size() -> int | None:
    """How many processes were started together with this one; None where it was started alone."""
    if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None


def is_main() -> bool:
    """Whether this is the process that writes and speaks, or the only one."""
    return world_size() is None or int(os.environ.get("RANK", os.environ["LOCAL_RANK"])) == 0


def resolve_devices(given: int | None, said: str | None) -> int | None:
    """How many processes the run has: as many as were started, else what was given (`said`: where).

    Raises BadSettings where both are known and differ.
    """
    started = world_size()
    if started is not None and given is not None and given != started:
        raise BadSettings(
            f"run.devices is {given} ({said}), but {started} process{'es were' if started > 1 else ' was'} started "
            f"together (WORLD_SIZE); leave it out where torchrun decides, or start as many"
        )
    return given if started is None else started


def start_processes(count: int) -> None:
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
        **{"LOCAL_RANK": "0", "WORLD_SIZE": str(count), _MAIN_PID: str(os.getpid())},
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    # In a process group of its own, so that a Ctrl-C is the main process's to hear, which stops all of them in order.
    apart: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    for rank in range(1, count):
        environment = {**os.environ, "LOCAL_RANK": str(rank)}
        _children.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **apart))


def exited_processes(patience: float = 0.0) -> list[tuple[int, int]]:
    """Rank and exit code of the processes that `start` has started and that have ended; waits so long for a first."""
    until = time.monotonic() + patience
    while True:
        found = [(rank, code) for rank, child in enumerate(_children, 1) if (code := child.poll()) is not None]
        if found or not _children or time.monotonic() >= until:
            return found
        time.sleep(0.05)


def describe_exit(gone: list[tuple[int, int]]) -> str:
    """What has happened, for a message."""
    which = ", ".join(f"process {rank} with code {code}" for rank, code in gone) or "another process"
    return f"{which} ended before the run did; what it said, if anything, stands above"


def watch_processes() -> Callable[[], None]:
    """End this process soon after one that it cannot do without has ended; the call that is given stops the watch.

    The main process watches those that it has started, each other process the one that has started it. What waits for
    a dead process in a collective operation would otherwise wait for long.
    """
    over = threading.Event()
    parent = int(os.environ.get(_MAIN_PID, os.getppid()))

    def main() -> None:
        while not over.wait(0.5):
            if (gone := exited_processes()) and not over.wait(GRACE):
                print(f"fairweather: error: {describe_exit(gone)}", file=sys.stderr, flush=True)
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
def agree_on_errors() -> Iterator[None]:
    """Before the processes can talk, all of them find the same faults in the same settings: the main one tells them."""
    try:
        yield
    except FairweatherError:
        if is_main():
            raise
        # torchrun ends all processes as soon as one has: not before the main one has spoken.
        time.sleep(5)
        raise SystemExit(1) from None


# Several processes for one run, each with a GPU or a share of the CPU, kept in step.
#
# Lightning Fabric's DDP strategy makes the process group and gives each process its device. No module is wrapped: a step
# runs several backward passes, each for one group's parameters and through other optimizer_groups' networks, which a wrapper's
# hooks do not follow. Instead the engine averages a group's gradients itself, all in one bucket, before it steps.
#
# Process 0 is the main one: it alone writes files and speaks. Fabric's own all_reduce waits at a barrier before each
# reduction, hence torch.distributed here.

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
STEP = timedelta(minutes=10)
"""The longest that one process may take for a step while the others wait. (One that ends is noticed in seconds.)"""
LOOK = timedelta(days=1)
"""The longest that the main process may look at the network, or export it, while the others wait."""


class ProcessGroup:
    """This process among the `size` of a run: `rank` 0 is the main one, and with a size of 1 the only one.

    Every method that is not said to be for one process must be called by all of them, in the same order. With a size
    of 1 none of them does anything. Where another process has ended, the main one raises FairweatherError and the
    others end.

    Raises BadSettings where there are not as many devices.
    """

    def __init__(self, device: Device, precision: Precision, size: int = 1) -> None:
        """Starts the further processes where nobody has; returns when all are there."""
        self.size, self.rank, self.local = size, 0, 1
        self.finish: Callable[[], None] = lambda: None
        kind: dict[str, Any] = {"accelerator": device, "precision": FABRIC_PRECISION[precision]}
        if size == 1:
            self.fabric = Fabric(devices=1, **kind)
            return
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        there = {"cpu": self.local, "cuda": torch.cuda.device_count()}.get(device, 1)
        if self.local > there:
            raise BadSettings(f"run.devices is {size}, but this machine has {there} {device} device{'s'[: there != 1]}")
        if world_size() is None:
            start_processes(size)
        self.finish = watch_processes()
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        self.fabric = Fabric(
            devices=self.local,
            num_nodes=size // self.local,
            strategy=DDPStrategy(timeout=STEP),
            plugins=None if elastic else [LightningEnvironment()],
            **kind,
        )
        with self._meeting():
            self.fabric.launch()
            # On the CPU whatever the device: plain numbers and objects, and waits that may be long.
            self._table = dist.new_group(backend="gloo", timeout=LOOK)
        self.rank = self.fabric.global_rank

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """This process's own seed: for the main one `seed` itself, for the others one that follows from both."""
        if self.main:
            return seed
        return int(np.random.SeedSequence([seed % 2**64, self.rank]).generate_state(1)[0])

    def share_weights(self, module: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers, as far as a checkpoint would hold them."""
        self.wait()  # opening the photos takes each its own time
        if self.size > 1:
            with self._meeting(), torch.no_grad():
                for tensor in chain(module.parameters(), synced_buffers(module)):
                    dist.broadcast(tensor.detach(), 0)

    def mean_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> float:
        """Set every gradient to its mean over the processes, and return the mean loss, which all need to be finite.

        A parameter without gradient counts as zero where another process has one, and stays without where none has.
        """
        there = loss.new_tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        bucket = torch.cat([loss.detach().float().reshape(1), there, *(one.reshape(-1) for one in gradients)])
        self._mean(bucket)
        loss_now, *found = bucket[: 1 + len(parameters)].tolist()
        parts = _split(bucket[1 + len(parameters) :], parameters)
        for parameter, gradient, part, some in zip(parameters, gradients, parts, found, strict=True):
            if some:
                # Copied, so that the gradient keeps the parameter's own memory format.
                parameter.grad = gradient.copy_(part.view_as(parameter))
        return float(loss_now)

    def mean_buffers(self, module: nn.Module) -> None:
        """Bring together what networks keep beside their weights: the mean of batch norm's statistics, and all else as
        the main process has it. Spectral norm's vectors, say, are as good with the other sign, and then have no mean.
        """
        if self.size == 1:
            return
        if buffers := [buffer for buffer in synced_buffers(module) if buffer.is_floating_point()]:
            norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
            statistics = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
            # In double precision the mean of equal numbers is that number, and so is the mean of size * x and zeros x.
            share = self.size if self.main else 0
            bucket = torch.cat([one.reshape(-1).double() * (1 if id(one) in statistics else share) for one in buffers])
            self._mean(bucket)
            for buffer, part in zip(buffers, _split(bucket, buffers), strict=True):
                buffer.copy_(part.view_as(buffer))

    def settle(self, values: dict[str, float], seconds: float, stop: bool) -> tuple[dict[str, float], float, bool]:
        """The mean of each value, the main process's seconds, and whether any process wants to stop."""
        if self.size == 1:
            return values, seconds, stop
        told = [*(value / self.size for value in values.values()), seconds if self.main else 0.0, float(stop)]
        sums = torch.tensor(told, dtype=torch.float64)
        with self._meeting():
            dist.all_reduce(sums, group=self._table)
        *means, seconds, stops = sums.tolist()
        return dict(zip(values, means, strict=True)), seconds, stops > 0

    def gather(self, own: Any) -> list[Any]:
        """The other processes' objects, by rank, in the main one; an empty list in the others."""
        if self.size == 1:
            return []
        all_of_them = [None] * self.size if self.main else None
        with self._meeting():
            dist.gather_object(own, all_of_them, dst=0, group=self._table)
        return [] if all_of_them is None else all_of_them[1:]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            with self._meeting():
                dist.all_reduce(torch.zeros(1), group=self._table)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in here in any process fails in all: the main one raises the reason, the others end."""
        wrong: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            wrong = error
        if self.size == 1:
            return
        faults: list[str | None] = [None] * self.size
        with self._meeting():
            dist.all_gather_object(faults, None if wrong is None else str(wrong) or repr(wrong), group=self._table)
        if wrong is not None and (self.main or not isinstance(wrong, FairweatherError)):
            raise wrong
        if (reason := next((fault for fault in faults if fault is not None), None)) is not None:
            raise self.agreed(FairweatherError(reason))

    def agreed(self, error: BaseException, code: int = 1) -> BaseException:
        """What to raise where all fail alike: `error` in the main process; the others end when that one has ended."""
        if self.size > 1 and not self.main:
            with suppress(RuntimeError):
                dist.all_reduce(torch.zeros(1), group=self._table)
            return SystemExit(code)
        return error

    def _mean(self, bucket: Tensor) -> None:
        with self._meeting():
            dist.all_reduce(bucket)
        bucket /= self.size

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a closed connection, or a wait that was too long
            if not is_main():
                raise SystemExit(1) from None
            gone = exited_processes(patience=5.0)
            reason = "" if gone else f" ({str(error).partition('. ')[0]})"
            raise FairweatherError(
                f"{describe_exit(gone)}{reason}; where the run has a checkpoint, --resume goes on from it"
            ) from None


def synced_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that belong to the state; others (frozen features, say) are the same wherever they are made."""
    return [
        buffer
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    ]


def _split(bucket: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split(bucket, [tensor.numel() for tensor in like])
