"""Several processes for one run: starting and ending them, and averaging gradients and statistics.

A process reads its rank from the environment variables of torchrun and Lightning: WORLD_SIZE, RANK or LOCAL_RANK,
MASTER_ADDR, MASTER_PORT. If they are not set, `start_processes` sets them and runs this program's command line once
more for each further process. Lightning's own launcher is not used: it drops the interpreter's options, and when a
process fails it kills the main one before that can report why. torchrun works too, but would have to be the command.

Lightning Fabric's DDP strategy creates the process group and assigns devices. No module is wrapped in DDP, whose hooks
expect one backward pass per step: a recipe's step has one per optimizer group, through other groups' networks. The
engine averages the gradients of a group itself, in one bucket, before the optimizer step.
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
"""Seconds for the main process to detect by itself, and report in more detail, that another process has ended."""

_children: list[subprocess.Popen[bytes]] = []


def world_size() -> int | None:
    """Number of processes of the run; None if this process was started alone."""
    if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return None


def is_main() -> bool:
    """Whether this is the main process, which alone writes files and logs."""
    return world_size() is None or int(os.environ.get("RANK", os.environ["LOCAL_RANK"])) == 0


def resolve_devices(given: int | None, origin: str | None) -> int | None:
    """The number of processes: those started by torchrun, else the setting, which `origin` gave.

    Raises:
        BadSettings: both are known and differ.
    """
    started = world_size()
    if started is not None and given is not None and given != started:
        raise BadSettings(
            f"run.devices is {given} ({origin}), but {started} process{'es were' if started > 1 else ' was'} started "
            "(WORLD_SIZE): omit it under torchrun, or start as many"
        )
    return given if started is None else started


def start_processes(count: int) -> None:
    """Run this program's command line once more for each of `count - 1` further processes of this machine.

    Raises:
        BadSettings: in a notebook or at a prompt, which have no command line to run.
    """
    program = sys.modules["__main__"]
    if "ipykernel" in sys.modules or not (getattr(program, "__file__", None) or "-c" in sys.orig_argv):
        raise BadSettings(
            f"run.devices is {count}, which starts this program {count} times, and a notebook or prompt cannot be "
            "started again: use `fairweather train ... --devices N`, or a script"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"},
        **{"LOCAL_RANK": "0", "WORLD_SIZE": str(count), _MAIN_PID: str(os.getpid())},
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    # In a separate process group: Ctrl-C then reaches only the main process, which stops the others in order.
    apart: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    for rank in range(1, count):
        environment = {**os.environ, "LOCAL_RANK": str(rank)}
        _children.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **apart))


def exited_processes(patience: float = 0.0) -> list[tuple[int, int]]:
    """Rank and exit code of the started processes that have ended; waits up to `patience` seconds for the first."""
    until = time.monotonic() + patience
    while True:
        found = [(rank, code) for rank, child in enumerate(_children, 1) if (code := child.poll()) is not None]
        if found or not _children or time.monotonic() >= until:
            return found
        time.sleep(0.05)


def describe_exit(ended: list[tuple[int, int]]) -> str:
    """An error message for processes that have ended."""
    which = ", ".join(f"process {rank} with code {code}" for rank, code in ended) or "another process"
    return f"{which} ended before the run did: see its output above"


def watch_processes() -> Callable[[], None]:
    """End this process soon after one that it depends on has ended; the returned function stops the watch.

    The main process watches those that it started; each other process watches the one that started it. Otherwise a
    collective operation would wait for a dead process until its time limit.
    """
    over = threading.Event()
    parent = int(os.environ.get(_MAIN_PID, os.getppid()))

    def main() -> None:
        while not over.wait(0.5):
            if (ended := exited_processes()) and not over.wait(GRACE):
                print(f"fairweather: error: {describe_exit(ended)}", file=sys.stderr, flush=True)
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
    """For errors that occur in all processes before the process group exists: only the main one reports them."""
    try:
        yield
    except FairweatherError:
        if is_main():
            raise
        # torchrun ends all processes as soon as one has ended: the main one needs time to report.
        time.sleep(5)
        raise SystemExit(1) from None


FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
STEP_LIMIT = timedelta(minutes=10)
"""Time limit of a step in one process while the others wait. (A process that ends is noticed in seconds.)"""
EXPORT_LIMIT = timedelta(days=1)
"""Time limit of validation and export in the main process while the others wait."""


class ProcessGroup:
    """This process among the `size` of a run; `rank` 0 is the main one.

    All processes must call the same methods in the same order. With a size of 1 the methods do nothing. If another
    process has ended, the main one raises FairweatherError and the others end. Collectives are torch.distributed's,
    since Fabric's wait at a barrier first.

    Args:
        device, precision: resolved, not "auto".
        size: number of processes; those not yet started are started here.

    Raises:
        BadSettings: there are fewer devices than processes.
    """

    def __init__(self, device: Device, precision: Precision, size: int = 1) -> None:
        self.size, self.rank, self.local = size, 0, 1
        self.finish: Callable[[], None] = lambda: None
        kind: dict[str, Any] = {"accelerator": device, "precision": FABRIC_PRECISION[precision]}
        if size == 1:
            self.fabric = Fabric(devices=1, **kind)
            return
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        count = {"cpu": self.local, "cuda": torch.cuda.device_count()}.get(device, 1)
        if self.local > count:
            found = f"{count} {device} device{'s'[: count != 1]}"
            raise BadSettings(f"run.devices is {size}, but this machine has {found}: use at most {count}")
        if world_size() is None:
            start_processes(size)
        self.finish = watch_processes()
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        self.fabric = Fabric(
            devices=self.local,
            num_nodes=size // self.local,
            strategy=DDPStrategy(timeout=STEP_LIMIT),
            plugins=None if elastic else [LightningEnvironment()],
            **kind,
        )
        with self._collective():
            self.fabric.launch()
            # On the CPU for every device: plain numbers and objects, and long waits.
            self._objects = dist.new_group(backend="gloo", timeout=EXPORT_LIMIT)
        self.rank = self.fabric.global_rank

    @property
    def main(self) -> bool:
        """Whether this is the main process, which alone writes files and logs."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """This process's own seed: `seed` for the main one, derived from seed and rank for the others."""
        if self.main:
            return seed
        return int(np.random.SeedSequence([seed % 2**64, self.rank]).generate_state(1)[0])

    def share_weights(self, module: nn.Module) -> None:
        """Copy the main process's parameters and persistent buffers to all others."""
        self.wait()  # opening the photos may take one process much longer
        if self.size > 1:
            with self._collective(), torch.no_grad():
                for tensor in chain(module.parameters(), synced_buffers(module)):
                    dist.broadcast(tensor.detach(), 0)

    def mean_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> float:
        """Set every gradient to its mean over the processes and return the mean loss.

        A missing gradient counts as zero if another process has one for that parameter.
        """
        present = loss.new_tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        bucket = torch.cat([loss.detach().float().reshape(1), present, *(one.reshape(-1) for one in gradients)])
        self._mean(bucket)
        mean_loss, *shares = bucket[: 1 + len(parameters)].tolist()
        means = _split(bucket[1 + len(parameters) :], parameters)
        for parameter, gradient, mean, share in zip(parameters, gradients, means, shares, strict=True):
            if share:
                # Copied, so that the gradient keeps the parameter's memory format.
                parameter.grad = gradient.copy_(mean.view_as(parameter))
        return float(mean_loss)

    def mean_buffers(self, module: nn.Module) -> None:
        """Synchronize buffers: the mean of batch norm statistics, and the main process's values of all others.

        (Spectral norm's vectors are equally valid with the opposite sign, so their mean is meaningless.)
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
        """The mean of each value, the main process's seconds, and whether any process must stop."""
        if self.size == 1:
            return values, seconds, stop
        own = [*(value / self.size for value in values.values()), seconds if self.main else 0.0, float(stop)]
        sums = torch.tensor(own, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(sums, group=self._objects)
        *means, seconds, stops = sums.tolist()
        return dict(zip(values, means, strict=True)), seconds, stops > 0

    def gather(self, own: Any) -> list[Any]:
        """The other processes' objects, by rank, in the main one; an empty list in the others."""
        if self.size == 1:
            return []
        gathered = [None] * self.size if self.main else None
        with self._collective():
            dist.gather_object(own, gathered, dst=0, group=self._objects)
        return [] if gathered is None else gathered[1:]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            with self._collective():
                dist.all_reduce(torch.zeros(1), group=self._objects)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error in this block in any process ends all of them: the main one raises it, the others exit."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size == 1:
            return
        reasons: list[str | None] = [None] * self.size
        own = None if failure is None else str(failure) or repr(failure)
        with self._collective():
            dist.all_gather_object(reasons, own, group=self._objects)
        if failure is not None and (self.main or not isinstance(failure, FairweatherError)):
            raise failure
        if (reason := next((one for one in reasons if one is not None), None)) is not None:
            raise self.agreed(FairweatherError(reason))

    def agreed(self, error: BaseException, code: int = 1) -> BaseException:
        """The exception to raise if all processes fail alike: `error` in the main one; the others exit after it."""
        if self.size > 1 and not self.main:
            with suppress(RuntimeError):
                dist.all_reduce(torch.zeros(1), group=self._objects)
            return SystemExit(code)
        return error

    def _mean(self, bucket: Tensor) -> None:
        with self._collective():
            dist.all_reduce(bucket)
        bucket /= self.size

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a closed connection, or a wait that was too long
            if not is_main():
                raise SystemExit(1) from None
            ended = exited_processes(patience=5.0)
            reason = "" if ended else f" ({str(error).partition('. ')[0]})"
            raise FairweatherError(
                f"{describe_exit(ended)}{reason}: resume from the last checkpoint with --resume"
            ) from None


def synced_buffers(module: nn.Module) -> list[Tensor]:
    """The persistent buffers; others, such as frozen features, are the same in every process."""
    return [
        buffer
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    ]


def _split(bucket: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split(bucket, [tensor.numel() for tensor in like])
