"""The most memory that this process has held, for processes that are started to be measured."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Bytes. On Linux from /proc: `ru_maxrss` begins with what the parent held when it started this process."""
    if sys.platform == "linux":
        with Path("/proc/self/status").open() as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
