"""glibc memory settings that make eager training on a Linux CPU nearly twice as fast.

By default glibc requests fresh pages from the kernel for every large tensor and returns them when it is freed, and
training spends half of its time in page faults. These thresholds keep the pages; glibc reads them at process start.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
_MARK = "FAIRWEATHER_MALLOC"


def tuned(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment has the settings, or another allocator or C library."""
    return platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in environment or set(MALLOC) <= set(environment)


def restart_tuned() -> None:
    """Restart this program with the settings, unless they are set.

    For the command line, before torch is imported: the process is replaced (exec), so the program starts over.
    """
    if tuned(os.environ) or _MARK in os.environ:
        return
    environment = {**MALLOC, **os.environ, _MARK: "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
